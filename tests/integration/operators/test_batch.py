"""Many images in one task, in a real Airflow, against the sandbox over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image

from airflow_provider_geminiimg.core.ledger.layout import open_prefix
from airflow_provider_geminiimg.core.ledger.open_index import is_open, mark_complete, read_open_entry, root_of
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import Scope, walk_open
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, IncompleteError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.attempts import Attempts
from tests.harness.shop import png
from tests.harness.storage_faults import DiskFaults

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")
FILES = Files(AIRFLOW_OPENERS)
ANIMALS = ["a red fox", "a grey wolf", "a brown bear"]


def batch(requests: Any, **arguments: Any) -> DAG:
    with DAG("many", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="pictures", requests=requests, **{"poll_interval": 0.05, "resolution": "512", **arguments}
        )
    return dag


def lines(run: Run) -> list[dict[str, Any]]:
    """The rows of the manifest, in order."""
    from airflow_provider_geminiimg import settings
    from airflow_provider_geminiimg.core.storage import encode_segment, join_uri

    place = f"images/many/{encode_segment(run.run_id)}/pictures/-1/manifest.jsonl"
    data = FILES.read(join_uri(settings.root(), place), max_bytes=64_000_000)
    return [json.loads(line) for line in data.splitlines()]


def counts(run: Run) -> dict[str, int]:
    """What became of the images, by the manifest."""
    return dict(Counter(line["status"] for line in lines(run)))


def prompts(sandbox: Sandbox) -> list[str]:
    """What was paid for at the gateway."""
    return sorted(entry["prompt"] for entry in sandbox.ledger())


def why(run: Run) -> BaseException:
    """The outcome with which the task failed."""
    error = run.task("pictures").error
    assert error is not None, run.log
    if isinstance(error, AirflowFailException):
        assert error.__cause__ is not None
        return error.__cause__
    return error


def test_a_list_of_prompts_lands_in_order_each_paid_once_and_the_summary_is_small(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, root: str
) -> None:
    run = airflow.run_dag(batch(ANIMALS, geminiimg_conn_id=geminiimg_conn_id))
    assert run.state == "success", run.log
    value = run.task("pictures").value
    assert value["items"] == 3
    assert value["counts"] == {"landed": 3, "reused": 0, "refused": 0, "failed": 0, "unknown": 0, "skipped": 0}
    assert len(json.dumps(value)) < 2000
    assert value["manifest"].startswith(f"{root}/images/many/")
    assert prompts(sandbox) == sorted(ANIMALS)
    found = lines(run)
    assert [line["row"] for line in found] == [0, 1, 2]
    for line in found:
        image = line["images"][0]
        assert FILES.sha256(image["uri"]) == image["sha256"]
    assert not any(prompt in json.dumps(found) for prompt in ANIMALS)


def test_a_manifest_that_can_not_be_written_says_that_the_images_were_paid_for_and_a_retry_pays_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskFaults()
    disk.begin(lambda path, body: b'"status": "landed"' in body)
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    run = airflow.run_dag(batch(ANIMALS, geminiimg_conn_id=apimaster))
    error = why(run)
    assert isinstance(error, StorageError)
    assert error.billed is Billed.YES
    assert "The image was paid for." not in str(error), "there are three"
    assert str(error).endswith("The images that landed stay. A retry writes the manifest again, at no cost.")
    summary = run.task("pictures").value
    assert (summary["items"], summary["counts"]["landed"], summary["manifest"]) == (3, 3, None)
    assert sum(summary["cost"].values()) == pytest.approx(0.2016)
    disk.end()
    run.retry("pictures")
    assert counts(run) == {"reused": 3}
    assert len(sandbox.ledger()) == 3


def test_a_plan_that_can_not_be_finished_after_all_has_landed_loses_no_summary(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskFaults()
    disk.begin(lambda path, body: "/batches/" in path and b'"values":{}' in body.replace(b" ", b""))
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    run = airflow.run_dag(batch(ANIMALS, geminiimg_conn_id=apimaster))
    disk.end()
    assert isinstance(why(run), StorageError)
    summary = run.task("pictures").value
    assert (summary["items"], summary["counts"]["landed"]) == (3, 3)
    assert (len(lines(run)), summary["manifest"].endswith("/manifest.jsonl")) == (3, True)
    run.retry("pictures")
    assert counts(run) == {"reused": 3}
    assert len(sandbox.ledger()) == 3


def test_two_tasks_of_one_prompt_are_told_apart_and_what_stands_twice_is_made_once(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    rows = [{"prompt": "a red fox", "n": 2}, "a grey wolf", "a grey wolf"]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=onemin))
    found = lines(run)
    assert prompts(sandbox) == ["a grey wolf", "a red fox", "a red fox"]
    assert [line["row"] for line in found] == [0, 0, 1, 2]
    assert [line["requested"].get("variant") for line in found] == [None, "2", None, None]
    assert found[2]["images"] == found[3]["images"]
    assert len({line["images"][0]["uri"] for line in found}) == 3
    assert run.task("pictures").value["cost"] == {"USD (google_list, estimate)": 0.1344}
    assert re.search(r"3 of 3 images done \(3 landed\), 0 in flight, [0-9.]+ per second, cost: 0\.1344 USD", run.log)


def test_a_table_makes_and_edits_and_names_each_file_after_its_columns(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    source = airflow.run_dag(one_image(apimaster)).task("source").value["images"][0]
    table = tmp_path / "products.csv"
    table.write_text(
        "sku,title,prompt,image,aspect_ratio\n"
        "A-1,Chair,a chair,,16:9\n"
        f'B/2,"Table, round",make it winter,{source["uri"]},\n'
    )
    folder = tmp_path / "shop"
    run = airflow.run_dag(
        batch(
            str(table),
            geminiimg_conn_id=apimaster,
            output_path=str(folder),
            file_name="{sku}-{resolution}-{row}",
        )
    )
    assert run.state == "success", run.log
    assert [line["operation"] for line in lines(run)] == ["generate", "edit"]
    assert [line["labels"]["title"] for line in lines(run)] == ["Chair", "Table, round"]
    assert lines(run)[0]["requested"]["aspect_ratio"] == "16:9"
    stems = sorted(path.stem for path in folder.iterdir() if path.suffix != ".json")
    assert stems == ["A-1-512-0", "B-2-512-1"]
    [edit] = [entry for entry in sandbox.ledger() if entry["operation"] == "edit"]
    assert [each["sha256"] for each in edit["inputs"]] == [source["sha256"]]


def one_image(conn_id: str) -> DAG:
    with DAG("source", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="source", prompt="a chair", geminiimg_conn_id=conn_id, poll_interval=0.05, resolution="512"
        )
    return dag


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "one prompt where a list is meant": ("a red fox", {}, "takes a list"),
    "a mapping where a list is meant": ({"prompt": "a red fox"}, {}, "takes a list"),
    "nothing at all": ([], {}, "is empty"),
    "a row that is a number": ([1], {}, r"requests\[0\]"),
    "a row without a prompt": ([{"sku": "A"}], {}, r"row 0 \(sku='A'\): prompt: there is no such column. Found: sku"),
    "a column that is nearly a field": ([{"prompt": "x", "aspect_ration": "1:1"}], {}, "Did you mean 'aspect_ratio'"),
    "a ratio that no model takes": (["x", {"prompt": "x", "aspect_ratio": "7:3"}], {}, "row 1: aspect_ratio"),
    "too many variants": ([{"prompt": "x", "n": 101}], {}, "n=101"),
    "an image that is not there": ([{"prompt": "x", "image": "/nowhere/a.png"}], {}, "Row 0: image"),
    "a name without its column": (["x"], {"file_name": "{sku}"}, "row 0 has no sku"),
    "two images of one name": (["x", "y"], {"file_name": "same"}, "rows 0 and 1"),
    "one name for all variants": (["x"], {"file_name": "{row}", "n": 2}, "rows 0 and 0"),
    "a file that is not there": ("/nowhere/rows.csv", {}, "does not exist"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_can_not_be_made_is_refused_before_anything_is_sent(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, wrong: tuple[Any, dict[str, Any], str]
) -> None:
    requests, arguments, said = wrong
    run = airflow.run_dag(batch(requests, geminiimg_conn_id=onemin, **arguments))
    error = why(run)
    assert isinstance(error, BadRequestError)
    assert re.search(said, str(error)), str(error)
    assert "No money was spent." in str(error)
    assert not sandbox.calls()


@pytest.mark.parametrize("argument", ["n", "max_concurrency", "min_success", "on_item_failure", "file_name"])
def test_a_literal_that_is_wrong_is_refused_when_the_dag_is_parsed(argument: str) -> None:
    with pytest.raises(BadRequestError, match=argument):
        batch(["x"], **{argument: "{a b}" if argument == "file_name" else "-1"})


def test_a_failure_leaves_the_others_alone_and_a_clear_makes_only_what_is_missing(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults(route="apimaster.submit", outcome="refused")
    dag = batch(ANIMALS, geminiimg_conn_id=apimaster, max_concurrency=1)
    run = airflow.run_dag(dag)
    error = why(run)
    assert isinstance(error, IncompleteError)
    assert "2 of 3 images landed" in str(error)
    assert "Row 0, refused" in str(error)
    assert run.task("pictures").try_number == 1, "no retry can help"
    assert counts(run) == {"refused": 1, "landed": 2}
    made = len(sandbox.ledger())
    run.clear("pictures", dag=batch(ANIMALS[::-1], geminiimg_conn_id=apimaster))
    assert run.state == "success", run.log
    assert [line["status"] for line in lines(run)] == ["reused", "reused", "landed"]
    assert len(sandbox.ledger()) == made + 1


def test_a_retry_keeps_to_what_the_first_attempt_planned(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults({"route": "apimaster.submit"}, {"route": "apimaster.submit", "status": 500, "times": 1})
    first = batch(ANIMALS, geminiimg_conn_id=apimaster, max_concurrency=1, on_unknown="resubmit")
    run = airflow.run_dag(first)
    assert counts(run) == {"landed": 2, "unknown": 1}
    other = batch(["a white owl"], geminiimg_conn_id=apimaster, on_unknown="resubmit")
    run.retry("pictures", dag=other)
    assert run.state == "success", run.log
    assert counts(run) == {"reused": 2, "landed": 1}
    assert "a white owl" not in prompts(sandbox)
    run.clear("pictures")
    assert "a white owl" in prompts(sandbox)


def test_a_plan_with_hashes_of_other_images_than_it_asks_with_buys_none_of_them_and_the_others_go_on(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults({"route": "apimaster.submit", "status": 500, "times": 2})
    run = airflow.run_dag(batch(ANIMALS, geminiimg_conn_id=apimaster, max_concurrency=1, on_unknown="resubmit"))
    assert counts(run) == {"unknown": 2, "landed": 1}
    [kept] = (tmp_path / "root" / "batches").rglob("*.json")
    plan = json.loads(kept.read_text())
    plan["items"][1]["input_sha256"] = ["0" * 64]
    kept.write_text(json.dumps(plan))
    made = len(sandbox.ledger())
    run.retry("pictures")
    assert "it has hashes of 1 input images for a request with 0" in str(why(run))
    assert counts(run) == {"landed": 1, "failed": 1, "reused": 1}
    assert len(sandbox.ledger()) == made + 1
    run.clear("pictures")
    assert run.state == "success", run.log


def test_the_prompts_of_a_plan_are_kept_no_longer_than_until_all_has_landed(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults(route="apimaster.submit", outcome="refused")
    run = airflow.run_dag(batch(ANIMALS, geminiimg_conn_id=apimaster))
    [kept] = (tmp_path / "root" / "batches").rglob("*.json")
    assert all(prompt in kept.read_text() for prompt in ANIMALS)
    run.clear("pictures")
    assert run.state == "success", run.log
    [rest] = (tmp_path / "root" / "batches").rglob("*.json")
    assert rest != kept
    assert not any(prompt in rest.read_text() for prompt in ANIMALS)


@pytest.mark.parametrize("setting", [{"credits": 0, "balance": 0}], ids=["no money"])
def test_an_account_without_money_ends_it_at_once_and_a_retry_goes_on_when_there_is_some(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, setting: dict[str, Any]
) -> None:
    sandbox.settings(**setting)
    prompts_ = [f"animal {number}" for number in range(20)]
    run = airflow.run_dag(batch(prompts_, geminiimg_conn_id=geminiimg_conn_id, max_concurrency=2))
    found = counts(run)
    assert found["failed"] <= 2
    assert found["failed"] + found["skipped"] == 20
    assert not sandbox.ledger()
    assert "No money was spent." in str(why(run))
    sandbox.settings(credits=1_000_000, balance=1000)
    run.clear("pictures")
    assert counts(run) == {"landed": 20}
    assert len(sandbox.ledger()) == 20


def test_three_unknown_outcomes_in_a_row_start_no_further_image(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", drop=True, charge="after", times=20)
    run = airflow.run_dag(
        batch([f"animal {number}" for number in range(20)], geminiimg_conn_id=geminiimg_conn_id, max_concurrency=1)
    )
    assert counts(run) == {"unknown": 3, "skipped": 17}
    assert len(sandbox.ledger()) == 3
    assert "Money may have been spent." in str(why(run))


def test_what_a_kill_left_unknown_is_not_sent_again_and_keeps_nothing_else_from_landing(
    sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    """`make test-heavy` does this to a thousand images."""
    prompts_ = [f"animal {number}" for number in range(60)]
    unanswered: set[str] = set()
    with Attempts(tmp_path) as attempts:
        attempts.start("killed", prompts_, geminiimg_conn_id=apimaster)
        for before in (9, 14):
            sandbox.faults(
                {"route": "apimaster.submit", "times": before},
                {"route": "apimaster.submit", "hold": True, "charge": "after", "times": 8},
            )
            assert len(sandbox.held(8, timeout=60)) == 8, attempts.said()
            attempts.kill()
            unanswered |= attempts.unanswered()
            sandbox.release()
            attempts.deadlines_pass()
            attempts.again()
        attempts.ended()
        became = attempts.by_status()
    assert became.pop("unknown") == unanswered
    assert became.pop("reused", set()) | became.pop("landed") == set(prompts_) - unanswered
    assert not became
    assert len(unanswered) == 16
    assert prompts(sandbox) == sorted(prompts_)


def test_what_a_killed_batch_leaves_open_is_found_by_the_one_entry_that_it_wrote(
    sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    with Attempts(tmp_path) as attempts:
        attempts.start("killed", [f"animal {number}" for number in range(20)], geminiimg_conn_id=apimaster)
        sandbox.faults(
            {"route": "apimaster.submit", "times": 4},
            {"route": "apimaster.submit", "hold": True, "charge": "after", "times": 8},
        )
        assert len(sandbox.held(8, timeout=60)) == 8, attempts.said()
        attempts.kill()
        sandbox.release()
        open_ = {found.record.key for found in attempts.records() if is_open(found.record)}
        assert len(open_) >= 8
        store = attempts.ledger.store
        [key] = store.keys(open_prefix("default"))
        entry = read_open_entry(store, key)
        assert entry is not None
        assert len(entry.items) == 20
        mark_complete(store, "default", root_of(store))
        assert open_ <= asyncio.run(_walked(attempts.ledger))


async def _walked(ledger: Ledger) -> set[str]:
    """The records that a collect would read."""
    return {entry.key async for entry in walk_open(ledger, Scope("default"))}


def test_fail_fast_starts_no_further_image_and_lands_what_is_under_way(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.faults({"route": "apimaster.submit"}, {"route": "apimaster.submit", "outcome": "refused"})
    run = airflow.run_dag(
        batch(
            [f"animal {number}" for number in range(20)],
            geminiimg_conn_id=apimaster,
            max_concurrency=2,
            on_item_failure="fail_fast",
        )
    )
    found = counts(run)
    assert found["refused"] == 1
    assert found["landed"] == len(sandbox.ledger()) - 1
    assert found["skipped"] > 10


@pytest.mark.parametrize(("least", "state"), [(2, "success"), (0.6, "success"), ("0.7", "failed"), (3, "failed")])
def test_so_many_must_land_for_the_task_to_succeed(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, least: Any, state: str
) -> None:
    sandbox.faults(route="apimaster.submit", outcome="refused")
    run = airflow.run_dag(batch(ANIMALS, geminiimg_conn_id=apimaster, min_success=least))
    assert run.state == state, run.log
    assert counts(run) == {"refused": 1, "landed": 2}


def test_an_image_that_changed_since_the_plan_is_not_bought(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, connect: Callable[..., str], tmp_path: Path
) -> None:
    conn_id = connect("told_to_wait", **sandbox.connection("apimaster"))  # all that share an account would wait
    source = airflow.run_dag(one_image(apimaster)).task("source").value["images"][0]["uri"]
    copy = tmp_path / "source.png"
    copy.write_bytes(FILES.read(source, max_bytes=64_000_000))
    made = len(sandbox.ledger())
    sandbox.faults(route="apimaster.submit", status=429, times=1, headers={"Retry-After": "600"})
    run = airflow.run_dag(batch([{"prompt": "make it winter", "image": str(copy)}], geminiimg_conn_id=conn_id))
    assert run.state == "failed"
    with Image.open(copy) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(copy)
    run.retry("pictures")
    assert "has changed since the request was planned" in str(why(run))
    assert len(sandbox.ledger()) == made


def test_another_tasks_list_is_taken_as_it_is_braces_included(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    said = ["a fox that says {{ 1 + 1 }}", "a wolf"]
    with DAG("many", schedule=None) as dag:

        @task
        def think() -> Sequence[str]:
            return said

        GeminiImageBatchOperator(
            task_id="pictures", requests=think(), geminiimg_conn_id=onemin, poll_interval=0.05, resolution="512"
        )
    airflow.run_dag(dag)
    assert prompts(sandbox) == sorted(said)


def test_edits_with_the_same_inputs_share_their_uploads(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path
) -> None:
    shared = [str(tmp_path / f"{colour}.png") for colour in ("red", "green", "blue")]
    for place, colour in zip(shared, ("red", "green", "blue"), strict=True):
        Path(place).write_bytes(png(colour))
    rows = [{"prompt": f"scene {number}", "image": shared[0], "reference_images": shared[1:]} for number in range(10)]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=onemin))
    assert counts(run) == {"landed": 10}, run.log
    assert len(prompts(sandbox)) == 10
    assert len(sandbox.calls("onemin.upload")) == 3


def test_an_upload_that_failed_is_made_again_by_the_next_image(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path
) -> None:
    place = tmp_path / "red.png"
    place.write_bytes(png())
    sandbox.faults(route="onemin.upload", status=400)
    rows = [{"prompt": f"scene {number}", "image": str(place)} for number in range(3)]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=onemin, min_success=0))
    assert counts(run) == {"failed": 1, "landed": 2}, run.log
    assert len(sandbox.calls("onemin.upload")) == 2


def test_after_a_failed_paid_request_its_input_is_uploaded_again(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path
) -> None:
    """The gateway may have forgotten the upload, and then all others would fail as well."""
    place = tmp_path / "red.png"
    place.write_bytes(png())
    sandbox.faults(route="onemin.submit", status=400)
    rows = [{"prompt": f"scene {number}", "image": str(place)} for number in range(4)]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=onemin, min_success=0, max_concurrency=1))
    assert counts(run) == {"failed": 1, "landed": 3}, run.log
    assert len(sandbox.calls("onemin.upload")) == 2
