"""Connections for what is asked often and costs nothing: polls and checks, over aiohttp.

A thousand waiting tasks ask all the time, in one event loop; over httpx a poll takes three times the CPU. What may cost
money stays with httpx, whose own account of what was written decides whether a request is unpaid.

What must stay true: nothing is followed, decoded, stored or logged here; every failure is an exception of httpx, so
that `airflow_provider_geminiimg.transport` has one way to read them. aiohttp takes long to import: import this where
the first poll is made, not before.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import httpx
import yarl

# Nothing was written then. A proxy is not among them: behind one, polls go over httpx.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ClientSSLError, aiohttp.ConnectionTimeoutError)


class Polls:
    """Pooled connections to one gateway. Made in the event loop in which they are used.

    :param tls: what to trust.
    :param connections: how many at most.
    :param connect_timeout: seconds for opening one.
    """

    def __init__(self, tls: ssl.SSLContext, *, connections: int, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            middlewares=(_once,),
        )

    @asynccontextmanager
    async def get(
        self, url: httpx.URL, headers: Mapping[str, str], *, read_timeout: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask; what is left of the answer is thrown away with its connection.

        :param url: where.
        :param headers: all of them.
        :param read_timeout: seconds without a byte of the answer.
        :raises httpx.TransportError: `httpx.ConnectError` where no byte was written.
        """
        timeout = aiohttp.ClientTimeout(sock_connect=self._connect_timeout, sock_read=read_timeout)
        with _as_httpx():
            async with self._session.get(
                yarl.URL(str(url), encoded=True), headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                yield answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Hide from aiohttp that a connection broke: it would send again by itself, which no limiter counts."""
    try:
        return await send(request)
    except _UNSENT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise httpx.ReadError(type(error).__name__) from None


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Failures without the request that aiohttp's exceptions hold."""
    try:
        yield
    except _UNSENT as error:
        raise httpx.ConnectError(type(error).__name__) from None
    except aiohttp.ServerTimeoutError as error:
        raise httpx.ReadTimeout(type(error).__name__) from None
    except aiohttp.ClientError as error:
        raise httpx.ReadError(type(error).__name__) from None
