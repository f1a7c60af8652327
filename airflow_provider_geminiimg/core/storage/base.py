"""Interfaces of all kinds of storage: `Store` for the ledger's objects, `Backend` for the users' images."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

_T = TypeVar("_T")
_R = TypeVar("_R")
ClientFactory = Callable[[str | None], Any]
"""Returns a store's client for an Airflow connection id, or for ``None`` with the machine's own credentials. It is
called for every request, so it should cache the client."""

PathFactory = Callable[[str, str | None], Any]
"""Returns the `ObjectStoragePath` of a URI for an Airflow connection id; raises ValueError for unsupported URIs."""


def _no_path(uri: str, conn_id: str | None) -> Any:
    raise ValueError("nothing that opens other stores was given")


def _no_client(conn_id: str | None) -> Any:
    raise BadRequestError("Nothing that opens this kind of store was given.")


@dataclass(frozen=True, slots=True)
class Openers:
    """Functions that open storage, provided by code that depends on Airflow.

    :param s3_client: for ``s3://``, a client of boto3.
    :param google_client: for ``gs://``, a `google.cloud.storage.Client`. Default: not supported.
    :param azure_client: for ``abfs://``, an `azure.storage.blob.BlobServiceClient`. Default: not supported.
    :param path: for all other URIs except ``file://`` and plain paths. Default: these are not supported.
    """

    s3_client: ClientFactory
    google_client: ClientFactory = _no_client
    azure_client: ClientFactory = _no_client
    path: PathFactory = _no_path


Content = bytes | Iterable[bytes]
"""The content of a file: all bytes, or an iterable of pieces, of which one at a time is in memory."""

OURS = "#"
"""Marks the names of temporary and lock files; `encode_segment` never produces it in a key."""


def pieces(content: Content) -> Iterable[bytes]:
    """Return `content` as an iterable of pieces."""
    return (content,) if isinstance(content, bytes) else content


def sha256(data: bytes) -> str:
    """Return the hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One stored object.

    :param data: its bytes.
    :param version: identifies this content for `Store.replace`.
    :param age: seconds since the last write, by the store's clock; never below 0.
    """

    data: bytes = field(repr=False)
    version: str
    age: float


_PROBED: set[tuple[int, str]] = set()
_PROBING = threading.Lock()


class Store(abc.ABC):
    """Objects under one root, with keys such as ``a/b/c.json``. The methods block: call them through
    `asyncio.to_thread`.

    Every failure is a `StorageError`. A version identifies a content: two writes of the same bytes may have the same
    version.

    :param uri: the root, without a trailing slash.
    """

    concurrency = 24
    """How much `map` does at the same time: each request to a bucket is a wait. boto3's client has 32 connections."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abc.abstractmethod
    def create(self, key: str, data: bytes) -> str | None:
        """Create an object that does not exist yet.

        :returns: its version, or ``None`` if the key exists. If an answer was lost, this call may have created it: read
            the object and compare the claim before assuming another writer.
        """

    @abc.abstractmethod
    def read(self, key: str, limit: int | None = None) -> Blob | None:
        """Return the object, or ``None`` only if the store confirms that there is none.

        :param limit: maximum number of bytes; of a larger object, this number of bytes plus one is returned.
        """

    @abc.abstractmethod
    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Replace an object if it still has `version`.

        :returns: the new version, or ``None`` if the stored version differs or the object does not exist. As with
            `create`, read it before assuming another writer.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; it is no error if it does not exist."""

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove objects in any order; none of them has to exist. If this fails, some of them may be removed."""
        for key in keys:
            self.delete(key)

    def delete_where(self, keys: Iterable[str], is_wanted: Callable[[str, Blob], bool]) -> None:
        """Remove objects, each only if its content is as wanted, and as soon as it was read; none of them has to exist.
        On disk, nobody can replace an object between the read and the removal. In a bucket, a write between the two
        requests is lost.

        :param is_wanted: receives key and object, whose age may be 0. It must not use the store.
        """

        def remove(key: str) -> None:
            blob = self.read(key)
            if blob is not None and is_wanted(key, blob):
                self.delete(key)

        self.map(remove, list(keys))

    def delete_unchanged(self, versions: Mapping[str, str]) -> set[str]:
        """Remove objects that still have these versions; none of them has to exist. On disk, nobody can replace an
        object between the read and the removal. In a bucket, all are read first, and then removed together.

        :param versions: by key.
        :returns: the keys of the objects that have changed, and remain.
        """
        found = zip(versions.items(), self.map(self.read, list(versions)), strict=True)
        changed = {key for (key, version), blob in found if blob is not None and blob.version != version}
        self.delete_all(key for key in versions if key not in changed)
        return changed

    def map(self, work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        """The results for all items; `concurrency` of them at the same time."""
        threads = min(self.concurrency, len(items))
        if threads < 2:
            return list(map(work, items))
        rest, results = iter(enumerate(items)), dict[int, _R]()

        def take(_: int) -> None:  # one future for each thread: one for each item takes longer than a read from a disk
            results.update((index, work(item)) for index, item in rest)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(take, range(threads)))
        return [results[index] for index in range(len(items))]

    @abc.abstractmethod
    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """Iterate over all keys that start with `prefix`, in byte order.

        :param after: only keys behind this one, which need not exist; the store does not list what lies before it.
        """

    @abc.abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly below `folder`, sorted, without slashes."""

    @abc.abstractmethod
    def now(self) -> float:
        """Return Unix seconds by the store's own clock, which all workers share."""

    def check_key(self, key: str) -> None:
        """Asks nobody.

        :raises StorageError: nothing can be stored at `key`.
        """
        checked_key(key)

    @property
    def is_probed(self) -> bool:
        """Whether this process has tested the root, so that `probe` returns at once."""
        return (os.getpid(), self.uri) in _PROBED

    def probe(self) -> None:
        """Test that the root supports exclusive creation and conditional replacement, once per process and root.

        Writes and removes one object.

        :raises StorageError: the same key could be created twice, or replaced with another version's name.
        """
        with _PROBING:
            if self.is_probed:
                return
            self._probe()
            _PROBED.add((os.getpid(), self.uri))

    def _probe(self) -> None:
        key, first, second = f"probe/{uuid.uuid4().hex}", uuid.uuid4().bytes, uuid.uuid4().bytes
        try:
            with self._needing("does not create objects exclusively, with a checksum"):
                self.create(key, first)
                again = self.create(key, second)
            with self._needing("does not allow reading objects"):
                found = self.read(key)
            if again is not None or found is None or found.data != first:
                raise self._unfit("creates the same object twice")
            with self._needing("does not replace objects conditionally, with a checksum"):
                replaced = self.replace(key, second, found.version)
                stale = self.replace(key, first, found.version)
                found = self.read(key)
            if stale is not None or found is None or found.data != second:
                raise self._unfit(f"{'ignores' if replaced else 'refuses'} conditions on replacing an object")
            with self._needing("does not allow listing objects"):
                if key not in self.keys(key):
                    raise self._unfit("does not list an existing object")
            with self._needing(f"does not allow removing objects ({key} remains there)"):
                self.delete(key)
        except BaseException:
            with contextlib.suppress(StorageError):
                self.delete(key)
            raise

    @contextlib.contextmanager
    def _needing(self, lacking: str) -> Iterator[None]:
        """Convert a permanent failure into an error that names the missing feature of the root."""
        try:
            yield
        except StorageError as error:
            if error.retryable:
                raise
            raise self._unfit(f"{lacking}: {error.message.rstrip('.')}", error.hint) from error

    def _unfit(self, what: str, hint: str = "") -> StorageError:
        usual = "Set [geminiimg] root to a bucket with conditional writes (If-None-Match, If-Match) or to a disk."
        return StorageError(
            f"{self.uri} cannot hold the ledger: it {what}.",
            retryable=False,
            hint=f"{hint} {usual}".strip(),
        )


