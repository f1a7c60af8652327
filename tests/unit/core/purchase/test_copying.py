"""A landed image in more than one place: copies, which of them counts, and whose files stay as they are."""

from __future__ import annotations

import contextlib
import json

from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.exceptions import BadRequestError, StorageError
from tests.harness.records import Wire
from tests.harness.shop import Shop


async def test_another_destination_after_a_clear_is_a_copy_without_a_call(shop: Shop) -> None:
    first = await shop.buy()
    calls = shop.calls()
    there = Destination(f"{shop.folder}-2", "copy")
    copied = await shop.buy(generation=1, destination=there)
    assert copied["images"] == [{**first["images"][0], "uri": f"{shop.folder}-2/copy.png"}]
    assert copied["reused"] is True
    assert shop.submission(copied) == 1
    assert await shop.buy(generation=1, destination=there) == copied
    assert shop.calls() == calls
    assert shop.names(there.directory) == ["copy.json", "copy.png"]
    assert shop.names() == ["hero.json", "hero.png"]
    assert len(shop.record.copies) == 1


async def test_a_copy_that_is_gone_is_made_again(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    copied = await shop.buy(generation=1, destination=there)
    shop.delete(copied["images"][0]["uri"])
    again = await shop.buy(generation=1, destination=there)
    assert shop.submission(again) == 1
    assert shop.paid() == 1


async def test_a_copy_that_an_attempt_wrote_and_could_not_record_is_taken_by_the_next(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store = wire
    await shop.refused(StorageError, generation=1, destination=there)
    shop.store = shop.real
    copied = await shop.buy(generation=1, destination=there)
    assert copied["images"][0]["uri"] == f"{shop.folder}-2/copy.png"
    assert shop.names(there.directory) == ["copy.json", "copy.png"]
    assert shop.paid() == 1


async def test_a_copy_replaces_no_file_of_anybody_else(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    shop.files.put(f"{there.directory}/copy.json", b"{}", media_type="application/json")
    shop.files.put(f"{there.directory}/copy.png", b"mine", media_type="image/png")
    with contextlib.suppress(BadRequestError):
        await shop.buy(generation=1, destination=there)
    assert shop.files.read(f"{there.directory}/copy.json", max_bytes=10) == b"{}"
    assert shop.files.read(f"{there.directory}/copy.png", max_bytes=10) == b"mine"


async def test_every_intact_place_counts_and_the_one_that_is_asked_for_first(shop: Shop) -> None:
    places = {name: Destination(f"{shop.folder}-{name}", "hero") for name in "abc"}

    async def at(name: str, generation: int) -> str:
        manifest = await shop.buy(generation=generation, destination=places[name])
        assert shop.submission(manifest) == 1
        return str(manifest["images"][0]["uri"]).rpartition("/")[0].rpartition("-")[2]

    assert [await at(name, generation) for generation, name in enumerate("abca")] == list("abca")
    calls = shop.calls()
    shop.delete(f"{places['a'].directory}/hero.png")
    assert await at("a", 0) == "b", "a retry makes no copy"
    assert await at("c", 0) == "c"
    assert await at("a", 5) == "a"
    shop.delete(f"{places['b'].directory}/hero.png")
    assert await at("b", 6) == "b"
    assert shop.calls() == calls
    for name in "abc":
        shop.delete(f"{places[name].directory}/hero.png")
    assert await at("b", 7) == "b"
    assert shop.names(places["a"].directory) == ["hero.json"]
    assert shop.record.destination == places["b"]
    assert await at("b", 8) == "b"
    assert shop.paid() == 1


async def test_a_copy_is_made_from_another_place_where_the_first_one_holds_other_bytes_now(shop: Shop) -> None:
    first = await shop.buy()
    await shop.buy(generation=1, destination=Destination(f"{shop.folder}-2", "copy"))
    shop.files.put(first["images"][0]["uri"], b"changed", media_type="image/png")
    third = await shop.buy(generation=2, destination=Destination(f"{shop.folder}-3", "copy"))
    assert shop.submission(third) == 1
    assert shop.files.read(first["images"][0]["uri"], max_bytes=10) == b"changed"
    assert shop.paid() == 1


async def test_a_sidecar_that_somebody_put_there_while_the_job_ran_is_not_replaced(shop: Shop) -> None:
    await shop.submit()
    shop.files.put(f"{shop.folder}/hero.json", b"mine", media_type="application/json")
    manifest = await shop.buy()
    assert shop.files.read(f"{shop.folder}/hero.json", max_bytes=10) == b"mine"
    digest = manifest["images"][0]["sha256"][:12]
    assert shop.names() == [f"hero-{digest}.json", "hero.json", "hero.png"]


async def test_the_images_own_sidecar_is_replaced_when_the_image_comes_again(shop: Shop) -> None:
    first = await shop.buy()
    shop.delete(first["images"][0]["uri"])
    again = await shop.buy()
    sidecar = json.loads(shop.files.read(f"{shop.folder}/hero.json", max_bytes=10_000))
    assert sidecar["landed_at"] == again["landed_at"] > first["landed_at"]
    assert shop.names() == ["hero.json", "hero.png"]


async def test_regenerate_where_a_copy_has_the_name_lands_beside_it(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    await shop.buy(generation=1, destination=there)
    manifest = await shop.buy(generation=2, destination=there, on_clear="regenerate")
    assert shop.submission(manifest) == 2
    assert "copy.png" in shop.names(there.directory)
