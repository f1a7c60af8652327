"""A ledger that was moved away: a task that is run again buys nothing, also after Airflow forgot the task's state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.variable import Variable
from airflow.sdk import DAG
from airflow.sdk.api.client import VariableOperations
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.utils.session import create_session

from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

MOVED = "There is no root.json under"


@pytest.fixture(params=["single", "batch"])
def dag(request: pytest.FixtureRequest, geminiimg_conn_id: str) -> DAG:
    usual: dict[str, Any] = {"geminiimg_conn_id": geminiimg_conn_id, "poll_interval": 0.02, "resolution": "512"}
    with DAG("moved", schedule=None) as dag:
        if request.param == "single":
            GeminiImageGenerateOperator(task_id="made", prompt="a red fox", **usual)
        else:
            GeminiImageBatchOperator(task_id="made", requests=["a red fox", "a grey wolf"], **usual)
    return dag


def forget_task_state() -> None:
    """What Airflow 3.4 does at a Clear, unless it is told to keep the state."""
    with create_session() as session:
        session.query(TaskStateStoreModel).delete()


def move_away(root: str, to: str = "moved") -> Path:
    path = Path(root.removeprefix("file://"))
    return path.rename(path.with_name(to))


def refused(run: Run) -> str:
    made = run.task("made")
    assert made.state == "failed", made.log
    return made.log


def test_a_cleared_task_buys_nothing_if_the_ledger_was_moved_away(
    airflow: AirflowHarness, sandbox: Sandbox, dag: DAG, local_root: str
) -> None:
    run = airflow.run_dag(dag)
    bought = len(sandbox.ledger())
    assert run.state == "success"
    moved = move_away(local_root)
    forget_task_state()
    log = refused(run.clear())
    assert MOVED in log
    assert "delete Airflow's Variable 'geminiimg_root_" in log
    assert len(sandbox.ledger()) == bought
    if Path(local_root.removeprefix("file://")).exists():  # a batch has written its plan
        move_away(local_root, "refused")
    moved.rename(local_root.removeprefix("file://"))
    forget_task_state()
    assert run.clear().state == "success"
    assert len(sandbox.ledger()) == bought


def test_who_emptied_the_ledger_on_purpose_deletes_the_variable_and_buys_again(
    airflow: AirflowHarness, sandbox: Sandbox, dag: DAG, local_root: str
) -> None:
    run = airflow.run_dag(dag)
    bought = len(sandbox.ledger())
    move_away(local_root)
    forget_task_state()
    refused(run.clear())
    with create_session() as session:
        session.query(Variable).filter(Variable.key.startswith("geminiimg_root_")).delete(synchronize_session=False)
    forget_task_state()
    assert run.clear().state == "success"
    assert len(sandbox.ledger()) == 2 * bought


def test_a_new_run_starts_a_new_ledger_with_a_warning(
    airflow: AirflowHarness, sandbox: Sandbox, dag: DAG, local_root: str
) -> None:
    airflow.run_dag(dag)
    bought = len(sandbox.ledger())
    move_away(local_root)
    run = airflow.run_dag(dag, run_id="another")
    assert run.state == "success"
    assert "A new one is started" in run.log
    assert len(sandbox.ledger()) == 2 * bought


def test_a_worker_with_a_ledger_of_its_own_buys_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, dag: DAG, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.run_dag(dag)
    bought = len(sandbox.ledger())
    first = move_away(local_root)
    with create_session() as session:  # as if the other worker had been there first
        session.query(Variable).delete()
    airflow.run_dag(dag, run_id="another")
    assert len(sandbox.ledger()) == 2 * bought
    move_away(local_root, "second")
    first.rename(local_root.removeprefix("file://"))
    run = airflow.run_dag(dag, run_id="third")
    assert "is not the one that this Airflow used there before" in refused(run)
    assert len(sandbox.ledger()) == 2 * bought


def test_the_new_ledger_of_a_later_run_lets_no_earlier_run_buy_again(
    airflow: AirflowHarness, sandbox: Sandbox, dag: DAG, local_root: str
) -> None:
    first = airflow.run_dag(dag)
    bought = len(sandbox.ledger())
    move_away(local_root)
    second = airflow.run_dag(dag, run_id="another")
    assert len(sandbox.ledger()) == 2 * bought
    forget_task_state()
    assert "was started anew after this DAG run had begun" in refused(first.clear())
    forget_task_state()
    assert second.clear().state == "success"
    assert len(sandbox.ledger()) == 2 * bought


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "in place"])
def test_an_airflow_that_does_not_answer_is_not_an_airflow_without_a_copy(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    dag: DAG,
    local_root: str,
    monkeypatch: pytest.MonkeyPatch,
    moved: bool,
) -> None:
    run = airflow.run_dag(dag)
    bought = len(sandbox.ledger())
    if moved:
        move_away(local_root)
        forget_task_state()
    with monkeypatch.context() as failing:
        failing.setattr(VariableOperations, "get", lambda *_: ErrorResponse(error=ErrorType.GENERIC_ERROR))
        if moved:
            assert "which identifies the ledger, can't be used" in refused(run.clear())
        else:
            assert "can't be used" in refused(airflow.run_dag(dag, run_id="another"))
    assert len(sandbox.ledger()) == bought
