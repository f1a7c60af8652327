"""Records: one for every submission that may have cost money.

Invariants:

- A record is created exclusively before the request that may cost money is sent. An attempt that loses this race reads
  again. So a batch may rely on one listing of its items: what another attempt has created since then makes the create
  fail.
- Only the record with the highest number of an item decides. Records are never moved or reused. A person may remove
  one; its tombstone is written first (`Ledger.add_tombstone`).
- States only move forward: ``intent`` → ``submitted`` | ``answered`` → ``failed`` | ``landed``. A stored image, or a
  late answer of the gateway, replaces a failure that another attempt recorded. The only step back removes an answer
  that belongs to another record; the attempt that wrote it performs this step.
- A record that cannot be read, or that a newer version wrote, is an error that names it, never "no record".
- A record contains no secret except the link of an ``answered`` one. That link is the only way to fetch the paid image,
  and it is removed when the image is stored.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import Item, is_record_key, record_key, record_number, tombstone_key
from airflow_provider_geminiimg.core.ledger.open_index import OpenIndex, is_open
from airflow_provider_geminiimg.core.ledger.record import Record, State, dump_record, parse_record
from airflow_provider_geminiimg.core.ledger.record_values import MAX_BYTES, MAX_NEW_BYTES
from airflow_provider_geminiimg.core.ledger.summaries import COUNT_SECONDS, Summaries
from airflow_provider_geminiimg.core.storage import Blob, Expected, Store, create_or_read, update
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, LedgerError

_MAX_WRITTEN = 1000  # records of about 2 KB

_NEXT: dict[State, frozenset[State]] = {
    "intent": frozenset({"intent", "submitted", "answered", "landed", "failed"}),
    "submitted": frozenset({"submitted", "landed", "failed"}),
    "answered": frozenset({"answered", "landed", "failed"}),
    "landed": frozenset({"landed"}),
    "failed": frozenset({"failed", "submitted", "answered", "landed"}),
}
_TAKEN_BACK: dict[State, frozenset[State]] = {
    **_NEXT,
    **{state: _NEXT[state] | {"intent"} for state in ("submitted", "answered")},
}


@dataclass(frozen=True)
class StoredRecord:
    """A record as read from the store.

    :param version: the store's version, for a conditional write.
    :param age: seconds since the last write, by the store's clock, never below 0.
    :param size: bytes.
    """

    record: Record
    version: str
    age: float
    size: int = 0


def new_claim() -> str:
    """Return a random identifier for the claim of one attempt."""
    return secrets.token_hex(16)


def process_identity() -> dict[str, Any]:
    """Return host, process id and time of a claim, for a person who reads the record."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "claimed_at": time.time()}


