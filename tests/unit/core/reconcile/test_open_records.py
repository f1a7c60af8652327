"""Collecting through the index of open records: only those are read, and whatever happens to the index is mended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.layout import complete_key, open_prefix
from airflow_provider_geminiimg.core.ledger.open_index import (
    STALE_SECONDS,
    is_complete,
    mark_complete,
    read_open_entry,
    root_of,
)
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import Scope
from airflow_provider_geminiimg.core.storage.local import LocalStore
from airflow_provider_geminiimg.core.validation.resolution import Resolution
from airflow_provider_geminiimg.exceptions import StorageError
from tests.harness.orphaned_records import SCOPE, OrphanedRecords, nonzero, with_an_extra_job
from tests.harness.records import ITEM, Traced, age_key, landed, make_record

OPEN = open_prefix("default")
OLD = STALE_SECONDS + 60


@pytest.fixture
def marked(left: OrphanedRecords) -> OrphanedRecords:
    """A root whose index is complete, as a new root's is."""
    mark_complete(left.store, "default", root_of(left.store))
    return left


def entries(left: OrphanedRecords) -> list[str]:
    return list(left.store.keys(OPEN))


def named(left: OrphanedRecords) -> set[str | None]:
    return {entry.record for key in entries(left) if (entry := read_open_entry(left.store, key)) is not None}


def trace(left: OrphanedRecords) -> Traced:
    """From now on what the ledger asks of its store is noted."""
    left.store = store = Traced(left.store)
    left.ledger = left.environment.ledger = Ledger(store)
    return store


def lose(left: OrphanedRecords) -> None:
    """Remove the whole index, as in a root from before it existed."""
    for key in list(left.store.keys("open/")):
        left.store.delete(key)


def read_records(store: Traced) -> set[str]:
    return {key for operation, key in store.asked("ledger/") if operation == "read"}


def settled(left: OrphanedRecords, count: int) -> list[Record]:
    records = [landed(replace(ITEM, task_id=f"done{number}")) for number in range(count)]
    for record in records:
        assert left.ledger.create(record) is not None
    return records


# Reading


async def test_a_collect_reads_the_open_records_only(marked: OrphanedRecords) -> None:
    settled(marked, 5)
    record = await marked.submitted()
    store = trace(marked)
    assert nonzero(await marked.collect()) == {"landed": 1}
    assert read_records(store) == {record.key}
    assert ("keys", SCOPE.prefix) not in store.calls
    assert entries(marked) == []
    store.calls.clear()
    assert nonzero(await marked.collect()) == {}
    assert store.asked("ledger/") == []


async def test_without_the_marker_a_collect_reads_all_records_and_completes_the_index(left: OrphanedRecords) -> None:
    settled(left, 3)
    record, unknown = await left.submitted(), await left.unknown("other")
    lose(left)
    store = trace(left)
    assert nonzero(await left.collect()) == {"landed": 1, "unknown": 1}
    assert len(read_records(store)) == 5
    assert is_complete(left.store, "default")
    assert named(left) == {unknown.key}
    store.calls.clear()
    assert nonzero(await left.collect()) == {"unknown": 1}
    assert record.key not in read_records(store)


async def test_a_dry_run_without_the_marker_reads_all_records_and_writes_nothing(left: OrphanedRecords) -> None:
    await left.submitted()
    lose(left)
    before = left.everything()
    assert nonzero(await left.collect(dry_run=True)) == {"to_collect": 1}
    assert left.everything() == before


async def test_a_collect_of_one_dag_does_not_complete_the_index_of_all(left: OrphanedRecords) -> None:
    await left.submitted()
    lose(left)
    assert nonzero(await left.collect(Scope("default", ITEM.dag_id))) == {"landed": 1}
    assert not is_complete(left.store, "default")


async def test_a_collect_of_one_task_reads_the_open_records_of_this_task_only(marked: OrphanedRecords) -> None:
    record, other = await marked.submitted(), await marked.submitted("other")
    store = trace(marked)
    report = await marked.collect(Scope("default", task_id="hero"))
    assert report.keys["landed"] == [record.key]
    assert read_records(store) == {record.key}
    assert named(marked) == {other.key}


async def test_the_marker_of_another_namespace_does_not_count(left: OrphanedRecords) -> None:
    record = await left.submitted()
    lose(left)
    mark_complete(left.store, "other", root_of(left.store))
    assert (await left.collect()).keys["landed"] == [record.key]


ODD = [
    replace(ITEM, map_index=7),
    replace(ITEM, iteration=2),
    replace(ITEM, map_index=3, iteration=0),
    replace(ITEM, item="x" + "a" * 16),
    replace(ITEM, dag_id="complete", run_id="x::y", task_id=".."),
    replace(ITEM, task_id="entries.json", run_id="ü" * 200),
]


