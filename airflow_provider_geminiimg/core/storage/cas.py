"""Conditional writes whose answer may be lost: the only create-or-read and the only update of the package.

Invariants: "another writer" is reported only after the stored object was read and is not the caller's own. A write is
recognised by its bytes or by its claim if its answer was lost, if it failed after it was stored, or if the client
repeated it and the repetition was refused. Changes of other writers are never overwritten: an update calls its step
again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_geminiimg.core.storage.base import Blob, Store
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, StorageError

UPDATE_SECONDS = 60.0
"""Maximum time for which an update is repeated while other writers write first."""
_VANISHED = 5  # maximum number of refused creations whose object does not exist when it is read


@dataclass(frozen=True)
class Stored:
    """The stored object after a conditional write.

    :param blob: the object.
    :param ours: whether this write created it.
    """

    blob: Blob
    ours: bool


def create_or_read(store: Store, key: str, data: bytes, *, is_ours: Callable[[bytes], bool] | None = None) -> Stored:
    """Create an object, or read the existing one.

    :param is_ours: recognises the caller's own object, which may have been changed since. Default: the same bytes.
    :raises StorageError: the store failed, and the stored object, if any, is not the caller's.
    """
    stored, failure = _created(store, key, data, is_ours or data.__eq__)
    if failure is not None and (stored is None or not stored.ours):
        raise failure
    assert stored is not None
    return stored


def _created(
    store: Store, key: str, data: bytes, is_ours: Callable[[bytes], bool]
) -> tuple[Stored | None, StorageError | None]:
    """Return the stored object after a creation, and the failure of the creation; at least one of them."""
    for _ in range(_VANISHED):
        version, failure = _attempted(lambda: store.create(key, data))
        if version is not None:
            return Stored(Blob(data, version, 0.0), True), None
        found = _read_after(store, key, failure)
        if found is not None:
            return Stored(found, is_ours(found.data)), failure
        if failure is not None:
            return None, failure
    return None, StorageError(
        f"{key} under {store.uri} is refused as existing, but does not exist when it is read.",
        hint="If the versioning of this bucket is suspended, use a bucket that never had versioning.",
    )


def replace_or_read(store: Store, key: str, data: bytes, version: str) -> Stored | None:
    """Replace an object that still has `version`, or read the existing one; ``None`` if it does not exist.

    :raises StorageError: the store failed, and the object is unchanged.
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


@dataclass(frozen=True)
class Expected:
    """What a caller of `update` expects to be stored, so that a read is spared if that is right.

    :param blob: the object; ``None``: nothing.
    """

    blob: Blob | None


def update(
    store: Store,
    key: str,
    step: Callable[[Blob | None], bytes | None],
    *,
    billed: Billed = Billed.NO,
    expected: Expected | None = None,
    seconds: float = 0.0,
) -> Blob | None:
    """Change an object with a conditional write; if another writer was first, call the step again.

    :param step: receives the stored object (``None``: nothing) and returns the new content, or ``None`` for no change.
        It may be called again after its own write, if the answer was lost and other writers changed the result, so it
        must be repeatable.
    :param expected: given to the first call of the step instead of the stored object. The condition of the write shows
        whether it was right; if not, or if the step fails or wants no change, the object is read.
    :param billed: whether money was spent; used in the error after failed attempts.
    :param seconds: maximum time for attempts. 0: `UPDATE_SECONDS`.
    :returns: the stored object.
    :raises StorageError: the store failed.
    """
    give_up, patience = time.monotonic() + (seconds := seconds or UPDATE_SECONDS), 0.01
    if expected is not None and (stored := _as_expected(store, key, step, expected.blob)) is not None:
        return stored
    while True:
        found = store.read(key)
        wanted = step(found)
        if wanted is None or (found is not None and found.data == wanted):
            return found
        written = _written(store, key, wanted, found)
        if written is not None and written.ours:
            return written.blob
        if time.monotonic() > give_up:
            raise StorageError(
                f"{key} under {store.uri} could not be updated in {seconds:.0f} s: others kept writing it.",
                billed=billed,
                hint="A retry continues.",
            )
        time.sleep(random.uniform(0.0, patience))
        patience = min(1.0, patience * 2)


def _as_expected(
    store: Store, key: str, step: Callable[[Blob | None], bytes | None], expected: Blob | None
) -> Blob | None:
    """Return the stored object after a change of the expected one; ``None`` if it has to be read."""
    try:
        wanted = step(expected)
    except GeminiImageError:  # perhaps another object is stored
        return None
    if wanted is None or (expected is not None and expected.data == wanted):
        return None
    written = _written(store, key, wanted, expected)
    return written.blob if written is not None and written.ours else None


def _written(store: Store, key: str, data: bytes, over: Blob | None) -> Stored | None:
    """Return what is stored after a conditional write; ``None``: nothing."""
    return _created_or_found(store, key, data) if over is None else replace_or_read(store, key, data, over.version)


def _created_or_found(store: Store, key: str, data: bytes) -> Stored:
    """Like `create_or_read`, but without an error if others have written: they may have changed this write's result."""
    stored, failure = _created(store, key, data, data.__eq__)
    if stored is None:
        assert failure is not None
        raise failure
    return stored


def _attempted(write: Callable[[], str | None]) -> tuple[str | None, StorageError | None]:
    """Return the version of a write, or its failure. A failure does not prove that nothing was written."""
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
