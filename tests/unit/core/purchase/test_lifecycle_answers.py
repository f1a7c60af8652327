"""Answers that hold the image itself or its link, and no job that could be asked for it again."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core.ledger.layout import record_key, spool_key, tombstone_key
from airflow_provider_geminiimg.exceptions import LinkExpiredError, StorageError
from tests.harness.records import ITEM, Wire
from tests.harness.shop import Shop, png, until

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


pytestmark = pytest.mark.usefixtures("quick")


async def test_an_answered_link_is_fetched_by_the_next_attempt_and_then_forgotten(link_shop: Shop) -> None:
    shop = link_shop
    shop.fault("download", status=404)
    await shop.refused(LinkExpiredError)
    assert shop.record.state == "answered"
    assert shop.record.job_id is None
    link = shop.record.links[0]
    manifest = await shop.buy()
    assert shop.paid() == shop.submits() == 1
    assert shop.submission(manifest) == 1
    assert shop.record.links == []
    assert not any(link.encode() in data for data in shop.objects(shop.real.uri).values())


async def test_an_answered_link_that_is_gone_for_good_is_an_error_until_regenerate(link_shop: Shop) -> None:
    shop = link_shop
    shop.sandbox.settings(link_seconds=0)
    for more in ({}, {}, {"generation": 1}, {"on_clear": "regenerate"}):
        error = await shop.refused(LinkExpiredError, **more)
        assert 'on_clear="regenerate"' in str(error)
    assert shop.submits() == 1
    shop.sandbox.settings(link_seconds=600)
    assert shop.submission(await shop.buy(generation=2, on_clear="regenerate")) == 2


async def test_a_link_answer_whose_record_was_written_although_the_store_did_not_say_so_is_no_second_payment(
    link_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = link_shop
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.once["replace"] = "nothing"
    shop.store = wire
    await shop.buy()
    assert "Possible double charge" not in caplog.text
    assert shop.record.extra_jobs == []


def answers_inline(shop: Shop, data: bytes) -> bytes:
    """Let the gateway's next answer have the image's bytes in it."""
    shop.fault("submit", charge="after", body={"data": [{"b64_json": base64.b64encode(data).decode()}]})
    return data


def inline_shop(root: str, sandbox: Sandbox) -> tuple[Shop, bytes]:
    shop = Shop(root, sandbox, "apimaster")
    return shop, answers_inline(shop, png())


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
async def test_where_the_bytes_of_an_answer_could_not_be_kept_because_their_key_is_too_long_nothing_is_sent(
    s3: str, sandbox: Sandbox, spare: int, fits: bool
) -> None:
    item = dataclasses.replace(ITEM, dag_id="d" * 200, run_id="r" * 200, task_id="t" * 200)
    longest = max(tombstone_key(record_key(item, 1), "c" * 32), spool_key(record_key(item, 1), "c" * 32, 0), key=len)
    root = "/".join(["p" * 80] * 12)[: 1024 - len(longest) - 1 - spare].replace("/", "-")
    shop = Shop(f"{s3}/{root}", sandbox, "apimaster")
    shop.folder = f"{s3}/pictures"
    answers_inline(shop, png())
    shop.files.full = True
    error = await shop.refused(StorageError, item=item)
    assert shop.submits() == fits
    if fits:  # the answer is kept, and landed by the next attempt
        shop.files.full = False
        assert (await shop.buy(item=item))["images"]
        assert shop.submits() == 1
    else:
        assert not error.retryable
        assert "1024 bytes" in error.message
        assert shop.ledger.latest(item) is None


@pytest.mark.parametrize(
    ("bad", "operation"), [("spool/", "create"), ("ledger/", "replace"), ("index/", "create")], ids=lambda each: each
)
async def test_inline_bytes_that_landed_leave_no_spool_where_the_store_failed_once(
    root: str, sandbox: Sandbox, bad: str, operation: str
) -> None:
    shop, data = inline_shop(root, sandbox)
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, bad)
    wire.once[operation] = "before"
    shop.store = wire
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert shop.record.state == "landed"
    assert list(shop.real.keys("spool/")) == []


async def test_inline_bytes_land_and_leave_no_spool(root: str, sandbox: Sandbox) -> None:
    shop, data = inline_shop(root, sandbox)
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert list(shop.real.keys("spool/")) == []
    assert shop.submits() == 1


async def test_inline_bytes_that_could_not_land_are_landed_from_the_spool_by_the_next_attempt(
    root: str, sandbox: Sandbox
) -> None:
    shop, data = inline_shop(root, sandbox)
    shop.files.full = True
    await shop.refused(StorageError)
    assert shop.record.state == "answered"
    shop.files.full = False
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert list(shop.real.keys("spool/")) == []
    assert shop.submits() == 1


async def test_inline_bytes_that_a_record_left_which_is_gone_are_not_taken_for_those_of_the_next(
    root: str, sandbox: Sandbox
) -> None:
    shop, _ = inline_shop(root, sandbox)
    shop.files.full = True
    await shop.refused(StorageError)
    shop.real.delete(shop.record.key)
    data = answers_inline(shop, png("blue"))
    await shop.refused(StorageError)
    shop.files.full = False
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data


async def test_inline_bytes_that_could_not_be_spooled_at_once_are_spooled_before_the_record_names_them(
    root: str, sandbox: Sandbox
) -> None:
    shop, data = inline_shop(root, sandbox)
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "spool/")
    wire.once["create"] = "before"
    shop.store = wire
    shop.files.full = True
    async with shop.attempt() as purchase:
        with pytest.raises(StorageError):
            await purchase.start()
        await until(lambda: shop.record.state != "intent")
    shop.files.full = False
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert shop.submits() == 1
