"""Index of open records: what collects and lists read instead of all records.

A record is open if its image may still have to be stored, or a person may have to decide (`is_open`). Every open record
has an entry, which only names it. Invariants:

- A record decides, never its entry. An entry without an open record is stale, and harmless.
- The entry is written before the record is created, becomes open again, or changes in what its summary counts; if it
  can't be written, nothing is sent. It is removed after the record has ended and was counted (`summaries`); if that
  fails, it stays. `Ledger.create` and `Ledger.change` do this, so that no caller can forget it. A process that is
  killed in between leaves a stale entry, never a record that has neither an entry nor a place in its summary.
- An entry is written once, under a key of its own, and is never changed: the key depends on the claim of the record, or
  is random if the record becomes open again, and in a batch. So whoever removes an entry can't remove a later one.
- In a batch one entry stands for up to `CHUNK_ITEMS` items, because two more requests for each image are too many. It
  is written before the first of them is claimed, and again under another key if it is older than `RENEW_SECONDS` when
  the next one is claimed. It is removed after all its items have ended and all records that were created under it.
- Only an entry older than `STALE_SECONDS`, by the store's clock, is removed for its record's sake: a younger one may
  belong to a record that is about to be created.
- The index counts only with the marker of its namespace, which says that each open record has an entry and each ended
  one is counted, and if each entry can be read. Otherwise all records are read. The marker is written after all of them
  were read, and together with the identity of a new root. It holds for that identity and URI only: after a ledger was
  restored or moved, all records are read once.

What remains: versions of this package without the index write no entries and count nothing. A record that such a
version leaves open while the marker exists, or whose entry somebody removes, is not found through the index until it is
rebuilt (`jobs reindex`). So is the record of a machine that slept for a day between the entry and the record. Its task
finds it as before.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import (
    LEDGER,
    ROOT_KEY,
    complete_key,
    is_record_key,
    open_chunk_key,
    open_key,
    task_instance_of,
)
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.summary_parts import ENDED, group_of
from airflow_provider_geminiimg.core.storage import Blob, Store, create_or_read, encode_segment, update
from airflow_provider_geminiimg.exceptions import GeminiImageError, LedgerError

CHUNK_ITEMS = 64
RENEW_SECONDS = 1800.0
STALE_SECONDS = 86400.0
VERSION = 3  # 1: without summaries, 2: with summaries of version 1
_MAX_LISTS = 5  # for entries that are replaced while they are read
_READS = 8  # entries that are read concurrently
_CONNECTION = re.compile("//[^@/]*@")  # in the URI of a root; it does not distinguish roots


Count = Callable[[Iterable[Record]], None]
"""Counts records that have ended, see `summaries.Summaries.count`."""


def is_open(record: Record) -> bool:
    """Return whether a record may need a collect or a person: it has not ended, or it has extra jobs."""
    return record.state not in ENDED or bool(record.extra_jobs)


def _needs_new_entry(before: Record, after: Record) -> bool:
    """Return whether a change needs a new entry: the old ones of an ended record may be removed at any moment."""
    if before.state not in ENDED:
        return False
    more = set(after.extra_jobs) - set(before.extra_jobs)
    return after.state not in ENDED or bool(more) or group_of(before, before.state) != group_of(after, after.state)


class OpenIndex:
    """Writes and removes the entries of one attempt. The methods block, and may be called by several threads.

    :param store: the root's store.
    :param count: counts ended records in their summaries.
    """

    def __init__(self, store: Store, count: Count) -> None:
        self._store = store
        self._count = count
        self._chunks: dict[str, _Chunk] = {}

    def cover(self, items: Sequence[str]) -> None:
        """Let one entry stand for up to `CHUNK_ITEMS` items of a batch. Writes nothing yet.

        :param items: their names, in the order in which they are claimed.
        """
        for start in range(0, len(items), CHUNK_ITEMS):
            names = [encode_segment(item) for item in items[start : start + CHUNK_ITEMS]]
            self._chunks.update(dict.fromkeys(names, _Chunk(self, names)))

    def end(self, item: str) -> None:
        """Note that nothing more of an item is claimed. The entry is removed after its last item and record.

        :param item: its name.
        """
        chunk = self._chunks.get(encode_segment(item))
        if chunk is not None:
            chunk.end(encode_segment(item))

    def add(self, record: Record) -> None:
        """Write the entry of a record that is about to be created.

        :raises StorageError: the store failed.
        """
        chunk = self._chunks.get(_item_of(record.key))
        if chunk is not None and chunk.add(record.key):
            return
        if not self.write(open_key(record.key, record.claim), {"record": record.key}):
            self.add_again(record.key)  # the existing entry may be about to be removed

    def add_again(self, key: str) -> str:
        """Write another entry of the record at `key`, and return its key.

        :raises StorageError: the store failed.
        """
        entry = open_key(key, secrets.token_hex(16))
        self.write(entry, {"record": key})
        return entry

    def discard(self, record: Record) -> None:
        """Remove the entry of a record that was not created. If that fails, it stays."""
        chunk = self._chunks.get(_item_of(record.key))
        if chunk is None or not chunk.discard(record.key):
            self.delete([open_key(record.key, record.claim)])

    def settle(self, record: Record, entry: str | None = None) -> None:
        """Count a record that has ended, and remove its entry. If that fails, the entry stays.

        :param entry: key of a further entry of the record.
        """
        chunk = self._chunks.get(_item_of(record.key))
        if entry is None and chunk is not None and chunk.settle(record):
            return
        if self.counted([record]):
            self.delete([open_key(record.key, record.claim), *([] if entry is None else [entry])])

    def accompany(self) -> RecordChange:
        """Return what accompanies one change of a record."""
        return RecordChange(self)

    def write(self, key: str, what: dict[str, Any]) -> bool:
        """Create an entry; return ``False`` if another one has its key.

        :raises StorageError: the store failed.
        """
        data = json.dumps({**what, "at": time.time(), "id": secrets.token_hex(8)}).encode()
        return create_or_read(self._store, key, data).ours

    def counted(self, records: Collection[Record]) -> bool:
        """Count ended records, and return whether that succeeded."""
        with contextlib.suppress(Exception):  # the record counts; its entry stays
            self._count(records)
            return True
        return False

    def delete(self, keys: Iterable[str]) -> None:
        """Remove entries. If that fails, they stay."""
        for key in keys:
            with contextlib.suppress(GeminiImageError):
                self._store.delete(key)


class RecordChange:
    """One change of a record: its steps, and its end.

    :param index: of the attempt.
    """

    def __init__(self, index: OpenIndex) -> None:
        self._index = index
        self._entry: str | None = None
        self._ends = False

    def step(self, before: Record, after: Record) -> None:
        """Write an entry before `after` is written, if it needs one. A change may have several steps.

        :raises StorageError: the store failed.
        """
        if self._entry is None and _needs_new_entry(before, after):
            self._entry = self._index.add_again(after.key)
        self._ends = self._entry is not None or self._ends or (is_open(before) and not is_open(after))

    def end(self, record: Record) -> None:
        """Count the record and remove the entry after the write, if the change ended the record.

        :param record: as it is stored now.
        """
        if self._ends and not is_open(record):
            self._index.settle(record, self._entry)


class _Chunk:
    """Some items of a batch, and the records that were created under their entry.

    The entry is removed when all of them have ended and were counted together.
    """

    def __init__(self, index: OpenIndex, items: Sequence[str]) -> None:
        self._index = index
        self._items = list(items)
        self._pending = set(items)
        self._open: set[str] = set()
        self._ended: dict[str, Record] = {}
        self._task_instance: str | None = None
        self._key: str | None = None
        self._written_at = 0.0
        self._lock = threading.Lock()

    def add(self, key: str) -> bool:
        """Write the entry if it is missing or old; return ``False`` if the record is another task instance's."""
        with self._lock:
            now, task_instance = time.time(), task_instance_of(key)
            if self._task_instance not in (None, task_instance):
                return False
            if self._key is None or abs(now - self._written_at) > RENEW_SECONDS:
                self._renew(task_instance)
                self._task_instance, self._written_at = task_instance, now
            self._open.add(key)
            return True

    def _renew(self, task_instance: str) -> None:
        before, new = self._key, open_chunk_key(task_instance, secrets.token_hex(16))
        self._index.write(new, {"task_instance": task_instance, "items": self._items})
        self._key = new
        if before is not None:
            self._index.delete([before])

    def discard(self, key: str) -> bool:
        """Note that a record was not created; return ``False`` if the entry is not that of its task instance."""
        with self._lock:
            known = key in self._open
            self._open.discard(key)
            self._clean()
            return known

    def settle(self, record: Record) -> bool:
        """Note that a record has ended; return ``False`` if it was not created under the entry."""
        with self._lock:
            if record.key not in self._open:
                return False
            self._open.remove(record.key)
            self._ended[record.key] = record
            self._clean()
            return True

    def end(self, item: str) -> None:
        with self._lock:
            self._pending.discard(item)
            self._clean()

    def _clean(self) -> None:
        if self._key is not None and not self._pending and not self._open and self._index.counted(self._ended.values()):
            self._index.delete([self._key])
            self._key = None
            self._ended.clear()


