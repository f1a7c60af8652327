"""The gateway of the benchmarks: the sandbox in its own process, with realistic latencies and fast answers.

Invariants: latencies come from a seed, so that a simulation knows them and the measured code does not. Every image is
the same prepared file, because drawing would take most of the time.
"""

from __future__ import annotations

import contextlib
import math
import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from airflow_provider_geminiimg.sandbox.client import SandboxClient
from airflow_provider_geminiimg.sandbox.state import Box, Job, Order, Settings
from benchmarks.beside import beside

SIGMA = 0.5  # of the latencies' logarithm: one in twenty takes more than twice the median


def latencies(count: int, *, median: float, seed: int) -> list[float]:
    """Log-normal latencies in seconds, in the order of the submits."""
    rng = random.Random(seed)
    return [rng.lognormvariate(math.log(median), SIGMA) for _ in range(count)]


def image_bytes(size: int) -> bytes:
    """A drawn image of 512 x 512 pixels, as a PNG of so many bytes.

    :param size: bytes; what is missing is noise in a chunk that readers skip. 0: as large as it is drawn.
    """
    from airflow_provider_geminiimg.sandbox.images import Sketch, draw, shape

    drawn = draw(Sketch(1, "benchmark", "a lighthouse at dawn", shape("512", "1:1", "png")))
    spare = size - len(drawn) - 12
    if spare <= 0:
        return drawn
    body = random.Random(size).randbytes(spare)
    chunk = struct.pack(">I", spare) + b"fiLl" + body + struct.pack(">I", zlib.crc32(b"fiLl" + body))
    return drawn[:-12] + chunk + drawn[-12:]  # before the chunk that ends the image


class _Box(Box):
    def __init__(self, seconds: Sequence[float]) -> None:
        super().__init__(Settings(latency=seconds[0]))
        self._seconds = seconds

    def accept(self, order: Order, *, job_id: str, hidden: bool = False) -> Job:
        job = super().accept(order, job_id=job_id, hidden=hidden)
        job.ready_at = job.created + self._seconds[(job.number - 1) % len(self._seconds)]
        return job


def _serve(ready: Connection, seconds: Sequence[float], size: int) -> None:
    from airflow_provider_geminiimg.sandbox import images
    from airflow_provider_geminiimg.sandbox.server import LOCAL_HOSTS, _listen, _Server, _url

    same = image_bytes(size)
    images.draw = lambda sketch: same
    sock = _listen("127.0.0.1", 0)
    ready.send(_url("127.0.0.1", sock))
    _Server(_Box(seconds), LOCAL_HOSTS).run([sock])


@contextlib.contextmanager
def gateway(seconds: Sequence[float] = (0.0,), *, image_bytes: int = 0) -> Iterator[SandboxClient]:
    """Both gateways in a process of their own.

    :param seconds: the latency of each job, in the order of the submits; they start again at the end.
    :param image_bytes: of every image; 0: about 13 KB.
    """
    with beside(_serve, list(seconds), image_bytes) as url, contextlib.closing(SandboxClient(url)) as client:
        yield client
