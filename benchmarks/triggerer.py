"""Capacity of a triggerer: Airflow's own trigger runner with thousands of waiting tasks.

The parent process replaces the supervisor's end of the socket, so that the runner's event loop does only its production
work: accept triggers, run them, and answer heartbeats. The gaps of the event loop are measured from the first trigger
on, including creation, because other triggers wait during these gaps.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from benchmarks.measure import fresh, percentile, rss, sandbox
from benchmarks.poll import CONN, KEY, MODEL, submit
from benchmarks.results import Row

HELD, NAIVE = 5000, 1000
GAP, EACH = 100.0, 20.0  # targets: milliseconds, KB
A_TIME = 1000  # triggers that the supervisor hands over in one message
TICK = 0.01  # seconds between looks at the loop
RATE = 6000  # requests a minute of the account, as much as a sandbox beside it can answer


@dataclass(frozen=True)
class Fed:
    """What the supervisor hands over.

    :param classpath: the triggers' class.
    :param kwargs: their arguments, one dictionary for each trigger.
    """

    classpath: str
    kwargs: list[dict[str, Any]]

    def workloads(self, start: int, end: int) -> list[dict[str, Any]]:
        """The triggers from `start` to `end`, as Airflow's supervisor writes them down."""
        return [
            {
                "type": "RunTrigger",
                "id": number,
                "classpath": self.classpath,
                "encrypted_kwargs": json.dumps(self.kwargs[number]),  # with no Fernet key they are in clear
                "ti": {
                    "id": str(UUID(int=number)),
                    "dag_version_id": str(UUID(int=1)),
                    "task_id": "image",
                    "dag_id": "catalogue",
                    "run_id": "manual__2026-01-01",
                    "try_number": 1,
                    "map_index": number,
                    "pool_slots": 1,
                    "queue": "default",
                    "priority_weight": 1,
                },
            }
            for number in range(start, min(end, len(self.kwargs)))
        ]


def supervise(end: socket.socket, fed: Fed) -> None:
    """Answer the runner's messages until it hangs up: one trigger first, then `A_TIME` with each heartbeat."""
    handed = 0
    with end, end.makefile("rwb") as stream:
        _say(stream, 0, {"type": "StartTriggerer"})
        while head := stream.read(4):
            number, message, *_ = msgspec.msgpack.decode(stream.read(int.from_bytes(head, "big")))
            answer: dict[str, Any] | None = None
            if message["type"] == "TriggerStateChanges":
                until = min(handed + (A_TIME if handed else 1), len(fed.kwargs))
                answer = {"type": "TriggerStateSync", "to_create": fed.workloads(handed, until), "to_cancel": []}
                handed = until
            _say(stream, number, answer)


def _say(stream: Any, number: int, body: dict[str, Any] | None) -> None:
    frame = msgspec.msgpack.encode([number, body, None])
    stream.write(len(frame).to_bytes(4, "big") + frame)
    stream.flush()


def hold(count: int, seconds: float) -> dict[str, float]:
    """Run a trigger runner until it has held `count` triggers for `seconds`; its gaps (ms) and its memory (KB each)."""
    from airflow.jobs.triggerer_job_runner import TriggerRunner

    runner = TriggerRunner()
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            gaps.append((time.monotonic() - before - TICK) * 1000)

    async def held(number: int) -> None:
        while len(runner.triggers) < number:
            if runner.failed_triggers:
                raise RuntimeError("A trigger failed.")
            await asyncio.sleep(0.05)

    async def main() -> dict[str, float]:
        running = asyncio.create_task(runner.arun())
        await held(1)
        await asyncio.sleep(2)  # in which the first one opens what all share
        gc.collect()
        ticking, before = asyncio.create_task(tick()), rss()
        await held(count)
        await asyncio.sleep(seconds)
        ticking.cancel()
        gc.collect()
        each, left = (rss() - before) / count / 1000, len(runner.triggers)
        for details in runner.triggers.values():
            details["task"].cancel()
        runner.stop = True
        await asyncio.wait([running], timeout=30)
        return {"gap": percentile(gaps, 0.99), "each": each, "held": left}

    return asyncio.run(main())


def measured(fed: Fed, seconds: float, env: dict[str, str]) -> dict[str, float]:
    """What `hold` finds about the triggers of `fed`."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=supervise, args=(ours, fed), daemon=True)
    thread.start()
    with theirs:
        found = fresh(hold, env=env, stdin=theirs, count=len(fed.kwargs), seconds=seconds)
    thread.join(30)
    if found["held"] < len(fed.kwargs):
        raise RuntimeError(
            f"{len(fed.kwargs) - found['held']:.0f} triggers of {fed.classpath} ended before their time."
        )
    return dict(found)


def run(quick: bool) -> list[Row]:
    """Run each peer once, between two runs of ours: the peers start slowly, and no target depends on them."""
    held, naive, seconds, again = (200, 50, 2.0, 0) if quick else (HELD, NAIVE, 8.0, 1)
    with sandbox(latency=7200) as box:
        env = {
            f"AIRFLOW_CONN_{CONN.upper()}": box.connection_json("1min", key=KEY, requests_per_minute=RATE),
            "AIRFLOW__CORE__FERNET_KEY": "",
            "_AIRFLOW_PROCESS_CONTEXT": "client",
        }
        jobs, now = submit(box, 50), time.time()
        ours = {
            "geminiimg_conn_id": CONN, "model": MODEL, "submitted_at": now, "deadline": now + 3600,
            "expected_seconds": 0.0, "poll_interval": None,
        }  # fmt: skip
        contestants = {
            "ours": Fed(
                "airflow_provider_geminiimg.triggers.job.GeminiImageJobTrigger",
                [{**ours, "job_id": jobs[number % len(jobs)]} for number in range(held)],
            ),
            "naive": Fed(
                "benchmarks.naive_triggers.NaiveTrigger",
                [{"url": f"{box.onemin_url}/api/results/{jobs[n % len(jobs)]}", "key": KEY} for n in range(naive)],
            ),
            "sleeping": Fed("benchmarks.naive_triggers.SleepingTrigger", [{}] * held),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for name in [*contestants, *["ours"] * again]:
            found[name].append(measured(contestants[name], seconds, env))
    gap, each = (
        {name: statistics.median(one[figure] for one in all_) for name, all_ in found.items()}
        for figure in ("gap", "each")
    )
    naive_peer, floor = f"{naive:,} naive triggers", f"{held:,} triggers that only sleep"
    gap_figure, each_figure = f"event loop gap p99, {held:,} held", f"memory of a trigger, {held:,} held"
    return [
        Row("triggerer", gap_figure, "ms", gap["ours"], target=GAP),
        Row("triggerer", gap_figure, "ms", gap["ours"], naive_peer, gap["naive"]),
        Row("triggerer", gap_figure, "ms", gap["ours"], floor, gap["sleeping"]),
        Row("triggerer", each_figure, "KB", each["ours"], target=EACH),
        Row("triggerer", each_figure, "KB", each["ours"], naive_peer, each["naive"]),
        Row("triggerer", each_figure, "KB", each["ours"], floor, each["sleeping"]),
    ]
