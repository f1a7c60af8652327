"""Small WebP copies of what has landed, so that a page of a hundred images loads fast.

A thumbnail is made once its record has landed, with the extra ``thumbnails`` (Pillow); where there is none, whoever
shows images shows the image itself. What must stay true:

- Nothing about it fails a task, or holds one up for more than `SECONDS`. A decoder can't be interrupted: it works in a
  daemon thread, and one that took too long is left behind and writes nothing any more.
- Pixels, and so memory, are bounded by the header before anything is decoded, and a process makes one at a time.
- A decoder is given pixels alone, so that no version of it unpacks anything else: EXIF data of 3 MB became gigabytes.
- It is pixels alone: no metadata, in which a prompt or a place could be.
- It shows what its record says. One that is there stays: the same job gives the same image. Where an image is
  fetched again and other bytes come, the old thumbnails go before the record says so, so that in between, and if the
  task dies there, none is there rather than a wrong one.
- A record that is removed takes its thumbnails along.
"""

from __future__ import annotations

import asyncio
import io
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.core.images.pixels import pixels_of
from airflow_provider_geminiimg.core.ledger.layout import thumbnail_key
from airflow_provider_geminiimg.core.ledger.records import Record
from airflow_provider_geminiimg.core.storage import Store, create_or_read

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 512
"""Pixels; the longest that a thumbnail's longer side is."""

MAX_PIXELS = {"png": 40_000_000, "jpg": 40_000_000, "webp": 20_000_000}
"""How large an image may be, by its extension: under 400 MB are needed then. A WebP is held four times over while it
is decoded. The most that a model makes is 19 million (12288 x 1536)."""

MAX_KEPT = 64 * 1024 * 1024
"""Bytes that are kept in memory until the record has landed: one image may be that large."""

SECONDS = 20.0
"""How long the thumbnails of one record may take; a 4K image takes about half a second."""

_BEAT = 0.5  # seconds between looks at the guard, which a signal changes and nothing tells of
_SMALLER = ("RGB", "RGBA", "CMYK", "L")  # modes that shrink well as they are, which saves a copy at full size
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # the EXIF orientation, and what sets an image upright that has it


def thumbnail_keys(record: Record) -> list[str]:
    """Where the thumbnails of all of the record's images lie, whether there are any or not."""
    return [thumbnail_key(record.key, index) for index, _ in enumerate((record.manifest or {}).get("images", ()))]


