"""The totals of a run are exact, whatever is open, and cost as much for many records as for few."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.ledger.layout import open_key, open_prefix, run_of, summary_key
from airflow_provider_geminiimg.core.ledger.open_index import STALE_SECONDS, mark_complete, root_of
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summaries import PARTS
from airflow_provider_geminiimg.core.reconcile import Scope, forget, purge, reindex
from airflow_provider_geminiimg.core.reconcile.open_records import IndexMender, open_batches, read_index
from airflow_provider_geminiimg.core.reconcile.run_totals import RunTotals, run_totals
from airflow_provider_geminiimg.core.reconcile.scan import batches
from airflow_provider_geminiimg.core.storage import Store, open_store
from airflow_provider_geminiimg.exceptions import Billed, LedgerError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM, Traced, age_key, landed, make_record, submitted

RUN = run_of(make_record().key)


@pytest.fixture
def store(root: str) -> Traced:
    return Traced(open_store(root, AIRFLOW_OPENERS))


@pytest.fixture
def ledger(store: Traced) -> Ledger:
    return Ledger(store)


def finish(ledger: Ledger, record: Record) -> None:
    ledger.create(record)
    ledger.change(record.key, lambda stored: replace(landed(), key=stored.key, claim=stored.claim))


def items(count: int, task_id: str = "batch") -> list[Record]:
    return [make_record(replace(ITEM, task_id=task_id, item=f"{number:016x}")) for number in range(count)]


def totals(ledger: Ledger) -> RunTotals:
    return run_totals(Ledger(ledger.store), "default", RUN)


def statuses(found: RunTotals) -> dict[str, int]:
    result: Counter[str] = Counter()
    for group, count in found.counts.items():
        result[group.status] += count
    return dict(result)


def test_open_records_are_added_to_the_summary(ledger: Ledger) -> None:
    first, second, third = items(3)
    finish(ledger, first)
    ledger.create(second)
    ledger.create(third)
    ledger.change(third.key, lambda stored: replace(submitted(), key=stored.key, claim=stored.claim))
    found = totals(ledger)
    assert statuses(found) == {"landed": 1, "waiting": 1, "in-flight": 1}
    assert found.open == {second.key: "waiting", third.key: "in-flight"}


def test_a_record_that_is_counted_and_still_has_an_entry_is_counted_once(ledger: Ledger, store: Traced) -> None:
    [record] = items(1)
    ledger.create(record)
    store.always["delete"] = "before"
    finish(ledger, record)
    assert list(store.keys(open_prefix("default")))
    assert statuses(totals(ledger)) == {"landed": 1}


def test_a_record_that_ended_and_was_not_counted_is_counted(ledger: Ledger, store: Traced) -> None:
    [record] = items(1)
    ledger.create(record)
    store.prefix, store.always = "summaries/", {"create": "before", "read": "before"}
    finish(ledger, record)
    store.always = {}
    assert ledger.summaries.read(RUN).counts() == {}
    assert statuses(totals(ledger)) == {"landed": 1}


def test_the_records_of_a_running_batch_are_counted(ledger: Ledger) -> None:
    records = items(10)
    ledger.open_index.cover([record.key.split("/")[-2] for record in records])
    for record in records[:6]:
        finish(ledger, record)
    ledger.create(records[6])
    assert statuses(totals(ledger)) == {"landed": 6, "waiting": 1}


def test_the_totals_of_a_large_run_cost_what_those_of_a_small_one_cost(ledger: Ledger, store: Traced) -> None:
    def asked() -> int:
        store.calls.clear()
        totals(ledger)
        return len(store.calls)

    records = items(80)
    for record in records[:20]:
        finish(ledger, record)
    few = asked()
    for record in records[20:]:
        finish(ledger, record)
    assert asked() == few
    assert statuses(totals(ledger)) == {"landed": 80}


def test_no_more_entries_are_read_than_records_are_shown(
    ledger: Ledger, store: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_geminiimg.core.reconcile.run_totals.MAX_READ", 5)
    for record in items(9):
        ledger.create(record)
    store.calls.clear()
    found = totals(ledger)
    assert found.more
    assert statuses(found) == {"waiting": 5}
    assert len([key for operation, key in store.calls if operation == "read" and key.startswith("open/entries/")]) == 6


def test_planned_images_without_a_record_are_not_started(ledger: Ledger) -> None:
    records = items(5)
    task_instance = records[0].key.removeprefix("ledger/").rsplit("/", 2)[0]
    ledger.summaries.plan(task_instance, [record.key.split("/")[-2] for record in records])
    finish(ledger, records[0])
    ledger.create(records[1])
    assert totals(ledger).not_started == {"batch/-1": 3}


def test_a_new_plan_does_not_count_what_only_an_earlier_plan_had(ledger: Ledger) -> None:
    records = items(5)
    task_instance = records[0].key.removeprefix("ledger/").rsplit("/", 2)[0]
    for record in records[:3]:
        finish(ledger, record)
    ledger.summaries.plan(task_instance, [record.key.split("/")[-2] for record in records[2:]])
    assert totals(ledger).not_started == {"batch/-1": 2}


@pytest.mark.parametrize("lost", ["missing", "damaged"])
async def test_lost_summaries_are_made_again(ledger: Ledger, store: Traced, lost: str) -> None:
    mark_complete(store, "default", root_of(store))
    for record in items(7):
        finish(ledger, record)
    before = totals(ledger).counts
    for key in list(store.keys("summaries/")):
        store.delete(key)
        if lost == "damaged":
            store.create(key, b"{")
    await reindex(Ledger(store), Scope("default"))
    assert totals(ledger).counts == before


async def test_records_that_somebody_removed_are_counted_as_removed_by_a_reindex(ledger: Ledger, store: Traced) -> None:
    records = items(7)
    for record in records:
        finish(ledger, record)
    for record in records[:3]:
        store.delete(record.key)
    await reindex(Ledger(store), Scope("default"))
    found = totals(ledger)
    assert (sum(found.counts.values()), sum(found.removed.values())) == (4, 3)


async def test_a_run_without_records_is_counted_as_removed_by_a_reindex(ledger: Ledger, store: Traced) -> None:
    [record] = items(1)
    finish(ledger, record)
    store.delete(record.key)
    await reindex(Ledger(store), Scope("default"))
    found = totals(ledger)
    assert (sum(found.counts.values()), sum(found.removed.values())) == (0, 1)


async def test_a_ledger_of_an_earlier_version_is_incomplete_until_all_records_were_read(
    ledger: Ledger, store: Traced
) -> None:
    for record in items(7):
        finish(ledger, record)
    for key in [*store.keys("summaries/"), *store.keys("open/")]:
        store.delete(key)
    assert not totals(ledger).complete
    await reindex(Ledger(store), Scope("default"))
    found = totals(ledger)
    assert found.complete
    assert statuses(found) == {"landed": 7}


class Killed(BaseException):
    """The process is gone."""


class Killing(Traced):
    """A store whose process is killed before a write.

    :param writes: number of writes before it.
    """

    def __init__(self, real: Store, writes: int) -> None:
        super().__init__(real)
        self.left = writes

    def _call(self, operation: str, key: str, *args: Any) -> Any:
        if operation in ("create", "replace", "delete"):
            if self.left == 0:
                raise Killed
            self.left -= 1
        return super()._call(operation, key, *args)


class Replacing(Traced):
    """A store in which another process replaces a record's entry after it was listed."""

    def __init__(self, real: Store, ledger: Ledger, record: Record) -> None:
        super().__init__(real)
        self._entry = open_key(record.key, record.claim)
        self._replace = lambda: (ledger.open_index.add_again(record.key), real.delete(self._entry))

    def _call(self, operation: str, key: str, *args: Any) -> Any:
        if (operation, key) == ("read", self._entry):
            self._replace()
        return super()._call(operation, key, *args)


