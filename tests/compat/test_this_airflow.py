"""What must hold on every supported Airflow and Python: the package is found, imported, and buys each image once."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jsonschema
import pytest
from airflow import __version__ as airflow_version
from airflow.sdk import DAG, BaseOperator, task

import airflow_provider_geminiimg
from airflow_provider_geminiimg import (
    GeminiImageEditOperator,
    GeminiImageGenerateOperator,
    GeminiImageHook,
    GeminiImageJobSensor,
    GeminiImageSubmitOperator,
    _compat,
    settings,
)
from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.gallery.addresses import address_of
from airflow_provider_geminiimg.provider import get_provider_info
from airflow_provider_geminiimg.sandbox import read_submission

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

RunDag = Callable[[DAG], Mapping[str, Any]]
AIRFLOW = tuple(int(part) for part in airflow_version.split(".")[:2])
PACKAGE = "airflow-provider-geminiimg"
PLUGINS = "/api/v2/plugins"
NEEDS_3_3 = set() if AIRFLOW >= (3, 3) else {"IMAGE_RETRY_POLICY"}

waiting_and_deferred = pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])


def image_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest's one image, after a look at its pixels."""
    [image] = manifest["images"]
    data = Path(image["uri"].removeprefix("file://")).read_bytes()
    info = inspect_image(data)
    assert (info.width, info.height) == (image["width"], image["height"])
    return data


def test_the_built_wheel_is_what_is_tested_here() -> None:
    installed = metadata.distribution(PACKAGE).locate_file("airflow_provider_geminiimg/__init__.py")
    assert Path(str(installed)) == Path(airflow_provider_geminiimg.__file__)


def test_every_public_name_and_every_module_of_the_provider_info_can_be_imported() -> None:
    for name in {*airflow_provider_geminiimg.__all__} - NEEDS_3_3:
        assert getattr(airflow_provider_geminiimg, name) is not None
    info = get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    for entry in info["task-decorators"]:
        assert callable(getattr(task, entry["name"]))


def test_the_provider_info_is_what_this_airflow_expects() -> None:
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_this_airflow_finds_the_provider_its_hook_and_its_connection_type() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers[PACKAGE].version == airflow_provider_geminiimg.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions would like another class to be asked
        hook = manager.hooks["geminiimg"]
        fields = [name for name in manager.connection_form_widgets if name.startswith("extra__geminiimg__")]
    assert hook is not None
    assert hook.hook_class_name == f"{GeminiImageHook.__module__}.{GeminiImageHook.__name__}"
    assert hook.hook_name == GeminiImageHook.hook_name
    assert hook.connection_testable
    assert bool(fields) == (AIRFLOW >= (3, 2)), "docs/compatibility.md says since when the form has our fields"


def test_the_deferral_errors_are_those_that_this_airflow_raises() -> None:
    task = BaseOperator(task_id="deferred")
    with pytest.raises(_compat.TaskDeferralTimeout):
        task.resume_execution("__fail__", {"error": "Trigger timeout"}, {})
    with pytest.raises(_compat.TaskDeferralError, match="failure"):
        task.resume_execution("__fail__", {"error": "Trigger failure", "traceback": ["gone"]}, {})


def test_the_hook_checks_its_key(sandbox: Sandbox, onemin: str) -> None:
    works, message = GeminiImageHook(onemin).test_connection()
    assert works, message
    assert sandbox.ledger() == []


@waiting_and_deferred
def test_an_image_is_made_and_edited_for_two_payments(
    run_dag: RunDag, sandbox: Sandbox, geminiimg_conn_id: str, local_root: str, deferrable: bool
) -> None:
    shared = {"geminiimg_conn_id": geminiimg_conn_id, "deferrable": deferrable, "poll_interval": 0.05}
    with DAG("make_and_edit", schedule=None) as dag:
        made = GeminiImageGenerateOperator(task_id="made", prompt="a lighthouse", aspect_ratio="16:9", **shared)
        GeminiImageEditOperator(task_id="edited", prompt="make it winter", image=made.output, **shared)
    tasks = run_dag(dag)
    assert [tasks[task_id].state for task_id in ("made", "edited")] == ["success", "success"]
    assert [read_submission(image_bytes(tasks[task_id].value)) for task_id in ("made", "edited")] == [1, 2]
    assert len(sandbox.ledger()) == 2


