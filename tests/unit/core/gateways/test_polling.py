"""When to poll and when to stop, as a table of decisions."""

from __future__ import annotations

import random
from typing import Any

import pytest

from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, ResultImage
from airflow_provider_geminiimg.core.gateways.polling import End, Pause, PollSchedule
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    GeminiImageError,
    RateLimitedError,
    UpstreamFailedError,
)

START = 1_000_000.0
RUNNING = JobStatus(JobState.RUNNING)
VANISHED = JobStatus(JobState.VANISHED)
DONE = JobStatus(JobState.DONE, images=(ResultImage(url="https://example.com/a.png"),))
FAILED = JobStatus(JobState.FAILED, error=UpstreamFailedError("It failed."))
BROKEN = UpstreamFailedError("No answer.")


def plan(**values: Any) -> PollSchedule:
    defaults: dict[str, Any] = {
        "submitted_at": START,
        "deadline": START + 1800,
        "expected_seconds": 20.0,
        "poll_interval": None,
        "spread": (3.0, 5.0),
        "rng": random.Random(7),
    }
    return PollSchedule(**{**defaults, **values})


def seconds(step: Pause | End) -> float:
    assert isinstance(step, Pause)
    return step.seconds


@pytest.mark.parametrize(
    ("now", "wait"),
    [(START, 20.0), (START + 12, 8.0), (START + 60, 0.0), (START - 3600, 20.0)],
    ids=["just submitted", "a while ago", "long ago", "by a clock that is behind"],
)
def test_the_first_poll_comes_when_such_a_job_may_well_be_done(now: float, wait: float) -> None:
    assert plan().first(now).seconds == pytest.approx(wait)


def test_a_given_interval_is_the_first_wait_and_every_later_one() -> None:
    given = plan(poll_interval=7.0)
    assert given.first(START).seconds == pytest.approx(7.0)
    assert [seconds(given.after(START + 10, RUNNING)) for _ in range(3)] == [7.0, 7.0, 7.0]


def test_later_polls_come_after_the_gateways_shortest_pause_with_a_little_jitter() -> None:
    waits = [seconds(plan(rng=random.Random(seed)).after(START + 20, RUNNING)) for seed in range(50)]
    assert 3.0 <= min(waits) < 3.1
    assert 3.2 < max(waits) <= 3.3


def test_pauses_grow_up_to_the_longest_while_a_job_runs() -> None:
    waiting = plan()
    waits = [seconds(waiting.after(START + 20, RUNNING)) for _ in range(200)]
    assert all(3.0 <= wait <= 5.0 for wait in waits)
    assert waits[0] < 3.4 < waits[2] < 4.5
    assert waits[5:] == [5.0] * 195


@pytest.mark.parametrize("now", [START + 1790, START + 1799.5, START + 1799.999])
def test_no_pause_goes_past_the_deadline(now: float) -> None:
    for step in (plan(expected_seconds=5000).first(now), plan().after(now, RUNNING), plan().after(now, BROKEN)):
        assert seconds(step) <= START + 1800 - now


def test_a_wait_that_begins_past_the_deadline_polls_once_at_once() -> None:
    late = plan()
    assert late.first(START + 4000).seconds == 0.0
    assert late.after(START + 4000, RUNNING) == End("timeout")


@pytest.mark.parametrize(
    ("result", "end"), [(DONE, End("done")), (FAILED, End("failed"))], ids=["an image", "a failed job"]
)
def test_what_the_gateway_says_of_a_job_ends_the_wait_even_at_the_deadline(result: JobStatus, end: End) -> None:
    assert plan().after(START + 30, result) == end
    assert plan().after(START + 1800, result) == end


def test_a_job_that_the_gateway_does_not_know_counts_as_running_for_ten_minutes() -> None:
    waiting = plan()
    assert isinstance(waiting.after(START + 599, VANISHED), Pause)
    assert waiting.after(START + 600, VANISHED) == End("vanished")


def test_a_deadline_before_the_ten_minutes_is_a_timeout_and_not_a_vanished_job() -> None:
    assert plan(deadline=START + 60).after(START + 60, VANISHED) == End("timeout")


@pytest.mark.parametrize("error", [BROKEN, AuthenticationError("Refused.")], ids=["no answer", "key refused"])
def test_five_failures_in_a_row_are_lost_contact(error: GeminiImageError) -> None:
    failing = plan()
    assert all(isinstance(failing.after(START + 30, error), Pause) for _ in range(4))
    assert failing.after(START + 30, error) == End("lost")


def test_one_answer_between_failures_starts_the_count_again() -> None:
    failing = plan()
    for result in (BROKEN, BROKEN, BROKEN, BROKEN, RUNNING, BROKEN, BROKEN, BROKEN, BROKEN):
        assert isinstance(failing.after(START + 30, result), Pause)
    assert failing.after(START + 30, BROKEN) == End("lost")


def test_pauses_grow_while_polls_fail_and_shrink_again_afterwards() -> None:
    failing = plan(spread=(4.0, 4.0))
    assert [seconds(failing.after(START + 30, BROKEN)) for _ in range(4)] == [4.0, 8.0, 16.0, 32.0]
    assert seconds(failing.after(START + 30, RUNNING)) == 4.0


def test_a_gateway_that_asks_to_slow_down_is_given_its_time_and_is_not_lost() -> None:
    slowed = plan(spread=(4.0, 4.0))
    waits = [seconds(slowed.after(START + 30, RateLimitedError("Slow.", retry_after=90.0))) for _ in range(20)]
    assert waits == [90.0] * 20


def test_a_gateway_that_only_ever_asks_to_slow_down_ends_at_the_deadline() -> None:
    slowed = plan()
    assert seconds(slowed.after(START + 1750, RateLimitedError("Slow.", retry_after=90.0))) == pytest.approx(50.0)
    assert slowed.after(START + 1800, RateLimitedError("Slow.", retry_after=90.0)) == End("timeout")


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_that_would_never_pause_is_refused(interval: float) -> None:
    with pytest.raises(BadRequestError, match="poll_interval"):
        plan(poll_interval=interval)
