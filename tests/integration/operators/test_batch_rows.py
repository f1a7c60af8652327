"""What a batch's rows come to in a real Airflow: what is paid for, what the log and the error say, and the XCom."""

from __future__ import annotations

import datetime as dt
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, IncompleteError, OverBudgetError
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.integration.operators.test_batch import FILES, batch, counts, lines, prompts, why

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

pytestmark = pytest.mark.usefixtures("local_root")


# Files


def test_a_spreadsheets_file_lands_with_its_own_columns_in_prompt_and_file_name(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    table = tmp_path / "katalog.csv"
    table.write_bytes(
        "sep=;\r\nArtikel-Nr;Produktname;Format\r\n1007;Käse;\r\n;;\r\nŁ-8;Rennrad;\r\n;;\r\n".encode("cp1250")
    )
    arguments = {
        "geminiimg_conn_id": apimaster,
        "prompt": "Foto: {Produktname}",
        "file_name": "{Artikel_Nr}",
        "output_path": str(tmp_path / "shop"),
    }
    refused = airflow.run_dag(batch(str(table), **arguments))
    assert isinstance(why(refused), BadRequestError)
    assert "is not UTF-8" in str(why(refused))
    assert 'encoding="cp1252"' in str(why(refused))
    assert not sandbox.calls()
    refused.clear("pictures", dag=batch(str(table), encoding="cp1250", **arguments))
    assert refused.state == "success", refused.log
    assert prompts(sandbox) == ["Foto: Käse", "Foto: Rennrad"]
    assert sorted(path.stem for path in (tmp_path / "shop").glob("*.png")) == ["1007", "Ł-8"]
    assert [line["line"] for line in lines(refused)] == [3, 5]
    assert [line["row"] for line in lines(refused)] == [0, 1]


class Frame:
    """What a data frame is like: iterating it gives its columns' names."""

    columns = ("prompt", "sku")

    def __iter__(self) -> Any:
        return iter(self.columns)

    def to_dicts(self) -> list[dict[str, Any]]:
        return [{"prompt": "a fox", "sku": float("nan")}]


def test_a_function_may_return_a_data_frame(airflow: AirflowHarness, sandbox: Sandbox, apimaster: str) -> None:
    with DAG("many", schedule=None) as dag:

        @task.gemini_image_batch(geminiimg_conn_id=apimaster, poll_interval=0.05, resolution="512")
        def images() -> Any:
            return Frame()

        images()
    assert airflow.run_dag(dag).state == "success"
    assert prompts(sandbox) == ["a fox"]


@pytest.mark.parametrize("argument", [{"encoding": "utf-88"}, {"delimiter": "ab"}])
def test_an_encoding_or_a_delimiter_that_is_none_is_refused_when_the_dag_is_parsed(argument: dict[str, str]) -> None:
    with pytest.raises(BadRequestError, match=next(iter(argument))):
        batch("/data/rows.csv", **argument)


# Several images of a row


@pytest.mark.parametrize("row", [{"prompt": "a fox"}, {"prompt": "a fox", "variant": "bold"}], ids=["plain", "variant"])
def test_more_images_of_a_row_buy_only_the_further_ones_and_fewer_buy_none(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, row: dict[str, Any]
) -> None:
    def rows(n: int) -> DAG:
        return batch([{**row, "n": n}], geminiimg_conn_id=geminiimg_conn_id)

    run = airflow.run_dag(rows(1))
    for n, paid in ((2, 2), (3, 3), (1, 3)):
        run.clear("pictures", dag=rows(n))
        assert run.state == "success", run.log
        assert len(lines(run)) == n
        assert len(sandbox.ledger()) == paid


@pytest.mark.parametrize("variant", [None, "bold"])
def test_several_images_that_a_version_before_made_are_found_after_a_clear_and_by_other_runs(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, variant: str | None
) -> None:
    prefix = "" if variant is None else f"{variant}-"
    row = {"prompt": "a fox", **({} if variant is None else {"variant": variant})}
    before = [{"prompt": "a fox", "variant": f"{prefix}{number}"} for number in (1, 2)]  # as it told them apart
    run = airflow.run_dag(batch(before, geminiimg_conn_id=apimaster))
    now = batch([{**row, "n": 2}], geminiimg_conn_id=apimaster, reuse="dag")
    run.clear("pictures", dag=now)
    assert counts(run) == {"reused": 2}
    assert len(sandbox.ledger()) == 2
    other = airflow.run_dag(now, run_id="next")
    assert counts(other) == {"reused": 2}
    assert len(sandbox.ledger()) == 2
    run.clear("pictures", dag=batch([{**row, "n": 3}], geminiimg_conn_id=apimaster))
    assert len(sandbox.ledger()) == 3


def test_a_first_image_of_its_own_is_not_taken_for_another_rows(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    rows = [{"prompt": "a fox", "variant": "1"}]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=apimaster))
    run.clear("pictures", dag=batch([*rows, {"prompt": "a fox", "n": 2}], geminiimg_conn_id=apimaster))
    assert counts(run) == {"reused": 1, "landed": 2}
    assert len({line["images"][0]["uri"] for line in lines(run)}) == 3
    assert len(sandbox.ledger()) == 3


