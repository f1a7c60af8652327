"""Summaries of DAG runs: how many records a run has and what was paid for them, without reading the records.

`summaries/<namespace>/<dag>/<run>/<part>.json` counts the ended records of a run by what `RecordGroup` has. The records
are spread over `PARTS` parts by a hash, so that the tasks of a run rarely wait for each other.

Invariants:

- A record decides, never a summary. A record that has ended is counted, or has an entry in the index of open records
  (`open_index`): the entry is removed after the record was counted. So a summary together with the records that have an
  entry is exact at every moment, also after a process was killed.
- A part names each record that it counts, by its key and claim. Counting a record again changes nothing, and a record
  that has changed is counted once, with its new values. A part is written conditionally.
- Only a record that landed and is not counted yet is counted as the caller has it; it does not change any more. Any
  other is read after the part was read and before the part is written, so that no late writer counts an old state.
- A removed record stays named and counted as removed: what was paid for it was paid, and a late writer does not count
  it again. If its removal was not noted, that is done when another record is counted under its key, or by a reindex.
- A part that was lost or can't be read is made again from the records (`jobs reindex`); until then, a lost part
  is missing in the totals, and an unreadable one is an error, and its records keep their entries. An unreadable part is
  replaced with one write, after all records of its run were read. What was removed before the loss and what was
  planned are not in the records, so the new part lacks them. A part that a later version wrote is never replaced.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, cast

import pydantic

from airflow_provider_geminiimg.core.ledger.layout import LEDGER, SUMMARIES, folder_of, run_of, summary_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.summary_parts import (
    CLAIM,
    ENDED,
    VERSION,
    PartChanges,
    RecordGroup,
    SummaryPart,
    group_of,
    hash_of,
    hash_of_claim,
    name_of,
)
from airflow_provider_geminiimg.core.storage import Blob, Expected, Store, encode_segment, update
from airflow_provider_geminiimg.exceptions import Billed, LedgerError

PARTS = 4
COUNT_SECONDS = 5.0
"""Seconds for which a task waits for others that change the same part. If it gives up, the record's entry remains."""
_MAX_BYTES = 64 << 20
_MAX_KNOWN = 64  # parts that are remembered as they were written

_Value = TypeVar("_Value")
Read = Callable[[str], Record | None]
"""Reads the record at a key; ``None`` if there is none."""


@dataclass(frozen=True)
class RunSummary:
    """The summary of one run, as stored.

    :param run: namespace, DAG and run, as a part of keys.
    :param parts: by key.
    :param damaged: versions, by key, of the parts that can't be read and are not in `parts`.
    """

    run: str
    parts: Mapping[str, SummaryPart]
    damaged: Mapping[str, str] = field(default_factory=dict)

    def counts(self) -> Counter[RecordGroup]:
        """The number of counted records by group."""
        found: Counter[RecordGroup] = Counter()
        for each in (each for part in self.parts.values() for each in part.counted):
            found[each.group] += each.count
        return found

    def removed(self) -> Counter[RecordGroup]:
        """The number of records by group that were counted and then removed."""
        found: Counter[RecordGroup] = Counter()
        for each in (each for part in self.parts.values() for each in part.removed):
            found[each.group] += each.count
        return found

    def planned(self) -> dict[str, int]:
        """The number of images in the plan of each batch, by its task and index as parts of keys."""
        return {name: count for part in self.parts.values() for name, count in part.planned.items()}

    def keys(self, is_wanted: Callable[[RecordGroup], bool]) -> list[str]:
        """The keys of the counted records of some groups; landed records are not among them."""
        found = (each for part in self.parts.values() for each in part.counted if each.keys and is_wanted(each.group))
        return [f"{LEDGER}/{self.run}/{key}" for each in found for key in each.keys]

    def groups(self, claims: Mapping[str, str | None]) -> dict[str, RecordGroup]:
        """The groups that records are counted in; without those that are not counted.

        :param claims: of the records, by key; ``None`` for a record that can't be read.
        """
        changes = [PartChanges(part) for part in self.parts.values()]
        found = ((key, each.group(key, claim)) for key, claim in claims.items() for each in changes)
        return {key: group for key, group in found if group is not None}


