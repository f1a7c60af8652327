"""Limits the calls of one account: in this process, and with `core.http.shared_limits` over all processes.

What must stay true: no period of 60 seconds has more calls than allowed; all transports of a connection share one
`Limiter`, across threads and event loops; when the limit is reached, polls wait longer than submits.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.gateways.base import Call
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.http.shared_limits import Account, SharedConcurrency, SharedRate

MAX_PAUSE = 120.0  # seconds; the code that catches the error handles a longer Retry-After
CLOSE_SECONDS = 5.0  # how long the end of a task may be delayed to return its share; it expires anyway


class RateLimit:
    """A thread-safe rate limit: at most `per_minute` calls in any 60 seconds, a tenth of them in one burst.

    :param per_minute: maximum calls per minute.
    """

    def __init__(self, per_minute: int) -> None:
        self._burst = max(1, per_minute // 10)
        self._interval = 60.0 / (per_minute - self._burst + 1)
        self._next = 0.0
        self._not_before = 0.0
        self._lock = threading.Lock()

    def take(self, *, low_priority: bool = False) -> float:
        """Take a slot if one is free.

        :param low_priority: leave half of the burst to other calls.
        :returns: 0.0 if a slot was taken, else the seconds after which to try again.
        """
        with self._lock:
            now = time.monotonic()
            usable = self._burst - max(1, self._burst // 2) + 1 if low_priority else self._burst
            free_at = max(self._next - (usable - 1) * self._interval, self._not_before)
            if free_at > now:
                return free_at - now
            self._next = max(self._next, now) + self._interval
            return 0.0

    def pause(self, seconds: float) -> None:
        """Give no slot for `seconds`, at most `MAX_PAUSE`."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + min(seconds, MAX_PAUSE))


class Limiter:
    """The limits of one account, as far as this process knows them.

    :param per_minute: maximum submits, polls, checks and uploads per minute. Downloads do not count.
    :param uploads_per_minute: maximum uploads per minute, in this process.
    :param account: the limits that the account shares over all processes; ``None``: `per_minute` is for this process.
    """

    def __init__(self, per_minute: int, uploads_per_minute: int, account: Account | None = None) -> None:
        self._calls = RateLimit(per_minute)
        self._uploads = RateLimit(uploads_per_minute)
        self._shared = None if account is None else SharedRate(account)
        self._is_lower = account is None or per_minute < account.per_minute  # a batch may have a lower limit
        kinds = () if account is None or account.max_concurrency is None else ("submit", "poll")
        self._units = {kind: SharedConcurrency(account, kind) for kind in kinds if account is not None}

    async def enter(self, call: Call[Any]) -> Callable[[], None]:
        """Wait until `call` may be sent.

        :returns: to be called when the call has ended.
        :raises GeminiImageError: the shared limits could not be leased; a poll goes on within those of this process.
        """
        leave = await self._unit(kind_of(call))
        try:
            await self._admit(kind_of(call))
        except BaseException:
            leave()
            raise
        return leave

    async def _unit(self, kind: str) -> Callable[[], None]:
        units = self._units.get(kind)
        if units is not None and await units.acquire(low_priority=kind == "poll"):
            return units.release
        return _nothing

    async def _admit(self, kind: str) -> None:
        low_priority = kind == "poll"
        if kind == "upload":
            await _slot(self._uploads)
        if self._is_lower:
            await _slot(self._calls, low_priority=low_priority)
        if self._shared is not None and not await self._shared.admit(low_priority=low_priority) and not self._is_lower:
            await _slot(self._calls, low_priority=low_priority)

    def pause(self, seconds: float) -> None:
        """Delay all calls by `seconds`, at most `MAX_PAUSE`, because the gateway limits the rate."""
        self._calls.pause(seconds)
        if self._shared is not None:
            self._shared.pause(min(seconds, MAX_PAUSE))

    async def close(self) -> None:
        """Return what this process holds of the shared limits, if no call is in flight."""
        for thread in [units.close() for units in self._units.values()]:
            if thread is not None:
                await asyncio.to_thread(thread.join, CLOSE_SECONDS)


def _nothing() -> None:
    pass


async def _slot(limit: RateLimit, *, low_priority: bool = False) -> None:
    while wait := limit.take(low_priority=low_priority):  # noqa: ASYNC110 - other threads take slots too
        await asyncio.sleep(wait)


def kind_of(call: Call[Any]) -> str:
    """The kind of a call for the limits: ``submit``, ``poll`` (also checks and lists of models) or ``upload``."""
    if call.billable:
        return "submit"
    return "poll" if isinstance(call.request, str) else "upload"


_limiters: dict[Hashable, Limiter] = {}  # global, because a rate limit applies to the process
_limiters_lock = threading.Lock()


def limiter_for(connection: GatewayConnection, account: Account | None = None) -> Limiter:
    """The limiter that all transports of this connection share in this process.

    :param account: see `Limiter`.
    """
    limits = LIMITS[connection.gateway]
    rates = (connection.requests_per_minute or limits.requests_per_minute, limits.uploads_per_minute)
    shared = None if account is None else (os.getpid(), account.identity)  # no thread lives on in a forked process
    with _limiters_lock:
        key = (connection.conn_id, connection.base_url, *rates, shared)
        if key not in _limiters:
            _limiters[key] = Limiter(*rates, account)
        return _limiters[key]