class Failing(Traced):
    """A store that fails to write what begins so, after the record was removed."""

    def __init__(self, real: Store, prefix: str) -> None:
        super().__init__(real)
        self._fails = prefix
        self._removed = False
        self.failed = False

    def _call(self, operation: str, key: str, *args: Any) -> Any:
        self._removed = self._removed or (operation == "delete" and key.startswith("ledger/"))
        if self._removed and operation == "replace" and key.startswith(self._fails):
            self.failed = True
            raise StorageError("The line is down.")
        return super()._call(operation, key, *args)


def ended_uncounted(ledger: Ledger, store: Traced, record: Record) -> None:
    """A record that has landed while its summary could not be written."""
    ledger.create(record)
    store.prefix, store.always = "summaries/", dict.fromkeys(("read", "create", "replace"), "before")
    ledger.change(record.key, lambda stored: replace(landed(), key=stored.key, claim=stored.claim))
    store.prefix, store.always = "", {}


@pytest.mark.parametrize("how", ["purge", "forget"])
async def test_what_was_paid_for_a_removed_record_stays_in_the_totals_if_it_was_never_counted(
    ledger: Ledger, store: Traced, how: str
) -> None:
    [record] = items(1)
    ended_uncounted(ledger, store, record)
    await remove(how, Ledger(store), record.key)
    assert store.read(record.key) is None
    found = totals(ledger)
    assert (sum(found.counts.values()), sum(found.removed.values())) == (0, 1)


