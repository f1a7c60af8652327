"""What a page and a summary of the gallery cost, and that both show what the records say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from airflow_provider_geminiimg.core.ledger.layout import Item, complete_key, record_key
from airflow_provider_geminiimg.core.ledger.open_index import mark_complete, root_of
from airflow_provider_geminiimg.core.ledger.record import Record, dump_record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.gallery import app
from airflow_provider_geminiimg.gallery.addresses import address_of
from airflow_provider_geminiimg.gallery.queries import GalleryQueries
from airflow_provider_geminiimg.gallery.run_records import RecordFilter, place_of
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.api_server import USERS, api_server
from tests.harness.records import ITEM, Traced, landed, make_record, submitted

if TYPE_CHECKING:
    from starlette.testclient import TestClient

WANTED = RecordFilter(ITEM.dag_id, ITEM.run_id)


class Counted(Traced):
    """A store that also counts the keys that it lists."""

    listed = 0

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        for key in super().keys(prefix, after):
            self.listed += 1
            yield key


def batch_item(number: int, **values: Any) -> Item:
    return replace(ITEM, task_id="catalogue", item=f"{number:016x}", **values)


def gallery(folder: Path, records: list[Record]) -> tuple[GalleryQueries, Counted]:
    """A ledger with these records, each counted or with an entry in the index."""
    for record in records:
        path = folder / record.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dump_record(record))
    ledger = Ledger(Counted(open_store(str(folder), AIRFLOW_OPENERS)))
    ledger.summaries.count([record for record in records if record.state in ("landed", "failed")])
    for record in records:
        if record.state not in ("landed", "failed"):
            ledger.open_index.add(record)
    ledger.store.create("root.json", b"{}")
    mark_complete(ledger.store, "default", root_of(ledger.store))
    store = ledger.store
    assert isinstance(store, Counted)
    return GalleryQueries(Ledger(store), "default", Files(AIRFLOW_OPENERS)), store


def cost_of(queries: GalleryQueries, store: Counted, what: str) -> list[str]:
    store.calls.clear()
    if what == "summary":
        assert queries.summary(WANTED)["complete"]
    else:
        assert len(queries.page(WANTED, None, 60)[0]) == 60
    return sorted(operation for operation, _ in store.calls)


@pytest.mark.parametrize("what", ["summary", "page"])
def test_a_page_and_a_summary_of_a_large_run_cost_as_much_as_those_of_a_small_one(tmp_path: Path, what: str) -> None:
    few, many = (
        cost_of(*gallery(tmp_path / str(count), [landed(batch_item(n)) for n in range(count)]), what)
        for count in (300, 3_000)
    )
    assert few == many
    assert len(few) < 80


def test_a_page_lists_no_more_than_it_shows_and_goes_on_from_any_record(tmp_path: Path) -> None:
    records = [landed(batch_item(number)) for number in range(300)]
    queries, store = gallery(tmp_path, records)
    store.listed = 0
    items, _ = queries.page(WANTED, records[199].key, 20)
    assert [item["record"] for item in items] == [record.key for record in records[200:220]]
    assert store.listed < 40


def mixed() -> list[Record]:
    """Records of all kinds of tasks and states."""
    cost = {"amount": 0.1, "currency": "USD", "basis": "gateway"}
    return [
        *(landed(batch_item(number), cost=cost, model=f"m{number % 2}") for number in range(12)),
        *(landed(batch_item(3), n, cost=cost) for n in range(2, 12)),
        *(make_record(batch_item(n), state="failed", outcome=None, cost=cost) for n in range(20, 23)),
        submitted(batch_item(30), cost=cost),
        make_record(batch_item(31)),
        *(landed(replace(ITEM, task_id="each", map_index=index)) for index in range(12)),
        *(landed(replace(ITEM, task_id="draw", iteration=each), cost=cost) for each in (0, 10, 2)),
        landed(replace(ITEM, task_id="alone")),
    ]


FILTERS: list[dict[str, Any]] = [
    {},
    *({"status": each} for each in ("landed", "failed", "in-flight", "waiting", "unknown", "unreadable")),
    {"model": "m1"},
    {"model": "none"},
    {"model": "m0", "status": "landed"},
    {"task_id": "catalogue", "status": "failed"},
    {"task_id": "catalogue", "map_index": -1},
    {"task_id": "catalogue", "map_index": -1, "status": "failed"},
    {"task_id": "each", "map_index": 3},
    {"map_index": 3},
    {"task_id": "draw"},
    {"iteration": 10},
    {"task_id": "nothing"},
]


def pages(queries: GalleryQueries, wanted: RecordFilter) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        items, after = queries.page(wanted, after, 5)
        found += [item["record"] for item in items]
        if after is None:
            return found


@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_what_is_counted_shows_the_same_as_reading_all_records(tmp_path: Path, values: dict[str, Any]) -> None:
    queries, store = gallery(tmp_path, mixed())
    wanted = replace(WANTED, **values)
    quick, counted = pages(queries, wanted), queries.summary(wanted)
    store.delete(complete_key("default"))
    slow, read = pages(queries, wanted), queries.summary(wanted)
    assert quick == slow == sorted(slow, key=place_of)
    assert (counted.pop("complete"), read.pop("complete")) == (True, False)
    if {*values} <= {"task_id", "map_index", "iteration"}:  # what a summary takes
        assert counted == read


@pytest.mark.parametrize("after", ["ledger/x.json", "ledger/default/a/b/c/x/0/1.json", "ledger/~/1.json"])
def test_a_cursor_that_names_no_record_is_the_beginning(tmp_path: Path, after: str) -> None:
    queries, _ = gallery(tmp_path, [landed()])
    assert [item["record"] for item in queries.page(WANTED, after, 5)[0]] == [record_key(ITEM, 1)]


def test_a_damaged_summary_is_replaced_by_reading_the_records(tmp_path: Path) -> None:
    queries, store = gallery(tmp_path, [landed()])
    [key] = store.keys("summaries/")
    (tmp_path / key).write_bytes(b"{")
    found = queries.summary(WANTED)
    assert (found["complete"], found["images"]) == (False, 1)


def hashed(number: int) -> Item:
    return replace(ITEM, task_id="catalogue", item=hashlib.sha256(str(number).encode()).hexdigest()[:16])


def test_a_jump_into_a_long_run_lands_near_its_place_and_costs_as_much_as_a_page(tmp_path: Path) -> None:
    each = [landed(replace(ITEM, task_id="each", map_index=index)) for index in range(50)]
    records = sorted([*(landed(hashed(number)) for number in range(2_000)), *each], key=lambda each: place_of(each.key))
    queries, store = gallery(tmp_path, records)
    keys = [record.key for record in records]
    for position in (0, 1, 700, 1_999, 2_000, 2_025, 2_049):
        store.listed = 0
        store.calls.clear()
        items, _ = queries.page(WANTED, None, 20, position)
        found = keys.index(items[0]["record"])
        assert abs(found - position) <= (100 if position < 2_000 else 0), position
        assert [item["record"] for item in items] == keys[found : found + 20]
        assert store.listed < 100
        assert len(store.calls) < 80
    assert queries.page(WANTED, None, 20, 10**8)[0][0]["record"] == keys[-1]
    _, after = queries.page(WANTED, None, 20)
    assert queries.page(WANTED, after, 20, 700)[0][0]["record"] == keys[20]  # a cursor goes before a position


def test_a_jump_in_filtered_records_counts_those(tmp_path: Path) -> None:
    records = [make_record(hashed(number), state="failed", outcome=None) for number in range(30)]
    queries, _ = gallery(tmp_path, [*records, *(landed(hashed(number)) for number in range(30, 60))])
    wanted = replace(WANTED, status="failed")
    shown = [item["record"] for item in queries.page(wanted, None, 60)[0]]
    assert [item["record"] for item in queries.page(wanted, None, 5, 12)[0]] == shown[12:17]


def test_a_jump_where_records_are_not_counted_is_the_beginning(tmp_path: Path) -> None:
    queries, store = gallery(tmp_path, [landed(hashed(number)) for number in range(10)])
    store.delete(complete_key("default"))
    assert queries.page(WANTED, None, 5, 7) == queries.page(WANTED, None, 5)


def test_dags_come_in_pages(tmp_path: Path) -> None:
    queries, _ = gallery(tmp_path, [landed(replace(ITEM, dag_id=f"dag{number}")) for number in range(5)])
    assert queries.dags(0, 2) == (["dag0", "dag1"], 2)
    assert queries.dags(2, 2) == (["dag2", "dag3"], 4)
    assert queries.dags(4, 2) == (["dag4"], None)


@pytest.fixture(scope="module")
def server(_airflow_home: Path) -> Iterator[TestClient]:
    """Airflow's API server, asked by a user who may read any DAG."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    with api_server() as client:
        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="vera", role=USERS["vera"]))
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


