"""How synchronous code enters the async code: an event loop in a helper thread, which the caller waits for.

What must stay true: what Airflow raises in the main thread (``execution_timeout`` may strike at any line) never lands
between a paid request and the record of it. It waits, a few seconds at most, until the record is written.
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
BEAT = 1.0  # seconds; a signal in the moment before a lock is waited for is seen when the wait ends, and no sooner
THREADS = 32  # for storage; asyncio's own six on two processors let fifty images wait for each other's disk


class SubmitGuard:
    """Whether this process may still start a paid request, and whether one is under way.

    A task process whose supervisor was killed lives on while its next attempt starts elsewhere; so one whose parent
    changed never starts a paid request.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._stopped = False
        self._paying = 0
        self._changed = threading.Condition()

    def stop(self) -> None:
        """From now on no paid request is started. Takes no lock: signal handlers call it."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def check(self) -> None:
        """:raises NotSentError: this process must not start a paid request any more."""
        if self._stopped:
            raise NotSentError("The task was told to stop before the request was sent.", hint="A retry submits it.")
        if os.getppid() != self._parent:
            self.stop()
            raise NotSentError(
                "The supervisor of this task process is gone, so another attempt may be running.",
                hint="Nothing was sent from here.",
            )

    @contextlib.contextmanager
    def paying(self) -> Iterator[None]:
        """Marks the time between starting a paid request and having recorded its answer."""
        with self._changed:
            self._paying += 1
        try:
            yield
        finally:
            with self._changed:
                self._paying -= 1
                self._changed.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no paid request is without its record; ``False`` if `seconds` were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._paying == 0, seconds)


def run(make_coroutine: Callable[[], Coroutine[Any, Any, T]], guard: SubmitGuard | None = None) -> T:
    """Run a coroutine to its end in an event loop of its own, in a helper thread.

    :param make_coroutine: makes the coroutine; called in the helper thread.
    :param guard: when the wait is interrupted by an exception, stopped first and then waited for until the answer of
        a paid request is recorded, `GRACE` seconds at most.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []
    done = threading.Event()  # an interrupted Thread.join() takes the thread for dead up to Python 3.12

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
