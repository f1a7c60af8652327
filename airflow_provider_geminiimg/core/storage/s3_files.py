"""Users' files in a bucket, also in one that takes less than S3 does.

What must stay true: nothing is written over another file, and nothing is taken for written whose bytes were not
compared, by the store or here. A store may refuse checksum headers, conditions or content types: then a file is written
without what it refuses, as long as this holds, and the log says so once.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airflow_provider_geminiimg.core.storage.base import Backend, Content, pieces, sha256
from airflow_provider_geminiimg.core.storage.s3 import ABSENT, TAKEN, S3Calls, is_refusal
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import StorageError


@dataclass(frozen=True)
class PutMode:
    """What a put asks of the store, besides keeping the bytes.

    :param checksum: compare the bytes with their SHA-256; otherwise they are compared after the write.
    :param media_type: keep the content type.
    :param condition: refuse a name that is taken; otherwise a look before the write must have said that it is free.
    """

    checksum: bool = True
    media_type: bool = True
    condition: bool = True


_MODES = sorted(
    (PutMode(*asked) for asked in itertools.product((True, False), repeat=3)),
    key=lambda mode: (not mode.condition, [mode.checksum, mode.media_type].count(False), mode.checksum),
)
_LACKING = {
    "checksum": "checksums (x-amz-checksum-sha256): files are written without, and compared after the write",
    "media_type": "content types: files are written without",
    "condition": "conditions (If-None-Match): a look before the write takes their place, so that a file which somebody "
    "else writes under the same name at that very moment may be replaced",
}


class PutModes:
    """What the directories of one process turned out to take.

    :param warn: where to say, once, what a directory does not take.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._known: dict[str, PutMode] = {}

    def of(self, directory: str) -> PutMode:
        """What to ask for first."""
        return self._known.get(directory, _MODES[0])

    def to_try(self, directory: str, *, exclusive: bool) -> list[PutMode]:
        """What to ask for, one after the other. A condition that is not heeded is never asked for again."""
        known = self.of(directory)
        modes = [mode for mode in _MODES if mode.condition <= known.condition]
        return list(dict.fromkeys((known, *(mode for mode in modes if exclusive or mode.condition == known.condition))))

    def learn(self, directory: str, mode: PutMode) -> None:
        """This is what the directory takes."""
        before, self._known[directory] = self.of(directory), mode
        lost = [name for name in _LACKING if getattr(before, name) and not getattr(mode, name)]
        if lost:
            self._warn(f"{directory} takes no {'; and no '.join(_LACKING[name] for name in lost)}.")


class S3Files(Backend):
    """Users' files in a bucket.

    :param modes: what its directories are known to take.
    """

    def __init__(self, s3: S3Calls, modes: PutModes) -> None:
        self._s3 = s3
        self._modes = modes

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        found = self._s3.get(place.path)
        return None if found is None else self._s3.body(place.path, found, max_bytes)

    def create(self, place: Location, data: bytes, media_type: str) -> bool:
        return self._write(place, data, media_type, exclusive=True)

    def put(self, place: Location, content: Content, media_type: str) -> None:
        data = b"".join(pieces(content))
        try:
            self._write(place, data, media_type, exclusive=False)
        except StorageError as failure:
            if failure.retryable:  # the answer alone may be lost
                with contextlib.suppress(StorageError):
                    if self.sha256(place) == sha256(data):
                        return
            raise

    def sha256(self, place: Location) -> str | None:
        try:
            found = self._s3.call("head_object", place.path, unless=ABSENT, ChecksumMode="ENABLED")
        except StorageError as error:
            if not is_refusal(error):
                raise
            found = None
        stored = (found or {}).get("ChecksumSHA256", "")
        if stored and "-" not in stored:  # with a dash it is a checksum of the checksums of parts
            return base64.b64decode(stored).hex()
        found = self._s3.get(place.path)
        return None if found is None else sha256(self._s3.body(place.path, found))

    def exists(self, place: Location) -> bool:
        if self._s3.call("head_object", place.path, unless=ABSENT) is not None:
            return True
        # The 404 of a HEAD has no body that would tell a missing object from a missing bucket.
        return self._s3.get(place.path) is not None

    def there(self, places: Sequence[Location]) -> list[Location]:
        """One listing instead of two requests for each; who may not list asks for each."""
        prefix = os.path.commonprefix([place.path for place in places])  # noqa: RUF071 - keys are no paths
        try:
            known = {entry["Key"] for page in self._s3.pages(Prefix=prefix) for entry in page.get("Contents", ())}
        except StorageError:
            return super().there(places)
        return [place for place in places if place.path in known]

    def remove(self, place: Location) -> None:
        self._s3.call("delete_object", place.path, unless={"NoSuchKey"})

    def check_exclusive(self, place: Location, media_type: str) -> None:
        """Create what is there once more, by the condition alone: some stores take the header, and do not heed it."""
        mode = self._modes.of(_directory(place))
        if not mode.condition:
            return
        other = b"other"
        try:
            replaced = self._put(place, other, media_type, mode, exclusive=True)
        except StorageError as error:
            # Refused in whatever words, or the answer alone is lost.
            replaced = not is_refusal(error) and self.sha256(place) == sha256(other)
        if replaced:
            self._modes.learn(_directory(place), dataclasses.replace(mode, condition=False))

    def _write(self, place: Location, data: bytes, media_type: str, *, exclusive: bool) -> bool:
        """Write as the directory is known to take it, else with less and less; False where the name is taken."""
        directory = _directory(place)
        refusal: StorageError | None = None
        for mode in self._modes.to_try(directory, exclusive=exclusive):
            try:
                written = not (exclusive and self._is_taken(place, mode)) and self._put(
                    place, data, media_type, mode, exclusive=exclusive
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
        """Whether a look says so. Also before a put with a condition, which not every store heeds."""
        try:
            return self._s3.call("head_object", place.path, unless=ABSENT) is not None
        except StorageError:
            if not mode.condition:
                raise
            return False  # who may not look writes by the condition alone

    def _put(self, place: Location, data: bytes, media_type: str, mode: PutMode, *, exclusive: bool) -> bool:
        condition = {"IfNoneMatch": "*"} if exclusive and mode.condition else {}
        done = self._s3.put(
            place.path, data, media_type if mode.media_type else None, checksum=mode.checksum, **condition
        )
        if done is None:
            return False
        if not mode.checksum:
            self._compare(place, data, str(done.get("ETag", "")))
        return True

    def _compare(self, place: Location, data: bytes, etag: str) -> None:
        """Compare what was put with what lies there: by the MD5 that most stores give as ETag, else by reading it."""
        if etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
        try:
            if self.sha256(place) == sha256(data):
                return
            found = "is not what was written"
        except StorageError as error:
            if not is_refusal(error):
                raise
            found = "can't be compared with what was written: the store takes no checksum, and it can't be read back"
        left = "" if self._removed_ours(place, etag) else " It was left there, because it may be somebody else's."
        raise StorageError(f"What came to lie at {place.shown} {found}.{left}", retryable=False)

    def _removed_ours(self, place: Location, etag: str) -> bool:
        """Remove what a put left; not where another file may have taken its place, or the store can't say.

        A look comes before the condition, because some stores take the header, and do not heed it.
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


def _directory(place: Location) -> str:
    return place.shown.rpartition("/")[0]
