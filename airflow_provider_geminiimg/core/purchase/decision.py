"""The next step of an attempt for one image, given the deciding record: a pure function.

Invariant: an attempt submits only if nothing was paid for, or if the user explicitly asked to buy again. Anything that
may have been paid for is collected, returned or reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
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
"""Where an image is. ``there``: where it landed; ``asked``: a copy at the requested destination;
``elsewhere``: only a copy elsewhere; ``gone``: nowhere; ``unknown``: storage does not answer."""


@dataclass(frozen=True)
class Policy:
    """The options of this attempt.

    :param generation: ``ti.max_tries`` now.
    :param on_unknown: what to do after an unknown outcome.
    :param on_clear: whether a Clear may buy again an image that landed, or that failed after payment.
    :param reuse: which images may be copied instead of bought: ``"task"``: those of this task instance; ``"dag"``:
        those of all tasks and runs of its DAG.
    :param task_state_lost: Airflow no longer has the state of the task: it was cleared (Airflow 3.4), its DAG run was
        deleted and created again, or its loop iteration was created again. This counts as a Clear.
    """

    generation: int
    on_unknown: OnUnknown = "fail"
    on_clear: OnClear = "reuse"
    reuse: ReuseScope = "task"
    task_state_lost: bool = False


@dataclass(frozen=True)
class Asked:
    """The request of this attempt. Only a Clear compares it with the record."""

    fingerprint: str
    destination: Destination


@dataclass(frozen=True)
class Submit:
    """Claim record number `n` and buy the image.

    :param n: number of the record among those of the image, from 1.
    :param why: the reason, for the log.
    :param resubmission: this buys again after an unknown outcome.
    :param regenerate: a Clear with `on_clear` ``"regenerate"`` buys again.
    :param replaces: the record before, if there is one.
    """

    n: int
    why: str
    resubmission: bool = False
    regenerate: bool = False
    replaces: Record | None = None


@dataclass(frozen=True)
class WaitForRecord:
    """Another attempt may still be sending. Read the record again within `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Poll:
    """Poll the recorded job and store its image.

    :param destination: the destination of a Clear; ``None``: the recorded one.
    """

    destination: Destination | None = None


@dataclass(frozen=True)
class Fetch:
    """Download the recorded links, or read the spooled bytes, and store the image.

    :param destination: the destination of a Clear; ``None``: the recorded one.
    """

    destination: Destination | None = None


@dataclass(frozen=True)
class Reuse:
    """Return the landed image."""


@dataclass(frozen=True)
class Copy:
    """Copy the landed image to the destination of this attempt."""


@dataclass(frozen=True)
class Refetch:
    """The landed image is gone from storage: poll once for a new link and store the image again.

    :param destination: the destination of a Clear; ``None``: the recorded one.
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
    """The next step for one image.

    :param found: the deciding record; ``None`` if there is none.
    :param policy: the options of this attempt.
    :param asked: the request of this attempt; required after a Clear.
    :param image: for a landed record, where its image is.
    :param vanished: for a submitted record, whether the gateway does not know the job and the grace period is over.
    """
    if found is None:
        return Submit(1, "no earlier request")
    record = found.record
    cleared = is_cleared(record, policy)
    if record.state == "intent":
        return _intent(found, policy)
    if vanished and record.state == "submitted":  # a landed record is handled below
        return _unknown(record, policy, "The gateway does not know the job.")
    if cleared and asked is not None and asked.fingerprint != record.fingerprint:
        return _again(record, policy, "the task was cleared and its request has changed")
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
    """Whether the task was cleared since `record` was claimed or landed. A Clear of a running task is a retry."""
    return policy.task_state_lost or policy.generation > record.generation


def is_out_of_reach(error: GeminiImageError | None) -> bool:
    """Whether a paid image can't be downloaded and a retry can't help."""
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
    return _unknown(found.record, policy, "A paid request was started and its answer was never recorded.")


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
                hint="Nothing was sent. The log has the storage error. Give the worker access to the output path, then "
                "retry. If that is not possible, copy the file by hand; "
                'a Clear with on_clear="regenerate" buys another image.',
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
        return _again(record, policy, "a person resolved the record as resubmit", resubmission=True)
    error = record.error or OutcomeUnknownError(f"Record {record.key} failed without a recorded reason.")
    if error.billed is Billed.NO:
        if cleared or error.retryable:
            return _again(record, policy, "the previous request failed without cost")
        return Refuse(error)
    if cleared and policy.on_clear == "regenerate":
        return _again(record, policy, 'the task was cleared and on_clear is "regenerate"')
    return Refuse(error)
