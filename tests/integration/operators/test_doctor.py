"""The doctor operator in a real Airflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.doctor import GeminiImageDoctorOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, TriggerFate


def doctor(**arguments: Any) -> DAG:
    with DAG("doctor", schedule=None, params={"conn_id": "apimaster"}) as dag:
        GeminiImageDoctorOperator(task_id="doctor", **arguments)
    return dag


def levels(found: list[dict[str, str]], check: str) -> set[str]:
    return {finding["level"] for finding in found if finding["check"] == check}


def test_the_task_returns_the_findings_and_what_the_triggerer_sees(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, apimaster: str, root: str, tmp_path: Path
) -> None:
    output = (tmp_path / "out").as_uri()
    task = airflow.run_dag(doctor(conn_ids=[onemin, "{{ params.conn_id }}"], output_paths=output), run_id="run").task(
        "doctor"
    )
    assert task.state == "success", task.log
    assert levels(task.value, "triggerer") == {"ok"}
    assert levels(task.value, "root") == {"ok"}
    assert levels(task.value, "root identity") == {"ok"}
    assert levels(task.value, "connection onemin") == levels(task.value, "connection apimaster") == {"ok"}
    assert levels(task.value, "URIs") == {"ok"}
    assert "The triggerer sees the same root." in task.log
    assert [path for path, _ in task.triggers] == [
        "airflow_provider_geminiimg.triggers.root_view.GeminiImageRootTrigger"
    ]
    assert [*open_store(root, AIRFLOW_OPENERS).keys("probe/")] == []
    assert sandbox.ledger() == []


@pytest.mark.parametrize("fate", ["timeout", "crash"])
def test_a_triggerer_that_does_not_answer_fails_the_task_without_a_retry(
    airflow: AirflowHarness, onemin: str, local_root: str, fate: TriggerFate
) -> None:
    run = airflow.run_dag(doctor(conn_ids=onemin, retries=2), run_id="run", triggers=[fate])
    task = run.task("doctor")
    assert (task.state, task.try_number) == ("failed", 1)
    assert "No triggerer has answered in time" in str(task.error)
    assert "connection onemin" in task.log


def test_a_root_that_cannot_be_opened_is_found_without_the_triggerer(
    airflow: AirflowHarness, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", "ftp://host/root")
    task = airflow.run_dag(doctor(conn_ids=onemin), run_id="run").task("doctor")
    assert task.state == "failed"
    assert task.triggers == []
    assert "cannot hold the ledger" in str(task.error)
    assert "connection onemin" in task.log


def test_the_default_connection_is_checked_if_none_is_named(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str], local_root: str
) -> None:
    connect("geminiimg_default", **sandbox.connection("1min"))
    task = airflow.run_dag(doctor(), run_id="run").task("doctor")
    assert levels(task.value, "connection geminiimg_default") == {"ok"}


@pytest.mark.parametrize("wrong", [{"conn_ids": [3]}, {"output_paths": [""]}, {"api_conn_id": 7}])
def test_a_wrong_argument_is_an_error_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        doctor(**wrong)
