"""A batch that several tasks make, in a real Airflow, against the sandbox over HTTP."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk import DAG, Asset, task_group
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg import image_batch
from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.exceptions import BadRequestError, IncompleteError, LedgerError
from airflow_provider_geminiimg.gallery.queries import GalleryQueries
from airflow_provider_geminiimg.gallery.run_records import RecordFilter
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from tests.harness.inprocess import HAS_LOOPS

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")
FILES = Files(AIRFLOW_OPENERS)
ROWS = [{"prompt": f"fox number {number}", "sku": f"RT-{number}"} for number in range(12)]
USUAL = {"poll_interval": 0.05, "resolution": "512", "file_name": "{sku}"}


def wide(requests: Any, **arguments: Any) -> DAG:
    with DAG("many", schedule=None) as dag:
        image_batch("foxes", requests=requests, **{**USUAL, "shards": 3, **arguments})
    return dag


def lines(run: Run, task_id: str = "foxes.merge") -> list[dict[str, Any]]:
    """The rows of the manifest, in order."""
    data = FILES.read(run.task(task_id).value["manifest"], max_bytes=64_000_000)
    return [json.loads(line) for line in data.splitlines()]


def counts(run: Run) -> dict[str, int]:
    """What became of the images, by the manifest."""
    return dict(Counter(line["status"] for line in lines(run)))


def states(run: Run) -> list[str | None]:
    """The states of the plan, the shards and the merge."""
    return [
        run.task("foxes.plan").state,
        *(each.state for each in run.tasks("foxes.shards")),
        run.task("foxes.merge").state,
    ]


def clear(run: Run, dag: DAG) -> None:
    """Clear all tasks, with another version of the DAG.

    Airflow 3.4.0b2 then removes mapped tasks whose mapping is not known yet. A second Clear runs them.
    """
    run.clear(dag=dag)
    if {each.state for each in run.tasks("foxes.shards")} == {"removed"}:
        run.clear("foxes.shards", "foxes.merge")


def prompts(sandbox: Sandbox) -> list[str]:
    """What was paid for at the gateway."""
    return sorted(entry["prompt"] for entry in sandbox.ledger())


def comparable(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the manifest without what differs between two tasks with the same rows."""
    rest = {
        name: value for name, value in line.items() if name in ("row", "labels", "fingerprint", "status", "requested")
    }
    return {**rest, "files": [image["uri"].rpartition("/")[2] for image in line["images"]]}


def test_three_shards_of_twelve_rows_are_paid_once_each_and_the_manifest_is_that_of_one_batch(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    assert states(run) == ["success"] * 5, run.log
    assert prompts(sandbox) == sorted(row["prompt"] for row in ROWS)
    assert [each.value["items"] for each in run.tasks("foxes.shards")] == [4, 4, 4]
    with DAG("one", schedule=None) as dag:
        GeminiImageBatchOperator(task_id="foxes", requests=ROWS, geminiimg_conn_id=apimaster, **USUAL)
    alone = airflow.run_dag(dag)
    assert [*map(comparable, lines(run))] == [*map(comparable, lines(alone, "foxes"))]
    one, many = alone.task("foxes").value, run.task("foxes.merge").value
    assert {**many, "manifest": None} == {**one, "manifest": None}


def test_a_shard_that_fails_is_retried_and_pays_only_for_what_is_missing(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=503, prompt_contains="number 5")
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    assert states(run) == ["success", "success", "failed", "success", "failed"], run.log
    error = run.task("foxes.merge").error
    assert isinstance(error, AirflowFailException)
    assert isinstance(error.__cause__, IncompleteError)
    assert "11 of 12 images landed (1 failed), min_success=1.0." in str(error)
    assert "Row 5 (sku='RT-5'), failed" in str(error)
    assert (run.task("foxes.merge").value["counts"]["landed"], counts(run)) == (11, {"landed": 11, "failed": 1})
    run.retry()
    assert states(run) == ["success"] * 5, run.log
    assert counts(run) == {"landed": 9, "reused": 3}
    assert prompts(sandbox) == sorted(row["prompt"] for row in ROWS)


def test_a_clear_of_one_shard_of_the_plan_and_of_all_with_another_number_of_shards_buys_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    first = lines(run)
    for shards, cleared in ((3, ("foxes.shards", "foxes.merge")), (3, ()), (5, ()), (2, ())):
        if cleared:
            run.clear(*cleared)
        else:
            clear(run, wide(ROWS, geminiimg_conn_id=apimaster, shards=shards))
        assert len([each for each in run.tasks("foxes.shards") if each.state == "success"]) == shards
        assert {*states(run)} <= {"success", "removed"}, run.log
        assert counts(run) == {"reused": 12}, shards
        assert [line["images"] for line in lines(run)] == [line["images"] for line in first]
    assert len(sandbox.ledger()) == 12


def test_a_clear_of_the_plan_alone_makes_no_image_and_the_merge_finds_those_of_the_last_plan(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    run.clear("foxes.plan", dag=wide([*ROWS[6:], {"prompt": "a new fox", "sku": "N"}], geminiimg_conn_id=apimaster))
    assert len(sandbox.ledger()) == 12
    run.clear("foxes.merge")
    assert counts(run) == {"reused": 6, "skipped": 1}
    assert "Clear that task." in str(run.task("foxes.merge").error)
    assert len(sandbox.ledger()) == 12


def test_moved_and_new_rows_pay_only_for_the_new_ones(airflow: AirflowHarness, sandbox: Sandbox, onemin: str) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=onemin))
    moved = [{"prompt": "a new fox", "sku": "N"}, *reversed(ROWS)]
    clear(run, wide(moved, geminiimg_conn_id=onemin, shards=4))
    assert [(line["row"], line["labels"]["sku"], line["status"]) for line in lines(run)] == [
        (number, row["sku"], "reused" if number else "landed") for number, row in enumerate(moved)
    ]
    assert prompts(sandbox) == sorted(row["prompt"] for row in moved)


