"""Selects the storage for a URI, and checks whether the URI may be used."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Literal

from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.storage.azure_blobs import AzureDriver
from airflow_provider_geminiimg.core.storage.base import Backend, ClientFactory, Content, Openers, Store
from airflow_provider_geminiimg.core.storage.bucket_files import BucketFiles, PutModes
from airflow_provider_geminiimg.core.storage.bucket_store import BucketStore
from airflow_provider_geminiimg.core.storage.drivers import Driver
from airflow_provider_geminiimg.core.storage.gcs import GoogleDriver
from airflow_provider_geminiimg.core.storage.local import DiskFiles, LocalStore
from airflow_provider_geminiimg.core.storage.object_storage import OtherFiles
from airflow_provider_geminiimg.core.storage.s3 import S3Driver
from airflow_provider_geminiimg.core.storage.uris import WEB_SCHEMES, Location, join_uri, locate, refuse_chain
from airflow_provider_geminiimg.core.storage.write_checks import WritingChecks, write_new
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

State = Literal["there", "gone", "unknown"]
SMALL_IMAGE = 1 << 20  # bytes
log = logging.getLogger(__name__)


def open_store(uri: str, openers: Openers) -> Store:
    """Open the store at a root URI.

    :param uri: ``s3://[conn_id@]bucket[/prefix]``, ``gs://[conn_id@]bucket[/prefix]``,
        ``abfs://conn_id@container[/prefix]``, ``file:///folder`` or ``/folder``.
    :param openers: open the connection of the URI.
    :raises BadRequestError: another scheme, which has no exclusive creation.
    """
    place = locate(uri, "root")
    refuse_chain(uri, "root")
    driver = _driver(place, openers)
    if driver is not None:
        return BucketStore(uri, driver)
    if place.scheme == "file" and os.path.normpath(place.path).strip("/"):
        return LocalStore(place.path)
    if place.scheme == "file":
        raise BadRequestError(
            f"root: {uri!r} is the whole disk, not a folder.",
            hint="Set [geminiimg] root to a folder, such as file:///shared/geminiimg; leave it unset for the default.",
        )
    raise BadRequestError(
        f"root: {place.shown} cannot hold the ledger; allowed: s3://, gs://, abfs:// and file://.",
        hint="[geminiimg] root needs a store with exclusive creation. Images may be elsewhere (output_path).",
    )


class Files:
    """Reads and writes images at any URI. The methods block: call them through `asyncio.to_thread`.

    ``s3://``, ``gs://`` and ``abfs://`` use the clouds' own clients, ``file://`` and plain paths use the disk, and all
    other URIs use Airflow's ``ObjectStoragePath``. Web addresses can be checked here, but are downloaded elsewhere.

    :param openers: open the connection of a URI.
    :param allowed_roots: URI prefixes, connection part included. Every URI must be under one of them; whole path
        segments are compared after symbolic links are resolved. Default: no restriction.
    :param setting: name of the setting with these prefixes, for messages.
    :param root: URI of the root. Files under it on disk are accessible to their owner only. Default: nothing is written
        under it.
    """

    def __init__(
        self,
        openers: Openers,
        *,
        allowed_roots: Sequence[str] = (),
        setting: str = "allowed_roots",
        root: str | None = None,
    ) -> None:
        self._openers = openers
        self._setting = setting
        self._warned: set[str] = set()
        self._modes = PutModes(self._warn)
        self._checks = WritingChecks(self._warn)
        fences = [locate(fence, setting) for fence in allowed_roots]
        self._roots = {fence.shown: _without_empty_end(fence.segments()) for fence in fences}
        at = None if root is None else locate(root, "root")
        private = os.path.normpath(at.path) if at is not None and at.scheme == "file" else None
        self._disk = DiskFiles(warn=self._warn, root=private)

    def check(self, uri: str, field: str) -> None:
        """Refuse a URI that is malformed or outside the allowed roots.

        :param uri: an input, an output, or a recorded URI.
        :param field: its name in the message.
        :raises BadRequestError: with the reason and the allowed roots.
        """
        self._place(uri, field)

    def read(self, uri: str, *, max_bytes: int, landed: bool = False) -> bytes:
        """Return all bytes of a file.

        :param uri: its location.
        :param max_bytes: maximum size.
        :param landed: it is a recorded image, whose bytes are compared with the record; see `state`.
        :raises BadRequestError: it does not exist, is too large, or the scheme is unknown.
        :raises StorageError: it could not be read.
        """
        place = self._place(uri, "uri", landed=landed)
        data = self._backend(place).read(place, max_bytes)
        if data is None:
            raise BadRequestError(f"{place.shown} does not exist.")
        if len(data) > max_bytes:
            raise BadRequestError(f"{place.shown} is larger than the {max_bytes} bytes that are allowed.")
        return data

    def write(self, uri: str, data: bytes, *, media_type: str, sha256: str) -> bool:
        """Write a complete new file, never over other bytes.

        :param uri: its location.
        :param data: its bytes.
        :param media_type: its content type, if the store keeps one.
        :param sha256: hex digest of `data`.
        :returns: True if it is written or already existed with the same bytes; False if the name is taken by other
            bytes.
        :raises StorageError: it could not be written.
        """
        place = self._place(uri, "uri")
        with self._doubting(uri):
            return write_new(self._backend(place), place, data, media_type, sha256)

    def copy(self, source: str, uri: str, *, sha256: str) -> bool:
        """Copy a recorded image inside its store to a new file, so that its bytes do not pass through here.

        :param sha256: hex digest of the image.
        :returns: False if it must be read and written instead: the store can't copy, the file differs or is gone, or
            the name is taken.
        """
        place, target = self._place(source, "uri", landed=True), self._place(uri, "uri")
        if (place.scheme, place.conn_id) != (target.scheme, target.conn_id):
            return False
        return self._backend(target).copy(place, target, sha256)

    def put(self, uri: str, content: Content, *, media_type: str) -> None:
        """Write a complete file, replacing an existing one.

        :raises StorageError: it could not be written.
        """
        place = self._place(uri, "uri")
        with self._doubting(uri):
            self._backend(place).put(place, content, media_type)

    @contextlib.contextmanager
    def _doubting(self, uri: str) -> Iterator[None]:
        """Discard the saved check of a directory after a failed write, so that it is checked again before a payment."""
        try:
            yield
        except StorageError:
            self._checks.forget(uri.rpartition("/")[0])
            raise

    def sha256(self, uri: str) -> str | None:
        """Return the hex digest of a file, ``None`` if it does not exist.

        :raises StorageError: it could not be read.
        """
        place = self._place(uri, "uri")
        return self._backend(place).sha256(place)

    def state(self, uri: str) -> State:
        """Return whether a stored image exists.

        ``unknown`` means that the store gave no clear answer, or that the address is no longer allowed; the log has the
        reason. See `locate` for old addresses that are still checked.
        """
        try:
            place = self._place(uri, "uri", landed=True)
            return "there" if self._backend(place).exists(place) else "gone"
        except GeminiImageError as error:
            self._warn(f"A stored image cannot be checked: {error.message} {error.hint}".strip())
            return "unknown"

    def there(self, uris: Sequence[str]) -> list[str]:
        """Return the files of one directory that exist. Files without a clear answer are left out."""
        places = {self._place(uri, "uri"): uri for uri in uris}
        found = self._backend(next(iter(places))).there(list(places))
        return [places[place] for place in found]

    def check_writable(self, directory_uri: str, size: int = SMALL_IMAGE, stem: str = "") -> None:
        """Check that a directory accepts an image and its sidecar, before money is spent.

        Writes and removes a hidden file of each kind. A successful check is valid for a while, so that a batch does not
        repeat it for each image.

        :param size: expected size of the image in bytes.
        :param stem: its file name, without extension.
        :raises BadRequestError: the directory does not accept the files.
        :raises StorageError: a temporary failure; a retry can help.
        """
        directory = self._place(directory_uri, "output_path").shown.rstrip("/")
        refuse_chain(directory_uri, "output_path")

        def place(name: str) -> Location:
            return self._place(join_uri(directory_uri, name), "output_path")

        try:
            self._checks.check(self._backend(place("-")), place, directory_uri.rstrip("/"), size, stem)
        except BadRequestError as error:
            raise BadRequestError(f"output_path: {error.message}", hint=error.hint) from None
        except StorageError as error:
            kind = StorageError if error.retryable else BadRequestError
            raise kind(f"output_path: {directory} cannot be written to. {error.message}", hint=error.hint) from error

    def _place(self, uri: str, field: str, *, landed: bool = False) -> Location:
        place = locate(uri, field, landed=landed)
        if self._roots:
            segments = place.segments()
            if not any(segments[: len(root)] == root for root in self._roots.values()):
                raise BadRequestError(
                    f"{field}: {place.shown} is outside [geminiimg] {self._setting}.",
                    hint=f"Allowed: {', '.join(self._roots)}.",
                )
        return place

    def _backend(self, place: Location) -> Backend:
        driver = _driver(place, self._openers)
        if driver is not None:
            return BucketFiles(driver, self._modes)
        if place.scheme in WEB_SCHEMES:
            raise BadRequestError(f"{place.shown} is a web address, not a place for files.")
        return self._disk if place.scheme == "file" else OtherFiles(self._openers.path)

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s", printable(what))


def _driver(place: Location, openers: Openers) -> Driver | None:
    """The driver of a bucket; ``None`` if `place` is in none, or in one of a store without a driver."""
    drivers: dict[str, tuple[type[Driver], ClientFactory]] = {
        "s3": (S3Driver, openers.s3_client),
        "gs": (GoogleDriver, openers.google_client),
        "abfs": (AzureDriver, openers.azure_client),
    }
    if place.scheme not in drivers:
        return None
    kind, factory = drivers[place.scheme]
    return kind(factory, place.conn_id, place.bucket)


def _without_empty_end(segments: tuple[str, ...]) -> tuple[str, ...]:
    return segments[:-1] if segments[-1] == "" and len(segments) > 3 else segments
