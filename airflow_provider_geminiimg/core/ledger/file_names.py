"""Names of files, claimed before anything is spent on what shall land there.

What must stay true: a name belongs to one task instance, and within it to one item; a file that somebody else put there
is never replaced; two images of one task instance never share a name. A claim that ended without a file is free for its
task instance, and for everybody once a person has had its record removed (`release_names`).

Claims settle names before money is spent. That no file is replaced does not depend on them: files are created
exclusively.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from airflow_provider_geminiimg.core.ledger.layout import folder_of, is_record_key, name_key
from airflow_provider_geminiimg.core.ledger.records import Destination, Ledger, Record
from airflow_provider_geminiimg.core.storage import Blob, Files, Store, join_uri, same_place, update
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

EXTENSIONS = ("png", "jpg", "webp", "json")
IMAGE_BYTES = {"512": 1 << 20, "1K": 3 << 20, "2K": 8 << 20, "4K": 24 << 20}
"""About what a large PNG of a resolution has: so much a directory is tried with before money is spent."""
MAX_SIDECAR_BYTES = 1 << 20
_SUFFIXES = 1000  # that are tried for one image


@dataclass(frozen=True)
class NameClaim:
    """Who has a name.

    :param item: `Item.path` of whose image has it.
    :param stem: URI of the file, without an extension.
    :param attempt: `Ledger.attempt` of who claimed it; empty where an earlier version of this package did.
    :param released: a person had the record of its image removed.
    """

    item: str
    stem: str
    attempt: str = ""
    released: bool = False

    @property
    def key(self) -> str:
        """Where it lies, relative to the root."""
        return name_key(same_place(self.stem))

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def same_task(self, other: NameClaim) -> bool:
        """Whether both are of one task instance."""
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
) -> str:
    """Claim a destination for an item.

    :param item_path: `Item.path` of whose image shall land there.
    :param n: number of the submission that needs it.
    :param digest: SHA-256 of the image, where it is known already: an attempt that died may have written it.
    :param size: bytes that the image may have.
    :param moves: the submission was paid for before, so that later ones of its item may have names, too.
    :returns: what is added to the file name, because another image of this task instance has it or may still take it.
    :raises BadRequestError: the name is another task instance's, or the directory can't be written.
    :raises StorageError: the store failed.
    """
    files.check(join_uri(destination.directory, destination.stem), "output_path")
    files.check_writable(destination.directory, size, destination.stem)
    numbers = ledger.numbers_in(item_path) if moves or digest is not None else range(1, n)
    own = _used(ledger, item_path, (number for number in numbers if number != n))
    for suffix in _suffixes(n):
        wanted = NameClaim(item_path, join_uri(destination.directory, destination.stem + suffix), ledger.attempt)
        if same_place(wanted.stem) in own:
            continue
        blocking = _blocking_file(files, wanted.stem, f"{item_path}/{n}.json", digest)
        owner = _claim(ledger, wanted) if blocking is None else read_claim(ledger.store, wanted.key)
        if blocking is None and owner == wanted:
            return suffix
        if not suffix:
            _refuse_foreign(ledger, destination, wanted, owner, blocking)
    raise _taken(destination, f"{_SUFFIXES} names with a number added are taken, too")


def release_names(ledger: Ledger, record: Record) -> None:
    """Free the names of a record that is about to be removed; those that another record of its item has stay claimed.

    :raises StorageError: the store failed.
    """
    item_path = folder_of(record.key)
    numbers = (number for number in ledger.numbers_in(item_path) if number != record.n)
    try:
        kept = _used(ledger, item_path, numbers)
    except GeminiImageError:  # nobody can tell which names a record has that can't be read
        return

    def released(blob: Blob | None) -> bytes | None:
        claim = None if blob is None else _parsed(blob.data, "the name of a record that is removed")
        return replace(claim, released=True).to_json() if claim is not None and claim.item == item_path else None

    for place in _places({_wanted_stem(record), *_stems(record)}):
        if place not in kept:
            update(ledger.store, name_key(place), released)


def read_claim(store: Store, key: str) -> NameClaim | None:
    """The claim at `key`, ``None`` where there is none.

    :raises StorageError: it can't be read.
    """
    blob = store.read(key)
    return None if blob is None else _parsed(blob.data, key)


def is_sidecar_of(files: Files, uri: str, record: str, sha256: str | None) -> bool:
    """Whether a file is the sidecar of a record, or of the same image in an earlier one of its item, which a copy that
    was not finished leaves behind.

    :param record: key of the record.
    :param sha256: of its image; ``None``: it is not known.
    :raises StorageError: the file could not be read.
    """
    try:
        found = json.loads(files.read(uri, max_bytes=MAX_SIDECAR_BYTES))
        earlier, image = str(found["record"]), str(found["images"][0]["sha256"])
        return earlier == record or (image == sha256 and folder_of(earlier) == folder_of(record))
    except (BadRequestError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _suffixes(n: int) -> Iterator[str]:
    """None at first; then the number of the submission, so that a task that buys often need not try all before."""
    yield ""
    first = max(n, 2)
    yield from (f"-{number}" for number in range(first, first + _SUFFIXES))


def _claim(ledger: Ledger, wanted: NameClaim) -> NameClaim | None:
    """Who has the name now: `wanted`, where it was free."""

    def claimed(blob: Blob | None) -> bytes | None:
        found = None if blob is None else _parsed(blob.data, wanted.key)
        free = found is None or (found != wanted and _is_free(ledger, found, wanted))
        return wanted.to_json() if free else None

    blob = update(ledger.store, wanted.key, claimed)
    return None if blob is None else _parsed(blob.data, wanted.key)


def _is_free(ledger: Ledger, found: NameClaim, wanted: NameClaim) -> bool:
    """Whether `wanted` may replace a claim."""
    if found.released or not found.same_task(wanted):
        return found.released
    if found.item == wanted.item:  # its other records have been asked
        return True
    if found.attempt == wanted.attempt:  # it may not be on record yet
        return False
    return same_place(wanted.stem) not in _used(ledger, found.item, ledger.numbers_in(found.item))


def _refuse_foreign(
    ledger: Ledger, destination: Destination, wanted: NameClaim, owner: NameClaim | None, blocking: str | None
) -> None:
    """Refuse a name that this task instance does not have already."""
    if owner is not None and not owner.same_task(wanted) and not owner.released:
        raise _taken(destination, f"{owner.item} claimed it")
    if blocking is not None and not (owner is not None and _may_be_own(ledger, owner, wanted, blocking)):
        raise _taken(destination, f"{blocking} exists")


def _may_be_own(ledger: Ledger, owner: NameClaim, wanted: NameClaim, blocking: str) -> bool:
    """Whether this task instance may have written a file that is there, so that it goes on to another name.

    A copy that was not finished leaves an image that no record names. Without any record of who claimed the name, the
    ledger was lost, and nothing is bought beside the image.
    """
    if not owner.same_task(wanted):
        return False
    if owner.released or not _is_free(ledger, owner, wanted):
        return True
    return not blocking.endswith(".json") and bool(ledger.numbers_in(owner.item))


def _blocking_file(files: Files, stem: str, record: str, digest: str | None) -> str | None:
    """The name of a file that keeps the image of `record` from a name. What it wrote itself does not."""
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
    """The places that images of some of an item's records have, or may still take."""
    found = (ledger.read(f"{item_path}/{number}.json") for number in numbers)
    return {place for each in found if each is not None for place in _places(_stems(each.record))}


def _places(stems: Iterable[str]) -> Iterator[str]:
    """The places of names. One that is an address no longer, where an earlier version wrote, is nobody's to take."""
    for stem in stems:
        with contextlib.suppress(BadRequestError):
            yield same_place(stem)


def _stems(record: Record) -> Iterator[str]:
    """The names that images of `record` have, or may still take."""
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
            f"The claim of a file name, {key} under the root, can't be read.",
            retryable=False,
            hint="Restore it; or remove it, once no task is writing an image of that name.",
        ) from None
    return NameClaim(item, stem, attempt, released is True)


def _taken(destination: Destination, why: str) -> BadRequestError:
    return BadRequestError(
        f"file_name={destination.stem!r}: is taken in {destination.directory}: {why}.",
        hint="Allowed: a name that is free there. Give another file_name or output_path; nothing is ever replaced.",
    )
