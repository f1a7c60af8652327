"""Records of extra jobs: what another concurrent attempt paid for becomes a record of its own.

Invariant: the record of an extra job is always the same, so two collects create it only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import replace

from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger, process_identity


def adopted(record: Record, job_id: str) -> Record:
    """The record of an extra job of `record`. It is always the same."""
    digest = hashlib.sha256(f"{record.gateway}\n{job_id}".encode()).hexdigest()
    folder, _, _ = record.key.rpartition("/")
    place = record.destination
    return replace(
        record,
        key=f"{folder.rpartition('/')[0]}/x{digest[:16]}/1.json",
        n=1,
        state="submitted",
        claim=digest[:32],
        **process_identity(),
        answer_within=0.0,  # no other attempt is waiting for the answer
        # The name contains a hash of the job, so no other image can have it.
        destination=Destination(place.directory, f"{place.stem}{record.suffix}-x{digest[:16]}"),
        suffix="",
        resubmission=False,
        job_id=job_id,
        submitted_at=record.submitted_at or record.claimed_at,
        landed_at=None,
        deferrals=0,
        links=[],
        spooled=[],
        extra_jobs=[],
        outcome=None,
        manifest=None,
        copies=[],
        asked=None,
    )


def is_known(ledger: Ledger, wanted: Record) -> bool:
    """Whether the record of an extra job exists, or was removed by a person."""
    return ledger.read(wanted.key) is not None or ledger.has_tombstone(wanted.key, wanted.claim)


def has_unknown_jobs(ledger: Ledger, record: Record, known: Set[str] = frozenset()) -> bool:
    """Whether an extra job of `record` has no record of its own yet.

    :param known: keys of existing records.
    """
    wanted = [adopted(record, job_id) for job_id in record.extra_jobs]
    return any(each.key not in known and not is_known(ledger, each) for each in wanted)
