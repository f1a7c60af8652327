"""Which kind of storage serves a URI, and whether the URI may be used at all."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.storage.base import Backend, Content, Openers, Store
from airflow_provider_geminiimg.core.storage.local import DiskFiles, LocalStore
from airflow_provider_geminiimg.core.storage.object_storage import OtherFiles
from airflow_provider_geminiimg.core.storage.s3 import S3Calls, S3Store
from airflow_provider_geminiimg.core.storage.s3_files import PutModes, S3Files
from airflow_provider_geminiimg.core.storage.uris import WEB_SCHEMES, Location, join_uri, locate, refuse_chain
from airflow_provider_geminiimg.core.storage.write_checks import WritingChecks, write_new
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

State = Literal["there", "gone", "unknown"]
SMALL_IMAGE = 1 << 20  # bytes
log = logging.getLogger(__name__)


def open_store(uri: str, openers: Openers) -> Store:
    """The store at a root URI.

    :param uri: ``s3://[conn_id@]bucket[/prefix]``, ``file:///folder`` or ``/folder``.
    :param openers: open what the URI's connection leads to.
    :raises BadRequestError: another scheme, which has no exclusive creation.
    """
    place = locate(uri, "root")
    refuse_chain(uri, "root")
    if place.scheme == "s3":
        return S3Store(uri, openers.s3_client)
    if place.scheme == "file" and os.path.normpath(place.path).strip("/"):
        return LocalStore(place.path)
    if place.scheme == "file":
        raise BadRequestError(
            f"root: {uri!r} is the whole disk, not a folder.",
            hint="Set [geminiimg] root to a folder, such as file:///shared/geminiimg; leave it unset for the default.",
        )
    raise BadRequestError(
        f"root: {place.shown} can't hold the record of what was paid for; allowed: s3:// and file://.",
        hint="Images may go anywhere (output_path); [geminiimg] root needs a store that creates exclusively.",
    )


class Files:
    """Reads and writes images wherever a URI points. Blocking: call it through `asyncio.to_thread`.

    ``s3://`` goes through boto3, ``file://`` and plain paths to the disk, and all else through Airflow's
    ``ObjectStoragePath``. Web addresses can be checked here, but they are downloaded, not read as files.

    :param openers: open what the URI's connection leads to.
    :param allowed_roots: URI prefixes, connection part included, within which every URI must lie; compared by whole
        path segments after symbolic links are resolved. Default: anywhere.
    :param setting: which setting names them, for the message.
    :param root: URI of the root; what is written under it on disk is its owner's alone. Default: nothing is written.
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
        self._private = Path(os.path.normpath(at.path)) if at is not None and at.scheme == "file" else None

    def check(self, uri: str, field: str) -> None:
        """Refuse a URI that is malformed or outside the allowed roots.

        :param uri: an input, an output, or one that was recorded.
        :param field: what the message calls it.
        :raises BadRequestError: with the reason and the allowed roots.
        """
        self._place(uri, field)

    def read(self, uri: str, *, max_bytes: int, landed: bool = False) -> bytes:
        """All bytes of a file.

        :param uri: where it is.
        :param max_bytes: the largest size to take.
        :param landed: it is an image of a record, and its bytes will be compared with that; see `state`.
        :raises BadRequestError: it is not there, too large, or the scheme is not known.
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
        """Write a new file whole, never over other bytes.

        :param uri: where to.
        :param data: its bytes.
        :param media_type: its content type, where the store keeps one.
        :param sha256: hex digest of `data`.
        :returns: True where it is written or was there with the same bytes; False where the name is taken by others.
        :raises StorageError: it could not be written.
        """
        place = self._place(uri, "uri")
        with self._doubting(uri):
            return write_new(self._backend(place), place, data, media_type, sha256)

    def put(self, uri: str, content: Content, *, media_type: str) -> None:
        """Write a file whole, replacing one of that name.

        :raises StorageError: it could not be written.
        """
        place = self._place(uri, "uri")
        with self._doubting(uri):
            self._backend(place).put(place, content, media_type)

    @contextlib.contextmanager
    def _doubting(self, uri: str) -> Iterator[None]:
        """A directory that fails to take a file is checked again before the next payment."""
        try:
            yield
        except StorageError:
            self._checks.forget(uri.rpartition("/")[0])
            raise

    def sha256(self, uri: str) -> str | None:
        """Hex digest of a file, ``None`` where there is none.

        :raises StorageError: it could not be read.
        """
        place = self._place(uri, "uri")
        return self._backend(place).sha256(place)

    def state(self, uri: str) -> State:
        """Whether an image that landed is there. ``unknown`` where the store would not or could not say, or the
        address is allowed no more; the log says why. See `locate` for addresses that are looked at all the same."""
        try:
            place = self._place(uri, "uri", landed=True)
            return "there" if self._backend(place).exists(place) else "gone"
        except GeminiImageError as error:
            self._warn(f"Can't look at an image that landed: {error.message} {error.hint}".strip())
            return "unknown"

    def there(self, uris: Sequence[str]) -> list[str]:
        """Those of some files of one directory that are there. What the store would not or could not say is not."""
        places = {self._place(uri, "uri"): uri for uri in uris}
        found = self._backend(next(iter(places))).there(list(places))
        return [places[place] for place in found]

    def check_writable(self, directory_uri: str, size: int = SMALL_IMAGE, stem: str = "") -> None:
        """Find out whether a directory takes an image and its sidecar, before money is spent.

        What they need is done: a hidden file of each kind is written and removed. A directory that took them is
        believed to for a while, so that a batch does not ask for each of its images.

        :param size: bytes that the image may have.
        :param stem: file name that it is meant to get, without its extension.
        :raises BadRequestError: it does not.
        :raises StorageError: it could not be told now; trying again can help.
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
            raise kind(f"output_path: {directory} can't be written to. {error.message}", hint=error.hint) from error

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
        if place.scheme == "s3":
            return S3Files(S3Calls(self._openers.s3_client, place.conn_id, place.bucket), self._modes)
        if place.scheme in WEB_SCHEMES:
            raise BadRequestError(f"{place.shown} is a web address, not a place for files.")
        return DiskFiles(self._warn, self._private) if place.scheme == "file" else OtherFiles(self._openers.path)

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s", printable(what))


def _without_empty_end(segments: tuple[str, ...]) -> tuple[str, ...]:
    return segments[:-1] if segments[-1] == "" and len(segments) > 3 else segments
