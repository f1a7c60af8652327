"""Makes the summaries of runs agree with the records that a collect or a reindex reads.

Invariants: the records decide. A summary counts a record that does not exist only until all records of its run were
read. A part that can't be read is replaced only then, too, with one write. Other processes may use the records and the
summaries meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_geminiimg.core.ledger.layout import LEDGER, is_record_key, run_of
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summaries import RunSummary, part_key
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup, group_of
from airflow_provider_geminiimg.core.reconcile.scan import RecordEntry
from airflow_provider_geminiimg.core.storage import encode_segment

_TOGETHER = 500  # records that are counted together


class SummaryMender:
    """Counts records that have ended. Its methods block.

    :param ledger: the records.
    :param read_all: whether all records of a scope are seen, in the order of their keys.
    :param whole_runs: whether the scope consists of whole runs.
    """

    def __init__(self, ledger: Ledger, *, read_all: bool, whole_runs: bool) -> None:
        self._summaries = ledger.summaries
        self._ledger = ledger
        self._read_all = read_all
        self._whole_runs = whole_runs
        self._before: RunSummary | None = None
        self._seen: set[str] = set()  # keys of the run's records
        self._runs: set[str] = set()
        self._ended: list[Record] = []
        self._of_damaged: dict[str, RecordGroup] = {}  # records of parts that can't be read

    def see(self, entry: RecordEntry, record: Record | None) -> None:
        """Note a record of the scope.

        :param record: to be counted; ``None`` if it has not ended or can't be read.
        :raises GeminiImageError: a summary can't be read or written.
        """
        if self._read_all:
            self._begin(run_of(entry.key))
            self._seen.add(entry.key)
        if record is not None and self._before is not None and part_key(record.key) in self._before.damaged:
            self._of_damaged[record.key] = group_of(record, record.state)
        elif record is not None:
            self._ended.append(record)
        if len(self._ended) >= _TOGETHER:
            self._count()

    def finish(self, namespace: str | None) -> None:
        """Count the last records, after all were seen.

        :param namespace: whose records were all seen; ``None``: not all of a namespace.
        :raises GeminiImageError: a summary can't be read or written.
        """
        self._end()
        if namespace is None:
            return
        for run in list(self._summaries.runs(encode_segment(namespace))):
            if run not in self._runs:
                self._begin(run)
                self._end()

    def _begin(self, run: str) -> None:
        if self._before is not None and self._before.run == run:
            return
        self._end()
        self._runs.add(run)
        self._before = self._summaries.read(run, despite_damage=self._whole_runs)

    def _end(self) -> None:
        self._count()
        if self._before is not None:
            self._summaries.replace_damaged(self._before, self._of_damaged)
            self._summaries.remove_missing(self._before, self._seen, self._existing(self._before.run))
        self._before, self._seen, self._of_damaged = None, set(), {}

    def _count(self) -> None:
        self._summaries.count(self._ended)
        self._ended.clear()

    def _existing(self, run: str) -> Callable[[], list[str]]:
        return lambda: [key for key in self._ledger.store.keys(f"{LEDGER}/{run}/") if is_record_key(key)]
