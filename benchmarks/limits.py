"""What four processes of one account send together, and what a lease costs."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_provider_geminiimg.core.gateways.connection import parse_connection
from airflow_provider_geminiimg.core.ledger.account_limits import AccountLimits
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.sandbox.client import SandboxClient
from benchmarks.bucket import bucket
from benchmarks.gateway import gateway
from benchmarks.results import Row
from tests.harness.limit_worker import Calls, most_in, workers

PROCESSES, LIMIT, MINUTE = 4, 180, 60.0
TOGETHER = f"{PROCESSES} busy processes of one connection, limit {LIMIT} calls a minute"


@contextlib.contextmanager
def _roots() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder, bucket() as (uri, keys):
        os.environ.update(keys)
        yield {"disk": (Path(folder) / "root").as_uri(), "S3": f"{uri}/root"}


def _connection(client: SandboxClient, **extra: Any) -> dict[str, Any]:
    fields = {**client.connection("apimaster", **extra), "conn_id": "bench"}
    del fields["conn_type"]
    return fields


def _together(root: str, minute: float) -> tuple[int, float]:
    """The calls of the busiest minute, and those of an average minute in which all processes are busy."""
    with gateway() as client:
        given = _connection(client, requests_per_minute=LIMIT)
        each = Calls(given, root, seconds=2.5 * minute, polls=6, submits=2, minute=minute)
        with workers([each] * PROCESSES) as processes:
            client.calls(count=1, timeout=60)
            for process in processes:
                process.join()
        times = sorted(call["time"] for call in client.calls())
    busy = [at for at in times if times[0] + minute / 3 < at <= times[0] + minute * 7 / 3]
    return most_in(times, minute), len(busy) / 2


def _lease(root: str, count: int) -> tuple[float, float]:
    """Seconds and CPU seconds of one reservation of an account that nobody else uses."""
    connection = parse_connection(
        conn_id="alone", password="key", extra={"gateway": "apimaster", "requests_per_minute": 5000}
    )
    account = AccountLimits(open_store(root, AIRFLOW_OPENERS), "default", connection)
    account.reserve(1, low_priority=False)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(count):
        account.reserve(1, low_priority=False)
    return (time.perf_counter() - began) / count, (time.process_time() - used) / count


def run(quick: bool) -> list[Row]:
    minute = 6.0 if quick else MINUTE
    rows = []
    with _roots() as roots:
        for place, root in roots.items():
            most, used = _together(root, minute)
            rows += [
                Row("limits", f"{TOGETHER}: the busiest minute, {place}", "calls", most, "limit", LIMIT, 1.0),
                Row("limits", f"{TOGETHER}: calls a minute, {place}", "calls", used, "limit", LIMIT, 0.9, True),
            ]
            seconds, cpu = _lease(root, 20 if quick else 200)
            rows += [
                Row("limits", f"one reservation, {place}", "ms", seconds * 1e3),
                Row("limits", f"one reservation, CPU, {place}", "ms", cpu * 1e3),
            ]
    return rows
