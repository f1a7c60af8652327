"""What records cost, added up by the groups that they are counted in.

Invariants: only what was certainly charged is an amount. A request that may have been charged, and one without a known
price, are counted beside the amounts. Amounts of two currencies, or from two bases, are never added. Sums are exact.
Removed records stay in the sums.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import LEDGER, SUMMARIES, name_of
from airflow_provider_geminiimg.core.ledger.open_index import is_complete
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup, group_of
from airflow_provider_geminiimg.core.reconcile.extra_jobs import adopted, is_known
from airflow_provider_geminiimg.core.reconcile.run_totals import RunTotals, run_totals
from airflow_provider_geminiimg.core.reconcile.scan import CONCURRENCY, Scope, look
from airflow_provider_geminiimg.core.storage import encode_segment

BY: Mapping[str, Callable[[str, RecordGroup], str]] = {
    "dag": lambda dag_id, group: dag_id,
    "task": lambda dag_id, group: name_of(group.task),
    "model": lambda dag_id, group: group.model,
    "connection": lambda dag_id, group: group.conn_id,
    "month": lambda dag_id, group: group.day[:7],
    "day": lambda dag_id, group: group.day,
}
"""What spend can be split by. Days and months are UTC dates of the submission."""

_MAY_HAVE_EXTRA_JOBS = ("to-collect", "unknown", "landed", "failed")  # the others are about to change


@dataclass
class Spend:
    """What some records cost.

    :param paid: number of paid requests.
    :param images: number of their images that were stored.
    :param amounts: sum by currency, basis and whether it is an estimate.
    :param without_price: number of paid requests without a known price.
    :param unknown: number of requests of which it is not known whether they were paid.
    """

    paid: int = 0
    images: int = 0
    amounts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    without_price: int = 0
    unknown: int = 0

    def add(self, group: RecordGroup, count: int) -> None:
        """Add records of one group."""
        self.unknown += count if group.billed == "unknown" else 0
        if group.billed != "yes":
            return
        self.paid += count
        self.images += count * group.images
        if group.amount is None or not math.isfinite(group.amount):
            self.without_price += count
        else:
            which = (str(group.currency), str(group.basis), group.estimate)
            self.amounts[which] += count * Decimal(repr(group.amount))  # type: ignore[assignment]

    def costs(self) -> list[dict[str, Any]]:
        """The sums, as plain values."""
        return [
            {"amount": float(amount), "currency": currency, "basis": basis, "estimate": estimate}
            for (currency, basis, estimate), amount in sorted(self.amounts.items())
        ]

    def values(self) -> dict[str, Any]:
        """All figures, as plain values."""
        counts = {name: getattr(self, name) for name in ("paid", "images", "unknown", "without_price")}
        return {**counts, "costs": self.costs()}


@dataclass(frozen=True)
class SpendReport:
    """What was paid by the records of a scope.

    :param rows: by the values of what was asked for, in their order; without values that cost nothing.
    :param complete: whether all records are counted, see `RunTotals`.
    :param unreadable: number of records, and of entries of the index, that can't be read.
    :param more: whether a run has more open records than were read.
    :param following: where the next part begins; ``None`` at the end.
    """

    rows: Mapping[tuple[str, ...], Spend]
    complete: bool
    unreadable: int
    more: bool
    following: str | None


def spend(
    ledger: Ledger, scope: Scope, by: Sequence[str] = (), *, after: str = "", max_runs: int | None = None
) -> SpendReport:
    """Add up what was paid.

    :param by: keys of `BY`.
    :param after: `SpendReport.following` of an earlier part; default: the beginning.
    :param max_runs: maximum number of runs that are read; default: all.
    :raises LedgerError: a summary can't be read.
    :raises StorageError: the store failed.
    """
    runs = sorted(run for run in _runs(ledger, scope) if run > after)
    some = runs[:max_runs]
    task = None if scope.task_id is None else encode_segment(scope.task_id)
    rows: dict[tuple[str, ...], Spend] = defaultdict(Spend, {} if by else {(): Spend()})
    unreadable, more = 0, False
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        for run, (totals, extra) in zip(some, pool.map(lambda run: _read(ledger, scope, run), some), strict=True):
            unreadable, more = unreadable + totals.unreadable, more or totals.more
            dag_id = name_of(run.split("/")[1])
            for group, count in (totals.counts + totals.removed + extra).items():
                if group.billed != "no" and task in (None, group.task):
                    rows[tuple(BY[name](dag_id, group) for name in by)].add(group, count)
    return SpendReport(
        rows=dict(sorted(rows.items())),
        complete=is_complete(ledger.store, scope.namespace),
        unreadable=unreadable,
        more=more,
        following=some[-1] if len(some) < len(runs) else None,
    )


def _read(ledger: Ledger, scope: Scope, run: str) -> tuple[RunTotals, Counter[RecordGroup]]:
    totals = run_totals(ledger, scope.namespace, run)
    return totals, Counter(itertools.chain.from_iterable(_extra_jobs(ledger, totals)))


def _extra_jobs(ledger: Ledger, totals: RunTotals) -> Iterator[list[RecordGroup]]:
    """The groups of the jobs that other attempts paid for at the same time, and that no collect has found yet."""
    for key in (key for key, status in totals.open.items() if status in _MAY_HAVE_EXTRA_JOBS):
        entry = look(ledger, key)
        if entry is not None and entry.found is not None:
            extra = [adopted(entry.found.record, job_id) for job_id in entry.found.record.extra_jobs]
            yield [group_of(each, "to-collect") for each in extra if not is_known(ledger, each)]


def _runs(ledger: Ledger, scope: Scope) -> Iterator[str]:
    """The runs that have records or a summary, each once, as parts of keys."""
    whole = encode_segment(scope.namespace)
    dags = _folders(ledger, whole) if scope.dag_id is None else {encode_segment(scope.dag_id)}
    only = None if scope.run_id is None else encode_segment(scope.run_id)
    for dag in dags:
        yield from (f"{whole}/{dag}/{run}" for run in _folders(ledger, f"{whole}/{dag}") if only in (None, run))


def _folders(ledger: Ledger, below: str) -> set[str]:
    """The next parts of the keys of records and summaries: records may be removed, and summaries come later."""
    return {name for top in (LEDGER, SUMMARIES) for name in ledger.store.folders(f"{top}/{below}")}
