"""File names of images, claimed before money is spent.

Invariants: a name belongs to one task instance, and within it to one item. A file of another owner is never replaced.
Two images of one task instance never share a name. A claim without a file is free for its task instance; it is free for
all after a person has removed its record (`release_names`).

Claims detect conflicts before money is spent. They do not protect existing files: files are always created exclusively.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from airflow_provider_geminiimg.core.ledger.layout import folder_of, is_record_key, name_key
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import Blob, Expected, Files, Store, join_uri, same_place, update
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

EXTENSIONS = ("png", "jpg", "webp", "json")
IMAGE_BYTES = {"512": 1 << 20, "1K": 3 << 20, "2K": 8 << 20, "4K": 24 << 20}
"""Size of a large PNG for each resolution, in bytes; the writing check uses a file of this size."""
MAX_SIDECAR_BYTES = 1 << 20
_SUFFIXES = 1000  # maximum number of names to try for one image


@dataclass(frozen=True)
class NameClaim:
    """The owner of a file name.

    :param item: `Item.path` of the image's item.
    :param stem: URI of the file, without an extension.
    :param attempt: `Ledger.attempt` of the claiming attempt; empty in claims of earlier versions of this package.
    :param released: a person had the record of the image removed.
    """

    item: str
    stem: str
    attempt: str = ""
    released: bool = False

    @cached_property
    def place(self) -> str:
        """See `same_place`. On disk, each part of the path is looked up once."""
        return same_place(self.stem)

    @property
    def key(self) -> str:
        """The key of the claim, relative to the root."""
        return name_key(self.place)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def same_task(self, other: NameClaim) -> bool:
        """Return whether both claims belong to one task instance."""
        return folder_of(self.item) == folder_of(other.item)


def reserve_name(
    ledger: Ledger,
    files: Files,
    item_path: str,
    destination: Destination,
    n: int,
    digest: str | None = None,
    size: int = IMAGE_BYTES["1K"],
    *,
    moves: bool = False,
    avoid: Container[int] = (),
) -> str:
    """Claim the file name of an image.

    :param item_path: `Item.path` of the image's item.
    :param n: number of the submission.
    :param digest: SHA-256 of the image, if it is known: an earlier attempt may have written the file.
    :param size: expected size of the image in bytes.
    :param moves: the submission was paid for earlier, so later submissions of its item may have names as well.
    :param avoid: numbers that must not be added to the name, because other images of the batch have these names.
    :returns: the suffix of the file name; empty unless another image of this task instance has, or may still get, the
        name.
    :raises BadRequestError: the name belongs to another task instance, or the directory cannot be written.
    :raises StorageError: the store failed.
    """
    files.check(join_uri(destination.directory, destination.stem), "output_path")
    files.check_writable(destination.directory, size, destination.stem)
    numbers = ledger.numbers_in(item_path) if moves or digest is not None else range(1, n)
    own = _used(ledger, item_path, (number for number in numbers if number != n))
    for suffix in _suffixes(n, avoid):
        wanted = NameClaim(item_path, join_uri(destination.directory, destination.stem + suffix), ledger.attempt)
        if wanted.place in own:
            continue
        blocking = _blocking_file(files, wanted.stem, f"{item_path}/{n}.json", digest)
        owner = _claim(ledger, wanted) if blocking is None else read_claim(ledger.store, wanted.key)
        if blocking is None and owner == wanted:
            return suffix
        if not suffix:
            _refuse_foreign(ledger, destination, wanted, owner, blocking)
    raise _taken(destination, f"{_SUFFIXES} names with a number added are taken, too")


def release_names(ledger: Ledger, record: Record) -> None:
    """Free the names of a record that is about to be removed, except names that another record of its item uses.

    :raises StorageError: the store failed.
    """
    item_path = folder_of(record.key)
    numbers = (number for number in ledger.numbers_in(item_path) if number != record.n)
    try:
        still_used = _used(ledger, item_path, numbers)
    except GeminiImageError:  # the names of an unreadable record are not known
        return

    def released(blob: Blob | None) -> bytes | None:
        claim = None if blob is None else _parsed(blob.data, "the name of a record that is removed")
        return replace(claim, released=True).to_json() if claim is not None and claim.item == item_path else None

    for place in _places({_wanted_stem(record), *_stems(record)}):
        if place not in still_used:
            update(ledger.store, name_key(place), released)


def claims_of(ledger: Ledger, record: Record) -> list[str]:
    """Return the keys of the name claims of a record whose whole task instance is about to be removed.

    The claim of a landed record's name is not read: no other item gets a name that a landed record has.

    :raises StorageError: a claim cannot be read.
    """
    item_path = folder_of(record.key)
    wanted = _wanted_stem(record)
    own = [wanted] if record.state == "landed" else []
    keys = {name_key(place) for place in _places({wanted, *_stems(record)}.difference(own))}
    claims = ((key, read_claim(ledger.store, key)) for key in keys)
    others = [key for key, claim in claims if claim is not None and claim.item == item_path and not claim.released]
    return [*map(name_key, _places(own)), *others]


def read_claim(store: Store, key: str) -> NameClaim | None:
    """Read the claim at `key`; ``None`` if there is none.

    :raises StorageError: it cannot be read.
    """
    blob = store.read(key)
    return None if blob is None else _parsed(blob.data, key)


def is_sidecar_of(files: Files, uri: str, record: str, sha256: str | None) -> bool:
    """Return whether a file is the sidecar of a record, or of the same image in an earlier record of its item.

    An incomplete copy leaves the second kind.

    :param record: key of the record.
    :param sha256: digest of its image; ``None`` if it is not known.
    :raises StorageError: the file could not be read.
    """
    try:
        found = json.loads(files.read(uri, max_bytes=MAX_SIDECAR_BYTES))
        earlier, image = str(found["record"]), str(found["images"][0]["sha256"])
        return earlier == record or (image == sha256 and folder_of(earlier) == folder_of(record))
    except (BadRequestError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _suffixes(n: int, avoid: Container[int]) -> Iterator[str]:
    """None at first; then the number of the submission, so that a task that buys often need not try all before."""
    yield ""
    first = max(n, 2)
    yield from (f"-{number}" for number in range(first, first + _SUFFIXES) if number not in avoid)


def _claim(ledger: Ledger, wanted: NameClaim) -> NameClaim | None:
    """Claim a name if it is free, and return its owner, which is `wanted` after success."""

    def claimed(blob: Blob | None) -> bytes | None:
        found = None if blob is None else _parsed(blob.data, wanted.key)
        free = found is None or (found != wanted and _is_free(ledger, found, wanted))
        return wanted.to_json() if free else None

    blob = update(ledger.store, wanted.key, claimed, expected=Expected(None))
    return None if blob is None else _parsed(blob.data, wanted.key)


def _is_free(ledger: Ledger, found: NameClaim, wanted: NameClaim) -> bool:
    """Return whether `wanted` may replace the claim `found`."""
    if found.released or not found.same_task(wanted):
        return found.released
    if found.item == wanted.item:  # the caller has checked the other records of this item
        return True
    if found.attempt == wanted.attempt:  # its record may not be written yet
        return False
    return wanted.place not in _used(ledger, found.item, ledger.numbers_in(found.item))


def _refuse_foreign(
    ledger: Ledger, destination: Destination, wanted: NameClaim, owner: NameClaim | None, blocking: str | None
) -> None:
    """Raise if the name belongs to another task instance or to an unknown file."""
    if owner is not None and not owner.same_task(wanted) and not owner.released:
        raise _taken(destination, f"{owner.item} claimed it")
    if blocking is not None and not (owner is not None and _may_be_own(ledger, owner, wanted, blocking)):
        raise _taken(destination, f"{blocking} exists")


def _may_be_own(ledger: Ledger, owner: NameClaim, wanted: NameClaim, blocking: str) -> bool:
    """Return whether this task instance may have written the existing file, so that it may use another name.

    An incomplete copy leaves an image without a record. If the claim's owner has no record at all, the ledger was lost;
    then nothing is paid for beside this file.
    """
    if not owner.same_task(wanted):
        return False
    if owner.released or not _is_free(ledger, owner, wanted):
        return True
    return not blocking.endswith(".json") and bool(ledger.numbers_in(owner.item))


def _blocking_file(files: Files, stem: str, record: str, digest: str | None) -> str | None:
    """Return the name of an existing file that prevents the use of a name. Files that `record` wrote itself do not."""
    for uri in files.there([f"{stem}.{extension}" for extension in EXTENSIONS]):
        try:
            if uri.endswith(".json"):
                own = is_sidecar_of(files, uri, record, digest)
            else:
                own = digest is not None and files.sha256(uri) == digest
        except StorageError:
            own = False
        if not own:
            return uri.rpartition("/")[2]
    return None


def _used(ledger: Ledger, item_path: str, numbers: Iterable[int]) -> set[str]:
    """Return the places that images of these records have, or may still get."""
    found = (ledger.read(f"{item_path}/{number}.json") for number in numbers)
    return {place for each in found if each is not None for place in _places(_stems(each.record))}


def _places(stems: Iterable[str]) -> Iterator[str]:
    """Return the places of stems. Addresses that are no longer valid, from earlier versions, are skipped."""
    for stem in stems:
        with contextlib.suppress(BadRequestError):
            yield same_place(stem)


def _stems(record: Record) -> Iterator[str]:
    """Return the stems that images of `record` have, or may still get."""
    if record.state != "failed":
        yield _wanted_stem(record)
    for manifest in (record.manifest, *(copy["manifest"] for copy in record.copies)):
        yield from (image["uri"].rpartition(".")[0] for image in (manifest or {}).get("images", ()))


def _wanted_stem(record: Record) -> str:
    return join_uri(record.destination.directory, record.destination.stem + record.suffix)


def _parsed(data: bytes, key: str) -> NameClaim:
    try:
        values = json.loads(data)
        item, stem = values["item"], values.get("stem", "")
        attempt, released = values.get("attempt", ""), values.get("released", False)
        if not all(isinstance(text, str) for text in (item, stem, attempt)) or not is_record_key(f"{item}/1.json"):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StorageError(
            f"The claim of a file name, {key} under the root, cannot be read.",
            retryable=False,
            hint="Restore it, or remove it while no task is writing an image with that name.",
        ) from None
    return NameClaim(item, stem, attempt, released is True)


def _taken(destination: Destination, why: str) -> BadRequestError:
    return BadRequestError(
        f"file_name={destination.stem!r}: is taken in {destination.directory}: {why}.",
        hint="Allowed: a name that is free there. Give another file_name or output_path; nothing is ever replaced. "
        "In a loop, add the iteration to the name: {{ loop.index }}.",
    )