def test_an_image_that_failed_unpaid_is_made_after_a_clear_of_its_shard_and_regenerate_makes_all_again(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=401, prompt_contains="number 11")
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster, shards=2))
    assert counts(run) == {"landed": 11, "failed": 1}
    for _ in range(2):  # the records of the shards that are cleared alone are of later generations
        run.clear("foxes.shards", "foxes.merge")
    assert counts(run) == {"reused": 12}
    clear(run, wide(ROWS, geminiimg_conn_id=apimaster, shards=6, on_clear="regenerate"))
    assert counts(run) == {"landed": 12}
    assert len(sandbox.ledger()) == 24
    run.retry("foxes.shards", "foxes.merge")
    assert counts(run) == {"reused": 12}


def test_a_row_that_is_wrong_is_an_error_of_the_plan_before_any_money_and_the_merge_does_not_run(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    run = airflow.run_dag(wide([*ROWS, {"prompt": "", "sku": "bad"}], geminiimg_conn_id=apimaster))
    assert "1 of 13 requests can't be made: row 12 (sku='bad')" in str(run.task("foxes.plan").error)
    assert states(run) == ["failed", "upstream_failed", "upstream_failed"]
    clear(run, wide([], geminiimg_conn_id=apimaster))
    assert "requests: is empty." in str(run.task("foxes.plan").error)
    clear(run, wide(ROWS, geminiimg_conn_id=apimaster, shards=None, images_per_shard=5))
    assert [each.value["items"] for each in run.tasks("foxes.shards")] == [4, 4, 4]
    assert len(sandbox.ledger()) == 12


def test_rows_that_request_the_same_image_get_it_once_also_from_another_shard(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    rows = [f"fox {number % 4}" for number in range(12)]
    run = airflow.run_dag(wide(rows, geminiimg_conn_id=apimaster, file_name=None))
    assert counts(run) == {"landed": 12}
    assert [line["images"] for line in lines(run)] == [line["images"] for line in lines(run)[:4]] * 3
    value = run.task("foxes.merge").value
    assert (value["items"], len(sandbox.ledger())) == (12, 4)
    assert sum(value["cost"].values()) == pytest.approx(4 * 0.0672)


def test_min_success_counts_the_images_of_all_shards(airflow: AirflowHarness, sandbox: Sandbox, apimaster: str) -> None:
    for number in (0, 1, 2):
        sandbox.faults(route="apimaster.submit", outcome="refused", prompt_contains=f"number {number}", times=1)
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster, min_success=9))
    assert states(run) == ["success", "failed", "success", "success", "success"], run.log
    assert run.state == "success"
    assert counts(run) == {"landed": 9, "refused": 3}
    assert "1 of 4 images landed (3 refused), min_success=3." in str(run.tasks("foxes.shards")[0].error)