@waiting_and_deferred
def test_what_was_submitted_is_waited_for_by_the_sensor(
    run_dag: RunDag, sandbox: Sandbox, geminiimg_conn_id: str, local_root: str, deferrable: bool
) -> None:
    sandbox.settings(latency=0.5)  # the sensor must not find the image at once
    with DAG("submit_and_wait", schedule=None) as dag:
        order = GeminiImageSubmitOperator(
            task_id="order", prompt="a boat", variant="{{ 1 + 1 }}", geminiimg_conn_id=geminiimg_conn_id
        )
        GeminiImageJobSensor(
            task_id="landed",
            job=order.output,
            geminiimg_conn_id=geminiimg_conn_id,
            poke_interval=0.1,
            poll_interval=0.05,
            timeout=60,
            deferrable=deferrable,
        )
    tasks = run_dag(dag)
    assert tasks["landed"].state == "success"
    assert read_submission(image_bytes(tasks["landed"].value)) == 1
    assert len(sandbox.ledger()) == 1


@waiting_and_deferred
def test_a_retry_collects_the_image_without_paying_again(
    run_dag: RunDag, sandbox: Sandbox, geminiimg_conn_id: str, local_root: str, deferrable: bool
) -> None:
    sandbox.faults(route="download", status=500, times=3)
    with DAG("retried", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made",
            prompt="a red fox",
            geminiimg_conn_id=geminiimg_conn_id,
            deferrable=deferrable,
            poll_interval=0.05,
            retries=1,
            retry_delay=timedelta(0),
        )
    made = run_dag(dag)["made"]
    assert (made.state, made.try_number) == ("success", 2)
    assert read_submission(image_bytes(made.value)) == 1
    assert len(sandbox.ledger()) == 1


def test_functions_say_what_to_make_and_a_retry_does_not_ask_them_again(
    run_dag: RunDag, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=503)
    shared = {"geminiimg_conn_id": apimaster, "poll_interval": 0.05, "retries": 1, "retry_delay": timedelta(0)}
    calls: list[str] = []
    with DAG("functions", schedule=None) as dag:

        @task.gemini_image(**shared)
        def made(animal: str) -> str:
            calls.append(animal)
            return f"{animal} {{{{ 1 + 1 }}}} {len(calls)}"

        @task.gemini_image_batch(**shared)
        def many() -> list[str]:
            return ["a wolf", "a bear"]

        made("a fox") >> many()
    tasks = run_dag(dag)
    assert (tasks["made"].state, tasks["made"].try_number) == ("success", 2)
    assert tasks["many"].value["counts"]["landed"] == 2
    assert sorted(entry["prompt"] for entry in sandbox.ledger()) == ["a bear", "a fox {{ 1 + 1 }} 1", "a wolf"]


def test_a_mapped_task_pays_once_for_each_of_its_images(
    run_dag: RunDag, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    with DAG("mapped", schedule=None) as dag:
        GeminiImageGenerateOperator.partial(
            task_id="made", prompt="a fox", geminiimg_conn_id=apimaster, deferrable=True, poll_interval=0.05
        ).expand(variant=["calm", "bold"])
    tasks = run_dag(dag)
    assert {read_submission(image_bytes(tasks[f"made[{number}]"].value)) for number in range(2)} == {1, 2}
    assert len(sandbox.ledger()) == 2


@pytest.fixture
def browser(_database: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of Airflow's API, without a login; `log_in` gives it one."""
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from starlette.testclient import TestClient

    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "False")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ada:ADMIN")
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "s" * 32)
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "j" * 64)
    purge_cached_app()
    return TestClient(create_app("core"))


def log_in(browser: Any) -> None:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="ada", role="ADMIN"))
    browser.headers["Authorization"] = f"Bearer {token}"


def gallery_views(browser: Any) -> list[dict[str, Any]]:
    """The gallery's page and tabs, as Airflow's pages are told of them."""
    plugins = browser.get(PLUGINS).json()["plugins"]
    [plugin] = [each for each in plugins if each["name"] == "geminiimg_gallery"]
    return list(plugin["external_views"])


def test_the_gallery_is_in_this_airflows_pages_and_shows_what_a_task_made_to_who_may_read_it(
    run_dag: RunDag, sandbox: Sandbox, apimaster: str, local_root: str, browser: Any
) -> None:
    with DAG("shown", schedule=None) as dag:
        GeminiImageGenerateOperator(task_id="made", prompt="a fox", geminiimg_conn_id=apimaster)
    made = run_dag(dag)["made"].value
    listing = f"/geminiimg/{api_path(made)}/images"
    assert [browser.get(path).status_code for path in (PLUGINS, listing)] == [401, 401]
    log_in(browser)
    destinations = [view["destination"] for view in gallery_views(browser)]
    assert destinations == ["nav", "dag", "dag_run", "task", "task_instance"]
    [item] = browser.get(listing).json()["items"]
    assert browser.get(f"/geminiimg/{item['images'][0]['href']}").content == image_bytes(made)
    loaded = re.findall(r'(?:href|src)="(static/[^"]+)"', browser.get("/geminiimg/").text)
    assert {path.rpartition("/")[2] for path in loaded} >= {"main.js", "gallery.css"}
    assert {browser.get(f"/geminiimg/{path}").status_code for path in loaded} == {200}


