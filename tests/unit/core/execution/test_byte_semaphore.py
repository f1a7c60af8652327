"""Limits the bytes of images on their way into storage."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore


class Landing:
    """One that lands an image: holds its allocation until it is let go."""

    def __init__(self, memory: ByteSemaphore, size: int) -> None:
        self.inside, self.leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._land(memory, size))

    async def _land(self, memory: ByteSemaphore, size: int) -> None:
        async with memory.acquire() as allocation:
            allocation.complete(size)
            self.inside.set()
            await self.leave.wait()

    async def end(self) -> None:
        self.leave.set()
        await self.task


async def turns() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def entered(*landings: Landing) -> list[bool]:
    await turns()
    return [landing.inside.is_set() for landing in landings]


async def test_images_that_fit_land_at_once_and_the_next_one_waits_for_one_of_them() -> None:
    memory = ByteSemaphore(100)
    first = Landing(memory, 40)
    assert await entered(first) == [True]
    second, third = Landing(memory, 40), Landing(memory, 40)
    assert await entered(second, third) == [True, False]
    await first.end()
    assert await entered(third) == [True]
    await second.end()
    await third.end()


async def test_an_image_larger_than_the_limit_lands_alone() -> None:
    memory = ByteSemaphore(100)
    large = Landing(memory, 5000)
    assert await entered(large) == [True]
    small = Landing(memory, 1)
    assert await entered(small) == [False]
    await large.end()
    assert await entered(small) == [True]
    await small.end()


@pytest.mark.parametrize("ending", ["cancelled inside", "cancelled while it waits"])
async def test_who_is_cancelled_gives_back_what_it_had_and_nothing_else(ending: str) -> None:
    memory = ByteSemaphore(100)
    holder = Landing(memory, 100)
    assert await entered(holder) == [True]
    waiting = Landing(memory, 100)
    assert await entered(waiting) == [False]
    (holder if ending == "cancelled inside" else waiting).task.cancel()
    await turns()
    last = Landing(memory, 100)
    if ending == "cancelled inside":
        assert await entered(waiting, last) == [True, False]
        await waiting.end()
    else:
        assert await entered(last) == [False]
        await holder.end()
    assert await entered(last) == [True]
    await last.end()


async def test_many_of_any_size_all_land_and_what_is_inside_stays_within_the_limit() -> None:
    memory, inside, most = ByteSemaphore(1000), 0, 0

    async def land(size: int) -> None:
        nonlocal inside, most
        async with memory.acquire() as allocation:
            allocation.complete(size)
            inside += size
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= size

    await asyncio.wait_for(asyncio.gather(*(land(200) for _ in range(500))), 20)
    assert most <= 1000
    await asyncio.wait_for(asyncio.gather(*(land(size) for size in (1, 5000, 200, 999, 1) * 50)), 20)


async def test_who_collect_more_than_the_limit_together_all_get_it_one_after_the_other() -> None:
    memory, done = ByteSemaphore(100), []

    async def edit(number: int) -> None:
        async with memory.acquire(empty=True) as allocation:
            for size in (30, 60, 90, 250):
                await allocation.hold(size)
                await asyncio.sleep(0)
            done.append(number)

    await asyncio.wait_for(asyncio.gather(*map(edit, range(10))), 20)
    assert sorted(done) == list(range(10))


async def test_what_has_come_already_is_charged_at_once_and_whoever_may_cause_more_waits() -> None:
    memory, order = ByteSemaphore(100), []

    async def pay() -> None:
        await memory.wait_below_limit()
        order.append("paid")

    with memory.held(300):
        async with memory.acquire(empty=True):  # of what has come: it waits for nobody
            submission, later = asyncio.create_task(pay()), Landing(memory, 10)
            assert await entered(later) == [False]
            order.append("landed")
    await submission
    assert order == ["landed", "paid"]
    assert await entered(later) == [True]
    await later.end()


async def test_who_begins_again_gives_back_what_it_had_and_comes_last() -> None:
    memory = ByteSemaphore(100)
    async with memory.acquire() as first, memory.acquire(empty=True) as second:
        await first.hold(100)
        waiting = asyncio.create_task(second.hold(120))
        await turns()
        assert not waiting.done()
        first.restart(0)
        await turns()
        assert waiting.done()


async def test_who_has_released_waits_for_nothing_and_gives_back_once() -> None:
    memory = ByteSemaphore(100)
    async with memory.acquire(empty=True) as allocation:
        await allocation.hold(100)
        allocation.release()
        inside = Landing(memory, 100)
        assert await entered(inside) == [True]
    waiting = Landing(memory, 100)
    assert await entered(waiting) == [False]
    await inside.end()
    assert await entered(waiting) == [True]
    await waiting.end()
