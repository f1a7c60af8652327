"""``reuse="dag"``: the tasks of one DAG buy an image once between them, whatever becomes of each of them.

First the decision, row by row; then attempts at a sandbox's gateway, with the root on disk and on S3; then operators in
a real Airflow. The sandbox's own ledger says what was paid for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.sdk import DAG
from PIL import Image

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, read_entry
from airflow_provider_geminiimg.core.ledger.layout import index_key
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.purchase import lifecycle, reuse_decision, submission
from airflow_provider_geminiimg.core.purchase.decision import Policy, Refuse, Submit, WaitForRecord
from airflow_provider_geminiimg.core.purchase.reuse_decision import (
    Claim,
    CopyFrom,
    IndexedImage,
    ReuseDecision,
    copy_of,
    decide_reuse,
)
from airflow_provider_geminiimg.core.reconcile.scan import Scope
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InsufficientBalanceError,
    InvalidImageError,
    LedgerError,
    LinkExpiredError,
    NotSentError,
    OutcomeUnknownError,
    StorageError,
    TimedOutError,
)
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.orphaned_records import LOGGER, OrphanedRecords
from tests.harness.records import ITEM, landed, make_record, submitted
from tests.harness.shop import Memory

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

FIRST = Submit(1, "no earlier request")
OTHER = dataclasses.replace(ITEM, task_id="other")
ENTRY = Entry("ledger/default/campaign/run/hero/-1/0/1.json", "claim", "version", 1.0)
OUT_OF_REACH = InvalidImageError("It is no image.")
NOBODY_KNOWS = OutcomeUnknownError("The connection broke.")


# The decision


def decided(
    record: Record | None, step: Submit = FIRST, policy: Policy | None = None, *, age: float = 1.0, **more: Any
) -> ReuseDecision:
    found = None if record is None else StoredRecord(record, "version", age)
    known = IndexedImage(**{"entry": ENTRY, "found": found, "waited": 10.0, **more})
    return decide_reuse(step, known, policy or Policy(0, reuse="dag"), 100.0)


def failed(error: GeminiImageError) -> Record:
    return with_error(make_record(), error, "failed")


def test_nothing_in_the_index_is_bought() -> None:
    assert decided(None, entry=None) == Claim(FIRST, None)


def test_an_entry_of_the_tasks_own_is_written_again_so_that_nobody_else_takes_it_for_left() -> None:
    assert decided(None, own=True) == Claim(FIRST, ENTRY)


@pytest.mark.parametrize("record", [landed(), submitted(), make_record()], ids=lambda record: record.state)
def test_a_clear_that_asks_for_a_new_image_gets_one_whatever_the_index_says(record: Record) -> None:
    step = dataclasses.replace(FIRST, regenerate=True)
    assert decided(record, step, intact="there") == Claim(step, ENTRY)


def test_an_entry_without_its_record_is_waited_for_and_then_taken_over() -> None:
    assert decided(None) == WaitForRecord(reuse_decision.ENTRY_SECONDS - 1.0)
    decision = decided(None, entry=dataclasses.replace(ENTRY, age=reuse_decision.ENTRY_SECONDS))
    assert isinstance(decision, Claim)
    assert decision.over is not None


def test_nobody_sends_as_long_after_its_entry_as_it_takes_to_be_given_up() -> None:
    assert submission.CLAIM_SECONDS < reuse_decision.ENTRY_SECONDS / 2


def test_what_has_landed_is_taken() -> None:
    record = landed()
    assert decided(record, intact="there") == CopyFrom(record)


@pytest.mark.parametrize("image", ["gone", "changed"])
def test_what_is_not_there_as_it_landed_is_bought_and_the_reason_names_the_record(image: Any) -> None:
    record = landed()
    decision = decided(record, intact=image)
    assert isinstance(decision, Claim)
    assert record.key in decision.step.why


def test_an_image_of_which_nobody_can_tell_is_a_storage_error() -> None:
    error = refused(decided(landed(), intact="unknown"))
    assert isinstance(error, StorageError)
    assert error.billed is Billed.NO


def test_an_answer_that_may_still_come_is_waited_for() -> None:
    assert decided(make_record(answer_within=240.0), age=40.0) == WaitForRecord(200.0)


def test_a_job_that_runs_is_waited_for_no_longer_than_the_timeout() -> None:
    assert decided(submitted(), waited=40.0) == WaitForRecord(60.0)
    error = refused(decided(submitted(job_id="job-7"), waited=100.0))
    assert isinstance(error, TimedOutError)
    assert "job-7" in str(error)
    assert submitted().key in str(error)


def test_a_result_that_nobody_can_fetch_is_not_bought_beside_it() -> None:
    assert isinstance(refused(decided(with_error(submitted(), OUT_OF_REACH))), TimedOutError)


@pytest.mark.parametrize("record", [make_record(), with_error(submitted(), NOBODY_KNOWS)], ids=["intent", "submitted"])
def test_what_nobody_knows_follows_the_tasks_own_on_unknown(record: Record) -> None:
    error = refused(decided(record, age=1000.0))
    assert isinstance(error, OutcomeUnknownError)
    assert record.key in str(error)
    decision = decided(record, policy=Policy(0, "resubmit"), age=1000.0)
    assert isinstance(decision, Claim)
    assert decision.step.resubmission


def test_what_was_sent_again_once_is_not_sent_again_because_of_another_ones_unknown_outcome() -> None:
    step = Submit(3, "x", resubmission=True, replaces=failed(NotSentError("No route.")))
    assert isinstance(decided(make_record(), step, Policy(0, "resubmit"), age=1000.0), Refuse)


@pytest.mark.parametrize("error", [AuthenticationError("No."), InsufficientBalanceError("No."), NotSentError("No.")])
def test_what_failed_unpaid_is_bought(error: GeminiImageError) -> None:
    assert isinstance(decided(failed(error)), Claim)


def test_what_failed_after_payment_is_the_same_failure_here_and_names_the_record() -> None:
    record = failed(ContentRefusedError("The content was refused.", billed=Billed.UNKNOWN))
    error = refused(decided(record))
    assert isinstance(error, ContentRefusedError)
    assert record.key in str(error)
    assert 'reuse="task"' in str(error)


def refused(decision: ReuseDecision) -> GeminiImageError:
    assert isinstance(decision, Refuse), decision
    return decision.error


# Attempts


class Tasks(OrphanedRecords):
    """Tasks of one DAG that want one image."""

    async def want(self, task_id: str, **more: Any) -> Record:
        return await self.attempt(task_id, **{"prompt": "the same", "reuse": "dag", **more})

    async def refused(self, kind: type[GeminiImageError], task_id: str, **more: Any) -> GeminiImageError:
        with pytest.raises(kind) as caught:
            await self.want(task_id, **more)
        assert caught.value.kind == kind.kind
        return caught.value

    def bytes_of(self, record: Record) -> bytes:
        return self.environment.files.read((record.manifest or {})["images"][0]["uri"], max_bytes=10_000_000)

    def entry(self, record: Record) -> Entry:
        found = read_entry(self.store, index_key(record.key, record.fingerprint))
        assert found is not None
        return found

    def remove(self, record: Record) -> None:
        uri = (record.manifest or {})["images"][0]["uri"]
        if uri.startswith("file://"):
            Path(uri.removeprefix("file://")).unlink()
        else:
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            boto3.client("s3").delete_object(Bucket=bucket, Key=key)


def overwrite(uri: str) -> None:
    Path(uri.removeprefix("file://")).write_bytes(b"something else")


def make_unreadable(uri: str) -> None:
    """Put something at a path on disk that even root can't look at."""
    path = Path(uri.removeprefix("file://"))
    path.unlink()
    path.symlink_to(path)


