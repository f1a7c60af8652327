"""Old records removed: only what has ended, whole tasks at once, and no image."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.fingerprint_index import write_entry
from airflow_provider_geminiimg.core.ledger.layout import RETURNED, index_key, record_key, spool_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest, SavedRequestStore
from airflow_provider_geminiimg.core.reconcile.extra_jobs import adopted
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.exceptions import LedgerError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import default_s3_client
from tests.harness.orphaned_records import NOT_KNOWN, SCOPE, OrphanedRecords, with_an_extra_job
from tests.harness.records import ITEM, Wire, landed, make_record, plan_of, submitted
from tests.harness.shop import Memory

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


DAY = 86_400.0


async def purged(left: OrphanedRecords, days: float = 0.0, **more: Any) -> list[str]:
    return [key async for key in reconcile.purge(left.ledger, SCOPE, days=days, **more)]


async def test_old_records_of_which_everything_has_ended_go_and_all_images_stay(left: OrphanedRecords) -> None:
    first = await left.attempt("old", prompt="a red fox")
    second = await left.attempt("old", prompt="a blue fox", generation=1)
    images = {name: data for name, data in left.everything().items() if name.endswith((".png", ".json"))}
    assert await purged(left, 1.0) == []
    assert await purged(left, dry_run=True) == [first.key, second.key]
    assert left.records() == [first.key, second.key]
    assert await purged(left) == [first.key, second.key]
    assert left.records() == []
    assert list(left.store.keys("index/")) == list(left.store.keys("forgotten/")) == []
    for kind in ("thumbs", "names", "jobs", "spool"):
        assert list(left.store.keys(f"{kind}/")) == []
    folder = left.folder.rpartition("/")[2]
    assert {name for name in images if f"{folder}/" in name} == {
        name for name in left.everything() if f"{folder}/" in name
    }


UNFINISHED = {
    "sending": make_record(n=2),
    "unknown": make_record(n=2, outcome=NOT_KNOWN),
    "submitted": submitted(n=2),
    "answered": make_record(n=2, state="answered"),
    "another item": submitted(dataclasses.replace(ITEM, item="x0123")),
    "extra job": landed(n=2, extra_jobs=["paid for, too"]),
}


@pytest.mark.parametrize("kind", UNFINISHED)
async def test_nothing_goes_of_a_task_of_which_something_has_not_ended(disk_left: OrphanedRecords, kind: str) -> None:
    other = landed(dataclasses.replace(ITEM, task_id="other"))
    for record in (landed(), UNFINISHED[kind], landed(n=3), other):
        disk_left.ledger.create(record)
    assert await purged(disk_left) == [other.key]
    assert len(disk_left.records()) == 3


async def test_nothing_goes_of_a_task_of_which_a_record_can_not_be_read(disk_left: OrphanedRecords) -> None:
    disk_left.ledger.create(landed())
    disk_left.store.create(record_key(ITEM, 2), b"{")
    assert await purged(disk_left) == []


async def test_age_is_counted_by_the_stores_clock_and_the_youngest_record_counts(disk_left: OrphanedRecords) -> None:
    for n in (1, 2):
        disk_left.ledger.create(landed(n=n))
    root = Path(disk_left.environment.root.removeprefix("file://"))
    long_ago = time.time() - 10 * DAY
    os.utime(root / record_key(ITEM, 1), (long_ago, long_ago))
    assert await purged(disk_left, 9.0) == []
    os.utime(root / record_key(ITEM, 2), (long_ago, long_ago))
    assert await purged(disk_left, 11.0) == []
    assert await purged(disk_left, 9.0) == [record_key(ITEM, 1), record_key(ITEM, 2)]


async def test_a_purge_that_breaks_off_has_left_the_record_that_decides(disk_left: OrphanedRecords) -> None:
    for n in (2, 9, 10):
        disk_left.ledger.create(landed(n=n))

    class Breaking(Wire):
        def delete(self, key: str) -> None:
            if key.endswith("/10.json"):
                raise StorageError("The line is down.")
            super().delete(key)

    with pytest.raises(StorageError):
        _ = [key async for key in reconcile.purge(Ledger(Breaking(disk_left.store)), SCOPE, days=0.0)]
    assert disk_left.records() == [record_key(ITEM, 10)]


async def test_an_extra_job_goes_together_with_the_record_that_names_it(left: OrphanedRecords) -> None:
    record, job_id = await with_an_extra_job(left)
    assert await purged(left) == []
    await left.collect()
    assert await purged(left) == [record.key, adopted(record, job_id).key]


async def test_a_clear_of_what_was_purged_says_so_instead_of_paying_again_where_airflow_remembers(
    left: OrphanedRecords,
) -> None:
    memory = Memory()
    await left.attempt(marker=memory)
    await purged(left)
    with pytest.raises(LedgerError, match="was removed"):
        await left.attempt(generation=1, marker=memory)
    assert left.paid() == 1


FINGERPRINTS = [character * 64 for character in "abc"]


def batch_of(left: OrphanedRecords, fingerprints: Sequence[str], **values: Any) -> list[Record]:
    """What a batch's attempt has landed."""
    records = [landed(dataclasses.replace(ITEM, item=each[:16]), fingerprint=each, **values) for each in fingerprints]
    for record in records:
        assert left.ledger.create(record)
    return records


