"""What Airflow itself remembers of a submission, beside the ledger: its task state store (Airflow 3.3).

What must stay true: record and claim are remembered before the paid request is sent, so that a record that is missing
later is noticed; a job whose record could not be written is remembered until it can; nothing but ids is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_geminiimg.exceptions import GeminiImageError, LedgerError
from airflow_provider_geminiimg.landing import in_thread
from airflow_provider_geminiimg.ledger import Found, Item, Ledger, Record
from airflow_provider_geminiimg.order import Marker


async def remember(marker: Marker | None, record: Record) -> None:
    """Let Airflow remember a record: that it was claimed, and its job where it has one."""
    if marker is not None:
        job = {} if record.job_id is None else {"job_id": record.job_id}
        await in_thread(marker.set, {"record": record.key, "claim": record.claim, **job})


async def look(ledger: Ledger, item: Item, marker: Marker | None) -> Found | None:
    """The record that decides for `item`, and what Airflow knows better than it.

    :raises LedgerError: Airflow remembers a record that is not there; or the one that is there can't be read.
    :raises StorageError: the store failed.
    """
    found = await in_thread(ledger.latest, item)
    if marker is None or (found is not None and not _lacks_its_answer(found.record)):
        return found
    mark = await in_thread(marker.get)
    if mark is not None and found is not None:
        return await _recalled(ledger, found, mark)
    if mark is not None:
        await _check_excuse(ledger, mark)
    return found


def _lacks_its_answer(record: Record) -> bool:
    """Whether an answer may be missing on it. A failure without a job may be a person's word, who knew of no job."""
    return record.job_id is None and record.state in ("intent", "failed")


async def _check_excuse(ledger: Ledger, mark: Mapping[str, Any]) -> None:
    """Refuse to go on without a record, unless a person had it removed."""
    key, claim = str(mark.get("record")), str(mark.get("claim"))
    if not await in_thread(ledger.is_excused, key, claim):
        raise LedgerError(
            f"Airflow remembers record {key} of an earlier attempt, but it is not under {ledger.store.uri}: the "
            "ledger is not shared between workers, or was removed.",
            hint="Nothing was sent. Set [geminiimg] root to storage that all workers share. If the record was removed "
            "on purpose, a DAG run with a new run id buys the picture.",
        )


async def _recalled(ledger: Ledger, found: Found, mark: Mapping[str, Any]) -> Found:
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
        record = await in_thread(ledger.change, record.key, submitted)
    return replace(found, record=record)
