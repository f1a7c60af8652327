"""When to ask a gateway again, and when to stop: pure decisions, and the one loop that follows them everywhere.

What must stay true: a poll that fails says nothing about the job; no pause goes past the deadline, so that the last
poll is at the deadline itself; every answer is either a pause or an end, and an end never says that a job is dead
when only our contact with it is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, RateLimitedError

MAX_FAILURES = 5
GROWTH = (
    1.15  # of the pause, from poll to poll: most images come soon after the first one, a late one may come any time
)
JITTER = 1.1  # that pauses are at most longer by, so that jobs of one moment do not stay together
VANISHED_GRACE = 600.0  # seconds; a gateway may not know a new job at once (observed as late consistency)


@dataclass(frozen=True)
class Pause:
    """Wait, then poll.

    :param seconds: how long, 0 or more.
    """

    seconds: float


@dataclass(frozen=True)
class End:
    """Stop polling.

    :param status: ``done``, ``failed`` and ``vanished`` are the gateway's word on the job; ``timeout`` and ``lost``
        only say that we stopped asking.
    """

    status: str


class PollSchedule:
    """The schedule of one job's polls. Times are Unix seconds.

    :param submitted_at: when the job was submitted.
    :param deadline: when to stop.
    :param expected_seconds: when such a job may well be done; the first poll waits that long.
    :param poll_interval: seconds between polls, and until the first one; ``None``: `expected_seconds`, then `spread`.
    :param spread: the first and the longest pause between polls, seconds.
    :param rng: where the jitter comes from; ``None``: what all share.
    :raises BadRequestError: for a `poll_interval` of 0 or less.
    """

    def __init__(
        self,
        *,
        submitted_at: float,
        deadline: float,
        expected_seconds: float,
        poll_interval: float | None,
        spread: tuple[float, float],
        rng: random.Random | None = None,
    ) -> None:
        if poll_interval is not None and not poll_interval > 0:
            raise BadRequestError(f"poll_interval is {poll_interval!r}. Allowed: seconds, more than 0.")
        self._submitted_at = submitted_at
        self._deadline = deadline
        self._first = max(0.0, expected_seconds) if poll_interval is None else poll_interval
        self._spread = spread if poll_interval is None else (poll_interval, poll_interval)
        # The module's own is shared by all, because each takes 2.5 KB, and seeded anew after a fork.
        self._uniform = (rng or random).uniform
        self._answers = 0
        self._failures = 0
        self._backoff = 0

    def first(self, now: float) -> Pause:
        """The wait before the first poll; never longer than planned, whatever another machine's clock said."""
        return self._pause(now, min(self._first, self._submitted_at + self._first - now))

    def after(self, now: float, result: JobStatus | GeminiImageError) -> Pause | End:
        """What to do after a poll.

        :param now: the time after it.
        :param result: what it brought; an outcome where it failed.
        """
        if isinstance(result, GeminiImageError):
            return self._after_failure(now, result)
        self._failures = self._backoff = 0
        if result.state is JobState.DONE:
            return End("done")
        if result.state is JobState.FAILED:
            return End("failed")
        if result.state is JobState.VANISHED and now - self._submitted_at >= VANISHED_GRACE:
            return End("vanished")
        interval = self._interval()
        self._answers += 1
        return self._again(now, interval)

    def _after_failure(self, now: float, error: GeminiImageError) -> Pause | End:
        # A gateway that says "slow down" has not been lost.
        self._failures += not isinstance(error, RateLimitedError)
        self._backoff = min(self._backoff + 1, MAX_FAILURES)
        if self._failures >= MAX_FAILURES:
            return End("lost")
        return self._again(now, max(self._interval() * 2 ** (self._backoff - 1), error.retry_after or 0.0))

    def _again(self, now: float, seconds: float) -> Pause | End:
        return End("timeout") if now >= self._deadline else self._pause(now, seconds)

    def _interval(self) -> float:
        shortest, longest = self._spread
        grown = min(longest, shortest * GROWTH ** min(self._answers, 100))
        return self._uniform(grown, min(longest, grown * JITTER))

    def _pause(self, now: float, seconds: float) -> Pause:
        return Pause(max(0.0, min(seconds, self._deadline - now)))


async def follow(
    plan: PollSchedule, ask: Callable[[], Awaitable[JobStatus]], *, at_once: bool = False
) -> tuple[End, JobStatus | GeminiImageError]:
    """Poll as `plan` says, until it ends.

    :param ask: one poll; an outcome that it raises is a poll that failed.
    :param at_once: poll now, because something says that the job has ended.
    :returns: the end, and what the last poll brought.
    """
    pause = Pause(0.0) if at_once else plan.first(time.time())
    while True:
        await asyncio.sleep(pause.seconds)
        result: JobStatus | GeminiImageError
        try:
            result = await ask()
        except GeminiImageError as error:
            result = error
        step = plan.after(time.time(), result)
        if isinstance(step, End):
            return step, result
        pause = step
