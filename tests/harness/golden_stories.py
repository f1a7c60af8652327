"""What the package is made to do for the golden files: tasks against the sandbox, each story in a bucket of its own."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.sdk import DAG, TaskGroup, task

from airflow_provider_geminiimg.__main__ import main
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.review import GeminiImageReviewOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness.golden import BUCKET, IMAGES, INPUT, TINY, Stable, stored
from tests.harness.moto import age_object, start_moto
from tests.harness.storage_faults import BucketFaults

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from airflow_provider_geminiimg.sandbox.state import Box
    from tests.harness.inprocess import AirflowHarness, Run, TriggerFate

FAST = {"resolution": "512", "poll_interval": 0.02, "deferrable": False}
UNKNOWN = {"drop": True, "charge": "after"}
HOUR = 3600.0


class Story:
    """Runs tasks, and notes what they wrote, returned and handed on."""

    def __init__(
        self, airflow: AirflowHarness, sandbox: Sandbox, conn: str, stored: Callable[[], dict[str, bytes]] = stored
    ) -> None:
        self.airflow, self.sandbox, self.conn, self.stored = airflow, sandbox, conn, stored
        self.stable = Stable(sandbox)
        self.sections: list[tuple[str, str]] = []
        self._seen: dict[str, str] = {}
        sandbox.settings(latency=0, submit_code="never", poll_shape="succeeded", sync_shape="data")

    def fault(self, operation: str, **fault: Any) -> None:
        self.sandbox.faults(route=operation if operation == "download" else f"{self.conn}.{operation}", **fault)

    def single(self, operator: type[Any] = GeminiImageGenerateOperator, **arguments: Any) -> DAG:
        with DAG("story", schedule=None) as dag:
            given = {"task_id": "made", "prompt": "a fox", "geminiimg_conn_id": self.conn, **FAST, **arguments}
            operator(**{name: value for name, value in given.items() if value is not None})
        return dag

    def run(self, dag: DAG | None = None, state: str = "success", **arguments: Any) -> Run:
        return self.note(self.airflow.run_dag(self.single(**arguments) if dag is None else dag), state)

    def clear(self, run: Run, state: str = "success", **arguments: Any) -> None:
        self.note(run.clear("made", dag=self.single(**arguments)), state)

    def note(self, run: Run, state: str = "success") -> Run:
        """Note what a run has left behind, and what its tasks did."""
        assert run.state == state, run.log
        self.look(f"{state}: {', '.join(run.dag.task_ids)}")
        for made in run.tasks():
            of = made.task_id if made.map_index < 0 else f"{made.task_id} {made.map_index}"
            seen = {"returned": made.value, "deferred to": made.triggers, "events": made.events}
            for what, value in seen.items():
                if value:
                    self.say(f"* {what} by {of}", json.dumps(value, sort_keys=what != "returned"))
            if made.error is not None:
                self.say(f"* raised by {of}", f"{type(made.error).__name__}: {made.error}")
        return run

    def look(self, moment: str) -> None:
        """Note what is new in the bucket, what changed and what is gone."""
        now = self.stable.objects(self.stored())
        self.sections.append((f"* {self.stable.text(moment)}", ""))
        self.sections += [(key, text) for key, text in now.items() if self._seen.get(key) != text]
        self.sections += [(f"* gone: {key}", "") for key in self._seen if key not in now]
        self._seen = now

    def say(self, title: str, text: str) -> None:
        self.stable.learn(text)
        self.sections.append((title, self.stable.text(text)))

    def while_held(
        self, act: Callable[[], None], dag: DAG | None = None, operation: str = "submit", nth: int = 1,
        triggers: Sequence[TriggerFate] = (),
    ) -> Run:  # fmt: skip
        """Do something while the gateway has a call of a task, and has not answered."""

        def acted() -> None:
            assert self.sandbox.held(1, timeout=60)  # the first run in a process imports Airflow
            try:
                act()
            finally:
                self.sandbox.release()

        if nth > 1:
            self.fault(operation, times=nth - 1)
        self.fault(operation, hold=True)
        with ThreadPoolExecutor() as pool:
            acting = pool.submit(acted)
            run = self.airflow.run_dag(self.single() if dag is None else dag, triggers=triggers)
            acting.result()
        return run

    def ends(self) -> None:
        """Let the jobs end that the gateway has."""
        for job in self.box.jobs.values():
            job.ready_at = min(job.ready_at, time.time())

    @property
    def box(self) -> Box:
        return self.sandbox._server.box

    def jobs(self, *arguments: str) -> None:
        """What a person does about records that are an hour old."""
        for key in stored():
            if key.startswith("ledger/"):
                age_object(BUCKET, f"geminiimg/{key}", HOUR)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["jobs", *arguments]) == 0
        self.look(f"jobs {' '.join(arguments)}")
        self.say("* printed", printed.getvalue())


RECORD = "ledger/default/story/run/made/-1/0/1.json"


def landed(story: Story) -> None:
    story.note(story.while_held(lambda: story.look("the gateway has the request")))


def described(story: Story) -> None:
    more = {"aspect_ratio": "16:9", "variant": "b", "file_name": "fox ü", "output_path": IMAGES, "temperature": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__GEMINIIMG__RECORD_PROMPTS", "True")
        patch.setenv("AIRFLOW__GEMINIIMG__NAMESPACE", "Team A")
        story.run(**(more if story.conn == "onemin" else {**more, "temperature": None, "google_search": True}))


def edited(story: Story) -> None:
    story.run(operator=GeminiImageEditOperator, image=INPUT)


def mismatched(story: Story) -> None:
    story.fault("submit", outcome="wrong_size")
    story.run(on_mismatch="fail", aspect_ratio="1:1", state="failed")


def cleared(story: Story) -> None:
    place = {"output_path": IMAGES, "file_name": "fox"}
    run = story.run(**place)
    story.clear(run, **{**place, "file_name": "copy"})
    story.clear(run, **place, prompt="a wolf")
    story.clear(run, **place)
    story.clear(run, **place, prompt="a wolf", on_clear="regenerate")


def reused(story: Story) -> None:
    with DAG("story", schedule=None) as dag:
        given = {"prompt": "a fox", "geminiimg_conn_id": story.conn, "reuse": "dag", **FAST}
        tasks = [GeminiImageGenerateOperator(task_id=name, **given) for name in ("made", "second", "third")]
        tasks[0] >> tasks[1] >> tasks[2]
    story.run(dag)


def mapped(story: Story) -> None:
    with DAG("story.of-names", schedule=None) as dag, TaskGroup("group"):
        partial = GeminiImageGenerateOperator.partial(task_id="made", geminiimg_conn_id=story.conn, **FAST)
        partial.expand(prompt=["a fox", "a wolf"])
    story.note(story.airflow.run_dag(dag, run_id="manual__2026-01-01T00:00:00+00:00"))


def wait_in_triggerer(story: Story, dag: DAG, nth: int = 1, triggers: Sequence[TriggerFate] = ()) -> Run:
    """A job that ends while a trigger asks for it."""
    story.sandbox.settings(latency=60)
    return story.while_held(story.ends, dag, "status", nth, triggers)


def left_alone(story: Story) -> None:
    """A job that ends when nobody asks for it."""
    story.sandbox.settings(latency=60)
    story.run(story.single(GeminiImageSubmitOperator, deferrable=None))
    story.ends()


def deferred(story: Story) -> None:
    story.note(wait_in_triggerer(story, story.single(deferrable=True)))


def deferred_again(story: Story) -> None:
    """The triggerer lost the first trigger."""
    story.note(wait_in_triggerer(story, story.single(deferrable=True), triggers=("crash",)))


def deferred_and_failed(story: Story) -> None:
    story.fault("submit", outcome="refused")
    story.note(wait_in_triggerer(story, story.single(deferrable=True)), "failed")


def timed_out(story: Story) -> None:
    story.sandbox.settings(latency=60)
    story.run(timeout=1, state="failed")
    story.sandbox.settings(latency=0)


def answered(story: Story) -> None:
    story.sandbox.settings(honour_async=False)
    story.fault("download", status=500, times=3)
    story.run(state="failed")


def spooled(story: Story) -> None:
    bucket = BucketFaults()
    data = base64.b64encode(TINY).decode()
    story.fault("submit", charge="after", body={"created": 1, "data": [{"b64_json": data}]})
    bucket.begin("denied", lambda path, body: "/images/" in path and body.startswith(b"\x89PNG"))
    with start_moto(bucket) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setattr(
            "airflow_provider_geminiimg.hooks.object_stores._CLIENTS", {}
        )  # the story's own leads to another server
        run = story.run(state="failed")
    story.note(run.retry("made"))


def failed(story: Story, **fault: Any) -> None:
    story.fault("submit", **fault)
    story.run(state="failed")


def unauthorized(story: Story) -> None:
    failed(story, status=401)


def busy(story: Story) -> None:
    failed(story, status=503)


def refused(story: Story) -> None:
    failed(story, outcome="refused")


def no_image(story: Story) -> None:
    failed(story, outcome="no_image")


def unknown(story: Story) -> None:
    story.fault("submit", **UNKNOWN)
    run = story.run(state="failed")
    story.clear(run, on_unknown="resubmit")


def resolved(story: Story, *resolution: str) -> None:
    story.fault("submit", **UNKNOWN)
    run = story.run(state="failed")
    story.jobs("resolve", RECORD, *resolution)
    story.note(run.retry("made"), "failed" if resolution == ("--lost",) else "success")


def settled_as_unpaid(story: Story) -> None:
    resolved(story, "--unpaid")


def settled_as_lost(story: Story) -> None:
    resolved(story, "--lost")


def settled_as_bought_again(story: Story) -> None:
    resolved(story, "--resubmit")


def forgotten(story: Story) -> None:
    run = story.run(output_path=IMAGES, file_name="fox")
    story.jobs("forget", RECORD)
    story.clear(run, output_path=IMAGES, file_name="fox", prompt="a wolf")


def paid_twice(story: Story) -> None:
    """A request that was resolved with a job from elsewhere, while it was under way."""

    def resolve() -> None:
        order = {"model": "gemini-3.1-flash-image-preview", "prompt": "a fox", "resolution": "0.5K"}
        url = f"{story.sandbox.apimaster_url}/images/generations/async"
        answer = httpx.post(url, json=order, headers={"Authorization": "Bearer sandbox-key"}).json()
        story.jobs("resolve", RECORD, "--job", answer["data"][0]["task_id"])

    story.note(story.while_held(resolve))


def returned(story: Story) -> None:
    with DAG("story", schedule=None) as dag:

        @task.gemini_image(geminiimg_conn_id=story.conn, **FAST)
        def made() -> Any:
            return {"prompt": "a fox", "image": INPUT, "variant": 2}

        made()
    story.fault("download", status=500, times=3)
    run = story.run(dag, "failed")
    story.note(run.retry("made"))


def batch_dag(story: Story, requests: Any, **arguments: Any) -> DAG:
    with DAG("story", schedule=None) as dag:
        given = {"resolution": "512", "poll_interval": 0.02, "max_concurrency": 1, "geminiimg_conn_id": story.conn}
        GeminiImageBatchOperator(task_id="made", requests=requests, **{**given, **arguments})
    return dag


def batch(story: Story) -> None:
    fox, wolf = {"prompt": "a fox", "sku": "A-1"}, {"prompt": "a wolf", "sku": "B-2", "n": 2}
    edit = {"prompt": "make it winter", "image": INPUT, "sku": "C-3"}
    dag = batch_dag(story, [fox, wolf, edit, fox], file_name="{sku}-{variant}", output_path=IMAGES)
    story.run(dag)


def batch_of_a_file(story: Story) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["prompt", "title"], ["a fox", "first"], ["a wolf", "second"]])
    put = open_store(f"s3://{BUCKET}/inputs", AIRFLOW_OPENERS)
    assert put.create("rows.csv", text.getvalue().encode())
    story.run(batch_dag(story, f"s3://{BUCKET}/inputs/rows.csv"))


def batch_that_fails(story: Story) -> None:
    story.fault("submit")
    story.fault("submit", **UNKNOWN)
    story.fault("submit", outcome="refused")
    story.fault("submit", status=401)
    run = story.run(batch_dag(story, [f"a {animal}" for animal in ("fox", "wolf", "bear", "owl")]), "failed")
    story.note(run.retry("made"), "failed")


def capped(story: Story) -> None:
    story.note(story.while_held(lambda: story.look("the gateway has the request")))
    run = story.airflow.run_dag(story.single(prompt="a wolf"), run_id="second")
    story.note(run, "failed")


def capped_for_a_run(story: Story) -> None:
    run = story.while_held(lambda: story.look("the gateway has the request"))
    story.note(run)
    story.note(run.clear("made", dag=story.single(prompt="a wolf")), "failed")


def submitted(story: Story) -> None:
    with DAG("story", schedule=None) as dag:
        job = GeminiImageSubmitOperator(task_id="made", prompt="a fox", geminiimg_conn_id=story.conn, resolution="512")
        GeminiImageJobSensor(task_id="waited", job=job.output, poll_interval=0.02, deferrable=True)
    story.note(wait_in_triggerer(story, dag, 2))


def from_elsewhere(story: Story) -> None:
    left_alone(story)
    story.jobs("forget", RECORD, "--force")
    _, job = story.box.jobs.popitem()
    job.job_id = "task_FOX" if story.conn == "apimaster" else "00000000-0000-0000-0000-0000000000f0"
    story.box.jobs[job.job_id] = job
    with DAG("sensor", schedule=None) as dag:
        given = {"job_id": job.job_id, "geminiimg_conn_id": story.conn}
        GeminiImageJobSensor(task_id="waited", poll_interval=0.02, deferrable=True, file_name="fox", **given)
    story.run(dag)


def collected(story: Story) -> None:
    left_alone(story)
    for command in (["list"], ["list", "--json"], ["show", RECORD]):
        story.jobs(*command)
    with DAG("collect", schedule=None) as dag:
        GeminiImageCollectOperator(task_id="made")
    story.run(dag)


def reviewed(story: Story) -> None:
    with DAG("story", schedule=None) as dag:
        given = {"prompt": "a fox", "geminiimg_conn_id": story.conn, **FAST}
        made = GeminiImageGenerateOperator(task_id="made", **given)
        GeminiImageReviewOperator(task_id="review", subject="Good?", images=made.output)
    run = story.airflow.run_dag(dag)
    story.note(run, "running")
    story.say("* shown by review", json.dumps(run.xcom("review", "shown")))


BOTH = (
    landed, described, edited, deferred, deferred_and_failed, answered, unauthorized, busy, refused, no_image,
    unknown, batch, from_elsewhere,
)  # fmt: skip
ONCE = (
    mismatched, cleared, reused, mapped, deferred_again, timed_out, settled_as_unpaid, settled_as_lost,
    settled_as_bought_again, forgotten, returned, batch_of_a_file, capped, capped_for_a_run, submitted, collected,
    reviewed,
)  # fmt: skip
BESIDE = (spooled, paid_twice, batch_that_fails)
STORIES = [(tell, conn) for tell in BOTH for conn in ("onemin", "apimaster")]
STORIES += [*((tell, "onemin") for tell in ONCE), *((tell, "apimaster") for tell in BESIDE)]
FILES = [f"{tell.__name__}.{conn}.txt" for tell, conn in STORIES]
