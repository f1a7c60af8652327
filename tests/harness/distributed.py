"""An Airflow that is distributed as in production, on this machine: PostgreSQL, Celery on Redis, several workers and
triggerers, the root in a real S3 server, and the sandbox as the gateway of all.

Invariant: no process remains after the block.

    with Stack(folder, dags, latency=5, connection={"requests_per_minute": 600}, env={}) as stack:
        stack.start_worker("worker 1")
        stack.airflow.trigger("my_dag", "run")
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import psutil

from airflow_provider_geminiimg.sandbox import SandboxClient
from tests.harness import REPOSITORY, TESTS
from tests.harness.live_airflow import LiveAirflow
from tests.harness.postgres import Postgres
from tests.harness.servers import KEY, gateway, redis, seaweedfs

BUCKET = "airflow"
ROOT = f"s3://{BUCKET}/root"
CONN = "account"
SLOTS = 4  # tasks that a worker runs at once
WORKERS = 2  # alive at the same time
LOOK = 2.0  # seconds between two looks at the memory
MB = 1_000_000

# Deaths are noticed in seconds instead of minutes.
SETTINGS = {
    "CORE__EXECUTOR": "CeleryExecutor",
    # A task that waits in Celery's queue for a slot would be taken for a stuck one, and fail without a retry.
    "CORE__PARALLELISM": str(SLOTS * WORKERS),
    "CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
    "CELERY__WORKER_CONCURRENCY": str(SLOTS),
    "GEMINIIMG__ROOT": ROOT,
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "SCHEDULER__TASK_QUEUED_TIMEOUT": "90",  # a worker may die with a task that it has not begun
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
}


class Stack:
    """The servers and an Airflow without workers and triggerers; a context manager.

    :param folder: for everything that it writes.
    :param dags: folder of the DAG files.
    :param latency: seconds that a job takes at the gateway.
    :param connection: extras of the connection `CONN`, to 1min.ai.
    :param env: more environment of Airflow.
    """

    def __init__(
        self, folder: Path, dags: Path, *, latency: float, connection: Mapping[str, Any], env: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._dags, self._latency, self._connection, self._env = dags, latency, connection, env
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stack:
        with contextlib.ExitStack() as stack:
            self.store = stack.enter_context(seaweedfs(self.folder))
            broker = stack.enter_context(redis(self.folder))
            box = stack.enter_context(gateway(self.folder, self._latency))
            postgres = stack.enter_context(Postgres())
            aws = {
                "AWS_ENDPOINT_URL": self.store.url,
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": KEY,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            stack.enter_context(mock.patch.dict(os.environ, aws))  # this process reads what lies there
            self.s3 = boto3.client("s3")
            self.s3.create_bucket(Bucket=BUCKET)
            self.sandbox = SandboxClient(box.url)
            stack.callback(self.sandbox.close)
            settings = {
                **SETTINGS,
                "DATABASE__SQL_ALCHEMY_CONN": postgres.url,
                "CELERY__RESULT_BACKEND": f"db+{postgres.url}",
                "CELERY__BROKER_URL": broker.url,
            }
            self.airflow = LiveAirflow(
                self.folder / "airflow",
                self._dags,
                {
                    **{f"AIRFLOW__{name}": value for name, value in settings.items()},
                    f"AIRFLOW_CONN_{CONN.upper()}": self.sandbox.connection_json("1min", **self._connection),
                    "PYTHONPATH": os.pathsep.join(map(str, (TESTS / "harness" / "site", REPOSITORY))),
                    **self._env,
                },
            )
            stack.callback(self.airflow.stop)
            self.airflow.start(("api-server", "scheduler", "dag-processor"))
            servers = {"SeaweedFS": self.store.pid, "Redis": broker.pid, "sandbox": box.pid}
            self.memory = stack.enter_context(Memory(self.airflow, servers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def start_worker(self, name: str) -> None:
        """Start a Celery worker, without waiting for it."""
        node = name.replace(" ", "-")
        pid_file = self.folder / f"{node}.pid"
        self.airflow.spawn("celery worker", name, arguments=["--celery-hostname", node, "--pid", str(pid_file)])

    def start_triggerer(self, name: str) -> None:
        """Start a triggerer that measures its event loop, without waiting for it."""
        self._ticks(name).mkdir()
        self.airflow.spawn("triggerer", name, {"GEMINIIMG_TEST_TICKS": str(self._ticks(name))})

    def delays(self, triggerer: str) -> list[float]:
        """By how many milliseconds the event loop of a triggerer was late, a hundred times a second."""
        lines = (line for path in self._ticks(triggerer).iterdir() for line in path.read_text().split("\n")[:-1])
        return [float(line) for line in lines]

    def _ticks(self, triggerer: str) -> Path:
        return self.folder / f"ticks of {triggerer}"


class Memory:
    """The largest resident memory of each component's processes, looked at in a thread; a context manager.

    `peaks` has it in bytes, by the component's name and a process's place below it: ``("worker 1", ", task")``.
    """

    def __init__(self, airflow: LiveAirflow, servers: Mapping[str, int]) -> None:
        self.peaks: dict[tuple[str, str], int] = {}
        self._airflow, self._servers = airflow, servers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            for name, pid in {**self._servers, **self._airflow.pids}.items():
                for place, size in _sizes(pid):
                    self.peaks[name, place] = max(size, self.peaks.get((name, place), 0))


def _sizes(pid: int) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(psutil.NoSuchProcess):
        main = psutil.Process(pid)
        for place, processes in (("", [main]), (", child", main.children())):
            for process in processes:
                yield place, _size(process)
        for child in main.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                for below in child.children(recursive=True):
                    yield ", task", _size(below)


def _size(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