@dataclass(frozen=True)
class OpenEntry:
    """An entry as read from the store.

    :param key: its key.
    :param age: seconds since it was written, by the store's clock.
    :param record: key of the record that it names; ``None`` for the items of a batch.
    :param task_instance: of the batch, as a part of keys.
    :param items: folders of the records of the batch's items.
    """

    key: str
    age: float
    record: str | None = None
    task_instance: str = ""
    items: frozenset[str] = frozenset()


def read_open_entry(store: Store, key: str) -> OpenEntry | None:
    """Read the entry at `key`; ``None`` if it was removed.

    :raises LedgerError: it can't be read.
    :raises StorageError: the store failed.
    """
    blob = store.read(key)
    if blob is None:
        return None
    try:
        values = json.loads(blob.data)
        record, task_instance, items = (values.get(name) for name in ("record", "task_instance", "items"))
        if isinstance(record, str) and is_record_key(record):
            return OpenEntry(key, blob.age, record)
        folders = [f"{LEDGER}/{task_instance}/{item}" for item in items]
        if not folders or not all(is_record_key(f"{folder}/1.json") for folder in folders):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise LedgerError(f"The entry {key} under {store.uri} can't be read.") from None
    return OpenEntry(key, blob.age, None, str(task_instance), frozenset(folders))


