"""The totals of a run are exact, whatever is open, and cost as much for many records as for few."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from airflow_provider_geminiimg.core.ledger.layout import open_prefix, run_of
from airflow_provider_geminiimg.core.ledger.open_index import mark_complete, root_of
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import Scope, reindex
from airflow_provider_geminiimg.core.reconcile.run_totals import RunTotals, run_totals
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM, Traced, landed, make_record, submitted

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