@pytest.mark.parametrize("how", ["purge", "forget"])
async def test_records_are_not_removed_while_their_summary_cannot_be_read(
    ledger: Ledger, store: Traced, how: str
) -> None:
    records = items(4)
    for record in records:
        finish(ledger, record)
    damage(store)
    with pytest.raises(LedgerError, match="reindex") as caught:
        await remove(how, Ledger(store), records[0].key)
    assert caught.value.billed is Billed.NO
    assert sorted(store.keys("ledger/")) == sorted(record.key for record in records)
    await reindex(Ledger(store), Scope("default"))
    assert statuses(totals(ledger)) == {"landed": 4}


async def test_purged_images_are_not_shown_as_not_started(ledger: Ledger, store: Traced) -> None:
    records = items(5)
    task_instance = records[0].key.removeprefix("ledger/").rsplit("/", 2)[0]
    ledger.summaries.plan(task_instance, [record.key.split("/")[-2] for record in records])
    for record in records[:3]:
        finish(ledger, record)
    await remove("purge", ledger, "")
    assert totals(ledger).not_started == {"batch/-1": 2}


async def test_an_entry_whose_record_could_not_be_counted_stays_when_another_entry_cannot_be_written(
    ledger: Ledger, store: Traced
) -> None:
    mark_complete(store, "default", root_of(store))
    first, *_ = items(2, "a_batch")
    ledger.open_index.cover([first.key.split("/")[-2]])
    ledger.create(first)  # its attempt ends here, so it needs an entry of its own
    [alone] = items(1, "z_alone")
    ended_uncounted(Ledger(store), store, alone)
    for key in list(store.keys(open_prefix("default"))):
        age_key(store, key, STALE_SECONDS + 1)
    before = totals(ledger).counts
    store.prefix, store.once = "open/", {"create": "before"}
    later = Ledger(store)
    index = await read_index(later, Scope("default"))
    mender = IndexMender(later, Scope("default"), index, read_all=False)
    async for batch in open_batches(later, Scope("default"), index):
        mender.see(batch)
    mender.finish()
    assert mender.failure is not None
    assert totals(ledger).counts == before


async def test_a_reindex_of_one_task_replaces_no_summary_of_its_run(ledger: Ledger, store: Traced) -> None:
    for record in (*items(8, "a"), *items(8, "b")):
        finish(ledger, record)
    damage(store)
    done = await reindex(Ledger(store), Scope("default", task_id="a"))
    assert done.failure is not None
    with pytest.raises(LedgerError, match="reindex"):
        totals(ledger)
    await reindex(Ledger(store), Scope("default"))
    assert statuses(totals(ledger)) == {"landed": 16}


