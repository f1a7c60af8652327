"""The ledger, on disk and on S3: one winner for every record, no lost change, and never "no record" by mistake."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_geminiimg.core.ledger import records
from airflow_provider_geminiimg.core.ledger.layout import Item, record_key
from airflow_provider_geminiimg.core.ledger.record import SCHEMA, Record, with_error
from airflow_provider_geminiimg.core.ledger.records import Ledger, new_claim
from airflow_provider_geminiimg.core.storage import Store, cas, encode_segment, open_store
from airflow_provider_geminiimg.exceptions import Billed, LedgerError, OutcomeUnknownError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM, Wire, landed, make_record, submitted

T = TypeVar("T")

CLAIMANTS = 8
RACES = 100


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root, AIRFLOW_OPENERS)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


def disk(store: Store) -> Path:
    return Path(store.uri.removeprefix("file://"))


def write(store: Store, key: str, values: Any) -> None:
    data = values if isinstance(values, bytes) else json.dumps(values).encode()
    assert store.create(key, data) is not None


def values_of(record: Record) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dataclasses.asdict(record))))


def race(jobs: list[Callable[[], T]]) -> list[T]:
    """What the jobs return, all of them started at the same moment."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], T]) -> T:
        start.wait(30)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


# Claiming


def test_a_record_comes_back_as_it_was_written(ledger: Ledger) -> None:
    record = landed(
        prompt="Ein Fuchs, 狐",
        suffix="-2",
        extra_jobs=["job-2"],
        copies=[{"destination": {"directory": "d", "stem": "s"}, "manifest": landed().manifest}],
        inputs=[{"uri": "file:///in.png", "sha256": "0" * 64}],
        outcome=OutcomeUnknownError("?").to_dict(),
    )
    claimed = ledger.create(record)
    assert claimed is not None
    found = ledger.read(record.key)
    assert found is not None
    assert found.record == record
    assert found.version == claimed.version
    assert 0.0 <= found.age < 30.0


def test_nothing_is_found_where_nothing_was_claimed(ledger: Ledger) -> None:
    assert ledger.latest(ITEM) is None
    assert ledger.numbers(ITEM) == []
    assert ledger.read(record_key(ITEM, 1)) is None


def test_eight_claimants_at_once_have_one_winner_in_each_of_100_races(root: str) -> None:
    ledgers = [Ledger(open_store(root, AIRFLOW_OPENERS)) for _ in range(CLAIMANTS)]
    items = [dataclasses.replace(ITEM, map_index=index) for index in range(RACES)]
    claims = [[make_record(item) for item in items] for _ in ledgers]
    start = threading.Barrier(CLAIMANTS)

    def claim_all(ledger: Ledger, records: list[Record]) -> list[bool]:
        won = []
        for record in records:
            start.wait(30)
            won.append(ledger.create(record) is not None)
        return won

    with ThreadPoolExecutor(CLAIMANTS) as pool:
        won = list(pool.map(claim_all, ledgers, claims))
    for index, item in enumerate(items):
        winners = [claimant for claimant in range(CLAIMANTS) if won[claimant][index]]
        assert len(winners) == 1
        found = ledgers[0].latest(item)
        assert found is not None
        assert found.record.claim == claims[winners[0]][index].claim


def test_a_claim_whose_answer_got_lost_is_found_again_by_its_name(store: Store) -> None:
    wire = Wire(store)
    record = make_record()
    wire.once["create"] = "nothing"
    found = Ledger(wire).create(record)
    assert found is not None
    assert found.record == record


def test_a_claim_that_was_written_although_the_store_reported_a_failure_is_won(store: Store) -> None:
    wire = Wire(store)
    record = make_record()
    wire.once["create"] = "after"
    found = Ledger(wire).create(record)
    assert found is not None
    assert found.record == record


def test_a_claim_that_was_not_written_is_a_storage_error(store: Store) -> None:
    wire = Wire(store)
    wire.once["create"] = "before"
    with pytest.raises(StorageError, match="the line is down"):
        Ledger(wire).create(make_record())
    assert Ledger(store).latest(ITEM) is None


def test_a_claim_that_failed_on_another_attempts_record_is_a_storage_error(store: Store) -> None:
    first = make_record()
    assert Ledger(store).create(first)
    wire = Wire(store)
    wire.once["create"] = "before"
    with pytest.raises(StorageError, match="the line is down"):
        Ledger(wire).create(make_record())


