"""What dead attempts left behind, looked at: how each record stands, and what is shown of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.reconcile import RecordEntry, Scope
from airflow_provider_geminiimg.exceptions import BadRequestError, InvalidImageError, LedgerError, UpstreamFailedError
from tests.harness.orphaned_records import NOT_KNOWN, SCOPE, OrphanedRecords
from tests.harness.records import ITEM, landed, make_record, submitted

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize(
    ("record", "age", "status"),
    [
        (make_record(), 239.0, "waiting"),
        (make_record(), 240.0, "unknown"),
        (make_record(outcome=NOT_KNOWN), 0.0, "unknown"),
        (submitted(), 239.0, "in-flight"),
        (submitted(), 240.0, "to-collect"),
        (submitted(outcome=InvalidImageError("No image.").to_dict()), 240.0, "to-collect"),
        (submitted(outcome=NOT_KNOWN), 0.0, "unknown"),
        (make_record(state="answered", links=["https://link"]), 0.0, "in-flight"),
        (make_record(state="answered", links=["https://link"]), 240.0, "to-collect"),
        (landed(), 0.0, "landed"),
        (submitted(state="failed", outcome=UpstreamFailedError("x").to_dict()), 999.0, "failed"),
    ],
)
def test_a_record_stands_as_its_state_its_age_and_its_outcome_say(record: Record, age: float, status: str) -> None:
    assert RecordEntry(record.key, StoredRecord(record, "v", age)).status == status


async def test_every_record_of_the_namespace_is_walked_and_filters_leave_out_the_others(left: OrphanedRecords) -> None:
    odd = dataclasses.replace(ITEM, dag_id="a b/c", run_id="x::y", task_id="..")
    items = [
        ITEM,
        odd,
        dataclasses.replace(odd, run_id="x::z"),
        dataclasses.replace(odd, task_id="...", map_index=3),
        dataclasses.replace(ITEM, namespace="default2"),
    ]
    keys = [record_key(item, n) for item in items for n in (1, 2, 10)]
    for key, item in zip(keys, [item for item in items for _ in range(3)], strict=True):
        n = int(key.rpartition("/")[2].removesuffix(".json"))
        assert left.ledger.create(make_record(item, n))
    left.store.create("ledger/default/notes.json", b"not a record")
    left.store.create(f"{ITEM.path}/notes.json", b"nor is this")

    async def walked(*scope: str | None) -> list[str]:
        return sorted([entry.key async for entry in reconcile.walk(left.ledger, Scope(*scope))])

    assert await walked("default") == sorted(keys[:12])
    assert await walked("default", "a b/c") == sorted(keys[3:12])
    assert await walked("default", "a b/c", "x::y") == sorted([*keys[3:6], *keys[9:12]])
    assert await walked("default", None, "x::y") == sorted([*keys[3:6], *keys[9:12]])
    assert await walked("default", None, None, "..") == sorted(keys[3:9])
    assert await walked("default", "a b") == []
    assert await walked("default2") == sorted(keys[12:])


async def test_a_record_that_can_not_be_read_is_an_entry_like_any_other(left: OrphanedRecords) -> None:
    left.ledger.create(make_record())
    left.store.create(f"{ITEM.path}/2.json", b"{")
    left.store.create(f"{ITEM.path}/3.json", json.dumps({"schema": 99}).encode())
    entries = [entry async for entry in reconcile.walk(left.ledger, SCOPE)]
    assert [entry.status for entry in entries] == ["waiting", "unreadable", "unreadable"]
    assert "not JSON" in str(reconcile.summary(entries[1])["error"])
    assert "schema 99" in str(reconcile.summary(entries[2])["error"])
    with pytest.raises(LedgerError, match="not JSON"):
        reconcile.detail(entries[1])


async def test_a_record_that_is_listed_and_not_there_is_unreadable_and_not_absent(disk_left: OrphanedRecords) -> None:
    disk_left.ledger.create(make_record())
    path = Path(disk_left.environment.root.removeprefix("file://")) / record_key(ITEM, 1)
    path.unlink()
    path.symlink_to("nowhere")
    [entry] = [entry async for entry in reconcile.walk(disk_left.ledger, SCOPE)]
    assert (entry.status, "listed" in str(entry.error)) == ("unreadable", True)


async def test_a_record_that_is_removed_during_the_walk_is_not_there(disk_left: OrphanedRecords) -> None:
    for n in range(1, 10):
        disk_left.ledger.create(make_record(n=n))
    walk = reconcile.walk(disk_left.ledger, SCOPE)
    await anext(walk)
    disk_left.store.delete(record_key(ITEM, 9))
    assert len([entry async for entry in walk]) == 7


def test_a_record_that_does_not_exist_is_refused_by_its_key(disk_left: OrphanedRecords) -> None:
    for key in (record_key(ITEM, 1), "ledger/../../etc/passwd", "probe/x", ""):
        with pytest.raises(BadRequestError, match="There is no record"):
            reconcile.entry_at(disk_left.ledger, key)


def test_what_is_shown_of_a_record_has_no_link_and_a_prompt_only_where_prompts_are_recorded(
    disk_left: OrphanedRecords,
) -> None:
    answered = make_record(state="answered", links=["https://secret.example/x?sig=1"])
    disk_left.ledger.create(answered)
    entry = reconcile.entry_at(disk_left.ledger, answered.key)
    shown = reconcile.detail(entry)
    assert shown["record"]["links"] == 1
    assert "prompt" not in shown["record"]
    assert "secret.example" not in json.dumps([shown, reconcile.summary(entry)])
    disk_left.change(answered, prompt="a red fox")
    assert reconcile.detail(reconcile.entry_at(disk_left.ledger, answered.key))["record"]["prompt"] == "a red fox"
