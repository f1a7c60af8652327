"""A copy of record ids in Airflow's task state store (since Airflow 3.3), besides the ledger.

Invariants: key and claim of a record are stored before the paid request is sent, so that a missing record is noticed
later. A job id that could not be written to its record is stored here. Only ids are stored. A missing entry means
something only if the record says that it was stored (`Record.told`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import Item, folder_of
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.purchase.order import Marker
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError


async def save_marker(marker: Marker | None, record: Record) -> None:
    """Store key and claim of a record in the task state store, with its job id if it has one."""
    if marker is not None:
        job = {} if record.job_id is None else {"job_id": record.job_id}
        await asyncio.to_thread(marker.set, {"record": record.key, "claim": record.claim, **job})


async def is_task_state_lost(record: Record, marker: Marker | None) -> bool:
    """Whether Airflow has removed the entry of a record from the task state store.

    Either the task was cleared (Airflow 3.4), or its DAG run was deleted and created again, or its loop iteration was
    created again.

    :param record: the deciding record of its item.
    :raises LedgerError: the entry has another claim, so another Airflow writes to the records of this task.
    """
    if marker is None or record.told is None or record.told == await asyncio.to_thread(marker.token):
        return False
    mark = await asyncio.to_thread(marker.get)
    if mark is None or _is_later(mark, record):  # a later record that is missing: see `refuse_if_lost`
        return True
    if mark.get("claim") == record.claim:
        return False
    raise LedgerError(
        f"Record {record.key} was written by another process: Airflow's task state has {mark.get('record')} with "
        "another claim. Another Airflow seems to use the same root and namespace for a DAG of the same name.",
        billed=Billed.UNKNOWN,
        hint="Nothing was sent from here. Give each Airflow its own [geminiimg] namespace (or root), then run the DAG "
        "with a new run id. `jobs list` shows what was paid for.",
    )


async def refuse_if_lost(ledger: Ledger, item: Item, record: Record, marker: Marker | None) -> None:
    """Refuse to buy if the task state store has a later record that is missing and was not removed by a person.

    :param record: the last existing record.
    :raises LedgerError: there was a later record.
    """
    mark = None if marker is None else await asyncio.to_thread(marker.get)
    if mark is not None and (_is_later(mark, record) or not str(mark.get("record")).startswith(f"{item.path}/")):
        await _check_tombstone(ledger, item, mark)


def _is_later(mark: Mapping[str, Any], record: Record) -> bool:
    """Whether the entry names a later record of the same item than `record`."""
    folder, _, name = str(mark.get("record")).rpartition("/")
    number = name.removesuffix(".json")
    return folder == folder_of(record.key) and number.isdecimal() and int(number) > record.n


async def look(ledger: Ledger, item: Item, marker: Marker | None) -> StoredRecord | None:
    """The last record of `item`, completed with the job id from the task state store if the record lacks it.

    :raises LedgerError: the task state store has a record that is missing; or the record can't be read.
    :raises StorageError: the store failed.
    """
    found = ledger.latest(item) if ledger.is_known_absent(item) else await asyncio.to_thread(ledger.latest, item)
    if marker is None or (found is not None and not _lacks_its_answer(found.record)):
        return found
    mark = await asyncio.to_thread(marker.get)
    if mark is not None and (found is None or _is_later(mark, found.record)):  # created after the records were listed
        found = await asyncio.to_thread(ledger.latest, item)
    if mark is not None and found is not None:
        return await _recalled(ledger, found, mark)
    if mark is not None:
        await _check_tombstone(ledger, item, mark)
    return found


def _lacks_its_answer(record: Record) -> bool:
    """Whether the answer may be missing. A failed record without a job id may have been resolved by hand."""
    return record.job_id is None and record.state in ("intent", "failed")


async def _check_tombstone(ledger: Ledger, item: Item, mark: Mapping[str, Any]) -> None:
    """Refuse to continue without a record, unless a person removed it."""
    key, claim = str(mark.get("record")), str(mark.get("claim"))
    if await asyncio.to_thread(ledger.has_tombstone, key, claim):
        return
    if key.split("/")[1:2] != item.path.split("/")[1:2]:
        raise other_namespace(f"record {key}", item.namespace)
    raise LedgerError(
        f"Airflow's task state has record {key} of an earlier attempt, but it is not under {ledger.store.uri}: "
        "workers do not share the ledger, or the record was removed.",
        hint="Nothing was sent. Set [geminiimg] root to storage that all workers share. If the record was removed "
        "on purpose, a DAG run with a new run id buys the image.",
    )


def other_namespace(saved: str, namespace: str) -> LedgerError:
    """The error if an earlier attempt wrote under another namespace."""
    return LedgerError(
        f"Airflow's task state has {saved} of an earlier attempt, which is not in namespace {namespace!r}.",
        hint="Nothing was sent. Set [geminiimg] namespace back to its old value, then retry; or run the DAG with a new "
        "run id, which buys the images again.",
    )


async def _recalled(ledger: Ledger, found: StoredRecord, mark: Mapping[str, Any]) -> StoredRecord:
    """The record with the job id from the task state store, which is now written to the record."""
    job_id = mark.get("job_id")
    if not job_id or mark.get("claim") != found.record.claim:
        return found

    def submitted(stored: Record) -> Record | None:
        if not _lacks_its_answer(stored) or stored.claim != mark["claim"]:
            return None
        return replace(stored, state="submitted", job_id=str(job_id), submitted_at=stored.claimed_at, outcome=None)

    record = submitted(found.record) or found.record
    with contextlib.suppress(GeminiImageError):  # if the write fails again, the image can still land
        record = await asyncio.to_thread(ledger.change, record.key, submitted)
    return replace(found, record=record)
