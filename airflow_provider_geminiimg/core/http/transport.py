"""Sends a gateway's `Call`s, each in its turn.

What must stay true:

- the key goes nowhere but where `core.http.key_auth` puts it, never along a redirect, and into nothing that we write;
- a call that may cost money goes once, over a fresh connection; `core.http.exchange` says what became of it;
- every exception of an exchange, whatever it is, is an outcome of `airflow_provider_geminiimg.exceptions`, scrubbed; an
  httpx exception, which holds the request, is never chained to it.
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
from airflow_provider_geminiimg.core.gateways.base import Call, JobStatus, Reply
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, is_loopback
from airflow_provider_geminiimg.core.gateways.model_refusals import is_image_model, refuses_model, shown
from airflow_provider_geminiimg.core.http.exchange import LARGE_ANSWER, Exchange
from airflow_provider_geminiimg.core.http.key_auth import KeyAuth
from airflow_provider_geminiimg.core.http.log_filter import quiet_http
from airflow_provider_geminiimg.core.http.rate_limit import kind_of, limiter_for
from airflow_provider_geminiimg.core.http.tls import tls_context
from airflow_provider_geminiimg.exceptions import (
    GeminiImageError,
    NotSentError,
    RateLimitedError,
    UpstreamFailedError,
)

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.http.poll_client import PollClient

T = TypeVar("T")

BILLABLE_WAIT = 15.0  # seconds that a billable call waits for its turn
DEFAULT_CONCURRENCY = 8  # a thousand waiters in httpx's own pool cost five times as much as behind a semaphore
ANSWERS_ROOM = 64_000_000  # bytes
IN_LOOP = 8_000  # bytes of an answer that are read in the event loop: under 10 ms, whatever they are
FREE_ATTEMPTS = 3


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
        self._auth = KeyAuth(self.gateway.auth_headers(connection.api_key), self.gateway.base_url)
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
        turn = self._turns[kind_of(call)]
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
        room: ByteSemaphore | None = None,
    ) -> T:
        """Send a call once.

        :param call: what to send. A billable call waits 15 seconds at most for its turn.
        :param prompt: the prompt of the job that the call is about, where the call does not hold it; ``""`` where
            there is none. Its echo is taken out of what the gateway says; without it the gateway's text is withheld.
        :param has_turn: the caller holds the call's `turn`.
        :param sent: is called once the whole request is written; its `Body` is forgotten by then.
        :param room: memory for images: a large answer, which may hold some, is not decoded while that is used up.
        :raises GeminiImageError: whatever is not an answer. `NotSentError` where no byte was written,
            `OutcomeUnknownError` where a billable call was written and not answered, `RateLimitedError` also where
            its turn did not come.
        """
        outcome: T | GeminiImageError
        if has_turn:
            outcome = await self._exchange(call, sent, room)
        else:
            outcome = await self._in_turn(call, room)
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

    async def _in_turn(self, call: Call[T], room: ByteSemaphore | None) -> T | GeminiImageError:
        try:
            async with self.turn(call):
                return await self._exchange(call, None, room)
        except RateLimitedError as error:
            return error

    async def _take_turn(self, turn: asyncio.Semaphore, call: Call[Any]) -> None:
        await turn.acquire()
        try:
            await self._limiter.admit(call)
        except BaseException:
            turn.release()
            raise

    async def _exchange(
        self, call: Call[T], sent: Callable[[], None] | None, room: ByteSemaphore | None
    ) -> T | GeminiImageError:
        """The call's value, or its failure as a value, so that no exception that holds the request is chained to it."""
        exchange = Exchange(call, self._max_poll, sent)
        try:
            async with exchange.memory(self._room):
                reply = await self._reply(exchange)
                if room is not None and len(reply.content) > LARGE_ANSWER:
                    await room.relief()
                if not call.billable and len(reply.content) <= IN_LOOP:
                    return exchange.parsed(reply)
                return await self._in_thread(lambda: exchange.parsed(reply))
        except GeminiImageError as error:
            if isinstance(error, RateLimitedError) and error.retry_after:
                self._limiter.pause(error.retry_after)
            return error
        except Exception as error:  # whatever it is, an answer or an address may have caused it
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
            self._pool = self._pool or client  # another task may have made one meanwhile
        return self._pool

    async def _polling(self) -> PollClient:
        if self._polls is None:
            module, tls = await asyncio.to_thread(lambda: (_poll_client_module(), tls_context()))
            if self._closed:
                raise NotSentError("This transport is closed.")
            if self._polls is None:  # another task may have made one meanwhile
                self._polls = module.PollClient(tls, connections=self._pool_size)
        return self._polls

    async def _client(self, *, connections: int, keep: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=keep)
        client = await asyncio.to_thread(
            lambda: httpx.AsyncClient(
                verify=tls_context(), limits=limits, follow_redirects=False, trust_env=self._trust_env
            )
        )
        if self._closed:
            raise NotSentError("This transport is closed.")
        return client


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, (UpstreamFailedError, RateLimitedError)) and error.retryable


def _poll_client_module() -> ModuleType:
    from airflow_provider_geminiimg.core.http import poll_client

    return poll_client
