"""`decide`: every row of the ledger's decision table, the rules at its edges, and the promise behind all of it.

The promise (never pay twice) is checked twice: over every combination of what can be found and asked, and over long
random histories of attempts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.purchase.decision import (
    Asked,
    Copy,
    Fetch,
    Policy,
    Poll,
    Refetch,
    Refuse,
    Reuse,
    Step,
    Submit,
    WaitForRecord,
    decide,
)
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InsufficientBalanceError,
    InvalidImageError,
    LinkExpiredError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    StorageError,
    UpstreamFailedError,
)
from tests.harness.records import ELSEWHERE, landed, make_record, submitted

RETRY = Policy(generation=0)
CLEAR = Policy(generation=1)
SAME = Asked(make_record().fingerprint, make_record().destination)
OTHER = Asked("e" * 64, SAME.destination)
MOVED = Asked(SAME.fingerprint, ELSEWHERE)
LATE = 10_000.0


def found(record: Record, age: float = 1.0) -> StoredRecord:
    return StoredRecord(record, "version", age)


def failed(error: GeminiImageError, **values: Any) -> Record:
    return with_error(make_record(**values), error, "failed")


def answered(**values: Any) -> Record:
    return make_record(**{"state": "answered", "links": ["https://example.com/p.png?sig=1"], **values})


def refused(step: Step) -> GeminiImageError:
    assert isinstance(step, Refuse)
    return step.error


def submit(step: Step) -> Submit:
    assert isinstance(step, Submit), step
    return step


# The table, row by row


def test_nothing_found_is_submitted_as_number_one() -> None:
    step = submit(decide(None, RETRY))
    assert (step.n, step.resubmission, step.replaces) == (1, False, None)


def test_a_young_intent_of_another_attempt_is_waited_for_until_its_answer_is_due() -> None:
    assert decide(found(make_record(answer_within=240.0), age=40.0), RETRY) == WaitForRecord(200.0)


def test_an_intent_past_its_deadline_is_outcome_unknown_and_nothing_is_sent() -> None:
    record = make_record()
    error = refused(decide(found(record, LATE), RETRY))
    assert isinstance(error, OutcomeUnknownError)
    assert record.key in str(error)
    assert 'on_unknown="resubmit"' in str(error)


def test_an_intent_is_past_its_deadline_exactly_when_that_has_come() -> None:
    assert isinstance(decide(found(make_record(answer_within=240.0), age=240.0), RETRY), Refuse)
    assert isinstance(decide(found(make_record(answer_within=240.0), age=239.9), RETRY), WaitForRecord)


def test_an_intent_whose_outcome_is_known_to_be_unknown_is_not_waited_for() -> None:
    record = with_error(make_record(), OutcomeUnknownError("The connection broke."))
    error = refused(decide(found(record, age=0.0), RETRY))
    assert "The connection broke." in str(error)


def test_an_unknown_outcome_is_bought_once_more_where_on_unknown_says_so() -> None:
    step = submit(decide(found(make_record(), LATE), Policy(0, on_unknown="resubmit")))
    assert (step.n, step.resubmission) == (2, True)


def test_a_young_intent_is_waited_for_even_where_on_unknown_says_resubmit() -> None:
    assert isinstance(decide(found(make_record()), Policy(0, on_unknown="resubmit")), WaitForRecord)


def test_a_submitted_job_is_polled_and_never_submitted() -> None:
    for policy in (RETRY, CLEAR, Policy(1, "resubmit", "regenerate")):
        assert decide(found(submitted(), LATE), policy, SAME) == Poll()


def test_a_job_that_the_gateway_does_not_know_is_outcome_unknown() -> None:
    error = refused(decide(found(submitted(job_id="job-7")), RETRY, vanished=True))
    assert isinstance(error, OutcomeUnknownError)
    assert "job-7" in str(error)


def test_a_job_that_the_gateway_does_not_know_is_bought_once_more_where_on_unknown_says_so() -> None:
    step = submit(decide(found(submitted()), Policy(0, on_unknown="resubmit"), vanished=True))
    assert (step.n, step.resubmission) == (2, True)


@pytest.mark.parametrize(("record", "step"), [(landed(), Reuse()), (answered(), Fetch())])
def test_a_record_that_moved_on_while_its_job_seemed_unknown_is_believed(record: Record, step: Step) -> None:
    policy = Policy(0, on_unknown="resubmit")
    assert decide(found(record), policy, image="there", vanished=True) == step


def test_an_answered_link_is_fetched_and_never_submitted() -> None:
    for policy in (RETRY, CLEAR, Policy(1, "resubmit", "regenerate")):
        assert decide(found(answered(), LATE), policy, SAME) == Fetch()


def test_a_landed_image_that_is_there_is_returned() -> None:
    assert decide(found(landed()), RETRY, image="there") == Reuse()
    assert decide(found(landed()), CLEAR, SAME, image="there") == Reuse()


def test_a_landed_image_that_is_gone_is_asked_for_again_at_the_gateway() -> None:
    assert decide(found(landed()), RETRY, image="gone") == Refetch()
    assert decide(found(landed()), CLEAR, SAME, image="gone") == Refetch()


def test_an_image_gone_at_the_gateway_too_is_an_error_until_a_clear_with_regenerate() -> None:
    record = with_error(landed(), LinkExpiredError("gone from storage and from the gateway"))
    for policy in (RETRY, CLEAR, Policy(0, on_clear="regenerate")):
        error = refused(decide(found(record), policy, SAME, image="gone"))
        assert isinstance(error, LinkExpiredError)
        assert 'on_clear="regenerate"' in str(error)
    step = submit(decide(found(record), Policy(1, on_clear="regenerate"), SAME, image="gone"))
    assert (step.n, step.resubmission) == (2, False)


def test_a_landed_image_that_storage_will_not_tell_about_is_a_storage_error() -> None:
    error = refused(decide(found(landed()), RETRY, image="unknown"))
    assert isinstance(error, StorageError)
    assert error.billed is Billed.YES


@pytest.mark.parametrize("error", [RateLimitedError("slow down"), NotSentError("no route"), UpstreamFailedError(
    "no channel", billed=Billed.NO)])  # fmt: skip
def test_an_unpaid_failure_that_a_retry_can_help_is_submitted_again(error: GeminiImageError) -> None:
    step = submit(decide(found(failed(error)), RETRY))
    assert (step.n, step.resubmission) == (2, False)


@pytest.mark.parametrize("error", [
    AuthenticationError("bad key"), InsufficientBalanceError("no money"), BadRequestError("bad field"),
    ContentRefusedError("blocked", billed=Billed.NO),
])  # fmt: skip
class TestAnUnpaidFailureThatARetryCannotHelp:
    def test_is_the_same_error_on_a_retry_without_a_call(self, error: GeminiImageError) -> None:
        again = refused(decide(found(failed(error)), Policy(0, "resubmit", "regenerate")))
        assert again.to_dict() == error.to_dict()

    def test_is_submitted_after_a_clear(self, error: GeminiImageError) -> None:
        assert submit(decide(found(failed(error)), CLEAR, SAME)).n == 2


@pytest.mark.parametrize("billed", [Billed.YES, Billed.UNKNOWN])
class TestAFailurePaidOrPerhapsPaid:
    def test_is_the_same_error_on_a_retry_and_after_a_clear(self, billed: Billed) -> None:
        error = UpstreamFailedError("the job failed", billed=billed, retryable=True)
        for policy in (RETRY, CLEAR, Policy(0, "resubmit", "regenerate"), Policy(1, "resubmit", "reuse")):
            assert refused(decide(found(failed(error)), policy, SAME)).to_dict() == error.to_dict()

    def test_is_bought_again_by_a_clear_with_regenerate(self, billed: Billed) -> None:
        record = failed(UpstreamFailedError("the job failed", billed=billed))
        assert submit(decide(found(record), Policy(1, on_clear="regenerate"), SAME)).n == 2


@pytest.mark.parametrize("record", [
    submitted(), answered(), landed(), failed(ContentRefusedError("blocked", billed=Billed.YES)),
], ids=lambda record: record.state)  # fmt: skip
def test_another_fingerprint_after_a_clear_is_submitted_and_what_it_replaces_is_named(record: Record) -> None:
    step = submit(decide(found(record), CLEAR, OTHER, image="there"))
    assert (step.n, step.replaces) == (2, record)


def test_another_fingerprint_after_a_clear_resolves_an_intent_first() -> None:
    assert isinstance(decide(found(make_record()), CLEAR, OTHER), WaitForRecord)
    assert isinstance(refused(decide(found(make_record(), LATE), CLEAR, OTHER)), OutcomeUnknownError)
    step = submit(decide(found(make_record(), LATE), Policy(1, on_unknown="resubmit"), OTHER))
    assert (step.n, step.resubmission) == (2, True)


def test_another_destination_after_a_clear_is_a_copy_without_a_call() -> None:
    assert decide(found(landed()), CLEAR, MOVED, image="there") == Copy()


def test_every_place_of_a_landed_image_counts_and_only_a_clear_copies_it() -> None:
    for image in ("asked", "elsewhere"):
        assert decide(found(landed()), RETRY, image=image) == Reuse()
    assert decide(found(landed()), CLEAR, MOVED, image="asked") == Reuse()
    assert decide(found(landed()), CLEAR, SAME, image="elsewhere") == Copy()
    assert decide(found(landed()), CLEAR, MOVED, image="elsewhere") == Copy()


def test_an_image_that_is_gone_is_fetched_to_where_a_clear_asks_for_it() -> None:
    assert decide(found(landed()), CLEAR, MOVED, image="gone") == Refetch(MOVED.destination)
    assert decide(found(landed()), CLEAR, SAME, image="gone") == Refetch()
    assert decide(found(landed()), RETRY, image="gone") == Refetch()


# The rules at its edges


def test_a_clear_alone_never_resolves_an_intent() -> None:
    for policy in (CLEAR, Policy(7), Policy(1, on_clear="regenerate")):
        assert isinstance(refused(decide(found(make_record(), LATE), policy, SAME)), OutcomeUnknownError)


@pytest.mark.parametrize("record", [submitted(), answered(), landed()], ids=lambda record: record.state)
@pytest.mark.parametrize("asked", [OTHER, MOVED])
def test_in_the_same_generation_the_recorded_request_wins(record: Record, asked: Asked) -> None:
    assert decide(found(record), RETRY, asked, image="there") == decide(found(record), RETRY, image="there")
    assert not isinstance(decide(found(record), RETRY, asked, image="there"), (Submit, Copy))


def test_a_lower_generation_than_the_recorded_one_is_a_retry() -> None:
    assert decide(found(landed(generation=3)), Policy(2, on_clear="regenerate"), OTHER, image="there") == Reuse()


def test_regenerate_buys_once_per_clear_and_returns_what_it_bought_on_a_retry() -> None:
    policy = Policy(1, on_clear="regenerate")
    assert submit(decide(found(landed()), policy, SAME, image="there")).n == 2
    assert decide(found(landed(n=2, generation=1)), policy, SAME, image="there") == Reuse()


def test_regenerate_leaves_a_job_alone_that_has_not_ended() -> None:
    policy = Policy(1, on_clear="regenerate")
    assert decide(found(submitted()), policy, SAME) == Poll()
    assert decide(found(answered()), policy, SAME) == Fetch()


@pytest.mark.parametrize("error", [
    LinkExpiredError("gone"), InvalidImageError("HTML"),
    UpstreamFailedError("no such image", billed=Billed.YES, retryable=False),
], ids=lambda e: e.kind)  # fmt: skip
@pytest.mark.parametrize("make", [submitted, answered])
def test_a_result_that_can_no_longer_be_fetched_is_tried_again_until_a_clear_with_regenerate(
    make: Any, error: GeminiImageError
) -> None:
    record = with_error(make(), error)
    for policy in (RETRY, CLEAR, Policy(0, on_clear="regenerate")):
        assert isinstance(decide(found(record), policy, SAME), (Poll, Fetch))
    assert submit(decide(found(record), Policy(1, on_clear="regenerate"), SAME)).n == 2


def test_a_second_unknown_outcome_in_one_generation_is_not_bought_again() -> None:
    record = make_record(n=2, resubmission=True)
    assert isinstance(refused(decide(found(record, LATE), Policy(0, on_unknown="resubmit"))), OutcomeUnknownError)


def test_the_one_resubmission_of_a_generation_survives_an_unpaid_failure_in_between() -> None:
    policy = Policy(0, on_unknown="resubmit")
    step = submit(decide(found(failed(RateLimitedError("slow down"), n=2, resubmission=True)), policy))
    assert (step.n, step.resubmission) == (3, True)
    third = make_record(n=3, resubmission=step.resubmission)
    assert isinstance(refused(decide(found(third, LATE), policy)), OutcomeUnknownError)


def test_a_clear_allows_another_resubmission() -> None:
    step = submit(decide(found(make_record(n=2, resubmission=True), LATE), Policy(1, on_unknown="resubmit"), SAME))
    assert (step.n, step.resubmission) == (3, True)


def test_what_is_submitted_for_another_reason_after_a_clear_has_its_resubmission_left() -> None:
    record = failed(AuthenticationError("bad key"), n=2, resubmission=True)
    assert submit(decide(found(record), CLEAR, SAME)).resubmission is False


# The promise

ERRORS: list[GeminiImageError | None] = [
    None,
    OutcomeUnknownError("?"),
    LinkExpiredError("gone"),
    InvalidImageError("HTML"),
    RateLimitedError("slow down"),
    AuthenticationError("bad key"),
    UpstreamFailedError("perhaps paid"),
    UpstreamFailedError("can't be fetched", billed=Billed.YES, retryable=False),
    ContentRefusedError("blocked", billed=Billed.YES),
]
MAKERS: dict[str, Any] = {
    "intent": make_record,
    "submitted": submitted,
    "answered": answered,
    "landed": landed,
    "failed": lambda **values: make_record(state="failed", **values),
}
BELONGS = {
    "intent": (WaitForRecord, Refuse, Submit),
    "submitted": (Poll, Refuse, Submit),
    "answered": (Fetch, Submit),
    "landed": (Reuse, Copy, Refetch, Refuse, Submit),
    "failed": (Refuse, Submit),
}


IMAGES = ("there", "asked", "elsewhere", "gone", "unknown")


def situations() -> Iterator[tuple[Record, float, Policy, Asked | None, Any, bool]]:
    records = [
        make(n=2, resubmission=again, outcome=error and error.to_dict())
        for make in MAKERS.values()
        for again in (False, True)
        for error in ERRORS
    ]
    policies = [Policy(*values) for values in itertools.product((0, 1), ("fail", "resubmit"), ("reuse", "regenerate"))]
    yield from itertools.product(records, (0.0, LATE), policies, (SAME, OTHER, MOVED), IMAGES, (False, True))


def may_buy(record: Record, policy: Policy, asked: Asked | None, vanished: bool) -> bool:
    """Whether nothing may have been paid for, or the user says so in so many words."""
    cleared = policy.generation > record.generation
    error = record.error
    unpaid = record.state == "failed" and error is not None and error.billed is Billed.NO
    unknown = record.state == "intent" or (record.state == "submitted" and vanished)
    told_resubmit = unknown and policy.on_unknown == "resubmit" and (cleared or not record.resubmission)
    beyond_reach = isinstance(error, (LinkExpiredError, InvalidImageError)) or (
        isinstance(error, UpstreamFailedError) and not error.retryable
    )
    ended = record.state in ("landed", "failed") or beyond_reach
    told_regenerate = cleared and policy.on_clear == "regenerate" and ended and record.state != "intent"
    changed = cleared and record.state != "intent" and asked is not None and asked.fingerprint != record.fingerprint
    return unpaid or told_resubmit or told_regenerate or changed


def test_in_every_situation_only_what_may_not_have_been_paid_for_or_is_asked_for_again_is_submitted() -> None:
    count = bought = 0
    for record, age, policy, asked, image, vanished in situations():
        step = decide(found(record, age), policy, asked, image=image, vanished=vanished)
        situation = (record.state, record.outcome, record.resubmission, age, policy, asked, image, vanished)
        assert isinstance(step, BELONGS[record.state]), situation
        if isinstance(step, Submit):
            assert may_buy(record, policy, asked, vanished), situation
            assert step.n == record.n + 1, situation
            bought += 1
        if isinstance(step, WaitForRecord):
            assert step.seconds > 0, situation
        count += 1
    assert count == 5 * 2 * len(ERRORS) * 2 * 8 * 3 * len(IMAGES) * 2
    assert bought


def test_in_every_situation_of_a_retry_what_is_asked_for_changes_nothing() -> None:
    for record, age, policy, asked, image, vanished in situations():
        if policy.generation == record.generation:
            more = {"image": image, "vanished": vanished}
            with_it, without = decide(found(record, age), policy, asked, **more), decide(
                found(record, age), policy, **more
            )  # fmt: skip
            assert repr(with_it) == repr(without)


ENDS = ["unknown", "crashed", "rate_limited", "bad_key", "paid_failure", "submitted", "landed"]


def after_submit(record: Record, end: str) -> Record:
    if end == "crashed":
        return record
    if end == "unknown":
        return with_error(record, OutcomeUnknownError("?"))
    if end in ("submitted", "landed"):
        done = MAKERS[end]()
        return make_record(**{**vars(record), "state": end, "job_id": "job-1", "manifest": done.manifest})
    errors = {
        "rate_limited": RateLimitedError("slow down"),
        "bad_key": AuthenticationError("bad key"),
        "paid_failure": UpstreamFailedError("failed", billed=Billed.YES),
    }
    return with_error(record, errors[end], "failed")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),  # cleared before this attempt
            st.sampled_from(["fail", "resubmit"]),
            st.sampled_from(ENDS),
            st.booleans(),  # the gateway does not know the job
        ),
        max_size=25,
    )
)
def test_in_any_history_a_generation_buys_at_most_once_more_after_an_unknown_outcome(history: list[Any]) -> None:
    record: Record | None = None
    generation, resubmissions, payments = 0, 0, 0
    for cleared, on_unknown, end, vanished in history:
        generation += cleared
        resubmissions = 0 if cleared else resubmissions
        payments = 0 if cleared else payments
        before = record
        step = decide(
            found(record, LATE) if record else None,
            Policy(generation, on_unknown),
            SAME,
            image="there",
            vanished=vanished and record is not None and record.state == "submitted",
        )
        if not isinstance(step, Submit):
            continue
        doubtful = before is not None and not (
            before.error is not None and before.error.billed is Billed.NO and before.state == "failed"
        )
        resubmissions += doubtful
        payments += end not in ("rate_limited", "bad_key")
        assert resubmissions <= 1
        assert payments <= 2
        record = after_submit(make_record(n=step.n, generation=generation, resubmission=step.resubmission), end)
