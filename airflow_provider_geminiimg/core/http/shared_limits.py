"""This process's part of the limits that all processes of an account share.

Threads and event loops of the process share these objects. Leases are read and written in threads of their own, because
that blocks.

Invariants: a call uses a slot or a unit that this process has leased. If a lease fails, a submit and an upload raise
before anything is sent; a poll, which says nothing about money, goes on within the limits of this process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError

BLOCK_SECONDS = 5.0  # a block covers so many seconds of this process's calls, to write less than once a call
YIELD_SECONDS = 20.0  # a poll that waited so long no longer yields to submits
PATIENCE = 5.0  # seconds that a poll waits for a slow store
RETRY_SECONDS = 30.0  # after a failed lease, polls keep to the limits of this process for so long
BEAT = 5.0  # seconds between two looks at who else waits for a unit
WAITING_BEAT = 1.0  # the same, while this process waits itself
LINGER = 10.0  # seconds until unused units are returned

_log = logging.getLogger(__name__)


class Account(Protocol):
    """Leases of an account's limits; the methods block. See `core.ledger.account_limits.AccountLimits`."""

    @property
    def identity(self) -> Hashable: ...
    @property
    def per_minute(self) -> int: ...
    @property
    def max_concurrency(self) -> int | None: ...
    @property
    def late(self) -> float: ...

    def reserve(self, most: int, *, low_priority: bool) -> tuple[float, float, int] | float: ...
    def pause(self, seconds: float) -> None: ...
    def hold(self, kind: str, *, wanted: int, in_use: int) -> tuple[int, float]: ...


class Slots:
    """Reserved times for calls, in order.

    :param late: for how many seconds after its time a slot may be used.
    """

    def __init__(self, late: float) -> None:
        self._late = late
        self._blocks: deque[tuple[float, float, int]] = deque()  # time of the first slot, interval, count

    def add(self, first: float, interval: float, count: int) -> None:
        self._blocks.append((first, interval, count))

    def __len__(self) -> int:
        return sum(count for _, _, count in self._blocks)

    def next(self, now: float) -> float | None:
        """The time of the next slot that may still be used; ``None`` if there is none."""
        while self._blocks:
            first, interval, count = self._blocks[0]
            gone = max(0, math.ceil((now - self._late - first) / interval))
            if gone < count:
                self._blocks[0] = (first + gone * interval, interval, count - gone)
                return self._blocks[0][0]
            self._blocks.popleft()
        return None

    def use(self) -> None:
        """Remove the slot that `next` returned."""
        first, interval, count = self._blocks.popleft()
        if count > 1:
            self._blocks.appendleft((first + interval, interval, count - 1))


