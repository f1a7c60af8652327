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

from airflow_provider_geminiimg.exceptions import GeminiImageError, StorageError, from_dict
from airflow_provider_geminiimg.storage.base import Backend, sha256
from airflow_provider_geminiimg.storage.uris import Location

SAMPLES = (
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("webp", "image/webp"),
    ("json", "application/json"),
)
"""What may have to be written beside each other: a policy may allow some names or content types only."""
BELIEVED = 10.0
"""Seconds for which a directory that took files is taken to be writable."""
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
    :param ended: by the monotonic clock.
    :param good_until: by the monotonic clock.
    :param failure: of it, as `GeminiImageError.to_dict` gives it.
    """

    size: int
    ended: float
    good_until: float
    failure: dict[str, object] | None = None


class WritingChecks:
    """The checks of one process. Whoever asks while one is under way shares its outcome.

    :param warn: where to say what a directory lacks, and what could not be removed.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._done: dict[str, _Check] = {}

    def check(self, backend: Backend, directory: Callable[[str], Location], key: str, size: int) -> None:
        """Find out whether a directory takes an image of `size` bytes and its sidecar.

        :param directory: gives the place of a name in it.
        :param key: names the directory.
        :raises GeminiImageError: it does not.
        """
        asked = time.monotonic()
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            known = self._done.get(key)
            if known is None or known.size < size or (known.good_until < asked and known.ended < asked):
                known = self._done[key] = self._checked(backend, directory, size)
        if known.failure is not None:
            raise from_dict(known.failure)

    def forget(self, key: str) -> None:
        """The directory has refused a file since."""
        self._done.pop(key, None)

    def _checked(self, backend: Backend, directory: Callable[[str], Location], size: int) -> _Check:
        began = time.monotonic()
        try:
            left = self._write_samples(backend, directory, size)
        except GeminiImageError as error:
            ended = time.monotonic()
            return _Check(size, ended, ended, error.to_dict())
        ended = time.monotonic()
        believed = max(BELIEVED, _EFFORT * (ended - began))
        if left:
            believed = float("inf")  # each further check would leave more behind
            self._warn(
                f"{', '.join(place.shown for place in left)}: written to find out whether the directory takes files, "
                "and can't be removed. Remove that, and let the worker remove files there."
            )
        return _Check(size, ended, ended + believed)

    def _write_samples(self, backend: Backend, directory: Callable[[str], Location], size: int) -> list[Location]:
        """Write one file of each kind, and remove them; those that could not be removed."""
        name, left = f".geminiimg-{uuid.uuid4().hex}", []
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
