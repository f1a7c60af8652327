"""The files of docs/deploy: what they start has one image, one root and no secret of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from airflow_provider_geminiimg.provider import get_provider_info
from tests.harness import REPOSITORY

FOLDER = REPOSITORY / "docs" / "deploy"
SECRET = re.compile(r"KEY|SECRET|PASSWORD|_CONN_")
VARIABLE = re.compile(r"\$\{\w+(:\?[^}]+)?\}")
OPTION = re.compile(r"AIRFLOW__GEMINIIMG__(\w+)|geminiimg[-.](\w+)(?==|\")")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yaml").read_text())
    return loaded


def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
    return loaded


def airflow_services() -> dict[str, Any]:
    return {name: service for name, service in compose()["services"].items() if name.startswith("airflow-")}


def environments() -> Iterator[tuple[str, str, str]]:
    for service, each in compose()["services"].items():
        for name, value in each.get("environment", {}).items():
            yield service, name, value


def test_compose_starts_every_process_of_airflow() -> None:
    assert {str(service["command"]) for service in airflow_services().values()} == {
        "version", "api-server", "scheduler", "dag-processor", "celery worker", "triggerer",
    }  # fmt: skip


@pytest.mark.parametrize("part", ["image", "build", "volumes"])
def test_all_processes_of_compose_have_the_same(part: str) -> None:
    assert len({json.dumps(service[part]) for service in airflow_services().values()}) == 1


@pytest.mark.parametrize("name", ["AIRFLOW__GEMINIIMG__ROOT", "AIRFLOW_CONN_GEMINIIMG_DEFAULT"])
def test_all_processes_of_compose_have_one_root_and_one_connection(name: str) -> None:
    assert len({service["environment"][name] for service in airflow_services().values()}) == 1


def test_the_default_root_of_compose_is_a_volume_that_the_image_has_a_folder_for() -> None:
    default = "file:///opt/geminiimg"
    assert airflow_services()["airflow-worker"]["environment"]["AIRFLOW__GEMINIIMG__ROOT"].endswith(f":-{default}}}")
    assert f"geminiimg-root:{default.removeprefix('file://')}" in airflow_services()["airflow-worker"]["volumes"]
    assert "geminiimg-root" in compose()["volumes"]
    assert default.removeprefix("file://") in (FOLDER / "Dockerfile").read_text()


def test_no_secret_of_compose_is_in_the_file() -> None:
    literal = {
        (service, name)
        for service, name, value in environments()
        if SECRET.search(name) and not VARIABLE.search(str(value))
    }
    assert not literal


def test_each_secret_of_compose_is_set_by_the_page() -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", (FOLDER / "docker-compose.yaml").read_text()))
    page = (FOLDER / "docker-compose.md").read_text()
    assert needed == set(re.findall(r"^(\w+)=", page, re.MULTILINE))


def test_the_values_give_all_pods_one_image_one_root_and_the_secret_of_the_page() -> None:
    loaded = values()
    assert loaded["defaultAirflowTag"].startswith(loaded["airflowVersion"])
    assert [each["name"] for each in loaded["env"]].count("AIRFLOW__GEMINIIMG__ROOT") == 1
    assert all(isinstance(each["value"], str) for each in loaded["env"])
    [secret] = loaded["secret"]
    page = (FOLDER / "kubernetes.md").read_text()
    assert secret["envName"] == "AIRFLOW_CONN_GEMINIIMG_DEFAULT"
    assert f"generic {secret['secretName']} " in page
    assert f"--from-literal={secret['secretKey']}=" in page


def test_the_pods_that_use_the_root_have_its_credentials() -> None:
    accounts = [values()[name]["serviceAccount"] for name in ("workers", "triggerer", "apiServer")]
    assert accounts[0]["annotations"]
    assert accounts == accounts[:1] * 3


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_each_setting_that_a_deployment_page_names_exists(path: Any) -> None:
    named = {(first or second).lower() for first, second in OPTION.findall(path.read_text())}
    assert named <= set(get_provider_info()["config"]["geminiimg"]["options"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.name)
def test_each_connection_on_a_deployment_page_is_valid_json_with_a_placeholder_for_the_key(path: Any) -> None:
    for text in re.findall(r"\{\"conn_type\".*\}\}", path.read_text()):
        connection = json.loads(text)
        assert connection["conn_type"] == "geminiimg"
        assert connection["password"] in ("YOUR-API-KEY", "$ONEMIN_API_KEY")
