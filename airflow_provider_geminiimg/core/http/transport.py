"""Sends a gateway's `Call`s. The only code that holds the API key.

What must stay true:

- the key goes to the API's own scheme, host and port, never along a redirect, and into nothing that we write;
- a call that may cost money goes once, over a fresh connection. Whatever then happens to the network is "not sent" only
  where no byte of the request was written, else "outcome unknown";
- every exception of an exchange, whatever it is, is an outcome of `airflow_provider_geminiimg.exceptions`, scrubbed; an
  httpx exception, which holds the request, is never chained to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
import re
import ssl
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar
from urllib.request import getproxies

import anyio
import httpx
import tenacity

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore, Share
from airflow_provider_geminiimg.core.execution.task_log import quiet_http
from airflow_provider_geminiimg.core.gateways.base import Call, JobStatus, Reply
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, is_loopback
from airflow_provider_geminiimg.core.gateways.model_refusals import is_image_model, refuses_model, shown
from airflow_provider_geminiimg.core.http.response_body import ResponseBody, TooLargeBodyError, UnreadableBodyError
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.http.poll_client import PollClient

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0
WRITE_TIMEOUT = 30.0
OVERHEAD = 40.0  # seconds beside the read timeout for one exchange; well under the 60 that the ledger allows
BILLABLE_WAIT = 15.0  # seconds that a billable call waits for its turn
SLOWEST_UPLOAD = 100_000  # bytes a second
MAX_PAUSE = 120.0  # seconds; a longer Retry-After is the business of whoever catches the outcome
DEFAULT_CONCURRENCY = 8  # a thousand waiters in httpx's own pool cost five times as much as behind a semaphore
MAX_ANSWER = {True: 64_000_000, False: 16_000_000}  # bytes, by billable: pictures may come inline
LARGE_ANSWER = 1_000_000  # bytes; larger ones share `ANSWERS_ROOM`
ANSWERS_ROOM = 64_000_000  # bytes
ANSWER_PATIENCE = 30.0  # seconds that a paid answer waits for room: one that is not read is lost in the end
IN_LOOP = 8_000  # bytes of an answer that are read in the event loop: under 10 ms, whatever they are
TOO_LARGE = "answer_too_large"
"""The code of an answer that is larger than it may be."""
FREE_ATTEMPTS = 3
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
_Origin = tuple[str, str, int | None]


class RateLimit:
    """A rate of calls, shared by threads: at most `per_minute` in any 60 seconds, a tenth of them in one burst.

    :param per_minute: calls a minute.
    """

    def __init__(self, per_minute: int) -> None:
        self._burst = max(1, per_minute // 10)
        self._interval = 60.0 / (per_minute - self._burst + 1)
        self._next = 0.0
        self._not_before = 0.0
        self._lock = threading.Lock()

    def take(self, *, patient: bool = False) -> float:
        """Take a slot; returns 0.0, or the seconds after which to try again.

        :param patient: leave half of the burst to others.
        """
        with self._lock:
            now = time.monotonic()
            usable = self._burst - max(1, self._burst // 2) + 1 if patient else self._burst
            free_at = max(self._next - (usable - 1) * self._interval, self._not_before)
            if free_at > now:
                return free_at - now
            self._next = max(self._next, now) + self._interval
            return 0.0

    def pause(self, seconds: float) -> None:
        """Let nothing pass for `seconds`, `MAX_PAUSE` at most."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + min(seconds, MAX_PAUSE))


class Limiter:
    """What one account may send from this process. When it binds, polls wait longer than submits do.

    :param per_minute: submits, polls, checks and uploads a minute. Downloads don't count.
    :param uploads_per_minute: uploads a minute.
    """

    def __init__(self, per_minute: int, uploads_per_minute: int) -> None:
        self._calls = RateLimit(per_minute)
        self._uploads = RateLimit(uploads_per_minute)

    async def admit(self, call: Call[Any]) -> None:
        """Wait for a slot."""
        if _kind(call) == "upload":
            await _slot(self._uploads)
        await _slot(self._calls, patient=_kind(call) == "poll")

    def pause(self, seconds: float) -> None:
        """Slow everyone down, because the gateway asked for it."""
        self._calls.pause(seconds)


async def _slot(bucket: RateLimit, *, patient: bool = False) -> None:
    while wait := bucket.take(patient=patient):  # noqa: ASYNC110 - other threads take slots too
        await asyncio.sleep(wait)


def _kind(call: Call[Any]) -> str:
    if call.billable:
        return "submit"
    return "poll" if isinstance(call.request, str) else "upload"


_limiters: dict[tuple[str, str, int, int], Limiter] = {}
_limiters_lock = threading.Lock()


def limiter_for(connection: GatewayConnection) -> Limiter:
    """The limiter that every transport of this connection shares in this process."""
    limits = LIMITS[connection.gateway]
    rates = (connection.requests_per_minute or limits.requests_per_minute, limits.uploads_per_minute)
    with _limiters_lock:
        return _limiters.setdefault((connection.conn_id, connection.base_url, *rates), Limiter(*rates))