OF_RUN = f"api/dags/{ITEM.dag_id}/runs/{quote(ITEM.run_id)}"
QUESTIONS = [
    "api/dags",
    f"{OF_RUN}/images",
    f"{OF_RUN}/images?after={quote(landed(batch_item(1 << 63)).key, safe='')}",
    f"{OF_RUN}/images?position=100",
    f"{OF_RUN}/images?status=landed",
    f"{OF_RUN}/images?status=failed",
    f"{OF_RUN}/images?model=none",
    f"{OF_RUN}/images?task_id=each&map_index=7",
    f"{OF_RUN}/summary",
    f"{OF_RUN}/summary?task_id=catalogue&map_index=-1",
    f"{OF_RUN}/summary?task_id=each&map_index=7",
    f"{OF_RUN}/sources?task_id=each&map_index=7&item=0&n=1",
    f"api/dags/{ITEM.dag_id}/spend?by=day",
    address_of(landed(replace(ITEM, task_id="each", map_index=7)).key).image(0),
    address_of(landed(replace(ITEM, task_id="each", map_index=7)).key).thumbnail(0),
]


def many_kinds(count: int) -> list[Record]:
    """Records of one long batch, and a tenth of that each of mapped tasks, runs and DAGs."""
    return [
        *(landed(hashed(number)) for number in range(count)),
        *(landed(replace(ITEM, task_id="each", map_index=number)) for number in range(count // 10)),
        *(landed(replace(ITEM, run_id=f"run{number}")) for number in range(count // 10)),
        *(landed(replace(ITEM, dag_id=f"dag{number}")) for number in range(count // 10)),
    ]


def test_no_question_makes_the_server_work_in_proportion_to_the_ledger(
    tmp_path: Path, server: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    may_read = app._may_read

    def counted(request: Any, user: Any, dag_id: str) -> bool:
        asked.append(dag_id)
        return may_read(request, user, dag_id)

    monkeypatch.setattr(app, "MAX_DAGS", 20)
    monkeypatch.setattr(app, "_may_read", counted)
    costs: list[dict[str, tuple[list[str], int, int]]] = []
    for count in (300, 3_000):
        _, store = gallery(tmp_path / str(count), many_kinds(count))
        monkeypatch.setattr(app, "open_store", lambda root, openers, store=store: store)
        seen = {}
        for question in QUESTIONS:
            store.calls.clear()
            asked.clear()
            store.listed = 0
            assert server.get(question).status_code in (200, 404), question
            seen[question] = (sorted(operation for operation, _ in store.calls), store.listed, len(asked))
        costs.append(seen)
    assert costs[0] == costs[1]
    assert all(len(calls) < 200 and listed < 200 and dags <= 20 for calls, listed, dags in costs[1].values())
