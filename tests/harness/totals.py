"""The totals of runs, beside a count of the records themselves."""

from __future__ import annotations

from collections import Counter

from airflow_provider_geminiimg.core.ledger.layout import is_record_key, run_of
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup, group_of
from airflow_provider_geminiimg.core.reconcile.run_totals import run_totals
from airflow_provider_geminiimg.core.reconcile.scan import look
from airflow_provider_geminiimg.core.storage import decode_segment, open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS


def totals_agree(root: str) -> None:
    """The totals of each run are what its records are.

    :raises AssertionError: they differ.
    """
    ledger = Ledger(open_store(root, AIRFLOW_OPENERS))
    records: dict[str, Counter[RecordGroup]] = {run: Counter() for run in ledger.summaries.runs("default")}
    for key in filter(is_record_key, ledger.store.keys("ledger/")):
        counts = records.setdefault(run_of(key), Counter())
        if (entry := look(ledger, key)) is not None and entry.found is not None:
            counts[group_of(entry.found.record, entry.status)] += 1
    for run, counts in records.items():
        namespace = decode_segment(run.split("/")[0]) or ""
        assert run_totals(ledger, namespace, run).counts == counts