def read_open_entries(store: Store, prefix: str, most: int | None = None) -> tuple[list[OpenEntry], list[str]]:
    """Read the entries whose keys begin with `prefix`, and the keys of those that can't be read.

    An entry may be replaced by one with another key after it was listed. So the keys are listed again if a listed entry
    no longer exists.

    :param most: maximum number of entries. Default: all.
    :raises StorageError: the store failed.
    """
    found: dict[str, OpenEntry | LedgerError | None] = {}
    with ThreadPoolExecutor(_READS) as pool:
        for _ in range(_MAX_LISTS):
            new = [key for key in itertools.islice(store.keys(prefix), most) if key not in found]
            read = dict(zip(new, pool.map(lambda key: _entry_or_error(store, key), new), strict=True))
            found.update(read)
            if None not in read.values():
                break
    entries = [entry for entry in found.values() if isinstance(entry, OpenEntry)]
    return entries, [key for key, entry in found.items() if isinstance(entry, LedgerError)]


def _entry_or_error(store: Store, key: str) -> OpenEntry | LedgerError | None:
    try:
        return read_open_entry(store, key)
    except LedgerError as error:
        return error


def root_of(store: Store) -> str:
    """Return what distinguishes this root from others, and from the same root after another ledger was put there.

    :raises StorageError: the store failed.
    """
    blob = store.read(ROOT_KEY)
    place = _CONNECTION.sub("//", store.uri).encode()
    return "" if blob is None else hashlib.sha256(place + b"\n" + blob.data).hexdigest()[:32]


def is_complete(store: Store, namespace: str) -> bool:
    """Return whether the entries and summaries of a namespace are complete.

    :raises StorageError: the store failed.
    """
    blob = store.read(complete_key(namespace))
    return blob is not None and _is_marker(blob, root_of(store))


def mark_complete(store: Store, namespace: str, root: str) -> None:
    """Say that the entries and summaries of a namespace are complete.

    :param root: from `root_of`, before the first record was read.
    :raises StorageError: the store failed.
    """
    data = json.dumps({"version": VERSION, "root": root, "at": time.time()}).encode()
    update(store, complete_key(namespace), lambda blob: None if blob is not None and _is_marker(blob, root) else data)


def _is_marker(blob: Blob, root: str) -> bool:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        values = json.loads(blob.data)
        return bool(values["version"] == VERSION and values["root"] == root)
    return False


def _item_of(key: str) -> str:
    """The name of a record's item, as a segment of keys."""
    return key.split("/")[-2]
