"""Limits how many calls one account sends from this process in a minute.

What must stay true: no 60 seconds see more calls than allowed; every transport of a connection shares one `Limiter`,
whatever thread or event loop it is in; when a limit binds, polls wait longer than submits do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.gateways.base import Call
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection

MAX_PAUSE = 120.0  # seconds; a longer Retry-After is the business of whoever catches the outcome


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

    def take(self, *, low_priority: bool = False) -> float:
        """Take a slot; returns 0.0, or the seconds after which to try again.

        :param low_priority: leave half of the burst to others.
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
        if kind_of(call) == "upload":
            await _slot(self._uploads)
        await _slot(self._calls, low_priority=kind_of(call) == "poll")

    def pause(self, seconds: float) -> None:
        """Slow everyone down, because the gateway asked for it."""
        self._calls.pause(seconds)


async def _slot(limit: RateLimit, *, low_priority: bool = False) -> None:
    while wait := limit.take(low_priority=low_priority):  # noqa: ASYNC110 - other threads take slots too
        await asyncio.sleep(wait)


def kind_of(call: Call[Any]) -> str:
    """``submit``, ``poll`` (checks and lists of models too) or ``upload``: what a call counts as."""
    if call.billable:
        return "submit"
    return "poll" if isinstance(call.request, str) else "upload"


_limiters: dict[tuple[str, str, int, int], Limiter] = {}  # of the process, because its accounts' rates are
_limiters_lock = threading.Lock()


def limiter_for(connection: GatewayConnection) -> Limiter:
    """The limiter that every transport of this connection shares in this process."""
    limits = LIMITS[connection.gateway]
    rates = (connection.requests_per_minute or limits.requests_per_minute, limits.uploads_per_minute)
    with _limiters_lock:
        return _limiters.setdefault((connection.conn_id, connection.base_url, *rates), Limiter(*rates))
