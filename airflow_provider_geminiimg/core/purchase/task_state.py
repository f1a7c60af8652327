"""What Airflow itself remembers of a submission, beside the ledger: its task state store (Airflow 3.3).

What must stay true: record and claim are remembered before the paid request is sent, so that a record that is missing
later is noticed; a job whose record could not be written is remembered until it can; nothing but ids is. What is not
remembered means something only where the record says that Airflow was told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import Item, folder_of
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, StoredRecord
from airflow_provider_geminiimg.core.purchase.order import Marker
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError


async def remember(marker: Marker | None, record: Record) -> None:
    """Let Airflow remember a record: that it was claimed, and its job where it has one."""
    if marker is not None:
        job = {} if record.job_id is None else {"job_id": record.job_id}
        await asyncio.to_thread(marker.set, {"record": record.key, "claim": record.claim, **job})


async def is_of_earlier_run(record: Record, marker: Marker | None) -> bool:
    """Whether Airflow was told of a record and remembers nothing of it: its DAG run was deleted, and made again.

    :param record: the one that decides for its item.
    :raises LedgerError: Airflow remembers another claim, so that somebody else writes this task's records.
    """
    if marker is None or record.told is None or record.told == await asyncio.to_thread(marker.token):
        return False
    mark = await asyncio.to_thread(marker.get)
    if mark is None or _is_later(mark, record):  # a later one that is gone: `refuse_if_lost`
        return True
    if mark.get("claim") == record.claim:
        return False
    raise LedgerError(
        f"Record {record.key} was written by somebody else: Airflow remembers {mark.get('record')} with another claim. "
        "Another Airflow seems to use the same root and the same namespace for a DAG of the same name.",
        billed=Billed.UNKNOWN,
        hint="Nothing was sent from here. Give each Airflow its own [geminiimg] namespace (or root), then run the DAG "
        "with a new run id. `jobs list` shows what was paid for.",
    )


async def refuse_if_lost(ledger: Ledger, item: Item, record: Record, marker: Marker | None) -> None:
    """Refuse to buy beside a record that Airflow remembers, that is not there, and that no person had removed.

    :param record: the last one that is there.
    :raises LedgerError: there was a later one.
    """
    mark = None if marker is None else await asyncio.to_thread(marker.get)
    if mark is not None and (_is_later(mark, record) or not str(mark.get("record")).startswith(f"{item.path}/")):
        await _check_excuse(ledger, item, mark)


def _is_later(mark: Mapping[str, Any], record: Record) -> bool:
    """Whether a record of the same item is remembered that comes after `record`."""
    folder, _, name = str(mark.get("record")).rpartition("/")
    number = name.removesuffix(".json")
    return folder == folder_of(record.key) and number.isdecimal() and int(number) > record.n


async def look(ledger: Ledger, item: Item, marker: Marker | None) -> StoredRecord | None:
    """The record that decides for `item`, and what Airflow knows better than it.

    :raises LedgerError: Airflow remembers a record that is not there; or the one that is there can't be read.
    :raises StorageError: the store failed.
    """
    found = await asyncio.to_thread(ledger.latest, item)
    if marker is None or (found is not None and not _lacks_its_answer(found.record)):
        return found
    mark = await asyncio.to_thread(marker.get)
    if mark is not None and found is not None:
        return await _recalled(ledger, found, mark)
    if mark is not None:
        await _check_excuse(ledger, item, mark)
    return found


def _lacks_its_answer(record: Record) -> bool:
    """Whether an answer may be missing on it. A failure without a job may be a person's word, who knew of no job."""
    return record.job_id is None and record.state in ("intent", "failed")


async def _check_excuse(ledger: Ledger, item: Item, mark: Mapping[str, Any]) -> None:
    """Refuse to go on without a record, unless a person had it removed."""
    key, claim = str(mark.get("record")), str(mark.get("claim"))
    if await asyncio.to_thread(ledger.has_tombstone, key, claim):
        return
    if key.split("/")[1:2] != item.path.split("/")[1:2]:
        raise other_namespace(f"record {key}", item.namespace)
    raise LedgerError(
        f"Airflow remembers record {key} of an earlier attempt, but it is not under {ledger.store.uri}: the "
        "ledger is not shared between workers, or was removed.",
        hint="Nothing was sent. Set [geminiimg] root to storage that all workers share. If the record was removed "
        "on purpose, a DAG run with a new run id buys the image.",
    )


def other_namespace(remembered: str, namespace: str) -> LedgerError:
    """What to raise where an earlier attempt wrote under another namespace."""
    return LedgerError(
        f"Airflow remembers {remembered} of an earlier attempt, which is of another namespace than {namespace!r}.",
        hint="Nothing was sent. Set [geminiimg] namespace back to what it was, then retry; or run the DAG with a new "
        "run id, which buys the images again.",
    )


async def _recalled(ledger: Ledger, found: StoredRecord, mark: Mapping[str, Any]) -> StoredRecord:
    """A record whose answer could not be written down then, with the answer, written down now."""
    job_id = mark.get("job_id")
    if not job_id or mark.get("claim") != found.record.claim:
        return found

    def submitted(stored: Record) -> Record | None:
        if not _lacks_its_answer(stored) or stored.claim != mark["claim"]:
            return None
        return replace(stored, state="submitted", job_id=str(job_id), submitted_at=stored.claimed_at, outcome=None)

    record = submitted(found.record) or found.record
    with contextlib.suppress(GeminiImageError):  # a root that still refuses writes need not keep the job from landing
        record = await asyncio.to_thread(ledger.change, record.key, submitted)
    return replace(found, record=record)
