"""`max_cost` of a batch: whatever leads to a purchase, no attempt buys for more; what costs nothing is not refused."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core.gateways import polling
from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus
from airflow_provider_geminiimg.core.gateways.connection import parse_connection
from airflow_provider_geminiimg.core.ledger.budget import Budgets
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.purchase import waiting
from airflow_provider_geminiimg.core.storage.local import LocalStore
from airflow_provider_geminiimg.exceptions import NotSentError, OverBudgetError
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

PROMPTS = ["a fox", "a wolf", "a bear"]
ITEM = Item("default", "many", "run", "made", -1)
ONE = "0.1"  # an image costs 0.0672 here


def batch(conn_id: str, prompts: Any = PROMPTS, dag_id: str = "many", **more: Any) -> DAG:
    with DAG(dag_id, schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="made", requests=list(prompts), geminiimg_conn_id=conn_id, resolution="512", poll_interval=0.05,
            **more,
        )  # fmt: skip
    return dag


def error_of(run: Run) -> BaseException:
    error = run.task("made").error
    assert error is not None, run.log
    return error.__cause__ or error if isinstance(error, AirflowFailException) else error


def counts(run: Run) -> dict[str, int]:
    return {status: count for status, count in run.task("made").value["counts"].items() if count}


@pytest.fixture
def vanishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that the gateway does not know is believed to be gone at once."""
    for module in (polling, waiting):
        monkeypatch.setattr(module, "VANISHED_GRACE", 0.0)


def started(airflow: AirflowHarness, sandbox: Sandbox, conn_id: str) -> Run:
    """A run whose jobs were paid for, and which the gateway then forgets."""
    sandbox.settings(latency=30)
    run = airflow.run_dag(batch(conn_id, timeout=0.3))
    assert len(sandbox.ledger()) == len(PROMPTS)
    sandbox.reset()
    return run


# Nothing gets past it


def test_a_run_made_again_that_regenerates_is_refused_as_a_whole(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    airflow.run_dag(batch(apimaster))
    airflow.close()
    run = airflow.run_dag(batch(apimaster, max_cost=ONE, on_clear="regenerate"))
    assert isinstance(error_of(run), OverBudgetError)
    assert len(sandbox.ledger()) == 3


def test_a_run_made_again_after_an_account_without_money_is_refused_as_a_whole(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=402, times=3)
    airflow.run_dag(batch(apimaster))
    airflow.close()
    run = airflow.run_dag(batch(apimaster, max_cost=ONE))
    assert isinstance(error_of(run), OverBudgetError)
    assert sandbox.ledger() == []


@pytest.mark.usefixtures("vanishing")
def test_jobs_that_vanish_while_they_are_waited_for_are_made_again_within_the_cap(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    run = started(airflow, sandbox, apimaster)
    run.retry("made", dag=batch(apimaster, max_cost=ONE, on_unknown="resubmit", timeout=30))
    assert len(sandbox.ledger()) == 1
    assert counts(run) == {"landed": 1, "failed": 2}
    assert "together with this attempt's earlier images, would cost 0.1344 USD; max_cost is 0.1 USD" in str(
        error_of(run)
    )


@pytest.mark.usefixtures("vanishing")
def test_jobs_noted_as_vanished_are_refused_as_a_whole(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    run = started(airflow, sandbox, apimaster)
    run.retry("made", dag=batch(apimaster, timeout=30))  # notes them
    run.clear("made", dag=batch(apimaster, max_cost=ONE, on_unknown="resubmit", timeout=30))
    assert isinstance(error_of(run), OverBudgetError)
    assert sandbox.ledger() == []


@pytest.mark.usefixtures("vanishing")
def test_what_is_under_way_is_collected_after_the_cap_was_reached(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    sandbox.settings(latency=1)
    run = airflow.run_dag(batch(apimaster, timeout=0.2))
    gone = {"code": "task_not_exist", "message": "task_not_exist"}
    sandbox.settings(latency=0)
    sandbox.faults(route="apimaster.status", status=404, body=gone)
    sandbox.faults(route="apimaster.status")  # of the image that is bought again
    sandbox.faults(route="apimaster.status", status=404, body=gone)
    run.retry(
        "made", dag=batch(apimaster, max_cost=ONE, on_unknown="resubmit", timeout=30, max_concurrency=1)
    )  # fmt: skip
    assert len(sandbox.ledger()) == 4
    assert counts(run) == {"landed": 2, "failed": 1}


async def test_what_turns_out_unpaid_is_given_back_to_the_attempt(tmp_path: Path) -> None:
    budgets = Budgets(LocalStore(str(tmp_path)), logging.getLogger())
    connection = parse_connection(conn_id="shop", password="key", extra={"gateway": "apimaster"})

    async def unpaid() -> JobStatus:
        raise NotSentError("no connection")

    async def paid() -> JobStatus:
        return JobStatus(JobState.RUNNING, job_id="job")

    async def buy(sending: Any) -> None:
        async with budgets.reserved(connection, ITEM, 60_000, Decimal("0.1")) as reservation:
            await reservation.spend(sending())

    for _ in range(2):
        with pytest.raises(NotSentError):
            await buy(unpaid)
    await buy(paid)
    with pytest.raises(OverBudgetError):
        await buy(paid)


async def test_what_is_being_sent_counts_before_its_answer(tmp_path: Path) -> None:
    budgets = Budgets(LocalStore(str(tmp_path)), logging.getLogger())
    connection = parse_connection(conn_id="shop", password="key", extra={"gateway": "apimaster"})
    async with budgets.reserved(connection, ITEM, 60_000, Decimal("0.1")):
        with pytest.raises(OverBudgetError):
            async with budgets.reserved(connection, ITEM, 60_000, Decimal("0.1")):
                pass


# What costs nothing is not refused


def test_images_that_an_older_record_has_are_returned_under_any_cap(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    run = airflow.run_dag(batch(apimaster))
    sandbox.faults(route="apimaster.submit", status=401, times=3)
    run.clear("made", dag=batch(apimaster, on_clear="regenerate"))
    assert run.state == "failed"
    run.clear("made", dag=batch(apimaster, max_cost="0.001"))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 3


def test_images_that_another_run_has_are_copied_under_any_cap(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    airflow.run_dag(batch(apimaster, reuse="dag"))
    run = airflow.run_dag(batch(apimaster, reuse="dag", max_cost="0.001"), run_id="next")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 3


def test_what_has_landed_goes_where_a_run_made_again_asks_though_the_cap_refuses_the_rest(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str, tmp_path: Path
) -> None:
    """The forecast looks at the same records before, and must not let them be this run's already."""
    airflow.run_dag(batch(apimaster))
    airflow.close()
    out = (tmp_path / "elsewhere").as_uri()
    run = airflow.run_dag(batch(apimaster, [*PROMPTS, "a lynx"], max_cost="0.001", output_path=out))
    assert isinstance(error_of(run), OverBudgetError)
    assert counts(run) == {"reused": 3, "failed": 1}
    assert len(list((tmp_path / "elsewhere").glob("*.png"))) == 3
    assert len(sandbox.ledger()) == 3