def test_the_tab_of_a_task_is_on_all_tasks_until_airflow_3_4_and_then_on_the_tasks_of_the_package(
    write_dag: Callable[[DAG], None], browser: Any
) -> None:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    class Poster(GeminiImageGenerateOperator):
        """A user's own operator."""

        template_fields = (*GeminiImageGenerateOperator.template_fields, "title")
        title = ""

    with DAG("tabs", schedule=None) as dag:
        ours = [
            Poster(task_id="subclass", prompt="a fox"),
            GeminiImageGenerateOperator(task_id="generate", prompt="a fox"),
            GeminiImageGenerateOperator.partial(task_id="mapped").expand(prompt=["a fox"]),
            GeminiImageEditOperator(task_id="edit", prompt="a fox", image="/fox.png"),
            GeminiImageSubmitOperator(task_id="submit", prompt="a fox"),
            GeminiImageJobSensor(task_id="sensor", job_id="1"),
            airflow_provider_geminiimg.GeminiImageBatchOperator(task_id="batch", requests=["a fox"]),
            airflow_provider_geminiimg.GeminiImageCollectOperator(task_id="collect"),
            airflow_provider_geminiimg.GeminiImageReviewOperator(task_id="review", subject="Good?", images=[]),
            _operator(task.gemini_image(task_id="decorated")(lambda: "a fox")()),
            _operator(task.gemini_image_batch(task_id="decorated_batch")(lambda: ["a fox"])()),
        ]
        others = [
            BashOperator(task_id="bash", bash_command="true"),
            ApprovalOperator(task_id="approval", subject="Good?"),
            _operator(task(task_id="python")(lambda: 1)()),
        ]
    write_dag(dag)
    log_in(browser)
    shown = {each["task_id"]: each for each in browser.get("/api/v2/dags/tabs/tasks").json()["tasks"]}
    assert shown.keys() == {each.task_id for each in [*ours, *others]}
    for view in gallery_views(browser):
        scope = view.get("applies_to")
        if AIRFLOW < (3, 4) or view["destination"] not in ("task", "task_instance"):
            assert scope is None
            continue
        [(path, names)] = scope.items()
        # As the page does: the tab is there if one of the field's values is among the names.
        with_tab = {task_id for task_id, each in shown.items() if {*each[path.removeprefix("task.")]} & {*names}}
        assert with_tab == {each.task_id for each in ours}


def _operator(returned: Any) -> Any:
    return returned.operator


def api_path(manifest: Mapping[str, Any]) -> str:
    """The gallery's address of the run that an image was made in."""
    at = address_of(manifest["record"])
    return f"api/dags/{at.dag_id}/runs/{quote(at.run_id)}"


def test_an_unset_root_is_warned_of_once_where_this_airflow_would_not_notice_an_unshared_ledger(
    run_dag: RunDag, sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__GEMINIIMG__ROOT", raising=False)
    settings._warn_of_default_root.cache_clear()
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    settings.log.addHandler(handler)
    try:
        with DAG("no_root", schedule=None) as dag:
            GeminiImageGenerateOperator(task_id="made", prompt="a fox", geminiimg_conn_id=onemin, poll_interval=0.05)
        made = run_dag(dag)["made"]
        settings.root()
    finally:
        settings.log.removeHandler(handler)
    assert made.state == "success"
    assert made.value["images"][0]["uri"].startswith(f"file://{os.environ['AIRFLOW_HOME']}/geminiimg/images/")
    warned = [line for line in lines if "root is not set" in line]
    assert len(warned) == (1 if AIRFLOW < (3, 3) else 0)


def test_this_airflow_has_a_task_state_store_from_3_3_on() -> None:
    assert (AIRFLOW >= (3, 3)) == _compat.HAS_TASK_STATE_STORE


def test_the_retry_policy_retries_what_it_should_or_says_that_it_needs_airflow_3_3(
    run_dag: RunDag, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    if AIRFLOW < (3, 3):
        with pytest.raises(ImportError, match=r"needs Airflow 3\.3 or newer"):
            from airflow_provider_geminiimg import IMAGE_RETRY_POLICY
        return
    from airflow_provider_geminiimg import IMAGE_RETRY_POLICY

    sandbox.faults(route="apimaster.submit", status=503, headers={"Retry-After": "0"})
    sandbox.faults(route="apimaster.submit", status=401)
    with DAG("by_outcome", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made", prompt="a fox", geminiimg_conn_id=apimaster, retries=2, retry_policy=IMAGE_RETRY_POLICY
        )
    made = run_dag(dag)["made"]
    assert (made.state, made.try_number) == ("failed", 2)
    assert sandbox.ledger() == []
