"""Holds the body of a download while it arrives.

What must stay true: memory is taken as bytes arrive, asked for before it is taken, and never by what was announced
alone; a body that hardly grows is given up, but the time that waiting for memory takes is not held against its host.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import anyio

_FIRST_BYTES = 64 * 1024  # of memory for a body, which doubles as often as it is full
_WINDOW = 30.0  # seconds in which a body has to go on
_TENTH = 0.1  # of itself by which it has to: a steady link brings that if it is done within 300 seconds
_LEAST = 128 * 1024  # bytes by which it has to: at less, an image of 1K would take more than 300 seconds

Hold: TypeAlias = Callable[[int], Awaitable[None]]
"""Waits until so many bytes may be held, and is told before they are taken."""


class Pace:
    """How long a body may take: all of it, and until it has grown by what it has to.

    :param limit: of all of it.
    """

    def __init__(self, limit: anyio.CancelScope) -> None:
        self.window = anyio.CancelScope()
        self.seconds = _WINDOW
        self._limits = (limit, self.window)
        self._needed = 0

    def went_on(self, size: int) -> None:
        """Tell how large the body is, as it grows."""
        if size >= self._needed:
            self._needed = size + max(_LEAST, int(size * _TENTH))
            self.window.deadline = anyio.current_time() + self.seconds

    @contextlib.contextmanager
    def stands_still(self) -> Iterator[None]:
        """Within this block no time passes."""
        since = anyio.current_time()
        deadlines = [limit.deadline for limit in self._limits]
        for limit in self._limits:
            limit.deadline = math.inf
        try:
            yield
        finally:
            for limit, deadline in zip(self._limits, deadlines, strict=True):
                limit.deadline = deadline + anyio.current_time() - since


class DownloadBuffer:
    """A body in memory, which grows with what has arrived, and not by what was announced.

    :param most: bytes that it may be large.
    :param hold: see `download`.
    :param pace: stands still while `hold` is waited for.
    """

    def __init__(self, most: int, hold: Hold | None, pace: Pace) -> None:
        self.most = most
        self.size = self.announced = 0
        self.pace = pace
        self._hold = hold
        self._capacity = 0
        self._body = io.BytesIO()  # gives its bytes away without a copy of them

    async def add(self, piece: bytes) -> None:
        """Take what has arrived; nothing of it is kept if it is too much."""
        needed = self.size + len(piece)
        if needed <= self.most and needed > self._capacity:
            await self._grow(needed)
        self.size = needed
        if needed <= self.most:
            self._body.write(piece)
        self.pace.went_on(needed)

    def getvalue(self) -> bytes:
        """All of it."""
        self._body.truncate(self.size)
        return self._body.getvalue()

    async def _grow(self, needed: int) -> None:
        # In steps: growing piece by piece took a third of a download's CPU, and left holes in the memory.
        self._capacity = max(needed, min(max(2 * needed, _FIRST_BYTES), self.announced or self.most))
        if self._hold is not None:
            with self.pace.stands_still():
                await self._hold(self._capacity)
        self._body.seek(self._capacity - 1)
        self._body.write(b"\0")
        self._body.seek(self.size)