def test_who_comes_second_does_not_get_the_record(ledger: Ledger) -> None:
    first = make_record()
    assert ledger.create(first) is not None
    assert ledger.create(make_record()) is None
    found = ledger.latest(ITEM)
    assert found is not None
    assert found.record.claim == first.claim


# Which record decides


def test_record_number_10_decides_over_number_2(ledger: Ledger) -> None:
    for n in range(1, 11):
        assert ledger.create(make_record(n=n))
    assert ledger.numbers(ITEM) == list(range(1, 11))
    found = ledger.latest(ITEM)
    assert found is not None
    assert found.record.n == 10


def test_other_files_in_an_items_folder_are_no_records(ledger: Ledger) -> None:
    assert ledger.create(make_record())
    for name in ("2.json.bak", "notes.txt", "²", "².json", "-3.json", ".json"):
        write(ledger.store, f"{ITEM.path}/{name}", {})
    assert ledger.numbers(ITEM) == [1]


@pytest.mark.parametrize("other", [
    dataclasses.replace(ITEM, map_index=11),
    dataclasses.replace(ITEM, item="00"),
    dataclasses.replace(ITEM, task_id="hero2"),
    dataclasses.replace(ITEM, run_id=ITEM.run_id + "x"),
    dataclasses.replace(ITEM, namespace="default2"),
])  # fmt: skip
def test_items_whose_names_start_alike_have_their_own_records(ledger: Ledger, other: Item) -> None:
    item = dataclasses.replace(ITEM, map_index=1) if other.map_index == 11 else ITEM
    assert ledger.create(make_record(other, 5))
    assert ledger.latest(item) is None


# Looking ahead

OTHER = dataclasses.replace(ITEM, item="other")


def test_after_looking_ahead_the_records_of_a_task_are_read_without_listing_them(store: Store) -> None:
    ledger = Ledger(wire := Wire(store))
    for record in (make_record(n=1), make_record(n=2), make_record(n=10), make_record(OTHER, 3)):
        assert ledger.create(record)
    ledger.prefetch(ITEM, [ITEM.item, OTHER.item, "without"])
    wire.always["keys"] = "before"
    found = [ledger.latest(item) for item in (ITEM, OTHER, dataclasses.replace(ITEM, item="without"))]
    assert [one and one.record.n for one in found] == [10, 3, None]


def test_what_was_listed_ahead_is_believed_once(ledger: Ledger) -> None:
    assert ledger.create(make_record(n=1))
    ledger.prefetch(ITEM, [ITEM.item])
    assert ledger.create(make_record(n=2))
    found = [ledger.latest(ITEM), ledger.latest(ITEM)]
    assert [one and one.record.n for one in found] == [1, 2]


def test_a_record_that_came_after_looking_ahead_makes_the_create_fail_and_is_found_then(ledger: Ledger) -> None:
    ledger.prefetch(ITEM, [ITEM.item])
    other = Ledger(ledger.store).create(make_record())
    assert other is not None
    assert ledger.latest(ITEM) is None
    assert ledger.create(dataclasses.replace(make_record(), claim=new_claim())) is None
    found = ledger.latest(ITEM)
    assert found is not None
    assert found.record == other.record


def test_an_item_that_was_not_looked_for_is_not_believed_to_have_no_record(ledger: Ledger) -> None:
    ledger.prefetch(ITEM, [ITEM.item])
    assert ledger.create(make_record(OTHER, 3))
    found = ledger.latest(OTHER)
    assert found is not None
    assert found.record.n == 3


def test_a_record_that_went_after_looking_ahead_gives_way_to_the_one_before(ledger: Ledger) -> None:
    assert ledger.create(make_record(n=1))
    assert ledger.create(make_record(n=2))
    ledger.prefetch(ITEM, [ITEM.item])
    ledger.store.delete(record_key(ITEM, 2))
    found = ledger.latest(ITEM)
    assert found is not None
    assert found.record.n == 1


# Unreadable is never "no record"

