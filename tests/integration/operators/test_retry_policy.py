"""`IMAGE_RETRY_POLICY` in a real Airflow: what it retries, how soon, and that it pays what plain `retries` pay."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import DAG, RetryAction, TriggerRule, task
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.session import create_session

from airflow_provider_geminiimg import IMAGE_RETRY_POLICY
from airflow_provider_geminiimg.exceptions import KINDS, Billed, GeminiImageError, RateLimitedError
from airflow_provider_geminiimg.operators import retry_policy
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sandbox import read_submission
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import AIRFLOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run, Task

pytestmark = pytest.mark.usefixtures("local_root")

RETRIES = 2
AT_ONCE = {"Retry-After": "0"}


def decision(error: BaseException) -> Any:
    return IMAGE_RETRY_POLICY.evaluate(exception=error, try_number=1, max_tries=3, context=None)


# The decision


@pytest.mark.parametrize("billed", Billed)
@pytest.mark.parametrize("kind", KINDS)
def test_every_outcome_of_the_tree_is_retried_if_it_says_so_and_fails_at_once_if_not(kind: str, billed: Billed) -> None:
    by_default = KINDS[kind]("It happened.")
    assert (decision(by_default).action is RetryAction.RETRY) == KINDS[kind].default_retryable
    again = decision(KINDS[kind]("It happened.", billed=billed, retryable=True))
    assert (again.action, again.retry_delay) == (RetryAction.RETRY, retry_policy.DELAYS[billed])
    over = decision(KINDS[kind]("It happened.", billed=billed, retryable=False))
    assert (over.action, over.retry_delay) == (RetryAction.FAIL, None)


def test_what_waits_at_the_gateway_is_fetched_sooner_than_anything_is_sent_again() -> None:
    assert retry_policy.DELAYS[Billed.YES] < min(retry_policy.DELAYS[Billed.NO], retry_policy.DELAYS[Billed.UNKNOWN])


@pytest.mark.parametrize(("told", "obeyed"), [(0.0, 0), (7.5, 7.5), (86400.0, 3600), (1e300, 3600)])
def test_the_gateway_says_when_to_come_back_up_to_an_hour(told: float, obeyed: float) -> None:
    assert decision(RateLimitedError("slow down", retry_after=told)).retry_delay == timedelta(seconds=obeyed)


def test_an_exception_that_is_no_outcome_is_left_to_airflow() -> None:
    assert decision(ValueError("no outcome")).action is RetryAction.DEFAULT


def test_what_airflow_keeps_as_the_reason_repeats_nothing_that_a_gateway_said() -> None:
    for retryable in (True, False):
        error = GeminiImageError("a message", gateway_message="the prompt", details="a link", retryable=retryable)
        assert decision(error).reason.startswith("error: ")
        assert not [said for said in ("a message", "the prompt", "a link") if said in decision(error).reason]


# In Airflow


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong with the first submit.

    :param tries: attempts with the policy, and with plain `retries` alone.
    :param paid: submissions that are charged for, with and without.
    """

    fault: dict[str, Any]
    tries: tuple[int, int]
    state: str
    paid: int
    key: str = "sandbox-key"
    gateways: tuple[str, ...] = ("1min", "apimaster")
    more: dict[str, Any] = field(default_factory=dict)


ALL = RETRIES + 1
CASES = {
    "a wrong key": Case({}, (1, ALL), "failed", 0, key="bad-key"),
    "no balance": Case({"status": 402, "body": {"message": "no credit"}}, (1, ALL), "failed", 0),
    "refused content": Case({"outcome": "refused"}, (1, ALL), "failed", 0, gateways=("apimaster",)),
    "no image": Case({"outcome": "no_image"}, (1, ALL), "failed", 1),
    "no channel": Case({"status": 503, "headers": AT_ONCE}, (2, 2), "success", 1, gateways=("apimaster",)),
    "a provider that is busy": Case(
        {"status": 400, "headers": AT_ONCE, "body": {"errorCode": "EXTERNAL_API_RESPONSE_WITH_ERROR"}},
        (2, 2), "success", 1, gateways=("1min",),
    ),
    "a lost answer": Case({"drop": True, "charge": "after"}, (1, 1), "failed", 1),
    "an answer that says nothing": Case({"status": 500, "body": "<html></html>"}, (1, 1), "failed", 0),
    "a bad request": Case({}, (1, 1), "failed", 0, more={"aspect_ratio": "{{ '5:1' }}"}),
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["waiting", "deferred"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"deferrable": request.param, "poll_interval": 0.02}


def retried(conn_id: str, *, policy: bool, **more: Any) -> DAG:
    with DAG("retried", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made",
            prompt="a red fox",
            geminiimg_conn_id=conn_id,
            retries=RETRIES,
            retry_delay=timedelta(0),
            **({"retry_policy": IMAGE_RETRY_POLICY} if policy else {}),
            **more,
        )
    return dag


def history(run: Run) -> list[tuple[float | None, str | None]]:
    """Airflow's note on each try before the last: after how many seconds the next one was due, and why."""
    with create_session() as session:
        if AIRFLOW >= (3, 4):  # every try has a task instance, of which one is current
            rows = session.query(TaskInstance).execution_options(include_all_attempts=True).filter_by(working_set=None)
        else:
            from airflow.models.taskinstancehistory import TaskInstanceHistory

            rows = session.query(TaskInstanceHistory)
        ended = rows.filter_by(dag_id=run.dag.dag_id, run_id=run.run_id, task_id="made").order_by("try_number")
        return [(row.retry_delay_override, row.retry_reason) for row in ended]


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "plain retries"])
@pytest.mark.parametrize(
    ("name", "gateway"), [(name, gateway) for name, case in CASES.items() for gateway in case.gateways]
)
def test_the_policy_stops_where_no_retry_helps_and_pays_what_plain_retries_pay(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str],
    mode: dict[str, Any], name: str, gateway: str, policy: bool,
) -> None:  # fmt: skip
    case = CASES[name]
    conn_id = connect("gateway", **sandbox.connection(gateway, key=case.key, requests_per_minute=100_000))
    route = "onemin.submit" if gateway == "1min" else "apimaster.submit"
    if case.fault:
        sandbox.faults(route=route, **case.fault)
    run = airflow.run_dag(retried(conn_id, policy=policy, **mode, **case.more))
    made = run.task("made")
    assert (made.state, made.try_number) == (case.state, case.tries[0 if policy else 1]), made.log
    assert sum(entry["charged"] for entry in sandbox.ledger()) == case.paid
    assert len(sandbox.calls(route)) <= 2, "a retry that can't help sends nothing"


