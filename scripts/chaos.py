"""``make chaos ROUNDS=50 SEED=1``: kills processes of a real Airflow at random moments, and counts the money.

A round has 20 mapped tasks: both gateways, one with its ledger on S3 and one on disk, waiting and deferred. While they
run, 3 to 6 SIGKILLs hit task processes, their supervisors and the triggerer. At the end, the paid images are compared
with the stored ones.

Invariants: the seed alone determines the victims and moments of a round. A moment is a call that reaches the gateway,
never a time. A record is aged, instead of waiting four minutes for its answer, only if the process that wrote it is
gone. The first round with a wrong result ends the script with an error and keeps the home folder. No process remains in
any case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import boto3
import psutil

from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness.live_airflow import LiveAirflow
from tests.harness.matrix import Balance, is_unknown, latest, read_records, weigh
from tests.harness.moto import age_object, start_moto
from tests.harness.postgres import Postgres

REPOSITORY = Path(__file__).resolve().parents[1]
BUCKET = "chaos"
RUN = "run"
ROUTES = {"1min": "onemin", "apimaster": "apimaster"}
EACH = 5  # mapped tasks of one operator; a round has four operators
ITEMS = 4 * EACH
PATIENCE = 420.0  # seconds for a run's end
CLEARS = 3  # that a person has the patience for
LATENCY = 3.0  # seconds that a job takes
AGED = 600.0  # seconds; more than the deadline of any answer
RECORDING = 1.5  # seconds that an answer may take to get onto its record, on a machine that is busy

DAG_FILE = """
import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_geminiimg import GeminiImageGenerateOperator

os.environ["AIRFLOW__GEMINIIMG__ROOT"] = {root!r}  # each DAG has one of its own

with DAG({dag_id!r}, schedule=None, max_active_tasks=64):
    for task_id, deferrable in (("waiting", False), ("deferred", True)):
        GeminiImageGenerateOperator.partial(
            task_id=task_id,
            geminiimg_conn_id={conn_id!r},
            resolution="512",
            deferrable=deferrable,
            poll_interval=0.5,
            retries={retries},
            retry_delay=timedelta(seconds=1),
        ).expand(prompt=[f"{dag_id} {{task_id}} {{number}}" for number in range({each})])
