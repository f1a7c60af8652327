"""Delay until a finished image is noticed, and number of polls: the real `PollSchedule` on a virtual clock.

The durations of the images are log-normal with a median of 10 s and a fixed seed. The schedule uses only the figures of
the catalogue.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS, default_model, lookup
from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, ResultImage
from airflow_provider_geminiimg.core.gateways.polling import End, Pause, PollSchedule
from benchmarks.results import Row

GATEWAY, RESOLUTION = "1min", "1K"
MEDIAN, SPREADS = 10.0, (0.3, 0.4, 0.5)  # seconds; sigma of their logarithm
FIXED = 4.0  # seconds between the peer's polls
FEWER, DELAY = 0.7, 1.0  # targets
RUNNING = JobStatus(JobState.RUNNING)
DONE = JobStatus(JobState.DONE, images=(ResultImage(url="https://example.com/a.png"),))

Seen = tuple[int, float]  # polls, and the seconds from done to known


def planned(took: float, rng: random.Random) -> Seen:
    """An image that takes `took` seconds, polled as `PollSchedule` says."""
    plan = PollSchedule(
        submitted_at=0.0,
        deadline=1800.0,
        expected_seconds=lookup(GATEWAY, default_model(GATEWAY), "generate").expected(RESOLUTION),
        poll_interval=None,
        spread=LIMITS[GATEWAY].poll_interval,
        rng=rng,
    )
    step: Pause | End = plan.first(0.0)
    now, polls = 0.0, 0
    while isinstance(step, Pause):
        now += step.seconds
        polls += 1
        step = plan.after(now, DONE if now >= took else RUNNING)
    return polls, now - took


def fixed(took: float) -> Seen:
    """The same with a poll every four seconds."""
    polls = math.ceil(took / FIXED)
    return polls, polls * FIXED - took


def summed(seen: Iterator[Seen]) -> tuple[float, float]:
    """Polls of an image, and the median delay."""
    polls, delays = zip(*seen, strict=True)
    return statistics.mean(polls), statistics.median(delays)


def run(quick: bool) -> list[Row]:
    """No clock is read, so there is nothing to repeat."""
    rows = []
    for sigma in SPREADS:
        rng = random.Random(12)
        times = [rng.lognormvariate(math.log(MEDIAN), sigma) for _ in range(2_000 if quick else 50_000)]
        ours, peer = summed(planned(took, rng) for took in times), summed(map(fixed, times))
        title, name = f"times' sigma {sigma}", f"a poll every {FIXED:g} s"
        rows += [
            Row("detection", f"polls of an image, {title}", "", ours[0], name, peer[0], target=FEWER),
            Row("detection", f"median seconds from done to known, {title}", "s", ours[1], name, peer[1], target=DELAY),
        ]
    return rows
