"""How long an event loop stood still while something ran in it, or in a thread that kept it from running.

What must stay true: it measures every loop that `asyncio.run` starts (that of a task, that of a trigger), from within,
as another task of it would feel it; and it counts what this process did meanwhile (CPU seconds, of all its threads),
never the seconds that a busy machine gave to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any
from unittest import mock


class Stalls:
    """`longest` is the most work between two turns of a loop, in CPU seconds; `turns` counts them, and `seconds` are
    the CPU seconds that passed while loops ran."""

    def __init__(self) -> None:
        self.longest = self.seconds = 0.0
        self.turns = 0

    async def tick(self) -> None:
        """Take turns for ever."""
        last = time.process_time()
        while True:
            await asyncio.sleep(0.005)
            now = time.process_time()
            self.longest, self.turns, last = max(self.longest, now - last), self.turns + 1, now


@contextlib.contextmanager
def stalls() -> Iterator[Stalls]:
    """Of the loops that run within this block."""
    found, run = Stalls(), asyncio.run

    async def beside(main: Coroutine[Any, Any, Any]) -> Any:
        ticking, began = asyncio.create_task(found.tick()), time.process_time()
        try:
            return await main
        finally:
            ticking.cancel()
            found.seconds += time.process_time() - began

    def running(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        return run(beside(main), **options)

    with mock.patch.object(asyncio, "run", running):
        yield found