@pytest.mark.parametrize("killed_after", range(1, 12))
async def test_a_reindex_that_is_killed_leaves_unreadable_or_exact_summaries(
    ledger: Ledger, store: Traced, killed_after: int
) -> None:
    mark_complete(store, "default", root_of(store))
    for record in items(16):
        finish(ledger, record)
    damage(store)
    with contextlib.suppress(Killed):
        await reindex(Ledger(Killing(store, writes=killed_after)), Scope("default"))
    with contextlib.suppress(LedgerError):
        assert statuses(totals(ledger)) == {"landed": 16}


async def test_a_record_that_ends_during_a_reindex_of_damaged_summaries_is_counted(
    ledger: Ledger, store: Traced
) -> None:
    records = items(6)
    for record in records[:5]:
        finish(ledger, record)
    ledger.create(records[5])
    damage(store)
    scope = Scope("default")
    mender = IndexMender(ledger, scope, await read_index(ledger, scope), read_all=True)
    async for batch in batches(ledger, scope):
        mender.see(batch)
    ledger.change(records[5].key, lambda stored: replace(landed(), key=stored.key, claim=stored.claim))
    mender.finish()
    assert mender.failure is None
    assert statuses(totals(ledger)) == {"landed": 6}


async def test_a_summary_of_a_later_version_is_refused_and_stays(ledger: Ledger, store: Traced) -> None:
    for record in items(3):
        finish(ledger, record)
    data = b'{"version": 3, "counted": {}}'
    damage(store, data)
    done = await reindex(Ledger(store), Scope("default"))
    assert done.failure is not None
    assert "version 3" in done.failure.message
    assert {blob.data for key in store.keys("summaries/") if (blob := store.read(key)) is not None} == {data}


def test_an_entry_that_is_replaced_while_the_totals_are_read_is_not_missed(ledger: Ledger, store: Traced) -> None:
    [record] = items(1)
    ledger.create(record)
    assert statuses(run_totals(Ledger(Replacing(store, ledger, record)), "default", RUN)) == {"waiting": 1}


async def remove(how: str, ledger: Ledger, key: str) -> None:
    """Remove one record by name, or all."""
    if how == "forget":
        forget(ledger, key)
    else:
        assert [each async for each in purge(ledger, Scope("default"), days=0.0)]


def damage(store: Traced, data: bytes = b"{", run: str = "") -> None:
    for key in list(store.keys(f"summaries/{run}")):
        store.delete(key)
        store.create(key, data)


def in_run(run_id: str, count: int = 16) -> list[Record]:
    return [make_record(replace(ITEM, run_id=run_id, item=f"{number:016x}")) for number in range(count)]


@pytest.mark.parametrize("trouble", ["a later version", "a failed read"])
async def test_a_run_whose_summary_cannot_be_mended_stops_no_other_run(
    ledger: Ledger, store: Traced, trouble: str
) -> None:
    first, second = in_run("a"), in_run("b")
    for record in (*first, *second):
        finish(ledger, record)
    runs = [run_of(records[0].key) for records in (first, second)]
    if trouble == "a later version":
        damage(store, b'{"version": 3}', runs[0])
    damage(store, b"{", runs[1])
    if trouble == "a failed read":
        store.prefix, store.always = f"summaries/{runs[0]}", {"read": "before"}
    done = await reindex(Ledger(store), Scope("default"))
    store.always = {}
    assert done.failure is not None
    assert sum(run_totals(Ledger(store), "default", runs[1]).counts.values()) == 16
    if trouble == "a failed read":
        await reindex(Ledger(store), Scope("default"))
        assert sum(run_totals(Ledger(store), "default", runs[0]).counts.values()) == 16


async def test_the_entry_of_a_record_that_cannot_be_counted_stays(ledger: Ledger, store: Traced) -> None:
    mark_complete(store, "default", root_of(store))
    [record] = items(1)
    ended_uncounted(ledger, store, record)
    for part in range(PARTS):
        store.create(summary_key(RUN, part), b"{")
    entries = list(store.keys(open_prefix("default")))
    for key in entries:
        age_key(store, key, STALE_SECONDS + 1)
    index = await read_index(ledger, Scope("default"))
    mender = IndexMender(ledger, Scope("default"), index, read_all=False)
    async for batch in open_batches(ledger, Scope("default"), index):
        mender.see(batch)
    mender.finish()
    assert mender.failure is not None
    assert list(store.keys(open_prefix("default"))) == entries


