"""Memory for pictures on their way from the gateway into storage, shared by all that one process lands at once.

What must stay true: who waits holds no connection, so that no host cuts it off meanwhile; a picture of any size gets in
once the others are out, so that nobody waits for ever; what is taken is given back whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

ROOM = 36 * 1024 * 1024
"""Bytes: two dozen pictures of 1K, two of 4K. More at once would hardly be faster, and fifty of 4K are a gigabyte."""


class Room:
    """Room for pictures. How large one is shows only when it is there: it is expected to be as large as the one before.

    :param size: bytes.
    """

    def __init__(self, size: int = ROOM) -> None:
        self._size = self._free = size
        self._expected = size // 4
        self._given_back = asyncio.Event()

    @contextlib.asynccontextmanager
    async def share(self) -> AsyncIterator[Callable[[int], None]]:
        """Wait for the share of one picture and hold it; gives what is to be told how large the picture is."""
        taken = self._expected
        while taken > self._free and self._free < self._size:
            self._given_back.clear()
            await self._given_back.wait()
            taken = self._expected
        self._free -= taken

        def settle(size: int) -> None:
            nonlocal taken
            self._expected = min(size, self._size)
            self._free += taken - size
            taken = size
            self._given_back.set()

        try:
            yield settle
        finally:
            self._free += taken
            self._given_back.set()
