"""The collect operator in a real Airflow: it lands and resolves what tasks left behind, and buys nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.layout import complete_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.exceptions import BadRequestError, LedgerError, OutcomeUnknownError
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness.canaries import Canaries, Text
from tests.harness.orphaned_records import OrphanedRecords

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run, Task

ROUTES = {"1min": "onemin", "apimaster": "apimaster"}


class Works:
    """A DAG with one image, whose task dies in some way, and a DAG that collects."""

    def __init__(self, airflow: AirflowHarness, sandbox: Sandbox, conn_id: str) -> None:
        self.airflow = airflow
        self.sandbox = sandbox
        self.conn_id = conn_id
        self.left = OrphanedRecords(sandbox, conn_id)
        self.route = ROUTES[self.left.gateway]
        self._runs = 0

    def image(self, **more: Any) -> DAG:
        with DAG("pictures", schedule=None) as dag:
            GeminiImageGenerateOperator(
                **{"task_id": "made", "prompt": "a red fox", "geminiimg_conn_id": self.conn_id, "poll_interval": 0.02}
                | more
            )
        return dag

    def dies(self, run_id: str = "run", **more: Any) -> Run:
        """A run whose task paid, and failed before its image was in storage."""
        self.sandbox.faults(route="download", status=500, times=3)
        return self._failed(run_id, **more)

    def dies_sending(self, run_id: str = "run", *, charge: str = "after", **more: Any) -> Run:
        """A run whose task sent its request, and got no answer."""
        self.sandbox.faults(route=f"{self.route}.submit", drop=True, charge=charge)
        return self._failed(run_id, **more)

    def _failed(self, run_id: str, **more: Any) -> Run:
        run = self.airflow.run_dag(self.image(**more), run_id=run_id)
        assert run.task("made").state == "failed", run.log
        self.left.old(self.record(run_id))
        return run

    def record(self, run_id: str = "run") -> Record:
        """The record of a run's only submission."""
        [key] = [key for key in self.left.records() if f"/pictures/{run_id}/" in key]
        return reconcile.entry_at(self.left.ledger, key).readable().record

    def collect(self, conf: dict[str, Any] | None = None, **arguments: Any) -> Run:
        with DAG("maintenance", schedule=None, params={"resolve": {}}) as dag:
            GeminiImageCollectOperator(task_id="collect", **arguments)
        self._runs += 1
        return self.airflow.run_dag(dag, run_id=f"collect-{self._runs}", conf=conf)

    def paid(self) -> int:
        return len(self.sandbox.ledger())

    def submits(self) -> int:
        return len(self.sandbox.calls(f"{self.route}.submit"))


@pytest.fixture
def works(airflow: AirflowHarness, sandbox: Sandbox, root: str, onemin: str) -> Works:
    """On disk and on S3."""
    return Works(airflow, sandbox, onemin)


@pytest.fixture
def disk_works(airflow: AirflowHarness, sandbox: Sandbox, local_root: str, onemin: str) -> Works:
    return Works(airflow, sandbox, onemin)


@pytest.fixture
def each_works(airflow: AirflowHarness, sandbox: Sandbox, local_root: str, geminiimg_conn_id: str) -> Works:
    """At both gateways."""
    return Works(airflow, sandbox, geminiimg_conn_id)


def collected(run: Run) -> dict[str, Any]:
    """What a collect returned, without the counts that are 0."""
    task = run.task("collect")
    assert task.state == "success", task.log
    return {name: value for name, value in task.value.items() if value}


def failed(run: Run, kind: type[BaseException]) -> Task:
    task = run.task("collect")
    assert task.state == "failed", task.log
    cause = task.error.__cause__ if isinstance(task.error, AirflowFailException) else task.error
    assert isinstance(cause, kind), task.log
    return task


def test_a_dead_tasks_image_lands_where_it_was_meant_to_and_the_task_returns_it_once_it_is_cleared(
    works: Works,
) -> None:
    run = works.dies(output_path=works.left.folder, file_name="fox")
    record = works.record()
    assert collected(works.collect()) == {"landed": 1, "keys": {"landed": [record.key]}}
    assert works.left.image(record) == (f"{works.left.folder}/fox.png", 1)
    calls = len(works.sandbox.calls())
    made = run.clear("made").task("made")
    assert made.state == "success", made.log
    assert made.value["images"][0]["uri"] == f"{works.left.folder}/fox.png"
    assert made.value["reused"] is True
    assert (works.paid(), len(works.sandbox.calls())) == (1, calls)


