"""The doctor asks a real triggerer and a real API server whether they see the same root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness import REPOSITORY
from tests.harness.live_airflow import LiveAirflow

SOURCE = """
from airflow.sdk import DAG

from airflow_provider_geminiimg import GeminiImageDoctorOperator

with DAG("doctor"):
    GeminiImageDoctorOperator(task_id="doctor", api_conn_id="airflow_api")
"""
ROOT = "AIRFLOW__GEMINIIMG__ROOT"


@pytest.mark.core
def test_a_component_with_another_root_is_found_and_the_finding_is_gone_when_it_has_the_same(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "doctor.py").write_text(SOURCE)
    with Sandbox() as sandbox:
        env = {
            "PYTHONPATH": str(REPOSITORY),
            "AIRFLOW_CONN_GEMINIIMG_DEFAULT": sandbox.connection_json("1min"),
            ROOT: (tmp_path / "root").as_uri(),
        }
        airflow = LiveAirflow(tmp_path / "airflow", dags, env, users={"ada": "ADMIN"})
        airflow.env["AIRFLOW_CONN_AIRFLOW_API"] = json.dumps(
            {"conn_type": "http", "host": airflow.url, "login": "ada", "password": "ada"}
        )
        with airflow:
            airflow.trigger("doctor", "same")
            assert airflow.wait("doctor", "same") == "success", airflow.task_log("doctor", "same", "doctor")
            findings = airflow.xcom("doctor", "same", "doctor")
            views = [each["message"] for each in findings if each["check"] in ("API server", "triggerer")]
            assert views == ["The API server sees the same root.", "The triggerer sees the same root."]

            airflow.kill("triggerer")
            airflow.spawn("triggerer", env={ROOT: (tmp_path / "other").as_uri()})
            airflow.trigger("doctor", "other")
            assert airflow.wait("doctor", "other") == "failed"
            assert "The triggerer sees another root" in airflow.task_log("doctor", "other", "doctor")
        assert sandbox.ledger() == []