async def waiting(caplog: pytest.LogCaptureFixture, tasks: int) -> None:
    """Until so many tasks wait for another one's image."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while caplog.text.count("has the same request; waiting") < tasks:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    await asyncio.to_thread(wait)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    monkeypatch.setattr(lifecycle, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.01)


@pytest.fixture
def tasks(root: str, sandbox: Sandbox, onemin: str) -> Tasks:
    return Tasks(sandbox, onemin)


@pytest.fixture
def disk_tasks(local_root: str, sandbox: Sandbox, onemin: str) -> Tasks:
    return Tasks(sandbox, onemin)


async def test_a_copy_costs_nothing_and_is_the_tasks_own_for_good(
    tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    first = await tasks.want("first")
    copy = await tasks.want("second", marker=(memory := Memory()))
    assert tasks.paid() == 1
    assert (copy.state, copy.n, copy.reused_from) == ("landed", 1, first.key)
    assert copy.cost == {"amount": 0.0, "currency": "USD", "basis": "reused"}
    manifest = copy.manifest or {}
    assert (manifest["record"], manifest["reused"], manifest["cost"]) == (copy.key, True, copy.cost)
    assert manifest["images"][0]["uri"].endswith("/second.png")
    assert tasks.bytes_of(copy) == tasks.bytes_of(first)
    assert f"Record {first.key} has landed the same image" in caplog.text
    tasks.remove(first)
    reconcile.forget(tasks.ledger, first.key)
    calls = len(tasks.sandbox.calls())
    for generation in (0, 1):
        assert (await tasks.want("second", generation=generation, marker=memory)).key == copy.key
    assert (await tasks.want("third")).reused_from == copy.key
    assert len(tasks.sandbox.calls()) == calls


async def test_without_it_and_for_another_image_or_another_dag_each_buys(disk_tasks: Tasks) -> None:
    await disk_tasks.want("first")
    await disk_tasks.want("second", reuse="task")
    await disk_tasks.want("third", prompt="another")
    await disk_tasks.want("fourth", item=dataclasses.replace(ITEM, dag_id="elsewhere"))
    assert disk_tasks.paid() == 4


@pytest.mark.parametrize(("fate", "says"), [("gone", "is gone from storage"), ("changed", "has changed since")])
async def test_an_image_that_is_not_there_as_it_landed_is_bought(
    tasks: Tasks, fate: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = await tasks.want("first")
    tasks.remove(first)
    if fate == "changed":
        image = (first.manifest or {})["images"][0]
        other = tasks.environment.files
        other.put(image["uri"], b"x" * image["size"], media_type="image/png")
    second = await tasks.want("second")
    assert tasks.paid() == 2
    assert second.reused_from is None
    assert f"the image of record {first.key} {says}" in caplog.text
    assert tasks.entry(second).record == second.key


async def test_an_image_that_can_not_be_looked_at_is_a_storage_error_and_nothing_is_sent(disk_tasks: Tasks) -> None:
    first = await disk_tasks.want("first")
    make_unreadable((first.manifest or {})["images"][0]["uri"])
    error = await disk_tasks.refused(StorageError, "second")
    assert "No money was spent." in str(error)
    assert disk_tasks.paid() == 1


async def test_while_one_buys_the_others_wait_and_then_copy(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    tasks.sandbox.faults(route="onemin.submit", hold=True)
    winner = asyncio.create_task(tasks.want("winner"))
    await asyncio.to_thread(tasks.sandbox.held)
    losers = [asyncio.create_task(tasks.want(f"loser-{number}")) for number in range(2)]
    await waiting(caplog, 2)
    tasks.sandbox.release()
    first, *copies = await asyncio.gather(winner, *losers)
    assert tasks.paid() == tasks.calls("submit") == 1
    assert first.reused_from is None
    assert all(copy.reused_from is not None for copy in copies)


async def test_of_those_that_wait_one_buys_where_the_first_one_failed_unpaid(
    disk_tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    disk_tasks.sandbox.faults(route="onemin.submit", hold=True, status=401)
    winner = asyncio.create_task(disk_tasks.want("winner"))
    await asyncio.to_thread(disk_tasks.sandbox.held)
    losers = [asyncio.create_task(disk_tasks.want(f"loser-{number}")) for number in range(3)]
    await waiting(caplog, 3)
    disk_tasks.sandbox.release()
    with pytest.raises(AuthenticationError):
        await winner
    records = await asyncio.gather(*losers)
    assert sorted(record.reused_from is None for record in records) == [False, False, True]
    assert disk_tasks.paid() == 1


async def test_what_a_dead_task_paid_for_is_not_bought_again_and_copied_once_it_is_collected(disk_tasks: Tasks) -> None:
    left = await disk_tasks.submitted("first", prompt="the same", reuse="dag")
    disk_tasks.change(left, submitted_at=time.time() - 100.0)
    error = await disk_tasks.refused(TimedOutError, "second")
    assert left.key in str(error)
    assert "jobs collect" in str(error)
    await disk_tasks.collect()
    assert (await disk_tasks.want("second")).reused_from == left.key
    assert disk_tasks.paid() == 1


async def test_an_unknown_outcome_keeps_the_others_from_buying_unless_they_are_told_to(disk_tasks: Tasks) -> None:
    left = await disk_tasks.unknown("first", prompt="the same", reuse="dag")
    error = await disk_tasks.refused(OutcomeUnknownError, "second")
    assert left.key in str(error)
    assert disk_tasks.calls("submit") == 1
    second = await disk_tasks.want("second", on_unknown="resubmit")
    assert (second.resubmission, second.reused_from) == (True, None)
    assert (await disk_tasks.want("third")).reused_from == second.key
    assert disk_tasks.calls("submit") == 2


async def test_a_clear_that_asks_for_a_new_image_buys_it_and_from_then_on_that_one_is_copied(
    disk_tasks: Tasks,
) -> None:
    await disk_tasks.want("first")
    copy = await disk_tasks.want("second")
    again = await disk_tasks.want("second", generation=1, on_clear="regenerate")
    assert (again.n, again.reused_from) == (2, None)
    assert copy.n == 1
    assert disk_tasks.paid() == 2
    third = await disk_tasks.want("third")
    assert third.reused_from == again.key
    assert disk_tasks.bytes_of(third) == disk_tasks.bytes_of(again)


async def test_an_entry_whose_buyer_died_before_its_record_is_taken_over_after_a_while(
    disk_tasks: Tasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fingerprint = (await disk_tasks.want("first")).fingerprint
    await disk_tasks.want("second", prompt="another")
    reconcile.forget(disk_tasks.ledger, disk_tasks.record("first").key)
    key = index_key(ITEM.path, fingerprint)
    dead = {"record": f"{OTHER.path}/1.json", "claim": "dead"}
    assert disk_tasks.store.create(key, json.dumps(dead).encode())
    asked = asyncio.create_task(disk_tasks.want("third"))
    await waiting(caplog, 1)
    assert disk_tasks.paid() == 2
    monkeypatch.setattr(reuse_decision, "ENTRY_SECONDS", 0.0)
    third = await asked
    assert disk_tasks.entry(third).record == third.key
    assert disk_tasks.paid() == 3


async def test_an_entry_that_can_not_be_read_is_an_error_and_nothing_is_sent(disk_tasks: Tasks) -> None:
    record = await disk_tasks.want("first")
    found = disk_tasks.entry(record)
    key = index_key(record.key, record.fingerprint)
    for broken in (b"", b"[]", b'{"record": "x"}', json.dumps({"record": "../x", "claim": ""}).encode()):
        assert disk_tasks.store.replace(key, broken, found.version)
        found = dataclasses.replace(found, version=getattr(disk_tasks.store.read(key), "version", ""))
        error = await disk_tasks.refused(LedgerError, "second")
        assert key in str(error)
    assert disk_tasks.paid() == 1


async def test_a_copy_that_was_not_finished_is_made_again_under_the_same_name(disk_tasks: Tasks) -> None:
    first = await disk_tasks.want("first")
    copy = await disk_tasks.want("second")
    half = dataclasses.replace(copy_of(copy, first), claim="dead", landed_at=None, manifest=None)
    reconcile.forget(disk_tasks.ledger, copy.key)
    disk_tasks.ledger.create(half)
    disk_tasks.store.delete(index_key(first.key, first.fingerprint))
    await disk_tasks.want("first", generation=0)
    disk_tasks.store.create(
        index_key(first.key, first.fingerprint), json.dumps({"record": first.key, "claim": "x"}).encode()
    )
    again = await disk_tasks.want("second")
    assert (again.n, again.reused_from) == (2, first.key)
    assert (again.manifest or {})["images"][0]["uri"].endswith("/second.png")
    assert disk_tasks.paid() == 1


async def test_a_copy_that_is_gone_is_fetched_from_the_gateway_and_still_costs_nothing(disk_tasks: Tasks) -> None:
    await disk_tasks.want("first")
    copy = await disk_tasks.want("second")
    disk_tasks.remove(copy)
    again = await disk_tasks.want("second")
    assert again.key == copy.key
    assert (again.manifest or {})["cost"]["amount"] == 0.0
    assert disk_tasks.paid() == 1


async def test_of_two_that_have_an_image_in_common_either_gives_it_back_to_the_other(tasks: Tasks) -> None:
    first = await tasks.want("first")
    second = await tasks.want("second")
    tasks.sandbox.reset()
    for gone in (second, first, second):
        tasks.remove(gone)
        again = await tasks.want(gone.key.split("/")[4], generation=1)
        assert (again.key, again.manifest["images"]) == (gone.key, gone.manifest["images"])
        assert tasks.bytes_of(again) == tasks.bytes_of(first if gone is second else second)
    assert tasks.paid() == 0, "nor was the gateway, which has forgotten all, asked"


async def test_another_image_of_the_same_request_is_not_taken_for_one_that_is_gone(disk_tasks: Tasks) -> None:
    first = await disk_tasks.want("first")
    await disk_tasks.want("second", on_clear="regenerate", reuse="task")
    disk_tasks.remove(first)
    disk_tasks.sandbox.reset()
    await disk_tasks.refused(LinkExpiredError, "first", generation=1)


async def forget(tasks: Tasks, record: Record) -> None:
    reconcile.forget(tasks.ledger, record.key)


async def change(tasks: Tasks, record: Record) -> None:
    overwrite((record.manifest or {})["images"][0]["uri"])


async def remove(tasks: Tasks, record: Record) -> None:
    tasks.remove(record)


@pytest.mark.parametrize("goes", [remove, change, forget])
@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_whatever_becomes_of_some_copies_nothing_is_bought_as_long_as_one_has_the_image(
    disk_tasks: Tasks, goes: Any, kept: int
) -> None:
    tasks = disk_tasks
    records = [await tasks.want(name) for name in ("first", "second", "third")]
    if goes is forget:  # newest first: who was copied from an older one is asked for it
        records.reverse()
    for record in records[:kept] + records[kept + 1 :]:
        await goes(tasks, record)
    fourth = await tasks.want("fourth")
    assert fourth.reused_from == records[kept].key
    assert tasks.entry(fourth).record == fourth.key
    await remove(tasks, records[kept])
    assert (await tasks.want("fifth")).reused_from == fourth.key
    assert len(tasks.sandbox.ledger()) == 1


async def purge(tasks: Tasks, record: Record) -> None:
    scope = Scope(ITEM.namespace, task_id=record.key.split("/")[4])
    assert [key async for key in reconcile.purge(tasks.ledger, scope, days=0)] == [record.key]


@pytest.mark.parametrize("goes", [forget, purge])
@pytest.mark.parametrize("then", [remove, change, forget])
@pytest.mark.parametrize("middle", [[1], [1, 2], [2, 1]], ids=str)
async def test_copies_in_the_middle_that_are_forgotten_break_no_chain(
    disk_tasks: Tasks, goes: Any, then: Any, middle: list[int]
) -> None:
    tasks = disk_tasks
    records = [await tasks.want(name) for name in ("first", "second", "third", "fourth")]
    for number in middle:
        await goes(tasks, records[number])
    await then(tasks, records[3])
    fifth = await tasks.want("fifth")
    assert tasks.bytes_of(fifth) == tasks.bytes_of(records[0])
    assert len(tasks.sandbox.ledger()) == 1


async def test_a_copy_that_was_forgotten_is_made_again(disk_tasks: Tasks) -> None:
    first = await disk_tasks.want("first")
    await forget(disk_tasks, await disk_tasks.want("second"))
    assert (await disk_tasks.want("second")).reused_from == first.key
    assert len(disk_tasks.sandbox.ledger()) == 1


async def test_purged_copies_leave_the_original_to_the_others(disk_tasks: Tasks) -> None:
    await disk_tasks.want("z-first")
    await disk_tasks.want("a-second")
    scope = Scope(ITEM.namespace, task_id="a-second")
    assert len([key async for key in reconcile.purge(disk_tasks.ledger, scope, days=0)]) == 1
    assert (await disk_tasks.want("third")).reused_from
    assert len(disk_tasks.sandbox.ledger()) == 1


async def test_a_new_image_that_failed_unpaid_leaves_the_one_before_to_the_others(disk_tasks: Tasks) -> None:
    tasks = disk_tasks
    first = await tasks.want("first")
    await tasks.want("second")
    tasks.sandbox.faults(route="onemin.submit", status=401)
    await tasks.refused(AuthenticationError, "second", generation=1, on_clear="regenerate")
    third = await tasks.want("third")
    assert third.reused_from is not None
    assert tasks.bytes_of(third) == tasks.bytes_of(first)
    assert len(tasks.sandbox.ledger()) == 1


async def test_while_nobody_can_tell_whether_the_original_is_there_nothing_is_bought(disk_tasks: Tasks) -> None:
    first = await disk_tasks.want("first")
    disk_tasks.remove(await disk_tasks.want("second"))
    make_unreadable((first.manifest or {})["images"][0]["uri"])
    await disk_tasks.refused(StorageError, "third")
    assert len(disk_tasks.sandbox.ledger()) == 1


async def test_a_copy_of_a_copy_that_are_both_gone_is_made_again_from_the_original(disk_tasks: Tasks) -> None:
    tasks = disk_tasks
    await tasks.want("first")
    second, third = await tasks.want("second"), await tasks.want("third")
    tasks.remove(second)
    tasks.remove(third)
    calls = len(tasks.sandbox.calls())
    assert tasks.bytes_of(await tasks.want("third"))
    assert len(tasks.sandbox.calls()) == calls, "the gateway was not asked"


async def test_a_sidecar_and_a_record_of_a_copy_hold_no_prompt(disk_tasks: Tasks) -> None:
    await disk_tasks.want("first", prompt="a very secret fox")
    await disk_tasks.want("second", prompt="a very secret fox")
    kept = {name: data for name, data in disk_tasks.everything().items() if not name.endswith(".png")}
    assert len(kept) > 6
    assert not [name for name, data in kept.items() if b"secret" in data]


async def test_of_many_tasks_at_once_one_buys(tasks: Tasks) -> None:
    for race in range(1 if tasks.store.uri.startswith("s3://") else 3):
        wanted = (tasks.want(f"task-{race}-{number}", prompt=f"race {race}") for number in range(8))
        records = await asyncio.gather(*wanted)
        assert sum(record.reused_from is None for record in records) == 1
        assert tasks.paid() == race + 1


@pytest.mark.parametrize("taken", [False, True], ids=["nothing there", "one to take over"])
def test_of_many_claimants_of_an_entry_one_gets_it(root: str, taken: bool) -> None:
    store = open_store(root, AIRFLOW_OPENERS)
    claimants, races = 8, 25 if root.startswith("file://") else 4
    together = threading.Barrier(claimants)

    def claim(race: int, number: int) -> bool:
        item = dataclasses.replace(ITEM, task_id=f"task-{number}")
        record = make_record(item, fingerprint=f"{race:064x}")
        key = index_key(record.key, record.fingerprint)
        over = read_entry(store, key)
        together.wait(30)
        return Claim(FIRST, over).write(store, record)

    with ThreadPoolExecutor(claimants) as pool:
        for race in range(races):
            if taken:
                key = index_key(ITEM.path, f"{race:064x}")
                store.create(key, json.dumps({"record": make_record(OTHER).key, "claim": "left"}).encode())
            assert sum(pool.map(claim, [race] * claimants, range(claimants))) == 1


# Operators


def one_image(conn_id: str, **arguments: Any) -> DAG:
    with DAG("shared", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made",
            geminiimg_conn_id=conn_id,
            **{"prompt": "a lighthouse", "resolution": "512", "poll_interval": 0.05, "reuse": "dag", **arguments},
        )
    return dag


def manifest(run: Run, task_id: str = "made") -> dict[str, Any]:
    assert run.state == "success", run.log
    value = run.task(task_id).value
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("gateway", "place", "deferrable"),
    [("onemin", "local_root", False), ("apimaster", "s3_root", True)],
    ids=["1min, disk, waiting", "APIMaster, S3, deferred"],
)
def test_the_next_run_copies_and_a_clear_of_it_buys_only_where_it_says_so(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    gateway: str,
    place: str,
    deferrable: bool,
    request: pytest.FixtureRequest,
) -> None:
    geminiimg_conn_id = str(request.getfixturevalue(gateway))
    request.getfixturevalue(place)
    dag = one_image(geminiimg_conn_id, deferrable=deferrable)
    first = manifest(airflow.run_dag(dag, run_id="monday"))
    run = airflow.run_dag(dag, run_id="tuesday")
    second = manifest(run)
    assert (first["reused"], second["reused"]) == (False, True)
    assert "/tuesday/" in second["images"][0]["uri"]
    assert first["record"] in run.log
    assert second["images"][0]["sha256"] == first["images"][0]["sha256"]
    run.retry("made", dag=one_image(geminiimg_conn_id, on_clear="regenerate"))
    assert manifest(run)["record"] == second["record"]
    run.clear("made", dag=dag)
    assert manifest(run)["record"] == second["record"]
    assert len(sandbox.ledger()) == 1
    run.clear("made", dag=one_image(geminiimg_conn_id, on_clear="regenerate", deferrable=deferrable))
    assert manifest(run)["reused"] is False
    assert len(sandbox.ledger()) == 2


def test_mapped_tasks_of_one_prompt_buy_it_once(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str
) -> None:
    with DAG("shared", schedule=None) as dag:
        GeminiImageGenerateOperator.partial(
            task_id="made", geminiimg_conn_id=onemin, poll_interval=0.05, resolution="512", reuse="{{ params.reuse }}"
        ).expand(prompt=["a fox", "a wolf", "a fox"])
    dag.params["reuse"] = "dag"
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert [task.value["reused"] for task in run.tasks("made")] == [False, False, True]
    assert sorted(entry["prompt"] for entry in sandbox.ledger()) == ["a fox", "a wolf"]


def test_the_images_of_a_batch_are_reused_in_the_next_run_and_cost_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, root: str
) -> None:
    with DAG("shared", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="made",
            requests=["a fox", "a wolf"],
            geminiimg_conn_id=onemin,
            resolution="512",
            poll_interval=0.05,
            reuse="dag",
        )
    airflow.run_dag(dag, run_id="monday")
    value = manifest(airflow.run_dag(dag, run_id="tuesday"))
    assert (value["counts"]["reused"], value["counts"]["landed"], value["cost"]) == (2, 0, {})
    assert len(sandbox.ledger()) == 2


@pytest.mark.usefixtures("local_root")
def test_what_changed_since_the_last_run_is_named_the_bytes_of_an_input_too(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path
) -> None:
    source, other = tmp_path / "source.png", tmp_path / "other.png"
    for path in (source, other):
        Image.new("RGB", (64, 64), "red").save(path)

    def edit(prompt: str) -> DAG:
        with DAG("shared", schedule=None) as dag:
            GeminiImageEditOperator(
                task_id="made",
                image=str(source),
                reference_images=[str(other)],
                prompt=prompt,
                geminiimg_conn_id=onemin,
                resolution="512",
                poll_interval=0.05,
                reuse="dag",
            )
        return dag

    first = manifest(airflow.run_dag(edit("make it winter"), run_id="monday"))
    Image.new("RGB", (64, 64), "blue").save(other)
    run = airflow.run_dag(edit("make it summer"), run_id="tuesday")
    said = f"Changed since record {first['record']}: prompt, input image 2 (other bytes under the same address)."
    assert said in run.log
    Image.new("RGB", (64, 64), "green").save(source)
    run.clear("made")
    assert ": input image 1 (other bytes under the same address); the new request is sent" in run.log
    assert len(sandbox.ledger()) == 3


def test_a_word_that_it_does_not_know_is_refused_when_the_dag_is_parsed() -> None:
    for make in (
        lambda: one_image("x", reuse="run"),
        lambda: GeminiImageBatchOperator(task_id="x", requests=[], reuse=""),
    ):
        with pytest.raises(BadRequestError, match="'task' or 'dag'"):
            make()
