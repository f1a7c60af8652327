"""How synchronous code enters the async code: an event loop in a helper thread, which the caller joins.

What must stay true: what Airflow raises in the main thread (``execution_timeout`` may strike at any line) never lands
between a paid request and the record of it. It waits, a few seconds at most, until the record is written.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from airflow_provider_geminiimg.exceptions import NotSentError

T = TypeVar("T")

GRACE = 5.0  # seconds; SIGKILL follows 5 s after SIGTERM when a running task is marked failed


class Guard:
    """Whether this process may still start a paid request, and whether one is under way.

    A task process whose supervisor was killed lives on while its next attempt starts elsewhere; so one whose parent
    changed never starts a paid request.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._stopped = threading.Event()
        self._idle = threading.Event()
        self._idle.set()

    def stop(self) -> None:
        """From now on no paid request is started."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def check(self) -> None:
        """:raises NotSentError: this process must not start a paid request any more."""
        if self._stopped.is_set():
            raise NotSentError("The task was told to stop before the request was sent.", hint="A retry submits it.")
        if os.getppid() != self._parent:
            self.stop()
            raise NotSentError(
                "The supervisor of this task process is gone, so another attempt may be running.",
                hint="Nothing was sent from here.",
            )

    @contextmanager
    def paying(self) -> Iterator[None]:
        """Marks the time between starting a paid request and having recorded its answer."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no paid request is without its record; ``False`` if `seconds` were not enough."""
        return self._idle.wait(seconds)


def run(make_coroutine: Callable[[], Coroutine[Any, Any, T]], guard: Guard | None = None) -> T:
    """Run a coroutine to its end in an event loop of its own, in a helper thread.

    :param make_coroutine: makes the coroutine; called in the helper thread.
    :param guard: when the wait is interrupted by an exception, stopped first and then waited for until the answer of
        a paid request is recorded, `GRACE` seconds at most.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def main() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await make_coroutine()

    def work() -> None:
        try:
            results.append(asyncio.run(main()))
        except BaseException as error:
            errors.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="geminiimg", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        if guard is not None:
            guard.stop()
            guard.wait_idle(GRACE)
        for loop, task in running:
            if task is not None and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        thread.join(GRACE)
        raise
    if errors:
        raise errors[0]
    return results[0]