class Summaries:
    """Reads and writes the summaries under one root. The methods block, and may be called by several threads.

    :param store: the root's store.
    :param read: reads a record.
    """

    def __init__(self, store: Store, read: Read) -> None:
        self._store = store
        self._read = read
        self._known: dict[str, Blob] = {}
        self._lock = threading.Lock()

    def count(self, records: Iterable[Record], *, seconds: float = 0.0) -> None:
        """Count records that have ended, each once, with the values that it has now.

        :param seconds: maximum time for waiting for others that count. 0: `storage.cas.UPDATE_SECONDS`.
        :raises LedgerError: a part or a record can't be read.
        :raises StorageError: the store failed.
        """

        for key, some in _by_part({record.key: record for record in records}).items():
            self._change(key, partial(self._count, some), seconds=seconds)

    def _count(self, records: Sequence[Record], changes: PartChanges) -> None:
        for record in records:
            counted, now = changes.group(record.key, record.claim), cast("Record | None", record)
            if counted == group_of(record, record.state):
                continue
            if record.state != "landed" or hash_of(record.key) in changes.counted:
                now = self._read(record.key)
            if now is not None and now.state in ENDED and not changes.has_removed(now.key, now.claim):
                changes.count(now.key, now.claim, group_of(now, now.state))

    def remove(self, records: Iterable[Record]) -> None:
        """Count records as removed, after they were counted and removed.

        :raises LedgerError: a part can't be read.
        :raises StorageError: the store failed.
        """

        for key, some in _by_part({record.key: record for record in records}).items():
            self._change(key, partial(_remove, [name_of(record.key, record.claim) for record in some]))

    def plan(self, task_instance: str, items: Collection[str]) -> None:
        """Note what a batch has planned, before its plan is written.

        :param task_instance: that the records belong to, as a part of keys.
        :param items: names of the planned items.
        :raises LedgerError: the part can't be read.
        :raises StorageError: the store failed.
        """
        begun = self._store.folders(f"{LEDGER}/{task_instance}")  # by an earlier plan
        images = len({*map(encode_segment, items), *begun})
        name = "/".join(task_instance.split("/")[3:])
        key = summary_key("/".join(task_instance.split("/")[:3]), 0)
        self._change(key, lambda changes: changes.planned.__setitem__(name, images), seconds=COUNT_SECONDS)

    def replace_damaged(self, before: RunSummary, records: Mapping[str, tuple[str, RecordGroup]]) -> None:
        """Replace the parts of a run's summary that can't be read, after all its records were read.

        :param before: the summary as it was when the first record was read.
        :param records: claims and groups, by key, of all records of the run that have ended.
        :raises LedgerError: a part can't be read, and is not as it was.
        :raises StorageError: the store failed.
        """
        by_part = _by_part({key: (key, *values) for key, values in records.items()})
        for key, version in before.damaged.items():
            self._change(key, partial(_count_missing, by_part.get(key, [])), damaged=version)

    def remove_missing(
        self, before: RunSummary, claims: Mapping[str, str | None], exist: Callable[[], Iterable[str]]
    ) -> None:
        """Count records as removed that are counted but do not exist, and none in a part that is not its own.

        :param before: the summary of the run.
        :param claims: of the records that were read, by key; ``None`` for a record that can't be read.
        :param exist: lists the keys of all records of the run.
        :raises LedgerError: a part can't be read.
        :raises StorageError: the store failed.
        """
        seen = {
            hash_of(key): (part_key(key), None if claim is None else hash_of_claim(claim))
            for key, claim in claims.items()
        }
        for key, part in before.parts.items():
            counted = PartChanges(part).counted
            strange = [each for each in counted if each in seen and seen[each][0] != key]
            gone = {
                each + found.claim
                for each, found in counted.items()
                if each not in seen or (seen[each][0] == key and seen[each][1] not in (None, found.claim))
            }
            if any(name[:-CLAIM] not in seen for name in gone):  # perhaps listed before the summary was read
                later = {hash_of(each) for each in exist()}
                gone = {name for name in gone if name[:-CLAIM] in seen or name[:-CLAIM] not in later}
            if gone or strange:
                self._change(key, partial(_correct, gone, strange))

    def read(self, run: str, *, despite_damage: bool = False) -> RunSummary:
        """Read the summary of a run.

        :param run: namespace, DAG and run, as a part of keys.
        :param despite_damage: return the parts that can be read instead of raising an error. Default: ``False``.
        :raises LedgerError: a part can't be read, or a later version of this package wrote it.
        :raises StorageError: the store failed.
        """
        parts: dict[str, SummaryPart] = {}
        damaged: dict[str, str] = {}
        for key in (summary_key(run, part) for part in range(PARTS)):
            blob = self._store.read(key, _MAX_BYTES)
            part = self._parse(key, blob, damaged=blob.version if despite_damage and blob is not None else None)
            if part is not None:
                parts[key] = part
            elif blob is not None:
                damaged[key] = blob.version
        return RunSummary(run, parts, damaged)

    def runs(self, below: str) -> Iterator[str]:
        """Iterate over the runs that have a summary.

        :param below: namespace, or namespace and DAG, as a part of keys.
        """
        last = ""
        for key in self._store.keys(f"{SUMMARIES}/{below}/"):
            run = folder_of(key).removeprefix(f"{SUMMARIES}/")
            if run != last:
                yield run
            last = run

    def _change(
        self,
        key: str,
        step: Callable[[PartChanges], object],
        *,
        damaged: str | None = None,
        seconds: float = 0.0,
    ) -> None:
        def stepped(blob: Blob | None) -> bytes | None:
            part = self._parse(key, blob, damaged=damaged)
            changes = PartChanges(part or SummaryPart())
            step(changes)
            after = changes.part()
            return None if after == part else after.model_dump_json().encode()

        with self._lock:
            known = self._known.get(key)
        expected = None if known is None else Expected(known)
        blob = update(self._store, key, stepped, expected=expected, seconds=seconds)
        with self._lock:
            self._known.pop(key, None)
            if blob is not None:
                self._known[key] = replace(blob, age=0.0)
                if len(self._known) > _MAX_KNOWN:
                    del self._known[next(iter(self._known))]

    def _parse(self, key: str, blob: Blob | None, *, damaged: str | None = None) -> SummaryPart | None:
        """Parse a part; ``None`` if it can't be read, and has the version `damaged`."""
        if blob is None:
            return SummaryPart()
        try:
            return SummaryPart.model_validate_json(blob.data)
        except pydantic.ValidationError:
            where = f"The summary {key} under {self._store.uri}"
            if (version := _version(blob.data)) > VERSION:
                raise LedgerError(
                    f"{where} has version {version}; this version reads up to {VERSION}.",
                    billed=Billed.NO,
                    hint="Run the version of airflow-provider-geminiimg that wrote it. Images are not affected.",
                ) from None
            if blob.version == damaged:
                return None
            raise LedgerError(
                f"{where} can't be read.",
                billed=Billed.NO,
                hint="`python -m airflow_provider_geminiimg jobs reindex` makes it again from the records. "
                "Images are not affected.",
            ) from None


