"""Images that landed earlier: checks whether they still exist, and copies them to other destinations.

Invariants: nothing here calls a gateway or costs money. A copy has the same bytes as the landed image. The source is
only read. Inside one store the store itself copies, if it can be trusted not to replace a file (`Files.copy`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES
from airflow_provider_geminiimg.core.ledger.file_names import reserve_name
from airflow_provider_geminiimg.core.ledger.layout import folder_of
from airflow_provider_geminiimg.core.ledger.manifest import StoredImage, build, sidecar
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.decision import ImageState
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter, file_stem
from airflow_provider_geminiimg.core.purchase.thumbnails import ImageCache
from airflow_provider_geminiimg.core.storage import Files, join_uri
from airflow_provider_geminiimg.core.storage.base import sha256
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, StorageError

Intact = Literal["there", "changed", "gone", "unknown"]
"""Whether a landed image is unchanged in storage."""


@dataclass(frozen=True)
class ImagePlace:
    """A place of the image of a record: the place where it landed, or a copy.

    :param destination: the requested destination.
    :param manifest: of the files there.
    """

    destination: Destination
    manifest: Mapping[str, Any]


def image_places(record: Record, asked: Destination | None = None) -> list[ImagePlace]:
    """All places of a landed image, `asked` first."""
    copies = [ImagePlace(Destination(**copy["destination"]), copy["manifest"]) for copy in record.copies]
    places = [ImagePlace(record.destination, record.manifest or {}), *copies]
    return sorted(places, key=lambda place: place.destination != asked)


async def find_image(files: Files, record: Record, asked: Destination) -> tuple[ImageState, Mapping[str, Any]]:
    """The state of a landed image, and the manifest of the first place where it exists.

    :param asked: the destination of this attempt; checked first.
    """
    states = []
    for place in image_places(record, asked):
        states.append(await image_state(files, place.manifest))
        if states[-1] == "there":
            at: ImageState = "asked" if place.destination == asked else "elsewhere"
            return "there" if place.destination == record.destination else at, place.manifest
    return "unknown" if "unknown" in states else "gone", record.manifest or {}


async def reused_manifest(writer: ImageWriter, record: Record, asked: Destination) -> dict[str, Any]:
    """The manifest of a landed image, at the requested destination if the image exists there."""
    if not record.copies:  # only one place, which was just checked
        return dict(record.manifest or {})
    _, manifest = await find_image(writer.purchase_context.files, record, asked)
    await _note_asked(writer.purchase_context.ledger, record, asked)
    return dict(manifest)


async def image_state(files: Files, manifest: Mapping[str, Any]) -> Literal["there", "gone", "unknown"]:
    """Whether the images of a manifest exist in storage."""
    states = [await asyncio.to_thread(files.state, image["uri"]) for image in manifest["images"]]
    return "gone" if "gone" in states else "unknown" if "unknown" in states else "there"


async def read_back(files: Files, record: Record, allocation: Allocation) -> tuple[Intact, list[bytes]]:
    """The images of a landed record, from the first place where they are unchanged.

    :param allocation: the memory for them, reserved before each is read.
    :returns: ``there`` and the images; else ``unknown`` if a place can't be read, ``changed`` if a place has other
        bytes, ``gone`` if no place has the images.
    """
    states: set[Intact] = set()
    before = allocation.taken
    for place in image_places(record):
        state, images = await _read_place(files, place.manifest, allocation)
        allocation.resize(before + sum(map(len, images)))
        if state == "there":
            return state, images
        states.add(state)
    return next(state for state in ("unknown", "changed", "gone") if state in states), []


async def _read_place(files: Files, manifest: Mapping[str, Any], allocation: Allocation) -> tuple[Intact, list[bytes]]:
    images: list[bytes] = []
    for image in manifest["images"]:
        state = await asyncio.to_thread(files.state, image["uri"])
        if state != "there":
            return state, []
        most = min(image.get("size") or MAX_IMAGE_BYTES, MAX_IMAGE_BYTES)
        await allocation.hold(allocation.taken + most)
        try:
            data = await asyncio.to_thread(files.read, image["uri"], max_bytes=most, landed=True)
        except StorageError:
            return "unknown", []
        except BadRequestError:  # larger than what landed, or gone this very moment
            return "changed", []
        if await asyncio.to_thread(sha256, data) != image["sha256"]:
            return "changed", []
        images.append(data)
    return "there", images


async def copy_to(
    writer: ImageWriter, record: Record, destination: Destination, avoid: Container[int] = ()
) -> dict[str, Any]:
    """The manifest of a landed image at another destination. The image is copied there if it is not there yet.

    :param avoid: see `reserve_name`.
    """
    ledger, files = writer.purchase_context.ledger, writer.purchase_context.files
    for place in image_places(record, destination):
        if place.destination == destination and await image_state(files, place.manifest) == "there":
            await _note_asked(ledger, record, destination)
            return dict(place.manifest)
    async with writer.purchase_context.memory.acquire(empty=True) as allocation:
        moved, cache = await moved_to(writer, record, destination, avoid), ImageCache()
        images = await asyncio.to_thread(_copied, files, record, moved)
        if images is None:
            intact, contents = await read_back(files, record, allocation)
            if intact != "there":
                raise StorageError(f"The image of record {record.key} is not the one that landed.", billed=Billed.YES)
            images, cache = await writer.store_all(moved, contents)
        manifest = {**(record.manifest or {}), "images": [dataclasses.asdict(image) for image in images]}
        await writer.write_sidecar(images[0], sidecar(manifest, record))
        await asyncio.to_thread(ledger.change, record.key, lambda stored: _with_copy(stored, destination, manifest))
        await writer.make_thumbnails(record, cache)
        return manifest


def _copied(files: Files, record: Record, moved: Record) -> list[StoredImage] | None:
    """The images of a landed record after a copy inside their store; ``None`` if they must be read and written."""
    images = []
    for index, image in enumerate((record.manifest or {})["images"]):
        extension = image["uri"].rpartition(".")[2]
        uri = join_uri(moved.destination.directory, f"{file_stem(moved, index)}.{extension}")
        try:
            if not files.copy(image["uri"], uri, sha256=image["sha256"]):
                return None
            images.append(StoredImage(**{**image, "uri": uri}))
        except (
            GeminiImageError,
            TypeError,
        ):  # another place of the image may be readable, or its record is an older one
            return None
    return images


async def moved_to(writer: ImageWriter, record: Record, destination: Destination, avoid: Container[int] = ()) -> Record:
    """`record` with another destination, after claiming the file name there.

    :param avoid: see `reserve_name`.
    """
    purchase_context, item_path = writer.purchase_context, folder_of(record.key)
    digest = (record.manifest or {})["images"][0]["sha256"]
    ledger, files = purchase_context.ledger, purchase_context.files
    suffix = await asyncio.to_thread(
        lambda: reserve_name(ledger, files, item_path, destination, record.n, digest, avoid=avoid)
    )
    return replace(record, destination=destination, suffix=suffix)


def asked_last(record: Record) -> Destination:
    """The last requested destination of the image. Records of earlier versions lack it; their last copy has it."""
    return record.asked or image_places(record)[-1].destination


async def _note_asked(ledger: Ledger, record: Record, asked: Destination) -> None:
    """Note the requested destination on the record, for a sensor."""
    if asked != asked_last(record) and asked in [place.destination for place in image_places(record)]:
        await asyncio.to_thread(ledger.change, record.key, lambda stored: replace(stored, asked=asked))


def _with_copy(stored: Record, destination: Destination, manifest: dict[str, Any]) -> Record:
    if destination == stored.destination:  # the first destination again
        return replace(stored, manifest=manifest, asked=destination)
    asked = dataclasses.asdict(destination)
    others = [copy for copy in stored.copies if copy["destination"] != asked]
    return replace(stored, copies=[*others, {"destination": asked, "manifest": manifest}], asked=destination)


async def land_copy(writer: ImageWriter, record: Record, source: Record, contents: Sequence[bytes]) -> Record:
    """Store a copy of the image of another task.

    :param record: the record of the copy, see `reuse_decision.copy_of`.
    :param source: the record of the image.
    :param contents: the image bytes, from `read_back`.
    :returns: the record as it is stored now, ``landed``.
    :raises StorageError: the bucket or the disk failed.
    """
    images, cache = await writer.store_all(record, contents)
    manifest = build(record, images, mismatch=(source.manifest or {}).get("mismatch"), cost=record.cost)
    await writer.write_sidecar(images[0], sidecar(manifest, record))
    return await writer.landed(record, manifest, cache)