WRONG: dict[str, Callable[[Record], Any]] = {
    "empty": lambda record: b"",
    "truncated": lambda record: json.dumps(values_of(record)).encode()[:-20],
    "not JSON": lambda record: b"<html>403</html>",
    "not UTF-8": lambda record: b"\xff\xfe{}",
    "a list": lambda record: [values_of(record)],
    "without a schema": lambda record: {k: v for k, v in values_of(record).items() if k != "schema"},
    "of a newer schema": lambda record: {**values_of(record), "schema": SCHEMA + 1, "news": True},
    "of no schema at all": lambda record: {**values_of(record), "schema": "1"},
    "with a field missing": lambda record: {k: v for k, v in values_of(record).items() if k != "claim"},
    "with a state that does not exist": lambda record: {**values_of(record), "state": "lost"},
    "landed without an image": lambda record: {**values_of(record), "state": "landed", "manifest": {"images": []}},
    "landed with an image that is nowhere": lambda record: {
        **values_of(record), "state": "landed", "manifest": {"images": [{"sha256": "0" * 64}]},
    },
    "landed with images that are none": lambda record: {
        **values_of(record), "state": "landed", "manifest": {"images": "all of them"},
    },
    "with a copy that is nowhere": lambda record: {
        **values_of(record), "copies": [{"destination": {"directory": "d"}, "manifest": landed().manifest}],
    },
    "with a copy of nothing": lambda record: {
        **values_of(record), "copies": [{"destination": {"directory": "d", "stem": "s"}, "manifest": {}}],
    },
    "nested without an end": lambda record: b"[" * 100_000,
    "of another key": lambda record: {**values_of(record), "key": record_key(ITEM, 9)},
    "with an outcome that means nothing": lambda record: {**values_of(record), "outcome": {"billed": "perhaps"}},
    "with an outcome of unknown fields": lambda record: {**values_of(record), "outcome": {"kind": "storage", "x": 1}},
    "with an outcome of other types": lambda record: {**values_of(record), "outcome": {"retryable": "no"}},
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_record_that_is_wrong_is_a_ledger_error_that_names_it(ledger: Ledger, wrong: str) -> None:
    assert ledger.create(make_record(n=1, state="failed", outcome=StorageError("unpaid").to_dict()))
    key = record_key(ITEM, 2)
    write(ledger.store, key, WRONG[wrong](make_record(n=2, prompt="canary-prompt")))
    with pytest.raises(LedgerError) as caught:
        ledger.latest(ITEM)
    said = str(caught.value)
    assert key in said
    assert ledger.store.uri in said
    assert "Nothing was sent" in said
    assert "canary-prompt" not in said


def test_a_field_that_a_later_version_has_added_is_ignored_and_gone_after_a_change(ledger: Ledger) -> None:
    record = make_record()
    write(ledger.store, record.key, {**values_of(record), "news": True})
    found = ledger.latest(ITEM)
    assert found is not None
    assert found.record == record
    ledger.change(record.key, lambda stored: dataclasses.replace(stored, deferrals=1))
    blob = ledger.store.read(record.key)
    assert blob is not None
    assert b"news" not in blob.data


def test_a_record_that_is_wrong_is_not_won_by_a_second_claim(ledger: Ledger) -> None:
    write(ledger.store, record_key(ITEM, 1), b"{")
    with pytest.raises(LedgerError):
        ledger.create(make_record())


def test_a_record_that_is_listed_but_not_there_is_a_ledger_error(store: Store) -> None:
    assert Ledger(store).create(make_record())
    wire = Wire(store)
    wire.once["read"] = "nothing"
    with pytest.raises(LedgerError, match="is listed but cannot be read"):
        Ledger(wire).latest(ITEM)


def test_a_record_that_can_not_be_read_is_a_storage_error(store: Store) -> None:
    assert Ledger(store).create(make_record())
    wire = Wire(store)
    wire.once["read"] = "before"
    with pytest.raises(StorageError):
        Ledger(wire).latest(ITEM)


def test_records_that_can_not_be_listed_are_a_storage_error(store: Store) -> None:
    wire = Wire(store)
    wire.once["keys"] = "before"
    with pytest.raises(StorageError):
        Ledger(wire).latest(ITEM)


def test_a_record_that_is_a_broken_link_on_disk_is_a_ledger_error(local_root: str) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    folder = disk(ledger.store) / ITEM.path
    folder.mkdir(parents=True)
    (folder / "1.json").symlink_to(folder / "nowhere")
    with pytest.raises(LedgerError, match=r"1\.json"):
        ledger.latest(ITEM)


def test_a_bucket_that_does_not_exist_is_a_storage_error(s3: str) -> None:
    ledger = Ledger(open_store(f"{s3}-not/root", AIRFLOW_OPENERS))
    with pytest.raises(StorageError):
        ledger.latest(ITEM)
    with pytest.raises(StorageError):
        ledger.create(make_record())


# Changing


def test_a_change_is_written_and_returned(ledger: Ledger) -> None:
    record = make_record()
    assert ledger.create(record)
    changed = ledger.change(record.key, lambda stored: dataclasses.replace(stored, state="submitted", job_id="job-1"))
    assert changed == dataclasses.replace(record, state="submitted", job_id="job-1")
    found = ledger.latest(ITEM)
    assert found is not None
    assert found.record == changed


def test_writers_at_once_lose_nothing(root: str) -> None:
    record = submitted()
    assert Ledger(open_store(root, AIRFLOW_OPENERS)).create(record)

    def add_job(ledger: Ledger, job: str) -> None:
        ledger.change(record.key, lambda stored: dataclasses.replace(stored, extra_jobs=[*stored.extra_jobs, job]))

    def add(writer: int) -> None:
        ledger = Ledger(open_store(root, AIRFLOW_OPENERS))
        for number in range(4):
            add_job(ledger, f"job-{writer}-{number}")

    race([lambda writer=writer: add(writer) for writer in range(4)])  # type: ignore[misc]
    found = Ledger(open_store(root, AIRFLOW_OPENERS)).read(record.key)
    assert found is not None
    assert sorted(found.record.extra_jobs) == sorted(f"job-{w}-{n}" for w in range(4) for n in range(4))


def test_a_change_that_meets_another_writer_is_asked_again_about_what_is_stored_then(ledger: Ledger) -> None:
    record = make_record()
    assert ledger.create(record)
    seen = []

    def step(stored: Record) -> Record:
        seen.append(stored.state)
        if len(seen) == 1:
            ledger.change(record.key, lambda s: dataclasses.replace(s, state="submitted", job_id="job-1"))
        return dataclasses.replace(stored, deferrals=stored.deferrals + 1)

    changed = ledger.change(record.key, step)
    assert seen == ["intent", "submitted"]
    assert (changed.state, changed.job_id, changed.deferrals) == ("submitted", "job-1", 1)


def test_a_change_whose_answer_got_lost_is_found_to_be_done(store: Store) -> None:
    record = make_record()
    assert Ledger(store).create(record)
    wire = Wire(store)
    wire.once["replace"] = "nothing"
    changed = Ledger(wire).change(record.key, lambda s: dataclasses.replace(s, state="submitted", job_id="job-1"))
    assert (changed.state, changed.job_id) == ("submitted", "job-1")


def test_a_change_of_nothing_is_not_written(ledger: Ledger) -> None:
    record = make_record()
    claimed = ledger.create(record)
    assert claimed is not None
    assert ledger.change(record.key, lambda stored: None) == record
    assert ledger.change(record.key, lambda stored: stored) == record
    found = ledger.read(record.key)
    assert found is not None
    assert found.version == claimed.version


def test_a_store_that_never_lets_a_change_through_is_a_storage_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cas, "UPDATE_SECONDS", 0.3)
    record = make_record()
    assert Ledger(store).create(record)

    class Stubborn(Wire):
        def replace(self, key: str, data: bytes, version: str) -> str | None:
            return None

    with pytest.raises(StorageError) as caught:
        Ledger(Stubborn(store)).change(record.key, lambda s: dataclasses.replace(s, deferrals=s.deferrals + 1))
    assert caught.value.billed is Billed.UNKNOWN
    assert record.key in str(caught.value)


