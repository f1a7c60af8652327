"""The harness itself: each thing that other tests build on is shown here with throw-away operators."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.triggers.temporal import DateTimeTrigger, TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, task
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout

if TYPE_CHECKING:
    from tests.harness.inprocess import AirflowHarness


class Counter(BaseOperator):
    """Counts its executions in the task state store and fails until it has run `failures` times."""

    def __init__(self, failures: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.failures = failures

    def execute(self, context: Any) -> dict[str, Any]:
        store, ti = context["task_state_store"], context["ti"]
        runs = (store.get("runs") or 0) + 1
        store.set("runs", runs)
        self.log.info("run %s of try %s", runs, ti.try_number)
        if runs <= self.failures:
            raise ValueError(f"failure {runs}")
        return {"runs": runs, "try": ti.try_number, "max_tries": ti.max_tries}


class Deferring(BaseOperator):
    """Defers once; its ending shows what came back."""

    def __init__(self, seconds: float = 0.01, timeout: float | None = None, catch: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds, self.timeout, self.catch = seconds, timeout, catch

    def execute(self, context: Any) -> None:
        self._defer("defer kwargs arrive")

    def _defer(self, note: str) -> None:
        self.defer(
            trigger=TimeDeltaTrigger(dt.timedelta(seconds=self.seconds)),
            method_name="done",
            kwargs={"note": note},
            timeout=None if self.timeout is None else dt.timedelta(seconds=self.timeout),
        )

    def done(self, context: Any, event: Any, note: str) -> str:
        return f"{type(event).__name__}: {note}"

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Any) -> Any:
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralError, TaskDeferralTimeout) as error:
            if not self.catch:
                raise
            self._defer(f"after {type(error).__name__}")


class Poked(BaseSensorOperator):
    """True at the third poke."""

    def poke(self, context: Any) -> bool:
        store = context["task_state_store"]
        store.set("pokes", (store.get("pokes") or 0) + 1)
        return bool(store.get("pokes") >= 3)


def test_a_run_gives_state_value_try_number_and_log(airflow: AirflowHarness) -> None:
    with DAG("plain") as dag:
        Counter(task_id="count")
    run = airflow.run_dag(dag, run_id="my::run")
    count = run.task("count")
    assert (run.state, count.state, count.try_number, count.max_tries) == ("success", "success", 1, 0)
    assert count.value == {"runs": 1, "try": 1, "max_tries": 0}
    assert "run 1 of try 1" in count.log
    assert run.run_id == "my::run"


def test_a_failure_gives_the_exception_and_stops_what_comes_after(airflow: AirflowHarness) -> None:
    with DAG("failing") as dag:
        Counter(task_id="count", failures=1) >> Counter(task_id="next")
    run = airflow.run_dag(dag)
    assert run.state == "failed"
    assert isinstance(run.task("count").error, ValueError)
    assert "failure 1" in run.task("count").log
    assert run.task("next").state == "upstream_failed"


def test_retries_of_the_task_itself_run_by_themselves(airflow: AirflowHarness) -> None:
    with DAG("own_retries") as dag:
        count = Counter(task_id="count", failures=2, retries=2, retry_delay=dt.timedelta(0))
    done = airflow.run_task(count)
    assert (done.state, done.try_number, done.max_tries, done.executions) == ("success", 3, 2, 3)
    assert done.error is None
    assert dag.dag_id == "own_retries"


def test_a_retry_keeps_max_tries_and_the_state_store_and_runs_what_was_stuck(airflow: AirflowHarness) -> None:
    with DAG("retried") as dag:
        Counter(task_id="count", failures=2) >> Counter(task_id="next")
    run = airflow.run_dag(dag)
    run.retry()
    assert (run.state, run.task("count").try_number, run.task("count").max_tries) == ("failed", 2, 0)
    run.retry()
    assert run.state == "success"
    assert run.task("count").value == {"runs": 3, "try": 3, "max_tries": 0}
    assert run.task("next").try_number == 1


def test_a_clear_grows_max_tries_and_keeps_the_state_store(airflow: AirflowHarness) -> None:
    with DAG("cleared") as dag:
        Counter(task_id="count", retries=1, retry_delay=dt.timedelta(0)) >> Counter(task_id="other")
    run = airflow.run_dag(dag)
    run.clear("count")
    assert run.task("count").value == {"runs": 2, "try": 2, "max_tries": 2}
    assert run.task("other").value["runs"] == 1
    run.clear()
    assert run.task("count").value == {"runs": 3, "try": 3, "max_tries": 3}
    assert run.task("other").value == {"runs": 2, "try": 2, "max_tries": 1}


def test_a_retry_after_a_clear_keeps_what_the_clear_left(airflow: AirflowHarness) -> None:
    with DAG("cleared_retried") as dag:
        Counter(task_id="count", failures=2)
    run = airflow.run_dag(dag).clear().retry()
    assert run.task("count").value == {"runs": 3, "try": 3, "max_tries": 1}


def test_the_dag_may_be_edited_between_attempts(airflow: AirflowHarness) -> None:
    def build(failures: int) -> DAG:
        with DAG("edited") as dag:
            Counter(task_id="count", failures=failures)
        return dag

    run = airflow.run_dag(build(9))
    assert run.retry(dag=build(0)).task("count").value["max_tries"] == 0
    assert run.clear(dag=build(9)).state == "failed"
    assert run.clear(dag=build(0)).task("count").value == {"runs": 4, "try": 4, "max_tries": 3}


def test_a_deferred_task_is_resumed_by_its_trigger_with_its_kwargs(airflow: AirflowHarness) -> None:
    with DAG("deferred"):
        op = Deferring(task_id="wait")
    done = airflow.run_task(op)
    assert done.state == "success"
    assert done.value.endswith("defer kwargs arrive")
    assert (done.try_number, done.executions, len(done.events)) == (1, 2, 1)
    assert done.triggers[0][0].endswith("TimeDeltaTrigger") or done.triggers[0][0].endswith("DateTimeTrigger")


def test_a_crashed_trigger_reaches_resume_execution(airflow: AirflowHarness) -> None:
    with DAG("crashed") as dag:
        Deferring(task_id="plain")
        Deferring(task_id="catching", catch=True)
    run = airflow.run_dag(dag, triggers=["crash", "crash", "crash"])
    assert isinstance(run.task("plain").error, TaskDeferralError)
    assert run.task("catching").value.endswith("after TaskDeferralError")
    assert len(run.task("catching").triggers) == 3


def test_a_deferral_times_out_by_order_and_by_itself(airflow: AirflowHarness) -> None:
    with DAG("late") as dag:
        Deferring(task_id="ordered", timeout=60)
        Deferring(task_id="real", seconds=30, timeout=0.2)
    run = airflow.run_dag(dag, triggers=["timeout"])
    assert isinstance(run.task("ordered").error, TaskDeferralTimeout)
    assert isinstance(run.task("real").error, TaskDeferralTimeout)


def test_a_trigger_that_raises_fails_the_task_with_its_traceback(airflow: AirflowHarness) -> None:
    class Broken(BaseOperator):
        def execute(self, context: Any) -> None:
            trigger = DateTimeTrigger(dt.datetime.now(dt.timezone.utc))
            trigger.serialize = lambda: ("tests.harness.no.such.Trigger", {})  # type: ignore[method-assign]
            self.defer(trigger=trigger, method_name="execute")

    with DAG("broken"):
        op = Broken(task_id="broken")
    assert isinstance(airflow.run_task(op).error, TaskDeferralError)


def test_a_sensor_is_poked_and_rescheduled(airflow: AirflowHarness) -> None:
    with DAG("sensing") as dag:
        Poked(task_id="poke", poke_interval=0.01)
        Poked(task_id="reschedule", mode="reschedule", poke_interval=0.01)
    run = airflow.run_dag(dag)
    assert run.state == "success"
    assert (run.task("poke").executions, run.task("reschedule").executions) == (1, 3)
    assert run.task("reschedule").try_number == 1


def test_mapped_tasks_run_once_an_element_and_hand_their_values_on(airflow: AirflowHarness) -> None:
    with DAG("mapped") as dag:

        @task
        def numbers() -> list[int]:
            return [0, 1]

        @task
        def total(runs: list[Any]) -> int:
            return sum(each["runs"] for each in runs)

        total(Counter.partial(task_id="count").expand(failures=numbers()).output)
    run = airflow.run_dag(dag)
    assert [each.state for each in run.tasks("count")] == ["success", "failed"]
    run.retry()
    assert run.task("total").value == 3
    assert run.task("count", 1).try_number == 2


def test_conf_connections_and_logical_date_reach_the_task(airflow: AirflowHarness, connect: Any) -> None:
    connect("somewhere", host="http://127.0.0.1:1", password="k", extra={"gateway": "1min"})

    with DAG("contextual") as dag:

        @task
        def look(**context: Any) -> list[Any]:
            from airflow.sdk import Connection

            conn = Connection.get("somewhere")
            return [context["dag_run"].conf["a"], context["ds"], conn.host, conn.extra_dejson["gateway"]]

        look()
    day = dt.datetime(2031, 5, 4, tzinfo=dt.timezone.utc)
    run = airflow.run_dag(dag, conf={"a": 1}, logical_date=day)
    assert run.task("look").value == [1, "2031-05-04", "http://127.0.0.1:1", "1min"]


def test_every_test_starts_without_runs(airflow: AirflowHarness) -> None:
    for _ in range(2):
        with DAG("plain") as dag:
            Counter(task_id="count")
        assert airflow.run_dag(dag).task("count").value["runs"] == 1
        airflow.close()


def test_a_bucket_is_new_and_found_by_boto3_alone(s3: str) -> None:
    import boto3

    assert s3.startswith("s3://")
    assert boto3.client("s3").list_objects_v2(Bucket=s3.removeprefix("s3://"))["KeyCount"] == 0


def test_the_sandbox_is_empty_at_the_start_of_a_test(sandbox: Any) -> None:
    assert not sandbox.ledger()


def test_airflow_lives_in_a_folder_of_its_own(airflow: AirflowHarness) -> None:
    import os

    from airflow.configuration import conf

    assert conf.get("database", "sql_alchemy_conn").endswith(f"{os.environ['AIRFLOW_HOME']}/airflow.db")
    assert Path(os.environ["AIRFLOW_HOME"]) not in (Path.home() / "airflow", Path.cwd())
