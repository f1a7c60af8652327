"""Fetches an image from a link, with a client that knows no key and trusts no link.

A gateway's answer names any address it likes, and the worker stands inside somebody's network. What must stay true:
no credential goes out; every hop's name is resolved once, refused unless every address is a public one, and connected
to that very address, so that no second look-up can lead elsewhere; only the API's own scheme, host and port are exempt
from that. Bytes come as they are stored (no content encoding), never more of them than allowed, and a body that breaks
off is noticed. Memory is taken as bytes arrive: what a host announces only ends the growth, and allows to refuse; and
a host that keeps it without sending is given up.
Whatever is raised on the way is an outcome. No message and no log line shows more of a link than its host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

import anyio
import httpx

from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.http.download_buffer import DownloadBuffer, Hold, Pace
from airflow_provider_geminiimg.core.http.log_filter import quiet_http
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

DOWNLOAD_SECONDS = 300.0  # for one image
MAX_REDIRECTS = 5
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # between two pieces of the body; the whole has the caller's limit
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "airflow-provider-geminiimg"}
_REDIRECTS = {301, 302, 303, 307, 308}
_RETRY_LATER = {408, 425, 429}
# What the network or the worker may have got over by the next try. What else is raised, the link or its host causes.
_MAY_PASS = (httpx.TimeoutException, httpx.NetworkError, OSError, MemoryError)
_SHOWN = 100  # characters of a host that is none
_FREE_PIECES, _BYTES_A_PIECE = 10_000, 256  # a body in smaller pieces on the whole costs more CPU than it is worth
_PIECES_AT_ONCE = 32  # after which others have their turn in the event loop

_log = logging.getLogger(__name__)


async def download(
    url: str, *, max_bytes: int, timeout: float, exempt: str | None = None, hold: Hold | None = None
) -> bytes:
    """The bytes behind a link, exactly as they came.

    :param url: an https address, often signed. Up to `MAX_REDIRECTS` redirects are followed.
    :param max_bytes: the most to take.
    :param timeout: seconds for all of it.
    :param exempt: base URL of the API. Links with its scheme, host and port may be plain http and may lead to a private
        address. Default: none is exempt.
    :param hold: where memory is shared. The time that it takes does not count. Default: nobody is asked.
    :raises LinkExpiredError: the host answered 401, 403, 404, 410 or the like.
    :raises InvalidImageError: the body is empty, cut, encoded or too large.
    :raises UpstreamFailedError: the host can't be reached, answered 5xx or 429, took too long, or the link leads
        somewhere it must not.
    """
    where = _Where()
    with quiet_http(show_path=False):
        found = await closed(_followed(url, max_bytes, timeout, exempt, hold, where), where.broken)
    if isinstance(found, GeminiImageError):
        raise found
    return found


@dataclass
class _Where:
    """Which host is being asked, for whoever has to say that it failed."""

    host: str = "the link's host"

    def broken(self, error: Exception) -> GeminiImageError:
        """What an exception means that is no outcome; its text may hold the link."""
        said = f"Downloading from {self.host} failed: {type(error).__name__}."
        if isinstance(error, httpx.RemoteProtocolError):
            # httpcore's pool raises again `from None`, which leaves the parser's complaint as context alone.
            if error.__cause__ is not None and error.__cause__.__context__ is not None:
                return InvalidImageError(said)  # its parser complains: what came is no HTTP, let alone an image
            return _failed(f"{self.host} closed the connection without an answer.")
        return _failed(said, isinstance(error, _MAY_PASS))


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
    raise _failed(f"The link leads from one redirect to the next, more than {MAX_REDIRECTS} times.", False)


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
        raise _failed(f"The link leads to {target.host[:_SHOWN]!r}, which is no host's name or address.", False)
    if url.userinfo:
        raise _failed(f"The link to {target.host} holds a user name or password, which is never sent.", False)
    if url.scheme != "https" and not target.exempt:
        raise _failed(f"The link to {target.host} is plain http; only https is followed.", False)
    return target


async def _hop(target: _Target, buffer: DownloadBuffer, own: Origin | None) -> bytes | _Target:
    """One request: the body, or where it redirects to."""
    addresses = await _resolve(target)
    context = await asyncio.to_thread(tls_context)
    why = "no address"
    for address in addresses:
        # A transport for each hop, and no client around it: that would look at cookies, and at where a redirect leads.
        async with httpx.AsyncHTTPTransport(verify=context, trust_env=False) as transport:
            try:
                response = await transport.handle_async_request(_request(target, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                why = str(error) or type(error).__name__  # holds no link: the request was not yet looked at
                continue
            _log.info("HTTP request to %s://%s/…: %s", target.url.scheme, target.netloc, response.status_code)
            async with contextlib.aclosing(response):
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    return _parse(_joined(target.url, response.headers["location"]), own)
                _check_status(response, target.host)
                return await _body(response, buffer, target.host)
    raise _failed(f"No connection to {target.host} (port {target.port}) could be made: {why}.")


async def _resolve(target: _Target) -> list[str]:
    """The addresses of a host, in the resolver's order; all of them public unless the host is exempt."""
    name = target.host.strip("[]")
    try:
        addresses = await look_up(name, target.port)
    except OSError:
        raise _failed(f"The link's host {target.host} is not known here.") from None
    if not target.exempt and not all(is_public(address) for address in addresses):
        raise _failed(f"The link leads to {target.host}, which is not a public address. Not followed.", False)
    return addresses