def test_a_change_of_a_record_that_is_gone_is_a_ledger_error(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        ledger.change(record_key(ITEM, 1), lambda stored: stored)


FORWARD = {
    "intent": {"intent", "submitted", "answered", "landed", "failed"},
    "submitted": {"submitted", "landed", "failed"},
    "answered": {"answered", "landed", "failed"},
    "landed": {"landed"},
    "failed": {"failed", "submitted", "answered", "landed"},
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(FORWARD, FORWARD)))
def test_states_only_move_forward(local_root: str, before: str, after: str) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    record = landed(state=before)
    assert ledger.create(record)

    def step(stored: Record) -> Record:
        return dataclasses.replace(stored, state=after, deferrals=1)  # type: ignore[arg-type]

    if after in FORWARD[before]:
        assert ledger.change(record.key, step).state == after
    else:
        with pytest.raises(LedgerError, match=f"is {before} and cannot become {after}"):
            ledger.change(record.key, step)
        found = ledger.read(record.key)
        assert found is not None
        assert found.record == record


# Ages


def test_an_age_is_told_by_the_disks_clock(local_root: str) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    record = make_record()
    assert ledger.create(record)
    path = disk(ledger.store) / record.key
    os.utime(path, (path.stat().st_mtime - 500, path.stat().st_mtime - 500))
    found = ledger.read(record.key)
    assert found is not None
    assert 499 < found.age < 530
    ledger.change(record.key, lambda stored: dataclasses.replace(stored, deferrals=1))
    found = ledger.read(record.key)
    assert found is not None
    assert found.age < 30