class SharedRate:
    """The rate of an account: slots that this process reserves in blocks.

    :param account: the leases.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._slots = Slots(account.late)
        self._waiting = {False: 0, True: 0}  # by low priority
        self._again_at = {False: 0.0, True: 0.0}
        self._not_before = self._broken_until = 0.0
        self._used, self._since = 0, 0.0  # since the last reservation
        self._reserving: Future[None] | None = None

    async def admit(self, *, low_priority: bool) -> bool:
        """Wait for a slot, and use it.

        :param low_priority: yield to submits of this process, and mostly to those of others.
        :returns: ``False`` if a call of low priority got no slot, because the lease failed.
        :raises GeminiImageError: the lease failed, for any other call.
        """
        yields_until = time.monotonic() + YIELD_SECONDS
        self._count(low_priority, 1)
        try:
            while True:
                if low_priority and time.monotonic() < self._broken_until:
                    return False
                step = self._next(yields=low_priority and time.monotonic() < yields_until)
                if isinstance(step, Future):
                    await self._reserved(step, low_priority=low_priority)
                elif step:
                    await asyncio.sleep(step)
                else:
                    return True
        finally:
            self._count(low_priority, -1)

    def pause(self, seconds: float) -> None:
        """Give no slot for `seconds`, here and, as soon as they reserve, in the other processes."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)
        _in_thread(lambda: self._account.pause(seconds))

    def _count(self, low_priority: bool, by: int) -> None:
        with self._lock:
            self._waiting[low_priority] += by

    def _next(self, *, yields: bool) -> float | Future[None]:
        """0.0 if a slot was used; the seconds to wait; or the reservation to wait for."""
        with self._lock:
            now = time.monotonic()
            if now < self._not_before:
                return self._not_before - now
            at = self._slots.next(now)
            if at is None:
                again = self._again_at[yields]
                return again - now if again > now else self._reserve(low_priority=yields and not self._waiting[False])
            if at > now:
                return at - now
            if yields and self._waiting[False]:
                return 0.05
            self._slots.use()
            self._used += 1
            low_priority = not self._waiting[False]
            others_wait = sum(self._waiting.values()) > 1 and now > self._again_at[low_priority]
            if others_wait and 4 * len(self._slots) <= self._most():
                self._reserve(low_priority=low_priority)  # before they need the slots
            return 0.0

    def _most(self) -> int:
        pace = self._used / max(0.5, time.monotonic() - self._since)
        return max(1, sum(self._waiting.values()), int(pace * BLOCK_SECONDS))

    def _reserve(self, *, low_priority: bool) -> Future[None]:
        """The reservation that is under way, or a new one."""
        if self._reserving is None:
            most = self._most()
            self._reserving = _in_thread(lambda: self._add(most, low_priority))
        return self._reserving

    def _add(self, most: int, low_priority: bool) -> None:
        try:
            got = self._account.reserve(most, low_priority=low_priority)
            with self._lock:
                now = time.monotonic()
                if isinstance(got, tuple):
                    self._slots.add(*got)
                    self._used, self._since = 0, now
                else:
                    for priority in {low_priority, True}:  # what has no room for submits has none for polls
                        self._again_at[priority] = now + got
        finally:
            with self._lock:
                self._reserving = None

    async def _reserved(self, reserving: Future[None], *, low_priority: bool) -> None:
        """Wait for a reservation. If it fails, a call of low priority does not try another for a while."""
        waiting = asyncio.shield(asyncio.wrap_future(reserving))
        try:
            await asyncio.wait_for(waiting, PATIENCE if low_priority else None)
        except (GeminiImageError, TimeoutError) as error:
            if not low_priority and isinstance(error, GeminiImageError):
                raise unleased(error) from None
            with self._lock:
                said, self._broken_until = self._broken_until, time.monotonic() + RETRY_SECONDS
            if not said:
                log_unshared(error)