def _request(target: _Target, address: str) -> httpx.Request:
    headers = {"Host": target.netloc, **_HEADERS}
    extensions = {"sni_hostname": target.host.strip("[]"), "timeout": _TIMEOUT.as_dict()}
    return httpx.Request("GET", target.url.copy_with(host=address), headers=headers, extensions=extensions)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except Exception:  # whatever the parsers raise
        raise _failed("The link redirects to something that is not a URL.", False) from None


def _check_status(response: httpx.Response, host: str) -> None:
    status = response.status_code
    if status == 200:
        return
    if status >= 500 or status in _RETRY_LATER:
        raise _failed(f"{host} failed to send the image (HTTP {status}).")
    if status >= 400:
        raise LinkExpiredError(f"The link to {host} no longer answers (HTTP {status}).")
    raise _failed(f"{host} answered the link without a body (HTTP {status}).")


async def _body(response: httpx.Response, body: DownloadBuffer, host: str) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidImageError(f"{host} sent the image encoded although that was refused; its bytes can't be trusted.")
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
    try:
        with body.pace.window:
            await _read(response, body, host, too_large)
    except httpx.RemoteProtocolError:
        raise InvalidImageError(f"The download from {host} broke off after {body.size} bytes.") from None
    if body.pace.window.cancelled_caught:
        lately = f"{body.size} bytes, and hardly any in the last {body.pace.seconds:g} s"
        raise _failed(f"{host} sends the image too slowly: {lately}.")
    if announced is not None and announced != body.size:
        raise InvalidImageError(f"{host} announced {announced} bytes and sent {body.size}.")
    if not body.size:
        raise InvalidImageError(f"{host} sent an empty body (0 bytes).")
    return body.getvalue()


async def _read(response: httpx.Response, body: DownloadBuffer, host: str, too_large: InvalidImageError) -> None:
    body.pace.went_on(0)
    pieces = 0
    async for piece in response.aiter_raw():
        await body.add(piece)
        if body.size > body.most:
            raise too_large
        pieces += 1
        if pieces > _FREE_PIECES + body.size // _BYTES_A_PIECE:
            raise _failed(f"{host} sends the image in pieces of a few bytes each.")
        if pieces % _PIECES_AT_ONCE == 0:
            await asyncio.sleep(0)


def _failed(message: str, retryable: bool = True) -> UpstreamFailedError:
    hint = InvalidImageError.default_hint if retryable else LinkExpiredError.default_hint
    return UpstreamFailedError(message, billed=Billed.YES, retryable=retryable, hint=hint)
