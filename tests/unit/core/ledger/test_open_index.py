"""The index of open records: an entry before each record, none after it has ended, and few for a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from airflow_provider_geminiimg.core.ledger import open_index
from airflow_provider_geminiimg.core.ledger.layout import ROOT_KEY, complete_key, open_prefix
from airflow_provider_geminiimg.core.ledger.open_index import (
    is_complete,
    is_open,
    mark_complete,
    read_open_entry,
    root_of,
)
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import Store, open_store
from airflow_provider_geminiimg.exceptions import LedgerError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM, Traced, landed, make_record, submitted

OPEN = open_prefix("default")


@pytest.fixture
def store(root: str) -> Traced:
    return Traced(open_store(root, AIRFLOW_OPENERS), OPEN)


@pytest.fixture
def ledger(store: Traced) -> Ledger:
    return Ledger(store)


def entries(store: Store) -> list[str]:
    return list(store.keys(OPEN))


def named(store: Store) -> set[str | None]:
    """The records that have an entry of their own."""
    return {entry.record for key in entries(store) if (entry := read_open_entry(store, key)) is not None}


def created(ledger: Ledger, record: Record) -> Record:
    assert ledger.create(record) is not None
    return record


def into(record: Record) -> Callable[[Record], Record]:
    """A step that keeps nothing of the stored record but its claim."""
    return lambda stored: replace(record, key=stored.key, n=stored.n, claim=stored.claim)


def writes(store: Traced) -> list[tuple[str, str]]:
    """Writes since the last time: the operation, and where."""
    made = [
        (operation, key.partition("/")[0])
        for operation, key in store.calls
        if operation in ("create", "replace", "delete")
    ]
    store.calls.clear()
    return made


# One record


def test_an_entry_is_written_before_the_record_and_removed_after_it_has_ended(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record())
    assert writes(store) == [("create", "open"), ("create", "ledger")]
    assert named(store) == {record.key}
    ledger.change(record.key, into(submitted()))
    assert writes(store) == [("replace", "ledger")]
    assert named(store) == {record.key}
    ledger.change(record.key, into(landed()))
    assert writes(store) == [("replace", "ledger"), ("create", "summaries"), ("delete", "open")]
    assert entries(store) == []


def test_without_an_entry_no_record_is_created(store: Traced, ledger: Ledger) -> None:
    store.always["create"] = "before"
    with pytest.raises(StorageError):
        ledger.create(make_record())
    assert list(store.keys("ledger/")) == []


def test_the_lost_answer_of_an_entry_is_no_failure(store: Traced, ledger: Ledger) -> None:
    store.once["create"] = "after"
    record = created(ledger, make_record())
    assert named(store) == {record.key}
    assert len(entries(store)) == 1


def test_an_entry_that_cannot_be_removed_stays_and_is_no_error(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record())
    store.always["delete"] = "before"
    assert ledger.change(record.key, into(landed())).state == "landed"
    assert named(store) == {record.key}


def test_who_loses_the_race_for_a_record_removes_its_own_entry_only(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record(claim="first"))
    kept = entries(store)
    assert Ledger(store).create(make_record(claim="second")) is None
    assert entries(store) == kept
    assert named(store) == {record.key}


def test_an_entry_that_exists_already_is_not_relied_upon(store: Traced, ledger: Ledger) -> None:
    record = make_record()
    ledger.open_index.add(record)  # by an attempt that died before it created the record
    [old] = entries(store)
    created(ledger, record)
    store.delete(old)  # by a collect, to which it looked stale
    assert named(store) == {record.key}


@pytest.mark.parametrize("ended", [landed(), make_record(state="failed")], ids=["landed", "failed"])
def test_a_record_that_is_created_ended_has_no_entry(store: Traced, ledger: Ledger, ended: Record) -> None:
    created(ledger, ended)
    assert store.asked(OPEN) == []


def test_a_record_that_becomes_open_again_gets_an_entry_first(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record())
    ledger.change(record.key, into(make_record(state="failed")))
    assert entries(store) == []
    writes(store)
    ledger.change(record.key, into(submitted()))  # a late answer
    assert writes(store) == [("create", "open"), ("replace", "ledger")]
    assert named(store) == {record.key}


def test_a_late_removal_does_not_take_the_entry_of_a_record_that_is_open_again(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record())
    ledger.change(record.key, into(make_record(state="failed")))
    Ledger(store).change(record.key, into(submitted()))
    ledger.open_index.settle(record)  # by the attempt that failed, which was held up
    assert named(store) == {record.key}


def test_without_an_entry_no_record_becomes_open_again(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record(state="failed"))
    store.always["create"] = "before"
    with pytest.raises(StorageError):
        ledger.change(record.key, into(submitted()))
    found = ledger.read(record.key)
    assert found is not None
    assert found.record.state == "failed"


def test_a_new_extra_job_makes_an_ended_record_open_and_other_changes_do_not(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, landed())
    ledger.change(record.key, lambda stored: replace(stored, extra_jobs=["job-2"]))
    assert len(entries(store)) == 1
    ledger.change(record.key, lambda stored: replace(stored, deferrals=1))
    assert len(entries(store)) == 1
    ledger.change(record.key, lambda stored: replace(stored, extra_jobs=["job-2", "job-3"]))
    assert len(entries(store)) == 2
    assert named(store) == {record.key}


def test_a_record_with_an_extra_job_keeps_its_entry_when_it_lands(store: Traced, ledger: Ledger) -> None:
    record = created(ledger, make_record())
    ledger.change(record.key, into(submitted(extra_jobs=["job-2"])))
    ledger.change(record.key, into(landed(extra_jobs=["job-2"])))
    assert named(store) == {record.key}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (make_record(), True),
        (submitted(), True),
        (make_record(state="answered"), True),
        (landed(), False),
        (make_record(state="failed"), False),
        (landed(extra_jobs=["job-2"]), True),
    ],
)
def test_what_has_not_ended_or_has_extra_jobs_is_open(record: Record, expected: bool) -> None:
    assert is_open(record) is expected


# Batches


def batch_record(number: int) -> Record:
    return make_record(replace(ITEM, item=f"{number:016x}"))


def names(count: int) -> list[str]:
    return [f"{number:016x}" for number in range(count)]


def test_a_batch_writes_one_entry_for_many_items_and_removes_it_at_its_end(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(75))
    for number in range(75):
        record = created(ledger, batch_record(number))
        ledger.change(record.key, into(landed()))
        ledger.open_index.end(f"{number:016x}")
    asked = [operation for operation, _ in store.asked(OPEN)]
    assert asked == ["create", "delete", "create", "delete"]
    assert entries(store) == []


def test_the_entry_of_a_batch_is_written_with_its_first_record(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(3))
    for name in names(3)[:2]:
        ledger.open_index.end(name)  # they have landed before
    assert store.asked(OPEN) == []
    record = created(ledger, batch_record(2))
    assert writes(store) == [("create", "open"), ("create", "ledger")]
    [entry] = [read_open_entry(store, key) for key in entries(store)]
    assert entry is not None
    assert entry.items == {batch_record(number).key.rpartition("/")[0] for number in range(3)}
    assert record.key.startswith(tuple(entry.items))


def test_the_entry_of_a_batch_stays_while_one_of_its_records_is_open(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(2))
    first, second = (created(ledger, batch_record(number)) for number in range(2))
    for name in names(2):
        ledger.open_index.end(name)
    ledger.change(first.key, into(landed()))
    assert len(entries(store)) == 1
    ledger.change(second.key, into(landed()))
    assert entries(store) == []


def test_the_entry_of_a_batch_stays_if_a_record_may_have_been_created(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(1))
    store.prefix, store.always = "ledger/", {"create": "before", "read": "before"}
    with pytest.raises(StorageError):
        ledger.create(batch_record(0))
    ledger.open_index.end(names(1)[0])
    assert len(entries(store)) == 1


def test_without_its_entry_no_item_of_a_batch_is_claimed(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(2))
    store.always["create"] = "before"
    for number in range(2):
        with pytest.raises(StorageError):
            ledger.create(batch_record(number))
    assert list(store.keys("ledger/")) == []


def test_an_old_entry_of_a_batch_is_written_again_before_the_next_claim(
    store: Traced, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(0, open_index.RENEW_SECONDS + 1)
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    ledger.open_index.cover(names(2))
    created(ledger, batch_record(0))
    before = entries(store)
    writes(store)
    created(ledger, batch_record(1))
    assert writes(store) == [("create", "open"), ("delete", "open"), ("create", "ledger")]
    assert len(entries(store)) == 1
    assert entries(store) != before, "what looked stale to a collect may be removed at any moment"


def test_items_that_are_covered_later_have_an_entry_of_their_own(store: Traced, ledger: Ledger) -> None:
    for number in range(2):
        ledger.open_index.cover([f"{number:016x}"])
        created(ledger, batch_record(number))
    found = [entry for key in entries(store) if (entry := read_open_entry(store, key)) is not None]
    assert {item for entry in found for item in entry.items} == {
        batch_record(number).key.rpartition("/")[0] for number in range(2)
    }


def test_simultaneous_claims_of_a_batch_wait_for_one_entry(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(40))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: created(ledger, batch_record(number)), range(40)))
    assert len(entries(store)) == 1
    assert store.calls[0] == ("create", entries(store)[0])


def test_records_of_another_task_instance_have_their_own_entries(store: Traced, ledger: Ledger) -> None:
    ledger.open_index.cover(names(2))
    created(ledger, batch_record(0))
    other = created(ledger, make_record(replace(ITEM, task_id="other", item=names(2)[1])))
    assert named(store) == {None, other.key}


# Reading


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"record": "ledger/x"}',
        b'{"items": []}',
        b'{"items": "ab", "task_instance": "x"}',
        b'{"items": [1], "task_instance": "default/d/r/t/../.."}',
    ],
)
def test_an_entry_that_cannot_be_read_is_an_error(store: Traced, data: bytes) -> None:
    store.create(f"{OPEN}x.json", data)
    with pytest.raises(LedgerError):
        read_open_entry(store, f"{OPEN}x.json")


def test_a_marker_says_that_the_index_of_its_namespace_is_complete(store: Traced) -> None:
    assert not is_complete(store, "default")
    mark_complete(store, "default", root_of(store))
    mark_complete(store, "default", root_of(store))
    assert is_complete(store, "default")
    assert not is_complete(store, "other")


def test_a_marker_does_not_count_for_a_ledger_that_was_restored_or_moved(store: Traced) -> None:
    for identity in (b'{"id": "a"}', b'{"id": "b"}'):
        store.delete(ROOT_KEY)
        store.create(ROOT_KEY, identity)
        assert not is_complete(store, "default")
        mark_complete(store, "default", root_of(store))
        assert is_complete(store, "default")
    moved = Traced(store)
    moved.uri = f"{store.uri}-moved"
    assert not is_complete(moved, "default")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"version": 2}', b'{"version": 1, "root": ""}'])
def test_a_marker_that_this_version_did_not_write_does_not_count(store: Traced, data: bytes) -> None:
    store.create(complete_key("default"), data)
    assert not is_complete(store, "default")
