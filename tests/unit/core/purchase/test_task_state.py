"""The record of an item, and what Airflow's task state says about it."""

from __future__ import annotations

from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.task_state import look
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import ITEM, make_record
from tests.harness.shop import Memory


async def test_a_record_that_another_attempt_created_after_the_listing_is_found_if_the_task_state_names_it(
    local_root: str,
) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    ledger.prefetch(ITEM, [ITEM.item])
    other = Ledger(ledger.store).create(make_record())
    assert other is not None
    marker = Memory({"record": other.record.key, "claim": other.record.claim})
    found = await look(ledger, ITEM, marker)
    assert found is not None
    assert found.record == other.record