def test_max_cost_is_divided_and_a_cap_that_is_too_low_stops_the_plan(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster, max_cost=0.8))
    assert "Buying 12 images would cost 0.8064 USD; max_cost is 0.8 USD." in str(run.task("foxes.plan").error)
    assert sandbox.ledger() == []
    clear(run, wide(ROWS, geminiimg_conn_id=apimaster, max_cost=0.8064))
    assert counts(run) == {"landed": 12}
    more = [*ROWS, {"prompt": "a new fox", "sku": "N"}]
    clear(run, wide(more, geminiimg_conn_id=apimaster, max_cost=0.0672, shards=4))
    assert counts(run) == {"reused": 12, "landed": 1}


def test_more_shards_than_airflow_maps_are_refused_when_the_dag_is_parsed_or_by_the_plan(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "4")
    with pytest.raises(BadRequestError, match=re.escape("max_map_length is 4")):
        wide(ROWS, shards=5)
    for wrong in ({"shards": None}, {"images_per_shard": 4}, {"shards": 0}, {"shards": "many"}):
        with pytest.raises(BadRequestError):
            wide(ROWS, **wrong)
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster, shards=None, images_per_shard=2))
    assert "12 images would be 6 shards" in str(run.task("foxes.plan").error)
    assert "images_per_shard to at least 3." in str(run.task("foxes.plan").error)
    assert sandbox.ledger() == []


def test_each_argument_of_airflow_reaches_the_tasks_that_it_is_for() -> None:
    images = Asset("images")
    dag = wide(ROWS, retries=4, pool="gateway", trigger_rule="none_failed", outlets=[images], max_concurrency=7)
    plan, shards, merge = (dag.task_dict[f"foxes.{name}"] for name in ("plan", "shards", "merge"))
    assert (plan.retries, shards.partial_kwargs["retries"], merge.retries) == (4, 4, 4)
    assert (plan.pool, shards.partial_kwargs["pool"], merge.pool) == ("gateway",) * 3
    assert (plan.trigger_rule, merge.trigger_rule) == ("none_failed", "all_done_min_one_success")
    assert (plan.outlets, shards.partial_kwargs.get("outlets") or [], merge.outlets) == ([], [], [images])
    assert shards.partial_kwargs["max_concurrency"] == 7
    assert not {"requests", "prompt", "max_cost", "file_name"} & shards.partial_kwargs.keys()
    with pytest.raises(TypeError, match="colour"):
        wide(ROWS, colour="red")


def test_prompts_are_deleted_after_landing_and_a_missing_plan_of_a_shard_is_an_error(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    plans = sorted(Path(local_root.removeprefix("file://"), "batches").rglob("*.json"))
    assert len(plans) == 3
    assert not any("fox number" in path.read_text() for path in plans)
    for path in plans:
        path.unlink()
    run.retry("foxes.shards")
    for each in run.tasks("foxes.shards"):
        assert isinstance(each.error, LedgerError)
        assert "is not under" in str(each.error)
    run.clear()
    assert isinstance(run.task("foxes.plan").error, LedgerError)
    assert len(sandbox.ledger()) == 12


def test_the_gallery_shows_the_images_of_one_shard_and_of_all_and_counts_those_that_have_not_started(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    sandbox.faults(route="apimaster.submit", status=401, prompt_contains="number 8")
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster, max_concurrency=1))
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    queries = GalleryQueries(ledger, "default", FILES)
    for shard, (images, missing) in {0: (4, 0), 1: (4, 0), 2: (1, 3), None: (9, 3)}.items():
        wanted = RecordFilter("many", run.run_id, "foxes.shards", shard)
        items, _ = queries.page(wanted, None, 100)
        summary = queries.summary(wanted)
        assert (len(items), summary["not_started"], summary["wanted"]) == (images, missing, images + missing)
    for task_id, index in (("foxes.plan", -1), ("foxes.shards", 1), ("foxes.merge", -1)):
        link = run.xcom(task_id, "_link_ImagesLink", index)
        assert "task_id=foxes.shards" in link
        assert ("map_index=1" in link) == (index == 1)


