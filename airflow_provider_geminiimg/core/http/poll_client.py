"""Connections for what is asked often and costs nothing: polls and checks, over aiohttp.

A thousand waiting tasks ask all the time, in one event loop; over httpx a poll takes three times the CPU. What may cost
money stays with httpx, whose own account of what was written decides whether a request is unpaid.

What must stay true: nothing is followed, decoded, stored or logged here; every failure is an exception of httpx, so
that `core.http.exchange` has one way to read them. aiohttp takes long to import: import this where the first poll is
made, not before.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import httpx
import yarl

# Nothing was written then. A proxy is not among them: behind one, polls go over httpx.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ClientSSLError, aiohttp.ConnectionTimeoutError)


class PollClient:
    """Pooled connections to one gateway. Made in the event loop in which they are used.

    :param tls: what to trust.
    :param connections: how many at most.
    """

    def __init__(self, tls: ssl.SSLContext, *, connections: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            middlewares=(_once,),
        )

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str], *, connect: float, read: float, total: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask; what is left of the answer is thrown away with its connection.

        :param url: where, as it goes over the wire.
        :param headers: those that are not the protocol's own.
        :param connect: seconds for opening a connection.
        :param read: seconds without a byte of the answer.
        :param total: seconds for all of it.
        :raises httpx.TransportError: `httpx.ConnectError` where no byte was written. It does not hold the request, as
            aiohttp's exceptions do.
        """
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=connect, sock_read=read)
        where = yarl.URL(url, encoded=True)
        try:
            async with self._session.get(where, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                yield answer
        except _UNSENT as error:
            raise httpx.ConnectError(type(error).__name__) from None
        except asyncio.TimeoutError as error:
            raise httpx.ReadTimeout(type(error).__name__) from None
        except aiohttp.ClientError as error:
            raise httpx.ReadError(type(error).__name__) from None

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