def test_the_collect_that_comes_after_has_nothing_to_do(each_works: Works) -> None:
    each_works.dies()
    each_works.collect()
    calls = len(each_works.sandbox.calls())
    assert collected(each_works.collect()) == {}
    assert len(each_works.sandbox.calls()) == calls


def test_a_job_whose_sensor_never_came_is_landed_and_the_sensor_finds_it(each_works: Works) -> None:
    works = each_works
    with DAG("pictures", schedule=None) as dag:
        ordered = GeminiImageSubmitOperator(task_id="made", prompt="a red fox", geminiimg_conn_id=works.conn_id)
        sensor = GeminiImageJobSensor(task_id="lands", job=ordered.output, on_mismatch="no such word {{ '' }}")
    run = works.airflow.run_dag(dag)
    assert run.task("lands").state == "failed"
    works.left.old(works.record())
    assert collected(works.collect())["landed"] == 1
    sensor.on_mismatch = "accept"
    calls = len(works.sandbox.calls())
    lands = run.retry("lands").task("lands")
    assert lands.state == "success", lands.log
    assert (works.paid(), len(works.sandbox.calls())) == (1, calls)


def test_what_can_not_be_looked_at_fails_the_task_after_all_else_has_landed_and_its_retry_goes_on(
    works: Works,
) -> None:
    for run_id in ("a", "b", "c"):
        works.dies(run_id)
    broken = works.record("b")
    store = works.left.store
    whole = store.read(broken.key)
    assert whole is not None
    version = store.replace(broken.key, whole.data[:50], whole.version)
    run = works.collect()
    error = failed(run, LedgerError).error
    assert broken.key in str(error)
    assert "2 landed" in str(error)
    assert [works.left.at(works.record(run_id)).state for run_id in ("a", "c")] == ["landed"] * 2
    assert version is not None
    store.replace(broken.key, whole.data, version)
    works.left.old(broken)
    assert collected(run.retry()) == {"landed": 1, "keys": {"landed": [broken.key]}}
    assert works.submits() == 3


