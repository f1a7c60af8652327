"""The next step for an image that another task of the DAG may have (``reuse="dag"``): a pure function.

Invariants:

- It is called only for a `Submit`, because the records of the task itself come first.
- The record of another task is treated like an own record: an image that may be paid for is not bought again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import index_key
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.purchase.copying import Intact
from airflow_provider_geminiimg.core.purchase.decision import (
    Policy,
    Refuse,
    Submit,
    WaitForRecord,
    is_out_of_reach,
)
from airflow_provider_geminiimg.core.storage import Store
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    StorageError,
    TimedOutError,
)

ENTRY_SECONDS = 60.0
"""How long an entry may be there without its record, by the store's clock, before another task takes it over."""

_ANCESTORS = 20  # earlier records that the record of a copy names


@dataclass(frozen=True)
class Claim:
    """Submit the request, after claiming its index entry.

    :param step: the submission, with its reason.
    :param over: the index entry to replace; ``None`` if there is none.
    """

    step: Submit
    over: Entry | None

    def write(self, store: Store, wanted: Record) -> bool:
        """Write the index entry for `wanted`; ``False`` if another task was first.

        :raises LedgerError: the entry of the other task can't be read.
        :raises StorageError: the store failed.
        """
        return write_entry(store, index_key(wanted.key, wanted.fingerprint), wanted, self.over)


@dataclass(frozen=True)
class CopyFrom:
    """Copy the image that another task landed.

    :param source: the record of the other task.
    :param images: the bytes of its images, verified by their hashes.
    """

    source: Record
    images: Sequence[bytes] = field(default=(), repr=False)

    @property
    def sha256(self) -> str:
        """Hex digest of the first image."""
        return str((self.source.manifest or {})["images"][0]["sha256"])


ReuseDecision = Claim | CopyFrom | WaitForRecord | Refuse


@dataclass(frozen=True)
class IndexedImage:
    """What the index of the DAG says about an image.

    :param entry: the index entry; ``None`` if there is none.
    :param own: whether `entry` names a record of this task instance.
    :param found: the record that `entry` names, if it exists and has the same request.
    :param waited: seconds since the job of `found` was submitted.
    :param intact: for a landed record, whether its image is unchanged.
    :param images: the bytes of its images, if `intact` is ``"there"``.
    """

    entry: Entry | None
    own: bool = False
    found: StoredRecord | None = None
    waited: float = 0.0
    intact: Intact = "unknown"
    images: Sequence[bytes] = field(default=(), repr=False)


def decide_reuse(step: Submit, known: IndexedImage, policy: Policy, timeout: float) -> ReuseDecision:
    """The next step for an image that this task would buy.

    :param step: the step according to the task's own records.
    :param known: what the index says.
    :param policy: the options of this attempt.
    :param timeout: seconds that a job may take from its submit.
    """
    entry, found = known.entry, known.found
    if entry is None or known.own or step.regenerate:
        return Claim(step, entry)
    if found is None:
        return _unwritten(step, entry)
    record = found.record
    if record.state == "landed":
        return _landed(step, entry, record, known)
    if record.state == "failed":
        return _failed(step, entry, record)
    if record.state == "intent":
        return _intent(step, entry, found, policy)
    if isinstance(record.error, OutcomeUnknownError):
        return _unknown(step, entry, record, policy)
    if is_out_of_reach(record.error) or known.waited >= timeout:
        return Refuse(_left_behind(record))
    return WaitForRecord(timeout - known.waited)


def _unwritten(step: Submit, entry: Entry) -> ReuseDecision:
    left = ENTRY_SECONDS - entry.age
    why = f"record {entry.record}, which the index names, was never written"
    return WaitForRecord(left) if left > 0 else _buy(step, entry, why)


def _intent(step: Submit, entry: Entry, found: StoredRecord, policy: Policy) -> ReuseDecision:
    if found.record.outcome is None and found.age < found.record.answer_within:
        return WaitForRecord(found.record.answer_within - found.age)
    return _unknown(step, entry, found.record, policy)


def _buy(step: Submit, entry: Entry, why: str) -> Claim:
    return Claim(replace(step, why=why), entry)


def _landed(step: Submit, entry: Entry, record: Record, known: IndexedImage) -> ReuseDecision:
    if known.intact == "there":
        return CopyFrom(record, known.images)
    if known.intact != "unknown":
        what = "is gone from storage" if known.intact == "gone" else "has changed since it landed"
        return _buy(step, entry, f"the image of record {record.key} {what}")
    return Refuse(
        StorageError(
            f"Can't tell whether the image of record {record.key}, which has the same request, is still in storage.",
            hint="Nothing was sent. Give the worker access to it, then retry.",
        )
    )


def _failed(step: Submit, entry: Entry, record: Record) -> ReuseDecision:
    known = record.error
    if record.buy_again:
        return _buy(step, entry, f"a person resolved record {record.key} as resubmit")
    if known is not None and known.billed is Billed.NO:
        return _buy(step, entry, f"record {record.key} with the same request failed without cost")
    error = known or OutcomeUnknownError("The record does not say why.")
    return Refuse(
        error.evolve(
            message=f"Record {record.key} with the same request failed: {error.message}",
            hint='Clear its task with on_clear="regenerate" to buy the image again; or clear this task with '
            'reuse="task", which reads only its own records.',
        )
    )


def _unknown(step: Submit, entry: Entry, record: Record, policy: Policy) -> ReuseDecision:
    spent = step.resubmission and step.replaces is not None and step.replaces.state == "failed"
    if policy.on_unknown == "resubmit" and not spent:
        why = f'the outcome of record {record.key} is unknown and on_unknown is "resubmit"'
        return _buy(replace(step, resubmission=True), entry, why)
    return Refuse(
        OutcomeUnknownError(
            f"It is not known whether record {record.key}, which has the same request, was paid for. Nothing was sent."
        )
    )


def _left_behind(record: Record) -> GeminiImageError:
    job = f"its job {record.job_id}" if record.job_id else "its result"
    return TimedOutError(
        f"Record {record.key} with the same request was paid for, but {job} has not landed.",
        hint=f"`jobs collect` or a retry of its task ({record.key}) stores the image; a retry of this task copies it.",
    )


def copy_of(record: Record, source: Record) -> Record:
    """The record of a copy before the copy is made. Until the copy has landed, it is a failure without cost.

    :param record: the record of this task, as for a submission.
    :param source: the record of the image.
    """
    cost: dict[str, Any] = {"amount": 0.0, "currency": source.cost.get("currency"), "basis": "reused"}
    unfinished = NotSentError(f"Copying the image of record {source.key} was not finished.", hint="A retry does it.")
    taken = replace(
        record,
        cost=cost,
        reused_from=source.key,
        copied_from=[*filter(None, [source.reused_from]), *source.copied_from][:_ANCESTORS],
        job_id=source.job_id,
        api_host=source.api_host,
        key_digest=source.key_digest,
    )
    return with_error(taken, unfinished, "failed")
