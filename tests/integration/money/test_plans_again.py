"""The plan of a batch after a Clear: it is this Clear's own, and what was paid for under another host name is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_geminiimg import _compat
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.sandbox import read_submission

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

FOX, WOLF, BEAR = "a red fox", "a grey wolf", "a brown bear"


class Batch:
    """A task with a batch, whose rows, arguments and connection change between its runs."""

    def __init__(self, airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, root: str, connect: Any) -> None:
        self.airflow = airflow
        self.sandbox = sandbox
        self.conn_id = conn_id
        self.root = Path(root.removeprefix("file://"))
        self._connect = connect

    def dag(self, rows: Any, **arguments: Any) -> DAG:
        usual = {"resolution": "512", "poll_interval": 0.05, "geminiimg_conn_id": self.conn_id}
        with DAG("plans_again", schedule=None) as dag:
            GeminiImageBatchOperator(task_id="made", requests=rows, **{**usual, **arguments})
        return dag

    def run(self, rows: Any, **arguments: Any) -> Run:
        run = self.airflow.run_dag(self.dag(rows, **arguments))
        assert run.state == "success", run.log
        return run

    def clear(self, run: Run, rows: Any, **arguments: Any) -> None:
        run.clear("made", dag=self.dag(rows, **arguments))
        assert run.state == "success", run.log

    def move(self, host: str = "localhost") -> None:
        """Let the connection lead to the same API under another host name."""
        url = self.sandbox.base_url("apimaster").replace("127.0.0.1", host)
        self._connect(
            self.conn_id, **{**self.sandbox.connection("apimaster", requests_per_minute=100_000), "host": url}
        )

    def paid(self) -> list[str]:
        return [entry["prompt"] for entry in self.sandbox.ledger()]

    def plans(self) -> list[Path]:
        return sorted(self.root.glob("batches/**/*.json"))

    def images(self) -> list[int]:
        """The number of the submission that each row's image is of."""
        [manifest] = self.root.glob("images/**/manifest.jsonl")
        uris = [json.loads(line)["images"][0]["uri"] for line in manifest.read_text().splitlines()]
        return [read_submission(Path(uri.removeprefix("file://")).read_bytes()) for uri in uris]


@pytest.fixture
def batch(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str, connect: Callable[..., str]
) -> Batch:
    return Batch(airflow, sandbox, apimaster, local_root, connect)


@pytest.fixture(params=["with a state store", "without a state store"])
def _store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without a state store":
        monkeypatch.setattr(_compat, "HAS_TASK_STATE_STORE", False)


# The connection got another host name.


def lower_retries(batch: Batch) -> dict[str, Any]:
    return {"retries": 0}


def spoil_plan(batch: Batch) -> dict[str, Any]:
    [plan] = batch.plans()
    plan.write_text("garbage")
    return {}


def remember_no_hosts(batch: Batch) -> dict[str, Any]:
    [plan] = batch.plans()
    values = json.loads(plan.read_text())
    values.pop("hosts", None)
    plan.write_text(json.dumps(values))
    return {}


def remember_other_hosts(batch: Batch) -> dict[str, Any]:
    [plan] = batch.plans()
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "hosts": ["elsewhere.test"]}))
    return {}


@pytest.mark.parametrize("change", [lower_retries, spoil_plan, remember_no_hosts, remember_other_hosts])
def test_a_clear_finds_what_was_paid_for_under_another_host_name_whatever_became_of_the_plan(
    batch: Batch, change: Callable[[Batch], dict[str, Any]]
) -> None:
    run = batch.run([FOX, WOLF], retries=3)
    arguments = {"retries": 3, **change(batch)}
    batch.move()
    batch.clear(run, [FOX, WOLF], **arguments)
    assert sorted(batch.paid()) == sorted([FOX, WOLF])
    batch.clear(run, [BEAR, FOX, WOLF], **arguments)
    assert sorted(batch.paid()) == sorted([FOX, WOLF, BEAR])


@pytest.mark.parametrize("clears", [0, 1])
def test_a_run_made_again_finds_what_was_paid_for_under_another_host_name(batch: Batch, clears: int) -> None:
    run = batch.run([FOX, WOLF])
    for _ in range(clears):
        batch.clear(run, [FOX, WOLF])
    batch.airflow.close()
    batch.move()
    batch.run([FOX, WOLF])
    assert len(batch.paid()) == 2


def test_images_made_again_under_another_host_name_are_found_after_that(batch: Batch) -> None:
    run = batch.run([FOX, WOLF])
    batch.move()
    batch.clear(run, [FOX, WOLF], on_clear="regenerate")
    assert len(batch.paid()) == 4
    batch.clear(run, [FOX, WOLF])
    assert len(batch.paid()) == 4


