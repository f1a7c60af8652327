"""Results of a job that expire, are cut off, or are no images: fetched again, and never bought again."""

from __future__ import annotations

import pytest

from airflow_provider_geminiimg.core.purchase import landing
from airflow_provider_geminiimg.exceptions import InvalidImageError, LinkExpiredError, StorageError
from tests.harness.records import make_record
from tests.harness.shop import HTML, Shop


@pytest.mark.parametrize("status", [403, 404])
async def test_a_link_that_expires_between_poll_and_download_is_asked_for_again(each_shop: Shop, status: int) -> None:
    each_shop.fault("download", status=status, body=HTML)
    manifest = await each_shop.buy()
    assert each_shop.submission(manifest) == 1
    assert each_shop.paid() == each_shop.submits() == 1


async def test_a_result_that_is_no_image_is_downloaded_again_and_never_bought_again(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("download", status=200, body=HTML, times=3)
    await shop.refused(InvalidImageError)
    assert shop.record.state == "submitted"
    assert shop.names() == []
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_result_that_never_becomes_an_image_is_bought_again_by_a_clear_with_regenerate(
    disk_shop: Shop,
) -> None:
    shop = disk_shop
    shop.fault("download", status=200, body=HTML, times=9)
    await shop.refused(InvalidImageError)
    await shop.refused(InvalidImageError, on_clear="regenerate")
    await shop.refused(InvalidImageError, generation=1)
    assert shop.submits() == 1
    assert shop.submission(await shop.buy(generation=2, on_clear="regenerate")) == 2


async def test_a_download_that_is_cut_off_is_repeated(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("download", cut_after=100)
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_failure_of_an_attempt_that_another_one_overtook_is_not_noted(disk_shop: Shop) -> None:
    shop = disk_shop
    before = await shop.submit()
    await shop.buy()
    async with shop.attempt() as purchase:
        await purchase.collector(before).note(before, LinkExpiredError("gone"))
    assert (shop.record.state, shop.record.outcome) == ("landed", None)


async def test_a_reported_cost_is_in_the_gateways_currency_whatever_the_connection_counts_in(
    disk_shop: Shop,
) -> None:
    record = make_record(cost={"amount": 900.0, "currency": "credits", "basis": "connection"})
    async with disk_shop.attempt() as purchase:
        cost = purchase.writer._cost
    assert cost(record, None) == record.cost
    assert cost(record, 0.05) == {"amount": 0.05, "currency": "USD", "basis": "gateway", "estimate": False}


async def test_an_image_that_can_not_be_stored_is_stored_by_the_next_attempt(shop: Shop) -> None:
    shop.files.full = True
    await shop.refused(StorageError)
    assert shop.record.state == "submitted"
    shop.files.full = False
    assert shop.submission(await shop.buy()) == 1
    assert shop.paid() == 1


async def test_an_image_that_is_not_what_was_asked_for_lands_and_says_so(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", outcome="wrong_size")
    manifest = await shop.buy(aspect_ratio="16:9", resolution="2K")
    assert manifest["mismatch"]
    assert shop.submission(manifest) == 1
    assert landing.mismatch_error(manifest) is not None