def test_a_whole_variant_is_one_image_whether_a_library_made_a_float_of_it_or_not(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    def rows(*values: Any, **row: Any) -> DAG:
        requests = [{"prompt": "a fox", "variant": value, **row} for value in values]
        return batch(requests, geminiimg_conn_id=apimaster, reuse="dag")

    run = airflow.run_dag(rows(1, 2))
    for again in (rows(1.0, 2.0), rows("1.0", "2"), rows(1, 2)):
        run.clear("pictures", dag=again)
        assert counts(run) == {"reused": 2}
    assert len(sandbox.ledger()) == 2
    before = airflow.run_dag(rows("7.0-1", "7.0-2"), run_id="before")  # as versions before wrote two of 7.0
    for again in (rows(7.0, n=2), rows(7, n=2)):
        before.clear("pictures", dag=again)
        assert counts(before) == {"reused": 2}
    assert len(sandbox.ledger()) == 4


def test_what_was_bought_under_a_floats_text_is_found(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    for number, variant in enumerate([3.0, 3, "3"]):
        with DAG("many", schedule=None) as dag:
            single = GeminiImageGenerateOperator(
                task_id="single", prompt="a fox", variant="3.0", geminiimg_conn_id=apimaster, poll_interval=0.02
            )
            single >> GeminiImageBatchOperator(
                task_id="pictures",
                requests=[{"prompt": "a fox", "variant": variant}],
                geminiimg_conn_id=apimaster,
                reuse="dag",
                poll_interval=0.02,
            )
        run = airflow.run_dag(dag, run_id=f"run-{number}")
        assert run.state == "success", run.log
        assert counts(run) == {"reused": 1}
    assert len(sandbox.ledger()) == 3


def test_a_plan_of_the_version_before_is_kept_to_by_a_retry(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults({"route": "apimaster.submit"}, {"route": "apimaster.submit", "status": 503, "times": 1})
    rows = [{"prompt": "a fox", "variant": "1"}, {"prompt": "a fox", "variant": "2"}]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=apimaster, max_concurrency=1))
    assert counts(run) == {"landed": 1, "failed": 1}
    [kept] = (tmp_path / "root" / "batches").rglob("*.json")
    plan = json.loads(kept.read_text())
    for item in plan["items"]:
        del item["line"]  # which that version did not know
    kept.write_text(json.dumps(plan))
    run.retry("pictures", dag=batch([{"prompt": "a fox", "n": 2}], geminiimg_conn_id=apimaster))
    assert run.state == "success", run.log
    assert [line["requested"]["variant"] for line in lines(run)] == ["1", "2"]
    assert len(sandbox.ledger()) == 2


# Names of files


def test_labels_of_any_script_name_files_on_disk_and_in_a_bucket(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, root: str
) -> None:
    names = ["Łódź", "红色 狐狸", "Красная лиса", unicodedata.normalize("NFD", "Größe é"), "हिन्दी", "Käse/7 ä"]
    rows = [{"prompt": f"animal {number}", "Name": name} for number, name in enumerate(names)]
    dag = batch(rows, geminiimg_conn_id=apimaster, file_name="{name}", output_path=f"{root}/shop")
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    uris = [line["images"][0]["uri"] for line in lines(run)]
    stems = ["Łódź", "红色-狐狸", "Красная-лиса", "Größe-é", "हिन्दी", "Käse-7-ä"]
    assert uris == [f"{root}/shop/{stem}.png" for stem in stems]
    assert all(FILES.sha256(line["images"][0]["uri"]) == line["images"][0]["sha256"] for line in lines(run))
    run.clear("pictures")
    assert counts(run) == {"reused": 6}
    assert len(sandbox.ledger()) == 6


# Twins


def test_rows_that_hardly_differ_are_named_in_the_log(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    composed = unicodedata.normalize("NFC", "a café in Łódź")
    rows = [
        composed,
        unicodedata.normalize("NFD", composed),
        "a  fox\n",
        "a fox",
        "a\u00a0fox",
        {"prompt": "a fox", "aspect_ratio": "16:9"},
        "a wolf",
        "a wolf",
    ]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=apimaster))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 7
    assert re.search(r"white space or in the encoding of letters: rows 0 and 1; rows 2, 3 and 4\.", run.log)
    assert "the same image, so it is made once: rows 6 and 7." in run.log
    assert "a fox" not in run.log


