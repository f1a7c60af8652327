"""Task Loops (Airflow 3.4): each iteration buys its own image, and finds it again after a retry and after any Clear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow import __version__ as airflow_version
from airflow.models.variable import Variable
from airflow.sdk import DAG, task, task_group

from airflow_provider_geminiimg import (
    GeminiImageBatchOperator,
    GeminiImageEditOperator,
    GeminiImageGenerateOperator,
    GeminiImageJobSensor,
    GeminiImageSubmitOperator,
)
from airflow_provider_geminiimg.core.ledger.layout import index_of
from airflow_provider_geminiimg.sandbox import read_submission
from tests.harness.inprocess import HAS_LOOPS, AirflowHarness, Run, Task

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.api_users import ApiUsers

pytestmark = [
    pytest.mark.usefixtures("local_root"),
    pytest.mark.skipif(not HAS_LOOPS, reason=f"Airflow {airflow_version} has no loops; 3.4 has"),
]

ITERATIONS = 3
PATIENCE = 300.0  # seconds; a run has a dozen tasks and more
SAME, DIFFERENT = "a red fox", "a red fox, number {{ loop.index }}"
FAILS = {"route": "download", "status": 500}


def generate(prompt: str, usual: dict[str, Any]) -> Any:
    return GeminiImageGenerateOperator(task_id="made", prompt=prompt, **usual).output


def deferred(prompt: str, usual: dict[str, Any]) -> Any:
    return generate(prompt, {**usual, "deferrable": True})


def mapped(prompt: str, usual: dict[str, Any]) -> Any:
    prompts = [prompt, f"{prompt}, again"]
    return GeminiImageGenerateOperator.partial(task_id="made", **usual).expand(prompt=prompts).output


def batch(prompt: str, usual: dict[str, Any]) -> Any:
    requests = [prompt, f"{prompt}, again"]
    return GeminiImageBatchOperator(task_id="made", requests=requests, **usual).output


def decorated(prompt: str, usual: dict[str, Any]) -> Any:
    @task.gemini_image(task_id="made", **usual)
    def made(*, loop: Any) -> str:
        return prompt.replace("{{ loop.index }}", str(loop.index))

    return cast("Any", made)()  # Airflow passes `loop`


def submitted(prompt: str, usual: dict[str, Any]) -> Any:
    order = GeminiImageSubmitOperator(task_id="submit", prompt=prompt, **usual)
    return GeminiImageJobSensor(task_id="made", job=order.output, mode="reschedule", poke_interval=0.05).output


KINDS: dict[str, tuple[Callable[..., Any], int]] = {
    "plain": (generate, 1),
    "deferred": (deferred, 1),
    "mapped": (mapped, 2),
    "batch": (batch, 2),
    "decorated": (decorated, 1),
    "submit and sensor": (submitted, 1),
}
ONE_TASK = [kind for kind in KINDS if kind != "submit and sensor"]


class Loop:
    """One DAG with a loop of `ITERATIONS` iterations, and what its sandbox has been paid for.

    :param kind: of `KINDS`.
    :param fails_in: the iteration whose downloads fail once, after the payment; ``None``: none.
    """

    def __init__(
        self, kind: str, prompt: str, sandbox: Sandbox, conn_id: str, *, fails_in: int | None = None, **more: Any
    ) -> None:
        self.sandbox = sandbox
        make, self.images = KINDS[kind]
        usual = {"geminiimg_conn_id": conn_id, "poll_interval": 0.02, "resolution": "512", **more}
        with DAG("looped", schedule=None) as self.dag:

            @task
            def arm(*, loop: Any) -> None:
                if loop.index == fails_in and len(sandbox.ledger()) < self.paid_before(loop.index + 1):
                    sandbox.faults({**FAILS, "times": 3 * self.images})

            @task(trigger_rule="all_done")
            def after(image: Any, *, loop: Any) -> int:
                return int(loop.index)

            @task_group
            def body() -> None:
                image = make(prompt, usual)
                before, behind = cast("Any", arm), cast("Any", after)  # Airflow passes `loop`
                before() >> image.operator
                behind(image)

            cast("Any", body).loop(max_iterations=ITERATIONS)

    def paid_before(self, iteration: int) -> int:
        return iteration * self.images

    def made(self, run: Run) -> list[Task]:
        return run.tasks("body.made")

    def check(self, run: Run, paid: int) -> list[str]:
        """Every iteration has images of its own, in storage, under its number; returns their addresses."""
        assert len(self.sandbox.ledger()) == paid
        found = []
        for each in self.made(run):
            assert each.state == "success", each.log
            for manifest in _manifests(each):
                index = index_of(manifest["record"])
                assert index is not None
                assert (index.iteration, index.map_index) == (each.iteration, each.map_index)
                uri = manifest["images"][0]["uri"]
                assert read_submission(Path(uri.removeprefix("file://")).read_bytes())
                found.append(uri)
        assert len(found) == len(set(found)) == ITERATIONS * self.images
        numbers = {read_submission(Path(uri.removeprefix("file://")).read_bytes()) for uri in found}
        assert len(numbers) == len(found), "two iterations have the same image"
        return found


def _manifests(made: Task) -> list[dict[str, Any]]:
    if "manifest" not in made.value:
        return [made.value]
    lines = Path(made.value["manifest"].removeprefix("file://")).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(params=ONE_TASK)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def conn_id(onemin: str) -> str:
    return onemin


@pytest.mark.parametrize("prompt", [SAME, DIFFERENT], ids=["same prompt", "different prompts"])
def test_each_iteration_buys_an_image_of_its_own(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, kind: str, prompt: str
) -> None:
    loop = Loop(kind, prompt, sandbox, conn_id)
    loop.check(airflow.run_dag(loop.dag, timeout=PATIENCE), paid=loop.paid_before(ITERATIONS))


@pytest.mark.parametrize("iteration", range(ITERATIONS))
def test_a_retry_of_an_iteration_collects_what_that_iteration_paid_for(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, kind: str, iteration: int
) -> None:
    loop = Loop(kind, SAME, sandbox, conn_id, fails_in=iteration)
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    failed = [each for each in loop.made(run) if each.state == "failed"]
    assert {each.iteration for each in failed} == {iteration}
    run.retry()
    loop.check(run, paid=loop.paid_before(ITERATIONS))


@pytest.mark.parametrize("keeps", [False, True], ids=["state discarded", "state kept"])
@pytest.mark.parametrize("iteration", range(ITERATIONS))
@pytest.mark.parametrize("prompt", [SAME, DIFFERENT], ids=["same prompt", "different prompts"])
def test_a_clear_of_one_iteration_alone_pays_nothing(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    api_users: ApiUsers,
    conn_id: str,
    kind: str,
    prompt: str,
    iteration: int,
    keeps: bool,
) -> None:
    loop = Loop(kind, prompt, sandbox, conn_id)
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    before = loop.check(run, paid=loop.paid_before(ITERATIONS))
    own = [each for each in loop.made(run) if each.iteration == iteration]
    run.clear_by_api(api_users, *own, keep_task_state=keeps)
    again = [each for each in loop.made(run) if each.iteration == iteration]
    assert all(now.try_number == then.try_number + 1 for now, then in zip(again, own, strict=True))
    assert loop.check(run, paid=loop.paid_before(ITERATIONS)) == before


@pytest.mark.parametrize("later", [True, False], ids=["later ones made anew", "later ones kept"])
@pytest.mark.parametrize("iteration", [0, 1])
def test_a_clear_with_downstream_pays_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, api_users: ApiUsers, conn_id: str, kind: str, iteration: int, later: bool
) -> None:
    loop = Loop(kind, SAME, sandbox, conn_id)
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    before = loop.check(run, paid=loop.paid_before(ITERATIONS))
    old = {each.id for each in loop.made(run) if each.iteration and each.iteration > iteration}
    own = [each for each in loop.made(run) if each.iteration == iteration]
    run.clear_by_api(api_users, *own, include_downstream=True, include_later_loop_iterations=later)
    new = {each.id for each in loop.made(run) if each.iteration and each.iteration > iteration}
    assert new.isdisjoint(old) if later else new == old
    assert loop.check(run, paid=loop.paid_before(ITERATIONS)) == before


@pytest.mark.parametrize("kind", [kind for kind in ONE_TASK if kind != "decorated"])  # its prompt is no template
def test_a_clear_of_an_iteration_with_another_request_buys_for_it_alone(
    airflow: AirflowHarness, sandbox: Sandbox, api_users: ApiUsers, conn_id: str, kind: str
) -> None:
    loop = Loop(kind, "a {{ var.value.get('animal', 'fox') }}", sandbox, conn_id)
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    before = loop.check(run, paid=loop.paid_before(ITERATIONS))
    Variable.set("animal", "wolf")
    try:
        run.clear_by_api(api_users, *(each for each in loop.made(run) if each.iteration == 1))
        bought = loop.check(run, paid=loop.paid_before(ITERATIONS + 1))
        run.clear_by_api(api_users, *(each for each in loop.made(run) if each.iteration == 1))
        assert loop.check(run, paid=loop.paid_before(ITERATIONS + 1)) == bought
    finally:
        Variable.delete("animal")
    own = slice(loop.images, 2 * loop.images)
    assert bought[: loop.images] == before[: loop.images]
    assert bought[2 * loop.images :] == before[2 * loop.images :]
    assert set(bought[own]).isdisjoint(before[own])


def test_a_submit_and_its_sensor_stay_in_their_iteration(
    airflow: AirflowHarness, sandbox: Sandbox, api_users: ApiUsers, apimaster: str
) -> None:
    loop = Loop("submit and sensor", SAME, sandbox, apimaster)
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    before = loop.check(run, paid=ITERATIONS)
    for iteration in range(ITERATIONS):
        own = [each for name in ("body.submit", "body.made") for each in run.tasks(name) if each.iteration == iteration]
        run.clear_by_api(api_users, *own)
        assert loop.check(run, paid=ITERATIONS) == before
    [first, *_] = [each for each in run.tasks("body.submit") if each.iteration == 0]
    run.clear_by_api(api_users, first, include_downstream=True)
    assert loop.check(run, paid=ITERATIONS) == before


def test_names_in_one_folder_tell_the_iterations_apart(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, tmp_path: Path
) -> None:
    loop = Loop("plain", SAME, sandbox, conn_id, output_path=str(tmp_path / "out"))
    loop.check(airflow.run_dag(loop.dag, timeout=PATIENCE), paid=ITERATIONS)
    stems = sorted(path.stem.split("-", 2)[-1] for path in (tmp_path / "out").glob("*.png"))
    assert stems == ["iteration0", "iteration1", "iteration2"]


def test_one_file_name_for_all_iterations_is_refused_before_a_second_payment(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, tmp_path: Path
) -> None:
    loop = Loop("plain", SAME, sandbox, conn_id, output_path=str(tmp_path / "out"), file_name="hero")
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    assert [each.state for each in loop.made(run)] == ["success", "failed", "failed"]
    assert "add the iteration to the name: {{ loop.index }}" in loop.made(run)[1].log
    assert len(sandbox.ledger()) == 1


def test_the_link_of_an_iteration_opens_that_iteration(airflow: AirflowHarness, sandbox: Sandbox, conn_id: str) -> None:
    loop = Loop("plain", SAME, sandbox, conn_id)
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    links = [run.xcom("body.made", "_link_ImagesLink", iteration=n) for n in range(ITERATIONS)]
    assert [link.rpartition("&")[2] for link in links] == ["iteration=0", "iteration=1", "iteration=2"]


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_an_edit_operator_generates_in_the_first_iteration_and_edits_its_image_in_the_others(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, deferrable: bool
) -> None:
    with DAG("looped", schedule=None) as dag:

        @task_group
        def body() -> None:
            GeminiImageEditOperator(
                task_id="made", prompt=SAME, image="{{ loop.previous | tojson }}", if_no_image="generate",
                geminiimg_conn_id=conn_id, poll_interval=0.02, resolution="512", deferrable=deferrable,
            )  # fmt: skip

        cast("Any", body).loop(max_iterations=ITERATIONS)
    run = airflow.run_dag(dag, timeout=PATIENCE)
    assert [each.value["operation"] for each in run.tasks("body.made")] == ["generate", "edit", "edit"], run.log
    assert [entry["operation"] for entry in sandbox.ledger()] == ["generate", "edit", "edit"]


def test_the_budget_of_a_run_ends_a_loop_and_a_clear_pays_nothing_more(
    airflow: AirflowHarness, sandbox: Sandbox, api_users: ApiUsers, connect: Callable[..., str]
) -> None:
    budget = {"run_budget": 2 * 0.0672, "requests_per_minute": 100_000}
    loop = Loop("plain", SAME, sandbox, connect("capped", **sandbox.connection("apimaster", **budget)))
    run = airflow.run_dag(loop.dag, timeout=PATIENCE)
    assert [each.state for each in loop.made(run)] == ["success", "success", "failed"]
    said = loop.made(run)[2].log
    assert "run budget of connection 'capped' does not cover: of 0.1344 USD, 0.1344 are spent" in said
    run.clear_by_api(api_users, *loop.made(run))
    assert [each.state for each in loop.made(run)] == ["success", "success", "failed"]
    assert len(sandbox.ledger()) == 2
