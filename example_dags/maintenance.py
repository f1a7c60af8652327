"""Daily maintenance: collects paid images that no task has fetched. It pays for nothing.

With ``[geminiimg] keep_records_days`` it also removes records of tasks that ended longer ago.

To resolve an unknown outcome, trigger the DAG with ``{"resolve": {"ledger/...": "unpaid"}}``.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG, Param

from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator

with DAG(
    "geminiimg_maintenance",
    tags=["geminiimg"],
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    params={
        "resolve": Param({}, type="object", description='{"ledger/...": "unpaid", "lost" or {"job": "its id"}}'),
        "dry_run": Param(False, type="boolean", description="only log what would be done"),
    },
):
    GeminiImageCollectOperator(
        task_id="collect",
        resolve="{{ params.resolve | tojson }}",
        dry_run="{{ params.dry_run }}",
        # For a temporary outage of a gateway or a bucket.
        retries=2,
        retry_delay=timedelta(minutes=5),
    )
