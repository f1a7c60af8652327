"""Which record a job belongs to: one entry for each job that a gateway was paid for.

What must stay true: one job belongs to one record, however its id gets there (a submit's answer, a person's
`resolve`, an extra job, a trigger's event); who can't have it learns whose it is; an entry says nothing any more once
its record does not hold the job. Records that nothing was paid for (copies, and a sensor's of a job from elsewhere)
own no job.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, is_record_key, job_key
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, with_error
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LedgerError,
    OutcomeUnknownError,
    StorageError,
)

SETTLE_SECONDS = 60.0
"""How long an entry counts though its record does not hold the job, by the store's clock: it is being written."""

_CONFLICTS = 5
_READERS = 8


def own(ledger: Ledger, record: Record, job_id: str, *, instead_of: Collection[str] = ()) -> str | None:
    """Let a job be `record`'s.

    :param instead_of: keys of records that hand it on.
    :returns: the key of the record that has it already; ``None``: it is this one's now.
    :raises LedgerError: whose it is can't be read.
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
    """The key of the record that has a job, as far as it is noted."""
    entry = read_entry(ledger.store, job_key(gateway, job_id))
    return entry.record if entry is not None and _holds(ledger, entry, job_id) else None


def search(ledger: Ledger, record: Record, job_id: str) -> str | None:
    """The key of another record that has a job: all of them are read, because those of old have no entry.

    What can't be read is passed over.
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
    """What to raise where a job was handed to a task that another record stands for.

    :param key: of the record, or the item, that it was handed to.
    """
    return LedgerError(
        f"Job {job_id} is that of record {other}, so it says nothing about {key}.",
        billed=Billed.UNKNOWN,
        hint="Nothing was sent. Clear the task that submitted: it finds out what became of its request.",
    )


def answered_with_anothers(record: Record, job_id: str, other: str) -> OutcomeUnknownError:
    """What to raise where the gateway gave a request the job that another record stands for."""
    return OutcomeUnknownError(
        f"The gateway answered with job {job_id}, which is that of record {other}: that says nothing about this "
        f"request. Record {record.key}."
    )


def take_back(ledger: Ledger, record: Record, other: str, log: Any) -> OutcomeUnknownError:
    """Take another record's job out of `record`, unless an image of it has landed there meanwhile.

    :returns: what the record says from then on.
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
    """Whether a job is one that `record` stands for."""
    paid_here = record.reused_from is None and record.operation != "unknown"
    return paid_here and job_id in (record.job_id, *record.extra_jobs)


def _holds(ledger: Ledger, entry: Entry, job_id: str) -> bool:
    found = ledger.read(entry.record)
    if found is None:
        return False
    being_written = entry.age < SETTLE_SECONDS and found.record.state != "landed"
    return being_written or has(found.record, job_id)


def key_of_job(job: Any) -> str:
    """The key of the record that a submit operator wrote."""
    key = job.get("record") if isinstance(job, Mapping) else None
    if not isinstance(key, str) or not is_record_key(key):
        raise BadRequestError(
            f"job{given(job)}: takes what GeminiImageSubmitOperator returned (its .output).",
            hint="The id of a job that was submitted elsewhere goes into job_id." if isinstance(job, str) else None,
        )
    return key
