"""Downloads an image from an untrusted link, without the API key.

A gateway can name any address, and the worker runs inside a private network. What must stay true:

- no credential is sent;
- the host of every hop is resolved once; the link is refused unless all its addresses are public, and the connection
  goes to one of these addresses, so that a second look-up cannot lead elsewhere; only the API's own scheme, host and
  port are exempt;
- the body is not content-encoded, never larger than allowed, and a truncated body is detected;
- memory grows with the received bytes; the announced size only limits it; a host that sends too slowly is disconnected;
- every failure is an error of this package; no message and no log line shows more of a link than its host.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import anyio
import httpx

from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.http.download_buffer import DownloadBuffer, Hold, Pace
from airflow_provider_geminiimg.core.http.public_addresses import is_public, look_up
from airflow_provider_geminiimg.core.http.tls import DEFAULT_PORTS, Origin, origin_of, tls_context
from airflow_provider_geminiimg.core.validation.hosts import is_usable
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    InvalidImageError,
    LinkExpiredError,
    UpstreamFailedError,
)

if TYPE_CHECKING:
    from aiohttp import ClientResponse

Opened: TypeAlias = "Callable[..., AbstractAsyncContextManager[ClientResponse]]"
DOWNLOAD_SECONDS = 300.0  # time limit for one image
MAX_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 30.0  # between two chunks; the caller limits the total time
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "airflow-provider-geminiimg"}
_REDIRECTS = {301, 302, 303, 307, 308}
_RETRY_LATER = {408, 425, 429}
# Failures of the network or the worker that may be over at the next try. The link or its host causes all others.
_MAY_PASS = (httpx.TimeoutException, httpx.NetworkError, OSError, MemoryError)
_SHOWN = 100  # characters of an invalid host in a message
_FREE_CHUNKS, _BYTES_PER_CHUNK = 10_000, 256  # a body in smaller chunks on average costs too much CPU
_CHUNKS_PER_STEP = 32  # chunks between two yields to the event loop

_log = logging.getLogger(__name__)


async def download(
    url: str, *, max_bytes: int, timeout: float, exempt: str | None = None, hold: Hold | None = None
) -> bytes:
    """Download a file; its bytes are returned unchanged.

    :param url: an https URL, often signed. Up to `MAX_REDIRECTS` redirects are followed.
    :param max_bytes: maximum size in bytes.
    :param timeout: seconds for the complete download.
    :param exempt: base URL of the API. Links with its scheme, host and port may be plain http and may lead to a private
        address. Default: no link is exempt.
    :param hold: waits until memory is available; this time does not count. Default: memory is not limited.
    :raises LinkExpiredError: the host responded with 4xx, except 408, 425 and 429.
    :raises InvalidImageError: the body is empty, truncated, content-encoded or too large.
    :raises UpstreamFailedError: the host cannot be reached, responded with 5xx, 408, 425 or 429, or was too slow; or
        the link is not allowed.
    """
    where = _Where()
    found = await closed(_followed(url, max_bytes, timeout, exempt, hold, where), where.broken)
    if isinstance(found, GeminiImageError):
        raise found
    return found


@dataclass
class _Where:
    """The current host, for error messages."""

    host: str = "the link's host"

    def broken(self, error: Exception) -> GeminiImageError:
        """The error for any other exception. The exception's text is not used, because it may contain the link."""
        message = f"Downloading from {self.host} failed: {type(error).__name__}."
        if isinstance(error, httpx.LocalProtocolError):
            return InvalidImageError(message.replace("LocalProtocolError", "the response is not valid HTTP"))
        if isinstance(error, httpx.CloseError):
            return _failed(f"{self.host} closed the connection without a response.")
        return _failed(message, isinstance(error, _MAY_PASS))


async def _followed(
    url: str, max_bytes: int, timeout: float, exempt: str | None, hold: Hold | None, where: _Where
) -> bytes:
    own = origin_of(httpx.URL(exempt)) if exempt else None
    try:
        with anyio.fail_after(timeout) as limit:
            target = _parse(url, own)
            for _ in range(MAX_REDIRECTS + 1):
                where.host = target.host
                found = await _hop(target, DownloadBuffer(max_bytes, hold, Pace(limit)), own)
                if isinstance(found, bytes):
                    return found
                target = found
    except TimeoutError:
        raise _failed(f"Downloading from {where.host} took longer than {timeout:g} s.") from None
    raise _failed(f"The link redirects more than {MAX_REDIRECTS} times.", False)


@dataclass(frozen=True)
class _Target:
    url: httpx.URL
    exempt: bool

    @property
    def host(self) -> str:
        return self.url.raw_host.decode("ascii", "replace")

    @property
    def netloc(self) -> str:
        return self.url.netloc.decode("ascii", "replace")

    @property
    def port(self) -> int:
        return self.url.port or DEFAULT_PORTS[self.url.scheme]