async def test_open_records_are_found_whatever_their_tasks_are_called(marked: OrphanedRecords) -> None:
    records = [make_record(item, answer_within=0.0) for item in ODD]
    for record in records:
        assert marked.ledger.create(record) is not None
    store = trace(marked)
    report = await marked.collect()
    assert sorted(report.keys["unknown"]) == sorted(record.key for record in records)
    assert ("keys", SCOPE.prefix) not in store.calls
    for record in records:
        reconcile.resolve(marked.ledger, record.key, Resolution("lost"))
    assert entries(marked) == []


async def test_a_record_that_is_resolved_with_a_job_is_found_again(marked: OrphanedRecords) -> None:
    record = await marked.submitted()
    failed = marked.change(record, state="failed", job_id=None)
    assert entries(marked) == []
    marked.change(failed, state="submitted", job_id=record.job_id)
    assert nonzero(await marked.collect()) == {"landed": 1}


async def test_a_namespace_finds_its_own_open_records_only(marked: OrphanedRecords) -> None:
    other = make_record(replace(ITEM, namespace="other"), answer_within=0.0)
    assert marked.ledger.create(other) is not None
    mark_complete(marked.store, "other", root_of(marked.store))
    assert nonzero(await marked.collect()) == {}
    assert (await marked.collect(Scope("other"))).keys["unknown"] == [other.key]


async def test_the_open_records_of_a_batch_are_found_by_its_entry(marked: OrphanedRecords) -> None:
    items = ["a" * 16, "b" * 16, "c" * 16]
    dead = Ledger(marked.store)
    dead.open_index.cover(items)
    template = await marked.submitted()
    open_, ended = (replace(ITEM, item=item) for item in items[:2])
    record = replace(template, key=make_record(open_).key, claim="dead")
    assert dead.create(record) is not None
    assert dead.create(landed(ended)) is not None
    marked.store.delete(template.key)
    report = await marked.collect(dry_run=True)
    assert report.keys["to_collect"] == [record.key]


# Mending


async def test_the_entry_of_an_ended_record_is_removed_when_it_is_a_day_old(marked: OrphanedRecords) -> None:
    record = await marked.attempt()
    marked.ledger.open_index.add_again(record.key)
    [key] = entries(marked)
    await marked.collect()
    assert entries(marked) == [key], "it may belong to a record that is open again in a moment"
    age_key(marked.store, key, OLD)
    before = marked.everything()
    await marked.collect(dry_run=True)
    assert marked.everything() == before
    await marked.collect()
    assert entries(marked) == []


async def test_the_entry_of_a_record_that_was_never_created_is_removed_when_it_is_a_day_old(
    marked: OrphanedRecords,
) -> None:
    marked.ledger.open_index.add(make_record())
    [key] = entries(marked)
    assert nonzero(await marked.collect()) == {}
    assert entries(marked) == [key]
    age_key(marked.store, key, OLD)
    assert nonzero(await marked.collect()) == {}
    assert entries(marked) == []


async def test_the_entry_of_an_open_record_stays_however_old_it_is(marked: OrphanedRecords) -> None:
    record = await marked.unknown()
    for key in entries(marked):
        age_key(marked.store, key, 365 * 86400)
    assert nonzero(await marked.collect()) == {"unknown": 1}
    assert named(marked) == {record.key}


async def test_the_old_entry_of_a_dead_batch_is_replaced_by_entries_of_its_open_records(
    marked: OrphanedRecords,
) -> None:
    dead = Ledger(marked.store)
    dead.open_index.cover(["a" * 16, "b" * 16, "c" * 16])
    open_, ended = (make_record(replace(ITEM, item=item * 16), answer_within=1e9) for item in "ab")
    assert dead.create(open_) is not None
    assert dead.create(landed(replace(ITEM, item="b" * 16))) is not None
    [key] = entries(marked)
    await marked.collect()
    assert entries(marked) == [key]
    age_key(marked.store, key, OLD)
    assert nonzero(await marked.collect()) == {"skipped": 1}
    assert named(marked) == {open_.key}
    assert ended.key not in named(marked)


async def test_a_dead_batchs_entry_stays_if_an_entry_of_its_records_cannot_be_written(
    marked: OrphanedRecords, lines: pytest.LogCaptureFixture
) -> None:
    dead = Ledger(marked.store)
    dead.open_index.cover(["a" * 16])
    record = make_record(replace(ITEM, item="a" * 16), answer_within=1e9)
    assert dead.create(record) is not None
    [key] = entries(marked)
    age_key(marked.store, key, OLD)
    store = trace(marked)
    store.prefix, store.always = OPEN, {"create": "before"}
    assert nonzero(await marked.collect()) == {"skipped": 1}
    assert entries(marked) == [key]
    assert "The index of open records was not mended" in lines.text