class SharedConcurrency:
    """Units of a concurrency limit of an account. One thread renews them while they are used.

    :param account: the leases.
    :param kind: ``submit`` or ``poll``.
    """

    def __init__(self, account: Account, kind: str) -> None:
        self._account, self._kind = account, kind
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._waiters: deque[Future[None]] = deque()
        self._in_use = self._held = self._peak = self._asked = 0
        self._until = self._used_at = self._asked_at = self._broken_until = 0.0
        self._thread: threading.Thread | None = None

    async def acquire(self, *, low_priority: bool) -> bool:
        """Wait for a unit.

        :returns: ``False`` if a call of low priority got none, because the lease failed.
        :raises GeminiImageError: the lease failed, for any other call.
        """
        if low_priority and time.monotonic() < self._broken_until:
            return False
        with self._lock:
            waiter: Future[None] = Future()
            self._waiters.append(waiter)
            self._grant()
            if not waiter.done():
                self._ask(waiter)
        try:
            await asyncio.wrap_future(waiter)
        except asyncio.CancelledError:
            with self._lock:
                granted = not waiter.cancel() and not waiter.cancelled() and waiter.exception() is None
            if granted:
                self.release()
            raise
        except GeminiImageError as error:
            if not low_priority:
                raise unleased(error) from None
            with self._lock:
                said, self._broken_until = self._broken_until, time.monotonic() + RETRY_SECONDS
            if not said:
                log_unshared(error)
            return False
        return True

    def release(self) -> None:
        """Return a unit to this process."""
        with self._lock:
            self._in_use -= 1
            self._used_at = time.monotonic()
            self._grant()

    def close(self) -> threading.Thread | None:
        """Return the units soon if no call is in flight.

        :returns: the thread that returns them.
        """
        with self._lock:
            if self._in_use or self._waiters or self._thread is None:
                return None
            self._used_at = float("-inf")
            self._changed.set()
            return self._thread

    def _grant(self) -> None:
        self._peak = max(self._peak, self._in_use + len(self._waiters))
        while self._waiters and self._in_use < self._held and time.monotonic() < self._until:
            waiter = self._waiters.popleft()
            if waiter.set_running_or_notify_cancel():
                self._in_use += 1
                waiter.set_result(None)

    def _ask(self, waiter: Future[None]) -> None:
        """Wake the thread that holds the units if it has not asked for so many; start it if there is none."""
        if self._in_use + len(self._waiters) > self._asked or time.monotonic() - self._asked_at > WAITING_BEAT:
            self._changed.set()
        if self._thread is None:
            thread = threading.Thread(target=self._hold, name=f"geminiimg-limit-{self._kind}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the process may have no further thread
                self._waiters.remove(waiter)
                waiter.set_exception(as_outcome(error))
            else:
                self._thread = thread

    def _hold(self) -> None:
        while True:
            self._changed.clear()
            with self._lock:
                self._waiters = deque(waiter for waiter in self._waiters if not waiter.cancelled())
                in_use, waiting = self._in_use, len(self._waiters)
                ends = not in_use and not waiting and time.monotonic() - self._used_at > LINGER
                wanted = 0 if ends else max(in_use + waiting, self._peak, 1)
                self._peak, self._asked, self._asked_at = in_use + waiting, wanted, time.monotonic()
                self._held = in_use  # until the answer, which may be fewer units, no further call begins
            failure = self._renew(wanted, in_use)
            with self._lock:
                if failure is not None:
                    self._fail(failure)
                if ends and not self._waiters:
                    self._thread, self._asked = None, 0
                    return
                beat = WAITING_BEAT if self._waiters else BEAT
            self._pause(beat)

    def _pause(self, seconds: float) -> None:
        """Wait. A new waiter ends the wait, but not at once: others may follow within the same moment."""
        if self._changed.wait(seconds):
            time.sleep(0.02)

    def _renew(self, wanted: int, in_use: int) -> GeminiImageError | None:
        try:
            held, until = self._account.hold(self._kind, wanted=wanted, in_use=in_use)
        except Exception as error:
            return as_outcome(error)
        with self._lock:
            self._held, self._until = held, until
            self._grant()
        return None

    def _fail(self, error: GeminiImageError) -> None:
        """Pass an error to all that wait."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if waiter.set_running_or_notify_cancel():
                waiter.set_exception(error)


def unleased(error: GeminiImageError) -> GeminiImageError:
    """The error of a failed lease for the call that needed it: nothing was sent."""
    return error.evolve(message=f"No lease of the connection's limits: {error.message}", billed=Billed.NO)


def log_unshared(error: BaseException) -> None:
    """Log that a limit holds for this process only."""
    kind = error.kind if isinstance(error, GeminiImageError) else "the store is slow"
    _log.warning(
        "The limits that the connection shares over all processes could not be leased (%s); polls of this process keep "
        "to its own limits. The jobs are not affected.",
        kind,
    )


def _in_thread(work: Callable[[], object]) -> Future[None]:
    """Run `work` in a thread that does not keep the process alive."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except Exception as error:
            future.set_exception(as_outcome(error))
        else:
            future.set_result(None)

    threading.Thread(target=run, name="geminiimg-limits", daemon=True).start()
    return future
