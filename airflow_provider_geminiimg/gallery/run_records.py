"""The keys of a run's records, in the order of the gallery: task, index, item, number.

Invariants: a listing goes on behind any record, and costs as much as the part that is read, not as much as the run.
Nothing is sorted except the names of a run's tasks and of a task's instances.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError

from airflow_provider_geminiimg.core.batch.plan import Plan
from airflow_provider_geminiimg.core.ledger.layout import (
    LEDGER,
    PLANS,
    TaskIndex,
    encode_once,
    folder_of,
    index_of,
    is_record_key,
    of_all_shards,
    plan_of,
    record_number,
    saved_key,
)
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup
from airflow_provider_geminiimg.core.reconcile.scan import CONCURRENCY, RecordEntry
from airflow_provider_geminiimg.core.storage import Store, encode_segment
from airflow_provider_geminiimg.exceptions import GeminiImageError

MAX_PLANS = 200  # batch plans that are read
MAX_PLAN_BYTES = 64 << 20


@dataclass(frozen=True)
class RecordFilter:
    """Filter for the records of a run; ``None`` means no restriction.

    :param status: see `core.reconcile.RECORD_STATUSES`.
    """

    dag_id: str
    run_id: str
    task_id: str | None = None
    map_index: int | None = None
    iteration: int | None = None
    model: str | None = None
    status: str | None = None

    @property
    def task(self) -> str | None:
        """The task as a part of keys."""
        return None if self.task_id is None else encode_once(self.task_id)

    def fits(self, entry: RecordEntry) -> bool:
        """Return whether a record passes the filter."""
        model = None if entry.found is None else entry.found.record.model
        return self.model in (None, model) and self.status in (None, entry.status)

    def fits_index(self, index: TaskIndex) -> bool:
        """Return whether a task instance passes the filter."""
        return self.map_index in (None, index.map_index) and self.iteration in (None, index.iteration)

    def fits_key(self, key: str) -> bool:
        """Return whether the task instance of a record passes the filter."""
        index = index_of(key) if is_record_key(key) else None
        return index is not None and self.task in (None, key.split("/")[4]) and self.fits_index(index)

    def fits_group(self, group: RecordGroup) -> bool:
        """Return whether records of a group may pass the filter; their map index is not compared."""
        asked = (self.task, self.iteration, self.model, self.status)
        found = (group.task, group.iteration, group.model, group.status)
        return all(a in (None, f) for a, f in zip(asked, found, strict=True))


class RunRecords:
    """The records of a run that a filter selects by their task instances.

    :param namespace: value of ``[geminiimg] namespace``.
    """

    def __init__(self, store: Store, namespace: str, wanted: RecordFilter) -> None:
        self._store = store
        self._wanted = wanted
        self.run = "/".join((encode_segment(namespace), encode_segment(wanted.dag_id), encode_once(wanted.run_id)))

    def keys(self, after: str | None = None, tasks: Collection[str] | None = None) -> Iterator[str]:
        """Iterate over the keys of the records; lists only what is asked for.

        :param after: only behind this record; any other text is the beginning.
        :param tasks: only of these tasks, as parts of keys.
        """
        cursor = after if after and is_shown(after) else None
        start = ("", (-1, -1)) if cursor is None else place_of(cursor)[:2]
        for task in self._tasks() if tasks is None else sorted(set(tasks).intersection(self._tasks())):
            if task < start[0]:
                continue
            indexes = self._indexes(task)
            for index in indexes:
                if (task, _numbers(index)) >= start:
                    yield from self._instance(f"{LEDGER}/{self.run}/{task}/{index}", cursor)
            if not indexes and self._wanted.task is not None and self._wanted.map_index is not None:
                yield from self._of_shard(cursor)

    def cursor_at(self, position: int, counts: Mapping[str, int]) -> str | None:
        """Return a cursor before about this record.

        :param position: from 0.
        :param counts: number of records by task, as a part of keys.
        """
        rest = min(position, sum(counts.values()) - 1)
        for task in sorted(counts):
            if rest < counts[task]:
                return self._cursor_in(task, rest / counts[task])
            rest -= counts[task]
        return None

    def _cursor_in(self, task: str, share: float) -> str | None:
        indexes = self._indexes(task)
        if not indexes:
            return None
        folder = f"{LEDGER}/{self.run}/{task}/{indexes[int(share * len(indexes))]}"
        # The items of a batch are named by hashes, so that they are spread evenly. "%" lies before all names of items.
        item = "%" if len(indexes) > 1 else f"{int(share * 16**16):016x}"
        return f"{folder}/{item if share else '%'}/1.json"

    def plans(self) -> Iterator[tuple[str, str, set[str] | None]]:
        """Iterate over the latest plans: task instance of the plan, that of its records, and names of its items;
        ``None`` if a plan can't be read.
        """
        for (of_task, index), n in itertools.islice(self._latest_plans.items(), MAX_PLANS):
            yield of_task, of_all_shards(of_task, index), self._plan(saved_key(PLANS, of_task, n))

    @property
    def has_more_plans(self) -> bool:
        """Whether there are more plans than `plans` reads."""
        return len(self._latest_plans) > MAX_PLANS

    @cached_property
    def _latest_plans(self) -> dict[tuple[str, TaskIndex], int]:
        """The latest generation of the plan of each task instance."""
        latest: dict[tuple[str, TaskIndex], int] = {}
        for key in self._store.keys("/".join((PLANS, self.run, *filter(None, [self._wanted.task]), ""))):
            if (plan := plan_of(key)) is not None and self._wanted.fits_index(plan[1]):
                latest[plan[:2]] = max(plan[2], latest.get(plan[:2], 0))
        return latest

    def _plan(self, key: str) -> set[str] | None:
        """Return the item names of a plan's images; ``None`` if the plan cannot be read."""
        blob = self._store.read(key, MAX_PLAN_BYTES)
        if blob is None:  # the plan was removed, because all its images have just been stored
            return set()
        try:
            return Plan.model_validate_json(blob.data).keys()
        except (ValidationError, GeminiImageError):
            return None

    def _tasks(self) -> list[str]:
        if self._wanted.task is not None:
            return [self._wanted.task]
        return self._store.folders(f"{LEDGER}/{self.run}")

    def _indexes(self, task: str) -> list[TaskIndex]:
        """The task instances of a task, in numeric order."""
        names = self._store.folders(f"{LEDGER}/{self.run}/{task}")
        found = (index for name in names if (index := TaskIndex.parse(name)) and self._wanted.fits_index(index))
        return sorted(found, key=_numbers)

    def _instance(self, folder: str, cursor: str | None) -> Iterator[str]:
        begun = cursor is not None and cursor.startswith(f"{folder}/")
        keys = self._store.keys(f"{folder}/", f"{folder_of(cursor)}/" if cursor and begun else "")
        return _behind(keys, cursor if begun else None)

    def _of_shard(self, cursor: str | None) -> Iterator[str]:
        """The records of one shard of a wide batch; they belong to the index -1 of its task."""
        items = sorted(f"{LEDGER}/{of_all}/{item}/" for _, of_all, plan in self.plans() for item in plan or ())
        rest = iter([item for item in items if cursor is None or item >= f"{folder_of(cursor)}/"])
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            while some := list(itertools.islice(rest, CONCURRENCY)):
                for keys in pool.map(lambda folder: list(self._store.keys(folder)), some):
                    yield from _behind(keys, cursor)


def place_of(key: str) -> tuple[str, tuple[int, int], str, int]:
    """Return the place of a record in the order of the gallery, within its run."""
    *_, task, _, item, name = key.split("/")
    index = index_of(key)
    assert index is not None
    return task, _numbers(index), f"{item}/", record_number(name) or 0


def _numbers(index: TaskIndex) -> tuple[int, int]:
    return -1 if index.iteration is None else index.iteration, index.map_index


def _behind(keys: Iterable[str], cursor: str | None) -> Iterator[str]:
    """The keys of records behind a record, those of an item by their number. `keys` are in byte order."""
    start = None if cursor is None else place_of(cursor)
    for _, some in itertools.groupby(filter(is_shown, keys), folder_of):
        yield from (key for key in sorted(some, key=place_of) if start is None or place_of(key) > start)


def is_shown(key: str) -> bool:
    """Return whether the gallery has an address for this key."""
    return is_record_key(key) and index_of(key) is not None
