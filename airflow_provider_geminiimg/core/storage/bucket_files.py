"""Users' files in a bucket, including stores that support only a part of what others do.

Invariants: a write never replaces another file, and succeeds only after its bytes were compared, by the store or here.
A store may refuse checksum headers, conditions or content types. Files are then written without them, as long as the
invariants hold, and the log says so once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import uuid
from collections.abc import Callable, Sequence

from airflow_provider_geminiimg.core.storage.base import Backend, Content, pieces, sha256
from airflow_provider_geminiimg.core.storage.drivers import FULL, NO_OBJECT, Driver, PutMode
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import StorageError

_LACKING = {
    "checksum": "checksums (x-amz-checksum-sha256): files are written without them, and compared after the write",
    "media_type": "content types: files are written without them",
    "condition": "conditional writes (If-None-Match): the name is checked before the write instead, so a file that "
    "somebody else writes under the same name at the same moment may be replaced",
}


class PutModes:
    """The supported features of each directory, for one process.

    :param warn: receives a text, once, about the missing features of a directory.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.exclusive: set[str] = set()
        """Directories whose store was seen to refuse an existing name."""
        self.copies: dict[str, bool] = {}
        """Whether the store of a directory refuses an existing name also for copies."""
        self._known: dict[str, PutMode] = {}

    def of(self, directory: str) -> PutMode:
        """Return the mode to try first."""
        return self._known.get(directory, FULL)

    def to_try(self, directory: str, possible: Sequence[PutMode], *, exclusive: bool) -> list[PutMode]:
        """Return the modes to try, in order. A condition that was ignored once is not used again.

        :param possible: modes of the store.
        """
        known = self.of(directory)
        modes = [mode for mode in possible if mode.condition <= known.condition]
        return list(dict.fromkeys((known, *(mode for mode in modes if exclusive or mode.condition == known.condition))))

    def learn(self, directory: str, mode: PutMode) -> None:
        """Save the mode that the directory supports."""
        before, self._known[directory] = self.of(directory), mode
        lost = [name for name in _LACKING if getattr(before, name) and not getattr(mode, name)]
        if lost:
            self._warn(f"{directory} does not support {'; nor '.join(_LACKING[name] for name in lost)}.")


