"""What protects the image of a task protects each image of a batch: Airflow's own memory, and older records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg import _compat
from airflow_provider_geminiimg.exceptions import ContentRefusedError, LedgerError
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.storage_faults import DiskFaults

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

FOX, WOLF = "a red fox", "a grey wolf"


class Images:
    """One task of one image, or of a batch with one image.

    :param kind: ``"single"`` or ``"batch"``.
    """

    def __init__(self, kind: str, airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, root: str) -> None:
        self.kind = kind
        self.airflow = airflow
        self.sandbox = sandbox
        self.conn_id = conn_id
        self.root = Path(root.removeprefix("file://"))

    def dag(self, prompt: str = FOX, **arguments: Any) -> DAG:
        usual = {"resolution": "512", "poll_interval": 0.05, "geminiimg_conn_id": self.conn_id, **arguments}
        with DAG("one_path", schedule=None) as dag:
            if self.kind == "single":
                GeminiImageGenerateOperator(task_id="made", prompt=prompt, **usual)
            else:
                GeminiImageBatchOperator(task_id="made", requests=[prompt], **usual)
        return dag

    def run(self, prompt: str = FOX, **arguments: Any) -> Run:
        return self.airflow.run_dag(self.dag(prompt, **arguments))

    def paid(self) -> int:
        return len(self.sandbox.ledger())

    def error(self, run: Run) -> BaseException:
        task = run.task("made")
        assert task.state == "failed", run.log
        assert task.error is not None
        return task.error.__cause__ or task.error if isinstance(task.error, AirflowFailException) else task.error

    def refused(self, run: Run, *said: str) -> None:
        """The task failed without a word to the gateway, because of the ledger, and says so."""
        error = self.error(run)
        assert isinstance(error, LedgerError) or self.kind == "batch", error
        assert all(word in f"{error} {run.task('made').log}" for word in said), error


@pytest.fixture(params=["single", "batch"])
def images(
    request: pytest.FixtureRequest, airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> Images:
    return Images(request.param, airflow, sandbox, apimaster, local_root)


def lose_root(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", f"file://{images.root}-of-another-worker")


def lose_ledger(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(images.root / "ledger")


def lose_records_and_images(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in images.root.glob("ledger/**/*.json"):
        path.unlink()
    shutil.rmtree(images.root / "images")


def change_namespace(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__NAMESPACE", "another")


LOSSES = [lose_root, lose_ledger, lose_records_and_images, change_namespace]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("again", ["retry", "clear"])
def test_what_airflow_remembers_and_the_root_lacks_is_not_bought_again(
    images: Images, lose: Callable[..., None], again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = images.run()
    assert (run.state, images.paid()) == ("success", 1), run.log
    lose(images, monkeypatch)
    getattr(run, again)("made")
    images.refused(run, "Nothing was sent.", "task state has")
    if lose is change_namespace:
        images.refused(run, "namespace back")
    assert images.paid() == 1


@pytest.mark.parametrize("again", ["retry", "clear"])
def test_a_job_whose_record_could_not_be_written_is_collected_and_not_unknown(
    images: Images, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskFaults()
    disk.begin(lambda path, body: b'"state":"submitted"' in body)
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    run = images.run()
    disk.end()
    getattr(run, again)("made")
    assert run.state == "success", run.log
    assert images.paid() == 1


def test_a_run_that_was_deleted_and_made_again_takes_its_corrected_key(images: Images) -> None:
    images.sandbox.faults(route="apimaster.submit", status=401, body={"error": {"message": "invalid key"}})
    assert images.run().state == "failed"
    images.airflow.close()
    run = images.run()
    assert run.state == "success", run.log
    assert images.paid() == 1


def test_a_run_that_was_deleted_and_made_again_returns_what_was_paid_for(images: Images) -> None:
    images.run()
    images.airflow.close()
    run = images.run()
    run.retry("made")
    assert run.state == "success", run.log
    assert images.paid() == 1


@pytest.mark.parametrize("prompt", [FOX, WOLF])
def test_an_attempt_without_a_state_store_is_retried_with_one_as_any_other(
    images: Images, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.sandbox.faults(route="download", status=500, times=3)
    with monkeypatch.context() as older:
        older.setattr(_compat, "HAS_TASK_STATE_STORE", False)
        run = images.run()
    assert (run.state, images.paid()) == ("failed", 1), run.log
    run.retry("made", dag=images.dag(prompt))
    assert run.state == "success", run.log
    assert [entry["prompt"] for entry in images.sandbox.ledger()] == [FOX]


@pytest.mark.parametrize("reuse", ["task", "dag"])
def test_a_clear_after_the_connection_got_another_host_name_buys_nothing(
    images: Images, reuse: str, connect: Callable[..., str]
) -> None:
    run = images.run(FOX, reuse=reuse)
    for name in ("localhost", "127.0.0.1", "localhost"):
        host = images.sandbox.base_url("apimaster").replace("127.0.0.1", name)
        connect(images.conn_id, **{**images.sandbox.connection("apimaster"), "host": host})
        run.clear("made")
        assert (run.state, images.paid()) == ("success", 1), run.log


class OtherAirflow:
    """Another Airflow on the same root: the state store's rows of the one are put away while the other works."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def swap(self) -> None:
        from airflow.models.task_state_store import TaskStateStoreModel
        from airflow.utils.session import create_session

        with create_session() as session:
            rows = session.query(TaskStateStoreModel).all()
            columns = [column.key for column in TaskStateStoreModel.__table__.columns if column.key != "id"]
            mine = [{name: getattr(row, name) for name in columns} for row in rows]
            session.query(TaskStateStoreModel).delete(synchronize_session=False)
            session.flush()
            session.add_all(TaskStateStoreModel(**row) for row in self._rows)
            self._rows = mine


