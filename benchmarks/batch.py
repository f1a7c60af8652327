"""A batch of 1,000 images, compared with a lower bound: the same latencies and polls, without any cost.

Latencies (log-normal, median 1 s instead of 10 s) and poll intervals are a tenth of a gateway's. The package's own cost
is therefore ten times as visible as in practice.
"""

from __future__ import annotations

import heapq
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gateway import gateway, latencies
from benchmarks.making import WARM, environment, make
from benchmarks.measure import fresh
from benchmarks.results import Row

WIDTH, MEDIAN, POLL, SEED = 50, 1.0, 0.4, 20261121
TARGET = 1.05


def ideal(seconds: Sequence[float], *, width: int, poll_interval: float) -> float:
    """Seconds until the last of these jobs is known to be done, `width` at a time, where nothing else takes any time.

    A job is known to be done at the first poll after it is. Limits of requests at once never bind: none takes time.
    """
    free = [0.0] * min(width, len(seconds))
    for latency in seconds:
        polls = max(1, math.ceil(latency / poll_interval))
        heapq.heappush(free, heapq.heappop(free) + polls * poll_interval)
    return max(free)


def run(quick: bool) -> list[Row]:
    """With Pillow on the worker and without: a thumbnail is the dearest single step where there is one."""
    count = 100 if quick else 1000
    seconds = latencies(count, median=MEDIAN, seed=SEED)
    floor = ideal(seconds, width=WIDTH, poll_interval=POLL)
    rows = []
    for pillow, name, repeats in ((False, "", 2), (True, ", thumbnails too", 1)):
        runs = [_once(seconds, pillow) for _ in range(1 if quick else repeats)]
        took, cpu = (statistics.median(found[part] for found in runs) for part in ("seconds", "cpu"))
        said = f"{count:,} images, {WIDTH} wide{name}"
        rows += [
            Row("batch", said, "s", took, "event simulation", floor, target=TARGET),
            Row("batch", f"CPU an image{name}", "ms", cpu / count * 1000),
        ]
    return rows


def _once(seconds: Sequence[float], thumbnails: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root, gateway([0.0] * WARM + list(seconds)) as client:
        env = environment(client, Path(root).as_uri())
        found = fresh(make, env=env, count=len(seconds), width=WIDTH, poll_interval=POLL, thumbnails=thumbnails)
    assert found["counts"]["landed"] == len(seconds), found
    return dict(found)
