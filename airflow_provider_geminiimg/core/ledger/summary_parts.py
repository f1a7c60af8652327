"""One part of a run's summary: the document, what it counts records by, and its changes.

Invariant: a part names each record that it counts: a landed one by a hash of its key, any other by its key below the
run. So counting a record again changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Literal

import pydantic

from airflow_provider_geminiimg.core.ledger.layout import index_of
from airflow_provider_geminiimg.core.ledger.record import Record

ENDED = ("landed", "failed")
VERSION = 1
_HASH = 12  # characters


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

    :param hashes: the hashes of the keys of landed records, joined.
    :param keys: the keys of other records, below the folder of the run.
    """

    group: RecordGroup
    hashes: Annotated[str, pydantic.Field(pattern=rf"^([\w-]{{{_HASH}}})*$")] = ""
    keys: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.hashes) // _HASH + len(self.keys)


class RemovedRecords(_Model):
    """How many records of one group were removed."""

    group: RecordGroup
    count: Annotated[int, pydantic.Field(ge=0)]


class SummaryPart(_Model):
    """One part of a summary.

    :param planned: number of images that each batch has planned or begun, by its task and index.
    """

    version: Literal[1] = 1
    counted: tuple[CountedRecords, ...] = ()
    removed: tuple[RemovedRecords, ...] = ()
    planned: Mapping[str, Annotated[int, pydantic.Field(ge=0)]] = {}


class PartChanges:
    """A part while it is changed."""

    def __init__(self, part: SummaryPart) -> None:
        self.groups: dict[str, RecordGroup] = {}  # by hash, or by key below the run
        for each in part.counted:
            self.groups.update(dict.fromkeys(_split(each.hashes), each.group))
            self.groups.update(dict.fromkeys(each.keys, each.group))
        self._same = {each.group: each.group for each in part.counted}  # equal groups are one object
        self.removed = Counter({each.group: each.count for each in part.removed})
        self.planned = dict(part.planned)

    def group(self, key: str) -> RecordGroup | None:
        """The group that the record at `key` is counted in."""
        return self.groups.get(hash_of(key)) or self.groups.get(below_run(key))

    def count(self, key: str, group: RecordGroup | None) -> None:
        """Count the record at `key` in `group` only."""
        for name in (hash_of(key), below_run(key)):
            self.groups.pop(name, None)
        if group is not None:
            name = hash_of(key) if group.status == "landed" else below_run(key)
            self.groups[name] = self._same.setdefault(group, group)

    def remove(self, names: Iterable[str]) -> None:
        """Count records as removed that are counted.

        :param names: hashes, or keys below the run.
        """
        self.removed.update(filter(None, [self.groups.pop(name, None) for name in names]))

    def part(self) -> SummaryPart:
        """The part after the changes."""
        names: dict[int, list[str]] = {id(group): [] for group in self._same.values()}  # hashing groups takes long
        for name, group in self.groups.items():
            names[id(group)].append(name)
        counted = tuple(_of_group(group, some) for group in self._same if (some := names[id(group)]))
        removed = tuple(RemovedRecords(group=group, count=count) for group, count in self.removed.items())
        return SummaryPart(counted=counted, removed=removed, planned=self.planned)


def _of_group(group: RecordGroup, names: Sequence[str]) -> CountedRecords:
    if group.status == "landed":
        return CountedRecords(group=group, hashes="".join(names))
    return CountedRecords(group=group, keys=tuple(names))


def hash_of(key: str) -> str:
    return base64.urlsafe_b64encode(hashlib.blake2b(key.encode(), digest_size=_HASH * 3 // 4).digest()).decode()


def _split(hashes: str) -> list[str]:
    return [hashes[at : at + _HASH] for at in range(0, len(hashes), _HASH)]


def below_run(key: str) -> str:
    return "/".join(key.split("/")[4:])
