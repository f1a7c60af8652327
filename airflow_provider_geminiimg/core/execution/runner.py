"""Runs async code from synchronous code: an event loop in a helper thread, which the caller waits for.

Invariant: an exception that Airflow raises in the main thread (``execution_timeout``, at any line) never interrupts the
helper thread between a paid request and its record. It waits a few seconds for the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from airflow_provider_geminiimg.exceptions import NotSentError

T = TypeVar("T")

GRACE = 5.0  # seconds; SIGKILL follows 5 s after SIGTERM when a running task is marked failed
BEAT = 1.0  # seconds; a signal just before a lock wait is handled only when the wait returns, so wait in slices
THREADS = 32  # for storage; asyncio's default of six on two processors is too low for fifty images in flight


class CancelledUnsentError(asyncio.CancelledError):
    """Cancelled before a byte of the request was written."""


class SubmitGuard:
    """The stop flag for paid requests, and a count of paid requests without a recorded answer.

    A task process whose supervisor was killed keeps running while the next attempt starts elsewhere. So a process whose
    parent has changed never starts a paid request.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._stopped = False
        self._submitting = 0
        self._changed = threading.Condition()

    def stop(self) -> None:
        """Start no further paid request. Takes no lock, because signal handlers call it."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def check(self) -> None:
        """:raises NotSentError: this process must not start a paid request any more."""
        if self._stopped:
            raise NotSentError("The task was killed before the request was sent.", hint="A retry sends it.")
        if os.getppid() != self._parent:
            self.stop()
            raise NotSentError(
                "The supervisor of this task process has died, so another attempt may be running.",
                hint="This process sent nothing.",
            )

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Context manager held from before the claim until the answer is recorded."""
        with self._changed:
            self._submitting += 1
        try:
            yield
        finally:
            with self._changed:
                self._submitting -= 1
                self._changed.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until every paid request has its record; ``False`` if that took longer than `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._submitting == 0, seconds)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. A cancellation meanwhile is raised once `work` has ended."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()  # mark it as retrieved, or asyncio logs it
        raise


def run(make_coroutine: Callable[[], Coroutine[Any, Any, T]], guard: SubmitGuard | None = None) -> T:
    """Run a coroutine in a new event loop in a helper thread, and return its result.

    :param make_coroutine: makes the coroutine; called in the helper thread.
    :param guard: if an exception interrupts the wait, the guard is stopped, and the exception waits at most `GRACE`
        seconds until the answer of a paid request is recorded.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []
    done = threading.Event()  # up to Python 3.12 an interrupted Thread.join() treats the thread as dead

    async def main() -> T:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="geminiimg-storage"))
        running.append((loop, asyncio.current_task()))
        return await make_coroutine()

    def work() -> None:
        try:
            results.append(asyncio.run(main()))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="geminiimg", daemon=True)
    try:
        thread.start()
        while not done.wait(BEAT):
            pass
    except BaseException:
        if guard is not None:
            guard.stop()
            guard.wait_idle(GRACE)
        for loop, task in running:
            if task is not None:
                with contextlib.suppress(RuntimeError):  # the loop has just been closed
                    loop.call_soon_threadsafe(task.cancel)
        done.wait(GRACE)
        raise
    if errors:
        raise errors[0]
    return results[0]
