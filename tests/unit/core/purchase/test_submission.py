"""An answer is on record before it is noted whose job it is: a process that is killed in between loses nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core.purchase import submission
from airflow_provider_geminiimg.exceptions import OutcomeUnknownError
from airflow_provider_geminiimg.hooks import object_stores
from tests.harness.moto import start_moto
from tests.harness.orphaned_records import OrphanedRecords
from tests.harness.s3_proxy import S3Proxy

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


@pytest.fixture(scope="module")
def s3_proxy() -> S3Proxy:
    return S3Proxy()


@pytest.fixture(scope="module")
def _moto(s3_proxy: S3Proxy) -> Iterator[str]:
    with start_moto(s3_proxy) as url:
        yield url


@pytest.fixture
def left(
    s3_proxy: S3Proxy, s3_root: str, sandbox: Sandbox, geminiimg_conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OrphanedRecords]:
    """At both gateways, on S3 behind the proxy."""

    monkeypatch.setattr(object_stores, "_CLIENTS", {})  # another test's client leads to another server
    monkeypatch.setattr(submission, "OWNING_SECONDS", 60.0)  # the s3_proxy alone says how long it takes
    yield OrphanedRecords(sandbox, geminiimg_conn_id)
    s3_proxy.open()


def answers_with(left: OrphanedRecords, job_id: str) -> None:
    """Let the gateway answer the next submit with a job that it has named before."""
    if left.gateway == "1min":
        body = {"aiRecord": {"uuid": job_id, "status": "PROCESSING"}}
        left.sandbox.faults(route="onemin.submit", charge="after", body=body)
    else:
        data = [{"status": "submitted", "task_id": job_id}]
        left.sandbox.faults(route="apimaster.submit", charge="after", body={"code": 200, "data": data})


async def test_while_it_is_noted_whose_job_it_is_the_next_attempt_finds_the_job(
    left: OrphanedRecords, s3_proxy: S3Proxy
) -> None:
    held = s3_proxy.hold("PUT", "/jobs/")
    first = asyncio.create_task(left.attempt(land=False))
    await asyncio.to_thread(held.reached)
    record = await asyncio.to_thread(left.record)  # what lies there if the process is killed now
    assert record.state == "submitted"
    assert record.job_id == left.sandbox.ledger()[0]["job_id"]
    first.cancel()
    landed = await left.attempt()
    assert left.image(landed)[1] == 1
    assert left.paid() == 1
    assert [key.rpartition("/")[2] for key in left.store.keys("jobs/")] == [f"{record.job_id}.json"]
    held.let_go()
    await asyncio.wait([first])
    assert left.record().state == "landed"


async def test_a_slow_note_of_whose_job_it_is_keeps_no_image_from_landing(
    left: OrphanedRecords, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "OWNING_SECONDS", 0.2)
    held = s3_proxy.hold("PUT", "/jobs/")
    first = asyncio.create_task(left.attempt())
    await asyncio.to_thread(held.reached)
    landed = await asyncio.wait_for(first, 45.0)  # less than S3's client waits for an answer
    assert left.image(landed)[1] == 1
    held.let_go()


@pytest.mark.parametrize("on_unknown", ["fail", "resubmit"])
async def test_a_job_that_turns_out_to_be_another_records_is_taken_out_of_the_record_again(
    left: OrphanedRecords, on_unknown: str
) -> None:
    other = await left.submitted("other")
    answers_with(left, str(other.job_id))
    with pytest.raises(OutcomeUnknownError, match=re.escape(f"belongs to record {other.key}")):
        await left.attempt("hero")
    record = left.record("hero")
    assert (record.state, record.job_id) == ("intent", None)
    assert isinstance(record.error, OutcomeUnknownError)
    if on_unknown == "fail":
        with pytest.raises(OutcomeUnknownError):
            await left.attempt("hero")
        assert left.paid() == 2
    else:
        assert left.image(await left.attempt("hero", on_unknown="resubmit"))[1] == 3
        assert left.paid() == 3
    assert left.image(await left.attempt("other"))[1] == 1


async def test_another_records_job_that_a_killed_process_recorded_is_taken_out_by_the_next_attempt(
    left: OrphanedRecords, s3_proxy: S3Proxy
) -> None:
    other = await left.submitted("other")
    answers_with(left, str(other.job_id))
    held = s3_proxy.hold("PUT", "/jobs/")
    first = asyncio.create_task(left.attempt("hero", land=False))
    await asyncio.to_thread(held.reached)
    assert left.record("hero").job_id == other.job_id  # what lies there if the process is killed now
    first.cancel()
    with pytest.raises(OutcomeUnknownError, match=re.escape(f"belongs to record {other.key}")):
        await left.attempt("hero")
    assert (left.record("hero").state, left.record("hero").job_id) == ("intent", None)
    held.let_go()
    await asyncio.wait([first])
    assert left.image(await left.attempt("other"))[1] == 1
    assert left.paid() == 2


async def test_a_job_that_was_never_noted_is_noted_by_the_attempt_that_collects_it(
    left: OrphanedRecords,
) -> None:
    first = await left.submitted("first")
    for key in list(left.store.keys("jobs/")):  # its process was killed before
        left.store.delete(key)
    assert left.image(await left.attempt("first"))[1] == 1
    answers_with(left, str(first.job_id))
    with pytest.raises(OutcomeUnknownError, match=re.escape(f"belongs to record {first.key}")):
        await left.attempt("second")
    assert left.paid() == 2
