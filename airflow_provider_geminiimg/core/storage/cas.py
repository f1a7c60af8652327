"""Conditional writes whose answer may get lost: the one create-or-read and the one update of the package.

What must stay true: "somebody else wrote" is said only after what is stored has been read and is not the caller's own.
A write whose answer got lost, came as a failure, or was repeated by the client and refused because its first try had
won, is found again by its bytes or by the claim in them. What others wrote meanwhile is never written over: an update
asks its step again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_geminiimg.core.storage.base import Blob, Store
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, StorageError

UPDATE_SECONDS = 60.0
"""How long an update is repeated while other writers are quicker."""
_VANISHED = 5  # creations that were refused for an object that was gone when it was read


@dataclass(frozen=True)
class Stored:
    """What is stored after a conditional write.

    :param blob: the object.
    :param ours: whether this very write put it there.
    """

    blob: Blob
    ours: bool


def create_or_read(store: Store, key: str, data: bytes, *, is_ours: Callable[[bytes], bool] | None = None) -> Stored:
    """Create an object, or read the one that is there.

    :param is_ours: tells the caller's own object, which may have been changed since. Default: the same bytes.
    :raises StorageError: the store failed, and what is there, if anything, is not the caller's.
    """
    stored, failure = _created(store, key, data, is_ours or data.__eq__)
    if failure is not None and (stored is None or not stored.ours):
        raise failure
    assert stored is not None
    return stored


def _created(
    store: Store, key: str, data: bytes, is_ours: Callable[[bytes], bool]
) -> tuple[Stored | None, StorageError | None]:
    """What is there after a creation, and how it failed, if it did; at least one of them."""
    for _ in range(_VANISHED):
        version, failure = _attempted(lambda: store.create(key, data))
        if version is not None:
            return Stored(Blob(data, version, 0.0), True), None
        found = _read_after(store, key, failure)
        if found is not None:
            return Stored(found, is_ours(found.data)), failure
        if failure is not None:
            return None, failure
    return None, StorageError(f"{key} under {store.uri} is refused as taken, and is not there when it is read.")


def replace_or_read(store: Store, key: str, data: bytes, version: str) -> Stored | None:
    """Replace an object that still has `version`, or read the one that is there; ``None``: it is gone.

    :raises StorageError: the store failed, and the object is as it was.
    """
    new, failure = _attempted(lambda: store.replace(key, data, version))
    if new is not None:
        return Stored(Blob(data, new, 0.0), True)
    found = _read_after(store, key, failure)
    if found is not None and found.data == data:
        return Stored(found, True)
    if failure is not None and (found is None or found.version == version):
        raise failure
    return None if found is None else Stored(found, False)


def update(
    store: Store, key: str, step: Callable[[Blob | None], bytes | None], *, billed: Billed = Billed.NO
) -> Blob | None:
    """Move an object on: written only if nobody else wrote in between, otherwise the step is asked again.

    :param step: gets what is stored (``None``: nothing) and returns what shall be, or ``None`` for "leave it". Asked
        again after a write of its own whose answer got lost and on which others built, so it must be repeatable.
    :param billed: whether money was spent, for the error that says that others were quicker for `UPDATE_SECONDS`.
    :returns: what is stored now.
    :raises StorageError: the store failed.
    """
    give_up, patience = time.monotonic() + UPDATE_SECONDS, 0.01
    while True:
        found = store.read(key)
        wanted = step(found)
        if wanted is None or (found is not None and found.data == wanted):
            return found
        stored = (
            _created_or_found(store, key, wanted)
            if found is None
            else replace_or_read(store, key, wanted, found.version)
        )
        if stored is not None and stored.ours:
            return stored.blob
        if time.monotonic() > give_up:
            raise StorageError(
                f"{key} under {store.uri} was written by others for {UPDATE_SECONDS:.0f} s, each time before this one.",
                billed=billed,
                hint="A retry goes on.",
            )
        time.sleep(random.uniform(0.0, patience))
        patience = min(1.0, patience * 2)


def _created_or_found(store: Store, key: str, data: bytes) -> Stored:
    """As `create_or_read`, but no failure where others are found to have written: they may have built on this."""
    stored, failure = _created(store, key, data, data.__eq__)
    if stored is None:
        assert failure is not None
        raise failure
    return stored


def _attempted(write: Callable[[], str | None]) -> tuple[str | None, StorageError | None]:
    """The version that a write brings; or how it failed, which does not say that nothing was written."""
    try:
        return write(), None
    except StorageError as failure:
        return None, failure


def _read_after(store: Store, key: str, failure: StorageError | None) -> Blob | None:
    try:
        return store.read(key)
    except GeminiImageError:
        if failure is not None:
            raise failure from None
        raise
