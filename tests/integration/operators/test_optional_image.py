"""`if_no_image`: an image that is empty when the task runs is an error, and a generation only if the DAG says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg import (
    GeminiImageEditOperator,
    GeminiImageGenerateOperator,
    GeminiImageJobSensor,
    GeminiImageSubmitOperator,
)
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, OverBudgetError
from tests.harness.shop import png

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")

as_text_and_natively = pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
waiting_and_deferred = pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
EMPTY = {
    "an XCom that is not there": "{{ ti.xcom_pull('nobody') }}",
    "None": "{{ none }}",
    "empty text": "{{ '' }}",
    "an empty list": "{{ params.list }}",
    "JSON's null": "{{ none | tojson }}",
    "what may be undefined": "{{ gone | default('') }}",
}
STILL_WRONG = {
    "what is not defined": "{{ gone }}",
    "an attribute of nothing": "{{ ti.xcom_pull('nobody').uri }}",
    "a parameter that is not there": "{{ params.gone }}",
    "a Variable that is not there": "{{ var.value.gone }}",
    "a part of an address": "s3://in/{{ none }}.png",
    "what is not defined, in a filter": "{{ gone | trim }}",
    "what is not defined, as a text": "{{ gone | string }}",
    "what is not defined, formatted": "{{ '%s' | format(gone) }}",
    "what is not defined, twice": "{{ gone ~ gone }}",
    "what is not defined, in a list": "{{ [gone] | join }}",
    "what is not defined, after nothing": "{{ ti.xcom_pull('nobody') }}{{ gone }}",
}


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "fox.png").write_bytes(png())
    return (tmp_path / "fox.png").as_uri()


def dag_of(native: bool = False, **more: Any) -> DAG:
    params: dict[str, Any] = {"list": [], "if_no_image": "generate"}
    return DAG("revise", schedule=None, params=params, render_template_as_native_obj=native, **more)


def usual(conn_id: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "a red fox", "geminiimg_conn_id": conn_id, "resolution": "512", "poll_interval": 0.02, **more}


def why(run: Run, task_id: str = "made", map_index: int = -1) -> GeminiImageError:
    error = run.task(task_id, map_index).error
    outcome = error.__cause__ if isinstance(error, AirflowFailException) else error
    assert isinstance(outcome, GeminiImageError), run.log
    return outcome


@as_text_and_natively
def test_an_empty_image_is_an_error_without_consent(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    with dag_of(native) as dag:
        for number, image in enumerate(EMPTY.values()):
            GeminiImageEditOperator(task_id=f"edit-{number}", image=image, **usual(onemin))
            GeminiImageSubmitOperator(task_id=f"submit-{number}", image=image, if_no_image="fail", **usual(onemin))
    run = airflow.run_dag(dag)
    for number in range(len(EMPTY)):
        for kind in ("edit", "submit"):
            error = why(run, f"{kind}-{number}")
            assert isinstance(error, BadRequestError)
            assert "image" in str(error)
    assert not sandbox.calls()


@as_text_and_natively
def test_an_empty_image_generates_with_consent_what_the_generate_operator_makes(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    with dag_of(native) as dag:
        GeminiImageGenerateOperator(task_id="generated", **usual(onemin))
        for number, image in enumerate(EMPTY.values()):
            GeminiImageEditOperator(
                task_id=f"made-{number}", image=image, if_no_image="{{ params.if_no_image }}", **usual(onemin)
            )
        GeminiImageEditOperator(task_id="unset", image="{{ 'unset' }}", if_no_image="generate", **usual(onemin))
        GeminiImageEditOperator(task_id="written", image=None, if_no_image="generate", **usual(onemin))
        GeminiImageEditOperator(task_id="omitted", if_no_image="generate", **usual(onemin))
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    alike = ("operation", "fingerprint", "cost", "requested", "model")
    wanted = {name: run.task("generated").value[name] for name in alike}
    assert wanted["operation"] == "generate"
    for task_id in (*(f"made-{number}" for number in range(len(EMPTY))), "unset", "written", "omitted"):
        made = run.task(task_id)
        assert {name: made.value[name] for name in alike} == wanted
        assert 'image is empty, and if_no_image is "generate": the request is a generation.' in made.log
    assert {entry["operation"] for entry in sandbox.ledger()} == {"generate"}
    assert len(sandbox.ledger()) == len(EMPTY) + 4


@pytest.mark.parametrize("undefined", [jinja2.StrictUndefined, jinja2.Undefined], ids=["strict", "lenient"])
@as_text_and_natively
def test_a_name_that_does_not_exist_is_an_error_also_with_consent(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool, undefined: Any
) -> None:
    with dag_of(native, template_undefined=undefined) as dag:
        for number, image in enumerate(STILL_WRONG.values()):
            GeminiImageEditOperator(task_id=f"made-{number}", image=image, if_no_image="generate", **usual(onemin))
    run = airflow.run_dag(dag)
    for number, kind in enumerate(STILL_WRONG):
        error = why(run, f"made-{number}")
        assert isinstance(error, BadRequestError), kind
        assert str(error).startswith("image"), kind
    assert not sandbox.calls()


@waiting_and_deferred
def test_tasks_one_after_the_other_generate_first_and_then_edit(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, deferrable: bool
) -> None:
    @task
    def nothing() -> None:
        """As a loop has no earlier image at first."""

    with dag_of() as dag:
        image: Any = nothing()
        for number in range(3):
            made = GeminiImageEditOperator(
                task_id=f"made-{number}",
                image=image,
                if_no_image="generate",
                deferrable=deferrable,
                **usual(geminiimg_conn_id),
            )
            image = made.output
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert [run.task(f"made-{number}").value["operation"] for number in range(3)] == ["generate", "edit", "edit"]
    assert [entry["operation"] for entry in sandbox.ledger()] == ["generate", "edit", "edit"]


@waiting_and_deferred
@pytest.mark.parametrize("way", ["a list", "a task", "rows"])
def test_mapped_tasks_edit_where_there_is_an_image_and_generate_where_there_is_none(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, photo: str, way: str, deferrable: bool
) -> None:
    @task
    def images() -> list[str | None]:
        return [photo, None]

    with dag_of() as dag:
        partial = GeminiImageEditOperator.partial(
            task_id="made", if_no_image="generate", deferrable=deferrable, **usual(onemin)
        )
        if way == "rows":
            partial.expand_kwargs([{"image": photo}, {}])
        else:
            partial.expand(image=images() if way == "a task" else [photo, None])
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert [run.task("made", index).value["operation"] for index in range(2)] == ["edit", "generate"]
    assert len(sandbox.ledger()) == 2


def test_mapped_tasks_without_consent_fail_where_there_is_no_image(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, photo: str
) -> None:
    @task
    def images() -> list[str | None]:
        return [photo, None]

    with dag_of() as dag:
        GeminiImageEditOperator.partial(task_id="made", **usual(onemin)).expand(image=images())
        GeminiImageEditOperator.partial(task_id="rows", **usual(onemin)).expand_kwargs([{}])
    run = airflow.run_dag(dag)
    assert run.task("made", 0).state == "success", run.log
    for task_id, index in (("made", 1), ("rows", 0)):
        error = why(run, task_id, index)
        assert isinstance(error, BadRequestError)
        assert "image: " in str(error)
    assert len(sandbox.ledger()) == 1


def test_a_submitted_job_without_an_image_is_a_generation_and_its_sensor_stores_it(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    with dag_of() as dag:
        job = GeminiImageSubmitOperator(task_id="job", image="{{ none }}", if_no_image="generate", **usual(apimaster))
        GeminiImageJobSensor(task_id="made", job=job.output, poke_interval=0.02, mode="poke")
    run = airflow.run_dag(dag)
    assert run.task("made").value["operation"] == "generate", run.log
    assert len(sandbox.ledger()) == 1


def test_a_cap_counts_the_price_of_what_is_made(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, photo: str
) -> None:
    with dag_of() as dag:
        for name, image in (("generated", "{{ none }}"), ("made", photo)):
            # Between the prices of a generation and of an edit, whose input image costs 0.0006 more.
            GeminiImageEditOperator(
                task_id=name, image=image, if_no_image="generate", max_cost=0.0674,
                **usual(onemin, resolution="1K"),
            )  # fmt: skip
    run = airflow.run_dag(dag)
    assert run.task("generated").state == "success", run.log
    assert isinstance(why(run), OverBudgetError)
    assert len(sandbox.ledger()) == 1


def test_a_retry_collects_the_edit_that_was_paid_for_when_the_image_is_empty_by_then(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, photo: str
) -> None:
    def dag(image: str) -> DAG:
        with dag_of() as made:
            GeminiImageEditOperator(task_id="made", image=image, if_no_image="generate", **usual(onemin))
        return made

    sandbox.faults(route="download", status=404, times=2)
    run = airflow.run_dag(dag(photo))
    assert run.state == "failed"
    run.retry("made", dag=dag("{{ none }}"))
    assert run.task("made").value["operation"] == "edit", run.log
    assert len(sandbox.ledger()) == 1


# What is known when the DAG is parsed


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": "{{ x }}", "reference_images": ["s3://in/dog.png"]}, "must also be valid without an image"),
        ({"image": None, "reference_images": ["s3://in/dog.png"]}, "must also be valid without an image"),
        ({"image": "{{ x }}", "aspect_ratio": "7:3"}, "aspect_ratio='7:3'"),
        ({"image": None, "aspect_ratio": "7:3"}, "must also be valid without an image"),
        ({"image": "{{ x }}", "if_no_image": "edit"}, "Allowed: 'fail' or 'generate'"),
        ({"image": None, "if_no_image": "fail"}, "image: not given"),
        ({"if_no_image": "fail"}, "image: not given"),
    ],
)
def test_literals_are_checked_for_the_edit_and_for_the_generation(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        GeminiImageEditOperator(task_id="made", **{"prompt": "a red fox", "if_no_image": "generate", **values})


def test_an_edit_with_references_is_fine_where_its_image_is_written(photo: str) -> None:
    given: dict[str, Any] = {"image": photo, "reference_images": [photo], "if_no_image": "generate"}
    GeminiImageEditOperator(task_id="made", prompt="a red fox", **given)


def test_operators_that_do_not_need_it_have_no_such_argument() -> None:
    def made() -> str:
        return "a red fox"

    operator: Any = GeminiImageGenerateOperator
    for make in (operator, lambda **more: task.gemini_image(**more)(made)()):
        with DAG("other", schedule=None), pytest.raises(TypeError, match="if_no_image"):
            make(task_id="made", prompt="a red fox", if_no_image="generate")


def test_references_without_an_image_are_refused_when_the_task_runs(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, photo: str
) -> None:
    with dag_of() as dag:
        GeminiImageEditOperator(
            task_id="made", image="{{ none }}", reference_images=f"{{{{ '{photo}' }}}}", if_no_image="generate",
            **usual(onemin),
        )  # fmt: skip
    said = str(why(airflow.run_dag(dag)))
    assert "reference_images (1 given): is not accepted by" in said
    assert "must also be valid without an image" in said
    assert not sandbox.calls()