class BucketFiles(Backend):
    """Users' files in a bucket.

    :param driver: of the bucket.
    :param modes: the known features of its directories.
    """

    def __init__(self, driver: Driver, modes: PutModes) -> None:
        self._driver = driver
        self._modes = modes

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        found = self._driver.get(place.path, max_bytes)
        return None if found is None else found.data

    def create(self, place: Location, data: bytes, media_type: str, digest: str) -> bool:
        return self._write(place, data, media_type, digest, exclusive=True)

    def put(self, place: Location, content: Content, media_type: str) -> None:
        data = b"".join(pieces(content))
        try:
            self._write(place, data, media_type, sha256(data), exclusive=False)
        except StorageError as failure:
            if failure.retryable:  # perhaps only the answer was lost
                with contextlib.suppress(StorageError):
                    if self.sha256(place) == sha256(data):
                        return
            raise

    def copy(self, source: Location, place: Location, digest: str) -> bool:
        origin = self._driver.beside(source.bucket)
        try:
            version = origin.version(source.path)
            if version is None or origin.stored_sha256(source.path) != digest or not self._copies_exclusively(place):
                return False
            if self._driver.version(place.path) is not None:
                return False
            if not self._driver.copy(source.path, place.path, bucket=source.bucket, version=version):
                return False
            if self._driver.stored_sha256(place.path) == digest:
                return True
            self._driver.delete(place.path)  # the source was replaced meanwhile, and the store did not notice
        except StorageError:
            return False
        return False

    def _copies_exclusively(self, place: Location) -> bool:
        """Whether the store refuses to copy to an existing name: some ignore the condition of a copy. Tried once for a
        directory, with a file that is copied onto itself.
        """
        directory = _directory(place)
        if not self._modes.of(directory).condition:
            return False
        if directory not in self._modes.copies:
            name = f".geminiimg-{uuid.uuid4().hex}.json"
            sample = dataclasses.replace(place, path=f"{place.path.rpartition('/')[0]}/{name}".lstrip("/"))
            self._driver.put(sample.path, b"{}", "application/json", sha256(b"{}"), condition=NO_OBJECT)
            try:
                replaced = self._driver.copy(sample.path, sample.path, bucket=place.bucket)
                self._modes.copies[directory] = not replaced
            finally:
                self.remove(sample)
        return self._modes.copies[directory]

    def sha256(self, place: Location) -> str | None:
        try:
            if (stored := self._driver.stored_sha256(place.path)) is not None:
                return stored
        except StorageError as error:
            if not self._driver.is_refusal(error):
                raise
        found = self._driver.get(place.path)
        return None if found is None else sha256(found.data)

    def exists(self, place: Location) -> bool:
        return self._driver.exists(place.path)

    def there(self, places: Sequence[Location]) -> list[Location]:
        """Use one listing instead of two requests per file; without permission to list, check each file."""
        prefix = os.path.commonprefix([place.path for place in places])  # noqa: RUF071 - keys are no paths
        try:
            known = set(self._driver.keys(prefix))
        except StorageError:
            return super().there(places)
        return [place for place in places if place.path in known]

    def remove(self, place: Location) -> None:
        self._driver.delete(place.path)

    def check_exclusive(self, place: Location, media_type: str) -> None:
        """Create an existing file again with the condition only: some stores accept the header and ignore it."""
        mode = self._modes.of(_directory(place))
        if not mode.condition:
            return
        other = b"other"
        try:
            replaced = self._put(place, other, media_type, sha256(other), mode, exclusive=True)
            if not replaced:
                self._modes.exclusive.add(_directory(place))
        except StorageError as error:
            # Refused with any code, or only the answer was lost.
            replaced = not self._driver.is_refusal(error) and self.sha256(place) == sha256(other)
        if replaced:
            self._modes.learn(_directory(place), dataclasses.replace(mode, condition=False))

    def _write(self, place: Location, data: bytes, media_type: str, digest: str, *, exclusive: bool) -> bool:
        """Write with the known features of the directory, then with fewer; return False if the name is taken."""
        directory = _directory(place)
        refusal: StorageError | None = None
        for mode in self._modes.to_try(directory, self._driver.modes, exclusive=exclusive):
            try:
                written = not (exclusive and self._is_taken(place, mode)) and self._put(
                    place, data, media_type, digest, mode, exclusive=exclusive
                )
            except StorageError as error:
                if not self._driver.is_refusal(error):
                    raise
                refusal = refusal or error
                continue
            if refusal is not None:
                self._modes.learn(directory, mode)
            return written
        assert refusal is not None
        raise refusal

    def _is_taken(self, place: Location, mode: PutMode) -> bool:
        """Return whether the file exists. Checked also before a conditional put, until the store was seen to honour the
        condition.
        """
        if mode.condition and _directory(place) in self._modes.exclusive:
            return False
        try:
            return self._driver.version(place.path) is not None
        except StorageError:
            if not mode.condition:
                raise
            return False  # without permission to check, rely on the condition

    def _put(
        self, place: Location, data: bytes, media_type: str, digest: str, mode: PutMode, *, exclusive: bool
    ) -> bool:
        condition = NO_OBJECT if exclusive and mode.condition else None
        version = self._driver.put(place.path, data, media_type, digest, condition=condition, mode=mode)
        if version is None:
            return False
        if not mode.checksum:
            self._compare(place, data, version)
        return True

    def _compare(self, place: Location, data: bytes, version: str) -> None:
        """Compare the written bytes with the stored ones: by the MD5 that most stores return as version, or by reading
        them.
        """
        if version.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
        try:
            if self.sha256(place) == sha256(data):
                return
            found = "differs from the written bytes"
        except StorageError as error:
            if not self._driver.is_refusal(error):
                raise
            found = (
                "cannot be compared with the written bytes: the store supports no checksum, and does not allow reading"
            )
        left = (
            "" if self._removed_ours(place, version) else " It was not removed, because it may belong to somebody else."
        )
        raise StorageError(f"The file {place.shown} {found}.{left}", retryable=False)

    def _removed_ours(self, place: Location, version: str) -> bool:
        """Remove the file of a failed put, and return whether it is removed.

        It is kept if another file may have replaced it, or if the store gives no clear answer. The version is checked
        before the conditional delete, because some stores ignore the condition.
        """
        try:
            found = self._driver.version(place.path)
            if found is None:
                return True
            if not version or found != version:
                return False
            return self._driver.delete(place.path, version)
        except StorageError:
            return False


def _directory(place: Location) -> str:
    return place.shown.rpartition("/")[0]
