"""Index of jobs: the record that owns each paid job.

Invariants: one job belongs to one record, regardless of the source of its id (a submit's answer, `resolve`, an extra
job, a trigger's event). If the job already has an owner, the caller receives the owner's key. An entry is void if its
record does not contain the job. Records without a payment (copies, and a sensor's record of an external job) own no
job.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, is_record_key, job_key
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LedgerError,
    OutcomeUnknownError,
    StorageError,
)

WRITE_SECONDS = 60.0
"""Age up to which an entry is valid although its record does not contain the job yet, by the store's clock."""

_CONFLICTS = 5
_READERS = 8


def own(ledger: Ledger, record: Record, job_id: str, *, instead_of: Collection[str] = ()) -> str | None:
    """Make `record` the owner of a job.

    :param instead_of: keys of records that give up the job.
    :returns: the key of the record that already owns it; ``None`` if `record` owns it now.
    :raises LedgerError: the entry cannot be read.
    :raises StorageError: the store failed.
    """
    key = job_key(record.gateway, job_id)
    entry: Entry | None = None
    for _ in range(_CONFLICTS):
        if write_entry(ledger.store, key, record, entry):
            return None
        entry = read_entry(ledger.store, key)
        if entry is not None and entry.record not in (record.key, *instead_of) and _holds(ledger, entry, job_id):
            return entry.record
    raise StorageError(f"Entry {key} under {ledger.store.uri} changed {_CONFLICTS} times while it was being written.")


def owner(ledger: Ledger, gateway: str, job_id: str) -> str | None:
    """Return the key of the record that owns a job, according to the index; ``None`` without a valid entry."""
    entry = read_entry(ledger.store, job_key(gateway, job_id))
    return entry.record if entry is not None and _holds(ledger, entry, job_id) else None


def search(ledger: Ledger, record: Record, job_id: str) -> str | None:
    """Return the key of another record that contains a job. Reads all records, because old ones have no entry.

    Records that cannot be read are skipped.
    """

    def is_its(key: str) -> bool:
        try:
            found = ledger.read(key)
        except GeminiImageError:
            return False
        return found is not None and found.record.gateway == record.gateway and has(found.record, job_id)

    keys = (key for key in ledger.store.keys(f"{LEDGER}/") if key != record.key and is_record_key(key))
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(itertools.islice(keys, 8 * _READERS)):
            for key, its in zip(some, pool.map(is_its, some), strict=True):
                if its:
                    return key
    return None


def disown(ledger: Ledger, record: Record) -> None:
    """Remove the entries of a record that is about to be removed."""
    for job_id in filter(None, (record.job_id, *record.extra_jobs)):
        key = job_key(record.gateway, job_id)
        entry = read_entry(ledger.store, key)
        if entry is not None and entry.record == record.key:
            ledger.store.delete(key)


def another_records_job(job_id: str, other: str, key: str) -> LedgerError:
    """Return the error for a job that was passed to a task, but belongs to another record.

    :param key: key of the task's record or item.
    """
    return LedgerError(
        f"Job {job_id} belongs to record {other}, so it says nothing about {key}.",
        billed=Billed.UNKNOWN,
        hint="Nothing was sent. Clear the task that submitted: it finds out what became of its request.",
    )


def answered_with_anothers(record: Record, job_id: str, other: str) -> OutcomeUnknownError:
    """Return the error for a gateway answer that contains the job of another record."""
    return OutcomeUnknownError(
        f"The gateway answered with job {job_id}, which belongs to record {other}: that says nothing about this "
        f"request. Record {record.key}."
    )


def take_back(ledger: Ledger, record: Record, other: str, log: Any) -> OutcomeUnknownError:
    """Remove another record's job from `record`, unless an image of it has been stored in the meantime.

    :returns: the error that is written to the record.
    """
    unknown = answered_with_anothers(record, str(record.job_id), other)

    def without(stored: Record) -> Record | None:
        if stored.claim != record.claim or stored.state not in ("intent", "submitted", "answered"):
            return None
        if stored.state != "intent" and stored.job_id != record.job_id:
            return None
        intent = replace(stored, state="intent", job_id=None, submitted_at=None, links=[], spooled=[])
        return with_error(intent, unknown)

    try:
        ledger.change(record.key, without, takes_back=True)
    except GeminiImageError as failure:
        log.error("Record %s could not be written (%s); it keeps job %s.", record.key, failure.kind, record.job_id)
    return unknown


def has(record: Record, job_id: str) -> bool:
    """Return whether `record` paid for a job."""
    paid_here = record.reused_from is None and record.operation != "unknown"
    return paid_here and job_id in (record.job_id, *record.extra_jobs)


def _holds(ledger: Ledger, entry: Entry, job_id: str) -> bool:
    found = ledger.read(entry.record)
    if found is None:
        return False
    being_written = entry.age < WRITE_SECONDS and found.record.state != "landed"
    return being_written or has(found.record, job_id)


def key_of_job(job: Any) -> str:
    """Return the key of the record that a submit operator returned.

    :raises BadRequestError: `job` is not the result of a submit operator.
    """
    key = job.get("record") if isinstance(job, Mapping) else None
    if not isinstance(key, str) or not is_record_key(key):
        raise BadRequestError(
            f"job{given(job)}: takes what GeminiImageSubmitOperator returned (its .output).",
            hint="The id of a job that was submitted elsewhere goes into job_id." if isinstance(job, str) else None,
        )
    return key
