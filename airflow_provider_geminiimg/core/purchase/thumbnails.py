"""Small WebP copies of landed images, so that a page with a hundred images loads fast.

A thumbnail is made after its record has landed, if the extra ``thumbnails`` (Pillow) is installed. Without a thumbnail,
the gallery shows the image itself. Invariants:

- A thumbnail never fails a task and never delays it by more than `SECONDS`. A decoder can't be interrupted, so it runs
  in a daemon thread; a job that takes too long is abandoned and writes nothing.
- The number of pixels, and so the memory, is checked by the header before decoding. A process makes one thumbnail at a
  time.
- The decoder gets only pixel data. With other data, Pillow unpacked 3 MB of EXIF data to gigabytes.
- A thumbnail has no metadata, which could contain a prompt or a place.
- A thumbnail belongs to the images of its record. If an image is downloaded again with other bytes, the old thumbnails
  are deleted before the record is updated; a missing thumbnail is better than a wrong one.
- Removing a record removes its thumbnails.
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
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.storage import Store, create_or_read

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 512
"""Maximum of the longer side of a thumbnail, in pixels."""

MAX_PIXELS = {"png": 40_000_000, "jpg": 40_000_000, "webp": 20_000_000}
"""Maximum pixels of an image, by its extension; decoding then needs less than 400 MB. A WebP needs four times its size
during decoding. The largest images of the models have 19 million pixels (12288 x 1536)."""

MAX_CACHE_BYTES = 64 * 1024 * 1024
"""Maximum bytes in an `ImageCache`: the size of the largest image."""

SECONDS = 20.0
"""Time limit for the thumbnails of one record; a 4K image takes about half a second."""

_BEAT = 0.5  # seconds between checks of the guard, which a signal handler sets without a notification
_SMALLER = ("RGB", "RGBA", "CMYK", "L")  # modes that can be shrunk without a conversion at full size
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # EXIF orientation -> transposition that makes the image upright


def thumbnail_keys(record: Record) -> list[str]:
    """The keys of the thumbnails of all images of the record, whether they exist or not."""
    return [thumbnail_key(record.key, index) for index, _ in enumerate((record.manifest or {}).get("images", ()))]


class ImageCache:
    """The bytes of images that were just stored, by SHA-256, up to `MAX_CACHE_BYTES` bytes."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}

    def add(self, sha256: str, data: bytes) -> None:
        """Keep `data`, unless the total would exceed `MAX_CACHE_BYTES`."""
        if self.size + len(data) <= MAX_CACHE_BYTES:
            self.images[sha256] = data

    @property
    def size(self) -> int:
        """The total of bytes."""
        return sum(map(len, self.images.values()))


async def make_thumbnails(store: Store, record: Record, cache: ImageCache, *, log: Logs, guard: SubmitGuard) -> None:
    """Make the thumbnails of a landed record if possible. Never raises.

    :param store: the store at the root.
    :param record: the landed record.
    :param cache: the bytes of its images; images without bytes get no thumbnail.
    :param log: for warnings about missing thumbnails.
    :param guard: after a kill, the thumbnails are not waited for.
    """
    try:
        await _make(store, record, cache, log, guard)
    except Exception as error:  # such as no thread or memory; the image itself is stored
        log.warning("Record %s gets no thumbnail (%s).", record.key, type(error).__name__)


async def _make(store: Store, record: Record, cache: ImageCache, log: Logs, guard: SubmitGuard) -> None:
    if WORKER.is_stuck:  # a new job would wait for the stuck one
        log.warning("Record %s gets no thumbnail: an earlier one is still being made.", record.key)
        return
    images = (record.manifest or {})["images"]
    wanted = {key: cache.images.get(image["sha256"]) for key, image in zip(thumbnail_keys(record), images, strict=True)}
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
        _log_failures(made.result(), log)


def _log_failures(failures: Mapping[str, type[Exception]], log: Logs) -> None:
    for key, failure in failures.items():
        if issubclass(failure, ModuleNotFoundError):
            log.debug("No thumbnails are made without Pillow: pip install 'airflow-provider-geminiimg[thumbnails]'")
            return
        # Only the class name: the message of a decoder may repeat data of the image.
        log.warning("There is no thumbnail %s (%s). The image itself is stored.", key, failure.__name__)


class ThumbnailJob:
    """A job that makes the thumbnails of one record, until it is abandoned.

    :param images: the bytes of its images, by the key of the thumbnail.
    """

    def __init__(self, store: Store, images: Mapping[str, bytes]) -> None:
        self.abandoned = False
        self._store = store
        self._images = images

    def run(self) -> dict[str, type[Exception]]:
        """Make the thumbnails.

        :returns: exception classes of missing thumbnails, by key. Exceptions would keep the image bytes alive.
        """
        failures = {key: self._make(key, data) for key, data in self._images.items()}
        return {key: failure for key, failure in failures.items() if failure is not None}

    def _make(self, key: str, data: bytes) -> type[Exception] | None:
        try:
            thumbnail = b"" if self.abandoned else render(data)
            if not self.abandoned:
                create_or_read(self._store, key, thumbnail)
        except Exception as error:  # of the decoder or of the store
            return type(error)
        return None


class ThumbnailWorker:
    """A daemon thread that runs one job after the other.

    It is always the same thread, because memory that a decoder frees stays in the arena of its thread. It is not a pool
    of the standard library, because a process waits for such a pool when it exits.
    """

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[tuple[ThumbnailJob, Future[dict[str, type[Exception]]]]] = queue.SimpleQueue()
        self._job: ThumbnailJob | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether the thread is still running an abandoned job."""
        return self._is_alive and self._job is not None and self._job.abandoned

    def submit(self, job: ThumbnailJob) -> Future[dict[str, type[Exception]]]:
        """Queue a job. A job that is cancelled before its turn is not started."""
        future: Future[dict[str, type[Exception]]] = Future()
        with self._starting:
            if not self._is_alive:  # a forked process has no copy of the thread
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
            self._do(*self._queue.get())  # no variable here keeps a finished job alive

    def _do(self, job: ThumbnailJob, future: Future[dict[str, type[Exception]]]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._job = job
        try:
            failures = job.run()
        finally:
            self._job = None  # before the result is set, because the caller may submit the next job at once
        future.set_result(failures)


WORKER = ThumbnailWorker()
"""One per process, to limit the memory to one decoder; hence the module-level state."""


def render(data: bytes) -> bytes:
    """The thumbnail of an image as WebP: first frame, upright, with transparency, without metadata.

    :param data: a PNG, JPEG or WebP image.
    :raises Exception: the image can't be decoded, is too large or is ambiguous; also any exception of Pillow.
    """
    from PIL import Image

    info = inspect_image(data)  # before Pillow, which allocates memory for a WebP when it opens it
    if info.stored_size is None:
        raise ValueError("Its size is unknown.")
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
