"""DAGs with one loop each, in a real Airflow (3.4): what happens to them, and whose image every iteration has then.

A kind of task (`KINDS`) has a DAG, a sandbox and two DAG runs: one that is cleared again and again, and one whose
second iteration fails after its payment and is retried. All iterations have the same prompt.

What must stay true: every iteration has images of its own, which no retry and no Clear changes or pays for again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import index_of
from airflow_provider_geminiimg.sandbox import Sandbox, read_submission
from tests.harness.live_airflow import LiveAirflow, iteration_of

ITERATIONS = 3
PATIENCE = 400.0  # seconds for one DAG run; the machine may be busy
FRESH, RETRIED = "fresh", "retried"  # the DAG runs
Images = dict[str, list[str]]  # of a task instance ("2.-1"): its images' addresses and digests

DAGS = """
    import os
    from datetime import timedelta

    from airflow.sdk import DAG, task, task_group

    from airflow_provider_geminiimg import (
        GeminiImageBatchOperator,
        GeminiImageGenerateOperator,
        GeminiImageJobSensor,
        GeminiImageSubmitOperator,
    )
    from airflow_provider_geminiimg.sandbox.client import SandboxClient

    PROMPT = "a red fox"
    TWO = [PROMPT, f"{PROMPT}, again"]

    def plain(usual):
        return GeminiImageGenerateOperator(task_id="made", prompt=PROMPT, **usual).output

    def deferred(usual):
        return plain({**usual, "deferrable": True})

    def mapped(usual):
        return GeminiImageGenerateOperator.partial(task_id="made", **usual).expand(prompt=TWO).output

    def batch(usual):
        return GeminiImageBatchOperator(task_id="made", requests=TWO, **usual).output

    def decorated(usual):
        @task.gemini_image(task_id="made", **usual)
        def made(*, loop):
            return PROMPT

        return made()

    def submitted(usual):
        job = GeminiImageSubmitOperator(task_id="submit", prompt=PROMPT, **usual).output
        retry = {name: usual[name] for name in ("retries", "retry_delay")}
        return GeminiImageJobSensor(task_id="made", job=job, mode="reschedule", poke_interval=2.0, **retry).output

    def looped(make, retries):
        usual = {
            "geminiimg_conn_id": make.__name__,
            "poll_interval": 0.5,
            "resolution": "512",
            "retries": retries,
            "retry_delay": timedelta(seconds=1),
        }

        @task
        def arm(*, loop, dag_run):
            if loop.index == dag_run.conf.get("fails_in"):
                fault = {"route": "download", "status": 500, "times": dag_run.conf["downloads"]}
                SandboxClient(os.environ[f"SANDBOX_{make.__name__.upper()}"]).faults(fault)

        @task
        def after(image):
            pass

        @task_group
        def body():
            image = make(usual)
            arm() >> image.operator
            after(image)

        with DAG(make.__name__, schedule=None, catchup=False) as dag:
            body.loop(max_iterations=3)
        return dag

    # A busy scheduler takes a task that comes back from its trigger, or from a reschedule, for a lost one.
    for make, retries in ((plain, 1), (mapped, 1), (batch, 1), (decorated, 1), (deferred, 4), (submitted, 4)):
        globals()[f"dag_{make.__name__}"] = looped(make, retries)
