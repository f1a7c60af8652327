"""CPU of one poll in a triggerer, with 1,000 jobs in one event loop.

Our side uses the real triggers. Each peer is a trigger that a user might write: it sends a request, reads the status,
and sleeps. CPU is measured because it limits an event loop with a thousand tasks, and because it does not depend on
other load.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from airflow_provider_geminiimg.sandbox import SandboxClient
from benchmarks.measure import fresh, sandbox
from benchmarks.results import Row

JOBS, TARGET = 1000, 0.35
AT_ONCE = 8  # as many requests at the same time as ours has by default
CONN, KEY, MODEL = "geminiimg_bench", "sandbox-key", "gemini-3.1-flash-image-preview"
HEADERS = {"API-KEY": KEY}
SHARED = "shared httpx client behind a semaphore"

Ask = Callable[[str], Awaitable[None]]


class Meter:
    """CPU of so many polls, once every job is in flight: what is opened and looked up is not a poll's.

    :param jobs: how many polls come before those that count, one for each job.
    :param polls: how many count.
    """

    def __init__(self, jobs: int, polls: int) -> None:
        self._polls = polls
        self._seen = -jobs
        self._began = time.process_time()
        self._enough = asyncio.Event()
        self.milliseconds = 0.0

    def count(self) -> None:
        """One poll has its answer."""
        self._seen += 1
        if self._seen == 0:
            self._began = time.process_time()
        if self._seen == self._polls:
            self.milliseconds = (time.process_time() - self._began) / self._polls * 1000
            self._enough.set()

    async def over(self, waits: Iterable[Coroutine[Any, Any, None]]) -> float:
        """Run `waits` until enough has been seen; CPU milliseconds a poll."""
        tasks = [asyncio.create_task(wait) for wait in waits]
        await self._enough.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self.milliseconds


def ours(jobs: list[str], interval: float, polls: int, url: str) -> float:
    """The real triggers, whose polls are counted."""
    from airflow_provider_geminiimg.core.gateways.base import JobStatus
    from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger, Poller

    del url  # it is in the Airflow connection

    async def main() -> float:
        meter, now = Meter(len(jobs), polls), time.time()

        class Counted(GeminiImageJobTrigger):
            async def _poll(self, poller: Poller) -> JobStatus:
                status = await super()._poll(poller)
                meter.count()
                return status

        async def wait(job_id: str) -> None:
            age = random.uniform(0, interval)  # spread, as submits would be
            trigger = Counted(CONN, job_id, MODEL, now - age, now + 3600, 0.0, interval)
            async for event in trigger.run():
                raise RuntimeError(f"A job that runs for an hour ended: {event.payload}")

        return await meter.over(map(wait, jobs))

    return asyncio.run(main())


def client_per_poll(**given: Any) -> float:
    """A new ``httpx.AsyncClient`` for each poll."""
    import httpx

    async def ask(url: str) -> None:
        async with httpx.AsyncClient(headers=HEADERS) as client:
            _read((await client.get(url)).content)

    return asyncio.run(_naive(ask, **given))


def shared_httpx(**given: Any) -> float:
    """One client, as many requests at once as ours."""
    import httpx

    async def main() -> float:
        turn = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(headers=HEADERS) as client:

            async def ask(url: str) -> None:
                async with turn:
                    _read((await client.get(url)).content)

            return await _naive(ask, **given)

    return asyncio.run(main())


def http_provider(**given: Any) -> float:
    """What the http provider's deferrable operator and sensor do for each request: its asynchronous hook."""
    import aiohttp
    from airflow.providers.http.hooks.http import HttpAsyncHook

    async def main() -> float:
        hook = HttpAsyncHook(method="GET", http_conn_id="http_bench")

        async def ask(url: str) -> None:
            async with aiohttp.ClientSession() as session:
                answer = await hook.run(session=session, endpoint=url.split("/", 3)[3], headers=HEADERS)
                _read(await answer.read())

        return await _naive(ask, **given)

    return asyncio.run(main())


def bare_aiohttp(**given: Any) -> float:
    """The floor: no check, no limit, no error is handled."""
    import aiohttp

    async def main() -> float:
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

            async def ask(url: str) -> None:
                async with session.get(url) as answer:
                    _read(await answer.read())

            return await _naive(ask, **given)

    return asyncio.run(main())


PEERS: dict[str, Callable[..., float]] = {
    SHARED: shared_httpx,
    "client per poll": client_per_poll,
    "http provider": http_provider,
    "bare aiohttp": bare_aiohttp,
}


async def _naive(ask: Ask, jobs: list[str], interval: float, polls: int, url: str) -> float:
    meter = Meter(len(jobs), polls)

    async def wait(job_id: str) -> None:
        await asyncio.sleep(random.uniform(0, interval))
        while True:
            await ask(f"{url}/api/results/{job_id}")
            meter.count()
            await asyncio.sleep(interval)

    return await meter.over(map(wait, jobs))


def _read(body: bytes) -> None:
    assert json.loads(body)["aiRecord"]["status"] == "PROCESSING"


def run(quick: bool) -> list[Row]:
    """Contestants take turns, so that a busy moment meets all of them."""
    at_once, polls, repeats = (100, 200, 1) if quick else (JOBS, 2000, 2)
    contestants = {"": ours, **PEERS}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        with sandbox(latency=3600) as box:
            env = {
                f"AIRFLOW_CONN_{CONN.upper()}": box.connection_json("1min", key=KEY, requests_per_minute=1_000_000),
                "AIRFLOW_CONN_HTTP_BENCH": json.dumps({"conn_type": "http", "host": box.onemin_url}),
            }
            given = {"jobs": submit(box, at_once), "interval": at_once / 500, "url": box.onemin_url}
            for name, contestant in contestants.items():
                few = polls // 10  # clients that cost twenty polls each; one poll of each job, so that all are counted
                less = {"jobs": given["jobs"][:few], "polls": few} if contestant is client_per_poll else {}
                times[name].append(fresh(contestant, env=env, **{**given, "polls": polls, **less}))
    took = {name: statistics.median(values) for name, values in times.items()}
    return [
        Row("poll", "CPU of a poll", "ms", took[""], peer, took[peer], target=TARGET if peer == SHARED else None)
        for peer in PEERS
    ]


def submit(box: SandboxClient, count: int) -> list[str]:
    """Ids of jobs that run for as long as the sandbox lives."""
    import httpx

    asked = {
        "type": "IMAGE_GENERATOR",
        "model": MODEL,
        "promptObject": {"prompt": "a lighthouse", "imageSize": "1K"},
        "async": True,
    }
    with httpx.Client(headers=HEADERS, trust_env=False) as client:
        answers = (client.post(f"{box.onemin_url}/api/features", json=asked) for _ in range(count))
        return [answer.json()["aiRecord"]["uuid"] for answer in answers]
