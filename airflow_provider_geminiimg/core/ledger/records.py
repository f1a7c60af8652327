"""What has been paid for: one record for every submission that may have cost money.

What must stay true:

- A record is created exclusively before the request that may cost money is sent. Who loses the race reads again.
- Only the record with the highest number of an item decides. Records are never moved or reused. A person may have one
  removed; what excuses its absence is written down first (`Ledger.add_tombstone`).
- States only move forward: ``intent`` → ``submitted`` | ``answered`` → ``failed`` | ``landed``. An image that is in
  storage, or an answer of the gateway that comes after all, outweighs a failure that somebody else wrote down. The one
  step back is of an answer that turns out to be another record's: whoever wrote it down takes it out again.
- A record that can't be read, or that a newer version wrote, is an error that names it, never "no record".
- Nothing in a record is secret but the link of an ``answered`` one: it is the only handle to an image that was paid
  for, and it is taken out when the image lands.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from airflow_provider_geminiimg.core.ledger.layout import Item, is_record_key, record_key, record_number, tombstone_key
from airflow_provider_geminiimg.core.ledger.record_values import (
    MAX_BYTES,
    MAX_NEW_BYTES,
    Seconds,
    UnixTime,
    is_copy,
    is_cost,
    is_manifest,
    is_plain,
    is_request,
)
from airflow_provider_geminiimg.core.redaction.ranges import AMOUNT
from airflow_provider_geminiimg.core.storage import Blob, Store, create_or_read, update
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError, from_dict

SCHEMA = 1

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
    """Where an image is meant to land: a directory URI, and a file name without its extension."""

    directory: str
    stem: str


@dataclass(frozen=True)
class Record:
    """One submission that may have cost money.

    :param key: where the record lies, relative to the root.
    :param n: number of the submission within its item, from 1.
    :param claim: random; tells the attempt that created the record.
    :param generation: ``ti.max_tries`` when it was claimed or landed: a larger one later means a Clear.
    :param answer_within: seconds after the record's last write by which the answer must be there (read timeout + 60).
    :param wire_model: the id that was sent for `model`; a poll needs it.
    :param request_fields: the neutral fields that were asked for, without the prompt.
    :param inputs: address (without query) and SHA-256 of each input image.
    :param destination: where the image is meant to land, as it was asked for.
    :param suffix: added to the file name where an earlier image of the same item keeps, or may still take, the name.
    :param resubmission: bought again after an unknown outcome, in this generation.
    :param links: result links, only while ``answered``.
    :param spooled: keys of inline results waiting under the root, only while ``answered``.
    :param extra_jobs: further jobs that another living attempt paid for.
    :param outcome: what went wrong last, as `GeminiImageError.to_dict` gives it.
    :param manifest: what landed.
    :param copies: manifests of copies that a clear with another destination asked for.
    :param asked: where the image was asked for last; ``None``: there is one place, or an earlier version wrote this.
    :param reused_from: key of another task's record whose image was copied: nothing was paid for this one.
    :param copied_from: keys of the records that the image of `reused_from` was copied from in turn, the nearest first:
        any of them may be removed.
    :param told: the token of the task state store that is told of this record; ``None``: Airflow has no such store, or
        a version of this package wrote the record that did not note it.
    :param regenerate: bought because a Clear asked for another image than what had landed, in this generation.
    :param decided_by: number of the older record that a Clear of this generation came back to; ``None``: this one
        decides.
    :param api_host: the host of the base URL that it was sent to; ``None``: not known, so nothing is compared with it.
    :param key_digest: `GatewayConnection.key_digest` of the key that it was sent with; ``None``: likewise.
    :param buy_again: a person said so: the next attempt that asks for this buys once, whether or not this was paid for.
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
        """What went wrong last, if anything did."""
        return None if self.outcome is None else from_dict(self.outcome)


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@dataclass(frozen=True)
class StoredRecord:
    """A record as it lies in the store.

    :param version: the store's version of it, for a conditional write.
    :param age: seconds since it was last written, by the store's clock, never below 0.
    :param size: bytes.
    """

    record: Record
    version: str
    age: float
    size: int = 0


def new_claim() -> str:
    """A random name for one attempt's right to pay."""
    return secrets.token_hex(16)


