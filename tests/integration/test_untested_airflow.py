"""An Airflow that is newer than every tested one: one warning in the log of a task, and nothing is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg import GeminiImageGenerateOperator, _compat

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    _compat.warn_if_untested.cache_clear()
    yield
    _compat.warn_if_untested.cache_clear()


def two_images(conn_id: str) -> DAG:
    with DAG("untested", schedule=None) as dag:
        for name in ("fox", "owl"):
            GeminiImageGenerateOperator(task_id=name, prompt=f"a {name}", geminiimg_conn_id=conn_id, poll_interval=0.05)
    return dag


@pytest.mark.parametrize("version", ["3.10.0.dev0", "4.0.0rc1"])
def test_a_newer_airflow_is_warned_of_once_when_a_task_runs_and_every_task_runs(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    onemin: str,
    local_root: str,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("airflow.__version__", version)
    dag = two_images(onemin)
    assert not caplog.text, "parsing a DAG warns of nothing"
    run = airflow.run_dag(dag)
    assert [task.state for task in run.tasks()] == ["success", "success"]
    assert len(sandbox.ledger()) == 2
    newest = _compat.TESTED_AIRFLOWS[-1]
    assert caplog.text.count(f"Airflow {version} is newer than {newest}") == 1


@pytest.mark.parametrize("version", [*(f"{minor}.7" for minor in _compat.TESTED_AIRFLOWS), "3.4.0b2"])
def test_a_tested_airflow_is_not_warned_of(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("airflow.__version__", version)
    _compat.warn_if_untested()
    assert not caplog.text
