"""Records that another attempt creates after they were listed, and what was interrupted between answer and owner."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from pathlib import Path

import pytest

from airflow_provider_geminiimg.core.ledger.fingerprint_index import read_entry
from airflow_provider_geminiimg.core.ledger.layout import index_key
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase import lifecycle
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.submission import Submission
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.exceptions import OutcomeUnknownError, RateLimitedError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM
from tests.harness.shop import Memory, Shop

OTHER = dataclasses.replace(ITEM, task_id="other")
OF_DAG = Policy(0, "fail", "reuse", "dag")


def listed(shop: Shop) -> Ledger:
    """The ledger of an attempt that has listed the records of its batch."""
    ledger = Ledger(shop.real)
    ledger.prefetch(ITEM, [ITEM.item])
    return ledger


async def test_a_claim_by_an_old_listing_does_not_take_the_index_from_a_newer_record(disk_shop: Shop) -> None:
    shop = disk_shop
    late = listed(shop)
    shop.fault("submit", status=429, headers={"retry-after": "0"})
    await shop.buy(policy=OF_DAG)  # record 1 is refused, record 2 lands
    newest = shop.record.key
    assert (await shop.buy(policy=OF_DAG, ledger=late))["reused"]
    entry = read_entry(shop.real, index_key(ITEM.path, shop.record.fingerprint))
    assert entry is not None
    assert entry.record == newest
    again = await shop.buy(item=OTHER, policy=OF_DAG, destination=Destination(shop.folder, "other"))
    assert again["reused"]
    assert shop.paid() == 1


async def test_a_record_that_was_created_after_the_listing_is_found_by_the_task_state(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, memory = disk_shop, Memory()
    shop.fault("submit", status=429, headers={"retry-after": "0"})
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
        await shop.refused(RateLimitedError, marker=memory)
    late = listed(shop)  # record 1, unpaid
    await shop.buy(marker=memory)
    assert (await shop.buy(marker=memory, ledger=late))["reused"]
    assert shop.paid() == 1


async def test_an_attempt_that_died_before_it_noted_the_owner_of_its_job_lands_no_image_of_another_record(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = disk_shop
    manifest = await shop.buy()
    image = await asyncio.to_thread(shop.files.read, manifest["images"][0]["uri"], max_bytes=1 << 20)
    link = "data:image/png;base64," + base64.b64encode(image).decode()
    detail = {"resultObject": [link]}
    body = {"aiRecord": {"uuid": shop.record.job_id, "status": "SUCCESS", "aiRecordDetail": detail}}
    shop.fault("submit", charge="after", body=body)

    async def dies(submission: Submission, record: object) -> None:
        raise asyncio.CancelledError

    other = {"item": OTHER, "prompt": "a quite different image", "destination": Destination(shop.folder, "other")}
    with monkeypatch.context() as patch:
        patch.setattr(Submission, "own", dies)
        with pytest.raises(asyncio.CancelledError):
            await shop.buy(**other)
    await shop.refused(OutcomeUnknownError, **other)
    assert shop.names() == ["hero.json", "hero.png"]


async def test_an_image_is_copied_from_the_place_that_may_still_be_read(disk_shop: Shop, tmp_path: Path) -> None:
    shop, uri = disk_shop, tmp_path.as_uri()
    await shop.buy(destination=Destination(f"{uri}/old", "hero"))
    await shop.buy(destination=Destination(f"{uri}/new", "hero"), generation=1)
    shop.files = Files(AIRFLOW_OPENERS, allowed_roots=[f"{uri}/new"])  # type: ignore[assignment]
    manifest = await shop.buy(destination=Destination(f"{uri}/new/more", "hero"), generation=2)
    assert manifest["images"][0]["uri"] == f"{uri}/new/more/hero.png"
    assert shop.paid() == 1