def _by_part(values: Mapping[str, _Value]) -> dict[str, list[_Value]]:
    """Distribute what belongs to records over the keys of their parts.

    :param values: by key of the record.
    """
    found: dict[str, list[_Value]] = defaultdict(list)
    for key, value in values.items():
        found[part_key(key)].append(value)
    return found


def part_key(record_key: str) -> str:
    """Return the key of the part that counts a record."""
    return summary_key(run_of(record_key), zlib.crc32(folder_of(record_key).encode()) % PARTS)


def _remove(names: Iterable[str], changes: PartChanges) -> None:
    for name in names:
        found = changes.counted.get(name[:-CLAIM])
        if found is not None and name.endswith(found.claim):
            changes.discard(name[:-CLAIM])


def _correct(gone: Iterable[str], strange: Iterable[str], changes: PartChanges) -> None:
    _remove(gone, changes)
    for key_hash in strange:
        changes.counted.pop(key_hash, None)


def _count_missing(records: Iterable[tuple[str, str, RecordGroup]], changes: PartChanges) -> None:
    for key, claim, group in records:
        # Otherwise somebody who saw a later state has counted it.
        if hash_of(key) not in changes.counted and not changes.has_removed(key, claim):
            changes.count(key, claim, group)


def _version(data: bytes) -> int:
    """The version of a part; 0 if it can't be read."""
    try:
        version = json.loads(data)["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return version if isinstance(version, int) else 0
