"""The package as Airflow meets it: cheap to import, described by a valid provider info."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import metadata, resources

import jsonschema
import pytest

import airflow_provider_geminiimg
from airflow_provider_geminiimg.core.gateways.connection import EXTRAS
from airflow_provider_geminiimg.provider import get_provider_info
from tests.harness import REPOSITORY

HEAVY = ("airflow", "boto3", "botocore", "httpx", "pydantic")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "code",
    [
        "import airflow_provider_geminiimg as package; package.__version__; dir(package)",
        "from airflow_provider_geminiimg.provider import get_provider_info; get_provider_info()",
        "from airflow_provider_geminiimg.__main__ import airflow_commands",
        "import airflow_provider_geminiimg as package; package.exceptions.BadRequestError",
    ],
    ids=["package", "provider info", "command line", "exceptions"],
)
def test_discovery_imports_nothing_heavy(code: str) -> None:
    assert modules_after(code).isdisjoint(HEAVY)


def test_every_public_name_is_there() -> None:
    for name in airflow_provider_geminiimg.__all__:
        assert getattr(airflow_provider_geminiimg, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="GeminiImageTeleporter"):
        _ = airflow_provider_geminiimg.GeminiImageTeleporter


def test_the_provider_info_is_what_airflow_expects() -> None:
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_connection_form_is_what_airflow_expects() -> None:
    schema = json.loads(resources.files("airflow").joinpath("customized_form_field_behaviours.schema.json").read_text())
    [connection] = get_provider_info()["connection-types"]
    behaviour = {name.replace("-", "_"): value for name, value in connection["ui-field-behaviour"].items()}
    jsonschema.validate(behaviour, schema)
    for name, field in connection["conn-fields"].items():
        jsonschema.Draft7Validator.check_schema(field["schema"])
        assert field["label"], name
        assert field["description"], name


def test_the_connection_form_has_every_extra_that_the_connection_takes() -> None:
    [connection] = get_provider_info()["connection-types"]
    assert tuple(connection["conn-fields"]) == EXTRAS


def test_unset_connection_fields_may_be_null() -> None:
    [connection] = get_provider_info()["connection-types"]
    for name, field in connection["conn-fields"].items():
        if name != "gateway":
            jsonschema.validate(None, field["schema"])


def test_everything_that_the_provider_info_names_can_be_imported() -> None:
    info = get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    classes = [*info["extra-links"], *info["cli"], *(entry["plugin-class"] for entry in info["plugins"])]
    for module, _, name in (each.rpartition(".") for each in classes):
        assert callable(getattr(importlib.import_module(module), name))
    [connection] = info["connection-types"]
    module, _, name = connection["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert hook.conn_type == connection["connection-type"]
    assert hook.hook_name == connection["hook-name"]


def test_every_guide_of_the_provider_info_is_a_page_of_the_docs() -> None:
    guides = [guide for entry in get_provider_info()["integrations"] for guide in entry["how-to-guide"]]
    assert guides
    assert all(REPOSITORY.joinpath(guide.lstrip("/")).is_file() for guide in guides)


def test_the_task_decorators_of_the_provider_info_are_airflows() -> None:
    from airflow.sdk import task

    for entry in get_provider_info()["task-decorators"]:
        module, _, name = entry["class-name"].rpartition(".")
        assert getattr(task, entry["name"]) is getattr(importlib.import_module(module), name)


def test_a_dag_file_without_our_task_decorators_does_not_import_them() -> None:
    look = "import sys; assert not any('geminiimg.decorators' in name for name in sys.modules)"
    assert "airflow" in modules_after(f"from airflow.sdk import task; task.python\n{look}")


OURS = "airflow_provider_geminiimg"
OPERATORS = (
    f"import {OURS} as ours; [getattr(ours, name) for name in dir(ours) if name.endswith(('Operator', 'Sensor'))]"
)
DAG_FILES = {
    "imports": OPERATORS,
    "decorators": "from airflow.sdk import task; task.gemini_image; task.gemini_image_batch",
    "literals": f"""{OPERATORS}
ours.GeminiImageGenerateOperator(task_id="a", prompt="a fox", resolution="2K", file_name="fox", timeout=60)
ours.GeminiImageEditOperator(task_id="b", prompt="a fox", image="/fox.png", output_path="/foxes", on_clear="reuse")
ours.GeminiImageBatchOperator(task_id="c", requests=["a fox"], file_name="{{sku}}", n=2, max_cost="1.5")
ours.GeminiImageSubmitOperator(task_id="d", prompt="a fox", poll_interval="5")
ours.GeminiImageJobSensor(task_id="e", job_id="1", on_mismatch="fail")
ours.GeminiImageCollectOperator(task_id="f", external_dag_id="dag", resolve={{"key": "lost"}})
ours.GeminiImageReviewOperator(task_id="g", subject="Foxes", images=[])""",
}
ONLY_TO_RUN = (
    *("aiohttp", "boto3", "botocore", "httpx", "tenacity"),
    *(f"{OURS}.core.{name}" for name in ("batch", "gateways", "http", "images", "ledger", "purchase")),
    *(f"{OURS}.core.{name}" for name in ("reconcile", "storage")),
    *(f"{OURS}.{name}" for name in ("hooks", "runtime.task_run", "sandbox", "settings", "triggers")),
)


def test_what_only_a_running_task_needs_is_still_called_so() -> None:
    assert all(importlib.import_module(name) for name in ONLY_TO_RUN if name.startswith(OURS))


@pytest.mark.parametrize("code", DAG_FILES.values(), ids=DAG_FILES)
def test_a_dag_file_does_not_import_what_only_a_running_task_needs(code: str) -> None:
    before = "import sys, airflow.sdk; airflow.sdk.DAG, airflow.sdk.BaseOperator; before = set(sys.modules)"
    script = f"{before}\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    imported = done.stdout.splitlines()[-1].split()
    assert f"{OURS}.operators.image" in imported
    assert not [name for name in imported if f"{name}.".startswith(tuple(f"{each}." for each in ONLY_TO_RUN))]


def test_the_entry_point_and_the_version_agree_with_the_package() -> None:
    distribution = metadata.distribution("airflow-provider-geminiimg")
    assert distribution.version == airflow_provider_geminiimg.__version__
    [entry] = [point for point in distribution.entry_points if point.group == "apache_airflow_provider"]
    assert entry.load() is get_provider_info


def test_the_distribution_has_what_lists_of_providers_ask_for() -> None:
    described = metadata.metadata("airflow-provider-geminiimg")
    assert {
        "Framework :: Apache Airflow",
        "Framework :: Apache Airflow :: Provider",
        "Typing :: Typed",
    } <= set(described.get_all("Classifier", []))
    assert (described["License-Expression"], described["License-File"]) == ("Apache-2.0", "LICENSE")
