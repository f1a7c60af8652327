"""Users' files in a bucket, including stores that support only a part of S3.

Invariants: a write never replaces another file, and succeeds only after its bytes were compared, by the store or here.
A store may refuse checksum headers, conditions or content types. Files are then written without them, as long as the
invariants hold, and the log says so once.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.storage.base import Backend, Content, pieces, sha256
from airflow_provider_geminiimg.core.storage.s3 import ABSENT, TAKEN, S3Calls, is_refusal
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import StorageError


@dataclass(frozen=True)
class PutMode:
    """The features that a put uses.

    :param checksum: the store compares the SHA-256; otherwise the bytes are compared after the write.
    :param media_type: the store keeps the content type.
    :param condition: the store refuses an existing name; otherwise the name is checked before the write.
    """

    checksum: bool = True
    media_type: bool = True
    condition: bool = True


_MODES = sorted(
    (PutMode(*asked) for asked in itertools.product((True, False), repeat=3)),
    key=lambda mode: (not mode.condition, [mode.checksum, mode.media_type].count(False), mode.checksum),
)
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
        return self._known.get(directory, _MODES[0])

    def to_try(self, directory: str, *, exclusive: bool) -> list[PutMode]:
        """Return the modes to try, in order. A condition that was ignored once is not used again."""
        known = self.of(directory)
        modes = [mode for mode in _MODES if mode.condition <= known.condition]
        return list(dict.fromkeys((known, *(mode for mode in modes if exclusive or mode.condition == known.condition))))

    def learn(self, directory: str, mode: PutMode) -> None:
        """Save the mode that the directory supports."""
        before, self._known[directory] = self.of(directory), mode
        lost = [name for name in _LACKING if getattr(before, name) and not getattr(mode, name)]
        if lost:
            self._warn(f"{directory} does not support {'; nor '.join(_LACKING[name] for name in lost)}.")


class S3Files(Backend):
    """Users' files in a bucket.

    :param modes: the known features of its directories.
    """

    def __init__(self, s3: S3Calls, modes: PutModes) -> None:
        self._s3 = s3
        self._modes = modes

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        found = self._s3.get(place.path)
        return None if found is None else self._s3.body(place.path, found, max_bytes)

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
        try:
            found = self._s3.call(
                "head_object", source.path, bucket=source.bucket, unless=ABSENT, ChecksumMode="ENABLED"
            )
            if found is None or _stored_sha256(found) != digest or not self._copies_exclusively(place):
                return False
            if self._s3.call("head_object", place.path, unless=ABSENT) is not None:
                return False
            return self._copy(source, place, CopySourceIfMatch=found["ETag"])
        except StorageError:
            return False

    def _copy(self, source: Location, place: Location, **more: str) -> bool:
        where = {"Bucket": source.bucket, "Key": source.path}
        unmet = TAKEN | ABSENT
        return (
            self._s3.call("copy_object", place.path, unless=unmet, CopySource=where, IfNoneMatch="*", **more)
            is not None
        )

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
            self._s3.put(sample.path, b"{}", "application/json", sha256(b"{}"), IfNoneMatch="*")
            try:
                self._modes.copies[directory] = not self._copy(sample, sample, MetadataDirective="REPLACE")
            finally:
                self.remove(sample)
        return self._modes.copies[directory]

    def sha256(self, place: Location) -> str | None:
        try:
            found = self._s3.call("head_object", place.path, unless=ABSENT, ChecksumMode="ENABLED")
        except StorageError as error:
            if not is_refusal(error):
                raise
            found = None
        stored = _stored_sha256(found or {})
        if stored is not None:
            return stored
        found = self._s3.get(place.path)
        return None if found is None else sha256(self._s3.body(place.path, found))

    def exists(self, place: Location) -> bool:
        if self._s3.call("head_object", place.path, unless=ABSENT) is not None:
            return True
        # The 404 of a HEAD has no body that would tell a missing object from a missing bucket.
        return self._s3.get(place.path) is not None

    def there(self, places: Sequence[Location]) -> list[Location]:
        """Use one listing instead of two requests per file; without permission to list, check each file."""
        prefix = os.path.commonprefix([place.path for place in places])  # noqa: RUF071 - keys are no paths
        try:
            known = {entry["Key"] for page in self._s3.pages(Prefix=prefix) for entry in page.get("Contents", ())}
        except StorageError:
            return super().there(places)
        return [place for place in places if place.path in known]

    def remove(self, place: Location) -> None:
        self._s3.call("delete_object", place.path, unless={"NoSuchKey"})

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
            replaced = not is_refusal(error) and self.sha256(place) == sha256(other)
        if replaced:
            self._modes.learn(_directory(place), dataclasses.replace(mode, condition=False))

    def _write(self, place: Location, data: bytes, media_type: str, digest: str, *, exclusive: bool) -> bool:
        """Write with the known features of the directory, then with fewer; return False if the name is taken."""
        directory = _directory(place)
        refusal: StorageError | None = None
        for mode in self._modes.to_try(directory, exclusive=exclusive):
            try:
                written = not (exclusive and self._is_taken(place, mode)) and self._put(
                    place, data, media_type, digest, mode, exclusive=exclusive
                )
            except StorageError as error:
                if not is_refusal(error):
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
            return self._s3.call("head_object", place.path, unless=ABSENT) is not None
        except StorageError:
            if not mode.condition:
                raise
            return False  # without permission to check, rely on the condition

    def _put(
        self, place: Location, data: bytes, media_type: str, digest: str, mode: PutMode, *, exclusive: bool
    ) -> bool:
        condition = {"IfNoneMatch": "*"} if exclusive and mode.condition else {}
        done = self._s3.put(
            place.path, data, media_type if mode.media_type else None, digest if mode.checksum else None, **condition
        )
        if done is None:
            return False
        if not mode.checksum:
            self._compare(place, data, str(done.get("ETag", "")))
        return True

    def _compare(self, place: Location, data: bytes, etag: str) -> None:
        """Compare the written bytes with the stored ones: by the MD5 that most stores return as ETag, or by reading
        them.
        """
        if etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
        try:
            if self.sha256(place) == sha256(data):
                return
            found = "differs from the written bytes"
        except StorageError as error:
            if not is_refusal(error):
                raise
            found = (
                "cannot be compared with the written bytes: the store supports no checksum, and does not allow reading"
            )
        left = "" if self._removed_ours(place, etag) else " It was not removed, because it may belong to somebody else."
        raise StorageError(f"The file {place.shown} {found}.{left}", retryable=False)

    def _removed_ours(self, place: Location, etag: str) -> bool:
        """Remove the file of a failed put, and return whether it is removed.

        It is kept if another file may have replaced it, or if the store gives no clear answer. The ETag is checked
        before the conditional delete, because some stores ignore the condition.
        """
        try:
            with self._s3.plainly():
                found = self._s3.call("head_object", place.path, unless=ABSENT)
                if found is None:
                    return True
                if not etag or found.get("ETag") != etag:
                    return False
                return self._s3.call("delete_object", place.path, unless=TAKEN | ABSENT, IfMatch=etag) is not None
        except StorageError:
            return False


def _stored_sha256(found: Mapping[str, Any]) -> str | None:
    """The hex digest that the store keeps of an object; with a dash it is a checksum of the checksums of parts."""
    stored = found.get("ChecksumSHA256", "")
    return base64.b64decode(stored).hex() if stored and "-" not in stored else None


def _directory(place: Location) -> str:
    return place.shown.rpartition("/")[0]
