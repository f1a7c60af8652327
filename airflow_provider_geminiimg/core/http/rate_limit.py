"""Limits the calls per minute of one account in this process.

What must stay true: no period of 60 seconds has more calls than allowed; all transports of a connection share one
`Limiter`, across threads and event loops; when the limit is reached, polls wait longer than submits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.gateways.base import Call
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection

MAX_PAUSE = 120.0  # seconds; the code that catches the error handles a longer Retry-After


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
    """The rate limits of one account in this process.

    :param per_minute: maximum submits, polls, checks and uploads per minute. Downloads do not count.
    :param uploads_per_minute: maximum uploads per minute.
    """

    def __init__(self, per_minute: int, uploads_per_minute: int) -> None:
        self._calls = RateLimit(per_minute)
        self._uploads = RateLimit(uploads_per_minute)

    async def admit(self, call: Call[Any]) -> None:
        """Wait for a slot for `call`."""
        if kind_of(call) == "upload":
            await _slot(self._uploads)
        await _slot(self._calls, low_priority=kind_of(call) == "poll")

    def pause(self, seconds: float) -> None:
        """Delay all calls by `seconds`, because the gateway limits the rate."""
        self._calls.pause(seconds)


async def _slot(limit: RateLimit, *, low_priority: bool = False) -> None:
    while wait := limit.take(low_priority=low_priority):  # noqa: ASYNC110 - other threads take slots too
        await asyncio.sleep(wait)


def kind_of(call: Call[Any]) -> str:
    """The kind of a call for the limits: ``submit``, ``poll`` (also checks and lists of models) or ``upload``."""
    if call.billable:
        return "submit"
    return "poll" if isinstance(call.request, str) else "upload"


_limiters: dict[tuple[str, str, int, int], Limiter] = {}  # global, because a rate limit applies to the process
_limiters_lock = threading.Lock()


def limiter_for(connection: GatewayConnection) -> Limiter:
    """The limiter that all transports of this connection share in this process."""
    limits = LIMITS[connection.gateway]
    rates = (connection.requests_per_minute or limits.requests_per_minute, limits.uploads_per_minute)
    with _limiters_lock:
        return _limiters.setdefault((connection.conn_id, connection.base_url, *rates), Limiter(*rates))
