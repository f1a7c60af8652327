"""The plan and the merge of a wide batch, of a file with 1,000 to 100,000 rows: CPU, and memory in addition to idle.

The images are not made: each shard's results are written as if all had landed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.gateway import gateway
from benchmarks.making import CONNECTION, Memory, environment
from benchmarks.measure import fresh
from benchmarks.results import Row

SIZES = (1_000, 10_000, 100_000)
QUICK = (100,)
IMAGES_PER_SHARD = 1_000
SHARDS = "images.shards"
PRODUCT = (
    "a ceramic cup with a wide handle, glazed in a deep blue with white speckles, seen from the front at eye level"
)


def write_rows(path: Path, count: int) -> None:
    """Write a table of products."""
    with path.open("w") as file:
        file.write("sku,product,material,weight\n")
        for number in range(count):
            file.write(f'RT-{number},"{PRODUCT}, number {number}",ceramic,{number % 900} g\n')


def planned(*, rows: str) -> dict[str, Any]:
    """Make the plan of a file of rows."""
    from airflow_provider_geminiimg.operators.wide_batch import GeminiImagePlanOperator
    from airflow_provider_geminiimg.runtime import wide_batch_task  # noqa: F401 - imported before the measurement

    operator = GeminiImagePlanOperator(
        task_id="images.plan",
        requests=rows,
        prompt="Photo of {product} on white",
        file_name="{sku}",
        resolution="512",
        images_per_shard=IMAGES_PER_SHARD,
        images_task_id=SHARDS,
        geminiimg_conn_id=CONNECTION,
    )
    return _measured(lambda: operator.execute(_context("images.plan")))


def write_results(*, plan: list[dict[str, int]]) -> None:
    """Write the results of all shards: every image has landed."""
    import logging

    from airflow_provider_geminiimg.core.batch.summary import Result, manifest_line
    from airflow_provider_geminiimg.runtime.wide_batch_task import WideRun

    run = WideRun(_context(SHARDS), logging.getLogger("plan"), planned=0)
    for number in range(len(plan)):
        lines = [manifest_line(item, Result("landed", _manifest(item)).line()) for item in run.read(number).items]
        run.files.put(run.results(number), b"".join(lines), media_type="application/x-ndjson")


def _manifest(item: Any) -> dict[str, Any]:
    image = {"uri": f"s3://shop/catalogue/{item.stem}.png", "media_type": "image/png", "width": 512, "height": 512}
    return {
        "images": [{**image, "size": 400_000, "sha256": item.fingerprint[::-1]}],
        "fingerprint": item.fingerprint,
        "record": f"ledger/default/bench/run/{SHARDS}/-1/{item.key}/1.json",
        "reused": False,
        "cost": {"amount": 0.0448, "currency": "USD", "basis": "google_list", "estimate": True},
        "requested": {"resolution": "512"},
        "mismatch": None,
        "submitted_at": "2026-11-30T08:00:00.000+00:00",
        "landed_at": "2026-11-30T08:00:09.000+00:00",
    }


def merged(*, plan: list[dict[str, int]]) -> dict[str, Any]:
    """Merge the results of all shards."""
    from airflow_provider_geminiimg.operators.wide_batch import GeminiImageMergeOperator
    from airflow_provider_geminiimg.runtime import wide_batch_task  # noqa: F401 - imported before the measurement

    operator = GeminiImageMergeOperator(task_id="images.merge", plan=plan, images_task_id=SHARDS)
    return _measured(lambda: operator.execute(_context("images.merge")))


def _context(task_id: str) -> Any:
    ti = SimpleNamespace(dag_id="bench", run_id="run", task_id=task_id, map_index=-1, max_tries=0, try_number=1)
    return {"ti": ti}


def _measured(task: Callable[[], Any]) -> dict[str, Any]:
    memory = Memory()
    since = time.process_time()
    value = task()
    return {"value": value, "seconds": time.process_time() - since, "megabytes": (memory.peak() - memory.idle) / 1e6}


def run(quick: bool) -> list[Row]:
    rows = []
    for count in QUICK if quick else SIZES:
        with tempfile.TemporaryDirectory() as folder, gateway() as client:
            path = Path(folder, "rows.csv")
            write_rows(path, count)
            env = environment(client, Path(folder, "root").as_uri())
            env["AIRFLOW__GEMINIIMG__MAX_BATCH_IMAGES"] = "1000000"
            plan = fresh(planned, env=env, rows=path.as_uri())
            fresh(write_results, env=env, plan=plan["value"])
            merge = fresh(merged, env=env, plan=plan["value"])
            assert merge["value"]["counts"]["landed"] == count, merge
        for name, found in (("plan", plan), ("merge", merge)):
            rows += [
                Row("plan", f"{name} of {count:,} rows, CPU", "s", found["seconds"]),
                Row("plan", f"{name} of {count:,} rows, peak memory above idle", "MB", found["megabytes"]),
            ]
    return rows