def checked_key(key: str) -> str:
    """Return `key` if it is valid.

    :raises StorageError: it has an empty part, ``.``, ``..`` or a character that only temporary files have.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or OURS in key or "\0" in key:
        raise StorageError(f"{key!r} is not a valid key of a store.", retryable=False)
    return key


class Backend(abc.ABC):
    """One kind of storage for `Files`. Failures are `StorageError`."""

    @abc.abstractmethod
    def read(self, place: Location, max_bytes: int) -> bytes | None:
        """Return at most `max_bytes` + 1 bytes; None if the file does not exist."""

    @abc.abstractmethod
    def create(self, place: Location, data: bytes, media_type: str, digest: str) -> bool:
        """Write a new file; return False if the name is taken.

        :param digest: hex SHA-256 of `data`.
        """

    def copy(self, source: Location, place: Location, digest: str) -> bool:
        """Copy a file inside the store to a new one; return False if it must be read and written instead.

        :param digest: hex SHA-256 that the file must have.
        """
        return False

    @abc.abstractmethod
    def sha256(self, place: Location) -> str | None:
        """Return the hex digest of a file; None if it does not exist."""

    @abc.abstractmethod
    def put(self, place: Location, content: Content, media_type: str) -> None:
        """Write a file, replacing an existing one."""

    @abc.abstractmethod
    def exists(self, place: Location) -> bool:
        """Return whether the file exists; False only if the store confirms it."""

    def there(self, places: Sequence[Location]) -> list[Location]:
        """Return the files of one directory that exist; a file that cannot be checked is left out."""
        found = []
        for place in places:
            with contextlib.suppress(GeminiImageError):
                if self.exists(place):
                    found.append(place)
        return found

    @abc.abstractmethod
    def remove(self, place: Location) -> None:
        """Remove a file; it is no error if it does not exist."""

    def check_exclusive(self, place: Location, media_type: str) -> None:  # noqa: B027 - most kinds need no test
        """Test with an existing, replaceable file whether `create` really replaces no file."""
