"""A collect of ten open records among many that have ended, compared with reading all records.

One image is made; its record is copied, because making that many images would take longer than the measurement. The
open records are requests without an answer, so that a collect reports them and calls no gateway.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bucket import bucket
from benchmarks.copies import Copies
from benchmarks.gateway import gateway
from benchmarks.making import environment
from benchmarks.measure import fresh
from benchmarks.results import Row

OPEN = 10
SIZES = {1_000: True, 10_000: True, 100_000: False}  # whether all records are read for comparison
QUICK = {100: True}
IN_S3 = 1_000
REPEATS = 3
ALL = "reading all records"


def filled(*, root: str, count: int) -> None:
    """Write `count` records that have landed, and `OPEN` that have not, with their index."""
    from airflow_provider_geminiimg.core.ledger.open_index import mark_complete, root_of
    from airflow_provider_geminiimg.core.ledger.records import Ledger

    copies = Copies(root)
    copies.fill(range(1, count))
    ledger = Ledger(copies.store)
    for number in range(count, count + OPEN):
        unanswered = {"state": "intent", "job_id": None, "manifest": None, "answer_within": 0.0}
        found = ledger.read(copies.add(number, **unanswered))
        assert found is not None
        ledger.open_index.add(found.record)
    mark_complete(copies.store, "default", root_of(copies.store))


def collected(*, by_index: bool) -> dict[str, float]:
    """Collect, and say how long it took and how many requests it sent to S3."""
    from airflow_provider_geminiimg.core.ledger.layout import complete_key
    from airflow_provider_geminiimg.core.reconcile import Report, Scope, collect
    from airflow_provider_geminiimg.hooks.object_stores import default_s3_client
    from airflow_provider_geminiimg.runtime.environment import Environment

    logging.getLogger("collect").setLevel(logging.CRITICAL)
    env, requests = Environment(logging.getLogger("collect")), 0

    def count(**_: Any) -> None:
        nonlocal requests
        requests += 1

    async def collecting() -> Report:
        async with env.purchase_context() as purchase_context:
            return await collect(purchase_context, Scope("default"))

    if not by_index:
        env.ledger.store.delete(complete_key("default"))
    if env.root.startswith("s3://"):
        default_s3_client(None).meta.events.register("before-send.s3", count)
    since = time.monotonic()
    report = asyncio.run(collecting())
    assert report.counts()["unknown"] == OPEN, report.counts()
    return {"seconds": time.monotonic() - since, "requests": requests}


def run(quick: bool) -> list[Row]:
    rows = []
    for count, compared in (QUICK if quick else SIZES).items():
        with tempfile.TemporaryDirectory() as folder, gateway() as client:
            env = environment(client, Path(folder).as_uri())
            fresh(filled, env=env, root=Path(folder).as_uri(), count=count)
            ours = _median(env, by_index=True)
            theirs = _median(env, by_index=False) if compared else None
        rows.append(_row(f"{OPEN} open among {count:,} records on disk", "s", ours["seconds"], theirs, "seconds"))
    count = max(QUICK) if quick else IN_S3
    with bucket() as (uri, more), gateway() as client:
        root = f"{uri}/root"
        env = {**more, **environment(client, root)}
        fresh(filled, env=env, root=root, count=count)
        ours, theirs = fresh(collected, env=env, by_index=True), fresh(collected, env=env, by_index=False)
    rows.append(_row(f"{OPEN} open among {count:,} records in S3", "requests", ours["requests"], theirs, "requests"))
    return rows


def _median(env: dict[str, str], *, by_index: bool) -> dict[str, float]:
    found = [fresh(collected, env=env, by_index=by_index)["seconds"] for _ in range(REPEATS if by_index else 1)]
    return {"seconds": statistics.median(found)}


def _row(figure: str, unit: str, ours: float, theirs: dict[str, float] | None, name: str) -> Row:
    if theirs is None:
        return Row("collect", figure, unit, ours)
    return Row("collect", figure, unit, ours, ALL, theirs[name], 0.2)
