"""Makes the summaries of runs agree with the records that a collect or a reindex reads.

Invariants: the records decide. A summary counts a record that does not exist only until all records of its run were
read. A part that can't be read is replaced only then, too, with one write. Other processes may use the records and the
summaries meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, is_record_key, run_of
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summaries import RunSummary, part_key
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup, group_of
from airflow_provider_geminiimg.core.reconcile.scan import RecordEntry
from airflow_provider_geminiimg.core.storage import encode_segment
from airflow_provider_geminiimg.exceptions import GeminiImageError

_TOGETHER = 500  # records that are counted together


class SummaryMender:
    """Counts records that have ended. Its methods block.

    :param ledger: the records.
    :param read_all: whether all records of a scope are seen, in the order of their keys.
    :param whole_runs: whether the scope consists of whole runs.
    """

    def __init__(self, ledger: Ledger, *, read_all: bool, whole_runs: bool) -> None:
        self.failures: dict[str, GeminiImageError] = {}
        """The first error of each run whose summary could not be mended."""

        self._summaries = ledger.summaries
        self._ledger = ledger
        self._read_all = read_all
        self._whole_runs = whole_runs
        self._run: str | None = None
        self._before: RunSummary | None = None
        self._seen: dict[str, str | None] = {}  # claims of the run's records, by key
        self._ended: list[Record] = []
        self._of_damaged: dict[str, tuple[str, RecordGroup]] = {}  # records of parts that can't be read
        self._runs: set[str] = set()

    def see(self, entry: RecordEntry, record: Record | None) -> None:
        """Note a record of the scope.

        :param record: to be counted; ``None`` if it has not ended or can't be read.
        """
        self._begin(run_of(entry.key))
        if self._read_all:
            self._seen[entry.key] = None if entry.found is None else entry.found.record.claim
        if record is not None and self._before is not None and part_key(record.key) in self._before.damaged:
            self._of_damaged[record.key] = (record.claim, group_of(record, record.state))
        elif record is not None:
            self._ended.append(record)
        if len(self._ended) >= _TOGETHER:
            self._guarded(self._count)

    def finish(self, namespace: str | None) -> None:
        """Count the last records, after all were seen.

        :param namespace: whose records were all seen; ``None``: not all of a namespace.
        :raises StorageError: the summaries can't be listed.
        """
        self._end()
        if namespace is None:
            return
        for run in list(self._summaries.runs(encode_segment(namespace))):
            if run not in self._runs:
                self._begin(run)
                self._end()

    def _begin(self, run: str) -> None:
        if self._run == run:
            return
        self._end()
        self._run = run
        self._runs.add(run)
        if self._read_all:
            self._guarded(self._read)

    def _read(self) -> None:
        assert self._run is not None
        self._before = self._summaries.read(self._run, despite_damage=self._whole_runs)

    def _end(self) -> None:
        self._guarded(self._count)
        self._guarded(self._complete)
        self._run, self._before, self._seen, self._of_damaged = None, None, {}, {}
        self._ended.clear()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Call `step`, unless a step of the same run has failed: its summary then stays as it is."""
        if self._run is None or self._run in self.failures:
            return
        try:
            step()
        except Exception as error:  # the records count
            self.failures[self._run] = as_outcome(error)

    def _count(self) -> None:
        self._summaries.count(self._ended)
        self._ended.clear()

    def _complete(self) -> None:
        if self._before is not None:
            self._summaries.replace_damaged(self._before, self._of_damaged)
            self._summaries.remove_missing(self._before, self._seen, self._existing(self._before.run))

    def _existing(self, run: str) -> Callable[[], list[str]]:
        return lambda: [key for key in self._ledger.store.keys(f"{LEDGER}/{run}/") if is_record_key(key)]
