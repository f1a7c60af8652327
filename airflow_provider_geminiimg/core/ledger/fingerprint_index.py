"""Index of fingerprints: for each image request of a DAG, the record that has the image or is about to pay for it.

Invariants: an entry names a record. It is created exclusively, or replaced conditionally on the version that was read.
Every write of an entry is unique, so that a stale version never matches. An entry that cannot be read is an error,
never "no entry".
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from airflow_provider_geminiimg.core.ledger.layout import is_record_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.storage import Blob, Store, create_or_read, replace_or_read
from airflow_provider_geminiimg.exceptions import LedgerError


@dataclass(frozen=True)
class Entry:
    """An entry as read from the store.

    :param record: key of the record that has the image, or will have it.
    :param claim: claim of the attempt that wrote the entry.
    :param version: the store's version, for a conditional write.
    :param age: seconds since the last write, by the store's clock, never below 0.
    """

    record: str
    claim: str
    version: str
    age: float


def read_entry(store: Store, key: str) -> Entry | None:
    """Read the entry at `key`; ``None`` only if the store confirms that there is none.

    :raises LedgerError: the entry cannot be read.
    :raises StorageError: the store failed.
    """
    blob = store.read(key)
    return None if blob is None else parsed_entry(store, key, blob)


def parsed_entry(store: Store, key: str, blob: Blob) -> Entry:
    """Parse an entry.

    :raises LedgerError: it cannot be read.
    """
    try:
        values = json.loads(blob.data)
        record, claim = values["record"], values["claim"]
        if not isinstance(claim, str) or not is_record_key(record):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LedgerError(
            f"The index entry {key} under {store.uri} can't be read.",
            hint="Nothing was sent. Restore the entry, or remove it while no task is making this image.",
        ) from None
    return Entry(record, claim, blob.version, blob.age)


def _names(entry: Entry, record: Record) -> bool:
    return (entry.record, entry.claim) == (record.key, record.claim)


def write_entry(store: Store, key: str, record: Record, over: Entry | None) -> bool:
    """Let the entry at `key` name `record`; return ``False`` if another writer changed it after it was read.

    :param over: the entry as it was read, ``None`` if there was none.
    :raises LedgerError: another writer changed it, and it cannot be read.
    :raises StorageError: the store failed.
    """
    data = json.dumps({"record": record.key, "claim": record.claim}).encode()
    stored = create_or_read(store, key, data) if over is None else replace_or_read(store, key, data, over.version)
    return stored is not None and (stored.ours or _names(parsed_entry(store, key, stored.blob), record))


def point_to(store: Store, key: str, record: Record, *, instead_of: str | None = None) -> None:
    """Let the entry at `key` name `record`, unless another writer changes it at the same time.

    :param instead_of: write only if the entry names this record now, or does not exist.
    :raises LedgerError: the existing entry cannot be read.
    :raises StorageError: the store failed.
    """
    if write_entry(store, key, record, None):
        return
    found = read_entry(store, key)
    if found is not None and found.record != record.key and instead_of in (None, found.record):
        write_entry(store, key, record, found)
