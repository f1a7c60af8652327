"""What has landed before: whether it is still there, and a copy of it where it is wanted too.

What must stay true: nothing is asked of a gateway here, and nothing costs money; what is copied is, byte by byte, what
landed; what it is copied from is only read.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from airflow_provider_geminiimg.decision import PictureState
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, StorageError
from airflow_provider_geminiimg.landing import MAX_PICTURE_BYTES, Lander, in_thread
from airflow_provider_geminiimg.ledger import Destination, Record
from airflow_provider_geminiimg.manifest import build, sidecar
from airflow_provider_geminiimg.names import reserve_name
from airflow_provider_geminiimg.storage import Files

Intact = Literal["there", "changed", "gone", "unknown"]
"""Whether a picture is still the one that landed."""


async def picture_state(files: Files, manifest: Mapping[str, Any]) -> PictureState:
    """Whether what a manifest names is still where it landed."""
    states = [await in_thread(files.state, image["uri"]) for image in manifest["images"]]
    return "gone" if "gone" in states else "unknown" if "unknown" in states else "there"


async def read_back(files: Files, record: Record) -> tuple[Intact, list[bytes]]:
    """The pictures of a record that has landed, and whether they still are what landed; none where not."""
    pictures: list[bytes] = []
    for image in (record.manifest or {})["images"]:
        state = await in_thread(files.state, image["uri"])
        if state != "there":
            return state, []
        try:
            data = await in_thread(lambda uri=image["uri"]: files.read(uri, max_bytes=MAX_PICTURE_BYTES))
        except StorageError:
            return "unknown", []
        except BadRequestError:  # larger than any picture, or gone this very moment
            return "changed", []
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            return "changed", []
        pictures.append(data)
    return "there", pictures


async def copy_to(lander: Lander, record: Record, destination: Destination) -> dict[str, Any]:
    """The manifest of a copy of what landed, at another destination; made unless it is there."""
    asked = dataclasses.asdict(destination)
    known = next((dict(copy["manifest"]) for copy in record.copies if copy["destination"] == asked), None)
    ledger, files = lander.workshop.ledger, lander.workshop.files
    if known is not None and await picture_state(files, known) == "there":
        return known
    suffix = ""
    if known is None:
        item_path = record.key.rsplit("/", 1)[0]
        digest = (record.manifest or {})["images"][0]["sha256"]
        suffix = await in_thread(reserve_name, ledger, files, item_path, destination, record.n, digest)
    manifest = dict(record.manifest or {})
    intact, pictures = await read_back(files, record)
    if intact != "there":
        raise StorageError(f"The picture of record {record.key} is not the one that landed.", billed=Billed.YES)
    images, kept = await lander.store_all(replace(record, destination=destination, suffix=suffix), pictures)
    manifest["images"] = [dataclasses.asdict(image) for image in images]
    await lander.write_sidecar(images[0], sidecar(manifest, record))
    copied = {"destination": asked, "manifest": manifest}
    await in_thread(ledger.change, record.key, lambda stored: replace(stored, copies=[*stored.copies, copied]))
    await lander.make_thumbnails(record, kept)
    return manifest


async def land_copy(lander: Lander, record: Record, source: Record, pictures: Sequence[bytes]) -> Record:
    """Land what another task has landed.

    :param record: of the copy, `copy_of` in `reuse`.
    :param source: whose pictures they are.
    :param pictures: their bytes, as `read_back` gives them.
    :returns: the record as it is stored now, ``landed``.
    :raises StorageError: the bucket or the disk failed.
    """
    images, kept = await lander.store_all(record, pictures)
    manifest = build(record, images, mismatch=(source.manifest or {}).get("mismatch"), cost=record.cost)
    await lander.write_sidecar(images[0], sidecar(manifest, record))
    return await lander.landed(record, manifest, kept)
