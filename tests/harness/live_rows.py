"""The live rows: one Airflow, and for each row a DAG, a gateway and a prompt of its own.

Rows run side by side, each in a thread of the test. A row waits for events only: a request that is held at the gateway
or at the bucket, a process that ends, a state in Airflow's API, which one watcher reads for all of them.

What must stay true: nothing that a row does to its processes, its gateway or its objects reaches another row's.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import boto3
import psutil

from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness import REPOSITORY, TESTS
from tests.harness.live_airflow import LiveAirflow, iteration_of
from tests.harness.matrix import Balance, Row, read_records, weigh
from tests.harness.moto import age_object, start_moto
from tests.harness.postgres import Postgres
from tests.harness.s3_proxy import Held, S3Proxy

BUCKET = "matrix"
RUN = "run"
LOOPS = (3, 4)  # the first Airflow with loops
MADE = ("made", "body.made")
PATIENCE = 150.0  # seconds that a row waits for one event; the machine may be busy

# One file makes all DAGs; each reads its arguments when it is parsed, also by a task, so that an edit counts at once.
DAGS = """
    import json
    from datetime import timedelta
    from pathlib import Path

    from airflow.sdk import DAG, task_group

    from airflow_provider_geminiimg import GeminiImageGenerateOperator

    def make(conn_id, execution_timeout=None, **arguments):
        GeminiImageGenerateOperator(
            task_id="made",
            geminiimg_conn_id=conn_id,
            execution_timeout=None if execution_timeout is None else timedelta(seconds=execution_timeout),
            retry_delay=timedelta(seconds=1),
            **arguments,
        )

    for path in sorted(Path(__file__).with_name("rows").glob("*.json")):
        arguments = json.loads(path.read_text())
        iterations = arguments.pop("iterations", 0)
        with DAG(path.stem, schedule=None, catchup=False) as dag:
            if iterations:

                def body():
                    make(path.stem, **arguments)

                task_group(body).loop(max_iterations=iterations)
            else:
                make(path.stem, **arguments)
        globals()[path.stem] = dag
