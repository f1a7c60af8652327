"""A store that fails at any point of an attempt: nothing paid for is lost, and nothing unsure is sent."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest

from airflow_provider_geminiimg.core.http import exchange
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.purchase import lifecycle
from airflow_provider_geminiimg.core.purchase import submission as submission_module
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.results import JobInFlight, LandedImage
from airflow_provider_geminiimg.exceptions import Billed, LedgerError, NotSentError, OutcomeUnknownError, StorageError
from tests.harness.records import ITEM, Wire
from tests.harness.shop import Memory, Shop, until


async def test_a_store_that_fails_right_after_the_answer_does_not_lose_the_image(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store = wire
    async with shop.attempt() as purchase:
        result = await asyncio.wait_for(started(purchase, wire), 10)
        assert isinstance(result, JobInFlight)
        record = result.record
        assert f"Job {record.job_id} is paid, but record {record.key} was not updated" in caplog.text
        manifest = (await purchase.finish(record)).manifest
    assert shop.submission(manifest) == 1
    assert shop.paid() == shop.submits() == 1
    assert shop.record.state == "landed"


async def started(purchase: Purchase, wire: Wire) -> LandedImage | JobInFlight:
    """Start, and mend the line as soon as recording has failed once."""

    async def mend() -> None:
        await until(lambda: purchase.submission._recording is not None)
        wire.always.clear()

    mending = asyncio.create_task(mend())
    try:
        return await purchase.start()
    finally:
        await mending


async def test_an_answer_that_could_be_neither_recorded_nor_landed_at_once_is_on_record_when_the_attempt_ends(
    link_shop: Shop,
) -> None:
    shop = link_shop
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store, shop.files.full = wire, True
    async with shop.attempt() as purchase:
        with pytest.raises(StorageError):
            await asyncio.wait_for(started(purchase, wire), 10)
    assert shop.record.state == "answered"
    shop.files.full = False
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_an_attempt_that_is_interrupted_before_its_answer_is_recorded_records_it_first(each_shop: Shop) -> None:
    shop = each_shop
    await asyncio.to_thread(shop.real.probe)
    recording, go_on = threading.Event(), threading.Event()

    class Slow(Wire):
        def replace(self, key: str, data: bytes, version: str) -> str | None:
            if key.startswith("ledger/"):
                recording.set()
                go_on.wait(10)
            return super().replace(key, data, version)

    shop.store = Slow(shop.real)
    attempt = asyncio.create_task(shop.buy())
    await asyncio.to_thread(recording.wait, 10)
    attempt.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert shop.record.state == "submitted"
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_store_that_never_comes_back_does_not_keep_the_image_from_landing(
    link_shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = link_shop
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store = wire
    monkeypatch.setattr(submission_module, "RECORDING_SECONDS", 0.1)
    manifest = await shop.buy()
    assert shop.submission(manifest) == 1
    assert "was not updated" in caplog.text
    shop.store = shop.real
    shop.overdue()
    await shop.refused(OutcomeUnknownError)
    assert shop.submits() == 1


async def test_an_attempt_that_is_interrupted_while_it_records_its_job_has_logged_it(
    disk_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = disk_shop
    await asyncio.to_thread(shop.real.probe)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Wire):
        def replace(self, key: str, data: bytes, version: str) -> str | None:
            begun.set()
            go_on.wait(10)
            raise StorageError("The line is down.")

    shop.store = Slow(shop.real, "ledger/")
    attempt = asyncio.create_task(shop.buy())
    await asyncio.to_thread(begun.wait, 10)
    attempt.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert f"job {shop.sandbox.ledger()[0]['job_id']} (record {shop.record.key})" in caplog.text


async def test_a_landing_that_could_not_be_recorded_at_once_is_recorded(shop: Shop) -> None:
    record = await shop.submit()
    wire = Wire(shop.real, "ledger/")
    wire.once["replace"] = "before"
    shop.store = wire
    manifest = await shop.buy()
    assert (shop.record.key, shop.record.state, shop.record.manifest) == (record.key, "landed", manifest)


async def test_a_store_that_can_not_be_read_lets_nothing_be_sent(shop: Shop) -> None:
    await asyncio.to_thread(shop.real.probe)
    for operation in ("keys", "create"):
        wire = Wire(shop.real, "ledger/")
        wire.always[operation] = "before"
        shop.store = wire
        await shop.refused(StorageError)
    assert shop.submits() == 0


async def test_a_store_that_can_not_be_read_does_not_say_that_nothing_was_spent(disk_shop: Shop) -> None:
    shop, marker = disk_shop, Memory()
    wire = Wire(shop.real, "ledger/")
    wire.always["keys"] = "before"
    shop.store = wire
    assert (await shop.refused(StorageError, marker=marker)).billed is Billed.NO
    shop.store = shop.real
    record = await shop.submit(marker=marker)
    shop.store = wire
    assert (await shop.refused(StorageError, marker=marker)).billed is Billed.UNKNOWN
    assert (await shop.refused(StorageError)).billed is Billed.UNKNOWN
    async with shop.attempt() as purchase:
        with pytest.raises(StorageError) as caught:
            await purchase.resume(str(record.job_id))
    assert caught.value.billed is Billed.YES


async def test_a_claim_that_took_too_long_for_its_answer_to_be_in_time_sends_nothing(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = disk_shop
    # The exchange fits into what is left of the time that other attempts wait.
    assert submission_module.CLAIM_SECONDS + exchange.OVERHEAD <= submission_module.ANSWER_MARGIN
    monkeypatch.setattr(submission_module, "CLAIM_SECONDS", -1.0)
    monkeypatch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
    await shop.refused(NotSentError)
    assert shop.submits() == 0
    assert shop.states() == [("failed", "not_sent")]


async def test_a_record_that_can_not_be_read_lets_nothing_be_sent(shop: Shop) -> None:
    assert shop.real.create(record_key(ITEM, 1), b"{") is not None
    error = await shop.refused(LedgerError)
    assert record_key(ITEM, 1) in str(error)
    assert shop.calls() == 0


async def test_a_claim_whose_answer_got_lost_is_used(shop: Shop) -> None:
    await asyncio.to_thread(shop.real.probe)
    for fault in ("nothing", "after"):
        wire = Wire(shop.real, "ledger/")
        wire.once["create"] = fault
        shop.store = wire
        item = dataclasses.replace(ITEM, task_id=fault)
        manifest = await shop.buy(item=item, destination=Destination(shop.folder, fault))
        assert manifest["reused"] is False
    assert shop.submits() == shop.paid() == 2
