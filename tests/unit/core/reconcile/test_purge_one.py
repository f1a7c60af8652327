"""One record removed: only by a word that says so, where it may hold something paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.fingerprint_index import read_entry
from airflow_provider_geminiimg.core.ledger.layout import record_key, spool_key, thumbnail_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile.extra_jobs import adopted
from airflow_provider_geminiimg.core.storage import encode_segment
from airflow_provider_geminiimg.exceptions import BadRequestError, LedgerError, LinkExpiredError, StorageError
from tests.harness.orphaned_records import NOT_KNOWN, OrphanedRecords, nonzero, with_an_extra_job
from tests.harness.records import ITEM, Wire, landed, make_record, submitted
from tests.harness.shop import Memory

if TYPE_CHECKING:
    pass


async def test_a_record_that_was_removed_on_purpose_is_bought_again_also_where_airflow_remembers_it(
    left: OrphanedRecords,
) -> None:
    memory = Memory()
    record = await left.unknown(marker=memory)
    with pytest.raises(BadRequestError, match="--force"):
        reconcile.forget(left.ledger, record.key)
    reconcile.forget(left.ledger, record.key, force=True)
    assert left.records() == []
    bought = await left.attempt(generation=1, marker=memory)
    assert (bought.n, left.image(bought)) == (1, (f"{left.folder}/hero.png", 2))


async def test_a_record_that_is_missing_beside_one_that_was_removed_on_purpose_is_still_missed(
    left: OrphanedRecords,
) -> None:
    memory = Memory()
    record = await left.unknown(marker=memory)
    reconcile.forget(left.ledger, record.key, force=True)
    again = await left.attempt(generation=1, marker=memory)
    assert again.key == record.key
    left.store.delete(again.key)
    with pytest.raises(LedgerError, match="was removed"):
        await left.attempt(generation=1, marker=memory)
    assert left.calls("submit") == 2


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        make_record(outcome=NOT_KNOWN),
        submitted(),
        submitted(outcome=NOT_KNOWN),
        make_record(state="answered", links=["https://x"]),
        landed(extra_jobs=["paid for, too"]),
    ],
    ids=["sending", "unknown", "submitted", "vanished", "answered", "extra job"],
)
def test_what_may_hold_something_paid_for_is_removed_only_by_a_word_that_says_so(
    disk_left: OrphanedRecords, record: Record
) -> None:
    disk_left.ledger.create(record)
    before = disk_left.everything()
    with pytest.raises(BadRequestError, match="is not removed") as caught:
        reconcile.forget(disk_left.ledger, record.key)
    assert "No money was spent" not in str(caught.value)
    assert disk_left.everything() == before
    reconcile.forget(disk_left.ledger, record.key, force=True)
    assert disk_left.records() == []


@pytest.mark.parametrize("record", [landed(), make_record(state="failed", outcome=NOT_KNOWN)], ids=["landed", "failed"])
def test_what_has_come_to_its_end_is_removed_at_once(disk_left: OrphanedRecords, record: Record) -> None:
    disk_left.ledger.create(record)
    reconcile.forget(disk_left.ledger, record.key)
    assert disk_left.records() == []


def test_only_the_record_that_decides_can_be_removed(disk_left: OrphanedRecords) -> None:
    for n in (1, 2, 10):
        disk_left.ledger.create(landed(n=n))
    with pytest.raises(BadRequestError, match=r"later record, .*/10\.json"):
        reconcile.forget(disk_left.ledger, record_key(ITEM, 2))
    for n in (10, 2, 1):
        reconcile.forget(disk_left.ledger, record_key(ITEM, n))
    assert disk_left.records() == []


def test_an_unreadable_record_is_not_removed(disk_left: OrphanedRecords) -> None:
    disk_left.store.create(record_key(ITEM, 1), b"{")
    with pytest.raises(LedgerError, match="not JSON"):
        reconcile.forget(disk_left.ledger, record_key(ITEM, 1), force=True)


async def test_a_removal_that_breaks_off_leaves_a_record_that_says_lost_and_can_be_done_again(
    left: OrphanedRecords,
) -> None:
    memory = Memory()
    record = await left.attempt(land=False, marker=memory)
    wire = Wire(left.store, "ledger/")
    wire.always["delete"] = "before"
    with pytest.raises(StorageError):
        reconcile.forget(Ledger(wire), record.key, force=True)
    assert left.at(record).state == "failed"
    with pytest.raises(LinkExpiredError):
        await left.attempt(marker=memory)
    reconcile.forget(left.ledger, record.key)
    assert (await left.attempt(marker=memory)).state == "landed"


async def test_with_a_record_go_its_index_entry_and_its_spool_and_the_image_and_the_name_stay(
    left: OrphanedRecords,
) -> None:
    kept, gone = await left.attempt("kept"), await left.attempt("gone")
    [uri] = [image["uri"] for image in (gone.manifest or {})["images"]]
    left.change(gone, spooled=["spool/x"])
    left.store.create("spool/x", b"bytes")
    left.store.create(spool_key(gone.key, gone.claim, 0), b"left there by a landing that was killed")
    reconcile.forget(left.ledger, gone.key)
    assert left.environment.files.state(uri) == "there"
    assert list(left.store.keys("spool/")) == []
    assert list(left.store.keys("index/")) == [f"index/default/{encode_segment(ITEM.dag_id)}/{kept.fingerprint}.json"]
    assert len(list(left.store.keys("names/"))) == 2


async def test_with_a_record_go_its_thumbnails_and_no_others(left: OrphanedRecords) -> None:
    kept, gone = await left.attempt("kept"), await left.attempt("gone")
    assert list(left.store.keys("thumbs/")) == [thumbnail_key(record.key, 0) for record in (gone, kept)]
    reconcile.forget(left.ledger, gone.key)
    assert list(left.store.keys("thumbs/")) == [thumbnail_key(kept.key, 0)]


async def test_thumbnails_go_before_their_record_so_that_none_is_left_that_nobody_finds(
    disk_left: OrphanedRecords,
) -> None:
    record = await disk_left.attempt()
    wire = Wire(disk_left.store, "ledger/")
    wire.always["delete"] = "before"
    with pytest.raises(StorageError):
        reconcile.forget(Ledger(wire), record.key)
    assert list(disk_left.store.keys("thumbs/")) == []


async def test_an_index_entry_that_points_to_another_record_stays(left: OrphanedRecords) -> None:
    one = await left.attempt("one", prompt="the same")
    other = await left.attempt("other", prompt="the same")
    reconcile.forget(left.ledger, one.key)
    [entry] = left.store.keys("index/")
    found = read_entry(left.store, entry)
    assert found is not None
    assert found.record == other.key, "the newest"


async def test_an_extra_job_whose_record_was_removed_is_not_taken_up_again(left: OrphanedRecords) -> None:
    record, job_id = await with_an_extra_job(left)
    await left.collect()
    reconcile.forget(left.ledger, adopted(record, job_id).key)
    assert nonzero(await left.collect()) == {}
    assert left.records() == [record.key]
    reconcile.forget(left.ledger, record.key)
