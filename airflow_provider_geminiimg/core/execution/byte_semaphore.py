"""Memory for images on their way from the gateway into storage, and for inputs on their way to it, shared by all that
one process has under way at once.

What must stay true: what is charged is what is held, as it arrives, whatever a host announced or an earlier image
needed; whoever was let in first may always grow, so that nobody waits for ever, and no more than one is over the
budget, but for those whose patience is at an end; an image of any size gets in once the others are out; what was
expected of an image and has not arrived in time is others'; what is taken is given back whatever happens.

Nobody waits for ever either way: who has a share waits for more of that share, which the first of all always gets, and
for turns to send and to upload, whose holders never wait for room; it never waits for a second share, for its turn to
pay (that comes first), or for a turn to poll, whose holder may wait for room. What has come already, inside an answer,
is charged at once, and makes others wait. A share whose bytes are on their way is left before their answer is waited
for.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

import anyio

ROOM = 36 * 1024 * 1024
"""Bytes: two dozen images of 1K, two of 4K. More at once would hardly be faster, and fifty of 4K are a gigabyte."""

EXPECTED_SECONDS = 30.0  # for which an image keeps the room that it was expected to need
_MOST_AT_ONCE = 144  # however small the last one was: a connection takes memory too


class ByteSemaphore:
    """Room for images. How large one is shows only when it is there: it is expected to be as large as the one before.

    :param size: bytes.
    """

    def __init__(self, size: int = ROOM) -> None:
        self._size = self._free = size
        self._expected = size // 4
        self._given_back = asyncio.Event()
        self._shares: dict[Share, None] = {}  # in the order in which they were let in

    @contextlib.asynccontextmanager
    async def share(self, patience: float = math.inf, *, empty: bool = False) -> AsyncIterator[Share]:
        """Wait for the share of one image and hold it.

        :param patience: seconds that it may wait, here and while it grows; then it takes what it needs.
        :param empty: it begins with nothing. Default: with as much as the image before had, once that is free.
        """
        share = Share(self, patience)
        while not empty and self._expected > self._free and self._free < self._size and share.patience > 0:
            await self._change(share)
        share.taken, share.since = 0 if empty else self._expected, time.monotonic()
        self._free -= share.taken
        self._shares[share] = None
        try:
            yield share
        finally:
            share.leave()

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Charge bytes that are there already, whoever has to wait for it."""
        self._free -= size
        try:
            yield
        finally:
            self._give_back(size)

    async def relief(self) -> None:
        """Wait until no more is held than there is room for: who may cause more to come waits here, holding nothing."""
        waiting = Share(self, math.inf)
        while self._free < 0:
            await self._change(waiting)

    async def _grow(self, share: Share, size: int) -> None:
        while size - share.taken > self._free and next(iter(self._shares)) is not share and share.patience > 0:
            await self._change(share)
        self._take(share, size)

    def _settle(self, share: Share, size: int) -> None:
        self._expected = max(self._size // _MOST_AT_ONCE, min(size, self._size))
        self._take(share, size)

    def _take(self, share: Share, size: int) -> None:
        self._free -= size - share.taken
        share.taken = size
        self._given_back.set()

    def _give_back(self, size: int) -> None:
        self._free += size
        self._given_back.set()

    def _leave(self, share: Share) -> None:
        if share in self._shares:
            del self._shares[share]
            self._give_back(share.taken)

    def _begin_again(self, share: Share, size: int) -> None:
        self._take(share, size)
        self._shares[share] = self._shares.pop(share)

    async def _change(self, share: Share) -> None:
        self._given_back.clear()
        since = time.monotonic()
        with anyio.move_on_after(share.patience):
            await self._given_back.wait()
        share.patience -= time.monotonic() - since


class Share:
    """What one image takes of a `ByteSemaphore`. Called with the image's size once that is known: the next one is
    expected to be as large.

    :param room: whose share it is.
    :param patience: seconds that it may still wait. `taken` are the bytes that it has, `since` is when it was let in.
    """

    def __init__(self, room: ByteSemaphore, patience: float) -> None:
        self.taken = 0
        self.patience = patience
        self._room = room
        self.since = math.inf

    def __call__(self, size: int) -> None:
        self._room._settle(self, size)

    async def hold(self, size: int) -> None:
        """Be charged for `size` bytes from now on. Waits while they don't fit, unless all others came later, or
        its patience is at an end."""
        if size > self.taken:
            await self._room._grow(self, size)
        elif time.monotonic() - self.since > EXPECTED_SECONDS:
            self._room._take(self, size)

    def only(self, size: int) -> None:
        """Be charged for `size` bytes alone, because all else is let go."""
        self._room._take(self, size)

    def leave(self) -> None:
        """Give all back, at once, and be charged for nothing any more."""
        self._room._leave(self)

    def begin_again(self, size: int) -> None:
        """Be charged for `size` bytes alone, because what else there was is given up. All others come first now."""
        self._room._begin_again(self, size)
