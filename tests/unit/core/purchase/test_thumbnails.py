"""Thumbnails: of whatever lands, however it lands; and of what is no image to be trusted, nothing but one line."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.sdk import DAG
from PIL import Image, ImageChops, ImageCms, ImageStat, PngImagePlugin

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.ledger.layout import thumbnail_key
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase import thumbnails
from airflow_provider_geminiimg.core.purchase.copying import copy_to
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
from airflow_provider_geminiimg.core.purchase.thumbnails import (
    WORKER,
    ImageCache,
    ThumbnailJob,
    make_thumbnails,
    render,
)
from airflow_provider_geminiimg.core.purchase.waiting import JobCollector
from airflow_provider_geminiimg.core.storage import LocalStore, Store, open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import REPOSITORY, TESTS, attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, image_bytes, returned
from tests.harness.forbidden import answer
from tests.harness.orphaned_records import LOGGER, OrphanedRecords
from tests.harness.records import Wire, landed

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

target, internet, forbidden = attacks.target, web.internet, web.forbidden

# What follows the download is the same for both gateways.
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)
LARGE = (6300, 6300)  # about as large as may be; its decoding takes half a second and more
SECRET = "a-canary-prompt-0123456789"


def opened(data: bytes) -> Image.Image:
    """A thumbnail, which is a WebP and holds nothing but pixels."""
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "WEBP"
    assert max(image.size) <= 512
    assert [chunk for chunk in chunks(data) if chunk not in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH")] == []
    assert dict(image.getexif()) == {}
    return image


def chunks(data: bytes) -> Iterator[bytes]:
    """The names of a WebP's chunks."""
    at = 12
    while at < len(data):
        yield data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def difference(one: Image.Image, other: Image.Image) -> float:
    """How far apart two images are: 0 is the same, 255 is black and white."""
    pair = [image.convert("RGBA").resize((64, 64)) for image in (one, other)]
    return max(ImageStat.Stat(ImageChops.difference(*pair)).mean)


def saved(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def thumbs(store: Store) -> dict[str, bytes]:
    found = {key: store.read(key) for key in store.keys("thumbs/")}
    return {key: blob.data for key, blob in found.items() if blob is not None}


def check(store: Store, record: Record) -> None:
    """That of a record that has landed there are thumbnails, which look like its images, and no others."""
    images = (record.manifest or {})["images"]
    found = thumbs(store)
    assert list(found) == [thumbnail_key(record.key, index) for index, _ in enumerate(images)]
    for data, image in zip(found.values(), images, strict=True):
        whole = Image.open(Path(image["uri"].removeprefix("file://")))
        assert difference(opened(data), whole) < 6


# Ways to land


def test_a_task_leaves_a_thumbnail_of_its_image_under_the_root(
    airflow: AirflowHarness, geminiimg_conn_id: str, root: str
) -> None:
    with DAG("shop", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made", prompt=SECRET, aspect_ratio="16:9", geminiimg_conn_id=geminiimg_conn_id, poll_interval=0.02
        )
    manifest = returned(airflow.run_dag(dag, run_id="x::y"))
    store = open_store(root, AIRFLOW_OPENERS)
    [(key, data)] = thumbs(store).items()
    assert key == thumbnail_key(manifest["record"], 0)
    assert key == "thumbs/default/shop/x%3A%3Ay/made/-1/0/1/0.webp"
    assert opened(data).size == (512, 286)
    if root.startswith("s3://"):
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        client = boto3.client("s3")
        assert client.head_object(Bucket=bucket, Key=f"{prefix}/{key}")["ContentType"] == "image/webp"
        uri = manifest["images"][0]["uri"].removeprefix(f"s3://{bucket}/")
        whole = client.get_object(Bucket=bucket, Key=uri)["Body"].read()
    else:
        whole = Path(manifest["images"][0]["uri"].removeprefix("file://")).read_bytes()
    assert difference(opened(data), Image.open(io.BytesIO(whole))) < 6
    assert SECRET.encode() in whole  # in its EXIF data
    assert SECRET.encode() not in data


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])
def test_what_a_sensor_lands_has_a_thumbnail(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, deferrable: bool
) -> None:
    with DAG("shop", schedule=None) as dag:
        order = GeminiImageSubmitOperator(task_id="ordered", prompt="a fox", geminiimg_conn_id=onemin)
        GeminiImageJobSensor(task_id="made", job=order.output, poke_interval=0.05, deferrable=deferrable)
    manifest = returned(airflow.run_dag(dag))
    assert list(thumbs(open_store(local_root, AIRFLOW_OPENERS))) == [thumbnail_key(manifest["record"], 0)]