@pytest.mark.parametrize("again", ["retry", "clear"])
def test_two_airflows_in_one_namespace_are_told_apart_and_neither_buys_for_the_other(
    images: Images, again: str
) -> None:
    run, other = images.run(FOX, on_clear="regenerate"), OtherAirflow()
    other.swap()
    run.clear("made")
    assert (run.state, images.paid()) == ("success", 2), run.log
    other.swap()
    getattr(run, again)("made")
    images.refused(run, "namespace")
    assert images.paid() == 2


# Older records of the same task instance. In a batch another prompt is another item.


@pytest.fixture(params=["task", "dag"])
def reuse(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_clear_back_to_an_earlier_prompt_returns_what_landed_then(images: Images, reuse: str) -> None:
    run = images.run(FOX, reuse=reuse)
    run.clear("made", dag=images.dag(WOLF, reuse=reuse))
    assert images.paid() == 2
    run.clear("made", dag=images.dag(FOX, reuse=reuse))
    run.retry("made")
    assert run.state == "success", run.log
    assert images.paid() == 2


def test_a_clear_back_to_an_earlier_prompt_does_so_after_another_one_was_refused_for_free(
    images: Images, reuse: str
) -> None:
    run = images.run(FOX, reuse=reuse)
    images.sandbox.faults(route="apimaster.submit", status=400, body={"error": {"code": "moderation_blocked"}})
    run.clear("made", dag=images.dag(WOLF, reuse=reuse))
    assert isinstance(images.error(run), ContentRefusedError) or images.kind == "batch", run.log
    assert images.paid() == 1
    run.clear("made", dag=images.dag(FOX, reuse=reuse))
    assert run.state == "success", run.log
    assert images.paid() == 1


def test_a_clear_back_to_an_earlier_prompt_collects_the_job_that_still_runs(images: Images) -> None:
    images.sandbox.faults(route="download", status=500, times=3)
    run = images.run(FOX)
    assert (run.state, images.paid()) == ("failed", 1), run.log
    run.clear("made", dag=images.dag(WOLF))
    assert images.paid() == 2
    run.clear("made", dag=images.dag(FOX))
    assert run.state == "success", run.log
    assert images.paid() == 2


@pytest.mark.parametrize(("on_unknown", "paid"), [("fail", 2), ("resubmit", 3)])
def test_a_clear_back_to_an_earlier_prompt_whose_outcome_is_unknown_is_unknown_again(
    images: Images, on_unknown: str, paid: int
) -> None:
    images.sandbox.faults(route="apimaster.submit", drop=True, charge="after")
    run = images.run(FOX)
    assert run.state == "failed", run.log
    run.clear("made", dag=images.dag(WOLF, on_unknown="resubmit"))
    assert (run.state, images.paid()) == ("success", 2), run.log
    run.clear("made", dag=images.dag(FOX, on_unknown=on_unknown))
    assert run.state == ("failed" if on_unknown == "fail" else "success"), run.log
    assert images.paid() == paid


def test_a_clear_back_that_asks_for_another_image_buys_one(images: Images) -> None:
    run = images.run(FOX)
    run.clear("made", dag=images.dag(WOLF))
    run.clear("made", dag=images.dag(FOX, on_clear="regenerate"))
    assert (run.state, images.paid()) == ("success", 3), run.log
    run.retry("made")
    assert (run.state, images.paid()) == ("success", 3), run.log
