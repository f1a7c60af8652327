"""The totals of a run in the gallery's format, from what is counted of the run (`core.reconcile.run_totals`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import TaskIndex, index_of, name_of
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup
from airflow_provider_geminiimg.core.reconcile.run_totals import UNREADABLE, RunTotals, run_totals
from airflow_provider_geminiimg.core.reconcile.spend import Spend
from airflow_provider_geminiimg.exceptions import LedgerError
from airflow_provider_geminiimg.gallery.run_records import RecordFilter


def complete_totals(ledger: Ledger, namespace: str, run: str) -> RunTotals | None:
    """Read the totals of a run; ``None`` if not all its records are counted."""
    try:
        totals = run_totals(ledger, namespace, run)
    except LedgerError:  # the summary is damaged
        return None
    return totals if totals.complete else None


def counted(totals: RunTotals, wanted: RecordFilter) -> dict[RecordGroup, int] | None:
    """Return what is counted of the wanted records; ``None`` if it is not counted by their map index.

    The single images of a mapped task, and the shards of a wide batch, are not.
    """
    groups = {group: count for group, count in totals.counts.items() if wanted.fits_group(group)}
    if wanted.map_index is None:
        return groups
    own = {group: count for group, count in groups.items() if group.map_index == wanted.map_index}
    if wanted.map_index >= 0 and (not own or any(group.map_index is None for group in groups)):
        return None
    return own


def records_by_task(groups: Mapping[RecordGroup, int]) -> Counter[str]:
    """Return the number of records by task, as a part of keys."""
    found: Counter[str] = Counter()
    for group, count in groups.items():
        found[group.task] += count
    return found


def counted_summary(totals: RunTotals, groups: dict[RecordGroup, int], wanted: RecordFilter) -> dict[str, Any]:
    """Return the totals of these groups, without reading their records."""
    open_keys = {key: status for key, status in totals.open.items() if wanted.fits_key(key)}
    is_whole = all(each is None for each in (wanted.task, wanted.map_index, wanted.iteration))
    unreadable = totals.unreadable if is_whole else Counter(open_keys.values())[UNREADABLE]
    statuses: Counter[str] = Counter({UNREADABLE: unreadable})
    paid = Spend()
    for group, count in groups.items():
        statuses[group.status] += count
        paid.add(group, count)
    not_started = sum(count for name, count in totals.not_started.items() if _fits(name, wanted))
    tasks = {group.task for group in groups} | {key.split("/")[4] for key in open_keys}
    iterations = {group.iteration for group in groups} | {_iteration(key) for key in open_keys}
    return {
        "statuses": dict(+statuses),
        "not_started": not_started,
        "wanted": sum(count for group, count in groups.items() if group.first) + not_started,
        "images": sum(group.images * count for group, count in groups.items()),
        "costs": shown_costs(paid),
        "without_price": paid.without_price,
        "tasks": sorted(map(name_of, tasks)),
        "models": sorted({group.model for group in groups}),
        "iterations": sorted(each for each in iterations if each is not None),
        "looked_at": sum(groups.values()) + unreadable,
        "more": totals.more,
        "complete": True,
    }


def shown_costs(paid: Spend) -> list[dict[str, Any]]:
    """Return the paid amounts by currency and basis."""
    return [{name: cost[name] for name in ("amount", "currency", "basis")} for cost in paid.costs()]


def _fits(name: str, wanted: RecordFilter) -> bool:
    """Whether a batch is wanted, by its task and index as parts of keys."""
    task, _, text = name.rpartition("/")
    index = TaskIndex.parse(text)
    return index is not None and wanted.task in (None, task) and wanted.fits_index(index)


def _iteration(key: str) -> int | None:
    index = index_of(key)
    return None if index is None else index.iteration
