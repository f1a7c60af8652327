"""What an attempt does about an image that has landed: give it back, or find that it is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import pytest

from airflow_provider_geminiimg.exceptions import Billed, LinkExpiredError, StorageError
from tests.harness.shop import Shop, make_unreadable

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


pytestmark = pytest.mark.usefixtures("quick")


async def test_a_landed_image_is_returned_without_a_call(shop: Shop) -> None:
    first = await shop.buy()
    calls = shop.calls()
    for generation in (0, 1):
        assert await shop.buy(generation=generation) == {**first, "reused": True}
    assert shop.calls() == calls


async def test_regenerate_after_a_clear_buys_once_more_and_keeps_both_images(shop: Shop) -> None:
    await shop.buy()
    second = await shop.buy(generation=1, on_clear="regenerate")
    assert shop.submission(second) == 2
    assert await shop.buy(generation=1, on_clear="regenerate") == {**second, "reused": True}
    assert shop.submits() == 2
    assert shop.names() == ["hero-2.json", "hero-2.png", "hero.json", "hero.png"]


async def test_a_landed_image_that_is_gone_comes_back_from_the_gateway_without_cost(shop: Shop) -> None:
    first = await shop.buy()
    uri = first["images"][0]["uri"]
    shop.delete(uri)
    again = await shop.buy()
    assert again["images"] == first["images"]
    assert shop.submission(again) == 1
    assert shop.paid() == shop.submits() == 1


async def test_an_image_gone_at_the_gateway_too_is_an_error_until_regenerate_buys_again(shop: Shop) -> None:
    first = await shop.buy()
    shop.delete(first["images"][0]["uri"])
    shop.sandbox.reset()
    await shop.refused(LinkExpiredError)
    calls = shop.calls()
    for more in ({}, {"generation": 1}, {"on_clear": "regenerate", "on_unknown": "resubmit"}):
        error = await shop.refused(LinkExpiredError, **more)
        assert 'on_clear="regenerate"' in str(error)
    assert shop.calls() == calls
    assert shop.paid() == 0
    shop.submission(await shop.buy(generation=1, on_clear="regenerate"))
    assert shop.paid() == 1


async def test_a_link_image_that_is_gone_has_no_job_to_ask_for(link_shop: Shop) -> None:
    manifest = await link_shop.buy()
    link_shop.delete(manifest["images"][0]["uri"])
    calls = link_shop.calls()
    await link_shop.refused(LinkExpiredError)
    assert link_shop.calls() == calls


async def test_a_disk_that_will_not_tell_whether_the_image_is_there_is_a_storage_error(disk_shop: Shop) -> None:
    manifest = await disk_shop.buy()
    make_unreadable(manifest["images"][0]["uri"])
    calls = disk_shop.calls()
    error = await disk_shop.refused(StorageError)
    assert error.billed is Billed.YES
    assert disk_shop.calls() == calls


async def test_a_bucket_that_will_not_tell_whether_the_image_is_there_is_a_storage_error(
    s3_root: str, sandbox: Sandbox
) -> None:
    shop = Shop(s3_root, sandbox)
    s3 = boto3.client("s3")
    bucket = f"{s3_root.removeprefix('s3://').partition('/')[0]}-pictures"
    s3.create_bucket(Bucket=bucket)
    shop.folder = f"s3://{bucket}"
    manifest = await shop.buy()
    for key in shop.objects(shop.folder):
        s3.delete_object(Bucket=bucket, Key=key)
    s3.delete_bucket(Bucket=bucket)
    calls = shop.calls()
    error = await shop.refused(StorageError)
    assert manifest["record"] in str(error)
    assert shop.calls() == calls
