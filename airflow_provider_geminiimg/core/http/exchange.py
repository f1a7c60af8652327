"""One HTTP exchange: sends a call, receives the response, and decides whether a failure means that money was spent.

What must stay true: a network failure is "not sent" only if no byte of the request was written; otherwise it is
"outcome unknown" for a call that may cost money; a redirect is never followed, and means "not accepted" only if it
proves that; a response is read only up to its size limit.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx

from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation, ByteSemaphore
from airflow_provider_geminiimg.core.gateways.base import Call, Reply
from airflow_provider_geminiimg.core.http.key_auth import KeyAuth
from airflow_provider_geminiimg.core.http.response_body import ResponseBody, TooLargeBodyError, UnreadableBodyError
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    UpstreamFailedError,
)

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.http.poll_client import PollClient

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0  # seconds
WRITE_TIMEOUT = 30.0
OVERHEAD = 40.0  # seconds added to the read timeout for one exchange; well under the 60 that the ledger allows
SLOWEST_UPLOAD = 100_000  # bytes per second
MAX_ANSWER = {True: 64_000_000, False: 16_000_000}  # bytes, by billable: images may be inline
LARGE_ANSWER = 1_000_000  # bytes; larger responses share the transport's `MAX_RESPONSE_MEMORY`
MEMORY_WAIT = 30.0  # seconds that a paid response waits for memory; then it is read anyway, or it would be lost
TOO_LARGE = "answer_too_large"
"""The error code for a response that is larger than its limit."""
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "airflow-provider-geminiimg"}

# No byte of the request was written. A response cannot cause one of these errors: InvalidURL is missing, because httpx
# raises it also for the target of a redirect.
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
# Failures of the network or the worker that may be over at the next try.
_PASSING = (httpx.HTTPError, httpx.StreamError, OSError, MemoryError, RuntimeError)
_NOT_ACCEPTED = (307, 308)  # the same request must be sent elsewhere
_MAYBE_ACCEPTED = (301, 302)  # to the same host they may mean "accepted, see there"
_LOGIN = re.compile(r"/(log-?in|sign-?in|sso|oauth2?|saml2?)\b", re.IGNORECASE)
_ELSEWHERE = re.compile(r"(?:https?:)?//(?P<host>[\w.-]+|\[[\da-f:.]+\])(?::(?P<port>\d{1,5}))?|/(?!/)", re.IGNORECASE)
_CHECK_HOST = "Check the host of the Airflow connection."


class Exchange(Generic[T]):
    """One sending of one call; `written` tells whether any byte of it was written.

    :param call: the call.
    :param max_poll: see `Transport`.
    :param sent: see `Transport.send`.
    """

    def __init__(self, call: Call[T], max_poll: int | None = None, sent: Callable[[], None] | None = None) -> None:
        self.call = call
        self._sent = sent
        self.written = False
        most = MAX_ANSWER[call.billable]
        self._most = most if call.billable or max_poll is None else min(most, max_poll)
        self._hold: Callable[[int], Awaitable[None]]
        upload = None if call.billable or isinstance(call.request, str) else call.request
        size = int(upload.headers.get("Content-Length", 0)) if upload else 0
        self.time_limit = call.read_timeout + OVERHEAD + size / SLOWEST_UPLOAD

    @contextlib.asynccontextmanager
    async def memory(self, semaphore: ByteSemaphore) -> AsyncIterator[None]:
        """Context manager: reserve memory from `semaphore` for a large response."""
        allocation: Allocation | None = None
        async with contextlib.AsyncExitStack() as stack:

            async def hold(size: int) -> None:
                nonlocal allocation
                if size > LARGE_ANSWER and allocation is None:
                    timeout = MEMORY_WAIT if self.call.billable else math.inf
                    allocation = await stack.enter_async_context(semaphore.acquire(timeout))
                if allocation is not None:
                    await allocation.hold(size)

            self._hold = hold
            yield

    async def run(self, client: httpx.AsyncClient, auth: httpx.Auth | None) -> Reply:
        """Send the call and read its response, inside `memory`. The caller sets the time limit."""
        response = await client.send(self._request(), auth=auth, stream=True, follow_redirects=False)
        try:
            body = await self._body(response.headers, response.aiter_raw())
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, body)

    async def poll(self, polls: PollClient, auth: KeyAuth | None, url: str) -> Reply:
        """Same as `run`, with a time limit, for a call that is given as its URL."""
        headers = {**HEADERS, **(auth.headers(url) if auth is not None else {})}
        self.written = True  # otherwise the exception says that nothing was written
        read = self.call.read_timeout
        async with polls.get(url, headers, connect=CONNECT_TIMEOUT, read=read, total=self.time_limit) as answer:
            body = await self._body(answer.headers, answer.content.iter_any())
        return Reply(answer.status, answer.headers, body)

    def parsed(self, reply: Reply) -> T:
        """The parsed reply.

        :raises GeminiImageError: the reply is an error or is invalid.
        """
        if 300 <= reply.status < 400:
            raise self._redirected(reply)
        return self.call.parse(reply)

    def _redirected(self, reply: Reply) -> GeminiImageError:
        """The error for a redirect, which is never followed. Some redirects prove that the request was not accepted."""
        suffix = f"(HTTP {reply.status}), which is never followed."
        elsewhere = _ELSEWHERE.match(reply.headers.get("location", "").strip())
        if not self.call.billable or not elsewhere or not self._not_accepted(reply, elsewhere):
            return self._invalid(f"The gateway responded with a redirect {suffix}")
        to = f" to {elsewhere['host']}" if elsewhere["host"] else ""
        return BadRequestError(f"The gateway was not reached: its address redirects{to} {suffix}", hint=_CHECK_HOST)

    def _not_accepted(self, reply: Reply, elsewhere: re.Match[str]) -> bool:
        """Whether a redirect proves that the gateway did not accept the request."""
        asked = httpx.URL(self.call.request) if isinstance(self.call.request, str) else self.call.request.url
        host, port = elsewhere["host"], int(elsewhere["port"] or 0)
        there, here = (0 if number in (80, 443, None) else number for number in (port, asked.port))
        own_names = (asked.host.lower(), asked.raw_host.decode("ascii", "replace").lower())
        other_host = host is not None and (host.strip("[]").lower() not in own_names or there != here)
        login = _LOGIN.search(reply.headers.get("location", "").partition("?")[0])
        return reply.status in _NOT_ACCEPTED or (reply.status in _MAYBE_ACCEPTED and bool(other_host or login))

    def _request(self) -> httpx.Request:
        sent = self.call.request
        sent = httpx.Request("GET", sent) if isinstance(sent, str) else sent
        timeout = httpx.Timeout(connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT, pool=30.0, read=self.call.read_timeout)
        headers = httpx.Headers(HEADERS)
        headers.update(sent.headers)
        return httpx.Request(
            sent.method,
            sent.url,
            headers=headers,
            stream=sent.stream,
            extensions={"timeout": timeout.as_dict(), "trace": self._trace},
        )

    async def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):  # a CONNECT holds nothing of the request
            self.written = info["request"].method != b"CONNECT"
        if self._sent is not None and self.written and event.endswith("send_request_body.complete"):
            self._sent()

    async def _body(self, headers: Mapping[str, str], chunks: AsyncIterator[bytes]) -> bytes:
        billable = self.call.billable
        try:
            # A free call reads to the end, so that its connection can be reused.
            return await ResponseBody(headers, self._most, self._hold).read(chunks, until_whole=billable)
        except UnreadableBodyError as error:
            code = TOO_LARGE if isinstance(error, TooLargeBodyError) else None
            raise self._invalid(str(error), code) from None

    def failure(self, error: Exception) -> GeminiImageError:
        """The error for any exception. The exception's text is not used, because it may contain the request."""
        name = type(error).__name__
        passing = isinstance(error, _PASSING)
        if isinstance(error, _UNSENT) or (passing and not self.written):
            return NotSentError(f"The gateway could not be reached ({name}).")
        if not self.written:
            return BadRequestError(f"The request could not be sent ({name}).", hint=_CHECK_HOST)
        if self.call.billable:
            return OutcomeUnknownError(f"The request was sent, but the connection broke before the response ({name}).")
        hint = None if passing else _CHECK_HOST
        return UpstreamFailedError(
            f"The connection to the gateway broke ({name}).", billed=Billed.NO, retryable=passing, hint=hint
        )

    def _invalid(self, message: str, code: str | None = None) -> GeminiImageError:
        """The error for a response that cannot be used."""
        if self.call.billable:
            return OutcomeUnknownError(message, code=code)
        return UpstreamFailedError(message, billed=Billed.NO, retryable=False, hint=_CHECK_HOST, code=code)
