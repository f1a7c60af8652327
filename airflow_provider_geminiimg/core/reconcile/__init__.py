"""What the ledger holds beyond the task at hand: look at it, collect it, settle it, and clear it away.

Whatever died left its records behind. These are the ways in which somebody else deals with them: the collect operator,
and ``python -m airflow_provider_geminiimg jobs``. What must stay true:

- Nothing here submits.
- All records count, not only those that decide: what was paid for before a Clear is collected too.
- One record's trouble is its own. What can't be read is reported, and never taken for "no record".
- What may hold something that was paid for is removed only where a person says so in so many words.

In reading order:

- `scan`: how each record stands
- `collect`: lands what was left behind
- `resolution`: what a person found out
- `resolve`: settles an unknown outcome by it
- `purge`: removes records
"""

from __future__ import annotations

from airflow_provider_geminiimg.core.reconcile.collect import Report, collect
from airflow_provider_geminiimg.core.reconcile.purge import forget, purge
from airflow_provider_geminiimg.core.reconcile.resolve import resolve
from airflow_provider_geminiimg.core.reconcile.scan import (
    STANDINGS,
    RecordEntry,
    Scope,
    detail,
    entry_at,
    summary,
    walk,
)

__all__ = [
    "STANDINGS",
    "RecordEntry",
    "Report",
    "Scope",
    "collect",
    "detail",
    "entry_at",
    "forget",
    "purge",
    "resolve",
    "summary",
    "walk",
]
