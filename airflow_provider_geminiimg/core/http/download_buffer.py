"""The memory of a download while it arrives, and the check that it makes progress.

What must stay true: memory grows with the received bytes, never with the announced size alone, and is reserved before
it is used; a download without progress is aborted, but time spent waiting for memory does not count.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import anyio

_FIRST_BYTES = 64 * 1024  # initial capacity, doubled when it is full
_WINDOW = 30.0  # seconds within which a download must make progress
_PROGRESS = 0.1  # required growth within the window; a steady download of 300 seconds has it
_MIN_PROGRESS = 128 * 1024  # required growth in bytes; with less, an image of 1K takes more than 300 seconds

Hold: TypeAlias = Callable[[int], Awaitable[None]]
"""Waits until that many bytes of memory may be used; called before they are used."""


class Pace:
    """The time limits of a download: for the complete body, and for the next progress.

    :param limit: the time limit of the complete download.
    """

    def __init__(self, limit: anyio.CancelScope) -> None:
        self.window = anyio.CancelScope()
        self.seconds = _WINDOW
        self._limits = (limit, self.window)
        self._needed = 0

    def progress(self, size: int) -> None:
        """Report the received size in bytes."""
        if size >= self._needed:
            self._needed = size + max(_MIN_PROGRESS, int(size * _PROGRESS))
            self.window.deadline = anyio.current_time() + self.seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: the time inside it does not count."""
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
    """The body of a download in memory.

    :param most: maximum size in bytes.
    :param hold: see `download`.
    :param pace: the time limits; paused while `hold` waits.
    """

    def __init__(self, most: int, hold: Hold | None, pace: Pace) -> None:
        self.most = most
        self.size = self.announced = 0
        self.pace = pace
        self._hold = hold
        self._capacity = 0
        self._body = io.BytesIO()  # getvalue() makes no copy

    async def add(self, piece: bytes) -> None:
        """Append a chunk; it is discarded if the body becomes too large."""
        needed = self.size + len(piece)
        if needed <= self.most and needed > self._capacity:
            await self._grow(needed)
        self.size = needed
        if needed <= self.most:
            self._body.write(piece)
        self.pace.progress(needed)

    def getvalue(self) -> bytes:
        """The complete body."""
        self._body.truncate(self.size)
        return self._body.getvalue()

    async def _grow(self, needed: int) -> None:
        # In steps: growing with each chunk took a third of a download's CPU and fragmented the memory.
        self._capacity = max(needed, min(max(2 * needed, _FIRST_BYTES), self.announced or self.most))
        if self._hold is not None:
            with self.pace.paused():
                await self._hold(self._capacity)
        self._body.seek(self._capacity - 1)
        self._body.write(b"\0")
        self._body.seek(self.size)