@pytest.fixture
def left(local_root: str, sandbox: Sandbox, onemin: str) -> OrphanedRecords:
    return OrphanedRecords(sandbox, onemin)


@pytest.fixture
def link_left(local_root: str, sandbox: Sandbox, apimaster: str) -> OrphanedRecords:
    """A gateway that answers with links and no job id."""
    sandbox.settings(honour_async=False, latency=0.0)
    return OrphanedRecords(sandbox, apimaster)


async def test_what_is_collected_has_a_thumbnail(left: OrphanedRecords) -> None:
    record = await left.submitted()
    assert (await left.collect()).counts()["landed"] == 1
    check(left.store, left.at(record))


async def test_what_came_by_a_link_at_once_has_a_thumbnail(link_left: OrphanedRecords) -> None:
    check(link_left.store, await link_left.attempt())


async def test_a_copy_brings_a_thumbnail_that_is_missing(left: OrphanedRecords) -> None:
    record = await left.attempt()
    left.store.delete(thumbnail_key(record.key, 0))
    async with left.environment.purchase_context() as purchase_context:
        await copy_to(ImageWriter(purchase_context), record, Destination(left.folder, "copied"))
    check(left.store, record)


def remove_image(record: Record) -> None:
    Path((record.manifest or {})["images"][0]["uri"].removeprefix("file://")).unlink()


async def test_an_image_that_is_fetched_again_as_it_was_keeps_its_thumbnail(left: OrphanedRecords) -> None:
    record = await left.attempt()
    key = thumbnail_key(record.key, 0)
    left.store.delete(key)
    left.store.create(key, b"the one that was there")
    remove_image(record)
    await left.attempt()
    assert thumbs(left.store) == {key: b"the one that was there"}


def as_if_of_other_bytes(left: OrphanedRecords, record: Record) -> None:
    """Let the record's image and thumbnail be of other bytes than the gateway's are now."""
    [image] = (record.manifest or {})["images"]
    left.change(record, manifest={**(record.manifest or {}), "images": [{**image, "sha256": "0" * 64}]})
    left.store.delete(thumbnail_key(record.key, 0))
    left.store.create(thumbnail_key(record.key, 0), b"of other bytes")
    remove_image(record)


async def test_an_image_that_is_fetched_again_with_other_bytes_gets_a_new_thumbnail(left: OrphanedRecords) -> None:
    record = await left.attempt()
    as_if_of_other_bytes(left, record)
    check(left.store, await left.attempt())


async def test_an_old_thumbnail_is_gone_before_the_record_tells_of_other_bytes(left: OrphanedRecords) -> None:
    record = await left.attempt()
    as_if_of_other_bytes(left, record)
    wire = Wire(left.store, "ledger/")
    wire.always["replace"] = "before"
    left.environment.ledger = Ledger(wire)
    await left.attempt()  # which can't write its record, as one that is killed can't
    assert thumbs(left.store) == {}


async def test_a_landing_that_is_not_recorded_leaves_no_thumbnail_and_the_next_one_does(left: OrphanedRecords) -> None:
    record = await left.submitted()
    ledger, wire = left.ledger, Wire(left.store, "ledger/")
    wire.always["replace"] = "before"
    left.environment.ledger = Ledger(wire)
    await left.attempt()
    assert (left.at(record).state, thumbs(left.store)) == ("submitted", {})
    left.environment.ledger = ledger
    check(left.store, await left.attempt())


async def test_of_bytes_that_are_not_the_record_s_there_is_no_thumbnail(left: OrphanedRecords) -> None:
    record = await left.submitted()
    image = {"uri": "file:///x.png", "width": 8, "height": 8, "size": 8, "sha256": "0" * 64}
    other = landed(job_id="another", manifest={"images": [image]})
    left.ledger.change(record.key, lambda stored: dataclasses.replace(other, key=record.key, claim=stored.claim))
    async with left.environment.purchase_context() as purchase_context:
        collector = JobCollector(ImageWriter(purchase_context))
        await collector.conclude(record, await collector.poll(record))
    assert left.at(record).job_id == "another"
    assert thumbs(left.store) == {}