class _KeyAuth(httpx.Auth):
    """Attaches the key to a copy of the request: who holds the call, or an error of it, does not hold the key."""

    def __init__(self, headers: Mapping[str, str], base_url: str) -> None:
        self._headers = headers
        api = httpx.URL(base_url)
        self._origin = _origin(api)
        self._root = str(api.copy_with(raw_path=b"/"))

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if key := self.headers(request.url):
            headers = request.headers.copy()
            headers.update(key)
            request = httpx.Request(
                request.method,
                request.url,
                headers=headers,
                stream=request.stream,
                extensions=request.extensions,
            )
        yield request

    def headers(self, url: httpx.URL | str) -> Mapping[str, str]:
        """The headers that carry the key, if `url` is the API's. Text is only compared, because it is many polls'."""
        own = url.startswith(self._root) if isinstance(url, str) else _origin(url) == self._origin
        return self._headers if own else {}

    def __reduce__(self) -> NoReturn:
        raise TypeError("This object holds an API key and can't be pickled.")


class Transport:
    """Sends calls to one gateway. An async context manager, bound to the event loop in which it is first used.

    :param connection: the account. Its `max_concurrency` bounds polls and billable calls, each for itself.
    :param max_poll: bytes of an answer to a free call at most, where that is less than `MAX_ANSWER`.
    """

    def __init__(self, connection: GatewayConnection, *, max_poll: int | None = None) -> None:
        self.gateway = connection.adapter()
        self.api_host, self.key_digest = connection.api_host, connection.key_digest
        self._limiter = limiter_for(connection)
        self._secrets = (connection.api_key,)
        self._auth = _KeyAuth(self.gateway.auth_headers(connection.api_key), self.gateway.base_url)
        at_once = connection.max_concurrency or DEFAULT_CONCURRENCY
        uploads = LIMITS[connection.gateway].uploads_at_once
        self._turns = {
            "submit": asyncio.Semaphore(at_once),
            "poll": asyncio.Semaphore(at_once),
            "upload": asyncio.Semaphore(uploads),
        }
        self._pool_size = at_once + uploads
        self._trust_env = not is_loopback(httpx.URL(self.gateway.base_url).host)  # no proxy reaches our own loopback
        self._behind_proxy = self._trust_env and bool(getproxies())
        self._pool: httpx.AsyncClient | None = None
        self._polls: PollClient | None = None
        self._closed = False
        self._served: dict[str, tuple[str, ...]] = {}
        self._max_poll = max_poll
        self._room = ByteSemaphore(ANSWERS_ROOM)
        # One at a time, because each holds several copies of its answer.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="geminiimg-answers")

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the pooled connections. Nothing can be sent afterwards."""
        self._closed = True
        self._reader.shutdown(wait=False)
        opened, self._pool, self._polls = (self._pool, self._polls), None, None
        for pool in opened:
            if pool is not None:
                await pool.aclose()

    @contextlib.asynccontextmanager
    async def turn(self, call: Call[Any]) -> AsyncIterator[None]:
        """Hold a call's place among all calls of the account, for `send(call, has_turn=True)`.

        :param call: what will be sent. A billable call waits 15 seconds at most.
        :raises RateLimitedError: the turn of a billable call did not come.
        """
        turn = self._turns[_kind(call)]
        try:
            with anyio.fail_after(BILLABLE_WAIT) if call.billable else contextlib.nullcontext():
                await self._take_turn(turn, call)
        except TimeoutError:
            raise RateLimitedError(
                "This process has used up the connection's requests_per_minute or max_concurrency; nothing was sent.",
                retry_after=BILLABLE_WAIT,
            ) from None
        try:
            yield
        finally:
            turn.release()

    async def send(
        self,
        call: Call[T],
        *,
        prompt: str | None = None,
        has_turn: bool = False,
        sent: Callable[[], None] | None = None,
    ) -> T:
        """Send a call once.

        :param call: what to send. A billable call waits 15 seconds at most for its turn.
        :param prompt: the prompt of the job that the call is about, where the call does not hold it; ``""`` where
            there is none. Its echo is taken out of what the gateway says; without it the gateway's text is withheld.
        :param has_turn: the caller holds the call's `turn`.
        :param sent: is called once the whole request is written; its `Body` is forgotten by then.
        :raises GeminiImageError: whatever is not an answer. `NotSentError` where no byte was written,
            `OutcomeUnknownError` where a billable call was written and not answered, `RateLimitedError` also where
            its turn did not come.
        """
        outcome: T | GeminiImageError
        if has_turn:
            outcome = await self._exchange(call, sent)
        else:
            outcome = await self._in_turn(call)
        known = call.prompt if prompt is None else prompt
        if isinstance(outcome, GeminiImageError):
            raise await self._scrubbed(outcome, known)
        if isinstance(outcome, JobStatus) and outcome.error is not None:
            return dataclasses.replace(outcome, error=await self._scrubbed(outcome.error, known))
        return outcome

    async def _scrubbed(self, error: GeminiImageError, prompt: str | None) -> GeminiImageError:
        return await self._in_thread(lambda: error.scrubbed(secrets=self._secrets, prompt=prompt))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """What takes over 10 ms with a long answer or prompt, off the event loop."""
        if self._closed:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    async def send_free(self, call: Call[T], *, prompt: str | None = None) -> T:
        """Send a call that costs nothing, up to three times while the failure may pass, with jitter between.

        :param call: what to send.
        :param prompt: see `send`.
        :raises ValueError: for a billable call.
        :raises GeminiImageError: the last failure.
        """
        if call.billable:
            raise ValueError("A billable call is sent once: use send().")
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(FREE_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        return await retrying(self.send, call, prompt=prompt)

    async def explain(self, error: GeminiImageError, operation: str) -> GeminiImageError:
        """Add to a refusal of a model what the gateway says that it serves, where it says so. Free; asked once.

        :param error: whatever a submit ended with.
        :param operation: what was asked for.
        :returns: `error` with that in its hint, or `error` itself where nothing is to be added.
        """
        if not refuses_model(error):
            return error
        if operation not in self._served:
            try:
                self._served[operation] = (await self.send(self.gateway.models(operation), prompt="")).models
            except GeminiImageError:
                self._served[operation] = ()
        models = [model for model in self._served[operation] if is_image_model(self.gateway.name, model)]
        if not models:
            return error
        return error.evolve(hint=f"{error.hint} {self.gateway.label} lists these image models now: {shown(models)}.")

    async def _in_turn(self, call: Call[T]) -> T | GeminiImageError:
        try:
            async with self.turn(call):
                return await self._exchange(call)
        except RateLimitedError as error:
            return error

    async def _take_turn(self, turn: asyncio.Semaphore, call: Call[Any]) -> None:
        await turn.acquire()
        try:
            await self._limiter.admit(call)
        except BaseException:
            turn.release()
            raise

    async def _exchange(self, call: Call[T], sent: Callable[[], None] | None = None) -> T | GeminiImageError:
        """The call's value, or its failure as a value, so that no exception that holds the request is chained to it."""
        exchange = _Exchange(call, self._max_poll, sent)
        try:
            async with exchange.memory(self._room):
                reply = await self._reply(exchange)
                if not call.billable and len(reply.content) <= IN_LOOP:
                    return exchange.parsed(reply)
                return await self._in_thread(lambda: exchange.parsed(reply))
        except GeminiImageError as error:
            if isinstance(error, RateLimitedError) and error.retry_after:
                self._limiter.pause(error.retry_after)
            return error
        except Exception as error:  # whatever it is, an answer or an address may have caused it
            return exchange.failure(error)

    async def _reply(self, exchange: _Exchange[T]) -> Reply:
        call = exchange.call
        if isinstance(call.request, str) and not self._behind_proxy:
            return await exchange.poll(await self._polling(), None if call.keyless else self._auth, call.request)
        with quiet_http(), anyio.fail_after(exchange.time_limit):
            if not call.billable:
                return await exchange.run(await self._pooled(), None if call.keyless else self._auth)
            async with await self._client(connections=1, keep=0) as client:
                return await exchange.run(client, self._auth)

    async def _pooled(self) -> httpx.AsyncClient:
        if self._pool is None:
            client = await self._client(connections=self._pool_size, keep=self._pool_size)
            self._pool = self._pool or client  # another task may have made one meanwhile
        return self._pool

    async def _polling(self) -> PollClient:
        if self._polls is None:
            module, tls = await asyncio.to_thread(lambda: (_polls_module(), _tls_context()))
            if self._closed:
                raise NotSentError("This transport is closed.")
            if self._polls is None:  # another task may have made one meanwhile
                at_once = self._pool_size
                self._polls = module.PollClient(tls, connections=at_once, connect_timeout=CONNECT_TIMEOUT)
        return self._polls

    async def _client(self, *, connections: int, keep: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=keep)
        client = await asyncio.to_thread(
            lambda: httpx.AsyncClient(
                verify=_tls_context(), limits=limits, follow_redirects=False, trust_env=self._trust_env
            )
        )
        if self._closed:
            raise NotSentError("This transport is closed.")
        return client


class _Exchange(Generic[T]):
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
        response = await client.send(self._request(), auth=auth, stream=True, follow_redirects=False)
        try:
            body = await self._body(response.headers, response.aiter_raw())
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, body)

    async def poll(self, polls: PollClient, auth: _KeyAuth | None, url: str) -> Reply:
        """As `run`, for a call that is its URL alone; its time is limited, too."""
        headers = {**HEADERS, **(auth.headers(url) if auth is not None else {})}
        self.written = True  # where it is not, the exception says so
        async with polls.get(url, headers, read_timeout=self.call.read_timeout, total=self.time_limit) as answer:
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
        other_host = host is not None and (host.strip("[]").lower() != asked.host.lower() or there != here)
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


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, (UpstreamFailedError, RateLimitedError)) and error.retryable


def _origin(url: httpx.URL) -> _Origin:
    return url.scheme, url.host.lower(), url.port or {"http": 80, "https": 443}.get(url.scheme)


def _polls_module() -> ModuleType:
    from airflow_provider_geminiimg.core.http import poll_client

    return poll_client


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """One for the process: making it costs about 20 ms."""
    return httpx.create_ssl_context()
