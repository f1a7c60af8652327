"""One job belongs to one record, however its id gets there; and a person's word to buy again buys exactly once."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.layout import job_key
from airflow_provider_geminiimg.core.reconcile.extra_jobs import adopted
from airflow_provider_geminiimg.core.validation.resolution import Resolution, read_resolutions
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, LedgerError, OutcomeUnknownError
from airflow_provider_geminiimg.hooks.object_stores import default_s3_client
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness.orphaned_records import LOGGER, OrphanedRecords
from tests.harness.records import ITEM, make_record, submitted

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.ledger.record import Record
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

RESUBMIT = Resolution("resubmit")
NO_LIMIT = {"requests_per_minute": 100_000}


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=LOGGER)
    return caplog


@pytest.fixture
def left(root: str, sandbox: Sandbox, onemin: str) -> OrphanedRecords:
    """On disk and on S3."""
    return OrphanedRecords(sandbox, onemin)


@pytest.fixture
def each_left(local_root: str, sandbox: Sandbox, geminiimg_conn_id: str) -> OrphanedRecords:
    """At both gateways."""
    return OrphanedRecords(sandbox, geminiimg_conn_id)


def job(job_id: str | None) -> Resolution:
    return Resolution("job", str(job_id))


def age_entries(left: OrphanedRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what was noted of jobs be so old that only the records count."""
    from airflow_provider_geminiimg.core.ledger import job_index

    monkeypatch.setattr(job_index, "WRITE_SECONDS", 0.0)


# resolve


async def test_resolve_refuses_the_job_of_another_record_in_any_state(left: OrphanedRecords) -> None:
    record = await left.unknown("unknown")
    others = {
        "submitted": await left.submitted("submitted"),
        "landed": await left.attempt("landed"),
        "old": left.change(await left.submitted("old"), state="failed", outcome=OutcomeUnknownError("x").to_dict()),
    }
    for key in list(left.store.keys("jobs/")):  # as records of before have none
        left.store.delete(key)
    for other in others.values():
        with pytest.raises(BadRequestError, match=re.escape(f"job {other.job_id} belongs to record {other.key}")):
            reconcile.resolve(left.ledger, record.key, job(other.job_id))
        with pytest.raises(BadRequestError, match="belongs to record"):
            reconcile.resolve(left.ledger, record.key, job(other.job_id), dry_run=True)
    assert left.at(record) == record
    own = {entry["job_id"] for entry in left.sandbox.ledger()} - {other.job_id for other in others.values()}
    assert reconcile.resolve(left.ledger, record.key, job(own.pop())) is True
    await left.collect()
    assert left.at(record).state == "landed"


async def test_resolve_refuses_the_job_of_another_run_dag_and_namespace_and_a_further_job(
    left: OrphanedRecords,
) -> None:
    record = await left.unknown()
    elsewhere = [
        dataclasses.replace(ITEM, run_id="another"),
        dataclasses.replace(ITEM, dag_id="another"),
        dataclasses.replace(ITEM, namespace="another"),
    ]
    for number, item in enumerate(elsewhere):
        left.ledger.create(submitted(item, job_id=f"job-{number}", extra_jobs=[f"extra-{number}"]))
        for job_id in (f"job-{number}", f"extra-{number}"):
            with pytest.raises(BadRequestError, match="belongs to record"):
                reconcile.resolve(left.ledger, record.key, job(job_id))
    # Another gateway's job of the same id is another job.
    left.ledger.create(submitted(dataclasses.replace(ITEM, task_id="x"), gateway="apimaster", job_id="theirs"))
    assert reconcile.resolve(left.ledger, record.key, job("theirs")) is True


async def test_a_job_that_only_a_sensor_or_a_copy_holds_may_be_a_records_own(left: OrphanedRecords) -> None:
    record = await left.unknown()
    left.ledger.create(submitted(dataclasses.replace(ITEM, task_id="sensor"), operation="unknown", job_id="found"))
    left.ledger.create(submitted(dataclasses.replace(ITEM, task_id="copy"), reused_from=record.key, job_id="found"))
    assert reconcile.resolve(left.ledger, record.key, job("found")) is True


