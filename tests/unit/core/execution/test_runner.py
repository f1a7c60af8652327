"""`run` and `SubmitGuard`: no interruption of the main thread comes between a paid request and its record."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from airflow_provider_geminiimg.core.execution import runner
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard, run
from airflow_provider_geminiimg.exceptions import Billed, NotSentError, OutcomeUnknownError


class TaskTimeoutError(BaseException):
    """What Airflow raises in the main thread, at any line, when `execution_timeout` has passed."""


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """SIGUSR1 raises `TaskTimeoutError` in the main thread, as Airflow's own timeout does by SIGALRM."""

    def received(number: int, frame: FrameType | None) -> None:
        raise TaskTimeoutError

    before = signal.signal(signal.SIGUSR1, received)
    yield
    signal.signal(signal.SIGUSR1, before)


def signal_main_thread() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


async def until(ready: threading.Event) -> None:
    assert await asyncio.to_thread(ready.wait, 10)


class Stopped(SubmitGuard):
    """A guard that tells when it was stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.stopping = threading.Event()

    def stop(self) -> None:
        super().stop()
        self.stopping.set()


# Running


def test_a_result_passes_through() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert run(answer) == 42


def test_a_result_of_none_passes_through() -> None:
    async def nothing() -> None: ...

    assert run(nothing) is None  # type: ignore[func-returns-value]


def test_an_outcome_passes_through_as_itself() -> None:
    error = OutcomeUnknownError("?")

    async def fail() -> None:
        raise error

    with pytest.raises(OutcomeUnknownError) as caught:
        run(fail)
    assert caught.value is error


def test_what_fails_before_there_is_a_coroutine_passes_through() -> None:
    def broken() -> None:
        raise ValueError("no coroutine")

    with pytest.raises(ValueError, match="no coroutine"):
        run(broken)  # type: ignore[arg-type]


def test_a_base_exception_passes_through() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(leave)


def test_the_coroutine_runs_in_another_thread_with_a_loop_of_its_own() -> None:
    async def where() -> threading.Thread:
        return threading.current_thread()

    assert run(where) is not threading.current_thread()


def test_it_works_where_a_loop_is_running_already() -> None:
    async def inner() -> str:
        await asyncio.sleep(0)
        return "inner"

    async def outer() -> str:
        return run(inner)

    assert asyncio.run(outer()) == "inner"


def test_context_variables_are_seen_inside_and_not_changed_outside() -> None:
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
    number.set(7)

    async def read_and_set() -> int:
        seen = number.get()
        number.set(8)
        return seen

    assert run(read_and_set) == 7
    assert number.get() == 7


# What interrupts the main thread


def test_a_signal_while_a_paid_request_is_under_way_waits_for_the_record() -> None:
    guard, happened = Stopped(), []

    async def buy() -> None:
        with guard.submitting():
            signal_main_thread()
            await until(guard.stopping)
            await asyncio.sleep(0.2)  # the answer is still on its way
            happened.append("recorded")
        await asyncio.sleep(60)
        happened.append("went on")

    started = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        run(buy, guard)
    assert happened == ["recorded"]
    assert guard.stopped
    assert time.monotonic() - started < 5


def test_a_signal_that_does_not_wake_the_main_thread_is_seen_all_the_same() -> None:
    """As one that comes in the moment before the wait begins: the signal is noted, and nobody looks."""
    guard, happened = Stopped(), []

    async def buy() -> None:
        with guard.submitting():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            await until(guard.stopping)
            happened.append("recorded")
        await asyncio.sleep(60)
        happened.append("went on")

    with pytest.raises(TaskTimeoutError):
        run(buy, guard)
    assert happened == ["recorded"]


def test_a_signal_does_not_wait_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    guard, happened = SubmitGuard(), []

    async def buy() -> None:
        with guard.submitting():
            signal_main_thread()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                happened.append("cancelled")
                raise

    started = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        run(buy, guard)
    assert happened == ["cancelled"]
    assert time.monotonic() - started < 5


def test_a_signal_before_a_paid_request_lets_none_begin() -> None:
    guard, happened = Stopped(), []

    async def buy() -> None:
        signal_main_thread()
        await until(guard.stopping)
        try:
            guard.check()
        except NotSentError:
            happened.append("refused")
            raise
        happened.append("paid")

    with pytest.raises(TaskTimeoutError):
        run(buy, guard)
    assert happened in ([], ["refused"])  # cancelled before it could ask, or refused


def test_a_signal_ends_what_costs_nothing() -> None:
    happened = []

    async def wait() -> None:
        try:
            signal_main_thread()
            await asyncio.sleep(60)
        finally:
            happened.append("cleaned up")

    with pytest.raises(TaskTimeoutError):
        run(wait)
    assert happened == ["cleaned up"]


def test_a_signal_waits_for_every_paid_request_that_is_under_way() -> None:
    guard, happened = Stopped(), []
    both = threading.Barrier(2)

    async def buy(name: str, seconds: float) -> None:
        with guard.submitting():
            await asyncio.to_thread(both.wait, 10)
            if name == "slow":
                signal_main_thread()
            await until(guard.stopping)
            await asyncio.sleep(seconds)
            happened.append(name)

    async def buy_two() -> None:
        await asyncio.gather(buy("quick", 0.0), buy("slow", 0.3))

    with pytest.raises(TaskTimeoutError):
        run(buy_two, guard)
    assert happened == ["quick", "slow"]


# The guard


def test_a_fresh_guard_lets_a_request_begin() -> None:
    guard = SubmitGuard()
    guard.check()
    assert not guard.stopped
    assert guard.wait_idle(0)


def test_a_stopped_guard_refuses_and_says_that_nothing_was_spent() -> None:
    guard = SubmitGuard()
    guard.stop()
    with pytest.raises(NotSentError) as caught:
        guard.check()
    assert caught.value.billed is Billed.NO
    assert "No money was spent." in str(caught.value)
    assert guard.stopped


@contextmanager
def failing(guard: SubmitGuard) -> Iterator[None]:
    with guard.submitting():
        assert not guard.wait_idle(0)
        yield
        raise ValueError("broken")


def test_a_guard_is_idle_again_after_a_paid_request_that_failed() -> None:
    guard = SubmitGuard()
    with pytest.raises(ValueError, match="broken"), failing(guard):
        pass
    assert guard.wait_idle(0)


ORPHAN = """
    import os, sys, time
    from airflow_provider_geminiimg.exceptions import NotSentError
    from airflow_provider_geminiimg.core.execution.runner import SubmitGuard

    guard, parent = SubmitGuard(), os.getppid()
    guard.check()
    print("guarded", flush=True)
    while os.getppid() == parent:
        time.sleep(0.01)
    try:
        guard.check()
    except NotSentError as error:
        print("refused:", error, flush=True)
        print("stopped:", guard.stopped, flush=True)
"""
SUPERVISOR = """
    import subprocess, sys
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL)
    sys.stdin.readline()
"""


def test_a_process_whose_parent_is_gone_starts_no_paid_request() -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR), textwrap.dedent(ORPHAN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "guarded\n"
        supervisor.kill()
        said = supervisor.stdout.read()
    assert "refused: The supervisor of this task process has died" in said
    assert "stopped: True" in said