class ImageCache:
    """The bytes of images that have just been stored, by their SHA-256, as far as there is room for them."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}

    def add(self, sha256: str, data: bytes) -> None:
        """Keep `data`, unless all together would be over `MAX_KEPT`."""
        if self.size + len(data) <= MAX_KEPT:
            self.images[sha256] = data

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(map(len, self.images.values()))


async def make_thumbnails(store: Store, record: Record, kept: ImageCache, *, log: Logs, guard: SubmitGuard) -> None:
    """Make the thumbnails of a record that has landed, as far as that is possible. Raises nothing.

    :param store: the root.
    :param record: what has landed.
    :param kept: the bytes of its images; of what else the record names none is made.
    :param log: told where there is none.
    :param guard: once the task is told to stop, nothing is waited for.
    """
    try:
        await _make(store, record, kept, log, guard)
    except Exception as error:  # no thread left, no memory left: the image is stored, and that is what counts
        log.warning("Record %s gets no thumbnail (%s).", record.key, type(error).__name__)


async def _make(store: Store, record: Record, kept: ImageCache, log: Logs, guard: SubmitGuard) -> None:
    if WORKER.is_stuck:  # it would only be waited for
        log.warning("Record %s gets no thumbnail: an earlier one is still being made.", record.key)
        return
    images = (record.manifest or {})["images"]
    wanted = {key: kept.images.get(image["sha256"]) for key, image in zip(thumbnail_keys(record), images, strict=True)}
    job = ThumbnailJob(store, {key: data for key, data in wanted.items() if data is not None})
    made = asyncio.wrap_future(WORKER.submit(job))
    deadline = time.monotonic() + SECONDS
    try:
        while not made.done() and not guard.stopped:
            left = deadline - time.monotonic()
            if left <= 0:
                log.warning("Record %s gets no thumbnail: it took longer than %.0f s.", record.key, SECONDS)
                return
            await asyncio.wait([made], timeout=min(left, _BEAT))
    finally:
        job.abandoned = True
        made.cancel()
    if not made.cancelled():
        _tell_failures(made.result(), log)


def _tell_failures(failures: Mapping[str, type[Exception]], log: Logs) -> None:
    for key, failure in failures.items():
        if issubclass(failure, ModuleNotFoundError):
            log.debug("No thumbnails are made without Pillow: pip install 'airflow-provider-geminiimg[thumbnails]'")
            return
        # The name alone: a decoder's message may repeat what is in the image.
        log.warning("There is no thumbnail %s (%s). The image itself is stored.", key, failure.__name__)


class ThumbnailJob:
    """One record's thumbnails, made as long as somebody waits for them.

    :param images: the bytes of its images, by the key of the thumbnail.
    """

    def __init__(self, store: Store, images: Mapping[str, bytes]) -> None:
        self.abandoned = False
        self._store = store
        self._images = images

    def run(self) -> dict[str, type[Exception]]:
        """Make them.

        :returns: why some are not there, by key. The exceptions themselves would hold on to the bytes.
        """
        failures = {key: self._make(key, data) for key, data in self._images.items()}
        return {key: failure for key, failure in failures.items() if failure is not None}

    def _make(self, key: str, data: bytes) -> type[Exception] | None:
        try:
            thumbnail = b"" if self.abandoned else render(data)
            if not self.abandoned:
                create_or_read(self._store, key, thumbnail)
        except Exception as error:  # whatever is in an image, and whatever becomes of a disk or a bucket
            return type(error)
        return None


class ThumbnailWorker:
    """A daemon thread that does one job after the other.

    It is always the same thread: what a decoder gives back stays with its thread's share of the memory, of which a
    process with many threads has many. No pool of the standard library: a process waits for those when it ends.
    """

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[tuple[ThumbnailJob, Future[dict[str, type[Exception]]]]] = queue.SimpleQueue()
        self._job: ThumbnailJob | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether it is still at a job for which nobody waits any more."""
        return self._is_alive and self._job is not None and self._job.abandoned

    def submit(self, job: ThumbnailJob) -> Future[dict[str, type[Exception]]]:
        """Have a job done when all that came before are. One that is cancelled before its turn is not begun."""
        future: Future[dict[str, type[Exception]]] = Future()
        with self._starting:
            if not self._is_alive:  # the thread does not come along into a forked process
                self._job, self._queue = None, queue.SimpleQueue()
                self._thread = threading.Thread(target=self._run, name="geminiimg-thumbnails", daemon=True)
                self._thread.start()
            self._queue.put((job, future))
        return future

    @property
    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._do(*self._queue.get())  # nothing here holds on to a job while the next one is waited for

    def _do(self, job: ThumbnailJob, future: Future[dict[str, type[Exception]]]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._job = job
        try:
            failures = job.run()
        finally:
            self._job = None  # before anybody is told, who may bring the next one at once
        future.set_result(failures)


WORKER = ThumbnailWorker()
"""Of the process, and so in a module: it bounds the memory that decoders take to what one of them needs."""


def render(data: bytes) -> bytes:
    """An image's thumbnail, as a WebP: its first frame, the right way up, transparency kept, without metadata.

    :param data: a PNG, JPEG or WebP.
    :raises Exception: it can't be decoded, is too large, or is not one image to all who read it; whatever Pillow
        raises, too.
    """
    from PIL import Image

    info = inspect_image(data)  # before Pillow, which makes room for a WebP as soon as it opens one
    if info.stored_size is None:
        raise ValueError("How large it is can't be told.")
    width, height = info.stored_size
    if width * height > MAX_PIXELS[info.extension]:
        raise ValueError(f"{width} x {height} pixels are too many.")
    pixels = io.BytesIO(pixels_of(data, info.extension, width * height))
    with Image.open(pixels, formats=("PNG", "JPEG", "WEBP")) as opened:
        if opened.size != info.stored_size:
            raise ValueError("Its headers don't agree on its size.")
        mode = "RGBA" if opened.has_transparency_data else "RGB"
        small = _shrinkable(opened, mode)
        if small is not opened:
            opened.close()  # lets go of its pixels, while shrinking makes one more copy of those of `small`
        small.thumbnail((SIDE, SIDE))
        if info.orientation in _UPRIGHT:
            small = small.transpose(Image.Transpose[_UPRIGHT[info.orientation]])
        small = small.convert(mode)
    small.info.clear()  # whatever a version of Pillow would write of it
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80, method=2)  # half the time of the default, for a few per cent of size
    return buffer.getvalue()


def _shrinkable(image: Image, mode: str) -> Image:
    if image.mode.startswith("I"):  # 16 bits of grey, of which a conversion would keep the lower 8
        return image.point(lambda value: value / 256).convert("L")
    if image.mode in _SMALLER and "transparency" not in image.info:
        return image
    return image.convert(mode)