async def test_of_two_people_who_give_one_job_to_two_records_at_once_one_succeeds(left: OrphanedRecords) -> None:
    records = [await left.unknown(f"task-{number}") for number in range(4)]
    job_id = left.sandbox.ledger()[0]["job_id"]
    tries = (asyncio.to_thread(reconcile.resolve, left.ledger, record.key, job(job_id)) for record in records)
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert [result for result in done if result is True] == [True]
    assert sum(isinstance(result, BadRequestError) for result in done) == 3
    assert [left.at(record).job_id for record in records].count(job_id) == 1


async def test_a_further_job_that_becomes_the_records_own_is_not_adopted_too(left: OrphanedRecords) -> None:
    record = await left.unknown()
    job_id = left.sandbox.ledger()[0]["job_id"]
    left.change(record, extra_jobs=[job_id])
    assert reconcile.resolve(left.ledger, record.key, job(job_id)) is True
    await left.collect()
    assert (left.at(record).state, left.at(record).extra_jobs) == ("landed", [])
    assert left.records() == [record.key]


async def test_a_job_whose_record_was_given_another_one_is_free_again(
    left: OrphanedRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await left.unknown("first"), await left.unknown("second")
    reconcile.resolve(left.ledger, first.key, job("mistaken"))
    left.change(first, job_id="right")
    age_entries(left, monkeypatch)
    assert reconcile.resolve(left.ledger, second.key, job("mistaken")) is True


# A submit's answer


def same_job(left: OrphanedRecords, job_id: str, times: int = 1) -> None:
    """Let the gateway answer submits with a job that it has named before, as a cache between us and it would."""
    if left.gateway == "1min":
        body: Any = {"aiRecord": {"uuid": job_id, "status": "PROCESSING"}}
        left.sandbox.faults(route="onemin.submit", charge="after", body=body, times=times)
    else:
        body = {"code": 200, "data": [{"status": "submitted", "task_id": job_id}]}
        left.sandbox.faults(route="apimaster.submit", charge="after", body=body, times=times)


async def test_an_answer_that_names_the_job_of_another_record_says_nothing_about_its_own_request(
    each_left: OrphanedRecords,
) -> None:
    left = each_left
    first = await left.submitted("first")
    same_job(left, str(first.job_id))
    with pytest.raises(OutcomeUnknownError, match=re.escape(f"belongs to record {first.key}")):
        await left.attempt("second")
    second = left.record("second")
    assert (second.state, second.job_id) == ("intent", None)
    with pytest.raises(OutcomeUnknownError):
        await left.attempt("second")
    assert left.paid() == 2
    assert left.image(await left.attempt("first"))[1] == 1


async def test_a_store_that_can_not_note_whose_a_job_is_keeps_no_image_from_landing(
    local_root: str, sandbox: Sandbox, onemin: str
) -> None:
    from pathlib import Path

    left = OrphanedRecords(sandbox, onemin)
    root = Path(local_root.removeprefix("file://"))
    await asyncio.to_thread(root.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread((root / "jobs").write_text, "no folder")
    assert left.image(await left.attempt())[1] == 1
    assert left.paid() == 1


def batch(**more: Any) -> DAG:
    with DAG("pictures", schedule=None) as dag:
        GeminiImageBatchOperator(
            **{
                "task_id": "made",
                "requests": [{"prompt": "a fox"}, {"prompt": "a crow"}],
                "geminiimg_conn_id": "onemin",
                "poll_interval": 0.02,
                "max_concurrency": 1,
                **more,
            }
        )
    return dag


def single(**more: Any) -> DAG:
    with DAG("pictures", schedule=None) as dag:
        GeminiImageGenerateOperator(
            **{"task_id": "made", "prompt": "a fox", "geminiimg_conn_id": "onemin", "poll_interval": 0.02, **more}
        )
    return dag


def test_two_items_of_a_batch_never_share_a_job(airflow: AirflowHarness, left: OrphanedRecords) -> None:
    asyncio.run(left.submitted("elsewhere"))
    job_id = left.sandbox.ledger()[0]["job_id"]
    same_job(left, job_id, times=2)
    run = airflow.run_dag(batch(on_unknown="fail"))
    assert run.task("made").state == "failed"
    assert left.paid() == 3
    holders = [key for key in left.records() if (found := left.ledger.read(key)) and found.record.job_id == job_id]
    assert len(holders) == 1


# Extra jobs, events, and what a task is handed


async def test_a_further_job_that_is_another_records_own_is_not_adopted(left: OrphanedRecords) -> None:
    other = await left.submitted("other")
    record = left.old(await left.attempt("hero"))
    left.change(record, extra_jobs=[other.job_id])
    report = await left.collect()
    assert record.key in report.keys["skipped"]
    assert left.ledger.read(adopted(left.at(record), str(other.job_id)).key) is None
    assert left.paid() == 2


async def test_a_further_job_of_its_own_is_adopted_once_and_is_then_the_adopted_records(left: OrphanedRecords) -> None:
    gone = await left.submitted("gone")
    reconcile.forget(left.ledger, gone.key, force=True)
    record = left.old(await left.attempt("hero"))
    left.change(record, extra_jobs=[gone.job_id])
    assert (await left.collect()).counts()["landed"] == 1
    assert (await left.collect()).counts()["landed"] == 0
    unknown = await left.unknown("unknown")
    with pytest.raises(BadRequestError, match="belongs to record"):
        reconcile.resolve(left.ledger, unknown.key, job(gone.job_id))


async def test_a_removed_record_hands_its_job_back(left: OrphanedRecords) -> None:
    record = await left.submitted("gone")
    reconcile.forget(left.ledger, record.key, force=True)
    assert list(left.store.keys("jobs/")) == []
    unknown = await left.unknown("unknown", charge="before")
    assert reconcile.resolve(left.ledger, unknown.key, job(record.job_id)) is True


def failed_with(run: Run, kind: type[BaseException], task_id: str = "made") -> BaseException:
    task = run.task(task_id)
    assert task.state == "failed", run.log
    error = task.error.__cause__ if isinstance(task.error, AirflowFailException) else task.error
    assert isinstance(error, kind), run.log
    return error


def test_a_trigger_whose_event_names_another_tasks_job_lands_nothing_of_it(
    airflow: AirflowHarness, left: OrphanedRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

    other = asyncio.run(left.submitted("other"))

    async def watch(self: GeminiImageJobTrigger) -> dict[str, Any]:
        [key] = [key for key in left.records() if "/pictures/" in key]
        left.store.delete(key)
        return {"status": "done", "job_id": other.job_id, "code": None}

    monkeypatch.setattr(GeminiImageJobTrigger, "_watch", watch)
    run = airflow.run_dag(single(deferrable=True))
    assert other.key in str(failed_with(run, LedgerError))
    assert left.paid() == 2


def test_a_sensor_that_is_handed_a_record_with_another_records_job_lands_nothing_of_it(
    airflow: AirflowHarness, left: OrphanedRecords
) -> None:
    other = asyncio.run(left.submitted("other"))
    intent = make_record(dataclasses.replace(ITEM, task_id="order"))
    left.ledger.create(intent)
    with DAG("sensing", schedule=None) as dag:
        GeminiImageJobSensor(task_id="made", job={"record": intent.key, "job_id": other.job_id}, timeout=30)
    assert other.key in str(failed_with(airflow.run_dag(dag), LedgerError))


# Buy again


def test_resubmit_is_a_verdict_of_the_operators_and_the_command_lines() -> None:
    assert read_resolutions({"k": "resubmit"}) == read_resolutions('{"k": "resubmit"}') == {"k": RESUBMIT}
    assert str(RESUBMIT) == "resubmit"


@pytest.mark.parametrize("generation", [0, 1], ids=["retry", "clear"])
async def test_what_is_to_be_bought_again_is_bought_once_by_the_next_attempt(
    each_left: OrphanedRecords, generation: int
) -> None:
    left = each_left
    record = await left.unknown()
    assert reconcile.resolve(left.ledger, record.key, RESUBMIT) is True
    assert reconcile.resolve(left.ledger, record.key, RESUBMIT) is False
    resolved = left.at(record)
    assert resolved.error is not None
    assert (resolved.state, resolved.error.billed) == ("failed", Billed.UNKNOWN), "nobody knows it any better now"
    assert (await left.collect()).counts()["unknown"] == 0
    attempts = (left.attempt(generation=generation) for _ in range(3))
    assert {(await attempt).n for attempt in attempts} == {2}
    assert left.paid() == 2


async def test_several_attempts_at_once_buy_again_once(left: OrphanedRecords) -> None:
    record = await left.unknown()
    reconcile.resolve(left.ledger, record.key, RESUBMIT)
    landed = await asyncio.gather(*(left.attempt(generation=1) for _ in range(4)))
    assert {each.n for each in landed} == {2}
    assert left.paid() == 2


async def test_what_was_bought_again_and_is_unknown_again_waits_for_another_word(left: OrphanedRecords) -> None:
    reconcile.resolve(left.ledger, (await left.unknown()).key, RESUBMIT)
    second = await left.unknown(on_unknown="resubmit")
    for _ in range(2):
        with pytest.raises(OutcomeUnknownError):
            await left.attempt(on_unknown="resubmit")
    assert left.paid() == 2
    reconcile.resolve(left.ledger, second.key, RESUBMIT)
    assert (await left.attempt()).n == 3
    assert left.paid() == 3


async def test_an_answer_that_comes_before_the_next_attempt_is_taken_and_nothing_is_bought_again(
    left: OrphanedRecords,
) -> None:
    left.sandbox.faults(route="onemin.submit", hold=True, charge="after")
    first = asyncio.create_task(left.attempt(land=False))
    await asyncio.to_thread(left.sandbox.held)
    record = left.old(left.record())
    reconcile.resolve(left.ledger, record.key, RESUBMIT)
    left.sandbox.release()
    await first
    assert left.image(await left.attempt(generation=1))[1] == 1
    assert left.paid() == 1


async def test_nothing_but_what_is_unknown_or_can_not_be_had_is_bought_again(left: OrphanedRecords) -> None:
    running, landed = await left.submitted("running"), await left.attempt("landed")
    for record in (running, landed):
        with pytest.raises(BadRequestError, match="can't be resolved"):
            reconcile.resolve(left.ledger, record.key, RESUBMIT)


async def test_a_job_that_the_gateway_does_not_know_is_bought_again_by_a_persons_word(
    each_left: OrphanedRecords,
) -> None:
    left = each_left
    record = await left.submitted()
    left.change(record, outcome=OutcomeUnknownError("Not known.").to_dict())
    reconcile.resolve(left.ledger, record.key, RESUBMIT)
    assert (await left.attempt(generation=1)).n == 2
    assert left.paid() == 2


def resolving(value: Any) -> DAG:
    with DAG("maintenance", schedule=None) as dag:
        GeminiImageCollectOperator(task_id="made", resolve=value)
    return dag


@pytest.mark.parametrize("make", [single, batch])
@pytest.mark.parametrize("reuse", ["task", "dag"])
def test_a_run_is_released_by_the_collect_operator_and_a_clear_buys_once(
    airflow: AirflowHarness, left: OrphanedRecords, make: Callable[..., DAG], reuse: str
) -> None:
    left.sandbox.faults(route="onemin.submit", drop=True, charge="after")
    run = airflow.run_dag(make(reuse=reuse))
    assert run.task("made").state == "failed"
    paid = left.paid()

    def read(key: str) -> Record:
        found = left.ledger.read(key)
        assert found is not None
        return found.record

    [key] = [key for key in left.records() if read(key).state == "intent"]
    assert run.clear("made").task("made").state == "failed", "a Clear alone resolves nothing"
    assert airflow.run_dag(resolving({key: "resubmit"})).task("made").state == "success"
    assert run.clear("made").task("made").state == "success", run.log
    assert run.clear("made").task("made").state == "success", run.log
    assert left.paid() == paid + 1


@pytest.mark.parametrize("make", [single, batch])
def test_on_unknown_and_max_cost_of_an_existing_run_follow_an_airflow_variable(
    airflow: AirflowHarness, left: OrphanedRecords, make: Callable[..., DAG], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the docs say: Airflow takes no new `conf` for a run that exists."""
    template = "{{ var.value.get('geminiimg_on_unknown', 'fail') }}"
    left.sandbox.faults(route="onemin.submit", drop=True, charge="after")
    run = airflow.run_dag(make(on_unknown=template))
    paid = left.paid()
    assert run.clear("made").task("made").state == "failed"
    assert left.paid() == paid
    monkeypatch.setenv("AIRFLOW_VAR_GEMINIIMG_ON_UNKNOWN", "resubmit")
    assert run.clear("made").task("made").state == "success", run.log
    assert left.paid() == paid + 1


async def test_a_collect_notes_whose_a_job_is_where_its_submit_could_not(left: OrphanedRecords) -> None:
    first = await left.submitted("first")
    left.store.delete(job_key(first.gateway, str(first.job_id)))
    await left.collect()
    assert left.image(first)[1] == 1
    same_job(left, str(first.job_id))
    with pytest.raises(OutcomeUnknownError, match=re.escape(f"belongs to record {first.key}")):
        await left.attempt("second")
    assert left.paid() == 2


async def test_a_collect_lands_a_job_that_two_records_hold_for_one_of_them(
    left: OrphanedRecords, lines: pytest.LogCaptureFixture
) -> None:
    first = await left.submitted("first")
    left.store.delete(job_key(first.gateway, str(first.job_id)))
    same_job(left, str(first.job_id))
    second = await left.submitted("second")
    report = await left.collect()
    assert (report.keys["unknown"], report.keys["landed"]) == ([first.key], [second.key])
    assert (left.at(first).state, left.at(first).job_id) == ("intent", None)
    assert f"belongs to record {second.key}" in lines.text
    assert reconcile.resolve(left.ledger, first.key, RESUBMIT) is True


async def test_a_collect_lands_an_image_though_whose_its_job_is_can_not_be_read(left: OrphanedRecords) -> None:
    record = await left.submitted()
    key = job_key(record.gateway, str(record.job_id))
    left.store.delete(key)
    left.store.create(key, b"garbage")
    assert (await left.collect()).keys["landed"] == [record.key]


async def test_a_note_that_fails_leaves_nothing_of_the_failures_text_in_the_log(
    s3_root: str, sandbox: Sandbox, onemin: str, lines: pytest.LogCaptureFixture
) -> None:
    left = OrphanedRecords(sandbox, onemin)

    def fail(params: dict[str, Any], **_: Any) -> None:
        if "/jobs/" in params["url_path"]:
            raise RuntimeError("https://bucket.example/key?X-Amz-Signature=0123456789abcdef")

    events = default_s3_client(None).meta.events
    events.register("before-call.s3.PutObject", fail, unique_id="fail")
    try:
        assert left.image(await left.attempt())[1] == 1
    finally:
        events.unregister("before-call.s3.PutObject", unique_id="fail")
    [said] = [line for line in lines.messages if "Could not note that job" in line]
    assert "reports RuntimeError" in said
    assert "Signature" not in lines.text
