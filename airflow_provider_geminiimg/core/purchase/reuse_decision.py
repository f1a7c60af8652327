"""What a task does about an image that it would buy and that another task of its DAG may have (``reuse="dag"``): a pure
function.

What must stay true:

- Nothing is decided here but what becomes of a `Submit`: what a task's own records say comes first.
- Another task's record is followed like one's own: what may have been paid for is not bought beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import index_key
from airflow_provider_geminiimg.core.ledger.records import Record, StoredRecord, with_error
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

_ANCESTORS = 20  # of a copy, that its record names


@dataclass(frozen=True)
class Buy:
    """Buy it, once the index says so.

    :param step: the submission, and why.
    :param over: the entry that the buyer's own replaces; ``None``: there is none yet.
    """

    step: Submit
    over: Entry | None

    def claim(self, store: Store, wanted: Record) -> bool:
        """Let the index name `wanted`; ``False`` where another task was first.

        :raises LedgerError: what the other one wrote can't be read.
        :raises StorageError: the store failed.
        """
        return write_entry(store, index_key(wanted.key, wanted.fingerprint), wanted, self.over)


@dataclass(frozen=True)
class Take:
    """Copy what another task has landed.

    :param source: its record.
    :param images: the bytes of its images, which are those that landed.
    """

    source: Record
    images: Sequence[bytes] = field(default=(), repr=False)

    @property
    def sha256(self) -> str:
        """Hex digest of the first image."""
        return str((self.source.manifest or {})["images"][0]["sha256"])


ReuseDecision = Buy | Take | WaitForRecord | Refuse


@dataclass(frozen=True)
class IndexedImage:
    """What is known of an image beyond the task's own records.

    :param entry: the index's word on who has it; ``None``: nobody.
    :param own: `entry` names a record of this very task instance.
    :param found: the record that `entry` names, if it is there and asks for this image.
    :param waited: seconds since the job of `found` was submitted.
    :param intact: for a landed record, whether its image is still the one that landed.
    :param images: the bytes of its images, where they are.
    """

    entry: Entry | None
    own: bool = False
    found: StoredRecord | None = None
    waited: float = 0.0
    intact: Intact = "unknown"
    images: Sequence[bytes] = field(default=(), repr=False)


def decide_reuse(step: Submit, known: IndexedImage, policy: Policy, timeout: float) -> ReuseDecision:
    """What becomes of an image that this task would buy.

    :param step: what the task's own records say.
    :param known: what others have of it.
    :param policy: how this attempt may act.
    :param timeout: seconds that a job may take from its submit.
    """
    entry, found = known.entry, known.found
    if entry is None or known.own or step.regenerate:
        return Buy(step, entry)
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
    why = f"record {entry.record}, which should have had it, was never written"
    return WaitForRecord(left) if left > 0 else _buy(step, entry, why)


def _intent(step: Submit, entry: Entry, found: StoredRecord, policy: Policy) -> ReuseDecision:
    if found.record.outcome is None and found.age < found.record.answer_within:
        return WaitForRecord(found.record.answer_within - found.age)
    return _unknown(step, entry, found.record, policy)


def _buy(step: Submit, entry: Entry, why: str) -> Buy:
    return Buy(replace(step, why=why), entry)


def _landed(step: Submit, entry: Entry, record: Record, known: IndexedImage) -> ReuseDecision:
    if known.intact == "there":
        return Take(record, known.images)
    if known.intact != "unknown":
        what = "is gone from storage" if known.intact == "gone" else "is not the one that landed any more"
        return _buy(step, entry, f"the image of record {record.key} {what}")
    return Refuse(
        StorageError(
            f"Can't tell whether the image of record {record.key}, which is the same, is still where it landed.",
            hint="Nothing was sent. Give the worker access to it, then retry.",
        )
    )


def _failed(step: Submit, entry: Entry, record: Record) -> ReuseDecision:
    known = record.error
    if record.buy_again:
        return _buy(step, entry, f"a person said to buy that of record {record.key} again")
    if known is not None and known.billed is Billed.NO:
        return _buy(step, entry, f"record {record.key}, which asked for it before, failed without cost")
    error = known or OutcomeUnknownError("The record does not say why.")
    return Refuse(
        error.evolve(
            message=f"Record {record.key} asked for the same image, and failed: {error.message}",
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
            f"Record {record.key} is for the same image, and nobody knows whether it was paid for. Nothing was sent."
        )
    )


def _left_behind(record: Record) -> GeminiImageError:
    job = f"its job {record.job_id}" if record.job_id else "its result"
    return TimedOutError(
        f"Record {record.key} asked for the same image and paid for it, but {job} has not landed.",
        hint=f"`jobs collect` lands it, or a retry of its task ({record.key}); a retry of this task then copies it.",
    )


def copy_of(record: Record, source: Record) -> Record:
    """The record of a copy that is about to be made: until it has landed it says that nothing was sent.

    :param record: this task's, as for a submission.
    :param source: whose image it is.
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