async def test_a_root_that_takes_no_thumbnails_costs_one_line_and_nothing_else(
    left: OrphanedRecords, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(left.store, "thumbs/")
    wire.always = dict.fromkeys(("create", "delete", "read", "keys"), "before")
    left.environment.ledger = Ledger(wire)
    with caplog.at_level(logging.INFO, LOGGER):
        assert (await left.attempt()).state == "landed"
    assert len(warnings(caplog)) == 1
    assert "StorageError" in warnings(caplog)[0]
    assert thumbs(left.store) == {}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.name == LOGGER and line.levelno >= logging.WARNING]


async def test_a_task_that_was_told_to_stop_lands_its_image_and_waits_for_no_thumbnail(left: OrphanedRecords) -> None:
    record, guard = await left.submitted(), SubmitGuard()
    guard.stop()
    await left.attempt(guard=guard)
    assert left.at(record).state == "landed"
    assert thumbs(left.store) == {}


# Kinds of images


def drawn(size: tuple[int, int] = (1000, 500)) -> Image.Image:
    """Left half blue, with a green corner at the top; right half orange."""
    image = Image.new("RGB", size, (20, 40, 200))
    image.paste((240, 140, 20), (size[0] // 2, 0, *size))
    image.paste((20, 200, 60), (0, 0, size[0] // 8, size[1] // 4))
    return image


def see_through() -> Image.Image:
    image = drawn().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def palette_see_through() -> bytes:
    image = drawn().quantize(16)
    return saved(image, transparency=image.getpixel((0, 0)))


GREY = drawn().convert("L")
KINDS: dict[str, tuple[bytes, Image.Image]] = {
    # name: (the image, what it looks like)
    "PNG": (saved(drawn()), drawn()),
    "JPEG": (saved(drawn(), "JPEG"), drawn()),
    "WebP": (saved(drawn(), "WEBP"), drawn()),
    "see-through": (saved(see_through()), see_through()),
    "see-through WebP": (saved(see_through(), "WEBP"), see_through()),
    "palette": (saved(drawn().quantize(16)), drawn()),
    "palette, see-through": (palette_see_through(), Image.open(io.BytesIO(palette_see_through())).convert("RGBA")),
    "a see-through colour": (
        saved(drawn(), transparency=(20, 40, 200)),
        Image.open(io.BytesIO(saved(drawn(), transparency=(20, 40, 200)))).convert("RGBA"),
    ),
    "black and white": (saved(drawn().convert("1", dither=Image.Dither.NONE)), GREY.point(lambda v: 255 * (v > 127))),
    "grey": (saved(GREY), GREY),
    "grey, see-through": (saved(see_through().convert("LA")), see_through().convert("LA")),
    "grey of 16 bits": (saved(Image.new("I;16", (1000, 500), 40_000)), Image.new("L", (1000, 500), 156)),
    "CMYK": (saved(drawn().convert("CMYK"), "JPEG"), drawn()),
    "grey JPEG": (saved(GREY, "JPEG"), GREY),
    "animated WebP": (saved(drawn(), "WEBP", save_all=True, append_images=[Image.new("RGB", (1000, 500))]), drawn()),
    "animated PNG": (saved(drawn(), "PNG", save_all=True, append_images=[Image.new("RGB", (1000, 500))]), drawn()),
    "progressive": (saved(drawn(), "JPEG", progressive=True), drawn()),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_a_thumbnail_that_looks_like_it(name: str) -> None:
    data, looks = KINDS[name]
    small = opened(render(data))
    assert small.size == (512, 256)
    assert getattr(small, "n_frames", 1) == 1
    assert difference(small, looks) < 6
    assert small.has_transparency_data is (looks.mode in ("RGBA", "LA"))


@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB", "RGBA", "LA"])
def test_fine_lines_become_grey_and_are_not_picked_at_random(mode: str) -> None:
    lines = Image.frombytes("L", (2048, 64), b"\0\xff" * (1024 * 64))
    low, high = opened(render(saved(lines.convert(mode)))).convert("L").getextrema()
    assert 100 < low <= high < 156


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_fine_lines_of_a_see_through_colour_become_half_see_through(mode: str) -> None:
    lines = Image.frombytes("L", (2048, 64), b"\0\xff" * (1024 * 64)).convert(mode)
    data = saved(lines, transparency=(0, 0, 0) if mode == "RGB" else 0)
    low, high = opened(render(data)).getchannel("A").getextrema()
    assert 100 < low <= high < 156


@pytest.mark.parametrize(
    ("size", "becomes"), [((100, 50), (100, 50)), ((512, 20), (512, 20)), ((384, 3072), (64, 512))]
)
def test_the_longer_side_is_at_most_512_pixels_and_nothing_is_enlarged(
    size: tuple[int, int], becomes: tuple[int, int]
) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert opened(render(saved(drawn(size), kind))).size == becomes


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_lies_on_its_side_stands_up(kind: str, orientation: int) -> None:
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation: what undoes it, of Image.Transpose
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {4: 2, 2: 4}  # a quarter turn is undone by the other one
    looks = drawn()
    if orientation > 1:
        undo = turned[orientation]
        looks = looks.transpose(Image.Transpose(back.get(undo, undo)))
    small = opened(render(saved(looks, kind, exif=exif)))
    assert small.size == (512, 256)
    assert difference(small, drawn()) < 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_nothing_but_pixels_is_kept(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = SECRET
    more: dict[str, Any] = {
        "exif": exif,
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    if kind == "PNG":
        more["pnginfo"] = PngImagePlugin.PngInfo()
        more["pnginfo"].add_text("prompt", SECRET)
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", f"<x>{SECRET}</x>")
    else:
        more["xmp"] = f"<x>{SECRET}</x>".encode()
    data = saved(drawn(), kind, **more)
    assert SECRET.encode() in data
    small = render(data)
    opened(small)
    assert SECRET.encode() not in small
    assert b"ICC" not in small


# Attacks


def png_header(width: int, height: int) -> bytes:
    """A small image that says that it is so large."""
    whole = image_bytes((8, 8))
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def webp_header(width: int, height: int) -> bytes:
    """The start of a WebP of 1 KB that says that it is so large."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides


def cut() -> bytes:
    """A PNG of which a part in the middle is missing."""
    whole = saved(Image.effect_noise((600, 600), 90))
    at = whole.index(b"IDAT") - 4
    return whole[:at] + struct.pack(">I", 1000) + whole[at + 4 : at + 1012] + whole[-12:]


TEXT = b"<script>alert(1)</script>"
BROKEN = {
    "a header that claims a gigapixel": png_header(32_768, 32_768),
    "80 megapixels": saved(Image.new("1", (10_000, 8_000))),
    "80 megapixels of JPEG": saved(Image.new("L", (10_000, 8_000)), "JPEG", quality=1),
    "a cut PNG": cut(),
    "a WebP of noise": webp_header(64, 64) + bytes(range(256)) * 4,
    "a WebP that claims to be huge": webp_header(32_768, 32_768) + image_bytes(kind="WEBP")[12:],
}


@ONE_GATEWAY
@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_can_not_be_trusted_lands_and_has_no_thumbnail_and_one_line_says_so(
    target: Target, name: str
) -> None:
    target.images.routes["/p.png"] = answer(body=BROKEN[name])
    target.polls_answer(target.link())
    run = target.generate()
    manifest = returned(run)
    assert manifest["images"][0]["sha256"] == hashlib.sha256(BROKEN[name]).hexdigest()
    assert thumbs(open_store(target.root.as_uri(), AIRFLOW_OPENERS)) == {}
    assert run.log.count("There is no thumbnail") == 1, run.log


@ONE_GATEWAY
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_of_an_image_that_is_something_else_too_only_the_image_is_in_the_thumbnail(target: Target, kind: str) -> None:
    target.images.routes["/p.png"] = answer(body=image_bytes(kind=kind) + TEXT)
    target.polls_answer(target.link())
    returned(target.generate())
    [data] = thumbs(open_store(target.root.as_uri(), AIRFLOW_OPENERS)).values()
    assert opened(data).size == (512, 512)
    assert TEXT not in data


def record_of(*images: bytes) -> tuple[Record, ImageCache]:
    """A record of these images, which have just landed."""
    cache, described = ImageCache(), []
    for index, data in enumerate(images):
        digest = hashlib.sha256(data).hexdigest()
        cache.add(digest, data)
        described.append({"uri": f"file:///pictures/{index}.png", "sha256": digest})
    return landed(manifest={"images": described}), cache


async def made(store: Store, *images: bytes, guard: SubmitGuard | None = None) -> Record:
    """The record of these images, once their thumbnails are made."""
    record, cache = record_of(*images)
    await make_thumbnails(store, record, cache, log=logging.getLogger(LOGGER), guard=guard or SubmitGuard())
    return record


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "root"))


class Slow:
    """Pillow, once it takes forever to shrink an image."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
        self.store = store
        self.begun, self.go_on = threading.Event(), threading.Event()
        shrink = Image.Image.thumbnail

        def thumbnail(*args: Any, **more: Any) -> None:
            self.begun.set()
            self.go_on.wait()
            shrink(*args, **more)

        monkeypatch.setattr(Image.Image, "thumbnail", thumbnail)

    def end(self) -> None:
        """Let it come to its end after all, and wait for that."""
        self.go_on.set()
        WORKER.submit(ThumbnailJob(self.store, {})).result(20)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, store: LocalStore) -> Iterator[Slow]:
    slow = Slow(monkeypatch, store)
    yield slow
    slow.end()


async def test_each_of_several_images_has_its_own_and_a_broken_one_keeps_none_from_the_others(
    store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    record = await made(store, saved(drawn()), BROKEN["a cut PNG"], saved(GREY))
    assert list(thumbs(store)) == [thumbnail_key(record.key, 0), thumbnail_key(record.key, 2)]
    assert difference(opened(thumbs(store)[thumbnail_key(record.key, 2)]), GREY) < 6
    [line] = warnings(caplog)
    assert thumbnail_key(record.key, 1) in line


async def test_a_decoder_that_takes_too_long_is_left_behind_and_writes_nothing_any_more(
    store: LocalStore, slow: Slow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(thumbnails, "SECONDS", 0.05)
        await made(store, saved(drawn()))
    await made(store, saved(GREY))  # does not wait for its turn either
    assert [line.partition(": ")[2] for line in warnings(caplog)] == [
        "it took longer than 0 s.",
        "an earlier one is still being made.",
    ]
    slow.end()
    assert thumbs(store) == {}
    record = await made(store, saved(drawn()))
    assert list(thumbs(store)) == [thumbnail_key(record.key, 0)]


async def test_a_task_that_is_told_to_stop_meanwhile_goes_on_at_once(
    store: LocalStore, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    guard = SubmitGuard()
    making = asyncio.create_task(made(store, saved(drawn()), guard=guard))
    assert await asyncio.to_thread(slow.begun.wait, 20)
    guard.stop()
    await asyncio.wait_for(making, 10)
    slow.end()
    assert (thumbs(store), warnings(caplog)) == ({}, [])


def test_a_task_that_is_interrupted_meanwhile_ends_at_once(store: LocalStore, slow: Slow) -> None:
    async def interrupted() -> None:
        making = asyncio.create_task(made(store, saved(drawn())))
        await asyncio.to_thread(slow.begun.wait, 20)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    started = time.monotonic()
    asyncio.run(interrupted())  # whose end waits for no thread of ours
    assert time.monotonic() - started < 10
    slow.end()
    assert thumbs(store) == {}


async def test_a_process_makes_one_at_a_time(tmp_path: Path) -> None:
    class Watched(LocalStore):
        busy = most = 0

        def create(self, key: str, data: bytes) -> str | None:
            Watched.busy += 1
            Watched.most = max(Watched.most, Watched.busy)
            time.sleep(0.01)
            Watched.busy -= 1
            return super().create(key, data)

    stores = [Watched(str(tmp_path / str(number))) for number in range(8)]
    await asyncio.gather(*(made(store, saved(drawn())) for store in stores))
    assert [len(thumbs(store)) for store in stores] == [1] * 8
    assert Watched.most == 1


def test_images_are_kept_in_memory_up_to_the_size_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "MAX_CACHE_BYTES", 10)
    cache = ImageCache()
    for digest, data in (("a", b"123456"), ("b", b"12345"), ("c", b"1234")):
        cache.add(digest, data)
    assert cache.images == {"a": b"123456", "c": b"1234"}


# Processes of their own

MAKE = """
import asyncio, logging, resource, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from airflow_provider_geminiimg.core.purchase import thumbnails
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.storage import LocalStore
from tests.harness.records import landed
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s", stream=sys.stdout)
logging.getLogger("asyncio").setLevel(logging.WARNING)
logging.getLogger("PIL").setLevel(logging.WARNING)
data = Path({image!r}).read_bytes()
cache = thumbnails.ImageCache()
cache.add("0" * 64, data)
record = landed(manifest={{"images": [{{"uri": "file:///x.png", "sha256": "0" * 64}}]}})
{before}
log = logging.getLogger("a-task")
asyncio.run(thumbnails.make_thumbnails(LocalStore({root!r}), record, cache, log=log, guard=SubmitGuard()))
status = Path("/proc/self/status").read_text()  # what getrusage says is its parent's too
print("peak", int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def in_a_process(folder: Path, data: bytes, before: str = "", **environment: str) -> list[str]:
    """What a process logs that makes the thumbnail of this image, and its memory at most, in MB."""
    (folder / "image").write_bytes(data)
    values = {"image": str(folder / "image"), "root": str(folder / "root"), "before": before}
    code = MAKE.format(here=str(REPOSITORY), **values)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


WITHOUT_PILLOW = {"PYTHONPATH": str(TESTS / "harness" / "site"), "GEMINIIMG_TEST_HIDDEN": "PIL"}


def test_without_pillow_nothing_is_made_and_one_line_at_debug_says_so(tmp_path: Path) -> None:
    *lines, _ = in_a_process(tmp_path, image_bytes(), **WITHOUT_PILLOW)
    [line] = lines
    assert line.startswith("DEBUG No thumbnails are made without Pillow")
    assert "airflow-provider-geminiimg[thumbnails]" in line
    assert thumbs(LocalStore(str(tmp_path / "root"))) == {}


async def test_without_pillow_images_land_all_the_same(left: OrphanedRecords) -> None:
    record = await left.submitted()
    command = [sys.executable, "-m", "airflow_provider_geminiimg", "jobs", "collect"]
    environment = {**os.environ, **WITHOUT_PILLOW}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "humbnail" not in done.stdout + done.stderr
    assert left.at(record).state == "landed"
    assert thumbs(left.store) == {}


def test_pillow_is_not_imported_before_it_is_needed() -> None:
    modules = [
        "core.reconcile",
        "core.purchase.thumbnails",
        "runtime.jobs_command",
        "operators.generate",
        "sensors.job",
        "triggers.job",
    ]
    imports = "; ".join(f"import airflow_provider_geminiimg.{name}" for name in modules)
    code = f"import sys; {imports}; print(json.dumps(sorted(n for n in sys.modules if n.startswith('PIL'))))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_4k_needs_less_than_400_mb(tmp_path: Path, kind: str) -> None:
    mode = "CMYK" if kind == "JPEG" else "RGBA"
    *lines, peak = in_a_process(tmp_path, saved(Image.new(mode, (4096, 4096)), kind))
    assert lines == []
    assert int(peak.split()[1]) < 400
    assert len(thumbs(LocalStore(str(tmp_path / "root")))) == 1


def test_a_process_without_memory_for_it_goes_on(tmp_path: Path) -> None:
    before = (
        "import PIL.Image, PIL.ImageOps, PIL.PngImagePlugin, PIL.WebPImagePlugin\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000,) * 2)"
    )
    lines = in_a_process(tmp_path, saved(Image.new("RGBA", LARGE), compress_level=1), before)
    assert any(line.startswith("WARNING") and "MemoryError" in line for line in lines), lines
    assert thumbs(LocalStore(str(tmp_path / "root"))) == {}


def test_a_process_ends_although_a_decoder_still_works(tmp_path: Path) -> None:
    before = (
        "import threading, PIL.Image\n"
        "thumbnails.SECONDS = 0.2\n"
        "PIL.Image.Image.thumbnail = lambda *args: threading.Event().wait()"
    )
    started = time.monotonic()
    line, _ = in_a_process(tmp_path, image_bytes(), before)
    assert "it took longer" in line
    assert time.monotonic() - started < 30
