"""The room that images share on their way into storage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore


class Landing:
    """One that lands an image: inside the room until it is let go."""

    def __init__(self, room: ByteSemaphore, size: int) -> None:
        self.inside, self.leave = asyncio.Event(), asyncio.Event()
        self.settle: Callable[[int], None]
        self.task = asyncio.create_task(self._land(room, size))

    async def _land(self, room: ByteSemaphore, size: int) -> None:
        async with room.share() as settle:
            settle(size)
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
    room = ByteSemaphore(100)
    first = Landing(room, 40)
    assert await entered(first) == [True]
    second, third = Landing(room, 40), Landing(room, 40)
    assert await entered(second, third) == [True, False]
    await first.end()
    assert await entered(third) == [True]
    await second.end()
    await third.end()


async def test_an_image_larger_than_the_room_lands_alone() -> None:
    room = ByteSemaphore(100)
    large = Landing(room, 5000)
    assert await entered(large) == [True]
    small = Landing(room, 1)
    assert await entered(small) == [False]
    await large.end()
    assert await entered(small) == [True]
    await small.end()


@pytest.mark.parametrize("ending", ["cancelled inside", "cancelled while it waits"])
async def test_who_is_cancelled_gives_back_what_it_had_and_nothing_else(ending: str) -> None:
    room = ByteSemaphore(100)
    holder = Landing(room, 100)
    assert await entered(holder) == [True]
    waiting = Landing(room, 100)
    assert await entered(waiting) == [False]
    (holder if ending == "cancelled inside" else waiting).task.cancel()
    await turns()
    last = Landing(room, 100)
    if ending == "cancelled inside":
        assert await entered(waiting, last) == [True, False]
        await waiting.end()
    else:
        assert await entered(last) == [False]
        await holder.end()
    assert await entered(last) == [True]
    await last.end()


async def test_many_of_any_size_all_land_and_what_is_inside_stays_within_the_room() -> None:
    room, inside, most = ByteSemaphore(1000), 0, 0

    async def land(size: int) -> None:
        nonlocal inside, most
        async with room.share() as settle:
            settle(size)
            inside += size
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= size

    await asyncio.wait_for(asyncio.gather(*(land(200) for _ in range(500))), 20)
    assert most <= 1000
    await asyncio.wait_for(asyncio.gather(*(land(size) for size in (1, 5000, 200, 999, 1) * 50)), 20)


async def test_who_collect_more_than_the_room_together_all_get_it_one_after_the_other() -> None:
    room, done = ByteSemaphore(100), []

    async def edit(number: int) -> None:
        async with room.share(empty=True) as share:
            for size in (30, 60, 90, 250):
                await share.hold(size)
                await asyncio.sleep(0)
            done.append(number)

    await asyncio.wait_for(asyncio.gather(*map(edit, range(10))), 20)
    assert sorted(done) == list(range(10))


async def test_what_has_come_already_is_charged_at_once_and_whoever_may_cause_more_waits() -> None:
    room, order = ByteSemaphore(100), []

    async def pay() -> None:
        await room.relief()
        order.append("paid")

    with room.held(300):
        async with room.share(empty=True):  # of what has come: it waits for nobody
            paying, later = asyncio.create_task(pay()), Landing(room, 10)
            assert await entered(later) == [False]
            order.append("landed")
    await paying
    assert order == ["landed", "paid"]
    assert await entered(later) == [True]
    await later.end()


async def test_who_begins_again_gives_back_what_it_had_and_comes_last() -> None:
    room = ByteSemaphore(100)
    async with room.share() as first, room.share(empty=True) as second:
        await first.hold(100)
        waiting = asyncio.create_task(second.hold(120))
        await turns()
        assert not waiting.done()
        first.begin_again(0)
        await turns()
        assert waiting.done()


async def test_who_has_left_waits_for_nothing_and_gives_back_once() -> None:
    room = ByteSemaphore(100)
    async with room.share(empty=True) as share:
        await share.hold(100)
        share.leave()
        inside = Landing(room, 100)
        assert await entered(inside) == [True]
    waiting = Landing(room, 100)
    assert await entered(waiting) == [False]
    await inside.end()
    assert await entered(waiting) == [True]
    await waiting.end()