async def test_a_batchs_plan_goes_together_with_the_records_of_all_that_it_wanted(left: OrphanedRecords) -> None:
    records = batch_of(left, FINGERPRINTS)
    plan = plan_of(left.store, ITEM, [*FINGERPRINTS, FINGERPRINTS[0]])
    assert await purged(left, 1.0) == []
    assert await purged(left, dry_run=True) == [plan, *(record.key for record in records)]
    assert left.store.read(plan) is not None
    await purged(left)
    assert list(left.store.keys("batches/")) == left.records() == []


async def test_a_plan_stays_while_something_of_it_is_not_made_or_can_not_be_told(left: OrphanedRecords) -> None:
    records = batch_of(left, FINGERPRINTS[:2])
    unmade = plan_of(left.store, ITEM, FINGERPRINTS)
    unreadable = unmade.replace("/0.json", "/1.json")
    left.store.create(unreadable, b"{")
    assert await purged(left) == [record.key for record in records]
    assert list(left.store.keys("batches/")) == [unmade, unreadable]


def returned(left: OrphanedRecords, generation: int, prompt: str | None) -> str:
    """What a function returned; ``None``: it has landed."""
    request = None if prompt is None else ImageRequest(operation="generate", prompt=prompt)
    item = dataclasses.replace(ITEM, task_id="hero")
    SavedRequestStore(SavedRequest, left.store, RETURNED, item, None).write(generation, SavedRequest(request=request))
    return list(left.store.keys(f"{RETURNED}/"))[-1]


async def test_what_a_function_returned_goes_together_with_the_record_of_its_image(left: OrphanedRecords) -> None:
    kept = [returned(left, 0, None)]
    blob = left.store.read(kept[0])
    kept.append(returned(left, 1, "a red fox"))
    left.store.create(kept[0], blob.data)  # versions before left it there
    record = await left.attempt(prompt="a red fox")
    assert await purged(left, 1.0) == []
    assert await purged(left, dry_run=True) == [*kept, record.key]
    assert await purged(left) == [*kept, record.key]
    assert list(left.store.keys(f"{RETURNED}/")) == left.records() == []


async def test_what_a_function_returned_stays_while_its_image_is_not_made_or_nobody_can_tell(
    left: OrphanedRecords,
) -> None:
    other = await left.attempt(prompt="a red fox")
    unmade = returned(left, 0, "a grey wolf")
    unreadable = unmade.replace("/0.json", "/1.json")
    left.store.create(unreadable, b"{")
    assert await purged(left, dry_run=True) == [other.key]
    unfinished = await left.submitted(prompt="a grey wolf", generation=1)
    assert await purged(left) == []
    assert list(left.store.keys(f"{RETURNED}/")) == [unmade, unreadable]
    await left.collect()
    assert await purged(left) == [unmade, other.key, unfinished.key]
    assert list(left.store.keys(f"{RETURNED}/")) == [unreadable]


async def test_a_purge_leaves_other_namespaces_alone(disk_left: OrphanedRecords) -> None:
    other = landed(dataclasses.replace(ITEM, namespace="other"))
    disk_left.ledger.create(other)
    assert await purged(disk_left) == []
    assert disk_left.records() == [other.key]


def folders_under(top: Path) -> set[str]:
    """The first parts of all folders under `top`."""
    return {path.relative_to(top).parts[0] for path in top.rglob("*") if path.is_dir()}


async def test_on_disk_no_empty_folder_of_a_task_is_left(disk_left: OrphanedRecords, local_root: str) -> None:
    record = await disk_left.attempt("old")
    assert await purged(disk_left) == [record.key]
    assert folders_under(Path(local_root.removeprefix("file://"))) <= {"images", "index", "open", "probe", "summaries"}


async def test_an_image_of_two_records_leaves_no_entry_in_the_index(disk_left: OrphanedRecords) -> None:
    """Neither record may be named by the index when both are removed."""
    first = await disk_left.attempt("old")
    again = await disk_left.attempt("old", generation=1, on_clear="regenerate")
    if again.key == first.key:
        pytest.fail("the second attempt was to buy again")
    assert await purged(disk_left) == [first.key, again.key]
    assert list(disk_left.store.keys("index/")) == []