# What a failed batch hands on


def failing(tmp_path: Path, **arguments: Any) -> DAG:
    table = tmp_path / "products.csv"
    table.write_text('sku,prompt\n\nRT-1,a fox\n,\nRT-2,"a\nwolf"\nRT-3,a bear\n')
    return batch(str(table), max_concurrency=1, **arguments)


def test_a_batch_that_fails_names_lines_and_labels_and_its_summary_is_the_xcom(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults(
        {"route": "apimaster.submit"},
        {"route": "apimaster.submit"},
        {"route": "apimaster.submit", "outcome": "refused"},
    )
    run = airflow.run_dag(failing(tmp_path, geminiimg_conn_id=apimaster))
    error = why(run)
    assert isinstance(error, IncompleteError)
    assert "2 of 3 images landed (1 refused)" in str(error)
    assert "Line 7 (sku='RT-3'), refused: " in str(error)
    assert "The image was paid for." not in str(error)
    assert "The images that landed were paid for" in str(error)
    made = run.task("pictures")
    assert (made.state, made.try_number) == ("failed", 1)
    assert made.value["counts"]["refused"] == 1
    assert made.value["items"] == 3
    assert [line["line"] for line in lines(run)] == [3, 5, 7]
    assert str(made.value["manifest"]) in str(error)
    assert Path(made.value["manifest"].removeprefix("file://")).exists()


def test_the_summary_of_an_attempt_that_is_retried_gives_way_to_the_next_ones(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults(route="apimaster.submit", status=503, times=1)
    dag = failing(tmp_path, geminiimg_conn_id=apimaster, retries=1, retry_delay=dt.timedelta(0))
    run = airflow.run_dag(dag)
    made = run.task("pictures")
    assert (made.state, made.try_number) == ("success", 2)
    assert made.value["counts"] == {"landed": 1, "reused": 2, "refused": 0, "failed": 0, "unknown": 0, "skipped": 0}
    assert len(sandbox.ledger()) == 3


@pytest.mark.parametrize("more", [{"do_xcom_push": False}, {"multiple_outputs": True}], ids=["none", "several"])
def test_the_xcoms_of_a_batch_that_fails_are_those_that_it_would_have_returned(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, more: dict[str, Any]
) -> None:
    sandbox.faults(route="apimaster.submit", outcome="refused")
    with DAG("many", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="pictures",
            requests=["a fox"],
            geminiimg_conn_id=apimaster,
            poll_interval=0.05,
            **more,
        )
    run = airflow.run_dag(dag)
    assert run.state == "failed"
    keys = ("return_value", "items", "manifest")
    values = [run.xcom("pictures", key) for key in keys]
    assert [value is not None for value in values] == ([False] * 3 if "do_xcom_push" in more else [True] * 3)


def test_a_cap_that_refuses_leaves_the_summary_of_what_was_collected(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str]
) -> None:
    conn_id = connect("capped", **sandbox.connection("apimaster"))
    run = airflow.run_dag(batch(["a fox"], geminiimg_conn_id=conn_id))
    run.clear("pictures", dag=batch(["a fox", "a wolf"], geminiimg_conn_id=conn_id, max_cost=0.0001))
    error = why(run)
    assert isinstance(error, OverBudgetError | BadRequestError)
    assert error.billed is Billed.NO
    assert "have been collected" in str(error)
    counted = run.task("pictures").value["counts"]
    assert (counted["reused"], counted["failed"]) == (1, 1)
    assert len(sandbox.ledger()) == 1
