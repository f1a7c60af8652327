"""A semaphore over bytes: limits the memory of one process for images that it downloads, stores or sends.

Invariants:

- A share is charged with the bytes that are really held, as they arrive. Sizes that a host announced do not count.
- The oldest share may always grow. So there is no deadlock, and at most one share exceeds the limit, except shares
  whose patience has ended.
- An image of any size is admitted when nothing else is held.
- A share starts with the expected size. What has not arrived after `EXPECTED_SECONDS` is released.
- A share is always released, also after an exception.

There is no deadlock with other waits. The holder of a share may wait for growth of this share, and for turns to send
and to upload, whose holders never wait for memory. It never waits for a second share, for a batch turn (which comes
first), or for a turn to poll, whose holder may wait for memory. Bytes inside an answer are charged at once and make
others wait. A share is released as soon as its bytes are sent, before the wait for the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

import anyio

ROOM = 36 * 1024 * 1024
"""Bytes: 24 images of 1K, or two of 4K. More would hardly be faster, and fifty images of 4K take a gigabyte."""

EXPECTED_SECONDS = 30.0  # how long a share keeps expected bytes that have not arrived
_MOST_AT_ONCE = 144  # shares, even for tiny images, because each connection takes memory too


class ByteSemaphore:
    """Limits the bytes of images in memory. The size of an image is known only when it has arrived, so each image is
    expected to be as large as the one before.

    :param size: limit in bytes. Default: `ROOM`.
    """

    def __init__(self, size: int = ROOM) -> None:
        self._size = self._free = size
        self._expected = size // 4
        self._given_back = asyncio.Event()
        self._shares: dict[Share, None] = {}  # in the order of admission

    @contextlib.asynccontextmanager
    async def share(self, patience: float = math.inf, *, empty: bool = False) -> AsyncIterator[Share]:
        """Context manager: wait for a share for one image, and hold it.

        :param patience: seconds to wait, for admission and growth together; then the share takes what it needs.
            Default: no limit.
        :param empty: start with 0 bytes, without a wait. Default: start with the expected size.
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
        """Context manager: charge bytes that are already in memory, without a wait."""
        self._free -= size
        try:
            yield
        finally:
            self._give_back(size)

    async def relief(self) -> None:
        """Wait until the limit is no longer exceeded. Called without a share, before a step that needs more memory."""
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
    """The bytes of one image in a `ByteSemaphore`. Call it with the size of the image when the size is known; the next
    image is then expected to be as large.

    :param room: the semaphore.
    :param patience: seconds that the share may still wait.

    `taken`: bytes that are charged. `since`: time of admission, by the monotonic clock.
    """

    def __init__(self, room: ByteSemaphore, patience: float) -> None:
        self.taken = 0
        self.patience = patience
        self._room = room
        self.since = math.inf

    def __call__(self, size: int) -> None:
        self._room._settle(self, size)

    async def hold(self, size: int) -> None:
        """Set the charge to `size` bytes, before they arrive. Waits while they do not fit, unless this is the oldest
        share or its patience has ended."""
        if size > self.taken:
            await self._room._grow(self, size)
        elif time.monotonic() - self.since > EXPECTED_SECONDS:
            self._room._take(self, size)

    def only(self, size: int) -> None:
        """Set the charge to `size` bytes, because everything else was released."""
        self._room._take(self, size)

    def leave(self) -> None:
        """Release all bytes now, before the context manager exits."""
        self._room._leave(self)

    def begin_again(self, size: int) -> None:
        """Set the charge to `size` bytes for a new try, and become the youngest share."""
        self._room._begin_again(self, size)
