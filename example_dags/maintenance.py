"""Once a day: collect what killed, failed or cleared tasks paid for and left behind. It buys nothing.

Trigger it by hand with ``{"resolve": {"ledger/...": "unpaid"}}`` to settle an outcome that nobody knows.
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
        "dry_run": Param(False, type="boolean", description="only say what would be done"),
    },
):
    GeminiImageCollectOperator(
        task_id="collect",
        resolve="{{ params.resolve | tojson }}",
        dry_run="{{ params.dry_run }}",
        # A gateway or a bucket that was down for a moment.
        retries=2,
        retry_delay=timedelta(minutes=5),
    )
