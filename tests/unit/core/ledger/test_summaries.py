"""Summaries of runs: each ended record is counted once, with the values it has, whatever is killed, lost or late."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest

from airflow_provider_geminiimg.core.ledger.layout import SUMMARIES, open_prefix, run_of, summary_key
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup, group_of
from airflow_provider_geminiimg.core.storage import Store, open_store
from airflow_provider_geminiimg.exceptions import Billed, ContentRefusedError, GeminiImageError, LedgerError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM, Traced, landed, make_record, submitted

RUN = run_of(make_record().key)
COST = {"amount": 0.039, "currency": "USD", "basis": "google_list", "estimate": True}


@pytest.fixture
def store(root: str) -> Traced:
    return Traced(open_store(root, AIRFLOW_OPENERS), f"{SUMMARIES}/")


@pytest.fixture
def ledger(store: Traced) -> Ledger:
    return Ledger(store)


def failed(item: object = ITEM, billed: Billed = Billed.NO, **values: object) -> Record:
    return with_error(make_record(item, **values), ContentRefusedError("No.", billed=billed), "failed")  # type: ignore[arg-type]


def number(count: int) -> list[Record]:
    return [make_record(replace(ITEM, item=f"{each:016x}")) for each in range(count)]


def into(record: Record) -> Callable[[Record], Record]:
    return lambda stored: replace(record, key=stored.key, n=stored.n, claim=stored.claim)


def ended(ledger: Ledger) -> Counter[RecordGroup]:
    """The groups of all ended records, by reading them."""
    found: Counter[RecordGroup] = Counter()
    for key in ledger.store.keys("ledger/"):
        stored = ledger.read(key)
        if stored is not None and stored.record.state in ("landed", "failed"):
            found[group_of(stored.record, stored.record.state)] += 1
    return found


def counted(store: Store) -> Counter[RecordGroup]:
    return Ledger(store).summaries.read(RUN).counts()


def entries(store: Store) -> list[str]:
    return list(store.keys(open_prefix("default")))


def test_a_record_is_counted_after_it_ended_and_before_its_entry_goes(store: Traced, ledger: Ledger) -> None:
    record = make_record(cost=COST)
    ledger.create(record)
    assert counted(store) == {}
    store.calls.clear()
    ledger.change(record.key, into(landed(cost=COST)))
    writes = [key.split("/")[0] for operation, key in store.calls if operation in ("create", "replace", "delete")]
    assert writes == ["ledger", "summaries", "open"]
    [(group, count)] = counted(store).items()
    assert (group.status, group.billed, group.amount, group.currency, group.images, count) == (
        "landed", "yes", 0.039, "USD", 1, 1,
    )  # fmt: skip


def test_counting_again_changes_nothing(store: Traced, ledger: Ledger) -> None:
    record = landed()
    ledger.create(record)
    for _ in range(3):
        Ledger(store).summaries.count([record])
    assert sum(counted(store).values()) == 1


def test_a_late_image_of_a_failed_record_is_counted_instead_of_the_failure(store: Traced, ledger: Ledger) -> None:
    record = make_record()
    ledger.create(record)
    ledger.change(record.key, into(failed()))
    assert [group.status for group in counted(store)] == ["failed"]
    ledger.change(record.key, into(landed()))
    assert counted(store) == ended(ledger)
    assert [group.status for group in counted(store)] == ["landed"]
    assert entries(store) == []


def test_a_failure_that_is_settled_otherwise_is_counted_as_settled(store: Traced, ledger: Ledger) -> None:
    record = make_record()
    ledger.create(record)
    ledger.change(record.key, into(failed(billed=Billed.UNKNOWN)))
    ledger.change(record.key, lambda stored: with_error(stored, ContentRefusedError("Unpaid.", billed=Billed.NO)))
    assert [group.billed for group in counted(store)] == ["no"]
    assert entries(store) == []


def test_an_attempt_that_is_late_does_not_count_an_old_state(store: Traced, ledger: Ledger) -> None:
    record = make_record()
    ledger.create(record)
    before = ledger.change(record.key, into(failed()))
    Ledger(store).change(record.key, into(landed()))
    ledger.summaries.count([before])  # by an attempt that was held up
    assert counted(store) == ended(ledger)


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("operation", ["create", "read"])
def test_a_record_that_could_not_be_counted_keeps_its_entry(
    store: Traced, ledger: Ledger, operation: str, fault: str
) -> None:
    record = make_record()
    ledger.create(record)
    store.always[operation] = fault
    ledger.change(record.key, into(landed()))
    store.always.clear()
    was_counted = sum(counted(store).values())
    assert len(entries(store)) + was_counted >= 1
    if not was_counted:
        ledger.summaries.count([replace(landed(), claim=record.claim)])
        assert counted(store) == ended(ledger)


def test_the_records_of_a_batch_are_counted_together(store: Traced, ledger: Ledger) -> None:
    records = number(64)
    ledger.open_index.cover([record.key.split("/")[-2] for record in records])
    for record in records:
        ledger.create(record)
        ledger.change(record.key, into(landed(replace(ITEM, item=record.key.split("/")[-2]))))
        ledger.open_index.end(record.key.split("/")[-2])
    assert counted(store) == ended(ledger)
    assert sum(counted(store).values()) == 64
    writes = [call for call in store.asked(f"{SUMMARIES}/") if call[0] in ("create", "replace")]
    assert len(writes) <= 4
    assert entries(store) == []


def test_processes_that_count_at_the_same_time_lose_nothing(store: Traced) -> None:
    records = number(40)

    def finish(record: Record) -> None:
        ledger = Ledger(store)
        ledger.create(record)
        ledger.change(record.key, into(landed() if hash(record.claim) % 3 else failed()))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finish, records))
    assert counted(store) == ended(Ledger(store))
    assert sum(counted(store).values()) == 40


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_killed_a_record_is_counted_or_has_an_entry(store: Traced, seed: int) -> None:
    rng = random.Random(seed)
    record = make_record()
    states = [submitted(), failed(), failed(billed=Billed.YES), landed()]
    Ledger(store).create(record)
    for step in sorted(rng.sample(range(4), rng.randint(1, 4))):
        store.once = {rng.choice(["create", "replace", "delete", "read"]): rng.choice(["before", "after"])}
        store.prefix = rng.choice(["summaries/", "open/", ""])
        with contextlib.suppress(GeminiImageError):
            Ledger(store).change(record.key, into(states[step]))
        store.once = {}
    store.prefix = ""
    assert counted(store) == ended(Ledger(store)) or entries(store)


def test_removed_records_stay_counted_as_removed(store: Traced, ledger: Ledger) -> None:
    records = [replace(record, cost=COST) for record in number(6)]
    for record in records:
        ledger.create(record)
        ledger.change(record.key, lambda stored: replace(landed(), key=stored.key, claim=stored.claim, cost=COST))
    ledger.summaries.remove(records[:4])
    ledger.summaries.remove(records[:4])
    summary = Ledger(store).summaries.read(RUN)
    assert sum(summary.counts().values()) == 2
    assert [(group.amount, count) for group, count in summary.removed().items()] == [(0.039, 4)]


def test_a_filter_finds_the_failed_records_without_reading(store: Traced, ledger: Ledger) -> None:
    records = number(9)
    for record in records:
        ledger.create(record)
        ledger.change(record.key, into(landed() if int(record.key.split("/")[-2], 16) % 3 else failed()))
    keys = Ledger(store).summaries.read(RUN).keys(lambda group: group.status == "failed")
    assert sorted(keys) == sorted(record.key for record in records[::3])


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 2, "more": 2}', b'{"version": 2, "counted": [{}]}']
)
def test_a_damaged_summary_is_an_error_and_a_count_leaves_the_entry(store: Traced, ledger: Ledger, data: bytes) -> None:
    record = make_record()
    ledger.create(record)
    for part in range(4):
        store.create(summary_key(RUN, part), data)
    ledger.change(record.key, into(landed()))
    assert len(entries(store)) == 1
    with pytest.raises(LedgerError, match="reindex"):
        ledger.summaries.read(RUN)


def test_the_days_and_names_of_a_group_come_from_the_record() -> None:
    groups = [
        group_of(landed(replace(ITEM, map_index=index, item=item), submitted_at=1_700_000_000.0), "landed")
        for index, item in [(-1, "0"), (3, "0"), (3, "ab")]
    ]
    assert {group.day for group in groups} == {"2023-11-14"}
    assert [group.map_index for group in groups] == [-1, None, 3]
    assert all(one.task == other.task == "hero" for one, other in pairwise(groups))
    assert [group_of(make_record(n=n), "waiting").first for n in (1, 2)] == [True, False]
