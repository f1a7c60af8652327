"""What an attempt does about a job that it finds in the record, or that a trigger's event brings."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    ContentRefusedError,
    LostContactError,
    OutcomeUnknownError,
    TimedOutError,
)
from tests.harness.records import make_record, submitted
from tests.harness.shop import Shop, png

# A job was there


async def test_a_submitted_job_is_collected_by_the_next_attempt(each_shop: Shop) -> None:
    record = await each_shop.submit()
    assert each_shop.record.state == "submitted"
    manifest = await each_shop.buy()
    assert each_shop.paid() == each_shop.submits() == 1
    assert manifest["job_id"] == record.job_id
    assert each_shop.submission(manifest) == 1


async def test_a_retry_uses_the_recorded_request_and_destination_and_says_what_differs(
    disk_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = disk_shop
    await shop.submit()
    elsewhere = Destination(f"{shop.folder}/elsewhere", "other")
    manifest = await shop.buy(prompt="a cat", resolution="1K", destination=elsewhere)
    assert manifest["images"][0]["uri"] == f"{shop.folder}/hero.png"
    assert shop.submits() == 1
    assert ": prompt, destination, resolution; the recorded request is used" in caplog.text


async def test_a_retry_collects_even_where_what_is_asked_for_is_wrong_now(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    assert shop.submission(await shop.buy(request=BadRequestError("prompt: is empty."))) == 1


async def test_a_clear_with_the_same_request_collects_the_job(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    manifest = await shop.buy(generation=1, on_unknown="resubmit", on_clear="regenerate")
    assert shop.submits() == 1
    assert shop.submission(manifest) == 1
    assert (await shop.buy(generation=1, on_clear="regenerate"))["reused"] is True
    assert shop.submits() == 1


async def test_a_clear_collects_the_job_even_where_its_input_is_gone(disk_shop: Shop, tmp_path: Path) -> None:
    shop, edit = disk_shop, {"operation": "edit", "image": str(tmp_path / "in.png")}
    (tmp_path / "in.png").write_bytes(png())
    await shop.submit(**edit)
    (tmp_path / "in.png").unlink()
    other = {**edit, "image": str(tmp_path / "other.png")}
    await shop.refused(BadRequestError, generation=1, **other)
    await shop.refused(BadRequestError, generation=1, prompt="a cat", **edit)
    assert shop.submission(await shop.buy(generation=1, **edit)) == 1
    assert shop.submits() == 1


@pytest.mark.parametrize("between", ["nothing", "another image", "a refusal"])
async def test_a_clear_returns_what_has_landed_even_where_its_input_is_gone(
    disk_shop: Shop, tmp_path: Path, between: str
) -> None:
    shop, edit = disk_shop, {"operation": "edit", "image": str(tmp_path / "in.png")}
    (tmp_path / "in.png").write_bytes(png())
    first = await shop.buy(**edit)
    if between == "another image":
        await shop.buy(generation=1, prompt="a cat", **edit)
    elif between == "a refusal":
        shop.sandbox.faults(route="onemin.submit", outcome="refused")
        await shop.refused(ContentRefusedError, generation=1, prompt="a cat", **edit)
    (tmp_path / "in.png").unlink()
    paid = shop.paid()
    for generation in (2, 3):
        again = await shop.buy(generation=generation, **edit)
        assert (again["images"], again["reused"]) == (first["images"], True)
    await shop.refused(BadRequestError, generation=4, prompt="a dog", **edit)
    await shop.refused(BadRequestError, generation=4, on_clear="regenerate", **edit)
    assert shop.paid() == paid


async def test_a_clear_that_asks_for_another_image_buys_it_and_keeps_the_first_to_collect(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    first = await shop.submit()
    manifest = await shop.buy(generation=1, prompt="a cat")
    assert shop.paid() == 2
    assert shop.submission(manifest) == 2
    assert manifest["images"][0]["uri"] == f"{shop.folder}/hero-2.png"
    assert ": prompt; the new request is sent" in caplog.text
    left = shop.ledger.read(first.key)
    assert left is not None
    assert (left.record.state, left.record.job_id) == ("submitted", first.job_id)


async def test_a_job_that_the_gateway_never_knew_is_outcome_unknown_after_ten_minutes(each_shop: Shop) -> None:
    shop = each_shop
    shop.put(submitted(job_id="no-such-job", submitted_at=time.time() - 601))
    error = await shop.refused(OutcomeUnknownError, timeout=5000.0)
    assert "no-such-job" in str(error)
    assert shop.submits() == 0
    assert shop.submission(await shop.buy(timeout=5000.0, on_unknown="resubmit")) == 1
    assert (shop.record.n, shop.record.resubmission) == (2, True)


async def test_a_young_job_that_the_gateway_does_not_know_yet_is_running(each_shop: Shop) -> None:
    each_shop.put(submitted(job_id="no-such-job", submitted_at=time.time()))
    await each_shop.refused(TimedOutError, timeout=0.2, on_unknown="resubmit")
    assert each_shop.submits() == 0
    assert each_shop.record.state == "submitted"


async def test_a_job_that_runs_past_the_timeout_is_left_alone_and_collected_later(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.sandbox.settings(latency=0.6)
    await shop.refused(TimedOutError, timeout=0.1)
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_gateway_that_can_not_be_asked_leaves_the_job_alone(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    shop.fault("status", status=502, times=5)
    await shop.refused(LostContactError)
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_connection_that_leads_to_another_gateway_now_does_not_lose_the_job(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    other = Shop(shop.real.uri, shop.sandbox, "apimaster")
    other.conn_id = shop.conn_id
    error = await other.refused(BadRequestError)
    assert "now leads to apimaster" in str(error)
    assert shop.submission(await shop.buy()) == 1
    assert shop.paid() == 1


# What a trigger's event brings


async def test_a_trigger_event_lands_its_job(shop: Shop) -> None:
    record = await shop.submit()
    async with shop.attempt() as purchase:
        result = await purchase.resume(str(record.job_id))
        landed, manifest = result.record, result.manifest
    assert shop.submission(manifest) == 1
    assert landed.state == "landed"


async def test_a_trigger_event_lands_its_job_even_without_a_record(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    record = await shop.submit()
    shop.real.delete(record.key)
    async with shop.attempt() as purchase:
        manifest = (await purchase.resume(str(record.job_id))).manifest
    assert shop.submission(manifest) == 1
    assert f"Job {record.job_id} is not in the ledger" in caplog.text
    assert shop.record.state == "landed"
    assert shop.submits() == 1


async def test_a_trigger_event_lands_its_job_where_the_record_is_still_an_intent(shop: Shop) -> None:
    record = await shop.submit()
    shop.real.delete(record.key)
    shop.put(dataclasses.replace(record, state="intent", job_id=None))
    async with shop.attempt() as purchase:
        manifest = (await purchase.resume(str(record.job_id))).manifest
    assert shop.submission(manifest) == 1
    assert (shop.record.state, shop.record.job_id) == ("landed", record.job_id)
    assert shop.submits() == 1


async def test_a_trigger_event_never_lands_its_job_on_the_record_of_another_submission(disk_shop: Shop) -> None:
    shop = disk_shop
    first = await shop.submit()
    shop.put(make_record(n=2, generation=1))
    async with shop.attempt() as purchase:
        result = await asyncio.wait_for(purchase.resume(str(first.job_id)), 10)
        landed, manifest = result.record, result.manifest
    assert (landed.key, landed.state) == (first.key, "landed")
    assert shop.submission(manifest) == 1
    assert (shop.record.state, shop.record.job_id) == ("intent", None)


async def test_a_trigger_event_of_a_job_that_has_landed_meanwhile_returns_it(disk_shop: Shop) -> None:
    shop = disk_shop
    first = await shop.buy()
    async with shop.attempt() as purchase:
        manifest = (await purchase.resume(first["job_id"])).manifest
    assert manifest == {**first, "reused": True}
