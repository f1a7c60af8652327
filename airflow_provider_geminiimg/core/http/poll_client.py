"""The HTTP client of polls and checks, with aiohttp.

In the triggerer a thousand jobs are polled in one event loop, and a poll with httpx takes three times the CPU. Calls
that may cost money use httpx, because it reports whether any byte of the request was written.

What must stay true: this client follows no redirect, decodes no body, keeps no cookie and logs nothing; every failure
is an exception of httpx, so that `core.http.exchange` handles one kind. Importing aiohttp is slow, so import this
module only before the first poll.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import httpx
import yarl

# Nothing was written. Errors of proxies are missing here, because polls through a proxy use httpx.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ClientSSLError, aiohttp.ConnectionTimeoutError)


class PollClient:
    """Pooled connections to one gateway. Create it in the event loop in which it is used.

    :param tls: the TLS context.
    :param connections: maximum number of connections.
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
        """Send a GET request. If the response is not read to its end, its connection is closed.

        :param url: the encoded URL.
        :param headers: the headers, without those that HTTP itself requires.
        :param connect: timeout for connecting, in seconds.
        :param read: timeout between two parts of the response, in seconds.
        :param total: timeout for the complete exchange, in seconds.
        :raises httpx.ConnectError: no byte was written.
        :raises httpx.TransportError: any other failure. Unlike aiohttp's exceptions it does not contain the request.
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
    """Prevent aiohttp's own retry after a broken connection, because the rate limit does not count it."""
    try:
        return await send(request)
    except _UNSENT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise httpx.ReadError(type(error).__name__) from None