def _parse(link: str | httpx.URL, own: Origin | None) -> _Target:
    try:
        url = httpx.URL(link)
    except Exception:  # whatever the parser raises
        raise _failed("The link is not a URL.", False) from None
    target = _Target(url, exempt=origin_of(url) == own)
    if url.scheme not in DEFAULT_PORTS or not target.host or "%" in target.host:
        raise _failed("The link is not an https address.", False)
    if not is_usable(url):
        raise _failed(f"The link leads to {target.host[:_SHOWN]!r}, which is not a host name or IP address.", False)
    if url.userinfo:
        raise _failed(f"The link to {target.host} contains a user name or password, which is never sent.", False)
    if url.scheme != "https" and not target.exempt:
        raise _failed(f"The link to {target.host} is plain http; only https is allowed.", False)
    return target


async def _hop(target: _Target, buffer: DownloadBuffer, own: Origin | None) -> bytes | _Target:
    """Send one request; returns the body, or the target of a redirect."""
    addresses = await _resolve(target)
    opened, tls = _opened() if tls_context.cache_info().currsize else await asyncio.to_thread(_opened)
    name, headers = target.host.strip("[]"), {"Host": target.netloc, **_HEADERS}
    why = "no address"
    for address in addresses:
        try:
            url = target.url.copy_with(host=address)
            async with opened(url, name, headers, tls, connect=_CONNECT_SECONDS, read=_READ_SECONDS) as response:
                _log.debug("HTTP request to %s://%s/…: %s", target.url.scheme, target.netloc, response.status)
                if response.status in _REDIRECTS and "location" in response.headers:
                    return _parse(_joined(target.url, response.headers["location"]), own)
                _check_status(response.status, target.host)
                return await _body(response, buffer, target.host)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = str(error) or type(error).__name__  # contains no link: the error is from connecting
        except httpx.RemoteProtocolError:
            raise InvalidImageError(
                f"The download from {target.host} ended early, after {buffer.size} bytes."
            ) from None
    raise _failed(f"Connecting to {target.host} (port {target.port}) failed: {why}.")


async def _resolve(target: _Target) -> list[str]:
    """The IP addresses of a host, in the resolver's order; all are public unless the host is exempt."""
    name = target.host.strip("[]")
    try:
        addresses = await look_up(name, target.port)
    except OSError:
        raise _failed(f"The link's host {target.host} cannot be resolved.") from None
    if not target.exempt and not all(is_public(address) for address in addresses):
        raise _failed(f"The link leads to {target.host}, which is not a public address. It was not opened.", False)
    return addresses


def _opened() -> tuple[Opened, ssl.SSLContext]:
    """The HTTP client and the TLS context; slow at the first call."""
    from airflow_provider_geminiimg.core.http.download_client import opened

    return opened, tls_context()


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except Exception:  # whatever the parsers raise
        raise _failed("The link redirects to something that is not a URL.", False) from None


def _check_status(status: int, host: str) -> None:
    if status == 200:
        return
    if status >= 500 or status in _RETRY_LATER:
        raise _failed(f"{host} failed to send the image (HTTP {status}).")
    if status >= 400:
        raise LinkExpiredError(f"The link to {host} no longer works (HTTP {status}).")
    raise _failed(f"{host} responded without an image (HTTP {status}).")


async def _body(response: ClientResponse, body: DownloadBuffer, host: str) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidImageError(f"{host} sent the image with a content encoding, which was not requested.")
    length = response.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) <= 20 else None
    too_large = InvalidImageError(
        f"The image at {host} is larger than the {body.most} bytes that are allowed.",
        retryable=False,
        hint=LinkExpiredError.default_hint,
    )
    if announced is not None and announced > body.most:
        raise too_large
    body.announced = announced or 0
    with body.pace.window:
        await _read(response, body, host, too_large)
    if body.pace.window.cancelled_caught:
        received = f"{body.size} bytes, almost none of them in the last {body.pace.seconds:g} s"
        raise _failed(f"{host} sends the image too slowly: {received}.")
    if announced is not None and announced != body.size:
        raise InvalidImageError(f"{host} announced {announced} bytes and sent {body.size}.")
    if not body.size:
        raise InvalidImageError(f"{host} sent an empty body (0 bytes).")
    return body.getvalue()


async def _read(response: ClientResponse, body: DownloadBuffer, host: str, too_large: InvalidImageError) -> None:
    body.pace.progress(0)
    pieces = 0
    async for piece in response.content.iter_any():
        await body.add(piece)
        if body.size > body.most:
            raise too_large
        pieces += 1
        if pieces > _FREE_CHUNKS + body.size // _BYTES_PER_CHUNK:
            raise _failed(f"{host} sends the image in chunks of a few bytes.")
        if pieces % _CHUNKS_PER_STEP == 0:
            await asyncio.sleep(0)


def _failed(message: str, retryable: bool = True) -> UpstreamFailedError:
    hint = InvalidImageError.default_hint if retryable else LinkExpiredError.default_hint
    return UpstreamFailedError(message, billed=Billed.YES, retryable=retryable, hint=hint)
