"""What a Clear has come to holds for its retries; a person's word to buy again is heard; a lost record is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.core.validation.resolution import Resolution
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

FOX, WOLF, BEAR = "a red fox", "a grey wolf", "a brown bear"
REGENERATE = {"on_clear": "regenerate"}


class Scene:
    """One task that wants an image, by itself or as a batch of one.

    :param kind: ``"single"`` or ``"batch"``.
    """

    def __init__(self, kind: str, airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, root: str) -> None:
        self.kind = kind
        self.airflow = airflow
        self.sandbox = sandbox
        self.conn_id = conn_id
        self.ledger = Ledger(open_store(root, AIRFLOW_OPENERS))

    def dag(self, prompt: str, **arguments: Any) -> DAG:
        usual = {"geminiimg_conn_id": self.conn_id, "poll_interval": 0.05, "resolution": "512", **arguments}
        with DAG("clears", schedule=None) as dag:
            if self.kind == "single":
                GeminiImageGenerateOperator(task_id="made", prompt=prompt, **usual)
            else:
                GeminiImageBatchOperator(task_id="made", requests=[prompt], **usual)
        return dag

    def run(self, prompt: str, **arguments: Any) -> Run:
        return self.airflow.run_dag(self.dag(prompt, **arguments))

    def clear(self, run: Run, prompt: str, **arguments: Any) -> str:
        return run.clear("made", dag=self.dag(prompt, **arguments)).state

    def retry(self, run: Run, prompt: str, **arguments: Any) -> str:
        return run.retry("made", dag=self.dag(prompt, **arguments)).state

    def paid(self) -> list[str]:
        return [entry["prompt"] for entry in self.sandbox.ledger()]

    def records(self) -> list[str]:
        return sorted(self.ledger.store.keys("ledger/"))

    def left_running(self, prompt: str) -> Run:
        """A run whose job outlives it."""
        self.sandbox.settings(latency=5)
        run = self.run(prompt, timeout=0.2)
        self.sandbox.settings(latency=0.05)
        assert (run.state, self.paid()) == ("failed", [prompt]), run.log
        return run

    def ended(self) -> None:
        """Wait until the gateway has made all its images."""
        deadline = time.monotonic() + 20
        while any(entry["outcome"] == "running" for entry in self.sandbox.ledger()):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def collect(self, root: str) -> None:
        """Land what is left behind, as the daily task does."""
        for key in self.records():  # nobody is at work on it any more
            os.utime(Path(root.removeprefix("file://")) / key, (time.time() - 3600,) * 2)
        with DAG("collect", schedule=None) as dag:
            GeminiImageCollectOperator(task_id="collect")
        assert self.airflow.run_dag(dag).state == "success"


@pytest.fixture(params=["single", "batch"])
def scene(
    request: pytest.FixtureRequest, airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> Scene:
    return Scene(request.param, airflow, sandbox, apimaster, local_root)


@pytest.fixture
def single(airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str) -> Scene:
    return Scene("single", airflow, sandbox, apimaster, local_root)


def fails_once(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """The first call raises, as if the process had died there."""
    real, calls = getattr(module, name), []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("killed")
        return real(*args)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_clear_that_collected_an_older_job_is_not_done_again_by_its_retry(
    single: Scene, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_geminiimg.runtime import image_task

    run = single.left_running(FOX)
    assert single.clear(run, WOLF) == "success"
    single.ended()
    fails_once(monkeypatch, image_task, "finished")  # after it has landed
    assert single.clear(run, FOX, deferrable=deferrable, **REGENERATE) == "failed"
    assert single.retry(run, FOX, deferrable=deferrable, **REGENERATE) == "success"
    assert single.paid() == [FOX, WOLF]


@pytest.mark.parametrize("prompt", [BEAR, "{{ params.gone }}"])
def test_a_retry_keeps_to_the_older_image_that_a_clear_came_back_to_whatever_templates_render_to(
    single: Scene, prompt: str
) -> None:
    run = single.run(FOX)
    single.clear(run, WOLF)
    single.clear(run, FOX)
    image = run.task("made").value["images"][0]["uri"]
    assert single.retry(run, prompt) == "success", run.log
    assert run.task("made").value["images"][0]["uri"] == image
    assert single.paid() == [FOX, WOLF]


def test_a_retry_keeps_to_the_older_image_of_a_function_that_is_not_called_again(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    def asks(prompt: str) -> DAG:
        with DAG("asks", schedule=None) as dag:

            @task.gemini_image(geminiimg_conn_id=apimaster, poll_interval=0.05, resolution="512")
            def made() -> str:
                return prompt

            made()
        return dag

    run = airflow.run_dag(asks(FOX))
    for prompt in (WOLF, FOX):
        run.clear("made", dag=asks(prompt))
    assert run.retry("made").state == "success", run.log
    assert len(sandbox.ledger()) == 2


def test_a_retry_of_a_clear_that_waited_for_the_same_job_asks_for_nothing_else(single: Scene) -> None:
    run = single.left_running(FOX)
    single.clear(run, FOX, timeout=0.2)
    single.retry(run, BEAR)
    assert single.paid() == [FOX]


def test_what_a_collect_lands_between_a_regenerating_clear_that_waits_and_its_retry_is_not_bought_again(
    scene: Scene, local_root: str
) -> None:
    run = scene.left_running(FOX)
    assert scene.clear(run, FOX, timeout=0.2, **REGENERATE) == "failed"
    scene.ended()
    scene.collect(local_root)
    assert scene.retry(run, FOX, **REGENERATE) == "success", run.log
    assert scene.paid() == [FOX]


def test_the_retry_of_a_regeneration_that_failed_unpaid_regenerates(scene: Scene) -> None:
    run = scene.run(FOX)
    scene.sandbox.faults(route="apimaster.submit", status=503)
    assert scene.clear(run, FOX, **REGENERATE) == "failed"
    assert scene.retry(run, FOX, **REGENERATE) == "success", run.log
    assert scene.paid() == [FOX, FOX]


def resolved(scene: Scene, run: Run) -> None:
    reconcile.resolve(scene.ledger, scene.records()[-1], Resolution("resubmit"))
    scene.retry(run, FOX)


def resubmitted(scene: Scene, run: Run) -> None:
    scene.clear(run, FOX, on_unknown="resubmit")


@pytest.mark.parametrize("again", [resolved, resubmitted])
def test_a_persons_word_to_buy_again_is_not_answered_with_an_older_image(
    scene: Scene, again: Callable[[Scene, Run], None]
) -> None:
    run = scene.run(FOX)
    scene.sandbox.faults(route="apimaster.submit", drop=True, charge="after")
    assert scene.clear(run, FOX, **REGENERATE) == "failed"
    again(scene, run)
    assert (run.state, scene.paid()) == ("success", [FOX] * 3), run.log


def test_a_later_record_that_is_lost_is_noticed_though_an_older_one_is_left(single: Scene) -> None:
    run = single.run(FOX)
    single.clear(run, WOLF)
    single.ledger.store.delete(single.records()[-1])
    assert single.retry(run, WOLF) == "failed"
    assert "Airflow's task state has record" in run.log
    assert single.paid() == [FOX, WOLF]


def test_later_records_of_a_batch_that_are_lost_are_noticed_though_older_ones_are_left(scene: Scene) -> None:
    run = scene.run(FOX)
    assert scene.clear(run, FOX, **REGENERATE) == "success"
    scene.ledger.store.delete(scene.records()[-1])
    assert scene.clear(run, FOX, **REGENERATE) == "failed"
    assert scene.paid() == [FOX, FOX]


def test_a_run_made_again_whose_new_record_was_forgotten_goes_on(scene: Scene) -> None:
    scene.run(FOX)
    scene.airflow.close()
    run = scene.run(FOX, **REGENERATE)
    assert scene.paid() == [FOX, FOX], run.log
    reconcile.forget(scene.ledger, scene.records()[-1])
    assert scene.clear(run, FOX) == "success", run.log
    assert scene.paid() == [FOX, FOX]


@pytest.mark.parametrize("emptied", [False, True], ids=["made again", "emptied store"])
def test_a_copy_of_an_older_image_in_a_run_without_a_memory_of_it_leaves_no_stranger_behind(
    single: Scene, emptied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if emptied:
        monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", "True")
    run = single.run(FOX)
    single.clear(run, WOLF)
    if emptied:
        single.clear(run, FOX, file_name="other")
    else:
        single.airflow.close()
        run = single.run(FOX, file_name="other")
    assert run.state == "success", run.log
    for prompt in (FOX, WOLF, BEAR):
        assert single.clear(run, prompt, file_name="other") == "success", run.log
    assert sorted(single.paid()) == sorted([FOX, WOLF, BEAR])