"""


@dataclass(frozen=True)
class Kind:
    """What makes the images of an iteration.

    :param gateway: ``1min`` or ``apimaster``.
    :param images: paid requests of one iteration.
    :param first: the task that pays.
    """

    gateway: str
    images: int = 1
    first: str = "body.made"


KINDS = {
    "plain": Kind("1min"),
    "mapped": Kind("apimaster", images=2),
    "batch": Kind("1min", images=2),
    "decorated": Kind("apimaster"),
    "deferred": Kind("apimaster"),
    "submitted": Kind("1min", first="body.submit"),
}


@dataclass(frozen=True)
class Event:
    """What happens to a DAG run, and what must come of it.

    :param title: for the table.
    :param run: which of the two DAG runs.
    :param clears: iteration whose tasks are cleared; ``None``: the run is started instead.
    :param options: of the request to clear, besides the task instances.
    :param again: iterations that run again.
    """

    title: str
    run: str = FRESH
    clears: int | None = None
    options: tuple[tuple[str, bool], ...] = ()
    again: frozenset[int] = frozenset()


DOWNSTREAM = ("include_downstream", True)
EVENTS = {
    "fresh": Event("new run"),
    "retry": Event("retry of iteration 1 after a paid failure", RETRIED, again=frozenset({1})),
    "clear_one": Event("Clear of iteration 0 alone", clears=0, again=frozenset({0})),
    "clear_kept": Event(
        "Clear of iteration 1 with downstream, later ones kept",
        clears=1,
        options=(DOWNSTREAM, ("include_later_loop_iterations", False)),
        again=frozenset({1}),
    ),
    "clear_forked": Event(
        "Clear of iteration 0 with downstream, later ones created again",
        clears=0,
        options=(DOWNSTREAM, ("include_later_loop_iterations", True)),
        again=frozenset({0, 1, 2}),
    ),
}


@dataclass(frozen=True)
class Cell:
    """What became of one kind in one event.

    :param paid: requests that the gateway charged in this event.
    :param landed: paid images of the DAG run that lie in storage.
    :param images: for each task instance, the numbers of the paid requests whose images it has.
    :param again: iterations that ran again.
    :param unchanged: whether all images are those from before, at the same addresses; ``None``: there were none before.
    """

    kind: str
    event: str
    paid: int
    landed: int
    images: dict[str, list[int]]
    again: frozenset[int]
    unchanged: bool | None

    def line(self) -> str:
        """The cell as a row of the table."""
        images = ", ".join(f"{index}: {'+'.join(map(str, numbers))}" for index, numbers in self.images.items())
        unchanged = {True: "yes", False: "NO", None: "-"}[self.unchanged]
        again = " ".join(map(str, sorted(self.again))) or "-"
        return " | ".join(
            (self.kind, EVENTS[self.event].title, str(self.paid), str(self.landed), images, again, unchanged)
        )


HEAD = "kind | event | paid | landed | images (index: number of the paid request) | ran again | unchanged"


class LoopRuns:
    """The DAG runs of one kind, event after event.

    :param sandbox: its own.
    """

    def __init__(self, airflow: LiveAirflow, kind: str, sandbox: Sandbox) -> None:
        self.airflow, self.dag_id, self.kind, self.sandbox = airflow, kind, KINDS[kind], sandbox

    def perform(self, name: str) -> Cell:
        """Let an event happen, and look at what is there then.

        :raises AssertionError: a task failed, with what it logged.
        """
        event = EVENTS[name]
        paid = self.paid()
        if event.clears is None:
            before, images = {}, None
            self.start(event)
        else:
            before, images = self.tries(event.run), self.images(event.run)
            self.clear(event)
        self.ends(event.run)
        after, now = self.tries(event.run), self.images(event.run)
        again = {
            ti[0] for ti, tries in after.items() if tries != before.get(ti, tries) or (not before and tries[1] > 1)
        }
        numbers = {index: [number(image) for image in found] for index, found in now.items()}
        landed = {each for found in numbers.values() for each in found} & self.charged()
        unchanged = None if images is None else now == images
        return Cell(self.dag_id, name, self.paid() - paid, len(landed), numbers, frozenset(again), unchanged)

    def start(self, event: Event) -> None:
        fails = {"fails_in": 1, "downloads": 3 * self.kind.images} if event.run == RETRIED else {}
        self.airflow.trigger(self.dag_id, event.run, fails)

    def clear(self, event: Event) -> None:
        names = {self.kind.first} if DOWNSTREAM in event.options else {self.kind.first, "body.made"}
        ids = [
            ti["id"]
            for ti in self.airflow.task_instances(self.dag_id, event.run)
            if ti["task_id"] in names and iteration_of(ti) == event.clears
        ]
        self.airflow.clear(self.dag_id, event.run, task_instance_ids=ids, **dict(event.options))

    def ends(self, run: str) -> None:
        state = self.airflow.wait(self.dag_id, run, timeout=PATIENCE)
        assert state == "success", f"{self.dag_id} is {state}:\n{self.log(run)}"

    def log(self, run: str) -> str:
        """What the tasks of a run logged."""
        folder = self.airflow.home / "logs" / f"dag_id={self.dag_id}" / f"run_id={run}"
        return "\n".join(f"{path.relative_to(folder)}\n{path.read_text()}" for path in sorted(folder.rglob("*.log*")))

    def charged(self) -> set[int]:
        return {entry["number"] for entry in self.sandbox.ledger() if entry["charged"]}

    def paid(self) -> int:
        return len(self.charged())

    def made(self, run: str) -> list[dict[str, Any]]:
        return [ti for ti in self.airflow.task_instances(self.dag_id, run) if ti["task_id"] == "body.made"]

    def tries(self, run: str) -> dict[tuple[int, int], tuple[str, int]]:
        """For each iteration and map index, which task instance it is and how often it was tried."""
        return {(iteration_of(ti) or 0, ti["map_index"]): (ti["id"], ti["try_number"]) for ti in self.made(run)}

    def images(self, run: str) -> Images:
        """The images of each task instance, whose records must be its own."""
        found: Images = {}
        for ti in self.made(run):
            where = (iteration_of(ti), ti["map_index"])
            for manifest in manifests(self.airflow.xcom_of(ti)):
                index = index_of(manifest["record"])
                assert index is not None
                assert (index.iteration, index.map_index) == where, manifest["record"]
                found.setdefault(str(index), []).extend(
                    f"{each['uri']} {each['sha256']}" for each in manifest["images"]
                )
        return found


def manifests(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifests of the images of a task, from its return value."""
    if "manifest" not in value:
        return [value]
    return [json.loads(line) for line in Path(value["manifest"].removeprefix("file://")).read_text().splitlines()]


def number(image: str) -> int:
    """Which paid request an image is, as it is drawn on it."""
    uri, digest = image.split()
    data = Path(uri.removeprefix("file://")).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    return read_submission(data)
