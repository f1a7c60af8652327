"""Runs a batch as a task does, in its own process: the operator's `execute` without a scheduler."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_provider_geminiimg.sandbox.client import SandboxClient

CONNECTION = "bench"
SHARED = {"resolution": "512"}
WARM = 4  # images that are made first, so that no import and no first connection is measured


def prompts(count: int) -> list[str]:
    """What is asked for."""
    return [f"image number {number}" for number in range(count)]


def environment(client: SandboxClient, root: str, **extra: Any) -> dict[str, str]:
    """What `make` needs: a connection to the gateway, and a root.

    :param extra: more of the connection's extras. Its limits are set so high that they never bind: they are the
        account's, and what is measured is the code.
    """
    said = client.connection_json("apimaster", **{"requests_per_minute": 1_000_000, **extra})
    return {
        f"AIRFLOW_CONN_{CONNECTION.upper()}": said,
        "AIRFLOW__GEMINIIMG__ROOT": root,
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",  # as in any Airflow: lines are part of the cost
    }


def make(
    *, count: int, width: int, poll_interval: float, thumbnails: bool = True, warm: int = WARM, task: str = "images"
) -> dict[str, Any]:
    """Run one batch to its end.

    :param count: images.
    :param width: of its window.
    :param poll_interval: seconds.
    :param thumbnails: whether the worker has Pillow.
    :param warm: images of another batch before, which is not measured.
    :param task: whose batch it is: a second run of the same task finds what the first one has landed.
    :returns: its `counts`; `seconds` and `cpu` seconds that it took; `idle` and `peak`, the bytes that were in memory
        before it and at the most.
    """
    if not thumbnails:
        sys.modules["PIL"] = None  # type: ignore[assignment]
    import_module("airflow_provider_geminiimg.runtime.batch_task")  # and Airflow with it, which takes seconds
    if warm:
        _execute(count=warm, width=warm, poll_interval=0.01, task="warm")
    memory = Memory()
    began, used = time.monotonic(), time.process_time()
    summary = _execute(count=count, width=width, poll_interval=poll_interval, task=task)
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    return {"counts": summary["counts"], "seconds": seconds, "cpu": cpu, "idle": memory.idle, "peak": memory.peak()}


def _execute(*, count: int, width: int, poll_interval: float, task: str) -> dict[str, Any]:
    from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator

    operator = GeminiImageBatchOperator(
        task_id=task,
        requests=prompts(count),
        geminiimg_conn_id=CONNECTION,
        max_concurrency=width,
        poll_interval=poll_interval,
        **SHARED,
    )
    ti = SimpleNamespace(dag_id="bench", run_id="run", task_id=task, map_index=-1, max_tries=0)
    return operator.execute({"ti": ti})  # type: ignore[typeddict-item]


class Memory:
    """Bytes of this process that are in memory: now, and the most since."""

    def __init__(self) -> None:
        self.idle = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is reset

    def peak(self) -> int:
        return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
