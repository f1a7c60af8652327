"""Reads the records of a scope that may be open, through their index, and mends the index and the summaries.

Invariants: the index only says which records to read; the records decide. Without a complete index, all records of the
scope are read. The marker of a complete index is written only after all records of the namespace were read, each open
one has an entry, and each other one is counted in its run's summary. Only an entry that can't belong to an open record
is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, folder_of, open_prefix, open_prefix_of_run, run_of
from airflow_provider_geminiimg.core.ledger.open_index import (
    STALE_SECONDS,
    OpenEntry,
    is_complete,
    is_open,
    mark_complete,
    read_open_entries,
    root_of,
)
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile.extra_jobs import has_unknown_jobs
from airflow_provider_geminiimg.core.reconcile.scan import RecordEntry, Scope, batches, batches_at, look
from airflow_provider_geminiimg.core.reconcile.summary_mender import SummaryMender
from airflow_provider_geminiimg.exceptions import GeminiImageError


@dataclass(frozen=True)
class IndexState:
    """The index of open records, as far as it concerns a scope.

    :param complete: whether each open record has an entry.
    :param root: the identity of the root when the index was read.
    :param entries: the entries.
    :param unreadable: keys of entries that can't be read; it is not known which records they name.
    """

    complete: bool
    root: str
    entries: list[OpenEntry] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """Whether no other record of the scope can be open."""
        return self.complete and not self.unreadable

    @property
    def records(self) -> set[str]:
        """Keys of the records that have an entry of their own."""
        return {entry.record for entry in self.entries if entry.record is not None}


async def read_index(ledger: Ledger, scope: Scope) -> IndexState:
    """Read the index for a scope.

    :raises StorageError: the store failed.
    """
    store = ledger.store
    root = await asyncio.to_thread(root_of, store)
    complete = await asyncio.to_thread(is_complete, store, scope.namespace)
    entries, unreadable = await asyncio.to_thread(read_open_entries, store, open_prefix(scope.namespace))
    covered = [entry for entry in entries if scope.covers(entry.record or f"{LEDGER}/{entry.task_instance}/")]
    return IndexState(complete, root, covered, unreadable)


async def open_batches(ledger: Ledger, scope: Scope, index: IndexState) -> AsyncIterator[list[RecordEntry]]:
    """The records of `scope` that may be open, in the order of their keys, in batches; others may be among them.

    :raises StorageError: the records can't be listed.
    """
    if index.counts:
        source = batches_at(ledger, await asyncio.to_thread(_keys, ledger, scope, index))
    else:
        source = batches(ledger, scope)
    async for batch in source:
        yield batch


async def walk_open(ledger: Ledger, scope: Scope) -> AsyncIterator[RecordEntry]:
    """The records of `scope` that may be open, one by one; others may be among them."""
    async for batch in open_batches(ledger, scope, await read_index(ledger, scope)):
        for entry in batch:
            yield entry


def _keys(ledger: Ledger, scope: Scope, index: IndexState) -> Iterator[str]:
    """Keys of the records that the index names. Some of them may not exist."""
    keys, items = index.records, {item for entry in index.entries for item in entry.items}
    for folder in {folder_of(item) for item in items}:
        keys.update(key for key in ledger.store.keys(f"{folder}/") if folder_of(key) in items)
    return iter(sorted(filter(scope.holds, keys)))


async def reindex(ledger: Ledger, scope: Scope, *, dry_run: bool = False) -> IndexMender:
    """Read all records of `scope` and mend the index. Other processes may use the records meanwhile.

    :param dry_run: write nothing, only count. Default: ``False``.
    :returns: the counts.
    :raises StorageError: the index or the records can't be listed.
    """
    mender = IndexMender(ledger, scope, await read_index(ledger, scope), read_all=True, dry_run=dry_run)
    async for batch in batches(ledger, scope):
        await asyncio.to_thread(mender.see, batch)
    await asyncio.to_thread(mender.finish)
    return mender


class IndexMender:
    """Writes missing entries and removes stale ones. Its methods block.

    :param ledger: the records.
    :param scope: of the records that are read.
    :param index: as it was read before the first record.
    :param read_all: whether all records of the scope are read, and not only those that the index names.
    :param dry_run: write nothing, only count.
    """

    def __init__(
        self, ledger: Ledger, scope: Scope, index: IndexState, *, read_all: bool, dry_run: bool = False
    ) -> None:
        self.read = 0
        """Records that were read."""
        self.written = 0
        """Entries that were written, or would be."""
        self.removed = 0
        """Entries that were removed, or would be."""
        self._failure: GeminiImageError | None = None  # while the index was mended
        self._ledger = ledger
        self._scope = scope
        self._index = index
        self._named = {entry.record for entry in index.entries if entry.record is not None and _is_named(entry)}
        self._read_all = read_all
        self._dry_run = dry_run
        self._open: set[str] = set()
        self._summaries = SummaryMender(ledger, read_all=read_all, whole_runs=scope.task_id is None)
        self._stale = {entry.record for entry in index.entries if _is_stale(entry)}
        # An entry of a batch whose attempt is gone is replaced by entries of its records.
        self._given_up = {item for entry in index.entries if _is_stale(entry) for item in entry.items}

    @property
    def failure(self) -> GeminiImageError | None:
        """The first error, if the index or a summary could not be mended."""
        return self._failure or next(iter(self._summaries.failures.values()), None)

    @property
    def open(self) -> int:
        """Records that need an entry."""
        return len(self._open)

    def see(self, batch: Sequence[RecordEntry]) -> None:
        """Note records that were read, and write the entries that are missing."""
        for entry in batch:
            self.read += 1
            if not self._needs_entry(entry):
                self._see(entry, None if entry.found is None else entry.found.record)
                continue
            self._see(entry, None)
            self._open.add(entry.key)
            if entry.key not in self._named and (self._read_all or folder_of(entry.key) in self._given_up):
                self._write(entry)

    def finish(self) -> None:
        """Remove stale entries, and mark the index as complete, after all records were seen."""
        try:
            if not self._dry_run:
                whole = self._read_all and self._scope.is_whole
                self._summaries.finish(self._scope.namespace if whole else None)
            self._remove_stale()
            if self._read_all and self._scope.is_whole and self.failure is None and not self._dry_run:
                mark_complete(self._ledger.store, self._scope.namespace, self._index.root)
        except Exception as error:  # the records count
            self._failure = self._failure or as_outcome(error)

    def _see(self, entry: RecordEntry, ended: Record | None) -> None:
        """Count a record if it may not be counted: if all are read, or if nobody else removes its entry."""
        is_left = entry.key in self._stale or folder_of(entry.key) in self._given_up
        self._stale.discard(entry.key)
        if not self._dry_run and (self._read_all or is_left):
            self._summaries.see(entry, ended)

    def _needs_entry(self, entry: RecordEntry) -> bool:
        """Whether a record is open, or can't be read: then it is reported again."""
        if entry.found is None:
            return True
        record = entry.found.record
        if not is_open(record) or record.state not in ("landed", "failed"):
            return is_open(record)
        try:
            return has_unknown_jobs(self._ledger, record)
        except GeminiImageError:
            return True

    def _write(self, entry: RecordEntry) -> None:
        self.written += 1
        if self._dry_run:
            return
        try:
            if entry.found is None:
                self._ledger.open_index.add_again(entry.key)
            else:
                self._ledger.open_index.add(entry.found.record)
        except Exception as error:  # the records count
            self._failure = self._failure or as_outcome(error)

    def _remove_stale(self) -> None:
        if self._failure is not None:  # records of batches may have no entry of their own
            return
        # Records that exist and were not listed, perhaps because of a link to a folder.
        self._open.update(key for key in self._stale if key is not None and look(self._ledger, key) is not None)
        stale = [
            entry.key
            for entry in self._index.entries
            if _is_stale(entry) and entry.record not in self._open and _run(entry) not in self._summaries.failures
        ]
        if self._read_all and self._scope.is_whole:
            stale += filter(self._is_old, self._index.unreadable)
        self.removed += len(stale)
        if not self._dry_run:
            self._ledger.store.delete_all(stale)

    def _is_old(self, key: str) -> bool:
        blob = self._ledger.store.read(key)
        return blob is not None and blob.age >= STALE_SECONDS


def _is_named(entry: OpenEntry) -> bool:
    """Whether the gallery finds the entry of a record; earlier entries do not begin with the run."""
    return entry.record is not None and entry.key.startswith(open_prefix_of_run(run_of(entry.record)))


def _run(entry: OpenEntry) -> str:
    return run_of(entry.record or f"{LEDGER}/{entry.task_instance}/0/")


def _is_stale(entry: OpenEntry) -> bool:
    return entry.age >= STALE_SECONDS
