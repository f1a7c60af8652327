"""Sends the `Call`s of one gateway account, within its rate and concurrency limits.

What must stay true:

- only `core.http.key_auth` adds the API key; it follows no redirect and is in nothing that this package writes;
- a call that may cost money is sent once, over a new connection; `core.http.exchange` decides what its failure means;
- every exception becomes a scrubbed error of `airflow_provider_geminiimg.exceptions`; an httpx exception, which
  contains the request, is never chained to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.request import getproxies

import anyio
import httpx
import tenacity

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore
from airflow_provider_geminiimg.core.execution.runner import CancelledUnsentError
from airflow_provider_geminiimg.core.gateways.base import Call, JobStatus, Reply
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, is_loopback
from airflow_provider_geminiimg.core.gateways.model_refusals import is_image_model, refuses_model, shown
from airflow_provider_geminiimg.core.http.exchange import LARGE_ANSWER, Exchange
from airflow_provider_geminiimg.core.http.key_auth import KeyAuth
from airflow_provider_geminiimg.core.http.log_filter import quiet_http
from airflow_provider_geminiimg.core.http.rate_limit import kind_of, limiter_for
from airflow_provider_geminiimg.core.http.shared_limits import Account
from airflow_provider_geminiimg.core.http.tls import tls_context
from airflow_provider_geminiimg.core.http.uploads import Uploads
from airflow_provider_geminiimg.exceptions import (
    GeminiImageError,
    NotSentError,
    RateLimitedError,
    UpstreamFailedError,
)

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.http.poll_client import PollClient

T = TypeVar("T")

BILLABLE_WAIT = 15.0  # seconds that a billable call waits for a slot
AGAIN_SECONDS = 1.0  # until it asks again: a slot that its process has reserved is not wasted then
DEFAULT_CONCURRENCY = 8  # a semaphore, because a thousand waiters in httpx's own pool cost five times as much CPU
MAX_RESPONSE_MEMORY = 64_000_000  # bytes of all large responses of one transport
IN_LOOP = 8_000  # bytes; a response up to this size is parsed in the event loop (always under 10 ms)
FREE_ATTEMPTS = 3


class NoTurnError(RateLimitedError):
    """A billable call got no slot within `BILLABLE_WAIT`. It can ask again for as long as it likes: nothing was sent.

    It is read back from a record as `RateLimitedError`.
    """


class Transport:
    """Sends calls to one gateway. An async context manager, bound to the event loop in which it is first used.

    :param connection: the account. Its `max_concurrency` limits polls and billable calls separately.
    :param max_poll: maximum size in bytes of the response to a free call; default: `MAX_ANSWER`.
    :param account: the limits that the account shares over all processes; ``None``: this process has its own.
    """

    def __init__(
        self, connection: GatewayConnection, *, max_poll: int | None = None, account: Account | None = None
    ) -> None:
        self.gateway = connection.adapter()
        self.api_host, self.key_digest = connection.api_host, connection.key_digest
        self.uploads = Uploads()
        self._limiter = limiter_for(connection, account)
        self._secrets = (connection.api_key,)
        self._auth = KeyAuth(self.gateway.auth_headers(connection.api_key), self.gateway.base_url)
        concurrency = connection.max_concurrency or DEFAULT_CONCURRENCY
        uploads = LIMITS[connection.gateway].uploads_at_once
        self._turns = {
            "submit": asyncio.Semaphore(concurrency),
            "poll": asyncio.Semaphore(concurrency),
            "upload": asyncio.Semaphore(uploads),
        }
        self._pool_size = concurrency + uploads
        self._trust_env = not is_loopback(httpx.URL(self.gateway.base_url).host)  # a proxy cannot reach this loopback
        self._behind_proxy = self._trust_env and bool(getproxies())
        self._pool: httpx.AsyncClient | None = None
        self._polls: PollClient | None = None
        self._closed = False
        self._served: dict[str, tuple[str, ...]] = {}
        self._max_poll = max_poll
        self._memory = ByteSemaphore(MAX_RESPONSE_MEMORY)
        # One thread, because parsing makes several copies of a response.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="geminiimg-answers")

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the pooled connections. Afterwards nothing can be sent."""
        self._closed = True
        self._reader.shutdown(wait=False)
        opened, self._pool, self._polls = (self._pool, self._polls), None, None
        for pool in opened:
            if pool is not None:
                await pool.aclose()
        await self._limiter.close()

    @contextlib.asynccontextmanager
    async def turn(self, call: Call[Any]) -> AsyncIterator[None]:
        """Wait for a slot within the account's limits and hold it, for `send(call, has_turn=True)`.

        :param call: the call to send. A billable call waits 15 seconds at most.
        :raises NoTurnError: a billable call got no slot in time; nothing was sent.
        :raises GeminiImageError: the shared limits could not be leased; nothing was sent.
        """
        turn = self._turns[kind_of(call)]
        try:
            with anyio.fail_after(BILLABLE_WAIT) if call.billable else contextlib.nullcontext():
                leave = await self._take_turn(turn, call)
        except TimeoutError:
            raise NoTurnError(
                "The connection's requests_per_minute or max_concurrency is used up; nothing was sent.",
                retry_after=AGAIN_SECONDS,
            ) from None
        try:
            yield
        finally:
            leave()
            turn.release()

    async def send(
        self,
        call: Call[T],
        *,
        prompt: str | None = None,
        has_turn: bool = False,
        sent: Callable[[], None] | None = None,
        image_memory: ByteSemaphore | None = None,
    ) -> T:
        """Send a call once.

        :param call: the call. A billable call waits 15 seconds at most for a slot.
        :param prompt: the prompt of the job, if the call does not contain it; ``""`` if there is none. Echoes of it are
            removed from the gateway's texts. If the prompt is not known, the gateway's texts are withheld.
        :param has_turn: whether the caller holds the call's `turn`.
        :param sent: called when the complete request was written; its `Body` is released by then.
        :param image_memory: memory for images; a large response, which may contain images, is parsed only when some of
            it is free.
        :returns: the parsed response.
        :raises NotSentError: no byte of the request was written.
        :raises OutcomeUnknownError: a billable request was written, and there is no usable response.
        :raises RateLimitedError: the gateway limits the rate, or a billable call got no slot in time.
        :raises GeminiImageError: any other error that the response means.
        """
        outcome: T | GeminiImageError
        if has_turn:
            outcome = await self._exchange(call, sent, image_memory)
        else:
            outcome = await self._in_turn(call, image_memory)
        known = call.prompt if prompt is None else prompt
        if isinstance(outcome, GeminiImageError):
            raise await self._scrubbed(outcome, known)
        if isinstance(outcome, JobStatus) and outcome.error is not None:
            return dataclasses.replace(outcome, error=await self._scrubbed(outcome.error, known))
        return outcome

    async def _scrubbed(self, error: GeminiImageError, prompt: str | None) -> GeminiImageError:
        return await self._in_thread(lambda: error.scrubbed(secrets=self._secrets, prompt=prompt))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run work that may take over 10 ms in a thread, so that it does not block the event loop."""
        if self._closed:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    async def send_free(self, call: Call[T], *, prompt: str | None = None) -> T:
        """Send a free call up to three times, with random pauses, as long as a retry can help.

        :param call: the call.
        :param prompt: see `send`.
        :returns: the parsed response.
        :raises ValueError: the call is billable.
        :raises GeminiImageError: the last error.
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
        """Add the gateway's list of models to the hint of an error that refuses the model. Free; fetched once.

        :param error: the error of a submit.
        :param operation: ``generate`` or ``edit``.
        :returns: the error with the list in its hint; `error` itself if it does not refuse the model or there is no
            list.
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

    async def _in_turn(self, call: Call[T], image_memory: ByteSemaphore | None) -> T | GeminiImageError:
        try:
            async with self.turn(call):
                return await self._exchange(call, None, image_memory)
        except GeminiImageError as error:  # of `turn`: nothing was sent
            return error

    async def _take_turn(self, turn: asyncio.Semaphore, call: Call[Any]) -> Callable[[], None]:
        await turn.acquire()
        try:
            if isinstance(call.request, str) and not self._behind_proxy:
                await self._polling()  # the first time takes a second, in which slots would pile up
            return await self._limiter.enter(call)
        except BaseException:
            turn.release()
            raise

    async def _exchange(
        self, call: Call[T], sent: Callable[[], None] | None, image_memory: ByteSemaphore | None
    ) -> T | GeminiImageError:
        """The parsed response, or the error as a value, so that no exception with the request is chained to it."""
        exchange = Exchange(call, self._max_poll, sent)
        try:
            async with exchange.memory(self._memory):
                reply = await self._reply(exchange)
                if image_memory is not None and len(reply.content) > LARGE_ANSWER:
                    await image_memory.wait_below_limit()
                if len(reply.content) + len(call.prompt or "") <= IN_LOOP:
                    return exchange.parsed(reply)
                return await self._in_thread(lambda: exchange.parsed(reply))
        except asyncio.CancelledError as error:
            if exchange.written:
                raise
            raise CancelledUnsentError(*error.args) from None
        except GeminiImageError as error:
            if isinstance(error, RateLimitedError) and error.retry_after:
                self._limiter.pause(error.retry_after)
            return error
        except Exception as error:  # any exception: a response or an address may have caused it
            return exchange.failure(error)

    async def _reply(self, exchange: Exchange[T]) -> Reply:
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
            self._pool = self._pool or client  # another task may have created one meanwhile
        return self._pool

    async def _polling(self) -> PollClient:
        if self._polls is None:
            module, tls = await asyncio.to_thread(lambda: (_poll_client_module(), tls_context()))
            if self._closed:
                raise NotSentError("This transport is closed.")
            if self._polls is None:  # another task may have created one meanwhile
                self._polls = module.PollClient(tls, connections=self._pool_size)
        return self._polls

    async def _client(self, *, connections: int, keep: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=keep)
        tls = tls_context() if tls_context.cache_info().currsize else await asyncio.to_thread(tls_context)
        client = httpx.AsyncClient(verify=tls, limits=limits, follow_redirects=False, trust_env=self._trust_env)
        if self._closed:
            raise NotSentError("This transport is closed.")
        return client


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, (UpstreamFailedError, RateLimitedError)) and error.retryable


def _poll_client_module() -> ModuleType:
    from airflow_provider_geminiimg.core.http import poll_client

    return poll_client
