"""Strikes inside Airflow's own processes, for the tests: on their ``PYTHONPATH`` only.

A rule is a file in the folder that ``GEMINIIMG_TEST_STRIKES`` names: ``{"event", "path", "victim", "nth"}``. A process
that is about to do this for the nth time (`os.link`, or ``os.rename`` for `os.replace`, to a path that holds the text)
takes the rule by removing the file, and kills itself or its parent. ``GEMINIIMG_TEST_HIDDEN`` names a module that can't
be imported. ``GEMINIIMG_TEST_TICKS`` names a folder, to which each process writes by how many milliseconds its event
loop was late, at each look.
"""

import json
import os
import signal
import sys
from pathlib import Path

_FOLDER = os.environ.get("GEMINIIMG_TEST_STRIKES")
_HIDDEN = os.environ.get("GEMINIIMG_TEST_HIDDEN")
_TICKS = os.environ.get("GEMINIIMG_TEST_TICKS")
_TICK = 0.01  # seconds between two looks
_seen = {}


def _strike(event, arguments):
    if event not in ("os.link", "os.rename"):
        return
    target = os.fsdecode(arguments[1])
    for path in Path(_FOLDER).glob("*.json"):
        try:
            rule = json.loads(path.read_text())
            if rule["event"] != event or rule["path"] not in target:
                continue
            _seen[path] = _seen.get(path, 0) + 1
            if _seen[path] < rule["nth"]:
                continue
            path.unlink()  # of several processes one gets it
        except FileNotFoundError:
            continue
        os.kill(os.getpid() if rule["victim"] == "task" else os.getppid(), signal.SIGKILL)


class _Hide:
    def find_spec(self, name, path=None, target=None):
        if name == _HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _watch_loops():
    import asyncio
    import time

    run = asyncio.run

    async def tick():
        with (Path(_TICKS) / f"{os.getpid()}.txt").open("a", buffering=1 << 12) as out:
            while True:
                before = time.monotonic()
                await asyncio.sleep(_TICK)
                out.write(f"{(time.monotonic() - before - _TICK) * 1000:.1f}\n")

    async def beside(main):
        ticking = asyncio.create_task(tick())
        try:
            return await main
        finally:
            ticking.cancel()

    asyncio.run = lambda main, **options: run(beside(main), **options)


if _FOLDER:
    sys.addaudithook(_strike)
if _HIDDEN:
    sys.meta_path.insert(0, _Hide())
if _TICKS:
    _watch_loops()
