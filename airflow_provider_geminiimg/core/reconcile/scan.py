"""Lists the records of a namespace with their status and with what a person can do about each.

Invariants: a record that can't be read is listed too. No entry shows a link; an entry shows a prompt only if prompts
are recorded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, is_record_key
from airflow_provider_geminiimg.core.ledger.manifest import iso
from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.storage import encode_segment
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    LedgerError,
    OutcomeUnknownError,
)

CONCURRENCY = 8  # records that are read or collected concurrently

RecordStatus = Literal["waiting", "in-flight", "to-collect", "unknown", "landed", "failed", "unreadable"]

RESOLVE = (
    "Check in the gateway's console whether the image was made and charged, then resolve the record: `jobs resolve` "
    "with --unpaid, --lost or --job, or with --resubmit to buy it again; or `resolve` of GeminiImageCollectOperator."
)
RECORD_STATUSES: Mapping[RecordStatus, str] = {
    "waiting": "A request is in flight and its answer may still arrive. Wait.",
    "in-flight": "Paid for. An attempt may be collecting it at this moment. Wait.",
    "to-collect": "Paid for, and not in storage yet. `jobs collect` stores the image.",
    "unknown": f"It is not known whether it was paid for. {RESOLVE}",
    "landed": "The image is in storage. There is nothing to do.",
    "failed": "The request ended without an image.",
    "unreadable": "The record can't be read, so it is not known what was paid for.",
}
"""The statuses of records, with their meaning for the reader."""


@dataclass(frozen=True)
class RecordEntry:
    """A listed record.

    :param key: its key, relative to the root.
    :param found: the record; ``None`` if it can't be read.
    :param error: why it can't be read.
    """

    key: str
    found: StoredRecord | None
    error: GeminiImageError | None = None

    @property
    def status(self) -> RecordStatus:
        """See `RECORD_STATUSES`."""
        return "unreadable" if self.found is None else record_status(self.found)

    def readable(self) -> StoredRecord:
        """The record.

        :raises GeminiImageError: the record can't be read.
        """
        if self.found is None:
            raise self.error or LedgerError(f"Record {self.key} can't be read.")
        return self.found


@dataclass(frozen=True)
class Scope:
    """A selection of records; ``None`` means any.

    :param namespace: value of ``[geminiimg] namespace``.
    """

    namespace: str
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None

    @property
    def prefix(self) -> str:
        """The common prefix of the keys of these records."""
        known = itertools.takewhile(lambda part: part is not None, self._parts())
        return "/".join([LEDGER, *(part for part in known if part is not None), ""])

    @property
    def is_whole(self) -> bool:
        """Whether all records of the namespace are selected."""
        return self.dag_id is self.run_id is self.task_id is None

    def holds(self, key: str) -> bool:
        """Whether `key` is the key of a selected record."""
        return is_record_key(key) and self.covers(key)

    def covers(self, key: str) -> bool:
        """Whether the task instance of `key` is selected; `key` may name a record or another object of the store."""
        found = key.split("/")[1:5]
        return len(found) == 4 and all(w in (None, f) for w, f in zip(self._parts(), found, strict=True))

    def _parts(self) -> list[str | None]:
        asked = (self.namespace, self.dag_id, self.run_id, self.task_id)
        return [None if part is None else encode_segment(part) for part in asked]


def record_status(found: StoredRecord) -> RecordStatus:
    """The status of a record."""
    record = found.record
    if record.state in ("landed", "failed"):
        return record.state
    young = found.age < record.answer_within
    if record.state == "intent":
        return "waiting" if young and record.outcome is None else "unknown"
    if isinstance(record.error, OutcomeUnknownError):
        return "unknown"
    return "in-flight" if young else "to-collect"


async def batches(ledger: Ledger, scope: Scope) -> AsyncIterator[list[RecordEntry]]:
    """The records of `scope` in the order of their keys, in batches of `CONCURRENCY`.

    :raises StorageError: the records can't be listed.
    """
    keys = await asyncio.to_thread(lambda: filter(scope.holds, ledger.store.keys(scope.prefix)))
    async for batch in batches_at(ledger, keys):
        yield batch


async def batches_at(ledger: Ledger, keys: Iterator[str]) -> AsyncIterator[list[RecordEntry]]:
    """The records at `keys` that exist, in batches of `CONCURRENCY`.

    :raises StorageError: the keys can't be listed.
    """
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(keys, CONCURRENCY))):
        entries = await asyncio.gather(*(asyncio.to_thread(look, ledger, key) for key in batch))
        yield [entry for entry in entries if entry is not None]


async def walk(ledger: Ledger, scope: Scope) -> AsyncIterator[RecordEntry]:
    """The records of `scope`, one by one."""
    async for batch in batches(ledger, scope):
        for entry in batch:
            yield entry


def entry_at(ledger: Ledger, key: str) -> RecordEntry:
    """The entry at `key`.

    :raises BadRequestError: there is no such record.
    """
    entry = look(ledger, key) if is_record_key(key) else None
    if entry is None:
        raise BadRequestError(
            f"There is no record {key!r} under {ledger.store.uri}.",
            hint="Nothing was changed. `jobs list` shows the keys; they start with ledger/.",
        )
    return entry


def look(ledger: Ledger, key: str) -> RecordEntry | None:
    """The entry at `key`; ``None`` if there is none."""
    try:
        found = ledger.read(key)
        if found is None and key not in ledger.store.keys(key):  # a listed record that can't be read is an error
            return None
    except Exception as error:  # a damaged record must not stop the listing
        return RecordEntry(key, None, as_outcome(error))
    gone = LedgerError(f"Record {key} under {ledger.store.uri} is listed but can't be read.")
    return RecordEntry(key, found, gone if found is None else None)


def summary(entry: RecordEntry) -> dict[str, Any]:
    """A summary of an entry, as plain values."""
    if entry.found is None:
        return {"key": entry.key, "state": entry.status, "error": entry.error.message if entry.error else None}
    record = entry.found.record
    return {
        "key": entry.key,
        "state": entry.status,
        "age_seconds": round(entry.found.age, 1),
        "gateway": record.gateway,
        "model": record.model,
        "job_id": record.job_id,
        "extra_jobs": record.extra_jobs,
        "cost": record.cost,
        "submitted_at": iso(record.submitted_at or record.claimed_at),
        "landed_at": None if record.landed_at is None else iso(record.landed_at),
    }


def detail(entry: RecordEntry) -> dict[str, Any]:
    """All public details of an entry, and what to do about it."""
    found = entry.readable()
    values = dataclasses.asdict(found.record)
    values["links"] = len(values["links"])
    if values["prompt"] is None:
        del values["prompt"]
    said = [RECORD_STATUSES[entry.status], *([str(found.record.error)] if found.record.error else [])]
    return {
        "state": entry.status,
        "next": " ".join(said),
        "age_seconds": round(found.age, 1),
        "record": values,
    }
