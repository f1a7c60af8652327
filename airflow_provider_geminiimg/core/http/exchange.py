"""One sending of one call: what goes out, what comes back, and what a failure of it means for the money.

What must stay true: whatever happens to the network is "not sent" only where no byte of the request was written, else
"outcome unknown" where the call may cost money; a redirect is never followed, and proves only where it can that the
request was not taken; more of an answer than is allowed is not read.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx

from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore, Share
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
OVERHEAD = 40.0  # seconds beside the read timeout for one exchange; well under the 60 that the ledger allows
SLOWEST_UPLOAD = 100_000  # bytes a second
MAX_ANSWER = {True: 64_000_000, False: 16_000_000}  # bytes, by billable: images may come inline
LARGE_ANSWER = 1_000_000  # bytes; larger ones share the transport's `ANSWERS_ROOM`
ANSWER_PATIENCE = 30.0  # seconds that a paid answer waits for room: one that is not read is lost in the end
TOO_LARGE = "answer_too_large"
"""The code of an answer that is larger than it may be."""
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "airflow-provider-geminiimg"}

# Nothing of ours was written then, whatever a proxy was told before. No error that an answer may cause is among them:
# httpx raises InvalidURL for where a redirect leads, too.
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
# What the network or the worker may have got over by the next try.
_PASSING = (httpx.HTTPError, httpx.StreamError, OSError, MemoryError, RuntimeError)
_NOT_TAKEN = (307, 308)  # the same request is wanted elsewhere
_MAY_BE_TAKEN = (301, 302)  # to the same host they may mean "done, look there"
_LOGIN = re.compile(r"/(log-?in|sign-?in|sso|oauth2?|saml2?)\b", re.IGNORECASE)
_ELSEWHERE = re.compile(r"(?:https?:)?//(?P<host>[\w.-]+|\[[\da-f:.]+\])(?::(?P<port>\d{1,5}))?|/(?!/)", re.IGNORECASE)
_CHECK_HOST = "Check the host of the Airflow connection."


class Exchange(Generic[T]):
    """One sending of one call, and whether any byte of it was written.

    :param call: what is sent.
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
    async def memory(self, room: ByteSemaphore) -> AsyncIterator[None]:
        """What the answer's bytes are charged to, if they are many, as long as they are held."""
        share: Share | None = None
        async with contextlib.AsyncExitStack() as stack:

            async def hold(size: int) -> None:
                nonlocal share
                if size > LARGE_ANSWER and share is None:
                    patience = ANSWER_PATIENCE if self.call.billable else math.inf
                    share = await stack.enter_async_context(room.share(patience))
                if share is not None:
                    await share.hold(size)

            self._hold = hold
            yield

    async def run(self, client: httpx.AsyncClient, auth: httpx.Auth | None) -> Reply:
        """Send the call, and read its answer within `memory`. The caller limits the time."""
        response = await client.send(self._request(), auth=auth, stream=True, follow_redirects=False)
        try:
            body = await self._body(response.headers, response.aiter_raw())
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, body)

    async def poll(self, polls: PollClient, auth: KeyAuth | None, url: str) -> Reply:
        """As `run`, for a call that is its URL alone; its time is limited, too."""
        headers = {**HEADERS, **(auth.headers(url) if auth is not None else {})}
        self.written = True  # where it is not, the exception says so
        read = self.call.read_timeout
        async with polls.get(url, headers, connect=CONNECT_TIMEOUT, read=read, total=self.time_limit) as answer:
            body = await self._body(answer.headers, answer.content.iter_any())
        return Reply(answer.status, answer.headers, body)

    def parsed(self, reply: Reply) -> T:
        """What the reply says.

        :raises GeminiImageError: it is not what was asked for.
        """
        if 300 <= reply.status < 400:
            raise self._redirected(reply)
        return self.call.parse(reply)

    def _redirected(self, reply: Reply) -> GeminiImageError:
        """Never followed. Whoever redirects did not take the request, but for "see other", which may mean "done"."""
        said = f"(HTTP {reply.status}), never followed."
        elsewhere = _ELSEWHERE.match(reply.headers.get("location", "").strip())
        if not self.call.billable or not elsewhere or not self._not_taken(reply, elsewhere):
            return self._doubt(f"The gateway answered with a redirect {said}")
        to = f" to {elsewhere['host']}" if elsewhere["host"] else ""
        return BadRequestError(f"The gateway was not reached: its address redirects{to} {said}", hint=_CHECK_HOST)

    def _not_taken(self, reply: Reply, elsewhere: re.Match[str]) -> bool:
        """Whether a redirect proves that the request was not taken."""
        asked = httpx.URL(self.call.request) if isinstance(self.call.request, str) else self.call.request.url
        host, port = elsewhere["host"], int(elsewhere["port"] or 0)
        there, here = (0 if number in (80, 443, None) else number for number in (port, asked.port))
        own_names = (asked.host.lower(), asked.raw_host.decode("ascii", "replace").lower())
        other_host = host is not None and (host.strip("[]").lower() not in own_names or there != here)
        login = _LOGIN.search(reply.headers.get("location", "").partition("?")[0])
        return reply.status in _NOT_TAKEN or (reply.status in _MAY_BE_TAKEN and bool(other_host or login))

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
        self.written = self.written or event.endswith("send_request_headers.started")
        if self._sent is not None and event.endswith("send_request_body.complete"):
            self._sent()

    async def _body(self, headers: Mapping[str, str], chunks: AsyncIterator[bytes]) -> bytes:
        billable = self.call.billable
        try:
            # A free call reads to the end, so that its connection can be used again.
            return await ResponseBody(headers, self._most, self._hold).read(chunks, until_whole=billable)
        except UnreadableBodyError as error:
            code = TOO_LARGE if isinstance(error, TooLargeBodyError) else None
            raise self._doubt(str(error), code) from None

    def failure(self, error: Exception) -> GeminiImageError:
        """What an exception means, whatever it is. Its text may hold the request."""
        name = type(error).__name__
        passing = isinstance(error, _PASSING)
        if isinstance(error, _UNSENT) or (passing and not self.written):
            return NotSentError(f"The gateway could not be reached ({name}).")
        if not self.written:
            return BadRequestError(f"The request could not be sent ({name}).", hint=_CHECK_HOST)
        if self.call.billable:
            return OutcomeUnknownError(f"The request was sent, and the contact broke off before its answer ({name}).")
        hint = None if passing else _CHECK_HOST
        return UpstreamFailedError(
            f"The contact to the gateway broke off ({name}).", billed=Billed.NO, retryable=passing, hint=hint
        )

    def _doubt(self, message: str, code: str | None = None) -> GeminiImageError:
        """The gateway took the request and gave an answer that can't be used."""
        if self.call.billable:
            return OutcomeUnknownError(message, code=code)
        return UpstreamFailedError(message, billed=Billed.NO, retryable=False, hint=_CHECK_HOST, code=code)
