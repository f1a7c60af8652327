"""One part of a run's summary: the document, what it counts records by, and its changes.

Invariants: a part names each record that it counts, by hashes of its key and of its claim. So counting a record again
changes nothing, and a record that is bought under the key of a removed one is another record. A removed record stays
named, so that a late writer does not count it again.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Literal

import pydantic

from airflow_provider_geminiimg.core.ledger.layout import index_of
from airflow_provider_geminiimg.core.ledger.record import Record

ENDED = ("landed", "failed")
VERSION = 2  # 1: without claims, in no release
_HASH = 12  # characters of a key's hash
CLAIM = 4  # characters of a claim's hash
_NAME = _HASH + CLAIM


@dataclass(frozen=True)
class RecordGroup:
    """What the records that are counted together have in common.

    :param status: ``landed`` or ``failed``; of a record that has not ended, see `core.reconcile.scan.RECORD_STATUSES`.
    :param billed: ``yes``, ``no`` or ``unknown``: whether money was spent.
    :param day: UTC date of the submission, such as ``2026-11-30``.
    :param task: the task's id as a part of keys.
    :param iteration: iteration of the loop; ``None`` outside loops.
    :param map_index: of the task instance; ``None`` for the single images of a mapped task, which may be many.
    :param amount: the price of one record; ``None`` if unknown.
    :param currency: of `amount`.
    :param basis: where the price comes from, see `manifest.Cost`.
    :param images: images of one record that are in storage.
    :param first: whether they are the first records of their items; so the number of these is the number of items.
    """

    status: str
    billed: str
    day: str
    task: str
    iteration: int | None
    map_index: int | None
    model: str
    gateway: str
    operation: str
    conn_id: str
    amount: float | None
    currency: str | None
    basis: str | None
    estimate: bool
    images: int
    first: bool


def group_of(record: Record, status: str) -> RecordGroup:
    """Return the group of a record.

    :param status: see `RecordGroup`.
    """
    *_, task, _, item, _ = record.key.split("/")
    index = index_of(record.key)
    mapped_alone = index is not None and index.map_index >= 0 and item == "0"
    cost = (record.manifest or {}).get("cost") or record.cost
    began = datetime.fromtimestamp(record.submitted_at or record.claimed_at, tz=timezone.utc)
    return RecordGroup(
        status=status,
        billed=record.billed.value,
        day=began.date().isoformat(),
        task=task,
        iteration=None if index is None else index.iteration,
        map_index=None if index is None or mapped_alone else index.map_index,
        model=record.model,
        gateway=record.gateway,
        operation=record.operation,
        conn_id=record.conn_id,
        amount=None if cost.get("amount") is None else float(cost["amount"]),
        currency=cost.get("currency"),
        basis=cost.get("basis"),
        estimate=bool(cost.get("estimate")),
        images=len((record.manifest or {}).get("images") or ()),
        first=record.n == 1,
    )


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class CountedRecords(_Model):
    """The records of one group.

    :param names: the names of the records, joined.
    :param keys: their keys below the folder of the run, in the same order; none for landed and removed records.
    """

    group: RecordGroup
    names: Annotated[str, pydantic.Field(pattern=rf"^([\w-]{{{_NAME}}})+$")]
    keys: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _one_key_each(self) -> CountedRecords:
        if self.keys and len(self.keys) != self.count:
            raise ValueError("there is not one key for each name")
        return self

    @property
    def count(self) -> int:
        return len(self.names) // _NAME


class SummaryPart(_Model):
    """One part of a summary.

    :param planned: number of images that each batch has planned or begun, by its task and index.
    """

    version: Literal[2] = 2
    counted: tuple[CountedRecords, ...] = ()
    removed: tuple[CountedRecords, ...] = ()
    planned: Mapping[str, Annotated[int, pydantic.Field(ge=0)]] = {}


@dataclass(frozen=True, slots=True)
class Counted:
    """How a record is counted.

    :param claim: the hash of its claim.
    :param key: its key below the run; empty for a landed record.
    """

    claim: str
    group: RecordGroup
    key: str


class PartChanges:
    """A part while it is changed."""

    def __init__(self, part: SummaryPart) -> None:
        self.counted: dict[str, Counted] = {}
        """By the hash of the record's key."""
        self.removed: dict[str, RecordGroup] = {}
        """By name."""
        self.planned = dict(part.planned)
        self._same: dict[RecordGroup, RecordGroup] = {}  # equal groups are one object: hashing them takes long
        for each in part.counted:
            group, keys = self._one(each.group), each.keys or itertools.repeat("")
            for name, key in zip(_split(each.names), keys):  # noqa: B905 - the second may be endless
                self.counted[name[:_HASH]] = Counted(name[_HASH:], group, key)
        for each in part.removed:
            self.removed.update(dict.fromkeys(_split(each.names), self._one(each.group)))

    def count(self, key: str, claim: str, group: RecordGroup) -> None:
        """Count the record at `key` in `group` only. One that had its key before was removed."""
        self.discard(hash_of(key), but=hash_of_claim(claim))
        below = "" if group.status == "landed" else below_run(key)
        self.counted[hash_of(key)] = Counted(hash_of_claim(claim), self._one(group), below)

    def discard(self, key_hash: str, *, but: str | None = None) -> None:
        """Count the record with a key as removed, if it is counted.

        :param but: the hash of a claim: not the record with that claim.
        """
        before = self.counted.get(key_hash)
        if before is not None and before.claim != but:
            del self.counted[key_hash]
            self.removed[key_hash + before.claim] = before.group

    def group(self, key: str, claim: str | None) -> RecordGroup | None:
        """The group that a record is counted in.

        :param claim: ``None``: not known, because the record can't be read.
        """
        found = self.counted.get(hash_of(key))
        if found is None or (claim is not None and hash_of_claim(claim) != found.claim):
            return None
        return found.group

    def has_removed(self, key: str, claim: str) -> bool:
        """Whether a record is counted as removed."""
        return name_of(key, claim) in self.removed

    def part(self) -> SummaryPart:
        """The part after the changes."""
        counted: dict[int, list[tuple[str, str]]] = {id(group): [] for group in self._same.values()}
        removed: dict[int, list[tuple[str, str]]] = {id(group): [] for group in self._same.values()}
        for key_hash, each in self.counted.items():
            counted[id(each.group)].append((key_hash + each.claim, each.key))
        for name, group in self.removed.items():
            removed[id(group)].append((name, ""))
        return SummaryPart(
            counted=tuple(_of_group(group, some) for group in self._same if (some := counted[id(group)])),
            removed=tuple(_of_group(group, some) for group in self._same if (some := removed[id(group)])),
            planned=self.planned,
        )

    def _one(self, group: RecordGroup) -> RecordGroup:
        return self._same.setdefault(group, group)


def _of_group(group: RecordGroup, some: Sequence[tuple[str, str]]) -> CountedRecords:
    names = "".join(name for name, _ in some)
    return CountedRecords(group=group, names=names, keys=tuple(key for _, key in some if key))


def hash_of(key: str) -> str:
    """The hash of a record's key."""
    return _hash(key, _HASH)


def hash_of_claim(claim: str) -> str:
    """The hash of a record's claim."""
    return _hash(claim, CLAIM)


def name_of(key: str, claim: str) -> str:
    """The name of a record in its part."""
    return hash_of(key) + hash_of_claim(claim)


def _hash(text: str, characters: int) -> str:
    return base64.urlsafe_b64encode(hashlib.blake2b(text.encode(), digest_size=characters * 3 // 4).digest()).decode()


def _split(names: str) -> list[str]:
    return [names[at : at + _NAME] for at in range(0, len(names), _NAME)]


def below_run(key: str) -> str:
    return "/".join(key.split("/")[4:])
