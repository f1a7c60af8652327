"""The gallery's first page, totals, a jump, and the spend of a DAG, for runs of 1,000 to 100,000 images.

Measured are the queries behind the pages, in a process of their own: without HTTP and permissions, whose cost does not
depend on the number of images.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.copies import filled
from benchmarks.gateway import gateway
from benchmarks.making import Memory, environment
from benchmarks.measure import fresh
from benchmarks.results import Row

SIZES = (1_000, 10_000, 100_000)
QUICK = (100,)
REPEATS = 5
PAGE = 60
RUN = {"dag_id": "bench", "run_id": "run"}


def asked(*, root: str, count: int) -> dict[str, dict[str, float]]:
    """Ask each question some times; return its median seconds and its store operations, and the memory of all."""
    from airflow_provider_geminiimg import settings
    from airflow_provider_geminiimg.core.ledger.records import Ledger
    from airflow_provider_geminiimg.core.reconcile import Scope
    from airflow_provider_geminiimg.core.reconcile.spend import spend
    from airflow_provider_geminiimg.core.storage import Files, open_store
    from airflow_provider_geminiimg.gallery.queries import GalleryQueries
    from airflow_provider_geminiimg.gallery.run_records import RecordFilter
    from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

    store = open_store(settings.root(), AIRFLOW_OPENERS)
    operations = _counted(store)
    queries = GalleryQueries(Ledger(store), "default", Files(AIRFLOW_OPENERS, allowed_roots=[root]))
    wanted = RecordFilter(**RUN)
    questions: dict[str, Callable[[], Any]] = {
        "first page": lambda: queries.page(wanted, None, PAGE),
        "page in the middle": lambda: queries.page(wanted, None, PAGE, count // 2),
        "page of failures": lambda: queries.page(RecordFilter(**RUN, status="failed"), None, PAGE),
        "totals": lambda: queries.summary(wanted),
        "spend of the DAG": lambda: [
            paid.values()
            for paid in spend(queries.ledger, Scope("default", "bench"), ["day"], max_runs=20).rows.values()
        ],
    }
    memory = Memory()
    found = {name: _asked(ask, operations) for name, ask in questions.items()}
    assert queries.summary(wanted)["images"] == count
    return {**found, "memory": {"mb": memory.peak() / 1e6}}


def _asked(ask: Callable[[], Any], operations: list[str]) -> dict[str, float]:
    seconds = []
    for _ in range(REPEATS):
        operations.clear()
        since = time.monotonic()
        json.dumps(ask(), default=str)
        seconds.append(time.monotonic() - since)
    return {"seconds": statistics.median(seconds), "operations": len(operations)}


def _counted(store: Any) -> list[str]:
    """Note the operations of a store."""
    operations: list[str] = []

    def counted(name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            operations.append(name)
            return really(*arguments)

        return call

    for name in ("read", "keys", "folders"):
        setattr(store, name, counted(name, getattr(store, name)))
    return operations


def run(quick: bool) -> list[Row]:
    found: dict[int, dict[str, dict[str, float]]] = {}
    sizes = QUICK if quick else SIZES
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder, gateway() as client:
            root = Path(folder).as_uri()
            env = environment(client, root)
            fresh(filled, env=env, root=root, count=count)
            found[count] = fresh(asked, env=env, root=root, count=count)
    rows = []
    few, few_found = next(iter(found.items()))
    for name in (each for each in few_found if each != "memory"):
        for count, each in found.items():
            rows.append(Row("gallery", f"{name}, {count:,} images", "s", each[name]["seconds"], target=1.0))
        most = each[name]["operations"]
        peer = f"{few:,} images"
        rows.append(
            Row("gallery", f"{name}, {count:,} images", "operations", most, peer, few_found[name]["operations"], 1.0)
        )
    rows += [
        Row("gallery", f"memory of the process, {count:,} images", "MB", each["memory"]["mb"])
        for count, each in found.items()
    ]
    return rows
