"""All other stores that Airflow's providers support, through `ObjectStoragePath`.

Invariant: a file is opened only if `ObjectStoragePath` reads its URI in the same way as `locate`.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from typing import Any

from airflow_provider_geminiimg.core.storage.base import Backend, Content, PathFactory, pieces, sha256
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

_REFUSALS = (PermissionError, NotImplementedError, IsADirectoryError, NotADirectoryError)  # permanent failures


class OtherFiles(Backend):
    """Files in other stores. Creation is not exclusive: fsspec only allows a check before the write.

    :param open_path: returns the `ObjectStoragePath` of a URI and a connection.
    """

    def __init__(self, open_path: PathFactory) -> None:
        self._open_path = open_path

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        with self._errors("Reading", place):
            try:
                with self._path(place).open("rb") as file:
                    return bytes(file.read(max_bytes + 1))
            except FileNotFoundError:
                return None

    def create(self, place: Location, data: bytes, media_type: str, digest: str) -> bool:
        if self.exists(place):
            return False
        self.put(place, data, media_type)
        return True

    def sha256(self, place: Location) -> str | None:
        with self._errors("Reading", place):
            try:
                return sha256(self._path(place).read_bytes())
            except FileNotFoundError:
                return None

    def put(self, place: Location, content: Content, media_type: str) -> None:
        data = b"".join(pieces(content))  # the write may be repeated
        with self._errors("Writing", place):
            path = self._path(place)
            try:
                self._write(path, data)
            except FileNotFoundError:  # only file systems with real folders raise this
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(path, data)

    def exists(self, place: Location) -> bool:
        with self._errors("Looking for", place):
            path = self._path(place)
            path.fs.invalidate_cache()
            try:
                path.fs.info(path.path)  # not exists(), which treats any failure as absence
            except FileNotFoundError:
                return False
            return True

    def remove(self, place: Location) -> None:
        with self._errors("Removing", place), contextlib.suppress(FileNotFoundError):
            path = self._path(place)
            if glob.has_magic(path.path):  # unlink() would treat it as a pattern
                path.fs.rm_file(path.path)
            else:
                path.unlink()

    def _write(self, path: Any, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)

    def _path(self, place: Location) -> Any:
        try:
            path = self._open_path(f"{place.scheme}://{place.bucket}/{place.path}", place.conn_id)
            path.fs  # noqa: B018  (raises for an unknown scheme)
        except (ValueError, ImportError) as error:
            raise BadRequestError(
                f"{place.shown}: no installed Airflow provider supports {place.scheme}://.",
                hint="Install the provider for it, or use s3://, file:// or a plain path.",
            ) from error
        if not _is_at(path, place):
            raise BadRequestError(
                f"{place.shown}: Airflow's ObjectStoragePath would open another file.",
                hint="Use a name without special characters.",
            )
        return path

    @contextlib.contextmanager
    def _errors(self, doing: str, place: Location) -> Iterator[None]:
        try:
            yield
        except GeminiImageError:
            raise
        except Exception as error:
            raise StorageError(
                f"{doing} {place.shown} failed: {type(error).__name__}.",
                retryable=not isinstance(error, _REFUSALS),
                hint="Check the address, and that the worker's identity may list, read, write and remove files there.",
            ) from error


def _is_at(path: Any, place: Location) -> bool:
    """Return whether an `ObjectStoragePath` has the address of a URI. Some file systems take the host from the
    connection.
    """
    opened = (path.protocol, path.path.strip("/"))
    keys = (place.path.strip("/"), f"{place.bucket}/{place.path}".strip("/"))
    return opened in [(place.scheme, key) for key in keys]
