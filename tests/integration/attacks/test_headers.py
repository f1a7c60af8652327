"""Images whose headers have no end, or that decoders stumble over: in tasks, and in the gallery.

What must stay true of each: it lands, as it came and paid for once; no event loop stands still for it; who looks at it
does not make the server follow its header again.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import MismatchError
from airflow_provider_geminiimg.gallery.addresses import address_of
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, image_bytes, outcome, returned
from tests.harness.forbidden import answer
from tests.harness.hostile_images import BOMBS, LONG, SIZE, UNKNOWN_SIZE, plain
from tests.unit.gallery import test_app as test_gallery

target, internet, forbidden = attacks.target, web.internet, web.forbidden
server, get = test_gallery.server, test_gallery.get

# What follows the download is the same for both gateways.
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)
LARGE, LARGEST = 32_000_000, 64_000_000  # bytes; a result may have 64 MiB
STALLED = 0.2  # seconds of processor time for which an event loop may stand still
LOOK = 1.0  # seconds of processor time that a request of the gallery may take, with its 64 MB read and hashed


@pytest.fixture
def stalls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of processor time of each step of a task's event loop, whatever else the machine does."""
    seen: list[float] = []
    step = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        started = time.thread_time()
        step(handle)
        if threading.current_thread().name == "geminiimg":
            seen.append(time.thread_time() - started)

    monkeypatch.setattr(asyncio.Handle, "_run", measured)
    return seen


def result(target: Target, data: bytes) -> None:
    """Let the next job end with this image."""
    target.images.routes["/p.png"] = answer(body=data)
    target.polls_answer(target.link())


def check(target: Target, image: dict[str, Any], data: bytes) -> None:
    """That an image has landed as it came, and was paid for once."""
    assert Path(image["uri"].removeprefix("file://")).read_bytes() == data
    assert image["sha256"] == hashlib.sha256(data).hexdigest()
    assert len(target.sandbox.ledger()) == 1


@ONE_GATEWAY
@pytest.mark.parametrize("name", LONG)
def test_a_result_with_a_header_of_many_parts_lands_and_no_loop_stands_still(
    target: Target, stalls: list[float], name: str
) -> None:
    data = LONG[name](LARGE)
    result(target, data)
    [image] = returned(target.generate())["images"]
    check(target, image, data)
    assert (image["width"], image["height"]) == ((None, None) if name in UNKNOWN_SIZE else SIZE)
    assert max(stalls) < STALLED


@ONE_GATEWAY
def test_a_batch_goes_on_while_such_a_result_lands(target: Target, stalls: list[float]) -> None:
    data = LONG["PNG, empty chunks"](LARGE)
    result(target, data)
    rows = [{"prompt": "a red fox"}, {"prompt": "a blue fox"}]
    returned(target.run_as_is(GeminiImageBatchOperator, requests=rows, geminiimg_conn_id="onemin", poll_interval=0.02))
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in target.root.glob("images/**/*.png")}
    assert hashlib.sha256(data).hexdigest() in digests
    assert len(target.sandbox.ledger()) == 2
    assert max(stalls) < STALLED


@ONE_GATEWAY
@pytest.mark.parametrize("name", ["PNG, empty chunks", "WebP, empty chunks"])
def test_such_an_input_is_read_and_no_loop_stands_still(target: Target, stalls: list[float], name: str) -> None:
    path = target.folder / "in"
    path.write_bytes(LONG[name](6_900_000))
    target.lands(target.edit(str(path)))
    assert max(stalls) < STALLED


@ONE_GATEWAY
def test_an_input_whose_size_can_not_be_told_is_refused_before_anything_is_sent(target: Target) -> None:
    path = target.folder / "in.jpg"
    path.write_bytes(LONG["JPEG, empty segments"](6_900_000))
    target.refused_unsent(target.edit(str(path)), "The size of the image can't be read")


@ONE_GATEWAY
def test_a_result_whose_size_can_not_be_told_is_a_mismatch_and_is_never_bought_again(target: Target) -> None:
    data = LONG["JPEG, empty segments"](2_000_000)
    result(target, data)
    run = target.generate(aspect_ratio="16:9", on_mismatch="fail")
    error = outcome(run)
    assert isinstance(error, MismatchError)
    assert "The size of the image is not known; 16:9" in str(error)
    [record] = target.records()
    check(target, (record.manifest or {})["images"][0], data)
    assert record.state == "landed"
    run.retry()
    assert len(target.sandbox.ledger()) == 1


@ONE_GATEWAY
@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_decoders_stumble_over_lands_and_has_a_thumbnail(target: Target, name: str) -> None:
    data = BOMBS[name]()
    result(target, data)
    run = target.generate()
    [image] = returned(run)["images"]
    check(target, image, data)
    store = open_store(target.root.as_uri(), AIRFLOW_OPENERS)
    [blob] = [store.read(key) for key in store.keys("thumbs/")]
    assert blob is not None
    with Image.open(io.BytesIO(blob.data)) as small:
        assert (small.format, small.size) == ("WEBP", SIZE)
        if "frames" not in name:
            assert (
                max(abs(a - b) for a, b in zip(small.convert("RGB").getpixel((9, 9)), (200, 80, 20), strict=True)) < 9
            )


def measured(get: Callable[..., Any], path: str, **more: Any) -> tuple[Any, float]:
    started = time.process_time()
    answered = get(path, **more)
    return answered, time.process_time() - started


@ONE_GATEWAY
@pytest.mark.parametrize(
    "name", ["PNG, empty chunks", "JPEG, empty segments", "JPEG, fill bytes", "WebP, empty chunks"]
)
@pytest.mark.parametrize("changed", [False, True], ids=["as it landed", "changed since"])
def test_who_looks_at_such_an_image_costs_the_server_no_more_than_to_read_it(
    target: Target, get: Callable[..., Any], name: str, changed: bool
) -> None:
    data = LONG[name](LARGEST)
    result(target, image_bytes() if changed else data)
    manifest = returned(target.generate())
    Path(manifest["images"][0]["uri"].removeprefix("file://")).write_bytes(data)
    [item] = get("api/dags/attacked/runs/run-1/images").json()["items"]
    assert item["images"][0]["sha256"] == manifest["images"][0]["sha256"]
    for thumb in target.root.glob("thumbs/**/*.webp"):
        thumb.unlink()  # so that the image itself comes in its place
    at = address_of(manifest["record"]).image(0).removeprefix("f/")
    for path in (f"f/{at}", f"thumbs/{at}"):
        whole, seconds = measured(get, path)
        if changed:  # what took the place of an image is not shown for it
            head, more = measured(get, path, method="HEAD")
            assert (whole.status_code, head.status_code, seconds < LOOK, more < LOOK) == (415, 415, True, True)
            continue
        assert (whole.status_code, whole.content == data) == (200, True)
        assert whole.headers["content-type"] == inspect_image(plain(name.split(",")[0])).media_type
        assert seconds < LOOK
        etag = whole.headers["etag"]
        head, seconds = measured(get, path, method="HEAD")
        assert (head.status_code, head.headers["etag"]) == (200, etag)
        assert seconds < LOOK
        again, seconds = measured(get, path, **{"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        assert seconds < LOOK
