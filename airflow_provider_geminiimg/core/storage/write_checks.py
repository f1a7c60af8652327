"""Writes new files for users, and checks whether a directory accepts an image by writing similar files.

Invariants: before money is spent, the check makes the same requests that an image and its sidecar need, with as many
bytes. It removes its files, or warns about those that it could not remove.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_geminiimg.core.storage.base import Backend, sha256
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import GeminiImageError, StorageError, from_dict

SAMPLES = (
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("webp", "image/webp"),
    ("json", "application/json"),
)
"""All kinds of files that may be written: a policy may allow only some names or content types."""
VALID_SECONDS = 10.0
"""Seconds for which a successful check is valid."""
_ADDED = len("-1000+9-x0123456789abcdef-0123456789ab")
"""Longest suffix of a file name: submission number, image number, extra job, digest."""
_STEP = 32  # name lengths are rounded up to a multiple of this, so that few lengths are checked
_EFFORT = 20.0  # a slow check is valid for this multiple of its duration


def write_new(backend: Backend, place: Location, data: bytes, media_type: str, digest: str) -> bool:
    """Write a new file; return True also if the same bytes exist, as after a write whose answer was lost.

    :param digest: hex SHA-256 of `data`.
    """
    try:
        if backend.create(place, data, media_type, digest):
            return True
    except StorageError as failure:
        if failure.retryable:
            with contextlib.suppress(GeminiImageError):
                if backend.sha256(place) == digest:
                    return True
        raise
    return backend.sha256(place) == digest


@dataclass(frozen=True)
class _Check:
    """Result of a check.

    :param size: bytes of the written image.
    :param length: length of the written names.
    :param ended: monotonic time.
    :param good_until: monotonic time.
    :param failure: its error, from `GeminiImageError.to_dict`.
    """

    size: int
    length: int
    ended: float
    good_until: float
    failure: dict[str, object] | None = None

    def holds(self, size: int, length: int, asked: float) -> bool:
        """Return whether this result covers a request with this size and name length, made at time `asked`."""
        return self.fresh(asked) and size <= self.size and length <= self.length

    def fresh(self, asked: float) -> bool:
        """Return whether this result is still valid at time `asked`."""
        return asked <= max(self.good_until, self.ended)


class WritingChecks:
    """The checks of one process. Concurrent callers share one check.

    :param warn: receives a text about missing features, and about files that could not be removed.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._done: dict[str, _Check] = {}

    def check(self, backend: Backend, directory: Callable[[str], Location], key: str, size: int, stem: str) -> None:
        """Check whether a directory accepts an image of `size` bytes and its sidecar.

        :param directory: returns the location of a name in the directory.
        :param key: identifies the directory.
        :param stem: planned file name of the image, without extension; a suffix may be added.
        :raises GeminiImageError: the directory does not accept it.
        """
        asked = time.monotonic()
        length = -(-len(stem) // _STEP) * _STEP + _ADDED
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            known = self._done.get(key)
            if known is None or not known.holds(size, length, asked):
                if known is not None and known.failure is None and known.fresh(asked):  # one check for both
                    size, length = max(size, known.size), max(length, known.length)
                known = self._done[key] = self._checked(backend, directory, size, length)
        if known.failure is not None:
            raise from_dict(known.failure)

    def forget(self, key: str) -> None:
        """Discard the result for a directory that has refused a file."""
        self._done.pop(key, None)

    def _checked(self, backend: Backend, directory: Callable[[str], Location], size: int, length: int) -> _Check:
        began = time.monotonic()
        try:
            left = self._write_samples(backend, directory, size, length)
        except GeminiImageError as error:
            ended = time.monotonic()
            return _Check(size, length, ended, ended, error.to_dict())
        ended = time.monotonic()
        valid = max(VALID_SECONDS, _EFFORT * (ended - began))
        if left:
            valid = float("inf")  # each further check would leave more files
            self._warn(
                f"{', '.join(place.shown for place in left)}: test file of the check for write access, which could not "
                "be removed. Remove it, and allow the worker to remove files there."
            )
        return _Check(size, length, ended, ended + valid)

    def _write_samples(
        self, backend: Backend, directory: Callable[[str], Location], size: int, length: int
    ) -> list[Location]:
        """Write one file of each kind, remove them, and return those that could not be removed."""
        name, left = f".geminiimg-{uuid.uuid4().hex}".ljust(length, "-"), []
        for number, (extension, media_type) in enumerate(SAMPLES):
            place, data = directory(f"{name}.{extension}"), b"\0" * (size if number == 0 else 64)
            try:
                if not write_new(backend, place, data, media_type, sha256(data)):
                    raise StorageError(f"The content of {place.shown} differs from the written bytes.")
                if number == 0:
                    backend.check_exclusive(place, media_type)
            except GeminiImageError:
                _remove(backend, place)
                raise
            if number == len(SAMPLES) - 1:
                self._read_back(backend, place)
            if not _remove(backend, place):
                left.append(place)
        return left

    def _read_back(self, backend: Backend, place: Location) -> None:
        try:
            backend.sha256(place)
        except GeminiImageError as error:
            if not error.retryable:
                self._warn(
                    f"Files in {place.shown.rpartition('/')[0]} cannot be read: a retry or a Clear will fail, because "
                    "it cannot check the stored image. Allow the worker to read files there."
                )


def _remove(backend: Backend, place: Location) -> bool:
    try:
        backend.remove(place)
    except GeminiImageError:
        return False
    return True
