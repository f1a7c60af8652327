"""What an attempt does about one image, given what the ledger holds: a pure function, and the table behind it.

What must stay true: an attempt submits only where nothing was paid for, or where the user asked for it again in so many
words. Everything that may have been paid for is collected, returned, or reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow_provider_geminiimg.core.ledger.records import Destination, Record, StoredRecord
from airflow_provider_geminiimg.core.validation.arguments import OnClear, OnUnknown, ReuseScope
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    InvalidImageError,
    LinkExpiredError,
    OutcomeUnknownError,
    StorageError,
    UpstreamFailedError,
)

ImageState = Literal["there", "asked", "elsewhere", "gone", "unknown"]
"""Where a landed image is: ``there``, where it landed; a copy, where it is ``asked`` for, or only ``elsewhere``."""


@dataclass(frozen=True)
class Policy:
    """How this attempt may act.

    :param generation: ``ti.max_tries`` now.
    :param on_unknown: what to do about a submission whose outcome nobody knows.
    :param on_clear: whether a Clear may buy again what has landed or failed after payment.
    :param reuse: whose images may be copied instead of buying one: ``"task"`` this task instance's own, ``"dag"``
        those of all tasks and runs of its DAG.
    :param anew: the DAG run was deleted and made again since; that counts as a Clear.
    """

    generation: int
    on_unknown: OnUnknown = "fail"
    on_clear: OnClear = "reuse"
    reuse: ReuseScope = "task"
    anew: bool = False


@dataclass(frozen=True)
class Asked:
    """What this attempt asks for; only a Clear compares it with what is recorded."""

    fingerprint: str
    destination: Destination


@dataclass(frozen=True)
class Submit:
    """Claim number `n` and buy. `resubmission`: after an unknown outcome. `regenerate`: a Clear asked to buy again what
    there may be. `why`: for the log."""

    n: int
    why: str
    resubmission: bool = False
    regenerate: bool = False
    replaces: Record | None = None


@dataclass(frozen=True)
class WaitForRecord:
    """Another attempt may still be sending: look again within `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Poll:
    """Ask the gateway about the recorded job, land it where the record says; or at `destination`, if a Clear asks for
    another one."""

    destination: Destination | None = None


@dataclass(frozen=True)
class Fetch:
    """Fetch the recorded links (or the spooled bytes), land them where the record says; or at `destination`, if a Clear
    asks for another one."""

    destination: Destination | None = None


@dataclass(frozen=True)
class Reuse:
    """Return what has landed."""


@dataclass(frozen=True)
class Copy:
    """Copy what has landed to the destination that is asked for now."""


@dataclass(frozen=True)
class Refetch:
    """What had landed is gone: ask the gateway once for a fresh link and land it again.

    :param destination: where it is asked for now; ``None``: where the record says.
    """

    destination: Destination | None = None


@dataclass(frozen=True)
class Refuse:
    """Raise `error`; nothing is sent."""

    error: GeminiImageError


Step = Submit | WaitForRecord | Poll | Fetch | Reuse | Copy | Refetch | Refuse


def decide(
    found: StoredRecord | None,
    policy: Policy,
    asked: Asked | None = None,
    *,
    image: ImageState | None = None,
    vanished: bool = False,
) -> Step:
    """What to do next about one image.

    :param found: the record that decides, or ``None``.
    :param policy: how this attempt may act.
    :param asked: what is asked for now; needed after a Clear.
    :param image: for a landed record, whether the image is still in one of its places.
    :param vanished: for a submitted record, that the gateway has not known the job for long enough to believe it.
    """
    if found is None:
        return Submit(1, "nothing was submitted before")
    record = found.record
    cleared = is_cleared(record, policy)
    if record.state == "intent":
        return _intent(found, policy)
    if vanished and record.state == "submitted":  # it may have landed since the job was asked about
        return _unknown(record, policy, "The gateway does not know the job that it was given.")
    if cleared and asked is not None and asked.fingerprint != record.fingerprint:
        return _again(record, policy, "the task was cleared and asks for another image")
    if record.state == "landed":
        return _landed(record, policy, cleared, asked, image)
    if record.state == "failed":
        return _failed(record, policy, cleared)
    if cleared and policy.on_clear == "regenerate" and is_out_of_reach(record.error):
        return _again(record, policy, 'its result could not be fetched and on_clear is "regenerate"')
    elsewhere = cleared and asked is not None and asked.destination != record.destination
    destination = asked.destination if elsewhere and asked is not None else None
    return Poll(destination) if record.state == "submitted" else Fetch(destination)


def is_cleared(record: Record, policy: Policy) -> bool:
    """Whether the task was cleared since `record` was claimed or landed. A Clear while it ran looks like a retry."""
    return policy.anew or policy.generation > record.generation


def is_out_of_reach(error: GeminiImageError | None) -> bool:
    """Whether fetching what was paid for failed in a way that trying again does not mend."""
    refused = isinstance(error, UpstreamFailedError) and not error.retryable
    return refused or isinstance(error, LinkExpiredError | InvalidImageError)


def _again(record: Record, policy: Policy, why: str, *, resubmission: bool = False) -> Submit:
    cleared = is_cleared(record, policy)
    return Submit(
        record.n + 1,
        why,
        resubmission=resubmission or (record.resubmission and not cleared),
        regenerate=(cleared and policy.on_clear == "regenerate") or (record.regenerate and not cleared),
        replaces=record,
    )


def _intent(found: StoredRecord, policy: Policy) -> Step:
    if found.record.outcome is None and found.age < found.record.answer_within:
        return WaitForRecord(found.record.answer_within - found.age)
    return _unknown(found.record, policy, "A request that costs money was started and its answer was never recorded.")


def _unknown(record: Record, policy: Policy, what: str) -> Step:
    spent = record.resubmission and not is_cleared(record, policy)
    if policy.on_unknown == "resubmit" and not spent:
        return _again(record, policy, 'the outcome is unknown and on_unknown is "resubmit"', resubmission=True)
    known = record.error
    if isinstance(known, OutcomeUnknownError):
        return Refuse(known)
    job = f" Job {record.job_id}." if record.job_id else ""
    return Refuse(OutcomeUnknownError(f"{what}{job} Record {record.key}."))


def _landed(record: Record, policy: Policy, cleared: bool, asked: Asked | None, image: ImageState | None) -> Step:
    if cleared and policy.on_clear == "regenerate":
        return _again(record, policy, 'the task was cleared and on_clear is "regenerate"')
    if image == "unknown":
        return Refuse(
            StorageError(
                f"Can't tell whether the image of record {record.key} is still where it landed.",
                billed=Billed.YES,
                hint="Nothing was sent; the log says what keeps the worker from looking. Give it access to the output "
                "path, then retry. If that can't be done, copy the file by hand; "
                'on_clear="regenerate" buys another one.',
            )
        )
    moved = asked.destination if cleared and asked and asked.destination != record.destination else None
    if image == "gone":
        return Refuse(record.error) if isinstance(record.error, LinkExpiredError) else Refetch(moved)
    if image != "asked" and (moved or (cleared and image == "elsewhere")):
        return Copy()
    return Reuse()


def _failed(record: Record, policy: Policy, cleared: bool) -> Step:
    if record.buy_again:
        return _again(record, policy, "a person said to buy it again", resubmission=True)
    error = record.error or OutcomeUnknownError(f"Record {record.key} failed and does not say why.")
    if error.billed is Billed.NO:
        if cleared or error.retryable:
            return _again(record, policy, "the submission before failed without cost")
        return Refuse(error)
    if cleared and policy.on_clear == "regenerate":
        return _again(record, policy, 'the task was cleared and on_clear is "regenerate"')
    return Refuse(error)
