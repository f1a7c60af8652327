"""From a paid result to an image in storage: download, verify, write, record.

Invariants: nothing here costs money. Bytes that are an image are always written unchanged and recorded; only then may
the task fail because of them. A file of another record is never replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from airflow_provider_geminiimg.core.catalog.google_models import expected_pixels
from airflow_provider_geminiimg.core.catalog.lookup import row_name
from airflow_provider_geminiimg.core.execution.boundary import closed, error_and_place
from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.base import ResultImage
from airflow_provider_geminiimg.core.images.inspection import ImageInfo, mismatch
from airflow_provider_geminiimg.core.ledger.file_names import is_sidecar_of
from airflow_provider_geminiimg.core.ledger.fingerprint_index import point_to
from airflow_provider_geminiimg.core.ledger.layout import index_key
from airflow_provider_geminiimg.core.ledger.manifest import (
    StoredImage,
    build,
    cost_in_words,
    differs_from_estimate,
    reported,
    sidecar,
    size_in_words,
)
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.fetching import fetch, inspected, with_retries
from airflow_provider_geminiimg.core.purchase.thumbnails import ImageCache, make_thumbnails, thumbnail_keys
from airflow_provider_geminiimg.core.storage import Files, join_uri
from airflow_provider_geminiimg.core.storage.base import sha256
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    InvalidImageError,
    LinkExpiredError,
    MismatchError,
    StorageError,
    UpstreamFailedError,
)

_ELSEWHERE = "Or clear the task with another output_path: the paid image lands there, at no cost."
UNFETCHED = (InvalidImageError, UpstreamFailedError)
"""Errors of a link that returns no image."""


class ImageWriter:
    """Stores images at their destinations.

    :param purchase_context: what a purchase needs from outside.
    :param generation: ``ti.max_tries`` of this attempt, written to the record.
    :param guard: after a kill, thumbnails are not waited for. Default: the task is never killed.
    """

    def __init__(
        self, purchase_context: PurchaseContext, *, generation: int = 0, guard: SubmitGuard | None = None
    ) -> None:
        self.purchase_context = purchase_context
        self.generation = generation
        self.guard = guard or SubmitGuard()
        self.log = purchase_context.log

    async def land(self, record: Record, images: Sequence[ResultImage], reported_cost: float | None = None) -> Record:
        """Download, verify and write the results, then the sidecar file, then the record.

        :param reported_cost: cost reported by the gateway; ``None``: none.
        :returns: the record as it is stored now, ``landed``.
        :raises LinkExpiredError: the link has expired.
        :raises InvalidImageError: the downloaded bytes are not an image.
        :raises StorageError: the bucket or the disk failed.
        :raises UpstreamFailedError: the link can't be opened, or its content caused an unexpected exception.
        """
        if not images:
            raise LinkExpiredError(f"Record {record.key} has no result to fetch.")
        memory = self.purchase_context.memory
        came = sum(len(image.data) for image in images if image.data is not None)
        with memory.held(came):
            async with memory.acquire(empty=came > 0) as allocation:
                landed = await closed(self._land(record, images, reported_cost, allocation), _broken)
        if isinstance(landed, GeminiImageError):
            raise landed
        return landed

    async def _land(
        self,
        record: Record,
        images: Sequence[ResultImage],
        reported_cost: float | None,
        allocation: Allocation,
    ) -> Record:
        stored: list[StoredImage] = []
        cache = ImageCache()
        with paid():
            for image in images:
                try:
                    before = cache.size
                    data, info, digest = await fetch(self.purchase_context, record, image, allocation, before)
                    further = bool(stored) or image is not images[-1]
                    if further and _is_input(record, digest):
                        self.log.warning(
                            "The result of record %s also contains an input image; it is not stored.", record.key
                        )
                        continue
                    if image.data is None:
                        allocation.complete(before + len(data))
                    stored.append(await self._store(record, len(stored), data, info, digest))
                    cache.add(stored[-1].sha256, data)
                except (LinkExpiredError, *UNFETCHED) as error:
                    if not stored:
                        raise
                    # The requested image is stored. A failure of an additional one must not delay it.
                    self.log.warning("An additional image of record %s is not stored: %s", record.key, error.message)
            difference = self._mismatch(record, stored[0])
            manifest = build(record, stored, mismatch=difference, cost=self._cost(record, reported_cost))
            await self.write_sidecar(stored[0], sidecar(manifest, record))
        await self._drop_thumbnails(record, stored)
        return await self.landed(record, manifest, cache)

    async def _store(self, record: Record, index: int, data: bytes, info: ImageInfo, digest: str) -> StoredImage:
        files = self.purchase_context.files

        def write(uri: str) -> bool:
            files.check(uri, "output_path")
            return files.write(uri, data, media_type=info.media_type, sha256=digest)

        async def written(stem: str) -> str | None:
            uri = join_uri(record.destination.directory, f"{stem}.{info.extension}")
            return uri if await asyncio.to_thread(write, uri) else None

        stem = file_stem(record, index)
        try:
            uri = await written(stem)
        except (BadRequestError, StorageError) as error:
            if not error.retryable:
                raise error.evolve(hint=f"{error.hint} {_ELSEWHERE}".strip()) from error.__cause__
            raise
        if uri is None:
            self.log.warning("%s exists with other content; storing as %s-%s.", stem, stem, digest[:12])
            uri = await written(f"{stem}-{digest[:12]}")
        if uri is None:
            raise StorageError(f"No free name for the image of record {record.key}.", billed=Billed.YES)
        return _stored(uri, info, data, digest)

    async def store_all(self, record: Record, contents: Sequence[bytes]) -> tuple[list[StoredImage], ImageCache]:
        images, cache = [], ImageCache()
        for index, data in enumerate(contents):
            images.append(await self._store(record, index, data, *await asyncio.to_thread(inspected, data)))
            cache.add(images[-1].sha256, data)
        return images, cache

    async def write_sidecar(self, image: StoredImage, content: Mapping[str, Any]) -> None:
        """Write the sidecar file of an image. It replaces only a sidecar of the same record."""
        stem = image.uri.rpartition(".")[0]
        body = json.dumps(content, indent=2, ensure_ascii=False).encode()
        for uri in (f"{stem}.json", f"{stem}-{image.sha256[:12]}.json"):
            if await asyncio.to_thread(
                _write_sidecar, self.purchase_context.files, uri, body, content["record"], image.sha256
            ):
                return
            self.log.warning("%s is not a sidecar of this record; it is not replaced.", uri)
        self.log.warning("%s has no sidecar file. Record %s has the same information.", image.uri, content["record"])

    async def landed(self, record: Record, manifest: dict[str, Any], cache: ImageCache) -> Record:
        landed, recorded = await self._record_landing(record, manifest)
        self._report(landed)
        if recorded:
            await self.make_thumbnails(landed, cache)
        return landed

    async def _record_landing(self, record: Record, manifest: dict[str, Any]) -> tuple[Record, bool]:
        """Returns (record, stored): the landed record, and whether it could be written."""

        def landed(stored: Record) -> Record | None:
            if stored.state == "landed" and stored.job_id != record.job_id:
                return None  # another job landed first; this job stays an extra job, for `jobs collect`
            jobs = dict.fromkeys(job for job in (*stored.extra_jobs, stored.job_id) if job)
            return replace(
                stored,
                state="landed",
                job_id=record.job_id or stored.job_id,
                extra_jobs=[job for job in jobs if job != (record.job_id or stored.job_id)],
                submitted_at=stored.submitted_at or record.submitted_at,
                landed_at=time.time(),
                destination=record.destination,
                suffix=record.suffix,
                generation=max(stored.generation, self.generation),
                links=[],
                spooled=[],
                outcome=None,
                manifest=manifest,
            )

        def write() -> Record:
            updated = self.purchase_context.ledger.change(record.key, landed)
            self._after_landing(record, updated)
            return updated

        try:
            updated = await with_retries(lambda: asyncio.to_thread(write))
        except GeminiImageError as error:
            # The image is in storage. Failing the task now would hide it.
            self.log.error(
                "The image of job %s is in storage, but record %s was not updated (%s): %s",
                record.job_id, record.key, error.kind, error.message,
            )  # fmt: skip
            return landed(record) or record, False
        return updated, True

    def _after_landing(self, record: Record, landed: Record) -> None:
        store = self.purchase_context.ledger.store
        # What was bought is the newest. A copy stands in for what it was made from, which goes first.
        key, older = index_key(landed.key, landed.fingerprint), landed.reused_from
        steps: list[Callable[[], object]] = [lambda: point_to(store, key, landed, instead_of=older)]
        steps += [partial(store.delete, spooled) for spooled in record.spooled]
        for step in steps:
            try:
                step()
            except GeminiImageError as error:
                self.log.warning("Could not clean up after record %s (%s).", landed.key, error.kind)

    async def _drop_thumbnails(self, record: Record, stored: Sequence[StoredImage]) -> None:
        """Delete the thumbnails of an earlier landing if the images differ now."""
        earlier = (record.manifest or {}).get("images", ())
        if [image["sha256"] for image in earlier] == [image.sha256 for image in stored]:
            return
        with contextlib.suppress(GeminiImageError):
            for key in thumbnail_keys(record):
                await asyncio.to_thread(self.purchase_context.ledger.store.delete, key)

    async def make_thumbnails(self, record: Record, cache: ImageCache) -> None:
        store = self.purchase_context.ledger.store
        await make_thumbnails(store, record, cache, log=self.log, guard=self.guard)

    def _mismatch(self, record: Record, image: StoredImage) -> str | None:
        if _is_input(record, image.sha256):
            return "The result is an unchanged input image."
        info = ImageInfo(image.media_type, "", image.width, image.height)
        asked = record.request_fields
        resolution, ratio = asked.get("resolution"), asked.get("aspect_ratio")
        listed = expected_pixels(row_name(record.model), resolution, ratio)
        return mismatch(info, resolution=resolution, aspect_ratio=ratio, listed=listed)

    def _cost(self, record: Record, amount: float | None) -> dict[str, Any]:
        """The cost reported by the gateway if it can be a price, else the estimate."""
        if amount is None or record.reused_from is not None:
            return record.cost
        cost = reported(amount)
        if differs_from_estimate(record.cost, cost):
            self.log.warning(
                "The gateway reports that the image of record %s cost %g %s; the estimate was %s. Caps use the "
                "estimate: set `prices` (or `price_base`, for the default model) on connection %s to your prices.",
                record.key, cost.amount, cost.currency, cost_in_words(record.cost), record.conn_id,
            )  # fmt: skip
        return asdict(cost)

    def _report(self, record: Record) -> None:
        for image in (record.manifest or {})["images"]:
            self.log.info("Landed %s (%s, %s bytes).", image["uri"], size_in_words(image), image["size"])
        self.log.info("Record %s: %s.", record.key, cost_in_words((record.manifest or {}).get("cost") or {}))
        if (record.manifest or {}).get("mismatch"):
            self.log.warning("The image does not match the request: %s", (record.manifest or {})["mismatch"])


def file_stem(record: Record, index: int) -> str:
    """The file name of an image of `record`, without extension."""
    return f"{record.destination.stem}{record.suffix}{f'+{index}' if index else ''}"


def _write_sidecar(files: Files, uri: str, body: bytes, record: str, image_sha256: str) -> bool:
    """Write the sidecar file of a record; ``False`` if another file has its name."""
    media_type = "application/json"
    if files.write(uri, body, media_type=media_type, sha256=sha256(body)):
        return True
    if not is_sidecar_of(files, uri, record, image_sha256):
        return False
    files.put(uri, body, media_type=media_type)
    return True


def mismatch_error(manifest: Mapping[str, Any]) -> MismatchError | None:
    """The error for a landed image that does not match its request; ``None`` if it matches."""
    if not manifest.get("mismatch"):
        return None
    return MismatchError(f"{manifest['mismatch']} It is stored at {manifest['images'][0]['uri']}.")


@contextlib.contextmanager
def paid() -> Iterator[None]:
    """Mark errors in the block as paid: they happen after the payment."""
    try:
        yield
    except GeminiImageError as error:
        if error.billed is Billed.NO:
            raise error.evolve(billed=Billed.YES) from error.__cause__
        raise


def _is_input(record: Record, digest: str) -> bool:
    return any(known["sha256"] == digest for known in record.inputs)


def _broken(error: Exception) -> UpstreamFailedError:
    """The error for a foreign exception while landing; the content or the record caused it."""
    passing = isinstance(error, OSError | MemoryError)
    hint = InvalidImageError.default_hint if passing else LinkExpiredError.default_hint
    said = f"Storing the image failed ({error_and_place(error)})."
    return UpstreamFailedError(said, billed=Billed.YES, retryable=passing, hint=hint)


def _stored(uri: str, info: ImageInfo, data: bytes, digest: str) -> StoredImage:
    return StoredImage(uri, info.media_type, info.width, info.height, len(data), digest)
