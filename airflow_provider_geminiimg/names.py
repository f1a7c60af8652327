"""Names of files, claimed before anything is spent on what shall land there.

What must stay true: a name belongs to one item for good; a file that somebody else put there is never replaced; two
pictures of one item never share a name.
"""

from __future__ import annotations

import dataclasses
import json

from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, StorageError
from airflow_provider_geminiimg.ledger import Destination, Ledger, Record
from airflow_provider_geminiimg.storage import Files, join_uri, same_place

EXTENSIONS = ("png", "jpg", "webp", "json")


def reserve_name(
    ledger: Ledger, files: Files, item_path: str, destination: Destination, n: int, digest: str | None = None
) -> str:
    """Claim a destination for an item.

    :param item_path: `Item.path` of whose picture shall land there.
    :param n: number of the submission that needs it.
    :param digest: SHA-256 of the picture, where it is known already: an attempt that died may have written it.
    :returns: what is added to the file name, because an earlier picture of this item has it or may still take it.
    :raises BadRequestError: the name is another picture's, or the directory can't be written.
    :raises StorageError: the store failed.
    """
    earlier = (ledger.read(f"{item_path}/{number}.json") for number in range(1, n))
    used = any(found is not None and _uses(found.record, destination) for found in earlier)
    suffix = f"-{n}" if used else ""
    stem = join_uri(destination.directory, destination.stem + suffix)
    files.check(stem, "output_path")
    files.check_writable(destination.directory)
    _claim(ledger, item_path, destination, stem)
    found = files.there([f"{stem}.{extension}" for extension in EXTENSIONS])
    if found and (digest is None or files.sha256(found[0]) != digest):
        raise _taken(destination, f"{found[0].rpartition('/')[2]} exists")
    return suffix


def _uses(record: Record, destination: Destination) -> bool:
    """Whether a picture of `record` has the name, or may still take it."""
    if any(copy["destination"] == dataclasses.asdict(destination) for copy in record.copies):
        return True
    error = record.error
    unpaid = record.state == "failed" and error is not None and error.billed is Billed.NO
    return record.destination == destination and not unpaid


def _claim(ledger: Ledger, item_path: str, destination: Destination, stem: str) -> None:
    key = f"names/{same_place(stem)}.json"
    if ledger.store.create(key, json.dumps({"item": item_path, "stem": stem}).encode()) is not None:
        return
    blob = ledger.store.read(key)
    try:
        owner = json.loads(blob.data)["item"] if blob is not None else None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StorageError(f"The claim of a file name, {key} under the root, can't be read.") from None
    if owner != item_path:
        raise _taken(destination, f"{owner or 'another task'} claimed it")


def _taken(destination: Destination, why: str) -> BadRequestError:
    return BadRequestError(
        f"file_name={destination.stem!r}: is taken in {destination.directory}: {why}.",
        hint="Allowed: a name that is free there. Give another file_name or output_path; nothing is ever replaced.",
    )