async def test_a_failure_while_a_run_is_counted_leaves_its_unreadable_summary_as_it_is(
    ledger: Ledger, store: Traced
) -> None:
    for record in in_run("a", 40):
        finish(ledger, record)
    first, second, *_ = store.keys("summaries/")
    for key, data in ((first, b"{"), (second, b'{"version": 2}')):  # the second lost what it had counted
        store.delete(key)
        store.create(key, data)
    store.prefix, store.always = second, {"replace": "before"}
    done = await reindex(Ledger(store), Scope("default"))
    assert done.failure is not None
    blob = store.read(first)
    assert blob is not None
    assert blob.data == b"{"


def test_an_image_that_is_forgotten_while_its_batch_runs_is_counted_once(ledger: Ledger, store: Traced) -> None:
    first, second = items(2)
    ledger.open_index.cover([record.key.split("/")[-2] for record in (first, second)])
    finish(ledger, first)
    forget(Ledger(store), first.key)
    finish(ledger, second)
    for record in (first, second):
        ledger.open_index.end(record.key.split("/")[-2])
    found = totals(ledger)
    assert (sum(found.counts.values()), sum(found.removed.values())) == (1, 1)


async def test_a_record_that_is_purged_while_a_reindex_has_read_it_is_counted_once(
    ledger: Ledger, store: Traced
) -> None:
    for record in items(3):
        finish(ledger, record)
    for key in list(store.keys("summaries/")):
        store.delete(key)
    scope = Scope("default")
    mender = IndexMender(Ledger(store), scope, await read_index(ledger, scope), read_all=True)
    async for batch in batches(ledger, scope):
        mender.see(batch)
    await remove("purge", Ledger(store), "")
    mender.finish()
    await reindex(Ledger(store), scope)
    found = totals(ledger)
    assert (sum(found.counts.values()), sum(found.removed.values())) == (0, 3)


@pytest.mark.parametrize("how", ["purge", "forget"])
async def test_what_was_paid_for_a_removed_record_is_counted_beside_what_was_bought_again(
    ledger: Ledger, store: Traced, how: str
) -> None:
    [record] = items(1)
    finish(ledger, record)
    writes = Failing(store, f"summaries/{RUN}")
    await remove(how, Ledger(writes), record.key)
    assert writes.failed
    finish(ledger, replace(record, claim="another"))
    found = totals(ledger)
    assert (sum(found.counts.values()), sum(found.removed.values())) == (1, 1)
    await reindex(Ledger(store), Scope("default"))
    assert sum(totals(ledger).removed.values()) == 1


def test_nothing_is_given_up_while_the_summary_cannot_be_read(ledger: Ledger, store: Traced) -> None:
    first, second = items(2)
    finish(ledger, first)
    ledger.create(second)
    damage(store)
    with pytest.raises(LedgerError, match="reindex"):
        forget(Ledger(store), second.key, force=True)
    found = ledger.read(second.key)
    assert found is not None
    assert found.record.state == "intent"


async def test_a_part_of_another_runs_place_is_corrected_by_a_reindex(ledger: Ledger, store: Traced) -> None:
    for record in items(16):
        finish(ledger, record)
    first, second = list(store.keys("summaries/"))[:2]
    blob = store.read(first)
    assert blob is not None
    store.delete(second)
    store.create(second, blob.data)  # restored from the wrong file
    await reindex(Ledger(store), Scope("default"))
    assert statuses(totals(ledger)) == {"landed": 16}
    assert totals(ledger).removed == {}


async def test_an_entry_stays_if_its_record_exists_and_is_not_listed(tmp_path: Path) -> None:
    store = open_store((tmp_path / "root").as_uri(), AIRFLOW_OPENERS)
    ledger = Ledger(store)
    [record] = items(1)
    ledger.create(record)
    folder = tmp_path / "root" / Path(record.key).parents[2]
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    for key in list(store.keys(open_prefix("default"))):
        age_key(store, key, STALE_SECONDS + 1)
    await reindex(Ledger(store), Scope("default"))
    assert list(store.keys(open_prefix("default")))