def process_identity() -> dict[str, Any]:
    """Host, process and time of a claim, for whoever reads the record later."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "claimed_at": time.time()}


class Ledger:
    """The records under one root.

    :param store: the root's store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.attempt = new_claim()  # tells what this attempt has claimed from what others have
        self._ahead: dict[str, int] = {}

    def read(self, key: str) -> StoredRecord | None:
        """The record at `key`; ``None`` only where the store is sure that there is none.

        :raises LedgerError: the record can't be read, or a newer version of this package wrote it.
        :raises StorageError: the store failed.
        """
        blob = self.store.read(key, MAX_BYTES)
        return None if blob is None else self._found(key, blob)

    def latest(self, item: Item) -> StoredRecord | None:
        """The record that decides for `item`: the one with the highest number.

        :raises LedgerError: it can't be read.
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
                f"Record {key} under {self.store.uri} is listed but can't be read.",
                hint="Nothing was sent. Restore the record, or find out who removes objects under the root.",
            )
        return found

    def prefetch(self, item: Item) -> None:
        """List the records of all items of this one's task instance at once, for the next `latest` of each.

        Only what is there is believed, and once: "no record" is never told from this, and whoever submits on the word
        of a record that has a successor by now is refused that one's key.

        :raises StorageError: the store failed.
        """
        for key in self.store.keys(f"{item.path.rpartition('/')[0]}/"):
            folder, _, name = key.rpartition("/")
            if number := record_number(name):
                self._ahead[folder] = max(number, self._ahead.get(folder, 0))

    def numbers(self, item: Item) -> list[int]:
        """The numbers of `item`'s records, rising."""
        return self.numbers_in(item.path)

    def numbers_in(self, folder: str) -> list[int]:
        """The numbers of the records in an item's folder, rising."""
        names = (key.rsplit("/", 1)[1] for key in self.store.keys(folder + "/"))
        return sorted(filter(None, map(record_number, names)))

    def create(self, record: Record) -> StoredRecord | None:
        """Claim `record.key` exclusively; ``None`` where another attempt was first.

        A create whose answer got lost, or came as a failure, is found again by its claim.

        :raises BadRequestError: it is so large that nobody would read it again.
        :raises LedgerError: another record is there and can't be read.
        :raises StorageError: the store failed, and the record is not there.
        """
        data = _RECORD.dump_json(record)
        if len(data) > MAX_NEW_BYTES:
            raise BadRequestError(
                f"What is asked for is too long to be kept on record: {len(data)} bytes; at most {MAX_NEW_BYTES} fit.",
                hint="Shorten variant, model, the addresses of input images or output_path; or, if [geminiimg] "
                "record_prompts is set, the prompt.",
            )
        stored = create_or_read(
            self.store,
            record.key,
            data,
            is_ours=lambda data: self._parse(record.key, data).claim == record.claim,
        )
        if not stored.ours:
            return None
        return self._found(record.key, stored.blob)

    def change(self, key: str, step: Callable[[Record], Record | None], *, takes_back: bool = False) -> Record:
        """Move a record forward: `step` gets what is stored and returns what shall be, or ``None`` for "leave it".

        Written only if nobody else wrote in between; otherwise `step` is asked again about what is stored then.

        :param takes_back: an answer that was written down may be taken out again.
        :raises LedgerError: the record is gone, or the step would move its state back.
        :raises StorageError: the store failed.
        """
        last: list[Record] = []

        def stepped(blob: Blob | None) -> bytes | None:
            if blob is None:
                raise LedgerError(f"Record {key} under {self.store.uri} is gone.", hint="Restore it before a retry.")
            record = self._parse(key, blob.data)
            wanted = step(record)
            last[:] = [record if wanted is None else wanted]
            if wanted is None or wanted == record:
                return None
            if wanted.state not in (_TAKEN_BACK if takes_back else _NEXT)[record.state]:
                raise LedgerError(f"Record {key} is {record.state} and can't become {wanted.state}.")
            return _RECORD.dump_json(wanted)

        update(self.store, key, stepped, billed=Billed.UNKNOWN)
        return last[0]

    def add_tombstone(self, record: Record) -> None:
        """Write down that a person has this record removed, before it is: only then may it be missing."""
        said = {"record": record.key, "claim": record.claim, "state": record.state, "job_id": record.job_id}
        key = tombstone_key(record.key, record.claim)
        create_or_read(self.store, key, json.dumps({**said, "at": time.time()}).encode())

    def has_tombstone(self, key: str, claim: str) -> bool:
        """Whether a person had the record of this claim removed."""
        return is_record_key(key) and self.store.read(tombstone_key(key, claim)) is not None

    def _found(self, key: str, blob: Blob) -> StoredRecord:
        return StoredRecord(self._parse(key, blob.data), blob.version, blob.age, len(blob.data))

    def _parse(self, key: str, data: bytes) -> Record:
        where = f"Record {key} under {self.store.uri}"
        values = _values(where, data)
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
            raise LedgerError(f"{where} is landed and names no image.", hint=_UNREADABLE)
        if record.key != key or not key.endswith(f"/{record.n}.json"):
            raise LedgerError(f"{where} says that it is another one.", hint=_UNREADABLE)
        return _with_sane_costs(record)


def _with_sane_costs(record: Record) -> Record:
    """A record without amounts that no image costs: earlier versions believed a gateway whatever it reported."""
    manifest = None if record.manifest is None else _with_sane_cost(record.manifest)
    copies = [{**copy, "manifest": _with_sane_cost(copy["manifest"])} for copy in record.copies]
    return replace(record, cost=_sane(record.cost), manifest=manifest, copies=copies)


def _with_sane_cost(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest, **({"cost": _sane(manifest["cost"])} if "cost" in manifest else {})}


def _sane(cost: Mapping[str, Any]) -> dict[str, Any]:
    known = cost.get("amount") is None or AMOUNT.of(cost["amount"]) is not None
    return dict(cost) if known else {**cost, "amount": None}


_UNREADABLE = (
    "Nothing was sent. Restore the record; or ask the gateway what was paid for, and buy the image in a DAG run "
    "with a new run id."
)


def _values(where: str, data: bytes) -> Any:
    """What is written in a record."""
    if len(data) > MAX_BYTES:
        raise LedgerError(f"{where} is no record: it has more than {MAX_BYTES} bytes.", hint=_UNREADABLE)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise LedgerError(f"{where} is not JSON ({len(data)} bytes).", hint=_UNREADABLE) from None
    if not is_plain(values):
        raise LedgerError(f"{where} holds a number or a text that is none.", hint=_UNREADABLE)
    return values


def _wrong_fields(record: Record) -> set[str]:
    """The fields whose values nobody can use."""
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
    return LedgerError(f"{where} is not a record: {', '.join(sorted(fields))}.", hint=_UNREADABLE)


def with_error(record: Record, error: GeminiImageError, state: State | None = None) -> Record:
    """`record` with what went wrong, in another state if one is given."""
    return replace(record, outcome=error.to_dict(), state=state or record.state)