async def test_without_all_entries_the_index_is_not_complete_and_the_images_land(
    left: OrphanedRecords, lines: pytest.LogCaptureFixture
) -> None:
    await left.submitted()
    lose(left)
    store = trace(left)
    store.prefix, store.always = OPEN, {"create": "before"}
    assert nonzero(await left.collect()) == {"landed": 1}
    assert not is_complete(left.store, "default")
    assert "The index of open records was not mended" in lines.text


async def test_an_extra_job_is_found_by_the_entry_of_its_record_until_it_has_its_own(marked: OrphanedRecords) -> None:
    kept, _ = await with_an_extra_job(marked)
    assert nonzero(await marked.collect()) == {"landed": 1}
    for key in entries(marked):
        age_key(marked.store, key, OLD)
    assert kept.key in named(marked)
    assert nonzero(await marked.collect()) == {}
    assert kept.key not in named(marked)


async def test_a_record_that_cannot_be_read_is_reported_by_every_collect(left: OrphanedRecords) -> None:
    key = make_record().key
    left.store.create(key, b"not a record")
    for _ in range(3):
        assert (await left.collect()).keys["errors"] == [key]
    assert is_complete(left.store, "default")


async def test_an_entry_that_cannot_be_read_leads_to_a_look_at_all_records(marked: OrphanedRecords) -> None:
    record = await marked.submitted()
    for key in entries(marked):
        marked.store.delete(key)
    marked.store.create(f"{OPEN}x.json", b"{")
    assert (await marked.collect()).keys["landed"] == [record.key]
    assert entries(marked) == [f"{OPEN}x.json"]
    age_key(marked.store, f"{OPEN}x.json", OLD)
    await marked.collect()
    assert entries(marked) == []


async def test_a_record_that_was_removed_by_hand_leaves_no_entry(marked: OrphanedRecords) -> None:
    record = await marked.unknown()
    reconcile.forget(marked.ledger, record.key, force=True)
    assert entries(marked) == []


# Rebuilding


async def test_a_rebuilt_index_names_what_an_old_version_left_open(marked: OrphanedRecords) -> None:
    settled(marked, 2)
    record = await marked.submitted()
    for key in entries(marked):
        marked.store.delete(key)
    assert nonzero(await marked.collect()) == {}
    would = await reconcile.reindex(marked.ledger, SCOPE, dry_run=True)
    assert (would.read, would.open, would.written, would.removed) == (3, 1, 1, 0)
    assert entries(marked) == []
    done = await reconcile.reindex(marked.ledger, SCOPE)
    assert (done.read, done.open, done.written, done.removed) == (3, 1, 1, 0)
    assert (await marked.collect()).keys["landed"] == [record.key]


async def test_a_rebuild_removes_stale_entries_and_marks_the_index_as_complete(left: OrphanedRecords) -> None:
    record = await left.attempt()
    left.ledger.open_index.add_again(record.key)
    [key] = entries(left)
    age_key(left.store, key, OLD)
    done = await reconcile.reindex(left.ledger, SCOPE)
    assert (done.written, done.removed, done.failure) == (0, 1, None)
    assert entries(left) == []
    assert left.store.read(complete_key("default")) is not None


class FullForEntries(LocalStore):
    """A disk that takes no more entries of the index."""

    full = False

    def create(self, key: str, data: bytes) -> str | None:
        if self.full and key.startswith(OPEN):
            raise StorageError("The disk is full.")
        return super().create(key, data)


async def test_an_unreadable_entry_stays_as_long_as_its_record_has_no_other(disk_left: OrphanedRecords) -> None:
    store = FullForEntries(disk_left.store.uri.removeprefix("file://"))
    disk_left.store, disk_left.ledger = store, Ledger(store)
    mark_complete(store, "default", root_of(store))
    record = make_record(state="submitted", job_id="job", submitted_at=1.0)
    disk_left.ledger.create(record)
    (key,) = entries(disk_left)
    found = store.read(key)
    assert found is not None
    store.replace(key, b"{", found.version)
    age_key(store, key, OLD)
    for full in (True, False):
        store.full = full
        done = await reconcile.reindex(disk_left.ledger, SCOPE)
        assert (done.failure is not None) == full
        assert (key in entries(disk_left)) == full
    assert named(disk_left) == {record.key}
