"""One GET request over a connection of its own to a given IP address, with aiohttp.

A download with httpx takes twice the CPU. What must stay true: the connection goes to the address of the caller, and no
host is ever looked up here; the certificate is checked for the name of the host; no redirect is followed, no proxy, no
cookie and no credential is used, no body is decoded; every failure is an exception of httpx without the link. Importing
aiohttp is slow, so import this module only before the first download.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import aiohttp
import httpx
import yarl
from aiohttp.abc import AbstractResolver

_MAX_HEADER = 64 * 1024  # bytes; a redirect may lead to a long signed link
_KINDS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (  # the first that fits
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ClientSSLError, httpx.ConnectError),
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (asyncio.TimeoutError, httpx.ReadTimeout),
    (aiohttp.ServerDisconnectedError, httpx.CloseError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx.LocalProtocolError),
    (aiohttp.ClientError, httpx.ReadError),
)


class _NoResolver(AbstractResolver):
    async def resolve(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError("Only IP addresses are opened here.")

    async def close(self) -> None:
        pass


class _NoCookies(aiohttp.DummyCookieJar):
    def update_cookies_from_headers(self, *_: Any) -> None:
        """Parse nothing: a host that is not trusted sent the cookies, and aiohttp logs what it can't parse."""


@asynccontextmanager
async def opened(
    url: httpx.URL, name: str, headers: Mapping[str, str], tls: ssl.SSLContext, *, connect: float, read: float
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a GET request, and close its connection in the end.

    :param url: the URL with an IP address as its host.
    :param name: name of the host, for its certificate.
    :param connect: timeout for connecting, in seconds.
    :param read: timeout between two parts of the response, in seconds.
    :raises httpx.ConnectError: no connection; its text has at most the address.
    :raises httpx.RemoteProtocolError: the body ended early.
    :raises httpx.LocalProtocolError: the response is not valid HTTP.
    :raises httpx.CloseError: the connection was closed without a response.
    :raises httpx.TransportError: any other failure.
    """
    sockets: list[socket.socket] = []

    def new_socket(address: tuple[Any, ...]) -> socket.socket:
        sockets.append(socket.socket(*address[:3]))
        return sockets[-1]

    connector = aiohttp.TCPConnector(limit=1, ssl=tls, resolver=_NoResolver(), socket_factory=new_socket)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=_NoCookies(),
        auto_decompress=False,
        max_line_size=_MAX_HEADER,
        max_field_size=_MAX_HEADER,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read),
        middlewares=(_once,),
    ) as session:
        where = yarl.URL(str(url), encoded=True)
        try:
            async with session.get(where, headers=headers, allow_redirects=False, server_hostname=name) as answer:
                yield answer
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            kind = next(kind for known, kind in _KINDS if isinstance(error, known))
            raise kind(_why(error) if kind is httpx.ConnectError else "") from None
        finally:
            for each in sockets:  # otherwise TLS waits for a host that says nothing more
                with contextlib.suppress(OSError):  # it is closed
                    each.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    """The reason of a failed connection."""
    reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return str(reason) or type(error).__name__


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Prevent aiohttp's own retry after a broken connection."""
    try:
        return await send(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except aiohttp.ServerDisconnectedError:
        raise httpx.CloseError("") from None
    except aiohttp.ClientOSError:
        raise httpx.ReadError("") from None
