"""What every kind of storage has to do: `Store` for the ledger's objects, `Backend` for the users' images."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import GeminiImageError, StorageError

S3ClientFactory = Callable[[str | None], Any]
"""Gives a boto3 S3 client for an Airflow connection id, or for ``None`` by boto3's own chain of credentials."""

PathFactory = Callable[[str, str | None], Any]
"""Gives the `ObjectStoragePath` of a URI, opened with an Airflow connection's id; ValueError: nothing serves it."""


def _no_path(uri: str, conn_id: str | None) -> Any:
    raise ValueError("nothing that opens other stores was given")


@dataclass(frozen=True, slots=True)
class Openers:
    """What opens storage, handed in by whoever knows Airflow.

    :param s3_client: for ``s3://``.
    :param path: for everything but ``s3://``, ``file://`` and plain paths; default: nothing serves those.
    """

    s3_client: S3ClientFactory
    path: PathFactory = _no_path


Content = bytes | Iterable[bytes]
"""What a file shall hold: all of it, or pieces, of which not more than one at a time need be in memory."""

OURS = "#"
"""Stands in the names of temporary and lock files; `encode_segment` never lets it into a key."""


def pieces(content: Content) -> Iterable[bytes]:
    """`content` as pieces."""
    return (content,) if isinstance(content, bytes) else content


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One stored object.

    :param data: its bytes.
    :param version: names this content for `Store.replace`.
    :param age: seconds since it was last written, by the store's clock; never below 0.
    """

    data: bytes = field(repr=False)
    version: str
    age: float


_PROBED: set[tuple[int, str]] = set()
_PROBING = threading.Lock()


class Store(abc.ABC):
    """Objects under one root, addressed by keys such as ``a/b/c.json``. Blocking: call it through `asyncio.to_thread`.

    Every failure is a `StorageError`. A version names a content: two writes of the same bytes may have the same one.

    :param uri: the root, without a slash at its end.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abc.abstractmethod
    def create(self, key: str, data: bytes) -> str | None:
        """Create an object that is not there yet.

        :returns: its version, or ``None`` where the key is taken. It may be taken by this very call (a lost answer):
            read it and compare the claim before believing that somebody else won.
        """

    @abc.abstractmethod
    def read(self, key: str, limit: int | None = None) -> Blob | None:
        """The object, or ``None`` only where the store says that there is none.

        :param limit: of a larger one come this many bytes and one more, and it is not loaded whole.
        """

    @abc.abstractmethod
    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Replace an object if it still has `version`.

        :returns: the new version, or ``None`` where the stored one is another or gone. As with `create`, read it
            before believing that somebody else wrote.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    @abc.abstractmethod
    def keys(self, prefix: str) -> Iterator[str]:
        """All keys that start with `prefix`, in the order of their bytes."""

    @abc.abstractmethod
    def folders(self, folder: str) -> list[str]:
        """The names that keys have directly below `folder`, where more parts follow; sorted, without slashes."""

    @abc.abstractmethod
    def now(self) -> float:
        """Unix seconds by the store's own clock, which all workers share."""

    def probe(self) -> None:
        """Refuse a root on which promises don't hold. Done once per process and root; writes and removes one object.

        :raises StorageError: the same key could be created twice, or replaced by the name of another version.
        """
        with _PROBING:
            if (os.getpid(), self.uri) in _PROBED:
                return
            self._probe()
            _PROBED.add((os.getpid(), self.uri))

    def _probe(self) -> None:
        key, first, second = f"probe/{uuid.uuid4().hex}", uuid.uuid4().bytes, uuid.uuid4().bytes
        try:
            with self._needing("does not create objects exclusively, with a checksum"):
                self.create(key, first)
                again = self.create(key, second)
            with self._needing("does not let objects be read"):
                found = self.read(key)
            if again is not None or found is None or found.data != first:
                raise self._unfit("creates the same object twice")
            with self._needing("does not replace objects on condition, with a checksum"):
                replaced = self.replace(key, second, found.version)
                stale = self.replace(key, first, found.version)
                found = self.read(key)
            if stale is not None or found is None or found.data != second:
                raise self._unfit(f"{'ignores' if replaced else 'refuses'} conditions on replacing an object")
            with self._needing("does not let objects be listed"):
                if key not in self.keys(key):
                    raise self._unfit("does not list an object that is there")
            with self._needing(f"does not let objects be removed ({key} is left there)"):
                self.delete(key)
        except BaseException:
            with contextlib.suppress(StorageError):
                self.delete(key)
            raise

    @contextlib.contextmanager
    def _needing(self, lacking: str) -> Iterator[None]:
        """Turn a failure that no retry can help into what the root lacks."""
        try:
            yield
        except StorageError as error:
            if error.retryable:
                raise
            raise self._unfit(f"{lacking}: {error.message.rstrip('.')}", error.hint) from error

    def _unfit(self, what: str, hint: str = "") -> StorageError:
        usual = "Set [geminiimg] root to a bucket with conditional writes (If-None-Match, If-Match) or to a disk."
        return StorageError(
            f"{self.uri} can't hold the record of what was paid for: it {what}.",
            retryable=False,
            hint=f"{hint} {usual}".strip(),
        )


def checked_key(key: str) -> str:
    """`key`, if it can be one.

    :raises StorageError: it has an empty part, ``.``, ``..`` or a character that only temporary files have.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or OURS in key or "\0" in key:
        raise StorageError(f"{key!r} is no key of a store.", retryable=False)
    return key


class Backend(abc.ABC):
    """What `Files` needs of a kind of storage. Failures are `StorageError`."""

    @abc.abstractmethod
    def read(self, place: Location, max_bytes: int) -> bytes | None:
        """At most `max_bytes` + 1 bytes; None where there is no such file."""

    @abc.abstractmethod
    def create(self, place: Location, data: bytes, media_type: str) -> bool:
        """Write a new file; False where the name is taken."""

    @abc.abstractmethod
    def sha256(self, place: Location) -> str | None:
        """Hex digest of what is there."""

    @abc.abstractmethod
    def put(self, place: Location, content: Content, media_type: str) -> None:
        """Write a file, replacing one of that name."""

    @abc.abstractmethod
    def exists(self, place: Location) -> bool:
        """False only where the store says so."""

    def there(self, places: Sequence[Location]) -> list[Location]:
        """Those of some files of one directory that are there; one that can't be told of is left out."""
        found = []
        for place in places:
            with contextlib.suppress(GeminiImageError):
                if self.exists(place):
                    found.append(place)
        return found

    @abc.abstractmethod
    def remove(self, place: Location) -> None:
        """Remove a file; one that is not there is fine."""

    def check_exclusive(self, place: Location, media_type: str) -> None:  # noqa: B027 - most have nothing to find out
        """Find out, by a file that is there and may be replaced, whether `create` really replaces none."""
