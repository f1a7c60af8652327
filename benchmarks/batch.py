"""A batch of 1,000 images, compared with a lower bound: the same latencies and polls, without any cost.

The root and the images are on disk, or in a real S3 server (SeaweedFS) on the same machine.

Latencies (log-normal, median 1 s instead of 10 s) and poll intervals are a tenth of a gateway's. The package's own cost
is therefore ten times as visible as in practice.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.bucket import real_bucket
from benchmarks.gateway import gateway, latencies
from benchmarks.making import WARM, environment, make
from benchmarks.measure import fresh
from benchmarks.results import Row

WIDTH, MEDIAN, POLL, SEED = 50, 1.0, 0.4, 20261121
TARGET, TARGET_IN_S3 = 1.05, 1.10
CPU = 10.0  # ms
Place = Callable[[], AbstractContextManager[tuple[str, dict[str, str]]]]
"""A folder or bucket: its URI, and the environment in which it is found."""


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
    """Without Pillow on the worker, with the root on disk and in S3; with it, a thumbnail is the dearest step."""
    count = 100 if quick else 1000
    seconds = latencies(count, median=MEDIAN, seed=SEED)
    floor = ideal(seconds, width=WIDTH, poll_interval=POLL)
    rows = []
    for name, place, pillow, repeats, target, cpu_target in (
        ("", _folder, False, 2, TARGET, CPU),
        (", root in S3", real_bucket, False, 2, TARGET_IN_S3, None),
        (", thumbnails too", _folder, True, 1, TARGET, None),
    ):
        runs = [_once(seconds, place, pillow) for _ in range(1 if quick else repeats)]
        took, cpu = (statistics.median(found[part] for found in runs) for part in ("seconds", "cpu"))
        said = f"{count:,} images, {WIDTH} wide{name}"
        rows += [
            Row("batch", said, "s", took, "event simulation", floor, target=target),
            Row("batch", f"CPU an image{name}", "ms", cpu / count * 1000, target=cpu_target),
        ]
    return rows


@contextlib.contextmanager
def _folder() -> Iterator[tuple[str, dict[str, str]]]:
    with tempfile.TemporaryDirectory() as root:
        yield Path(root).as_uri(), {}


def _once(seconds: Sequence[float], place: Place, thumbnails: bool) -> dict[str, float]:
    with place() as (uri, keys), gateway([0.0] * WARM + list(seconds)) as client:
        env = {**keys, **environment(client, f"{uri}/root")}
        found = fresh(make, env=env, count=len(seconds), width=WIDTH, poll_interval=POLL, thumbnails=thumbnails)
    assert found["counts"]["landed"] == len(seconds), found
    return dict(found)
