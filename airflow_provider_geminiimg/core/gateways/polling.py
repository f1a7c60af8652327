"""The poll schedule: when to poll a job again and when to stop, and the one loop that follows it.

What must stay true: a failed poll does not change the job's state; no pause ends after the deadline, so the last poll
is at the deadline; an end that was caused by failed polls is ``lost``, never ``failed``.
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
GROWTH = 1.15  # factor from pause to pause: most jobs end soon after the first poll
JITTER = 1.1  # largest random factor, so that jobs submitted together are not polled together
VANISHED_GRACE = 600.0  # seconds after the submit in which an unknown job counts as running (eventual consistency)


@dataclass(frozen=True)
class Pause:
    """Wait, then poll.

    :param seconds: how long, 0 or more.
    """

    seconds: float


@dataclass(frozen=True)
class End:
    """Stop polling.

    :param status: ``done``, ``failed`` or ``vanished`` as reported by the gateway; or ``timeout`` or ``lost`` (too many
        failed polls) if polling stopped while the job may still be running.
    """

    status: str


class PollSchedule:
    """The schedule of one job's polls. Times are Unix seconds.

    :param submitted_at: time of the submit.
    :param deadline: time of the last poll.
    :param expected_seconds: typical duration of such a job; the first poll comes that many seconds after the submit.
    :param poll_interval: seconds before the first poll and between polls; ``None``: `expected_seconds`, then `spread`.
    :param spread: the shortest and the longest pause between polls, in seconds.
    :param rng: source of the jitter; ``None``: the module `random`.
    :raises BadRequestError: `poll_interval` is 0 or less.
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
        # The module's generator is shared, because each one takes 2.5 KB; Python reseeds it after a fork.
        self._uniform = (rng or random).uniform
        self._answers = 0
        self._failures = 0
        self._backoff = 0

    def first(self, now: float) -> Pause:
        """The pause before the first poll. It is never longer than planned, whatever another machine's clock says."""
        return self._pause(now, min(self._first, self._submitted_at + self._first - now))

    def after(self, now: float, result: JobStatus | GeminiImageError) -> Pause | End:
        """The next step after a poll.

        :param now: the current time.
        :param result: the result of the poll, or its error.
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
        # A rate limit is a response, so it does not count as lost contact.
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
    plan: PollSchedule, ask: Callable[[], Awaitable[JobStatus]], *, poll_immediately: bool = False
) -> tuple[End, JobStatus | GeminiImageError]:
    """Poll by the schedule `plan` until it ends.

    :param plan: the schedule.
    :param ask: polls once; an error that it raises is a failed poll.
    :param poll_immediately: poll at once, because the job probably has ended.
    :returns: the end, and the result or error of the last poll.
    """
    pause = Pause(0.0) if poll_immediately else plan.first(time.time())
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
