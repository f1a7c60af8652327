"""A semaphore over bytes: limits the memory of one process for images that it downloads, stores or sends.

Invariants:

- An allocation is charged with the bytes that are really held, as they arrive. Sizes that a host announced do not
  count.
- The oldest allocation may always grow. So there is no deadlock, and at most one allocation exceeds the limit, except
  allocations whose timeout has passed.
- An image of any size is admitted when nothing else is held.
- An allocation starts with the expected size. What has not arrived after `EXPECTED_SECONDS` is released.
- An allocation is always released, also after an exception.

There is no deadlock with other waits. The holder of an allocation may wait for growth of this allocation, and for turns
to send and to upload, whose holders never wait for memory. It never waits for a second allocation, for a batch turn
(which comes first), or for a turn to poll, whose holder may wait for memory. Bytes inside an answer are charged at once
and make others wait. An allocation is released as soon as its bytes are sent, before the wait for the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

import anyio

MEMORY_LIMIT = 36 * 1024 * 1024
"""Bytes: 24 images of 1K, or two of 4K. More would hardly be faster, and fifty images of 4K take a gigabyte."""

EXPECTED_SECONDS = 30.0  # how long an allocation keeps expected bytes that have not arrived
_MAX_ALLOCATIONS = 144  # allocations, even for tiny images, because each connection takes memory too


class ByteSemaphore:
    """Limits the bytes of images in memory. The size of an image is known only when it has arrived, so each image is
    expected to be as large as the one before.

    :param size: limit in bytes. Default: `MEMORY_LIMIT`.
    """

    def __init__(self, size: int = MEMORY_LIMIT) -> None:
        self._size = self._free = size
        self._expected = size // 4
        self._released = asyncio.Event()
        self._allocations: dict[Allocation, None] = {}  # in the order of admission

    @contextlib.asynccontextmanager
    async def acquire(self, timeout: float = math.inf, *, empty: bool = False) -> AsyncIterator[Allocation]:
        """Context manager: wait for an allocation for one image, and hold it.

        :param timeout: seconds to wait, for admission and growth together; then the allocation takes what it needs.
            Default: no limit.
        :param empty: start with 0 bytes, without a wait. Default: start with the expected size.
        """
        allocation = Allocation(self, timeout)
        while not empty and self._expected > self._free and self._free < self._size and allocation.timeout > 0:
            await self._wait_for_change(allocation)
        allocation.taken, allocation.since = 0 if empty else self._expected, time.monotonic()
        self._free -= allocation.taken
        self._allocations[allocation] = None
        try:
            yield allocation
        finally:
            allocation.release()

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Context manager: charge bytes that are already in memory, without a wait."""
        self._free -= size
        try:
            yield
        finally:
            self._give_back(size)

    async def wait_below_limit(self) -> None:
        """Wait until the limit is not exceeded. Called without an allocation, before a step that needs more memory."""
        waiting = Allocation(self, math.inf)
        while self._free < 0:
            await self._wait_for_change(waiting)

    async def _grow(self, allocation: Allocation, size: int) -> None:
        while (
            size - allocation.taken > self._free
            and next(iter(self._allocations)) is not allocation
            and allocation.timeout > 0
        ):
            await self._wait_for_change(allocation)
        self._take(allocation, size)

    def _complete(self, allocation: Allocation, size: int) -> None:
        self._expected = max(self._size // _MAX_ALLOCATIONS, min(size, self._size))
        self._take(allocation, size)

    def _take(self, allocation: Allocation, size: int) -> None:
        self._free -= size - allocation.taken
        allocation.taken = size
        self._released.set()

    def _give_back(self, size: int) -> None:
        self._free += size
        self._released.set()

    def _release(self, allocation: Allocation) -> None:
        if allocation in self._allocations:
            del self._allocations[allocation]
            self._give_back(allocation.taken)

    def _restart(self, allocation: Allocation, size: int) -> None:
        self._take(allocation, size)
        self._allocations[allocation] = self._allocations.pop(allocation)

    async def _wait_for_change(self, allocation: Allocation) -> None:
        self._released.clear()
        since = time.monotonic()
        with anyio.move_on_after(allocation.timeout):
            await self._released.wait()
        allocation.timeout -= time.monotonic() - since


class Allocation:
    """The bytes of one image in a `ByteSemaphore`.

    :param semaphore: the semaphore that admitted it.
    :param timeout: seconds that the allocation may still wait.

    `taken`: bytes that are charged. `since`: time of admission, by the monotonic clock.
    """

    def __init__(self, semaphore: ByteSemaphore, timeout: float) -> None:
        self.taken = 0
        self.timeout = timeout
        self._semaphore = semaphore
        self.since = math.inf

    def complete(self, size: int) -> None:
        """Set the charge to the size of the image, now that it is known. The next image is expected to be as large."""
        self._semaphore._complete(self, size)

    async def hold(self, size: int) -> None:
        """Set the charge to `size` bytes, before they arrive. Waits while they do not fit, unless this is the oldest
        allocation or its timeout has passed."""
        if size > self.taken:
            await self._semaphore._grow(self, size)
        elif time.monotonic() - self.since > EXPECTED_SECONDS:
            self._semaphore._take(self, size)

    def resize(self, size: int) -> None:
        """Set the charge to `size` bytes, because everything else was released."""
        self._semaphore._take(self, size)

    def release(self) -> None:
        """Release all bytes now, before the context manager exits."""
        self._semaphore._release(self)

    def restart(self, size: int) -> None:
        """Set the charge to `size` bytes for a new try, and become the youngest allocation."""
        self._semaphore._restart(self, size)