async def test_a_purge_removes_the_plans_of_all_shards_with_the_last_record(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    removed = [key async for key in reconcile.purge(ledger, reconcile.Scope("default", "many"), days=0.0)]
    assert Counter(key.partition("/")[0] for key in removed) == {"batches": 3, "ledger": 12}
    assert list(ledger.store.keys("batches/")) == []


@pytest.mark.skipif(not HAS_LOOPS, reason="this Airflow has no loops; 3.4 has")
def test_each_iteration_of_a_loop_has_images_of_its_own_and_a_clear_of_all_buys_none(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    usual = {**USUAL, "file_name": None}
    with DAG("looped", schedule=None) as dag:

        @task_group
        def body() -> None:
            image_batch("foxes", requests=["fox 1", "fox 2", "fox 3"], shards=2, geminiimg_conn_id=apimaster, **usual)

        cast("Any", body).loop(max_iterations=2)
    run = airflow.run_dag(dag, timeout=300)
    manifests = [run.task("body.foxes.merge", -1, iteration).value["manifest"] for iteration in range(2)]
    assert len({*manifests}) == 2
    assert len(sandbox.ledger()) == 6
    run.clear()
    assert [run.task("body.foxes.merge", -1, iteration).value["counts"]["reused"] for iteration in range(2)] == [3, 3]
    assert len(sandbox.ledger()) == 6


def test_a_shard_whose_rows_all_repeat_rows_of_earlier_shards_has_nothing_to_make(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    rows = ["a fox", "a wolf", "a fox", "a wolf"]
    run = airflow.run_dag(wide(rows, geminiimg_conn_id=apimaster, shards=2, file_name=None))
    assert states(run) == ["success"] * len(states(run)), run.log
    assert (len(lines(run)), len(sandbox.ledger())) == (4, 2)


def test_a_root_in_a_bucket_works_as_well(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, s3_root: str
) -> None:
    run = airflow.run_dag(wide(ROWS, geminiimg_conn_id=apimaster))
    assert run.task("foxes.merge").value["manifest"].startswith("s3://")
    run.clear()
    assert counts(run) == {"reused": 12}
    assert len(sandbox.ledger()) == 12


def names(run: Run) -> list[str]:
    """The file names of the images, in the order of the rows."""
    return [line["images"][0]["uri"].rpartition("/")[2] for line in lines(run)]


def test_rows_of_several_shards_never_share_a_name_and_keep_theirs_over_retries_and_clears(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    def rows(hero: str) -> list[dict[str, str]]:
        skus = {"hero": hero, "hero-2": "second", "hero-3": "third", "HERO-4": "fourth", "other": "fifth"}
        return [{"sku": sku, "prompt": f"{prompt} fox"} for sku, prompt in skus.items()]

    run = airflow.run_dag(wide(rows("first"), geminiimg_conn_id=apimaster, shards=5))
    assert names(run) == ["hero.png", "hero-2.png", "hero-3.png", "HERO-4.png", "other.png"]
    new = [{"sku": "hero-5", "prompt": "a new fox"}]
    clear(run, wide([*rows("edited"), *new], geminiimg_conn_id=apimaster, shards=3))
    expected = ["hero-6.png", "hero-2.png", "hero-3.png", "HERO-4.png", "other.png", "hero-5.png"]
    assert names(run) == expected
    run.clear("foxes.shards", "foxes.merge")
    assert names(run) == expected
    clear(run, wide([*rows("edited"), *new], geminiimg_conn_id=apimaster, shards=6))
    assert names(run) == expected
    assert len(sandbox.ledger()) == 7


def test_rows_of_several_shards_with_one_name_for_different_images_are_an_error_of_the_plan(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    rows = [{"sku": "hero", "prompt": "first fox"}, *ROWS, {"sku": "Hero", "prompt": "second fox"}]
    run = airflow.run_dag(wide(rows, geminiimg_conn_id=apimaster))
    assert "rows 0 and 13 would both get the name 'Hero'" in str(run.task("foxes.plan").error)
    assert sandbox.ledger() == []
