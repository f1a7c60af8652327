"""What a root that is not the one of earlier attempts leads to, on disk and on S3."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

import pytest

from airflow_provider_geminiimg.core.ledger.layout import ROOT_KEY
from airflow_provider_geminiimg.core.ledger.open_index import is_complete
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.root_identity import RootCheck, RunStart
from airflow_provider_geminiimg.core.storage import Store, open_store
from airflow_provider_geminiimg.exceptions import Billed, LedgerError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import Wire, make_record

LOG = logging.getLogger("root")


class Copy:
    """A place outside the root that keeps one text."""

    name = "geminiimg_root_0123"

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def read(self) -> str | None:
        return self.text

    def write(self, value: str) -> None:
        self.text = value


def check(store: Store, copy: Copy, *, first_attempt: bool = True, run: str = "a run", since: float = 0.0) -> None:
    asyncio.run(RootCheck(store, copy, LOG, first_attempt=first_attempt, run=RunStart(run, since)).passed())


def identity(store: Store) -> str:
    blob = store.read(ROOT_KEY)
    assert blob is not None
    return str(json.loads(blob.data)["id"])


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root, AIRFLOW_OPENERS)


@pytest.mark.parametrize("first_attempt", [True, False])
def test_a_root_gets_an_identity_with_its_first_purchase_and_keeps_it(store: Store, first_attempt: bool) -> None:
    copy = Copy()
    check(store, copy, first_attempt=first_attempt)
    first = identity(store)
    for _ in range(2):
        check(store, copy, first_attempt=first_attempt)
    assert identity(store) == json.loads(str(copy.text))["id"] == first
    assert set(json.loads(str(copy.text))) == {"version", "id", "host", "root"}


def test_an_airflow_that_is_new_to_a_root_takes_over_its_identity(store: Store) -> None:
    check(store, Copy())
    first, another = identity(store), Copy()
    check(store, another, first_attempt=False)
    assert identity(store) == json.loads(str(another.text))["id"] == first


def test_attempts_that_are_first_at_once_agree_on_one_identity(store: Store) -> None:
    copies = [Copy() for _ in range(20)]

    async def all_at_once() -> None:
        await asyncio.gather(*(RootCheck(store, copy, LOG, first_attempt=True).passed() for copy in copies))

    asyncio.run(all_at_once())
    assert {json.loads(str(copy.text))["id"] for copy in copies} == {identity(store)}


def test_a_later_attempt_buys_nothing_under_a_root_that_is_empty_now(store: Store) -> None:
    copy = Copy()
    check(store, copy)
    store.delete(ROOT_KEY)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"There is no root\.json under") as caught:
            check(store, copy, first_attempt=False)
        assert caught.value.billed is Billed.UNKNOWN
        assert copy.name in caught.value.hint
    assert store.read(ROOT_KEY) is None


def test_a_first_attempt_starts_a_new_ledger_with_a_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    copy = Copy()
    check(store, copy)
    first = identity(store)
    store.delete(ROOT_KEY)
    check(store, copy)
    assert "A new one is started" in caplog.text
    assert identity(store) == json.loads(str(copy.text))["id"] != first
    check(store, copy, first_attempt=False)


def test_a_run_that_began_before_the_new_ledger_buys_nothing(store: Store) -> None:
    copy, began = Copy(), time.time() - 60
    check(store, copy, since=began)
    store.delete(ROOT_KEY)
    check(store, copy, run="a new run", since=began + 30)
    for since in (0.0, began):
        with pytest.raises(LedgerError, match="was started anew after this DAG run had begun"):
            check(store, copy, first_attempt=False, since=since)
    check(store, copy, first_attempt=False, run="a new run", since=began + 30)
    check(store, copy, first_attempt=False, run="a later run", since=time.time() + 60)
    copy.text = None  # a person has deleted it
    check(store, copy, first_attempt=False, since=began)


def test_first_attempts_of_an_emptied_root_agree_on_one_identity(store: Store) -> None:
    copies = Copy()
    check(store, copies)
    store.delete(ROOT_KEY)

    async def all_at_once() -> None:
        await asyncio.gather(*(RootCheck(store, copies, LOG, first_attempt=True).passed() for _ in range(20)))

    asyncio.run(all_at_once())
    assert json.loads(str(copies.text))["id"] == identity(store)


def test_an_attempt_that_dies_before_airflow_has_the_new_identity_blocks_nobody(store: Store) -> None:
    class Failing(Copy):
        def write(self, value: str) -> None:
            raise LedgerError("Airflow does not answer.")

    copy = Copy()
    check(store, copy)
    store.delete(ROOT_KEY)
    with pytest.raises(LedgerError, match="does not answer"):
        check(store, Failing(copy.text))
    check(store, copy)
    assert json.loads(str(copy.text))["id"] == identity(store)


def test_records_that_were_written_since_do_not_make_a_ledger_the_old_one(store: Store) -> None:
    copy, began = Copy(), time.time() - 60
    check(store, copy, since=began)
    store.delete(ROOT_KEY)
    store.create("ledger/default/dag/run/task/-1/0/1.json", b"{}")
    with pytest.raises(LedgerError, match=r"There is no root\.json under"):
        check(store, copy, first_attempt=False, since=began)
    check(store, copy, run="a new run", since=time.time())
    with pytest.raises(LedgerError, match="was started anew"):
        check(store, copy, first_attempt=False, since=began)


def test_a_first_attempt_buys_nothing_on_the_disk_of_another_host(local_root: str) -> None:
    store, copy = open_store(local_root, AIRFLOW_OPENERS), Copy(json.dumps({"id": "1", "host": "another"}))
    with pytest.raises(LedgerError, match="on host another: workers do not share it") as caught:
        check(store, copy)
    assert caught.value.billed is Billed.NO
    assert socket.gethostname() in caught.value.message


@pytest.mark.parametrize("first_attempt", [True, False])
def test_nothing_is_bought_where_there_is_another_ledger(store: Store, first_attempt: bool) -> None:
    check(store, Copy())
    another = Copy(json.dumps({"id": "1", "host": socket.gethostname()}))
    with pytest.raises(LedgerError, match="is not the one that this Airflow used there before"):
        check(store, another, first_attempt=first_attempt)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"id": 7}', '{"id": ""}', "[" * 100_000])
def test_an_identity_that_can_not_be_read_is_an_error_and_not_a_new_root(store: Store, text: str) -> None:
    with pytest.raises(LedgerError, match="Variable 'geminiimg_root_0123' can't be read"):
        check(store, Copy(text))
    store.create(ROOT_KEY, text.encode())
    for copy in (Copy(), Copy(json.dumps({"id": "1"}))):
        with pytest.raises(LedgerError, match=r"root\.json under .* can't be read"):
            check(store, copy)


def test_a_batch_asks_once_and_every_image_gets_the_answer(store: Store) -> None:
    class Counting(Copy):
        asked = 0

        def read(self) -> str | None:
            self.asked += 1
            return super().read()

    async def many(copy: Copy) -> list[object]:
        root = RootCheck(store, copy, LOG, first_attempt=False)
        return await asyncio.gather(*(root.passed() for _ in range(20)), return_exceptions=True)

    good, bad = Counting(), Counting("{}")
    assert asyncio.run(many(good)) == [None] * 20
    assert {type(error) for error in asyncio.run(many(bad))} == {LedgerError}
    assert (good.asked, bad.asked) == (1, 1)


def test_a_store_that_does_not_answer_is_an_error(s3: str) -> None:
    store, copy = open_store("s3://no-such-bucket-here/root", AIRFLOW_OPENERS), Copy()
    with pytest.raises(StorageError):
        check(store, copy)
    assert copy.text is None


def test_a_new_root_has_a_complete_index_of_open_records(store: Store) -> None:
    assert not is_complete(store, "default")
    asyncio.run(RootCheck(store, Copy(), LOG, first_attempt=True, namespace="default").passed())
    assert is_complete(store, "default")


def test_a_root_that_has_records_before_its_identity_has_no_complete_index(store: Store) -> None:
    Ledger(store).create(make_record())
    asyncio.run(RootCheck(store, Copy(), LOG, first_attempt=True, namespace="default").passed())
    assert not is_complete(store, "default")


def test_a_root_whose_index_cannot_be_marked_is_as_good_as_any(store: Store) -> None:
    line = Wire(store, "open/")
    line.always["create"] = "before"
    asyncio.run(RootCheck(line, Copy(), LOG, first_attempt=True, namespace="default").passed())
    assert not is_complete(store, "default")
