"""Measuring: a sandbox in its own process, each contestant in a new interpreter, medians."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from airflow_provider_geminiimg.sandbox import SandboxClient

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds for one contestant
_MARK = "geminiimg-benchmark-result "


@contextlib.contextmanager
def sandbox(latency: float = 0.2, **settings: Any) -> Iterator[SandboxClient]:
    """Run a sandbox in its own process.

    :param latency: duration of a job in seconds.
    :param settings: further fields of `airflow_provider_geminiimg.sandbox.state.Settings`.
    """
    command = [sys.executable, "-m", "airflow_provider_geminiimg", "sandbox", "--port", "0", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"^sandbox (\S+)", process.stdout.readline())
            if found is None:
                raise RuntimeError("The sandbox did not start.")
            client = SandboxClient(found[1])
            try:
                if settings:
                    client.settings(**settings)
                yield client
            finally:
                client.close()
        finally:
            process.terminate()


def fresh(
    function: Callable[..., Any],
    /,
    *,
    env: Mapping[str, str] | None = None,
    stdin: Any = None,
    patience: float = PATIENCE,
    **arguments: Any,
) -> Any:
    """Call a function of a module in a new interpreter, without inherited memory, and return its result.

    :param function: a function of a module, with plain JSON values as arguments and result.
    :param env: additional environment, for example an ``AIRFLOW_CONN_…``.
    :param stdin: file 0 of the process.
    :param patience: maximum time in seconds.
    :param arguments: its keyword arguments.
    """
    with tempfile.TemporaryDirectory(prefix="geminiimg-bench-") as home:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.measure", function.__module__, function.__name__, json.dumps(arguments)],
            cwd=ROOT,
            env={**clean_environment(home), **(env or {})},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
    said = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not said:
        raise RuntimeError(f"{function.__module__}.{function.__name__} failed:\n{done.stderr[-4000:]}")
    return json.loads(said[-1].removeprefix(_MARK))


def clean_environment(home: str) -> dict[str, str]:
    """Return this environment without Airflow's variables, and with a separate Airflow home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return {
        **kept,
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }


def median(measure: Callable[[], float], repeats: int) -> float:
    """Return the median of repeated runs."""
    return statistics.median(measure() for _ in range(repeats))


def rss() -> int:
    """Return the resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a `share` (0 to 1) of `values` is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _main(module: str, function: str, arguments: str) -> None:
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(f"\n{_MARK}{json.dumps(result)}", flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
