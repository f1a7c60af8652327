"""Records of tasks that have ended: list, collect, resolve and remove them.

The collect operator and ``python -m airflow_provider_geminiimg jobs`` use this package. Invariants:

- Nothing here sends a paid request.
- All records of an image count, not only the last one: an image that was paid for before a Clear is collected too.
- An error in one record does not stop the others. A record that can't be read is reported, never treated as missing.
- A record that may stand for a paid image is removed only if a person asks for that explicitly.

In reading order:

- `scan`: lists records with their status
- `extra_jobs`: records of jobs that another attempt paid for at the same time
- `open_records`: reads the records that may be open, and mends their index
- `summary_mender`: makes the summaries of runs agree with the records
- `run_totals`: the totals of one run, from its summary and its open records
- `spend`: what records cost
- `collect`: stores images that were paid for and have not landed
- `resolve`: applies a person's decision (`core.validation.resolution`) to the record
- `purge`: removes records
"""

from __future__ import annotations

from airflow_provider_geminiimg.core.reconcile.collect import Report, collect
from airflow_provider_geminiimg.core.reconcile.open_records import IndexMender, reindex, walk_open
from airflow_provider_geminiimg.core.reconcile.purge import forget, purge
from airflow_provider_geminiimg.core.reconcile.resolve import resolve
from airflow_provider_geminiimg.core.reconcile.scan import (
    RECORD_STATUSES,
    RecordEntry,
    Scope,
    detail,
    entry_at,
    summary,
    walk,
)

__all__ = [
    "RECORD_STATUSES",
    "IndexMender",
    "RecordEntry",
    "Report",
    "Scope",
    "collect",
    "detail",
    "entry_at",
    "forget",
    "purge",
    "reindex",
    "resolve",
    "summary",
    "walk",
    "walk_open",
]
