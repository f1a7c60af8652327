"""Keys of task instances in loops: readable, one for each iteration, and no other keys than before outside loops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_provider_geminiimg.core.ledger.layout import (
    PLANS,
    TaskIndex,
    index_of,
    is_record_key,
    names_of,
    plan_of,
    record_key,
    saved_key,
    shown_prefix,
    spool_key,
    task_instance_of,
    task_key,
    thumbnail_key,
)
from tests.harness.records import ITEM

INDEXES = [
    (TaskIndex(-1), "-1"),
    (TaskIndex(0), "0"),
    (TaskIndex(1200), "1200"),
    (TaskIndex(-1, 0), "0.-1"),
    (TaskIndex(-1, 2), "2.-1"),
    (TaskIndex(5, 12), "12.5"),
]


@pytest.mark.parametrize(("index", "text"), INDEXES, ids=[text for _, text in INDEXES])
def test_an_index_is_read_back_from_its_text(index: TaskIndex, text: str) -> None:
    assert str(index) == text
    assert TaskIndex.parse(text) == index


@pytest.mark.parametrize("text", ["", ".", "x", "1.", ".1", "1.2.3", "01.2", "-1.2", "1.+2", "1. 2", "٣.1", "9" * 20])
def test_any_other_text_is_no_index(text: str) -> None:
    assert TaskIndex.parse(text) is None


@pytest.mark.parametrize(("index", "text"), INDEXES, ids=[text for _, text in INDEXES])
def test_every_key_of_a_task_instance_has_its_index(index: TaskIndex, text: str) -> None:
    item = replace(ITEM, map_index=index.map_index, iteration=index.iteration)
    record = record_key(item, 1)
    place = f"default/campaign/{ITEM.task_instance.split('/')[2]}/hero/{text}"
    assert item.task_instance == place
    assert record == f"ledger/{place}/0/1.json"
    assert is_record_key(record)
    assert task_instance_of(record) == place
    assert index_of(record) == index
    assert names_of(record)[3] == text
    assert task_key(item).endswith(f"/tasks/hero/{text}.json")
    assert item.images.endswith(f"/hero/{text}")
    keys = (saved_key(PLANS, place, 3), shown_prefix(item, "t"), spool_key(record, "c", 0), thumbnail_key(record, 0))
    assert all(place in key for key in keys)
    assert plan_of(saved_key(PLANS, place, 3)) == (place, index, 3)


def test_no_two_task_instances_share_a_key() -> None:
    items = [
        replace(ITEM, map_index=index, iteration=iteration)
        for index in (-1, 0, 1, 2, 12)
        for iteration in (None, 0, 1, 2, 12)
    ]
    assert len({item.path for item in items}) == len(items)
    assert len({item.images for item in items}) == len(items)
