"""Resolves a record by the decision of a person, if its outcome is unknown.

Invariants: only three kinds of records can be resolved: an unknown outcome, an image that can't be downloaded any more,
and a job whose connection has changed. A record that changes in the meantime is not modified. A second, identical
resolution changes nothing. A job never gets two records.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from airflow_provider_geminiimg.core.gateways import get_gateway
from airflow_provider_geminiimg.core.ledger.job_index import own, owner, search
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.purchase.decision import is_out_of_reach
from airflow_provider_geminiimg.core.reconcile.scan import entry_at, record_status
from airflow_provider_geminiimg.core.validation.resolution import Resolution, Word
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LinkExpiredError,
    UpstreamFailedError,
)

_INSTEAD: Mapping[str, tuple[str, str]] = {
    # status: (why it can't be resolved, what to do instead)
    "waiting": ("an attempt may still be waiting for its answer", "Wait until the answer is overdue."),
    "in-flight": ("it was paid for, and its image can be collected", "`jobs collect` stores the image."),
    "to-collect": ("it was paid for, and its image can be collected", "`jobs collect` stores the image."),
    "out of reach": (
        "it was paid for, and its image can't be downloaded any more",
        "Use --lost, or --resubmit to buy the image again.",
    ),
    "landed": ("its image has landed", 'A Clear with on_clear="regenerate" buys another one.'),
    "failed": ("it has already failed", "`jobs show` has the reason."),
}
_ALLOWED: Mapping[str, Container[Word]] = {
    # status: allowed decisions; none for other statuses
    "unknown": ("unpaid", "lost", "resubmit", "job"),
    "out of reach": ("lost", "resubmit"),
    "connection changed": ("unpaid", "lost", "resubmit", "job"),
}


def resolve(ledger: Ledger, key: str, resolution: Resolution, *, dry_run: bool = False) -> bool:
    """Apply a decision to the record at `key`.

    :param resolution: the decision.
    :param dry_run: only check whether the record could be resolved. Default: ``False``.
    :returns: ``True`` if the record was resolved now, ``False`` if it was already resolved in the same way.
    :raises BadRequestError: there is no such record, it can't be resolved, it has changed in the meantime, or the job
        belongs to another record.
    :raises GeminiImageError: the record can't be read or written.
    """
    found = entry_at(ledger, key).readable()
    record = found.record
    if resolution.job_id is not None:
        get_gateway(record.gateway).status(resolution.job_id, model=record.wire_model)  # raises if it can't be a job id
    if _is_resolved(record, resolution):
        return False
    status = _status(found)
    if resolution.word not in _ALLOWED.get(status, ()):
        raise _refusal(record, status)
    if resolution.job_id is not None:
        _refuse_anothers_job(ledger, record, resolution.job_id, dry_run)
    wanted = _resolved(record, resolution)
    if not dry_run:
        ledger.change(key, lambda stored: _unless_changed(stored, record, wanted))
        for spooled in record.spooled:
            ledger.store.delete(spooled)
    return True


def _status(found: StoredRecord) -> str:
    record, status = found.record, record_status(found)
    if record.state not in ("submitted", "answered") or status == "unknown":
        return status
    if isinstance(
        record.error, BadRequestError
    ):  # an answered request has a BadRequestError only after its connection changed
        return "connection changed"
    return "out of reach" if is_out_of_reach(record.error) else status


def _refuse_anothers_job(ledger: Ledger, record: Record, job_id: str, dry_run: bool) -> None:
    noted = owner(ledger, record.gateway, job_id)
    other = noted if noted not in (None, record.key) else search(ledger, record, job_id)
    if other is None and not dry_run:
        other = own(ledger, record, job_id)
    if other is not None:
        raise BadRequestError(
            f"Record {record.key} can't be resolved: job {job_id} belongs to record {other}.",
            billed=record.billed,
            hint="Nothing was changed. Find the job that matches the time and the prompt of this request.",
        )


def _unless_changed(stored: Record, seen: Record, wanted: Record) -> Record | None:
    if stored == wanted:
        return None
    if stored != seen:
        raise BadRequestError(
            f"Record {seen.key} has just changed.", hint="Nothing was resolved. Check the record again."
        )
    return wanted


def _resolved(record: Record, resolution: Resolution) -> Record:
    """`record` after the decision."""
    if resolution.word == "job":
        since = record.submitted_at or record.claimed_at
        return replace(
            record,
            state="submitted",
            job_id=resolution.job_id,
            extra_jobs=[job for job in record.extra_jobs if job != resolution.job_id],
            submitted_at=since,
            answer_within=0.0,  # no attempt waits for the answer, so the next collect may take the record
            outcome=None,
        )
    error = _outcome(resolution.word)
    if resolution.word == "resubmit":
        error = error.evolve(billed=record.billed)
    resolved = with_error(record, error, "failed")
    return replace(resolved, links=[], spooled=[], buy_again=resolution.word == "resubmit")


def _outcome(word: Word) -> GeminiImageError:
    if word == "resubmit":
        return UpstreamFailedError(
            "Settled by hand: buy it again, whatever became of this request.",
            retryable=True,
            hint="The next retry or Clear of its task buys it once.",
        )
    if word == "unpaid":
        return UpstreamFailedError(
            "Settled by hand: the gateway did not charge for it.",
            billed=Billed.NO,
            retryable=True,
            hint="A retry or a Clear of its task submits again.",
        )
    return LinkExpiredError(
        "Settled by hand: the image is lost.", hint='Only a Clear with on_clear="regenerate" buys another one.'
    )


def _is_resolved(record: Record, resolution: Resolution) -> bool:
    if resolution.word == "job":
        return record.job_id == resolution.job_id
    # Compare only the message: other versions of this package may have other hints.
    return record.state == "failed" and (record.outcome or {}).get("message") == _outcome(resolution.word).message


def _refusal(record: Record, status: str) -> BadRequestError:
    why, instead = _INSTEAD[status]
    return BadRequestError(
        f"Record {record.key} can't be resolved: {why}.", billed=record.billed, hint=f"Nothing was changed. {instead}"
    )