def test_a_connection_that_is_gone_fails_the_task_and_names_what_it_could_not_look_at(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works.dies()
    with monkeypatch.context() as patch:
        patch.delenv("AIRFLOW_CONN_ONEMIN")
        run = works.collect()
    assert works.record().key in str(failed(run, LedgerError).error)
    assert collected(run.retry())["landed"] == 1


def test_an_unknown_outcome_is_a_warning_that_says_what_to_do_and_the_task_succeeds(each_works: Works) -> None:
    each_works.dies_sending()
    run = each_works.collect()
    assert collected(run) == {"unknown": 1, "keys": {"unknown": [each_works.record().key]}}
    [line] = [line for line in run.log.splitlines() if "Outcome unknown" in line]
    assert "warning" in line
    assert "`resolve` of GeminiImageCollectOperator" in line


def resolution(works: Works, word: str) -> Any:
    return {"job": works.sandbox.ledger()[-1]["job_id"]} if word == "job" else word


@pytest.mark.parametrize("word", ["unpaid", "lost", "job"])
def test_an_unknown_outcome_is_resolved_by_a_parameter_and_stays_so_with_every_later_run_and_retry(
    each_works: Works, word: str
) -> None:
    works = each_works
    cleared = works.dies_sending(charge="before" if word == "unpaid" else "after")
    record = works.record()
    conf = {"resolve": {record.key: resolution(works, word)}}
    run = works.collect(conf, resolve="{{ params.resolve | tojson }}")
    after = works.left.at(record)
    assert after.state == ("landed" if word == "job" else "failed")
    assert collected(run) == ({"landed": 1, "keys": {"landed": [record.key]}} if word == "job" else {})
    assert f"Resolved by the `resolve` of this task: {record.key}" in run.log
    assert collected(run.retry("collect")) == {}
    again = works.collect(conf, resolve="{{ params.resolve | tojson }}")
    assert collected(again) == {}
    assert f"Already resolved: {record.key}" in again.log
    assert works.left.at(record) == after

    made = cleared.clear("made").task("made")
    assert made.state == ("failed" if word == "lost" else "success"), made.log
    assert works.submits() == (2 if word == "unpaid" else 1)
    assert works.paid() == 1
    assert collected(works.collect(conf, resolve="{{ params.resolve | tojson }}")) == {}


def test_a_verdict_on_what_is_not_unknown_is_refused_after_all_else_is_done_and_changes_nothing(
    disk_works: Works,
) -> None:
    works = disk_works
    works.dies("a")
    works.dies("b")
    key = works.record("a").key
    task = failed(works.collect(resolve={key: "unpaid", "ledger/no/such/record/0/0/1.json": "lost"}), LedgerError)
    assert f"Not resolved: {key}" in task.log
    assert "Not resolved: ledger/no/such/record/0/0/1.json" in task.log
    assert [works.record(run_id).state for run_id in ("a", "b")] == ["landed"] * 2
    assert works.submits() == 2


def test_a_verdict_that_is_rendered_as_python_text_is_refused_and_no_retry_touches_it(disk_works: Works) -> None:
    disk_works.dies_sending()
    before = disk_works.left.everything()
    run = disk_works.collect({"resolve": {"k": "lost"}}, resolve="{{ params.resolve }}", retries=2)
    assert "tojson" in str(failed(run, BadRequestError).error)
    assert run.task("collect").try_number == 1
    assert disk_works.left.everything() == before


@pytest.mark.parametrize(
    "wrong", [{"resolve": {"k": "paid"}}, {"dry_run": "perhaps"}, {"external_dag_id": ["a"]}], ids=str
)
def test_arguments_that_are_wrong_are_refused_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with DAG("maintenance", schedule=None), pytest.raises(BadRequestError, match=next(iter(wrong))):
        GeminiImageCollectOperator(task_id="collect", **wrong)


@pytest.mark.parametrize("name", ["look_only", "only_dag_id", "only_run_id", "only_task_id"])
def test_a_name_from_before_the_first_release_is_refused_when_the_dag_is_parsed_and_named(name: str) -> None:
    with DAG("maintenance", schedule=None), pytest.raises(TypeError, match=name):
        GeminiImageCollectOperator(task_id="collect", **{name: "a"})  # type: ignore[arg-type]


def land_days_ago(works: Works, run_id: str, days: float) -> None:
    """A run whose image landed so many days ago."""
    assert works.airflow.run_dag(works.image(), run_id=run_id).state == "success"
    written = time.time() - days * 86_400.0
    os.utime(Path(works.left.store.uri.removeprefix("file://")) / works.record(run_id).key, (written, written))


def test_old_records_are_removed_after_a_collect_if_that_is_configured(
    disk_works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = disk_works
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__KEEP_RECORDS_DAYS", "30")
    for run_id, days in (("old", 31.0), ("young", 29.0)):
        land_days_ago(works, run_id, days)
    old, young = works.record("old").key, works.record("young").key
    assert collected(works.collect(dry_run=True)) == {"purged": 1}
    assert works.left.records() == [old, young]
    run = works.collect()
    assert run.task("collect").value["purged"] == 1
    assert "Removed: 1 records that ended more than 30 days ago." in run.log
    assert works.left.records() == [young]
    assert works.paid() == 2


def test_nothing_is_removed_beside_a_record_that_could_not_be_checked(
    disk_works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = disk_works
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__KEEP_RECORDS_DAYS", "30")
    land_days_ago(works, "old", 31.0)
    unreadable = works.record("old").key.replace("/old/", "/broken/")
    works.left.store.create(unreadable, b"{")
    works.left.store.delete(complete_key("default"))  # so that all records are read
    failed(works.collect(), LedgerError)
    assert len(works.left.records()) == 2


def test_a_wrong_number_of_days_is_an_error_and_nothing_is_removed(
    disk_works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = disk_works
    land_days_ago(works, "old", 31.0)
    for wrong in ("0", "-1", "29", "two"):
        monkeypatch.setenv("AIRFLOW__GEMINIIMG__KEEP_RECORDS_DAYS", wrong)
        assert "[geminiimg] keep_records_days" in str(failed(works.collect(), BadRequestError).error)
    assert len(works.left.records()) == 1


@pytest.mark.parametrize("dry_run", [True, "{{ 1 == 1 }}"])
def test_a_dry_run_calls_no_gateway_and_writes_nothing(works: Works, dry_run: Any) -> None:
    works.dies("a")
    works.dies_sending("b")
    key = works.record("b").key
    before, calls = works.left.everything(), len(works.sandbox.calls())
    run = works.collect(dry_run=dry_run, resolve={key: "lost"})
    assert collected(run) == {
        "to_collect": 1,
        "unknown": 1,
        "keys": {"unknown": [key], "to_collect": [works.record("a").key]},
    }
    assert f"Would be resolved: {key}: lost" in run.log
    assert works.left.everything() == before
    assert len(works.sandbox.calls()) == calls


def test_only_what_the_filters_name_is_looked_at_and_a_filter_that_is_unset_names_everything(disk_works: Works) -> None:
    works = disk_works
    for run_id in ("a", "b"):
        works.dies(run_id)
    assert collected(works.collect(external_dag_id="another")) == {}
    assert collected(works.collect(external_run_id="{{ 'a' }}", external_task_id="made"))["landed"] == 1
    assert works.record("b").state == "submitted"
    assert collected(works.collect(external_dag_id="{{ 'unset' }}"))["landed"] == 1


def test_a_result_of_many_records_stays_small(disk_works: Works) -> None:
    works = disk_works
    works.dies_sending("x" * 100)
    record = works.record("x" * 100)
    for n in range(2, 40):
        works.left.ledger.create(replace(record, key=record.key.replace("/0/1.json", f"/item-{n}/1.json")))
    result = works.collect().task("collect").value
    assert result["unknown"] == 39
    assert 0 < len(result["keys"]["unknown"]) < 39
    assert len(json.dumps(result)) < 2000


def test_the_log_and_the_result_of_a_collect_hold_no_link_and_no_prompt(
    works: Works, sandbox: Sandbox, connect: Callable[..., str]
) -> None:
    canaries = Canaries()
    connect("onemin", **sandbox.connection("1min", key=canaries.key, requests_per_minute=100_000))
    works.dies("a", prompt=canaries.prompt)
    works.dies_sending("b", prompt=canaries.prompt)
    sandbox.settings(latency=3.0)  # the task gives up long before
    sandbox.faults(route="onemin.submit", outcome="refused_echo")
    works.airflow.run_dag(works.image(prompt=canaries.prompt, timeout=0.01), run_id="c")
    works.left.old(works.record("c"))
    asyncio.run(works.left.ended())
    run = works.collect()
    canaries.add_links(sandbox.links())
    assert set(collected(run)) == {"landed", "failed", "unknown", "keys"}
    said = (run.log, json.dumps(run.task("collect").value), str(run.task("collect").error))
    assert not canaries.leaks(Text("what was said", text.encode()) for text in said)


def test_what_a_person_removed_is_bought_again_by_a_clear_although_airflow_remembers_it(works: Works) -> None:
    run = works.dies_sending()
    reconcile.forget(works.left.ledger, works.record().key, force=True)
    made = run.clear("made").task("made")
    assert made.state == "success", made.log
    assert works.left.image(works.record())[1] == 2


async def test_what_was_purged_is_not_bought_again_by_a_clear_where_airflow_remembers_it(works: Works) -> None:
    run = works.airflow.run_dag(works.image())
    scope = reconcile.Scope("default")
    assert len([key async for key in reconcile.purge(works.left.ledger, scope, days=0.0)]) == 1
    made = run.clear("made").task("made")
    assert made.state == "failed"
    assert "was removed" in str(made.error)
    assert works.paid() == 1


def test_a_collect_resolves_nothing_by_itself(each_works: Works) -> None:
    run = each_works.dies_sending()
    each_works.collect()
    made = run.clear("made").task("made")
    assert isinstance(made.error.__cause__ if made.error else None, OutcomeUnknownError)
    assert each_works.submits() == 1
