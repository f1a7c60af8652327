"""Claims: what a process may leave unknown that the gateway never saw."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from contextlib import AsyncExitStack
from typing import Any

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.context import CLAIMS_AT_ONCE, PurchaseContext
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.results import JobInFlight
from airflow_provider_geminiimg.core.storage import Store
from tests.harness.records import ITEM
from tests.harness.shop import Shop


class SlowStore:
    """A store whose creates of records wait for the test.

    :param expected: so many at once set `full`.
    """

    def __init__(self, real: Store, expected: int) -> None:
        self._real = real
        self._expected = expected
        self._lock = threading.Lock()
        self.go_on = threading.Event()
        self.full = threading.Event()
        self.waiting = self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create(self, key: str, data: bytes) -> str | None:
        if not key.startswith("ledger/"):
            return self._real.create(key, data)
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            if self.waiting == self._expected:
                self.full.set()
        assert self.go_on.wait(30)
        try:
            return self._real.create(key, data)
        finally:
            with self._lock:
                self.waiting -= 1


async def test_a_slow_store_is_given_few_claims_at_once_however_many_images_wait(disk_shop: Shop) -> None:
    shop = disk_shop
    slow: Any = SlowStore(shop.real, CLAIMS_AT_ONCE)
    async with AsyncExitStack() as stack:

        async def connect(conn_id: str) -> Transport:
            return await stack.enter_async_context(Transport(shop.connection()))

        purchase_context = PurchaseContext(Ledger(slow), shop.files, connect, shop.log)

        async def one(number: int) -> None:
            order = shop.order(
                item=dataclasses.replace(ITEM, item=f"{number:016x}"),
                prompt=f"fox {number}",
                destination=Destination(shop.folder, f"fox-{number}"),
            )
            result = await (purchase := Purchase(order, purchase_context, SubmitGuard(), None)).start()
            if isinstance(result, JobInFlight):
                await purchase.finish(result.record)

        images = asyncio.gather(*(one(number) for number in range(7)))
        assert await asyncio.to_thread(slow.full.wait, 30)
        assert shop.submits() == 0
        slow.go_on.set()
        await images
    assert slow.most == CLAIMS_AT_ONCE
    assert shop.paid() == 7


async def test_who_is_told_to_stop_while_the_store_takes_the_claim_leaves_no_unknown_outcome(disk_shop: Shop) -> None:
    shop, guard = disk_shop, SubmitGuard()
    slow: Any = SlowStore(shop.real, 1)
    shop.store = slow
    buying = asyncio.create_task(shop.buy(guard=guard))
    assert await asyncio.to_thread(slow.full.wait, 30)
    guard.stop()
    buying.cancel()
    slow.go_on.set()
    await asyncio.wait([buying])
    await asyncio.get_running_loop().shutdown_default_executor()
    assert shop.submits() == 0
    assert shop.states() == [("failed", "not_sent")]
