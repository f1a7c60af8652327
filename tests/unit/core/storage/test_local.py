"""Removals from a disk while others write."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.storage import Blob, Store
from airflow_provider_geminiimg.core.storage import local as disk_module


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return disk_module.LocalStore(str(tmp_path / "root"))


def test_on_disk_nobody_replaces_an_object_between_its_check_and_its_removal(local: Store) -> None:
    version = local.create("entry.json", b"old")
    assert version is not None
    with ThreadPoolExecutor(1) as pool:
        replaced: list[Future[str | None]] = []

        def is_wanted(key: str, blob: Blob) -> bool:
            replaced.append(pool.submit(local.replace, key, b"new", version))
            done, _ = wait(replaced, timeout=0.2)  # it must wait for the removal
            return not done

        local.delete_where(["entry.json"], is_wanted)
        assert replaced[0].result() is None
    assert local.read("entry.json") is None


def test_a_signal_handler_that_raises_anywhere_leaves_no_lock_behind(local: Store) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    before, delay = signal.signal(signal.SIGALRM, stop), random.Random(3)
    try:
        for _ in range(2000):
            with contextlib.suppress(Stop):
                try:
                    signal.setitimer(signal.ITIMER_REAL, delay.uniform(1e-5, 6e-4))
                    for number in range(20):
                        local.create("dag/1.json", b"%d" % number)
                        local.delete("dag/1.json")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with ThreadPoolExecutor(1) as pool:  # another thread, because the lock may be held twice by one
        local.create("dag/2.json", b"{}")
        pool.submit(local.delete, "dag/2.json").result(timeout=20)
    assert local.read("dag/2.json") is None


def test_others_can_write_while_many_objects_are_removed_from_a_slow_disk(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def slowly(path: Any) -> None:
        time.sleep(0.002)
        unlink(path)

    monkeypatch.setattr(disk_module, "LOCK_SECONDS", 2.0)
    monkeypatch.setattr(os, "unlink", slowly)
    version = local.create("record.json", b"1")
    assert version is not None
    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(local.delete_all, [f"old/{number}.json" for number in range(1500)])
        for number in range(2, 5):
            version = local.replace("record.json", str(number).encode(), str(version))
            assert version is not None
        removing.result()


def test_objects_are_created_in_a_folder_that_is_removed_at_the_same_time(local: Store) -> None:
    def create(number: int) -> str | None:
        return local.create(f"dag/run/{number}.json", b"{}")

    def remove(number: int) -> None:
        local.delete_all([f"dag/run/{number}.json"])

    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            made, _ = pool.submit(create, number), pool.submit(remove, number - 1)
            assert made.result() is not None