def test_a_retry_waits_as_long_as_the_gateway_asked_and_airflow_says_why(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=503, headers={"Retry-After": "0.25"})
    run = airflow.run_dag(retried(apimaster, policy=True, poll_interval=0.02))
    assert run.task("made").state == "success"
    assert history(run) == [(0.25, "upstream_failed: a retry can help")]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was paid for is fetched without the usual delay."""
    monkeypatch.setattr(retry_policy, "DELAYS", {**retry_policy.DELAYS, Billed.YES: timedelta(seconds=0.01)})


@pytest.mark.usefixtures("at_once")
def test_what_was_paid_for_is_fetched_again_and_not_bought_again(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    sandbox.faults(route="download", status=503, times=3)
    run = airflow.run_dag(retried(geminiimg_conn_id, policy=True, output_path=str(tmp_path / "out"), **mode))
    made: Task = run.task("made")
    assert (made.state, made.try_number) == ("success", 2), made.log
    assert history(run) == [(0.01, "upstream_failed: a retry can help")]
    [image] = (tmp_path / "out").glob("*.png")
    assert [read_submission(image.read_bytes())] == [entry["number"] for entry in sandbox.ledger()]


@pytest.mark.usefixtures("at_once")
def test_mapped_tasks_and_the_sensor_take_the_policy_too(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=401)
    sandbox.faults(route="download", status=503, times=3)
    with DAG("mapped", schedule=None, default_args={"retries": RETRIES, "retry_policy": IMAGE_RETRY_POLICY}) as dag:
        GeminiImageGenerateOperator.partial(task_id="refused", geminiimg_conn_id=apimaster).expand(prompt=["a fox"])
        order = GeminiImageSubmitOperator(task_id="order", prompt="a boat", geminiimg_conn_id=apimaster)
        GeminiImageJobSensor(task_id="made", job=order.output, poke_interval=0.05)
        dag.get_task("refused") >> order
        order.trigger_rule = TriggerRule.ALL_DONE
    run = airflow.run_dag(dag)
    assert [(each.state, each.try_number) for each in run.tasks("refused")] == [("failed", 1)]
    assert (run.task("made").state, run.task("made").try_number) == ("success", 2)
    assert len(sandbox.ledger()) == 1


def test_a_task_of_another_kind_keeps_its_own_retries(airflow: AirflowHarness) -> None:
    with DAG("other", schedule=None) as dag:

        @task(retries=RETRIES, retry_delay=timedelta(0), retry_policy=IMAGE_RETRY_POLICY)
        def made() -> None:
            raise ValueError("no outcome")

        made()
    assert airflow.run_dag(dag).task("made").try_number == ALL


def test_a_dag_with_the_policy_is_stored_as_any_other() -> None:
    with DAG("stored", schedule=None, default_args={"retry_policy": IMAGE_RETRY_POLICY}) as dag:
        GeminiImageGenerateOperator(task_id="made", prompt="a fox")
        GeminiImageGenerateOperator.partial(task_id="many").expand(prompt=["a fox"])
    stored = json.loads(json.dumps(DagSerialization.serialize_dag(dag)))
    again = DagSerialization.deserialize_dag(stored)
    assert sorted(again.task_dict) == ["made", "many"]
    assert again.task_dict["made"].has_retry_policy