class Ledger:
    """The records under one root.

    :param store: the root's store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.attempt = new_claim()  # distinguishes this attempt's file name claims from those of others
        self.summaries = Summaries(store, self._record)
        self.open_index = OpenIndex(store, partial(self.summaries.count, seconds=COUNT_SECONDS))
        self._ahead: dict[str, int] = {}  # the highest number of an item when it was listed; 0: no record
        self._written: dict[str, tuple[Record, Blob]] = {}  # open records as this attempt wrote them
        self._writing = threading.Lock()

    def read(self, key: str) -> StoredRecord | None:
        """Read the record at `key`; ``None`` only if the store confirms that there is none.

        :raises LedgerError: the record cannot be read, or a newer version of this package wrote it.
        :raises StorageError: the store failed.
        """
        blob = self.store.read(key, MAX_BYTES)
        return None if blob is None else self._found(key, blob)

    def _record(self, key: str) -> Record | None:
        found = self.read(key)
        return None if found is None else found.record

    def latest(self, item: Item) -> StoredRecord | None:
        """Read the record that decides for `item`: the one with the highest number.

        :raises LedgerError: it cannot be read.
        :raises StorageError: the store failed.
        """
        ahead = self._ahead.pop(item.path, None)
        if ahead == 0:  # see `is_known_absent`
            return None
        if ahead is not None and (found := self.read(record_key(item, ahead))) is not None:
            return found
        numbers = self.numbers(item)
        if not numbers:
            return None
        key = record_key(item, numbers[-1])
        found = self.read(key)
        if found is None:
            raise LedgerError(
                f"Record {key} under {self.store.uri} is listed but cannot be read.",
                hint="Nothing was sent. Restore the record, or find out which process removes objects under the root.",
            )
        return found

    def prefetch(self, item: Item, names: Iterable[str]) -> None:
        """List the records of some items of this item's task instance in one request, for the next `latest` of each.

        What was listed is used once for each item. If another attempt has created a record since then, also the first
        one of an item, the exclusive create of the next submission fails, and the next `latest` asks the store.

        :param names: the items.
        :raises StorageError: the store failed.
        """
        task_instance = item.path.rpartition("/")[0]
        ahead = dict.fromkeys((f"{task_instance}/{name}" for name in names), 0)
        for key in self.store.keys(f"{task_instance}/"):
            folder, _, name = key.rpartition("/")
            if folder in ahead and (number := record_number(name)):
                ahead[folder] = max(number, ahead[folder])
        self._ahead.update(ahead)

    def is_known_absent(self, item: Item) -> bool:
        """Whether the next `latest` of `item` returns ``None`` without a request."""
        return self._ahead.get(item.path) == 0

    def numbers(self, item: Item) -> list[int]:
        """Return the numbers of `item`'s records in ascending order."""
        return self.numbers_in(item.path)

    def numbers_in(self, folder: str) -> list[int]:
        """Return the numbers of the records in an item's folder in ascending order."""
        names = (key.rsplit("/", 1)[1] for key in self.store.keys(folder + "/"))
        return sorted(filter(None, map(record_number, names)))

    def create(self, record: Record) -> StoredRecord | None:
        """Claim `record.key` exclusively; return ``None`` if another attempt was first.

        If the answer of the create is lost, or it fails after it was stored, the record is recognised by its claim.

        :raises BadRequestError: the record is too large to be read again.
        :raises LedgerError: another record exists and cannot be read.
        :raises StorageError: the store failed, and the record does not exist; or a key is too long for it.
        """
        self.store.check_key(tombstone_key(record.key, record.claim))  # longer than whatever else goes by this one
        data = dump_record(record)
        if len(data) > MAX_NEW_BYTES:
            raise BadRequestError(
                f"The request is too long for a record: {len(data)} bytes; at most {MAX_NEW_BYTES} are allowed.",
                hint="Shorten variant, model, the addresses of input images or output_path; or, if [geminiimg] "
                "record_prompts is set, the prompt.",
            )
        if is_open(record):
            self.open_index.add(record)
        stored = create_or_read(
            self.store,
            record.key,
            data,
            is_ours=lambda data: parse_record(self.store.uri, record.key, data).claim == record.claim,
        )
        if not stored.ours:
            self.open_index.discard(record)
            return None
        found = self._found(record.key, stored.blob)
        self._remember(found.record, stored.blob)
        return found

    def change(self, key: str, step: Callable[[Record], Record | None], *, takes_back: bool = False) -> Record:
        """Move a record forward: `step` receives the stored record and returns the new one, or ``None`` for no change.

        The write is conditional: if another writer was first, `step` is called again with the newly stored record.

        :param takes_back: allow the removal of a recorded answer.
        :raises LedgerError: the record does not exist, or the step would move its state back.
        :raises StorageError: the store failed.
        """
        last: list[Record] = []
        entries = self.open_index.accompany()

        def stepped(blob: Blob | None) -> bytes | None:
            if blob is None:
                raise LedgerError(
                    f"Record {key} under {self.store.uri} does not exist.", hint="Restore it before a retry."
                )
            if written is not None and blob is written[1]:
                record = written[0]  # parsing it again would take longer than everything else here
            else:
                record = parse_record(self.store.uri, key, blob.data)
            wanted = step(record)
            last[:] = [record if wanted is None else wanted]
            if wanted is None or wanted == record:
                return None
            if wanted.state not in (_TAKEN_BACK if takes_back else _NEXT)[record.state]:
                raise LedgerError(f"Record {key} is {record.state} and cannot become {wanted.state}.")
            entries.step(record, wanted)
            return dump_record(wanted)

        with self._writing:
            written = self._written.pop(key, None)
        expected = None if written is None else Expected(written[1])
        blob = update(self.store, key, stepped, billed=Billed.UNKNOWN, expected=expected)
        entries.end(last[0])
        if blob is not None:
            self._remember(last[0], blob)
        return last[0]

    def _remember(self, record: Record, blob: Blob) -> None:
        """Spare the next `change` of this attempt the read, in most cases."""
        if not is_open(record):
            return
        with self._writing:
            self._written[record.key] = (record, blob)
            if len(self._written) > _MAX_WRITTEN:
                del self._written[next(iter(self._written))]

    def add_tombstone(self, record: Record) -> None:
        """Write a tombstone before a person removes this record. Only a record with a tombstone may be missing."""
        said = {"record": record.key, "claim": record.claim, "state": record.state, "job_id": record.job_id}
        key = tombstone_key(record.key, record.claim)
        create_or_read(self.store, key, json.dumps({**said, "at": time.time()}).encode())

    def has_tombstone(self, key: str, claim: str) -> bool:
        """Return whether a person removed the record with this claim."""
        return is_record_key(key) and self.store.read(tombstone_key(key, claim)) is not None

    def _found(self, key: str, blob: Blob) -> StoredRecord:
        return StoredRecord(parse_record(self.store.uri, key, blob.data), blob.version, blob.age, len(blob.data))
