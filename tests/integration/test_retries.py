"""Attempts that fail part-way, and the attempts after them: images in storage = submissions paid for.

What becomes of the money in each failure is a row of the failure matrix (``matrix/``). Here is what is no row.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    NotSentError,
    OutcomeUnknownError,
)
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import read_submission

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run, Task

pytestmark = pytest.mark.usefixtures("local_root")


@pytest.fixture(params=[False, True], ids=["waiting", "deferred"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"deferrable": request.param, "poll_interval": 0.02}


def one_task(conn_id: str, mode: dict[str, Any], **more: Any) -> DAG:
    with DAG("one", schedule=None) as dag:
        GeminiImageGenerateOperator(
            **{"task_id": "made", "prompt": "a red fox", "geminiimg_conn_id": conn_id, **mode, **more}
        )
    return dag


def failed_with(run: Run, kind: type[BaseException]) -> Task:
    made = run.task("made")
    assert made.state == "failed", made.log
    cause = made.error.__cause__ if isinstance(made.error, AirflowFailException) else made.error
    assert isinstance(cause, kind), made.log
    return made


def landed(run: Run, sandbox: Sandbox, submissions: int = 1) -> dict[str, Any]:
    """The manifest of a run that ended well, with its image in storage and so many submissions paid for."""
    made = run.task("made")
    assert made.state == "success", made.log
    assert len(sandbox.ledger()) == submissions
    manifest: dict[str, Any] = made.value
    path = Path(manifest["images"][0]["uri"].removeprefix("file://"))
    assert read_submission(path.read_bytes()) == sandbox.ledger()[-1]["number"]
    return manifest


def route(conn_id: str, name: str) -> str:
    return f"{conn_id}.{name}"


def test_a_failure_before_the_intent_is_retried_and_pays_once(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode, output_path=str(tmp_path / "out")))
    assert run.task("made").state == "failed"
    assert sandbox.ledger() == []
    (tmp_path / "out").unlink()
    landed(run.retry(), sandbox)


def test_a_trigger_that_loses_contact_leaves_the_rest_to_the_worker(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    sandbox.faults(route=route(geminiimg_conn_id, "status"), status=502, times=5)
    run = airflow.run_dag(one_task(geminiimg_conn_id, {"deferrable": True, "poll_interval": 0.02}))
    landed(run, sandbox)
    assert run.task("made").events[0]["status"] == "lost"


def test_airflow_itself_does_not_retry_an_unknown_outcome(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    sandbox.faults(route=route(geminiimg_conn_id, "submit"), drop=True, charge="after")
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode, retries=3))
    assert 'on_unknown="resubmit"' in str(failed_with(run, OutcomeUnknownError).error)
    assert run.task("made").try_number == 1


def test_a_resubmission_whose_outcome_is_unknown_too_is_not_resubmitted_before_another_clear(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    sandbox.faults(route=route(geminiimg_conn_id, "submit"), drop=True, times=2)
    dag = one_task(geminiimg_conn_id, mode, on_unknown="resubmit")
    run = airflow.run_dag(dag)
    failed_with(run, OutcomeUnknownError)
    run.retry()
    failed_with(run, OutcomeUnknownError)
    run.retry()
    failed_with(run, OutcomeUnknownError)
    assert sandbox.ledger() == []
    landed(run.clear("made"), sandbox)


def test_a_wrong_key_fails_again_on_a_retry_without_a_call_and_submits_after_a_clear(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Any, mode: dict[str, Any]
) -> None:
    extra = {"gateway": "1min"}
    connect("onemin", host=sandbox.onemin_url, password="bad-key", extra=extra)
    run = airflow.run_dag(one_task("onemin", mode))
    failed_with(run, AuthenticationError)
    connect("onemin", host=sandbox.onemin_url, password="good-key", extra=extra)
    failed_with(run.retry(), AuthenticationError)
    assert len(sandbox.calls("onemin.submit")) == 1
    landed(run.clear("made"), sandbox)


def test_a_crashed_trigger_is_deferred_again_twice_and_then_waited_for_in_the_worker(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    mode = {"deferrable": True, "poll_interval": 0.02}
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode), triggers=["crash", "crash", "crash"])
    landed(run, sandbox)
    assert len(run.task("made").triggers) == 3


def test_a_trigger_that_nobody_runs_is_made_up_for_by_the_worker(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    mode = {"deferrable": True, "poll_interval": 0.02}
    landed(airflow.run_dag(one_task(geminiimg_conn_id, mode), triggers=["timeout"]), sandbox)


def test_a_resumed_task_lands_its_job_even_without_its_record_and_says_why(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

    real = GeminiImageJobTrigger.run
    root = Path(local_root.removeprefix("file://"))

    async def run_then_lose_the_ledger(self: GeminiImageJobTrigger) -> Any:
        async for event in real(self):
            (root / "ledger").rename(root / "lost")
            yield event

    monkeypatch.setattr(GeminiImageJobTrigger, "run", run_then_lose_the_ledger)
    run = airflow.run_dag(one_task(geminiimg_conn_id, {"deferrable": True, "poll_interval": 0.02}))
    landed(run, sandbox)
    assert "is not in the ledger" in run.log


def test_the_recorded_request_wins_on_a_retry_and_the_log_says_what_differs(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    sandbox.faults(route="download", status=500, times=3)
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode))
    run.retry(dag=one_task(geminiimg_conn_id, mode, prompt="a blue fox", aspect_ratio="16:9"))
    assert landed(run, sandbox)["requested"] == {"resolution": "1K"}
    assert "prompt, aspect_ratio" in run.log


def test_a_retry_collects_what_was_paid_for_even_where_the_templates_now_render_to_nonsense(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    sandbox.faults(route="download", status=500, times=3)
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode))
    landed(run.retry(dag=one_task(geminiimg_conn_id, mode, prompt="{{ '' }}")), sandbox)


def test_a_connection_that_is_gone_after_the_payment_does_not_make_a_retry_say_that_nothing_was_spent(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    mode: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sandbox.faults(route="download", status=500, times=3)
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode))
    with monkeypatch.context() as patch:
        patch.delenv(f"AIRFLOW_CONN_{geminiimg_conn_id.upper()}")
        assert "Money may have been spent." in str(failed_with(run.retry(), BadRequestError).error)
    landed(run.retry(), sandbox)


def test_a_clear_returns_what_has_landed_at_no_cost(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode))
    first = landed(run, sandbox)
    calls = len(sandbox.calls())
    second = landed(run.clear("made"), sandbox)
    assert second == {**first, "reused": True}
    assert len(sandbox.calls()) == calls


def test_a_clear_with_another_prompt_buys_another_image_beside_the_first(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode))
    first = landed(run, sandbox)
    second = landed(run.clear("made", dag=one_task(geminiimg_conn_id, mode, prompt="a blue fox")), sandbox, 2)
    assert ": prompt; the new request is sent" in run.log
    assert "/made." in first["images"][0]["uri"]
    assert "/made-2." in second["images"][0]["uri"]
    assert Path(first["images"][0]["uri"].removeprefix("file://")).exists()


def test_a_clear_with_regenerate_buys_again_once_and_a_retry_after_it_does_not(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    dag = one_task(geminiimg_conn_id, mode, on_clear="regenerate")
    run = airflow.run_dag(dag)
    landed(run, sandbox)
    sandbox.faults(route="download", status=500, times=3)
    run.clear("made")
    assert run.task("made").state == "failed"
    landed(run.retry(), sandbox, 2)


def test_a_clear_with_another_file_name_copies_the_image_at_no_cost(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode))
    first = landed(run, sandbox)
    second = landed(run.clear("made", dag=one_task(geminiimg_conn_id, mode, file_name="fox")), sandbox)
    assert second["reused"] is True
    assert "/fox." in second["images"][0]["uri"]
    assert second["images"][0]["sha256"] == first["images"][0]["sha256"]


def test_a_dag_run_that_is_made_again_under_the_same_id_finds_its_image(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    landed(airflow.run_dag(one_task(geminiimg_conn_id, mode), run_id="same"), sandbox)
    airflow.close()
    assert landed(airflow.run_dag(one_task(geminiimg_conn_id, mode), run_id="same"), sandbox)["reused"] is True


def test_a_dag_run_that_is_made_again_with_another_prompt_buys_it_and_its_retries_do_not_ask_again(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    landed(airflow.run_dag(one_task(geminiimg_conn_id, mode), run_id="same"), sandbox)
    airflow.close()
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode, prompt="a blue fox"), run_id="same")
    landed(run, sandbox, 2)
    airflow.close()
    run = airflow.run_dag(one_task(geminiimg_conn_id, mode, prompt="a blue fox"), run_id="same")
    assert landed(run, sandbox, 2)["reused"] is True
    assert landed(run.retry("made", dag=one_task(geminiimg_conn_id, mode, prompt="a green fox")), sandbox, 2)["reused"]
    landed(run.clear("made", dag=one_task(geminiimg_conn_id, mode, prompt="a green fox")), sandbox, 3)


def test_a_task_that_was_told_to_stop_before_it_began_buys_nothing_until_its_retry(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    told: list[Any] = []

    def tell(context: Any) -> None:
        if not told:
            told.append(context["ti"].try_number)
            context["task"].on_kill()

    run = airflow.run_dag(one_task(geminiimg_conn_id, mode, pre_execute=tell))
    assert told == [1]
    failed_with(run, NotSentError)
    assert sandbox.ledger() == []
    landed(run.retry(), sandbox)


def test_a_mapped_task_pays_once_for_each_of_its_images_also_when_some_fail(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    with DAG("mapped", schedule=None) as dag:

        @task
        def prompts() -> list[str]:
            return ["one fox", "two foxes", "three foxes"]

        GeminiImageGenerateOperator.partial(task_id="made", geminiimg_conn_id=geminiimg_conn_id, **mode).expand(
            prompt=prompts()
        )
    sandbox.faults(route="download", status=500, times=3)
    run = airflow.run_dag(dag)
    assert sorted(made.state or "" for made in run.tasks("made")) == ["failed", "success", "success"]
    run.retry()
    assert [made.state for made in run.tasks("made")] == ["success"] * 3
    assert sorted(entry["prompt"] for entry in sandbox.ledger()) == ["one fox", "three foxes", "two foxes"]