"""
# Deaths are noticed in seconds instead of minutes.
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "8",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "90",  # a supervisor may die with a task that it has not begun
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
}
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class ChaosError(Exception):
    """A round had a wrong result, or did not end."""


@dataclass(frozen=True)
class Half:
    """The ten tasks of a round that use one gateway.

    :param folder: the root on disk; ``None``: the root is on S3.
    :param retries: of its tasks; few, so that some kills end a task.
    """

    dag_id: str
    gateway: str
    sandbox: Sandbox
    folder: Path | None
    retries: int

    @property
    def root(self) -> str:
        return f"s3://{BUCKET}/{self.dag_id}" if self.folder is None else self.folder.as_uri()

    @property
    def source(self) -> str:
        """The DAG file."""
        return DAG_FILE.format(
            root=self.root, dag_id=self.dag_id, conn_id=f"{self.gateway}_chaos", each=EACH, retries=self.retries
        )

    def age(self, record: Record) -> None:
        """Make the store say that a record was written long ago."""
        if self.folder is None:
            age_object(BUCKET, f"{self.dag_id}/{record.key}", AGED)
        else:
            then = time.time() - AGED
            os.utime(self.folder / record.key, (then, then))


@dataclass
class Kill:
    """One SIGKILL.

    :param half: index of the gateway whose calls are counted.
    :param operation: ``submit``, ``status`` or ``download``.
    :param count: kill when this number of calls has arrived.
    :param victim: ``task``, ``supervisor`` or ``triggerer``.
    :param pick: selects one of the existing processes, from 0 to 1.
    :param process: the task process that was killed or lost its supervisor; for a triggerer, its own process.
    :param at: time of the kill in Unix seconds.
    """

    half: int
    operation: str
    count: int
    victim: str
    pick: float
    process: psutil.Process | None = None
    at: float = 0.0

    def __str__(self) -> str:
        gateway = tuple(ROUTES)[self.half]
        missed = "" if self.process else " (found nobody)"
        return f"{self.victim} at {gateway} {self.operation} {self.count}{missed}"


def plan_kills(rng: random.Random) -> list[Kill]:
    """What happens in a round."""
    victims = [*rng.choices(("task", "supervisor"), (3, 1), k=rng.randint(3, 5)), *["triggerer"] * rng.randint(0, 1)]
    most = {"submit": 10, "status": 20, "download": 9}
    kills = []
    for victim in victims:
        operation = rng.choices(("submit", "status", "download"), (4, 2, 2))[0]
        kills.append(Kill(rng.randint(0, 1), operation, rng.randint(1, most[operation]), victim, rng.random()))
    return kills


def plan_delays(rng: random.Random, gateway: str) -> list[dict[str, Any]]:
    """Answers that take their time, so that a kill finds somebody waiting for one."""
    submits = [{"route": f"{ROUTES[gateway]}.submit", "charge": rng.choice(("before", "after"))} for _ in range(20)]
    downloads: list[dict[str, Any]] = [{"route": "download"} for _ in range(20)]
    return [{**fault, "delay": round(rng.uniform(0.0, 2.0), 2)} for fault in (*submits, *downloads)]


@dataclass
class Round:
    """One round, while it runs.

    :param halves: in the order of `ROUTES`.
    :param cleared: tasks that had to be cleared, because their retries were used up or their outcome is unknown.
    :param collected: images that such tasks had left behind.
    """

    airflow: LiveAirflow
    halves: Sequence[Half]
    kills: Sequence[Kill]
    over: threading.Event = field(default_factory=threading.Event)
    cleared: int = 0
    collected: int = 0
    _at_triggerer: list[Kill] = field(default_factory=list)
    _next_look: float = 0.0

    def run(self) -> Balance:
        """Run it to its end.

        :raises ChaosError: the sum is wrong.
        """
        killers = [threading.Thread(target=self._kill_when_due, args=(kill,), daemon=True) for kill in self.kills]
        for half in self.halves:
            self.airflow.trigger(half.dag_id, RUN)
        try:
            for killer in killers:
                killer.start()
            self._wait()
        finally:
            self.over.set()
            for killer in killers:
                killer.join()
        self._bury_orphans()
        self._recover()
        return self._judge()

    # Killing

    def _kill_when_due(self, kill: Kill) -> None:
        """Wait for the moment, then kill; the triggerer is left to the thread that watches Airflow."""
        half = self.halves[kill.half]
        route = "download" if kill.operation == "download" else f"{ROUTES[half.gateway]}.{kill.operation}"
        while len(half.sandbox.calls(route, count=kill.count, timeout=2)) < kill.count:
            if self.over.is_set():
                return
        if kill.victim == "triggerer":
            self._at_triggerer.append(kill)
            return
        while kill.process is None and not self.over.wait(0.05):
            with contextlib.suppress(psutil.NoSuchProcess):
                kill.process = self._kill_worker(kill)

    def _kill_worker(self, kill: Kill) -> psutil.Process | None:
        """Kill a task process or its supervisor, if any is at work; which task it was."""
        tasks = self._tasks()
        if not tasks:
            return None
        task = tasks[int(kill.pick * len(tasks))]
        kill.at = time.time()
        if kill.victim == "task":
            task.kill()
            return task
        worker = task.parent()
        if worker is None or worker.ppid() != self._scheduler:
            return None
        # A supervisor that went idle in this very moment would die with the executor's queue locked. The task itself
        # is never stopped: the kernel hangs up on a stopped process whose supervisor dies.
        worker.suspend()
        if _lives(task.pid) and worker.status() == psutil.STATUS_STOPPED and task.parent() == worker:
            worker.kill()
            return task
        worker.resume()
        return None

    @property
    def _scheduler(self) -> int:
        return self.airflow.pids["scheduler"]

    def _tasks(self) -> list[psutil.Process]:
        """Task processes at work, by pid; the executor's workers are the scheduler's children, and their parents."""
        found = (task for worker in psutil.Process(self._scheduler).children() for task in worker.children())
        return sorted((task for task in found if task.status() != psutil.STATUS_ZOMBIE), key=lambda task: task.pid)

    # Waiting

    def _wait(self) -> None:
        for half in self.halves:
            self.airflow.wait(half.dag_id, RUN, timeout=PATIENCE, watch=self._tend)

    def _tend(self, _: object) -> None:
        while self._at_triggerer:
            kill = self._at_triggerer.pop()
            kill.process = psutil.Process(self.airflow.pids["triggerer"])
            self.airflow.kill("triggerer")
            self.airflow.spawn("triggerer")
        if time.monotonic() >= self._next_look:
            self._age_records()
            self._next_look = time.monotonic() + 2.0

    def _age_records(self) -> None:
        """Let the deadline of every answer pass whose process is gone."""
        for half in self.halves:
            for found in read_records(half.root):
                if found.record.state == "intent" and found.age < AGED and not _lives(found.record.pid):
                    half.age(found.record)

    def _bury_orphans(self) -> None:
        """Wait for the tasks that lost their supervisor: they may still be paying, or landing."""
        orphans = [kill.process for kill in self.kills if kill.victim == "supervisor" and kill.process is not None]
        _, alive = psutil.wait_procs(orphans, timeout=120)
        if alive:
            raise ChaosError(f"tasks without a supervisor never ended: {alive}")

    def _recover(self) -> None:
        """Tasks that ended as failed: collect what they left behind, then clear them, as a person would do it.

        More than once, because a busy scheduler may take a task that comes back from its trigger for a lost one.

        :raises ChaosError: something that was paid for was not collected.
        """
        for _ in range(CLEARS):
            for half in self.halves:
                self._collect_and_clear(half)
            self._wait()
            if self._states().count("failed") == len(self._unknown()):
                return

    def _collect_and_clear(self, half: Half) -> None:
        failed = [ti for ti in self.airflow.task_instances(half.dag_id, RUN) if ti["state"] == "failed"]
        if not failed:
            return
        self.cleared += len(failed)
        self.collected += weigh(half.sandbox, half.root).lost
        for found in read_records(half.root):
            half.age(found.record)
        command = [sys.executable, "-m", "airflow_provider_geminiimg", "jobs", "collect", "--dag", half.dag_id]
        env = {**self.airflow.env, "AIRFLOW__GEMINIIMG__ROOT": half.root}
        done = subprocess.run(command, env=env, cwd=self.airflow.home, capture_output=True, text=True, check=False)
        balance = weigh(half.sandbox, half.root)
        if done.returncode or balance.lost:
            raise ChaosError(f"after `jobs collect`: {balance}\n{done.stdout}{done.stderr}")
        body = {"dry_run": False, "only_failed": True, "reset_dag_runs": True, "dag_run_id": RUN}
        self.airflow.api("POST", f"/dags/{half.dag_id}/clearTaskInstances", body)

    def _states(self) -> list[str]:
        return [ti["state"] for half in self.halves for ti in self.airflow.task_instances(half.dag_id, RUN)]

    def _unknown(self) -> list[StoredRecord]:
        return [found for half in self.halves for found in latest(read_records(half.root)) if is_unknown(found)]

    # Judging

    def _judge(self) -> Balance:
        """What became of the money.

        :raises ChaosError: the sum is wrong.
        """
        each = [weigh(half.sandbox, half.root) for half in self.halves]
        balance = Balance(**{column.name: sum(getattr(one, column.name) for one in each) for column in fields(Balance)})
        states, unknown = self._states(), self._unknown()
        complaints = [
            f"{what}: {said}"
            for what, said in (
                ("lost", balance.lost),
                ("paid twice", balance.paid_twice),
                ("items neither landed nor unknown", ITEMS - balance.landed - balance.unknown),
                ("tasks that succeeded", states.count("success") - balance.landed),
                ("tasks that failed", states.count("failed") - balance.unknown),
                ("unknown, although nobody was killed before an answer", self._unexplained(unknown)),
            )
            if said
        ]
        if complaints:
            raise ChaosError(f"{balance}\n" + "\n".join(complaints))
        return balance

    def _unexplained(self, unknown: Sequence[StoredRecord]) -> list[str]:
        """Unknown outcomes, by their keys, whose process was not killed before it could record an answer."""
        killed = {
            kill.process.pid: kill.at for kill in self.kills if kill.victim == "task" and kill.process is not None
        }
        return [
            record.key
            for record in (found.record for found in unknown)
            if record.pid not in killed or killed[record.pid] > self._answered(record) + RECORDING
        ]

    def _answered(self, record: Record) -> float:
        """When the task said that it had its answer, in Unix seconds; never, if it did not."""
        dag_id, run_id, task_id, map_index = record.key.split("/")[2:6]
        folder = self.airflow.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        for path in (folder / f"map_index={map_index}").glob("*.log"):
            for line in path.read_text().splitlines():
                if "Submitted as job" in line and record.key in line:
                    return datetime.fromisoformat(json.loads(line)["timestamp"].replace("Z", "+00:00")).timestamp()
        return float("inf")


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


class Chaos:
    """All rounds, in one Airflow.

    :param home: folder for everything.
    """

    def __init__(self, home: Path, seed: int) -> None:
        self.seed = seed
        self._roots, self._dags = home / "roots", home / "dags"
        self._dags.mkdir()
        self._stack = contextlib.ExitStack()
        self._home = home
        self._sandboxes: dict[str, Sandbox] = {}

    def __enter__(self) -> Chaos:
        with contextlib.ExitStack() as stack:
            endpoint = stack.enter_context(start_moto())
            os.environ.update(AWS, AWS_ENDPOINT_URL=endpoint)
            # For this process, which reads what lies on S3; `LiveAirflow` has an environment of its own.
            os.environ.update(AIRFLOW_HOME=str(self._home / "airflow"), AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING")
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
                os.environ.pop(name, None)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            self._sandboxes = {gateway: stack.enter_context(Sandbox(latency=LATENCY)) for gateway in ROUTES}
            connections = {
                f"AIRFLOW_CONN_{gateway.upper()}_CHAOS": box.connection_json(gateway)
                for gateway, box in self._sandboxes.items()
            }
            database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": stack.enter_context(Postgres()).url}
            path = {"PYTHONPATH": str(REPOSITORY)}
            self._airflow = stack.enter_context(
                LiveAirflow(self._home / "airflow", self._dags, {**SETTINGS, **connections, **database, **path})
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def round(self, number: int) -> str:
        """Run one round; its line.

        :raises ChaosError: the sum is wrong.
        """
        began = time.monotonic()
        seed = self.seed * 1000 + number
        rng = random.Random(seed)
        halves = [self._half(number, at, gateway, rng) for at, gateway in enumerate(ROUTES)]
        kills = plan_kills(rng)
        for half in halves:
            half.sandbox.reset()
            half.sandbox.faults(*plan_delays(rng, half.gateway))
            (self._dags / f"{half.dag_id}.py").write_text(half.source)
        heading = f"round {number}, seed {seed}, kills: "
        work = Round(self._airflow, halves, kills)
        try:
            balance = work.run()
        except Exception as error:
            said = str(error) if isinstance(error, ChaosError) else traceback.format_exc()
            raise ChaosError(f"{heading}{'; '.join(map(str, kills))}\n{said}") from None
        finally:
            for half in halves:
                (self._dags / f"{half.dag_id}.py").unlink()
        more = f"cleared {work.cleared}, collected {work.collected}"
        sums = ", ".join(
            f"{column.name.replace('_', ' ')} {getattr(balance, column.name)}" for column in fields(Balance)
        )
        return f"{heading}{'; '.join(map(str, kills))}: {sums}, {more}, {time.monotonic() - began:.0f} s"

    def _half(self, number: int, at: int, gateway: str, rng: random.Random) -> Half:
        dag_id = f"chaos_{number}_{ROUTES[gateway]}"
        folder = self._roots / dag_id if (number + at) % 2 else None
        return Half(dag_id, gateway, self._sandboxes[gateway], folder, rng.choice((0, 1, 9, 9)))


def main() -> int:
    """Run the rounds.

    :returns: the exit status: 0 only if every sum was right.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    wanted = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminated)
    home = Path(tempfile.mkdtemp(prefix="geminiimg-chaos-"))
    began = time.monotonic()
    try:
        with Chaos(home, wanted.seed) as chaos:
            say(f"Airflow is up after {time.monotonic() - began:.0f} s.")
            for count in range(1, wanted.rounds + 1):
                say(chaos.round(count))
    except ChaosError as error:
        say(f"{error}\nFAILED. Ledgers, images and logs: {home}")
        return 1
    except SystemExit:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)
    say(f"{wanted.rounds} rounds in {time.monotonic() - began:.0f} s: every sum is right.")
    return 0


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # unwinds the `with` blocks, which end what they started


if __name__ == "__main__":
    sys.exit(main())
