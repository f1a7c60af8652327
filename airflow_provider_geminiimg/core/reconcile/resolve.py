"""Settles what only a person can: a request of which nobody knows whether it was paid for.

What must stay true: nothing but an unknown outcome, an image that nobody can fetch any more, or a job whose connection
was changed is settled; a record that moves meanwhile is left as it is; settling again in the same way changes nothing;
a job that another record stands for is given to no second one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from airflow_provider_geminiimg.core.gateways import get_gateway
from airflow_provider_geminiimg.core.ledger.job_index import own, owner, search
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, StoredRecord, with_error
from airflow_provider_geminiimg.core.purchase.decision import is_out_of_reach
from airflow_provider_geminiimg.core.reconcile.resolution import Resolution, Word
from airflow_provider_geminiimg.core.reconcile.scan import billed, entry_at, standing
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LinkExpiredError,
    UpstreamFailedError,
)

_INSTEAD: Mapping[str, tuple[str, str]] = {
    # how it stands: (what is so, what to do instead)
    "waiting": ("an attempt may still be waiting for its answer", "Wait until that is overdue."),
    "in-flight": ("it was paid for, and is not lost", "`jobs collect` lands it."),
    "to-collect": ("it was paid for, and is not lost", "`jobs collect` lands it."),
    "out of reach": (
        "it was paid for, and can't be fetched any more",
        "Only --lost is left, or --resubmit to buy it again.",
    ),
    "landed": ("its image has landed", 'A Clear with on_clear="regenerate" buys another one.'),
    "failed": ("it has failed already", "`jobs show` says how."),
}
_ALLOWED: Mapping[str, Container[Word]] = {
    # how it stands: how it may be settled; otherwise not at all
    "unknown": ("unpaid", "lost", "resubmit", "job"),
    "out of reach": ("lost", "resubmit"),
    "connection changed": ("unpaid", "lost", "resubmit", "job"),
}


def resolve(ledger: Ledger, key: str, verdict: Resolution, *, dry_run: bool = False) -> bool:
    """Settle the record at `key`.

    :param dry_run: only find out whether it could be settled.
    :returns: whether it is settled now; ``False``: it was before, in the same way.
    :raises BadRequestError: there is no such record, there is nothing to settle, it moved meanwhile, or the job is
        another record's.
    :raises GeminiImageError: it can't be read or written.
    """
    found = entry_at(ledger, key).readable()
    record = found.record
    if verdict.job_id is not None:
        get_gateway(record.gateway).status(verdict.job_id, model=record.wire_model)  # refuses what can't be an id
    if _is_settled(record, verdict):
        return False
    how = _how(found)
    if verdict.word not in _ALLOWED.get(how, ()):
        raise _refusal(record, how)
    if verdict.job_id is not None:
        _refuse_anothers_job(ledger, record, verdict.job_id, dry_run)
    wanted = _settled(record, verdict)
    if not dry_run:
        ledger.change(key, lambda stored: _step(stored, record, wanted))
        for spooled in record.spooled:
            ledger.store.delete(spooled)
    return True


def _how(found: StoredRecord) -> str:
    record, how = found.record, standing(found)
    if record.state not in ("submitted", "answered") or how == "unknown":
        return how
    if isinstance(record.error, BadRequestError):  # nothing else leaves one on a request that was answered
        return "connection changed"
    return "out of reach" if is_out_of_reach(record.error) else how


def _refuse_anothers_job(ledger: Ledger, record: Record, job_id: str, dry_run: bool) -> None:
    noted = owner(ledger, record.gateway, job_id)
    other = noted if noted not in (None, record.key) else search(ledger, record, job_id)
    if other is None and not dry_run:
        other = own(ledger, record, job_id)
    if other is not None:
        raise BadRequestError(
            f"Record {record.key} can't be settled: job {job_id} is that of record {other}.",
            billed=billed(record),
            hint="Nothing was changed. Look for the job of this request's own time and prompt.",
        )


def _step(stored: Record, seen: Record, wanted: Record) -> Record | None:
    if stored == wanted:
        return None
    if stored != seen:
        raise BadRequestError(f"Record {seen.key} has just changed.", hint="Nothing was settled. Look at it again.")
    return wanted


def _settled(record: Record, verdict: Resolution) -> Record:
    """`record` as the verdict makes it."""
    if verdict.word == "job":
        since = record.submitted_at or record.claimed_at
        return replace(
            record,
            state="submitted",
            job_id=verdict.job_id,
            extra_jobs=[job for job in record.extra_jobs if job != verdict.job_id],
            submitted_at=since,
            answer_within=0.0,  # nobody waits for the answer any more, so that the next collect need not either
            outcome=None,
        )
    error = _outcome(verdict.word)
    if verdict.word == "resubmit":
        error = error.evolve(billed=billed(record))
    settled = with_error(record, error, "failed")
    return replace(settled, links=[], spooled=[], buy_again=verdict.word == "resubmit")


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


def _is_settled(record: Record, verdict: Resolution) -> bool:
    if verdict.word == "job":
        return record.job_id == verdict.job_id
    # By the message alone: another version of this package may have worded the rest.
    return record.state == "failed" and (record.outcome or {}).get("message") == _outcome(verdict.word).message


def _refusal(record: Record, how: str) -> BadRequestError:
    so, instead = _INSTEAD[how]
    return BadRequestError(
        f"Record {record.key} can't be settled: {so}.", billed=billed(record), hint=f"Nothing was changed. {instead}"
    )
