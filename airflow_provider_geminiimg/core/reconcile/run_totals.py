"""The totals of one DAG run: its summary, and its records that are not counted there yet.

Invariants: the totals are exact at the moment of reading, unless they say otherwise (`RunTotals`). Their cost depends
on the number of records that are open, never on the number of records of the run or of the ledger.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from airflow_provider_geminiimg.core.ledger.layout import (
    LEDGER,
    TaskIndex,
    is_record_key,
    open_prefix_of_run,
    run_of,
)
from airflow_provider_geminiimg.core.ledger.open_index import OpenEntry, is_complete, read_open_entries
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summaries import RunSummary
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup, group_of
from airflow_provider_geminiimg.core.reconcile.scan import CONCURRENCY, RecordEntry, look
from airflow_provider_geminiimg.core.storage import encode_segment

MAX_READ = 2_000  # open records, and items of batches, that are read
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class RunTotals:
    """The records of one run, by `RecordGroup`.

    :param counts: number of records by group; records that can't be read are not among them.
    :param removed: number of records by group that were removed by a purge or by a person.
    :param open: the keys and statuses of the records that are not in the summary, in the order of their keys.
    :param unreadable: number of records and of entries of the index that can't be read.
    :param not_started: number of planned batch images without a record, by task and index as parts of keys.
    :param complete: whether all records are counted. If not, a collect or `jobs reindex` has to read all records once.
    :param more: whether there are more open records than were read.
    :param summary: the summary of the run; it finds the records that failed.
    """

    counts: Counter[RecordGroup]
    removed: Counter[RecordGroup]
    open: dict[str, str]
    unreadable: int
    not_started: dict[str, int]
    complete: bool
    more: bool
    summary: RunSummary


def run_totals(ledger: Ledger, namespace: str, run: str) -> RunTotals:
    """Read the totals of a run.

    :param namespace: value of ``[geminiimg] namespace``.
    :param run: namespace, DAG and run, as a part of keys.
    :raises LedgerError: the summary can't be read.
    :raises StorageError: the store failed.
    """
    # In this order: a record that is counted in between is in both, and counted once.
    entries, unreadable = _entries(ledger, run)
    summary = ledger.summaries.read(run)
    counts, removed = summary.counts(), summary.removed()
    keys = list(itertools.islice(_keys(ledger, entries, run), MAX_READ + 1))
    found = sorted(_read(ledger, keys[:MAX_READ]), key=lambda entry: entry.key)
    claims = {entry.key: None if entry.found is None else entry.found.record.claim for entry in found}
    counted = summary.groups(claims)
    open_records: dict[str, str] = {}
    for entry in found:
        if entry.key in counted:
            counts[counted[entry.key]] -= 1
        if entry.found is not None:
            counts[group_of(entry.found.record, entry.status)] += 1
        open_records[entry.key] = entry.status
    unreadable += sum(entry.found is None for entry in found)
    return RunTotals(
        counts=+counts,
        removed=removed,
        open=open_records,
        unreadable=unreadable,
        not_started=_not_started(summary, +counts + removed),
        complete=is_complete(ledger.store, namespace),
        more=max(len(keys), len(entries)) > MAX_READ,
        summary=summary,
    )


def _entries(ledger: Ledger, run: str) -> tuple[list[OpenEntry], int]:
    """At most `MAX_READ` + 1 entries of a run in the index, and the number of those that can't be read."""
    entries, unreadable = read_open_entries(ledger.store, open_prefix_of_run(run), MAX_READ + 1)
    own = [entry for entry in entries if run_of(entry.record or f"{LEDGER}/{entry.task_instance}/0/") == run]
    return own, len(unreadable)


def _keys(ledger: Ledger, entries: Sequence[OpenEntry], run: str) -> Iterator[str]:
    """The keys of the records that the entries name, each once; one more for each item of a batch without a record."""
    seen = set()
    for entry in entries:
        if entry.record is not None and entry.record not in seen:
            seen.add(entry.record)
            yield entry.record
    for folder in {folder for entry in entries for folder in entry.items}:
        for key in filter(is_record_key, ledger.store.keys(f"{folder}/")):
            if key not in seen:
                seen.add(key)
                yield key


def _read(ledger: Ledger, keys: Sequence[str]) -> list[RecordEntry]:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return [entry for entry in pool.map(lambda key: look(ledger, key), keys) if entry is not None]


def _not_started(summary: RunSummary, counts: Counter[RecordGroup]) -> dict[str, int]:
    """The number of planned images without a record, by task and index of the batch."""
    begun: Counter[str] = Counter()
    for group, count in counts.items():
        if group.first and group.map_index is not None:
            begun[f"{group.task}/{TaskIndex(group.map_index, group.iteration)}"] += count
    return {name: images - begun[name] for name, images in summary.planned().items() if images > begun[name]}


def run_folder(namespace: str, dag_id: str, run_id: str) -> str:
    """Return a run as a part of keys."""
    return "/".join(map(encode_segment, (namespace, dag_id, run_id)))
