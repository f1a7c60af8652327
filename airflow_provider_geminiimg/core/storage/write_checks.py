"""New files for users, and whether a directory takes them: found out by writing what an image needs.

What must stay true: the check makes the very requests that an image and its sidecar need, with as many bytes, before
money is spent; it removes what it wrote, or says where it could not.
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
"""What may have to be written beside each other: a policy may allow some names or content types only."""
BELIEVED = 10.0
"""Seconds for which a directory that took files is taken to be writable."""
_ADDED = len("-1000+9-x0123456789abcdef-0123456789ab")
"""What may be added to a file name: a number, which image of an answer it is, a job found beside it, a digest."""
_STEP = 32  # characters to whose multiple a name is made longer, so that few lengths have to be tried
_EFFORT = 20.0  # a check that takes long is believed so many times as long


def write_new(backend: Backend, place: Location, data: bytes, media_type: str, digest: str) -> bool:
    """Write a new file; True also where the same bytes are there, as after a write whose answer got lost.

    :param digest: hex SHA-256 of `data`.
    """
    try:
        if backend.create(place, data, media_type):
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
    """How a check came out.

    :param size: bytes of the image that was written.
    :param length: of the names that were written.
    :param ended: by the monotonic clock.
    :param good_until: by the monotonic clock.
    :param failure: of it, as `GeminiImageError.to_dict` gives it.
    """

    size: int
    length: int
    ended: float
    good_until: float
    failure: dict[str, object] | None = None

    def holds(self, size: int, length: int, asked: float) -> bool:
        """Whether it answers a question that was asked then."""
        return self.fresh(asked) and size <= self.size and length <= self.length

    def fresh(self, asked: float) -> bool:
        """Whether it is still believed."""
        return asked <= max(self.good_until, self.ended)


class WritingChecks:
    """The checks of one process. Whoever asks while one is under way shares its outcome.

    :param warn: where to say what a directory lacks, and what could not be removed.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._done: dict[str, _Check] = {}

    def check(self, backend: Backend, directory: Callable[[str], Location], key: str, size: int, stem: str) -> None:
        """Find out whether a directory takes an image of `size` bytes and its sidecar.

        :param directory: gives the place of a name in it.
        :param key: names the directory.
        :param stem: file name that the image is meant to get, without its extension; it may get a longer one.
        :raises GeminiImageError: it does not.
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
        """The directory has refused a file since."""
        self._done.pop(key, None)

    def _checked(self, backend: Backend, directory: Callable[[str], Location], size: int, length: int) -> _Check:
        began = time.monotonic()
        try:
            left = self._write_samples(backend, directory, size, length)
        except GeminiImageError as error:
            ended = time.monotonic()
            return _Check(size, length, ended, ended, error.to_dict())
        ended = time.monotonic()
        believed = max(BELIEVED, _EFFORT * (ended - began))
        if left:
            believed = float("inf")  # each further check would leave more behind
            self._warn(
                f"{', '.join(place.shown for place in left)}: written to find out whether the directory takes files, "
                "and can't be removed. Remove that, and let the worker remove files there."
            )
        return _Check(size, length, ended, ended + believed)

    def _write_samples(
        self, backend: Backend, directory: Callable[[str], Location], size: int, length: int
    ) -> list[Location]:
        """Write one file of each kind, and remove them; those that could not be removed."""
        name, left = f".geminiimg-{uuid.uuid4().hex}".ljust(length, "-"), []
        for number, (extension, media_type) in enumerate(SAMPLES):
            place, data = directory(f"{name}.{extension}"), b"\0" * (size if number == 0 else 64)
            try:
                if not write_new(backend, place, data, media_type, sha256(data)):
                    raise StorageError(f"What was written to {place.shown} is not what is there.")
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
                    f"What is written to {place.shown.rpartition('/')[0]} can't be read back: a retry or a Clear can't "
                    "tell that what has landed is there, and asks for access. Let the worker read files there."
                )


def _remove(backend: Backend, place: Location) -> bool:
    try:
        backend.remove(place)
    except GeminiImageError:
        return False
    return True