def test_images_of_two_host_names_are_found_under_a_third_place_and_only_what_is_new_is_bought(batch: Batch) -> None:
    many = [f"fox number {number}" for number in range(20)]
    run = batch.run(many, min_success=0)
    batch.move()
    batch.clear(run, [WOLF], min_success=0)
    batch.move("127.0.0.1")
    batch.clear(run, [WOLF, *many, BEAR], min_success=0)
    assert sorted(batch.paid()) == sorted([*many, WOLF, BEAR])


def test_two_rows_never_get_one_image_of_another_host_name(batch: Batch) -> None:
    run = batch.run([{"prompt": FOX, "variant": "1"}])
    batch.move()
    batch.clear(run, [{"prompt": FOX, "n": 2}, {"prompt": FOX, "variant": "1"}])
    assert batch.images()[2] == 1
    assert sorted(batch.images()) == [1, 2, 3]
    assert len(batch.paid()) == 3


def test_rows_that_ask_for_one_image_get_one_under_another_host_name(batch: Batch) -> None:
    run = batch.run([FOX, FOX])
    batch.move()
    batch.clear(run, [FOX, WOLF, FOX])
    assert batch.images() == [1, 2, 1]
    assert batch.paid() == [FOX, WOLF]


# A plan that is over.


@pytest.mark.usefixtures("_store")
def test_a_clear_after_retries_were_lowered_makes_what_is_asked_for_now(batch: Batch) -> None:
    run = batch.run([FOX, WOLF], retries=2)
    batch.clear(run, [FOX, BEAR], retries=0)
    batch.clear(run, [BEAR], retries=0)
    assert batch.images() == [3]
    for rows in ([WOLF], [FOX], [WOLF, FOX]):
        batch.clear(run, rows, retries=0)
    assert sorted(batch.images()) == [1, 2]
    assert len(batch.paid()) == 3
    assert len(batch.plans()) == 1


@pytest.mark.usefixtures("_store")
def test_a_clear_after_retries_were_lowered_buys_nothing_that_nobody_asks_for_any_more(batch: Batch) -> None:
    batch.sandbox.faults(route="apimaster.submit", status=503, prompt_contains="wolf")
    run = batch.run([FOX, WOLF], retries=2, min_success=0.5)
    for _ in range(4):
        batch.clear(run, [FOX, BEAR], retries=0)
    assert batch.paid() == [FOX, BEAR]


def test_a_plan_of_an_earlier_version_that_is_over_is_not_taken_though_it_is_still_there(batch: Batch) -> None:
    run = batch.run([FOX, WOLF], retries=2)
    [plan] = batch.plans()
    over = plan.read_text()
    batch.clear(run, [FOX, BEAR], retries=0)
    plan.write_text(over)
    batch.clear(run, [BEAR], retries=0)
    assert len(batch.images()) == 1
    assert sorted(batch.paid()) == sorted([FOX, WOLF, BEAR])


# One image becomes a batch, and back.

ASKED = {"gemini_image": FOX, "gemini_image_batch": [FOX, WOLF]}


def decorated(kind: str, conn_id: str, value: Any, **arguments: Any) -> DAG:
    with DAG("asks", schedule=None) as dag:

        @getattr(task, kind)(geminiimg_conn_id=conn_id, poll_interval=0.05, resolution="512", **arguments)  # type: ignore[untyped-decorator]
        def made() -> Any:
            return value

        made()
    return dag


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize(
    ("kinds", "retries"),
    [
        (("gemini_image", "gemini_image_batch"), (0, 0, 0, 0)),
        (("gemini_image_batch", "gemini_image"), (0, 0, 0, 0)),
        (("gemini_image_batch", "gemini_image"), (2, 0, 0, 0)),
    ],
    ids=str,
)
def test_a_function_that_returned_one_image_may_return_a_batch_and_back(
    batch: Batch, kinds: tuple[str, str], retries: tuple[int, ...]
) -> None:
    first, second = kinds
    run = batch.airflow.run_dag(decorated(first, batch.conn_id, ASKED[first], retries=retries[0]))
    for kind, again, asked in zip((second, first, second), retries[1:], (None, BEAR, None), strict=True):
        value = ASKED[kind] if asked is None else asked if kind == "gemini_image" else [asked]
        run.clear("made", dag=decorated(kind, batch.conn_id, value, retries=again))
        assert run.state == "success", run.log
    assert BEAR in batch.paid()
    assert len(batch.paid()) == len({*batch.paid()}) + 1  # the fox as one image and as one of a batch


def test_a_function_whose_namespace_was_changed_as_it_became_a_batch_buys_nothing(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = batch.airflow.run_dag(decorated("gemini_image", batch.conn_id, FOX))
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__NAMESPACE", "another")
    run.clear("made", dag=decorated("gemini_image_batch", batch.conn_id, [FOX]))
    assert run.state == "failed"
    assert "namespace back" in str(run.task("made").error)
    assert batch.paid() == [FOX]