"""
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "90",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
}
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Plan:
    """What a row is, before it runs.

    :param dag_id: the row's name in Airflow.
    :param event: see `Row`.
    :param moment: see `Row`.
    :param gateway: ``1min`` or ``apimaster``.
    :param act: what happens, and what the person on call does about it.
    :param expected: what must come out.
    :param state: the task's state in the end.
    :param then: see `Row`.
    :param deferrable: wait in the triggerer.
    :param arguments: more arguments of the operator.
    :param latency: seconds that a job takes at the gateway.
    :param asked_again: how often a user asked to buy the first prompt again.
    :param core: continuous integration runs this row; the others are run by hand.
    :param iteration: the iteration of a loop in which it happens, which is the loop's last one. Each iteration has a
        prompt of its own. ``None``: no loop. A loop needs Airflow `LOOPS`.
    """

    dag_id: str
    event: str
    moment: str
    gateway: str
    act: Callable[[LiveRow], None]
    expected: Balance
    state: str
    then: str
    group: str = "processes"
    deferrable: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    latency: float = 0.5
    asked_again: int = 0
    core: bool = False
    iteration: int | None = None


class LiveRow:
    """One row's corner of the stage."""

    def __init__(self, stage: LiveRows, plan: Plan, sandbox: Sandbox) -> None:
        self.stage, self.plan, self.sandbox = stage, plan, sandbox
        self.dag_id = plan.dag_id
        self.iteration = plan.iteration
        self.task_id = "made" if plan.iteration is None else "body.made"
        self.prompt = f"an image for {plan.dag_id}" + ("" if plan.iteration is None else ", number {{ loop.index }}")
        self.airflow = stage.airflow
        self._route = {"1min": "onemin", "apimaster": "apimaster"}[plan.gateway]

    # What the row arranges

    def edit(self, **arguments: Any) -> None:
        """Write the task's arguments, as an author who edits the DAG file; they count from the next attempt on."""
        usual = {
            "prompt": self.prompt,
            "resolution": "512",
            "deferrable": self.plan.deferrable,
            "poll_interval": 0.5,
            "retries": 6,  # a busy scheduler takes a task that comes back from its trigger for a lost one
            **self.plan.arguments,
            **({} if self.plan.iteration is None else {"iterations": self.plan.iteration + 1}),
        }
        path = self.stage.rows / f"{self.dag_id}.json"
        path.with_suffix(".part").write_text(json.dumps({**usual, **arguments}))
        path.with_suffix(".part").replace(path)

    def hold_call(self, operation: str, **fault: Any) -> None:
        """Hold the next ``submit``, ``status`` or ``download`` at the gateway."""
        route = operation if operation == "download" else f"{self._route}.{operation}"
        self.sandbox.faults(route=route, hold=True, **fault)

    def called(self) -> None:
        """Wait until a call is held at the gateway."""
        assert self.sandbox.held(1, timeout=60) or self.sandbox.held(1, timeout=60), "no call came"

    def hold_write(self, path: str, body: str = "", *, when: Literal["before", "after"] = "before") -> Held:
        """Hold a write to the bucket whose key holds `path` and whose body holds `body`; `{dag}` is this row's DAG."""
        body = body.replace("{dag}", self.dag_id)
        return self.stage.s3_proxy.hold("PUT", path.format(dag=self.dag_id), body, when=when)

    def strike(self, event: str, path: str, victim: str, nth: int = 1) -> None:
        """Kill the process that is about to link or replace a file (see ``site/sitecustomize.py``)."""
        rule = {"event": event, "path": path.format(dag=self.dag_id), "victim": victim, "nth": nth}
        (self.stage.strikes / f"{self.dag_id}.json").write_text(json.dumps(rule))

    def in_iteration(self, iteration: int) -> LiveRow:
        """The same row, as it is seen from another iteration of its loop."""
        row = copy.copy(self)
        row.iteration = iteration
        return row

    # What happens

    def trigger(self) -> None:
        self.airflow.trigger(self.dag_id, RUN)

    def processes(self) -> tuple[psutil.Process, psutil.Process]:
        """The running attempt's task process, and its supervisor."""
        pid = self.until(lambda ti: ti["state"] == "running" and ti["pid"])["pid"]
        task = psutil.Process(pid)
        supervisor = task.parent()
        assert supervisor is not None
        return task, supervisor

    def kill(self, victim: str, signal_number: int = signal.SIGKILL) -> psutil.Process:
        """Send a signal to the running attempt's ``task`` process or ``supervisor``; returns the task process."""
        task, supervisor = self.processes()
        chosen = task if victim == "task" else supervisor
        chosen.send_signal(signal_number)
        if signal_number == signal.SIGKILL:
            chosen.wait(timeout=30)
        return task

    def mark(self, state: str) -> None:
        """Mark the task, as the button does."""
        self.airflow.set_state(self.dag_id, RUN, "made", state)

    def clear(self, **options: Any) -> None:
        """Clear the task, as the button does, and wait until its next attempt has begun or ended.

        :param options: more fields of the request.
        """
        before = self.task["try_number"]
        if self.iteration is None:
            self.airflow.clear(self.dag_id, RUN, self.task_id, **options)
        else:
            self.airflow.clear(self.dag_id, RUN, task_instance_ids=[self.task["id"]], **options)
        self.until(lambda ti: ti["try_number"] > before or ti["state"] is None)

    def delete_run(self) -> None:
        """Mark the DAG run as failed, without which Airflow does not delete it, and delete it."""
        path = f"/dags/{self.dag_id}/dagRuns/{RUN}"
        self.airflow.api("PATCH", path, {"state": "failed"})
        self.airflow.api("DELETE", path)
        self.stage.until(lambda: self._seen() is None or None, "the run is still there")

    def deadline_passes(self) -> None:
        """Make the bucket, or the disk, say that the records were written ten minutes ago."""
        for record in self.records():
            self.stage.age(record.key, 600.0)

    def collect(self) -> None:
        """What the daily collect does about this DAG."""
        self.jobs("collect", "--dag", self.dag_id)

    def jobs(self, *arguments: str) -> str:
        """What ``python -m airflow_provider_geminiimg jobs ...`` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow_provider_geminiimg", "jobs", *arguments],
            env=self.airflow.env, cwd=self.airflow.home, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    # What the row sees

    @property
    def task(self) -> dict[str, Any]:
        """The task instance as Airflow's API shows it."""
        return self.until(lambda ti: True)

    def until(self, met: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Wait until the task instance is so."""

        def found() -> dict[str, Any] | None:
            ti = self._seen()
            return ti if ti is not None and met(ti) else None

        ti: dict[str, Any] = self.stage.until(found, f"{self.dag_id}: {self._seen()}")
        return ti

    def _seen(self) -> dict[str, Any] | None:
        return self.stage.tasks.get((self.dag_id, self.iteration))

    def deferred(self) -> None:
        """Wait until the task waits in the triggerer."""
        self.until(lambda ti: ti["state"] == "deferred")

    def ends(self, state: str) -> None:
        """Wait for the end of the task, and of its DAG run: what is cleared before that, the scheduler may forget."""
        ended = self.until(lambda ti: ti["state"] in ("success", "failed", "upstream_failed", "removed"))
        self.airflow.wait(self.dag_id, RUN)
        assert ended["state"] == state, f"{self.dag_id} is {ended['state']}:\n{self.log()}"

    def attempt(self, number: int) -> None:
        """Wait until this attempt, or a later one, runs."""
        self.until(lambda ti: ti["try_number"] >= number and ti["state"] == "running" and ti["pid"])

    def says(self, text: str) -> None:
        """Wait until the task's log holds a text."""
        self.stage.until(lambda: text in self.log() or None, f"{self.dag_id} did not say {text!r}:\n{self.log()}")

    def log(self) -> str:
        """What all attempts logged, without what surrounds it."""
        logs = (
            self.airflow.task_log(self.dag_id, RUN, self.task_id, iteration=self.iteration, attempt=n)
            for n in range(1, 12)
        )
        lines = "".join(logs).splitlines()
        return "\n".join(str(json.loads(line).get("event")) for line in lines if line.endswith("}"))

    def records(self) -> list[Record]:
        return [found.record for found in read_records(self.stage.root, self.dag_id)]

    def submits(self) -> int:
        """Paid requests that have reached the gateway so far."""
        return len(self.sandbox.calls(f"{self._route}.submit"))

    def balance(self) -> Balance:
        again = {self.prompt: self.plan.asked_again}
        return weigh(self.sandbox, self.stage.root, dag_id=self.dag_id, asked_again=again)

    def result(self) -> Row:
        plan = self.plan
        mode = "loop" if plan.iteration is not None else "deferred" if plan.deferrable else "waiting"
        state = str(self.task["state"])
        return Row(plan.group, plan.event, plan.moment, plan.gateway, mode, self.balance(), state, plan.then)


class LiveRows:
    """One Airflow with the corners of all rows.

    :param home: folder for everything.
    :param plans: the rows.
    :param disk: the root is a folder instead of a bucket.
    """

    def __init__(self, home: Path, plans: list[Plan], *, disk: bool = False) -> None:
        self.s3_proxy = S3Proxy()
        self.tasks: dict[tuple[str, int | None], dict[str, Any]] = {}
        self._looks = 0
        self._home, self._plans = home, plans
        self.root = (home / "root").as_uri() if disk else f"s3://{BUCKET}/root"
        self.strikes, self.rows = home / "strikes", home / "dags" / "rows"
        self._looked = threading.Condition()
        self._stack = contextlib.ExitStack()
        self.airflow: LiveAirflow
        self.live_rows: dict[str, LiveRow] = {}

    def __enter__(self) -> LiveRows:
        with contextlib.ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def age(self, key: str, seconds: float) -> None:
        """Make an object under the root so much older, by the store's own clock."""
        if self.root.startswith("s3://"):
            age_object(BUCKET, f"root/{key}", seconds)
        else:
            path = Path(self.root.removeprefix("file://"), key)
            written = path.stat().st_mtime
            os.utime(path, (written - seconds, written - seconds))

    def until(self, found: Callable[[], Any], complaint: str) -> Any:
        """What `found` gives, as soon as it is not ``None``; asked again after every look at Airflow's API.

        :raises AssertionError: it took longer than `PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE
        with self._looked:
            while (value := found()) is None:
                assert time.monotonic() < deadline, complaint
                self._looked.wait(5)
        return value

    def looks_again(self) -> None:
        """Wait until Airflow's API answers."""
        seen = self._looks
        self.until(lambda: self._looks > seen or None, "Airflow's API does not answer")

    def _build(self, stack: contextlib.ExitStack) -> None:
        for folder in (self.strikes, self.rows):
            folder.mkdir(parents=True)
        stack.callback(self.s3_proxy.open)
        url = stack.enter_context(start_moto(self.s3_proxy))
        stack.enter_context(_environment({**AWS, "AWS_ENDPOINT_URL": url}))
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        postgres = stack.enter_context(Postgres())
        env = {
            **SETTINGS,
            **AWS,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url,
            "AWS_ENDPOINT_URL": url,
            "AIRFLOW__GEMINIIMG__ROOT": self.root,
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS / "harness" / "site", REPOSITORY))),
            "GEMINIIMG_TEST_STRIKES": str(self.strikes),
        }
        sandboxes = {plan.dag_id: stack.enter_context(Sandbox(latency=plan.latency)) for plan in self._plans}
        for plan in self._plans:
            env[f"AIRFLOW_CONN_{plan.dag_id.upper()}"] = sandboxes[plan.dag_id].connection_json(
                plan.gateway, requests_per_minute=6000
            )
        (self.rows.parent / "rows.py").write_text(textwrap.dedent(DAGS))
        self.airflow = LiveAirflow(self._home / "airflow", self.rows.parent, env)
        for plan in self._plans:
            row = self.live_rows[plan.dag_id] = LiveRow(self, plan, sandboxes[plan.dag_id])
            row.edit()
        stack.callback(self.airflow.stop)
        self.airflow.start()
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(done.set)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(0.5):
            with contextlib.suppress(Exception):  # the api-server may be the one that a row restarts
                found = {(ti["dag_id"], iteration_of(ti)): ti for ti in self._all_tasks() if ti["task_id"] in MADE}
                with self._looked:
                    self.tasks = found
                    self._looks += 1
                    self._looked.notify_all()

    def _all_tasks(self) -> Iterator[dict[str, Any]]:
        page = self.airflow.api("GET", "/dags/~/dagRuns/~/taskInstances", limit=100)
        assert page["total_entries"] <= 100
        yield from page["task_instances"]


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
