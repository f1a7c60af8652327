"""The records of a namespace, one after the other: how each stands, and what a person does about it.

What must stay true: a record that can't be read is an entry like any other; no entry shows a link, and none shows a
prompt unless prompts are recorded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, is_record_key
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, StoredRecord
from airflow_provider_geminiimg.core.storage import encode_segment
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LedgerError,
    OutcomeUnknownError,
)

AT_ONCE = 8  # records that are read, or landed, at the same time

RecordStatus = Literal["waiting", "in-flight", "to-collect", "unknown", "landed", "failed", "unreadable"]

SETTLE = (
    "Look at the gateway's console whether the image was made and charged, then settle it: `jobs resolve` with "
    "--unpaid, --lost or --job, or with --resubmit to buy it again; or by `resolve` of GeminiImageCollectOperator."
)
STANDINGS: Mapping[RecordStatus, str] = {
    "waiting": "A request is under way and its answer may still come. Leave it alone.",
    "in-flight": "Paid for. An attempt may be collecting it right now. Leave it alone.",
    "to-collect": "Paid for, and not in storage yet. `jobs collect` lands it.",
    "unknown": f"Nobody knows whether it was paid for. {SETTLE}",
    "landed": "The image is in storage. Nothing is left to do.",
    "failed": "It ended without an image.",
    "unreadable": "The record can't be read, so what was paid for is not known.",
}
"""How a record can stand, and what that means for whoever reads it."""


@dataclass(frozen=True)
class RecordEntry:
    """One record, as it was found.

    :param key: where it lies, relative to the root.
    :param found: the record; ``None``: it can't be read.
    :param error: why it can't be read.
    """

    key: str
    found: StoredRecord | None
    error: GeminiImageError | None = None

    @property
    def standing(self) -> RecordStatus:
        """See `STANDINGS`."""
        return "unreadable" if self.found is None else standing(self.found)

    def readable(self) -> StoredRecord:
        """The record.

        :raises GeminiImageError: it can't be read.
        """
        if self.found is None:
            raise self.error or LedgerError(f"Record {self.key} can't be read.")
        return self.found


@dataclass(frozen=True)
class Scope:
    """Which records are meant; ``None``: any.

    :param namespace: as ``[geminiimg] namespace`` says.
    """

    namespace: str
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None

    @property
    def prefix(self) -> str:
        """What the keys of all these records start with."""
        known = itertools.takewhile(lambda part: part is not None, self._parts())
        return "/".join([LEDGER, *(part for part in known if part is not None), ""])

    def holds(self, key: str) -> bool:
        """Whether `key` is one of these records."""
        return is_record_key(key) and self.covers(key)

    def covers(self, key: str) -> bool:
        """Whether the task instance of `key`, be it of a record or of what was kept, is meant."""
        found = key.split("/")[1:5]
        return len(found) == 4 and all(w in (None, f) for w, f in zip(self._parts(), found, strict=True))

    def _parts(self) -> list[str | None]:
        asked = (self.namespace, self.dag_id, self.run_id, self.task_id)
        return [None if part is None else encode_segment(part) for part in asked]


def standing(found: StoredRecord) -> RecordStatus:
    """How a record stands."""
    record = found.record
    if record.state in ("landed", "failed"):
        return record.state
    young = found.age < record.answer_within
    if record.state == "intent":
        return "waiting" if young and record.outcome is None else "unknown"
    if isinstance(record.error, OutcomeUnknownError):
        return "unknown"
    return "in-flight" if young else "to-collect"


def billed(record: Record) -> Billed:
    """Whether money was spent on what a record stands for, as far as it says."""
    if record.error is not None:
        return record.error.billed
    if record.reused_from is not None:
        return Billed.NO
    return Billed.UNKNOWN if record.state == "intent" else Billed.YES


async def batches(ledger: Ledger, scope: Scope) -> AsyncIterator[list[RecordEntry]]:
    """The records of `scope` in the order of their keys, some at a time.

    :raises StorageError: they can't be listed.
    """
    keys = await asyncio.to_thread(lambda: filter(scope.holds, ledger.store.keys(scope.prefix)))
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(keys, AT_ONCE))):
        entries = await asyncio.gather(*(asyncio.to_thread(look, ledger, key) for key in batch))
        yield [entry for entry in entries if entry is not None]


async def walk(ledger: Ledger, scope: Scope) -> AsyncIterator[RecordEntry]:
    """The records of `scope`, one by one."""
    async for batch in batches(ledger, scope):
        for entry in batch:
            yield entry


def entry_at(ledger: Ledger, key: str) -> RecordEntry:
    """The record at `key`.

    :raises BadRequestError: there is none.
    """
    entry = look(ledger, key) if is_record_key(key) else None
    if entry is None:
        raise BadRequestError(
            f"There is no record {key!r} under {ledger.store.uri}.",
            hint="Nothing was changed. `jobs list` shows the keys; they begin with ledger/.",
        )
    return entry


def look(ledger: Ledger, key: str) -> RecordEntry | None:
    """The entry at `key`; ``None`` where there is none."""
    try:
        found = ledger.read(key)
        if found is None and key not in ledger.store.keys(key):  # else it is listed and not there: no "no record"
            return None
    except Exception as error:  # whatever one record can do to whoever reads it
        return RecordEntry(key, None, as_outcome(error))
    gone = LedgerError(f"Record {key} under {ledger.store.uri} is listed but can't be read.")
    return RecordEntry(key, found, gone if found is None else None)


def summary(entry: RecordEntry) -> dict[str, Any]:
    """An entry in one line, as plain values."""
    if entry.found is None:
        return {"key": entry.key, "state": entry.standing, "error": entry.error.message if entry.error else None}
    record = entry.found.record
    return {
        "key": entry.key,
        "state": entry.standing,
        "age_seconds": round(entry.found.age, 1),
        "gateway": record.gateway,
        "model": record.model,
        "job_id": record.job_id,
        "extra_jobs": record.extra_jobs,
        "cost": record.cost,
    }


def detail(entry: RecordEntry) -> dict[str, Any]:
    """All that an entry may show, and what to do about it."""
    found = entry.readable()
    values = dataclasses.asdict(found.record)
    values["links"] = len(values["links"])
    if values["prompt"] is None:
        del values["prompt"]
    said = [STANDINGS[entry.standing], *([str(found.record.error)] if found.record.error else [])]
    return {
        "state": entry.standing,
        "next": " ".join(said),
        "age_seconds": round(found.age, 1),
        "record": values,
    }
