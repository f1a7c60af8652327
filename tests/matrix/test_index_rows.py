"""The failure matrix: what becomes of the index of open records, while a paid image waits to be collected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from airflow_provider_geminiimg.core.ledger.layout import complete_key, open_prefix, run_of, summary_key
from airflow_provider_geminiimg.core.ledger.open_index import STALE_SECONDS, is_complete
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summaries import PARTS
from airflow_provider_geminiimg.core.reconcile import Report, Scope, collect, reindex
from airflow_provider_geminiimg.core.storage import Store, open_store
from airflow_provider_geminiimg.exceptions import StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.environment import Environment
from tests.harness.orphaned_records import nonzero
from tests.harness.records import age_key
from tests.harness.rows import BOTH_PATHS, CROSSED, IN_BATCHES, STRAIGHT, Case, Play, each, play
from tests.harness.totals import totals_agree


def store_of(stage: Play) -> Store:
    return open_store(stage.root, AIRFLOW_OPENERS)


def entries(stage: Play) -> list[str]:
    return list(store_of(stage).keys(open_prefix("default")))


def collected(stage: Play) -> Report:
    """What the daily collect does, once no attempt can be at work any more."""
    environment = Environment(logging.getLogger("collect"))
    for key in environment.ledger.store.keys("ledger/"):
        age_key(environment.ledger.store, key, 3600.0)

    async def collecting() -> Report:
        async with environment.purchase_context() as purchase_context:
            return await collect(purchase_context, Scope("default"))

    return asyncio.run(collecting())


def download_fails(stage: Play) -> None:
    """Let the first attempt end with a job on record."""
    stage.fault("download", status=500, times=3 * stage.images)


def lands_by(change: Callable[[Play], None]) -> Callable[[Play], None]:
    """Change something while a job is to be collected, and collect."""

    def landed(stage: Play) -> None:
        change(stage)
        assert nonzero(collected(stage)) == {"landed": stage.images}

    return landed


def lose_all(stage: Play) -> None:
    store = store_of(stage)
    for key in list(store.keys("open/")):
        store.delete(key)


def lose_the_marker(stage: Play) -> None:
    store_of(stage).delete(complete_key("default"))


def spoil_the_entries(stage: Play) -> None:
    store = store_of(stage)
    for key in entries(stage):
        store.delete(key)
        store.create(key, b"{")


def grow_old(stage: Play) -> None:
    for key in entries(stage):
        age_key(store_of(stage), key, 30 * STALE_SECONDS)


def lose_the_summaries(stage: Play) -> None:
    store = store_of(stage)
    for key in list(store.keys("summaries/")):
        store.delete(key)


def spoil_the_summaries(stage: Play) -> None:
    store = store_of(stage)
    lose_the_summaries(stage)
    for run in {run_of(key) for key in store.keys("ledger/")}:
        for part in range(PARTS):
            store.create(summary_key(run, part), b"{")


def lands_and_is_lost(lose: Callable[[Play], None]) -> Callable[[Play], None]:
    """Collect, and lose the summaries then."""

    def landed(stage: Play) -> None:
        lands_by(nothing)(stage)
        lose(stage)

    return landed


def is_counted_again(stage: Play) -> None:
    asyncio.run(reindex(Environment(logging.getLogger("reindex")).ledger, Scope("default")))
    totals_agree(stage.root)


def nothing(stage: Play) -> None:
    """The entries are there, as the first attempt left them."""


def is_clean(stage: Play) -> None:
    """What is left of the index is stale, and goes with a collect a day later."""
    assert is_complete(store_of(stage), "default")
    grow_old(stage)
    assert nonzero(collected(stage)) == {}
    assert entries(stage) == []


def well_again(stage: Play) -> None:
    stage.trouble.end()


def has_no_record(stage: Play) -> None:
    """Only an entry was written, which collect takes for nothing."""
    stage.trouble.end()
    assert len(entries(stage)) == 1
    assert list(store_of(stage).keys("ledger/")) == []
    assert nonzero(collected(stage)) == {}


def has_a_stale_entry(stage: Play) -> None:
    """The image has landed, and its entry is still there, which collect takes for nothing."""
    stage.trouble.end()
    assert len(entries(stage)) == 1
    found = Ledger(store_of(stage)).read(stage.record.key)
    assert found is not None
    assert found.record.state == "landed"
    assert nonzero(collected(stage)) == {}


def entry(path: str, body: bytes) -> bool:
    return "/open/entries/" in path


def landing(path: str, body: bytes) -> bool:
    return b'"state":"landed"' in body


WAITING = "while a job is to be collected"
LANDS = {"prepare": download_fails, "attempts": 2, "holds": is_clean, "images": 3, "where": BOTH_PATHS}
ALL = "Collect reads all records, and lands the image at no cost. Then the index is complete again."
COUNTS = {**LANDS, "holds": is_counted_again}
COUNTED = "Collect lands the image at no cost. `jobs reindex` counts all records again."
LOST = [
    Case("The summary of the run is lost", WAITING, COUNTED, between=lands_by(lose_the_summaries), **COUNTS),
    Case("The summary of the run can't be read", WAITING, COUNTED, between=lands_by(spoil_the_summaries), **COUNTS),
    Case("The summary of the run is lost", "once the image has landed", COUNTED,
         between=lands_and_is_lost(lose_the_summaries), **COUNTS),
    Case("No attempt follows", WAITING, "Collect finds the record by the index of open records, and lands the image at "
         "no cost.", between=lands_by(nothing), **LANDS),
    Case("All of `open/` is lost, or the root is from before it", WAITING, ALL, between=lands_by(lose_all), **LANDS),
    Case("The marker of a complete index is lost", WAITING, ALL, between=lands_by(lose_the_marker), **LANDS),
    Case("The entries of open records can't be read", WAITING, ALL, between=lands_by(spoil_the_entries), **LANDS),
    Case("The entries of open records are a month old", WAITING, "They stay as long as their records are open. Collect "
         "lands the image at no cost.", between=lands_by(grow_old), **LANDS),
]  # fmt: skip
BUCKET = [
    Case("The bucket refuses the entry of an open record (403)", "before the record is claimed",
         "No money was spent, nothing was sent. Mend the storage, then clear: it is bought.",
         prepare=lambda stage: stage.trouble.begin("denied", entry), attempts=2, error=StorageError, mend=well_again,
         buys=1, holds=is_clean, where=STRAIGHT),
    Case("The bucket refuses the entry of an open record (403)", "before the record is claimed",
         "No money was spent, nothing was sent. Mend the storage, then clear: they are bought.",
         prepare=lambda stage: stage.trouble.begin("denied", entry), error=StorageError, mend=well_again,
         buys=1, holds=is_clean, images=3, where=IN_BATCHES),
    Case("The bucket falls silent", "once the entry of the open record is written",
         "Nothing was sent, and there is no record. The next attempt buys. Collect removes the entry a day later.",
         prepare=lambda stage: stage.trouble.begin("silent", entry), between=has_no_record, attempts=2, holds=is_clean,
         where=CROSSED),
    Case("The bucket falls silent", "once the landing is recorded",
         "The image lies in storage. Its entry is stale: collect removes it a day later.",
         prepare=lambda stage: stage.trouble.begin("silent", landing), between=has_a_stale_entry, holds=is_clean,
         where=CROSSED),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each(LOST))
def test_paid_work_is_found_where(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "storage", monkeypatch)


@pytest.mark.parametrize(("case", "gateway", "mode"), each(BUCKET))
def test_paid_work_is_safe_from(case: Case, impatient_stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, impatient_stage, "storage", monkeypatch)
