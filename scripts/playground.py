"""Common code of ``make demo`` and ``make ui``: the sandbox process, the shutdown, the errors of a failed run.

Invariant: no process outlives the script, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from airflow_provider_geminiimg.sandbox import SandboxClient
from tests.harness.live_airflow import LiveAirflow

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "example_dags"
LATENCY = 2.0  # seconds that the sandbox takes for an image
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PlaygroundError(Exception):
    """A step had a wrong result."""


def end_when_asked() -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal raise `KeyboardInterrupt`, once: it unwinds the `with` blocks, which
    end what they started, and a second Ctrl-C would leave half of that undone."""
    for number in _ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` means it
            signal.signal(number, _end)


def _end(number: int, frame: object) -> NoReturn:
    for each in _ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def sandbox() -> Iterator[SandboxClient]:
    """Both gateways in a box, in a process of their own."""
    command = [sys.executable, "-m", "airflow_provider_geminiimg", "sandbox", "--port", "0", "--latency", str(LATENCY)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise PlaygroundError("the sandbox did not start")
        say(f"The sandbox replaces both gateways at {found.group()}.")
        client = SandboxClient(found.group())
        yield client
        client.close()
    finally:
        process.kill()  # it keeps nothing that could be lost
        process.wait()


def expect_success(airflow: LiveAirflow, dag_id: str, run_id: str, state: str) -> None:
    """Go on if a run has succeeded.

    :raises PlaygroundError: it has not; with the exceptions that its tasks ended with.
    """
    if state != "success":
        failed = [ti for ti in airflow.task_instances(dag_id, run_id) if ti["state"] == "failed"]
        failures = "; ".join(f"{label(ti)}: {_complaint(airflow, ti)}" for ti in failed)
        raise PlaygroundError(failures or f"the run {run_id!r} of {dag_id} is {state}")


def _complaint(airflow: LiveAirflow, ti: Mapping[str, Any]) -> str:
    errors = [each for line in log_lines(airflow, ti) for each in line.get("error_detail") or []]
    return f"{errors[0]['exc_type']}: {errors[0]['exc_value']}" if errors else "no exception in its log"


def log_lines(airflow: LiveAirflow, ti: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The log of a task's last attempt."""
    where = {"map_index": ti["map_index"], "attempt": ti["try_number"]}
    for line in airflow.task_log(ti["dag_id"], ti["dag_run_id"], ti["task_id"], **where).splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def label(ti: Mapping[str, Any]) -> str:
    """``variants[0]``, ``final``."""
    return f"{ti['task_id']}[{ti['map_index']}]" if ti["map_index"] >= 0 else str(ti["task_id"])


def relative(path: Path) -> str:
    """`path` as seen from where the user stands."""
    return os.path.relpath(path)


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)
