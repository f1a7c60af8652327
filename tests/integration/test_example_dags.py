"""The example DAGs, as they are, against the sandbox. What users copy must run."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow import __version__ as airflow_version
from airflow.models.asset import AssetEvent
from airflow.utils.session import create_session

from tests.harness import REPOSITORY
from tests.harness.inprocess import HAS_LOOPS, AirflowHarness, Run
from tests.harness.orphaned_records import OrphanedRecords

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.api_users import ApiUsers

EXAMPLES = REPOSITORY / "example_dags"
FILES = sorted(EXAMPLES.glob("*.py"))


def load(stem: str) -> DAG:
    """The DAG of one example file. Its waits are cut short: the sandbox is faster than any model."""
    from airflow.dag_processing.dagbag import BundleDagBag

    bag = BundleDagBag(dag_folder=str(EXAMPLES / f"{stem}.py"), bundle_path=EXAMPLES, bundle_name="dags-folder")
    assert not bag.import_errors
    (dag,) = bag.dags.values()
    for task in dag.tasks:
        if task.is_mapped:
            task.partial_kwargs.setdefault("poll_interval", 0.05)
        elif getattr(task, "poll_interval", "") is None:
            task.poll_interval = 0.05
        if hasattr(task, "poke_interval"):
            task.poke_interval = 0.05
    return dag


def manifest(run: Run, task_id: str, map_index: int = -1, iteration: int | None = None) -> dict[str, Any]:
    """What a task returned, after a look at the files that it names."""
    task = run.task(task_id, map_index, iteration)
    assert task.state == "success", task.log
    for image in task.value["images"]:
        assert Path(image["uri"].removeprefix("file://")).stat().st_size == image["size"]
    return dict(task.value)


@pytest.fixture
def default_connection(request: pytest.FixtureRequest, sandbox: Sandbox, connect: Callable[..., str]) -> str:
    return connect("geminiimg_default", **sandbox.connection(getattr(request, "param", "1min")))


both_gateways = pytest.mark.parametrize("default_connection", ["1min", "apimaster"], indirect=True)


@both_gateways
def test_campaign_lands_three_variants_and_a_final_under_the_date_and_a_clear_costs_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str, tmp_path: Path
) -> None:
    run = airflow.run_dag(load("campaign"), conf={"folder": f"{tmp_path.as_uri()}/out", "poll_interval": 0.05})
    assert run.state == "success", run.log
    landed = [manifest(run, "variants", number) for number in range(3)]
    sizes = {(each["images"][0]["width"], each["images"][0]["height"]) for each in landed}
    assert len(sizes) == 1
    width, height = sizes.pop()
    assert width / height == pytest.approx(16 / 9, rel=0.03)
    final = manifest(run, "final")
    assert final["operation"] == "edit"
    uris = [each["images"][0]["uri"] for each in (*landed, final)]
    assert len(set(uris)) == 4
    with_date = run.task("variants", 0).value["submitted_at"][:10]
    assert all(uri.startswith(f"{tmp_path.as_uri()}/out/{with_date}/") for uri in uris)
    assert len(sandbox.ledger()) == 4

    run.clear()
    assert run.state == "success", run.log
    assert [manifest(run, "variants", number)["reused"] for number in range(3)] == [True] * 3
    assert manifest(run, "final")["reused"]
    assert len(sandbox.ledger()) == 4


@pytest.mark.parametrize("gateway", ["onemin", "apimaster"])
def test_each_gateway_makes_its_poster(
    gateway: str, airflow: AirflowHarness, sandbox: Sandbox, request: pytest.FixtureRequest, local_root: str
) -> None:
    request.getfixturevalue(gateway)
    run = airflow.run_dag(load(gateway))
    assert manifest(run, "poster")["mismatch"] is None
    assert len(sandbox.ledger()) == 1


@both_gateways
def test_edit_chain_edits_what_was_made_before(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    run = airflow.run_dag(load("edit_chain"))
    assert [manifest(run, task_id)["operation"] for task_id in ("room", "sofa", "evening")] == [
        "generate",
        "edit",
        "edit",
    ]
    assert len(sandbox.ledger()) == 3


@both_gateways
def test_submit_and_wait_publishes_the_image(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    run = airflow.run_dag(load("submit_and_wait"))
    landed = manifest(run, "image")
    assert run.task("publish").value == f"Set sail. {landed['images'][0]['uri']}"
    assert len(sandbox.ledger()) == 1


def test_catalogue_makes_one_image_a_row_named_by_its_sku(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str, tmp_path: Path
) -> None:
    run = airflow.run_dag(load("catalogue"), conf={"folder": tmp_path.as_uri()})
    assert run.state == "success", run.log
    stems = {name.split(".")[0] for name in run.task("index").value}
    assert stems == {"mug-01", "lamp-02", "chair-03"}
    assert len(sandbox.ledger()) == 3


def test_wide_catalogue_makes_the_rows_in_two_shards(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str, tmp_path: Path
) -> None:
    run = airflow.run_dag(load("wide_catalogue"), conf={"folder": tmp_path.as_uri()})
    assert run.state == "success", run.log
    assert [each.value["items"] for each in run.tasks("catalogue.shards")] == [2, 1]
    assert run.task("publish").value.startswith("3 new images of 3: file://")
    assert {path.stem for path in tmp_path.rglob("*.png")} == {"mug-01", "lamp-02", "chair-03"}
    assert len(sandbox.ledger()) == 3


@both_gateways
def test_maintenance_lands_what_was_left_behind_and_resolves_what_conf_names(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    left = OrphanedRecords(sandbox, default_connection)
    record, unknown = asyncio.run(left.submitted("paid")), asyncio.run(left.unknown("sent"))
    dag = load("maintenance")
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert (run.task("collect").value["landed"], run.task("collect").value["unknown"]) == (1, 1)
    assert left.image(record)[1] == 1
    run = airflow.run_dag(dag, run_id="by-hand", conf={"resolve": {unknown.key: "lost"}})
    assert run.state == "success", run.log
    assert left.at(unknown).state == "failed"
    assert left.calls("submit") == 2


def test_review_publishes_what_a_person_picks_with_the_comment_in_the_prompt(
    airflow: AirflowHarness,
    api_users: ApiUsers,
    sandbox: Sandbox,
    default_connection: str,
    apimaster: str,
    local_root: str,
    s3: str,
) -> None:
    folder = f"{s3}/published"
    run = airflow.run_dag(load("review"), conf={"folder": folder, "poll_interval": 0.05})
    variants = [manifest(run, "variants", number) for number in range(5)]
    names = [each["images"][0]["uri"].rsplit("/", 1)[1] for each in variants]
    request = api_users.request(run, "review")
    assert request["options"] == [*(f"{number}: {name}" for number, name in enumerate(names, 1)), "Reject"]
    thumbs, images = (re.findall(rf"\((geminiimg/{kind}/[^)]*)\)", request["body"]) for kind in ("thumbs", "f"))
    assert [api_users.call("vera", "GET", f"/{address}").status_code for address in thumbs] == [200] * 5
    shown = [api_users.call("vera", "GET", f"/{address}").content for address in images]
    sums = [each["images"][0]["sha256"] for each in variants]
    assert [hashlib.sha256(image).hexdigest() for image in shown] == sums

    api_users.answer(run, "review", request["options"][3], request["options"][1], comment="Warmer light.")
    run.go_on()
    assert run.state == "success", run.log
    assert run.task("review").value == [variants[1], variants[3]]
    bought = sandbox.ledger()
    assert len(bought) == 7
    assert {each["prompt"] for each in bought[5:]} == {"Add the line 'Good morning.' in the sky. Warmer light."}
    finished = [run.task("finished", number).value for number in range(2)]
    assert {each["gateway"] for each in finished} == {"apimaster"}
    uris = [each["images"][0]["uri"] for each in finished]
    assert all(uri.startswith(f"{folder}/") for uri in uris)
    with create_session() as session:
        (event,) = session.query(AssetEvent).filter_by(source_dag_id=run.dag.dag_id, source_run_id=run.run_id)
        assert event.extra["images"] == uris


def test_review_publishes_nothing_of_what_a_person_rejects(
    airflow: AirflowHarness, api_users: ApiUsers, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    run = airflow.run_dag(load("review"), conf={"folder": "s3://nowhere", "poll_interval": 0.05})
    api_users.answer(run, "review", "Reject")
    run.go_on()
    assert run.state == "success", run.log
    assert {run.task(task_id).state for task_id in ("edit_prompt", "finished", "publish")} == {"skipped"}
    assert len(sandbox.ledger()) == 5


def test_taskflow_makes_what_its_functions_say(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    run = airflow.run_dag(load("taskflow"))
    assert manifest(run, "poster")["requested"]["aspect_ratio"] == "2:3"
    postcards = run.task("postcards").value
    assert postcards["counts"]["landed"] == 3
    folder = Path(postcards["manifest"].removeprefix("file://")).parent
    assert {path.stem for path in folder.glob("*.[jpw]*g*")} == {"Bergen", "Lisbon", "Prague"}
    assert len(sandbox.ledger()) == 4


needs_loops = pytest.mark.skipif(not HAS_LOOPS, reason=f"Airflow {airflow_version} has no loops; 3.4 has")


@needs_loops
@both_gateways
def test_refine_revises_until_the_judge_accepts_and_a_person_approves(
    airflow: AirflowHarness, api_users: ApiUsers, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    run = airflow.run_dag(load("refine"), conf={"poll_interval": 0.05})
    drawn = [manifest(run, "refine.draw", iteration=number) for number in range(3)]
    assert [each["images"][0]["width"] for each in drawn] == [688, 1376, 2752]
    assert [each["operation"] for each in drawn] == ["generate", "edit", "edit"]
    assert len({each["images"][0]["sha256"] for each in drawn}) == 3
    assert len(sandbox.ledger()) == len(run.tasks("refine.draw")) == 3
    spent = run.task("refine.judge", iteration=2).value["spent"]
    assert spent == pytest.approx(sum(each["cost"]["amount"] for each in drawn))
    assert spent < run.dag.params["budget"]
    assert "Loop iteration 2: stop (max_iterations=4): Accepted: 2752 pixels wide" in run.log
    assert api_users.request(run, "review")["subject"] == "For the billboard? 2752 pixels wide, 2000 needed"
    api_users.answer(run, "review", "Approve")
    run.go_on()
    assert run.state == "success", run.log
    assert run.task("review").value == [drawn[2]]

    run.clear_by_api(api_users, run.task("refine.draw", iteration=1), include_downstream=True)
    again = [manifest(run, "refine.draw", iteration=number) for number in range(3)]
    assert [each["images"] for each in again] == [each["images"] for each in drawn]
    assert [each["reused"] for each in again] == [False, True, True]
    assert len(sandbox.ledger()) == 3


@needs_loops
def test_refine_stops_when_the_money_is_spent_and_a_person_sees_the_last_image(
    airflow: AirflowHarness, api_users: ApiUsers, sandbox: Sandbox, default_connection: str, local_root: str
) -> None:
    run = airflow.run_dag(load("refine"), conf={"poll_interval": 0.05, "budget": 0.25})
    assert len(sandbox.ledger()) == 2
    assert "Loop iteration 1: stop (max_iterations=4): Not accepted, but the money is spent" in run.log
    assert api_users.request(run, "review")["subject"] == "For the billboard? 1376 pixels wide, 2000 needed"


@pytest.mark.skipif(HAS_LOOPS, reason=f"Airflow {airflow_version} has loops")
def test_refine_says_on_an_airflow_without_loops_that_it_defines_no_dag(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = runpy.run_path(str(EXAMPLES / "refine.py"))
    assert names["LoopDecision"] is None
    assert "geminiimg_refine needs Airflow 3.4 or later" in caplog.text


def test_every_example_is_run_by_a_test() -> None:
    assert {path.stem for path in FILES} == {
        "apimaster",
        "campaign",
        "catalogue",
        "edit_chain",
        "maintenance",
        "onemin",
        "refine",
        "review",
        "submit_and_wait",
        "taskflow",
        "wide_catalogue",
    }
