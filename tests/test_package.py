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
from airflow_provider_geminiimg.connection import EXTRAS
from airflow_provider_geminiimg.provider import get_provider_info

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
    ],
    ids=["package", "provider info"],
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
    [connection] = info["connection-types"]
    module, _, name = connection["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert hook.conn_type == connection["connection-type"]
    assert hook.hook_name == connection["hook-name"]


def test_the_task_decorators_of_the_provider_info_are_airflows() -> None:
    from airflow.sdk import task

    for entry in get_provider_info()["task-decorators"]:
        module, _, name = entry["class-name"].rpartition(".")
        assert getattr(task, entry["name"]) is getattr(importlib.import_module(module), name)


def test_a_dag_file_without_our_task_decorators_does_not_import_them() -> None:
    look = "import sys; assert not any('geminiimg.decorators' in name for name in sys.modules)"
    assert "airflow" in modules_after(f"from airflow.sdk import task; task.python\n{look}")


def test_the_entry_point_and_the_version_agree_with_the_package() -> None:
    distribution = metadata.distribution("airflow-provider-geminiimg")
    assert distribution.version == airflow_provider_geminiimg.__version__
    [entry] = [point for point in distribution.entry_points if point.group == "apache_airflow_provider"]
    assert entry.load() is get_provider_info
