"""Records: one for every submission that may have cost money.

Invariants:

- A record is created exclusively before the request that may cost money is sent. An attempt that loses this race reads
  again.
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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from airflow_provider_geminiimg.core.ledger.layout import Item, is_record_key, record_key, record_number, tombstone_key
from airflow_provider_geminiimg.core.ledger.open_index import OpenIndex, is_open
from airflow_provider_geminiimg.core.ledger.record_values import (
    MAX_BYTES,
    MAX_NEW_BYTES,
    UNREADABLE,
    Seconds,
    UnixTime,
    is_copy,
    is_cost,
    is_manifest,
    is_request,
    parsed,
    sane_cost,
    with_sane_cost,
)
from airflow_provider_geminiimg.core.storage import Blob, Expected, Store, create_or_read, update
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError, from_dict

SCHEMA = 1
_MAX_WRITTEN = 1000  # records of about 2 KB

State = Literal["intent", "submitted", "answered", "landed", "failed"]
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
class Destination:
    """The destination of an image: a directory URI, and a file name without its extension."""

    directory: str
    stem: str


@dataclass(frozen=True)
class Record:
    """One submission that may have cost money.

    :param key: key of the record, relative to the root.
    :param n: number of the submission within its item, from 1.
    :param claim: random; identifies the attempt that created the record.
    :param generation: ``ti.max_tries`` when it was claimed or landed. A larger value later means a Clear.
    :param answer_within: seconds from the record's last write until the answer is overdue (read timeout + 60).
    :param wire_model: the id that was sent for `model`; a poll needs it.
    :param request_fields: the gateway-neutral request fields, without the prompt.
    :param inputs: address (without query) and SHA-256 of each input image.
    :param destination: the requested destination.
    :param suffix: added to the file name if an earlier image of the same item has, or may still get, the name.
    :param resubmission: paid again after an unknown outcome, in this generation.
    :param links: result links, only while ``answered``.
    :param spooled: keys of inline results under the root, only while ``answered``.
    :param extra_jobs: further jobs that another concurrent attempt paid for.
    :param outcome: the last error, from `GeminiImageError.to_dict`.
    :param manifest: the stored images.
    :param copies: manifests of copies that a Clear with another destination requested.
    :param asked: the last requested destination; ``None`` if there is only one, or in records of earlier versions.
    :param reused_from: key of another task's record whose image was copied; nothing was paid for this record.
    :param copied_from: keys of the records that the image of `reused_from` was copied from, nearest first. Any of them
        may have been removed.
    :param told: token of the task state store that has the claim of this record; ``None`` if Airflow has no such store,
        or in records of earlier versions.
    :param regenerate: paid because a Clear requested a new image in place of a stored one, in this generation.
    :param decided_by: number of the older record that a Clear of this generation returned to; ``None`` if this record
        decides.
    :param api_host: host of the base URL that the request was sent to; ``None`` if unknown, then nothing is compared.
    :param key_digest: `GatewayConnection.key_digest` of the API key; ``None`` if unknown, then nothing is compared.
    :param buy_again: a person decided that the next attempt pays once, whether or not this submission was charged.
    """

    key: str
    n: int
    state: State
    claim: str
    generation: int
    host: str
    pid: int
    claimed_at: UnixTime
    answer_within: Seconds
    conn_id: str
    gateway: str
    model: str
    wire_model: str
    operation: str
    fingerprint: str
    request_fields: dict[str, Any]
    prompt_sha256: str
    inputs: list[dict[str, str]]
    destination: Destination
    cost: dict[str, Any]
    expected_seconds: Seconds
    schema: int = SCHEMA
    suffix: str = ""
    prompt: str | None = field(default=None, repr=False)
    resubmission: bool = False
    job_id: str | None = None
    submitted_at: UnixTime | None = None
    landed_at: UnixTime | None = None
    deferrals: int = 0
    links: list[str] = field(default_factory=list, repr=False)
    spooled: list[str] = field(default_factory=list)
    extra_jobs: list[str] = field(default_factory=list)
    outcome: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None
    copies: list[dict[str, Any]] = field(default_factory=list)
    asked: Destination | None = None
    reused_from: str | None = None
    copied_from: list[str] = field(default_factory=list)
    told: str | None = None
    regenerate: bool = False
    decided_by: int | None = None
    api_host: str | None = None
    key_digest: str | None = None
    buy_again: bool = False

    @property
    def error(self) -> GeminiImageError | None:
        """The last error, if any."""
        return None if self.outcome is None else from_dict(self.outcome)


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


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
        self.open_index = OpenIndex(store)
        self._ahead: dict[str, int] = {}
        self._written: dict[str, Blob] = {}  # open records as this attempt wrote them
        self._writing = threading.Lock()

    def read(self, key: str) -> StoredRecord | None:
        """Read the record at `key`; ``None`` only if the store confirms that there is none.

        :raises LedgerError: the record cannot be read, or a newer version of this package wrote it.
        :raises StorageError: the store failed.
        """
        blob = self.store.read(key, MAX_BYTES)
        return None if blob is None else self._found(key, blob)

    def latest(self, item: Item) -> StoredRecord | None:
        """Read the record that decides for `item`: the one with the highest number.

        :raises LedgerError: it cannot be read.
        :raises StorageError: the store failed.
        """
        ahead = self._ahead.pop(item.path, None)
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

    def prefetch(self, item: Item) -> None:
        """List the records of all items of this item's task instance in one request, for the next `latest` of each.

        A prefetched number is used once, and only if its record exists; a missing record is always confirmed by the
        store. If a record has a newer successor by then, the exclusive create of the next submission fails.

        :raises StorageError: the store failed.
        """
        for key in self.store.keys(f"{item.path.rpartition('/')[0]}/"):
            folder, _, name = key.rpartition("/")
            if number := record_number(name):
                self._ahead[folder] = max(number, self._ahead.get(folder, 0))

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
        data = _RECORD.dump_json(record)
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
            is_ours=lambda data: self._parse(record.key, data).claim == record.claim,
        )
        if not stored.ours:
            self.open_index.remove(record)
            return None
        self._remember(record, stored.blob)
        return self._found(record.key, stored.blob)

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
            record = self._parse(key, blob.data)
            wanted = step(record)
            last[:] = [record if wanted is None else wanted]
            if wanted is None or wanted == record:
                return None
            if wanted.state not in (_TAKEN_BACK if takes_back else _NEXT)[record.state]:
                raise LedgerError(f"Record {key} is {record.state} and cannot become {wanted.state}.")
            entries.step(record, wanted)
            return _RECORD.dump_json(wanted)

        with self._writing:
            written = self._written.pop(key, None)
        expected = None if written is None else Expected(written)
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
            self._written[record.key] = blob
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
        return StoredRecord(self._parse(key, blob.data), blob.version, blob.age, len(blob.data))

    def _parse(self, key: str, data: bytes) -> Record:
        where = f"Record {key} under {self.store.uri}"
        values = parsed(where, data)
        schema = values.get("schema") if isinstance(values, Mapping) else None
        if not isinstance(schema, int) or isinstance(schema, bool) or schema > SCHEMA:
            raise LedgerError(
                f"{where} has schema {schema!r:.40}; this version reads up to {SCHEMA}.",
                hint="Nothing was sent. Run the version of airflow-provider-geminiimg that wrote it.",
            )
        try:
            record = _RECORD.validate_python(values)
        except ValidationError as error:
            raise _no_record(where, {str(each["loc"][0]) for each in error.errors(include_input=False)}) from None
        if wrong := _wrong_fields(record):
            raise _no_record(where, wrong)
        if record.state == "landed" and record.manifest is None:
            raise LedgerError(f"{where} has the state landed, but contains no image.", hint=UNREADABLE)
        if record.key != key or not key.endswith(f"/{record.n}.json"):
            raise LedgerError(f"{where} contains the key or number of another record.", hint=UNREADABLE)
        return _with_sane_costs(record)


def _with_sane_costs(record: Record) -> Record:
    """Return the record without implausible amounts, which earlier versions accepted from gateways."""
    manifest = None if record.manifest is None else with_sane_cost(record.manifest)
    copies = [{**copy, "manifest": with_sane_cost(copy["manifest"])} for copy in record.copies]
    return replace(record, cost=sane_cost(record.cost), manifest=manifest, copies=copies)


def _wrong_fields(record: Record) -> set[str]:
    """Return the names of fields with invalid values."""
    fits = {
        "outcome": _is_outcome(record),
        "inputs": all({"uri", "sha256"} <= each.keys() for each in record.inputs),
        "cost": is_cost(record.cost),
        "request_fields": is_request(record.request_fields),
        "manifest": record.manifest is None or is_manifest(record.manifest),
        "copies": all(map(is_copy, record.copies)),
    }
    return {name for name, fit in fits.items() if not fit}


def _is_outcome(record: Record) -> bool:
    try:
        _ = record.error
    except (TypeError, ValueError):
        return False
    return True


def _no_record(where: str, fields: Collection[str]) -> LedgerError:
    return LedgerError(f"{where} has invalid fields: {', '.join(sorted(fields))}.", hint=UNREADABLE)


def with_error(record: Record, error: GeminiImageError, state: State | None = None) -> Record:
    """Return `record` with an error, and optionally in another state."""
    return replace(record, outcome=error.to_dict(), state=state or record.state)
