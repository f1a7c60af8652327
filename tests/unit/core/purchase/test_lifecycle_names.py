"""Names of files, inputs and folders that are refused before anything is sent; a name that is taken meanwhile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError
from tests.harness.records import ITEM
from tests.harness.shop import Shop, png


async def test_a_name_that_another_task_claimed_is_refused_before_anything_is_sent(shop: Shop) -> None:
    other = dataclasses.replace(ITEM, task_id="other")
    shop.fault("submit", status=401)
    with pytest.raises(AuthenticationError):
        await shop.buy(item=other)
    calls = shop.calls()
    error = await shop.refused(BadRequestError)
    assert "hero" in str(error)
    assert "other" in str(error)
    assert shop.calls() == calls
    assert shop.sandbox.ledger() == []
    assert shop.ledger.latest(ITEM) is None


@pytest.mark.parametrize("name", ["hero.png", "hero.jpg", "hero.webp", "hero.json"])
async def test_a_name_that_a_file_has_is_refused_before_anything_is_sent(shop: Shop, name: str) -> None:
    shop.files.put(f"{shop.folder}/{name}", b"mine", media_type="text/plain")
    error = await shop.refused(BadRequestError)
    assert name in str(error)
    assert shop.calls() == 0
    assert shop.ledger.latest(ITEM) is None
    assert shop.files.read(f"{shop.folder}/{name}", max_bytes=10) == b"mine"


async def test_a_name_is_the_same_however_its_folder_is_written(disk_shop: Shop) -> None:
    other = dataclasses.replace(ITEM, task_id="other")
    await disk_shop.submit()
    for folder in (disk_shop.folder.removeprefix("file://"), f"{disk_shop.folder}/", f"{disk_shop.folder}//"):
        await disk_shop.refused(BadRequestError, item=other, destination=Destination(folder, "hero"))
    assert disk_shop.submits() == 1


async def test_a_file_that_takes_the_name_while_the_job_runs_is_not_replaced(shop: Shop) -> None:
    await shop.submit()
    shop.files.put(f"{shop.folder}/hero.png", b"mine", media_type="text/plain")
    manifest = await shop.buy()
    assert shop.submission(manifest) == 1
    assert shop.files.read(f"{shop.folder}/hero.png", max_bytes=10) == b"mine"


async def test_a_directory_that_can_not_be_written_is_refused_before_anything_is_sent(
    disk_shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    await disk_shop.refused(BadRequestError, destination=Destination((tmp_path / "file").as_uri(), "hero"))
    assert disk_shop.calls() == 0
    assert disk_shop.ledger.latest(ITEM) is None


@pytest.mark.parametrize("wrong", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"], ids=["empty", "HTML", "cut"])
async def test_an_input_that_is_no_image_is_refused_before_anything_is_sent(
    disk_shop: Shop, tmp_path: Path, wrong: bytes
) -> None:
    (tmp_path / "in.png").write_bytes(wrong)
    error = await disk_shop.refused(BadRequestError, operation="edit", image=str(tmp_path / "in.png"))
    assert "in.png" in str(error)
    assert disk_shop.calls() == 0
    assert disk_shop.ledger.latest(ITEM) is None


async def test_an_upload_that_fails_leaves_no_record(disk_shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png())
    disk_shop.fault("upload", status=401)
    await disk_shop.refused(AuthenticationError, operation="edit", image=str(tmp_path / "in.png"))
    assert disk_shop.ledger.latest(ITEM) is None
    manifest = await disk_shop.buy(operation="edit", image=str(tmp_path / "in.png"))
    assert disk_shop.submission(manifest) == 1
    assert [item["uri"] for item in disk_shop.record.inputs] == [str(tmp_path / "in.png")]
