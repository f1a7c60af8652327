"""This process's part of the limits that all processes share: leases in a real store on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.gateways.base import Call
from airflow_provider_geminiimg.core.gateways.connection import parse_connection
from airflow_provider_geminiimg.core.http import shared_limits
from airflow_provider_geminiimg.core.http.rate_limit import Limiter
from airflow_provider_geminiimg.core.http.shared_limits import SharedConcurrency, SharedRate, Slots
from airflow_provider_geminiimg.core.ledger.account_limits import AccountLimits
from airflow_provider_geminiimg.core.storage import LocalStore
from airflow_provider_geminiimg.exceptions import GeminiImageError


class CountedLimits(AccountLimits):
    """The leases, and how many slots each reservation asked for. A reservation waits while `opened` is not set."""

    asked: list[int]
    opened: threading.Event

    def reserve(self, most: int, *, low_priority: bool) -> tuple[float, float, int] | float:
        vars(self).setdefault("asked", []).append(most)
        if "opened" in vars(self):
            assert self.opened.wait(30)
        return super().reserve(most, low_priority=low_priority)


def account(root: Path, **extra: Any) -> CountedLimits:
    connection = parse_connection(conn_id="account", password="key", extra={"gateway": "apimaster", **extra})
    return CountedLimits(LocalStore(str(root)), "default", connection)


def holders(root: Path, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"limits/default/account/{kind}.json").read_text())["holders"]
    return found


async def until(there: Callable[[], bool]) -> None:
    while not there():  # noqa: ASYNC110 - a thread writes it
        await asyncio.sleep(0.01)


def test_a_slot_is_used_within_its_time_or_not_at_all() -> None:
    slots = Slots(late=1.5)
    assert slots.next(0.0) is None
    slots.add(100.0, 1.0, 4)
    slots.add(110.0, 1.0, 1)
    assert slots.next(99.0) == 100.0
    slots.use()
    assert (slots.next(99.0), len(slots)) == (101.0, 4)
    assert (slots.next(102.4), len(slots)) == (101.0, 4)
    assert (slots.next(102.6), len(slots)) == (102.0, 3)
    assert (slots.next(107.0), len(slots)) == (110.0, 1)
    assert (slots.next(112.0), len(slots)) == (None, 0)


async def test_a_single_call_reserves_one_slot_and_many_reserve_blocks(tmp_path: Path) -> None:
    own = account(tmp_path, requests_per_minute=3000)
    rate = SharedRate(own)
    assert await rate.admit(low_priority=True)
    assert own.asked == [1]
    await asyncio.gather(*(rate.admit(low_priority=True) for _ in range(100)))
    assert len(own.asked) <= 10
    assert max(own.asked) >= 90


async def test_polls_wait_while_submits_of_this_process_wait(tmp_path: Path) -> None:
    own = account(tmp_path, requests_per_minute=600)
    rate, order = SharedRate(own), list[str]()

    async def send(kind: str) -> None:
        assert await rate.admit(low_priority=kind == "poll")
        order.append(kind)

    await rate.admit(low_priority=True)
    vars(own)["opened"] = threading.Event()
    sending = asyncio.gather(*(send("poll") for _ in range(8)), *(send("submit") for _ in range(8)))
    await asyncio.sleep(0)  # now all wait
    own.opened.set()
    await sending
    assert order.index("poll") >= 7


async def test_a_pause_of_one_process_holds_for_the_others(tmp_path: Path) -> None:
    one, other = SharedRate(account(tmp_path)), SharedRate(account(tmp_path))
    one.pause(1.0)
    began = time.monotonic()
    await until((tmp_path / "limits/default/account/rate.json").exists)
    await asyncio.gather(one.admit(low_priority=False), other.admit(low_priority=False))
    assert time.monotonic() - began >= 0.9


async def test_two_processes_share_the_units_and_closing_returns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "BEAT", 0.1)
    monkeypatch.setattr(shared_limits, "WAITING_BEAT", 0.1)
    one, other = (SharedConcurrency(account(tmp_path, max_concurrency=4), "submit") for _ in range(2))
    await asyncio.gather(*(one.acquire(low_priority=False) for _ in range(4)))
    blocked = asyncio.create_task(other.acquire(low_priority=False))
    cancelled = asyncio.create_task(other.acquire(low_priority=False))
    await until(lambda: len(holders(tmp_path, "submit")) == 2)
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    assert not blocked.done()
    one.release()
    assert await blocked
    assert sum(holder["units"] for holder in holders(tmp_path, "submit").values()) == 4
    for _ in range(3):
        one.release()
    assert other.close() is None
    other.release()
    for units in (one, other):
        thread = units.close()
        assert thread is not None
        await asyncio.to_thread(thread.join, 10)
    assert holders(tmp_path, "submit") == {}


async def test_a_waiting_call_that_is_cancelled_keeps_no_unit(tmp_path: Path) -> None:
    units = SharedConcurrency(account(tmp_path, max_concurrency=1), "poll")
    for _ in range(20):
        waiting = [asyncio.create_task(units.acquire(low_priority=True)) for _ in range(3)]
        await asyncio.sleep(0)
        await waiting[0]
        for each in waiting[1:]:
            each.cancel()
        units.release()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert await asyncio.wait_for(units.acquire(low_priority=True), 5)


@pytest.mark.parametrize(("of_the_account", "of_the_batch"), [(10, 5000), (5000, 10)])
async def test_a_batch_may_lower_the_limit_of_its_account_and_not_raise_it(
    tmp_path: Path, of_the_account: int, of_the_batch: int
) -> None:
    limiter = Limiter(of_the_batch, 100, account(tmp_path, requests_per_minute=of_the_account))
    call: Call[None] = Call("http://127.0.0.1:1/v1/tasks/none", lambda reply: None)
    (await limiter.enter(call))()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(limiter.enter(call), 1.0)


async def test_a_process_that_may_start_no_thread_is_told_so_and_goes_on_when_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = SharedConcurrency(account(tmp_path, max_concurrency=1), "submit")

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(GeminiImageError, match="No lease"):
            await units.acquire(low_priority=False)
    assert await asyncio.wait_for(units.acquire(low_priority=False), 10)
    units.release()