def test_a_record_from_the_future_is_not_younger_than_now(local_root: str) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    record = make_record()
    assert ledger.create(record)
    path = disk(ledger.store) / record.key
    os.utime(path, (path.stat().st_mtime + 5000, path.stat().st_mtime + 5000))
    found = ledger.read(record.key)
    assert found is not None
    assert found.age == 0.0


# Names

ODD_IDS = ["x::y", "..", ".", "", "%2E", "%2E%2E", "a/b", "a%2Fb", "a:b", "a::b", "x" * 300, "x" * 301, "狐", " ", "#",
           "\x00", "a\nb", "C:\\x", "=", "~", "manual__2026-01-01T00:00:00+00:00"]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_IDS)
def test_an_odd_id_gets_a_record_of_its_own(ledger: Ledger, odd: str) -> None:
    item = Item("default", odd, odd, odd, -1)
    assert ledger.create(make_record(item))
    assert ledger.numbers(item) == [1]
    found = ledger.latest(item)
    assert found is not None
    assert found.record.key.startswith("ledger/default/")
    keys = list(ledger.store.keys(""))
    assert [key for key in keys if key.startswith("ledger/")] == [record_key(item, 1)]


def test_odd_ids_have_different_paths() -> None:
    paths = {
        Item("default", dag_id, run_id, task_id, -1).path
        for dag_id, run_id, task_id in itertools.product(ODD_IDS, repeat=3)
    }
    assert len(paths) == len(ODD_IDS) ** 3


@given(st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
def test_different_texts_are_different_path_segments(texts: list[str]) -> None:
    segments = [encode_segment(text) for text in texts]
    assert segments[0] != segments[1]
    for segment in segments:
        assert segment not in ("", ".", "..")
        assert "/" not in segment
        assert len(segment.encode()) <= 120


def test_an_id_of_a_dag_leads_nowhere_outside_the_root(local_root: str, tmp_path: Path) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    assert ledger.create(make_record(Item("..", "..", "../../..", "/etc/x", -1)))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


# What is in it, and who may read it


def test_folders_of_the_ledger_are_0700_and_its_files_0600(local_root: str) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    assert ledger.create(make_record())
    ledger.change(record_key(ITEM, 1), lambda stored: dataclasses.replace(stored, deferrals=1))
    paths = [disk(ledger.store), *disk(ledger.store).rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}


def test_neither_prompt_nor_link_is_in_the_text_form_of_a_record() -> None:
    record = make_record(state="answered", prompt="canary-prompt", links=["https://example.com/p.png?sig=canary"])
    assert "canary" not in repr(record)


def test_a_root_that_is_removed_under_a_ledger_is_no_silent_success(local_root: str) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    record = make_record()
    assert ledger.create(record)
    shutil.rmtree(disk(ledger.store))
    with pytest.raises(LedgerError, match="does not exist"):
        ledger.change(record.key, lambda stored: with_error(stored, OutcomeUnknownError("?")))


def test_many_records_are_open_at_once_in_the_threads_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MAX_WRITTEN", 10)
    ledger = Ledger(open_store(tmp_path.as_uri(), AIRFLOW_OPENERS))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def one(number: int) -> str:
            item = dataclasses.replace(ITEM, item=f"{number:016x}")
            created = ledger.create(make_record(item))
            assert created is not None
            return ledger.change(created.record.key, lambda stored: dataclasses.replace(stored, deferrals=1)).state

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, range(300))) == ["intent"] * 300
    finally:
        sys.setswitchinterval(before)