async def test_many_task_instances_of_a_bucket_go_with_few_requests(
    s3_root: str, sandbox: Sandbox, onemin: str
) -> None:
    left, methods = OrphanedRecords(sandbox, onemin), list[str]()
    items = [dataclasses.replace(ITEM, run_id=f"run{number}") for number in range(20)]
    for item in items:
        left.ledger.create(landed(item))
    events = default_s3_client(None).meta.events
    events.register("before-send.s3", lambda request, **_: methods.append(request.method))
    assert sorted(await purged(left)) == sorted(record_key(item, 1) for item in items)
    assert methods.count("POST") == 2  # what belongs to the records, and the records
    assert "DELETE" not in methods


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first record is removed after the second one was read, and before any other is."""
    monkeypatch.setattr(importlib.import_module(reconcile.purge.__module__), "_TOGETHER", 1)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("spooled", [True, False])
async def test_nothing_goes_of_a_task_that_has_bought_again_since_the_records_were_listed(
    disk_left: OrphanedRecords, spooled: bool
) -> None:
    ledger, late = disk_left.ledger, dataclasses.replace(ITEM, run_id="z")
    for item in (dataclasses.replace(ITEM, run_id="a"), late):
        ledger.create(landed(item))
    going = reconcile.purge(ledger, SCOPE, days=0.0)
    await anext(going)
    record = make_record(late, n=2, state="answered")
    bytes_of_image = spool_key(record.key, record.claim, 0)
    if spooled:
        disk_left.store.create(bytes_of_image, b"the paid image")
    ledger.create(dataclasses.replace(record, spooled=[bytes_of_image] if spooled else []))
    assert [key async for key in going] == []
    assert [key for key in disk_left.records() if "/z/" in key] == [record_key(late, 1), record_key(late, 2)]
    assert list(disk_left.store.keys("spool/")) == ([bytes_of_image] if spooled else [])


@pytest.mark.usefixtures("one_by_one")
async def test_nothing_goes_of_a_task_whose_failed_request_was_answered_since_the_records_were_listed(
    disk_left: OrphanedRecords,
) -> None:
    ledger, late = disk_left.ledger, make_record(dataclasses.replace(ITEM, run_id="z"), state="failed")
    for record in (landed(dataclasses.replace(ITEM, run_id="a")), late):
        ledger.create(record)
    going = reconcile.purge(ledger, SCOPE, days=0.0)
    await anext(going)
    ledger.change(late.key, lambda stored: dataclasses.replace(stored, state="submitted", job_id="paid"))
    assert [key async for key in going] == []
    assert disk_left.records() == [late.key]


def _used_by_a_clear(ledger: Ledger, record: Record) -> None:
    ledger.change(record.key, lambda stored: dataclasses.replace(stored, generation=1, asked=stored.destination))


def _answered_late(ledger: Ledger, record: Record) -> None:
    ledger.change(record.key, lambda stored: dataclasses.replace(stored, extra_jobs=["paid-too"]))


def _forgotten_and_bought_again(ledger: Ledger, record: Record) -> None:
    reconcile.forget(ledger, record.key, force=True)
    again = make_record(dataclasses.replace(ITEM, run_id="z"), state="submitted", job_id="paid")
    ledger.create(again)
    write_entry(ledger.store, index_key(again.key, again.fingerprint), again, None)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("change", [_used_by_a_clear, _answered_late, _forgotten_and_bought_again])
async def test_a_landed_record_that_has_changed_since_the_records_were_listed_stays(
    disk_left: OrphanedRecords, change: Callable[[Ledger, Record], None]
) -> None:
    ledger, late = disk_left.ledger, landed(dataclasses.replace(ITEM, run_id="z"))
    for record in (landed(dataclasses.replace(ITEM, run_id="a")), late):
        ledger.create(record)
    going = reconcile.purge(ledger, SCOPE, days=0.0)
    await anext(going)
    change(Ledger(disk_left.store), late)
    indexed = list(disk_left.store.keys("index/"))
    assert [key async for key in going] == []
    assert disk_left.records() == [late.key]
    assert list(disk_left.store.keys("index/")) == indexed


@pytest.mark.usefixtures("one_by_one")
async def test_the_record_that_decides_stays_if_another_one_of_its_item_has_changed(disk_left: OrphanedRecords) -> None:
    ledger, item = disk_left.ledger, dataclasses.replace(ITEM, run_id="z")
    first, last = landed(item), landed(item, n=2)
    for record in (landed(dataclasses.replace(ITEM, run_id="a")), first, last):
        ledger.create(record)
    going = reconcile.purge(ledger, SCOPE, days=0.0)
    await anext(going)
    _answered_late(Ledger(disk_left.store), first)
    assert [key async for key in going] == []
    assert disk_left.records() == [first.key, last.key]
