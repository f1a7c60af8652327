"""Names of files: whose they are, when they are free again, and that nobody's file is replaced.

One image and a batch alike, in a real Airflow, against the sandbox over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase import copying
from airflow_provider_geminiimg.core.reconcile.scan import Scope
from airflow_provider_geminiimg.core.storage import encode_segment, open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import read_submission

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")
REUSE = pytest.mark.parametrize("reuse", ["task", "dag"])
SKUS = [{"prompt": "a chair", "sku": "RT-1"}, {"prompt": "a table", "sku": "RT-2"}]


class Shop:
    """One task that names its files itself; `many`: a batch of rows."""

    def __init__(self, airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, folder: Path) -> None:
        self.airflow = airflow
        self.sandbox = sandbox
        self.conn_id = conn_id
        self.folder = folder
        self.run: Run | None = None

    def many(self, rows: Sequence[Any], **more: Any) -> Run:
        """Run a batch, or clear the run that there is and run it again."""
        usual = {"file_name": "{sku}", "output_path": str(self.folder), "resolution": "512", "poll_interval": 0.02}
        with DAG("named", schedule=None) as dag:
            GeminiImageBatchOperator(
                task_id="made", requests=list(rows), geminiimg_conn_id=self.conn_id, **{**usual, **more}
            )
        return self._go(dag)

    def one(self, prompt: str, dag_id: str = "named", **more: Any) -> Run:
        """The same for one image."""
        usual = {"file_name": "RT-1", "output_path": str(self.folder), "resolution": "512", "poll_interval": 0.02}
        with DAG(dag_id, schedule=None) as dag:
            GeminiImageGenerateOperator(
                task_id="made", prompt=prompt, geminiimg_conn_id=self.conn_id, **{**usual, **more}
            )
        return self._go(dag)

    def _go(self, dag: DAG) -> Run:
        self.run = self.airflow.run_dag(dag) if self.run is None else self.run.clear("made", dag=dag)
        return self.run

    def again(self) -> Run:
        """Clear the task of the run that there is."""
        assert self.run is not None
        return self.run.clear("made")

    def error(self) -> str:
        """Why the task failed."""
        assert self.run is not None
        made = self.run.task("made")
        assert made.state == "failed", made.log
        assert made.error is not None
        cause = made.error.__cause__ if isinstance(made.error, AirflowFailException) else made.error
        return str(cause)

    def images(self) -> dict[str, str]:
        """The prompt that each image in the folder was paid for with, by file name."""
        prompts = {entry["number"]: entry["prompt"] for entry in self.sandbox.ledger()}
        paths = sorted(path for path in self.folder.iterdir() if path.suffix != ".json")
        return {path.name: prompts[read_submission(path.read_bytes())] for path in paths}

    def manifest(self) -> dict[str, str]:
        """The file that the batch says each row has, by row; the status where it has none."""
        assert self.run is not None
        place = f"images/named/{encode_segment(self.run.run_id)}/made/-1/manifest.jsonl"
        text = Path(settings.root().removeprefix("file://"), place).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        named = {line["row"]: line["images"][0]["uri"] if "images" in line else line["status"] for line in lines}
        return {str(row): said.rpartition("/")[2] for row, said in named.items()}

    @property
    def ledger(self) -> Ledger:
        return Ledger(open_store(settings.root(), AIRFLOW_OPENERS))

    def record_keys(self) -> list[str]:
        return list(self.ledger.store.keys("ledger/"))

    def paid(self) -> int:
        return len(self.sandbox.ledger())


@pytest.fixture
def shop(airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path) -> Shop:
    return Shop(airflow, sandbox, apimaster, tmp_path / "out")


# A name belongs to the task instance


@REUSE
def test_in_a_batch_an_edited_prompt_is_made_beside_the_first_image_and_found_there_again(
    shop: Shop, reuse: str
) -> None:
    assert shop.many(SKUS, reuse=reuse).state == "success"
    edited = [{**SKUS[0], "prompt": "a red chair"}, SKUS[1]]
    assert shop.many(edited, reuse=reuse).state == "success", shop.error()
    made = {"RT-1.png": "a chair", "RT-1-2.png": "a red chair", "RT-2.png": "a table"}
    assert shop.images() == made
    assert shop.manifest() == {"0": "RT-1-2.png", "1": "RT-2.png"}
    assert shop.run is not None
    for again in (shop.run.retry, lambda *_: shop.many(edited, reuse=reuse)):
        again("made")
        assert shop.run.state == "success"
        assert shop.manifest() == {"0": "RT-1-2.png", "1": "RT-2.png"}
    assert shop.many(SKUS, reuse=reuse).state == "success"
    assert shop.manifest() == {"0": "RT-1.png", "1": "RT-2.png"}
    once_more = [{**SKUS[0], "prompt": "a blue chair"}, SKUS[1]]
    assert shop.many(once_more, reuse=reuse).state == "success"
    assert shop.images() == {**made, "RT-1-3.png": "a blue chair"}
    assert shop.paid() == 4


@REUSE
def test_in_a_batch_a_row_may_be_inserted_where_files_are_named_after_rows(shop: Shop, reuse: str) -> None:
    usual = {"file_name": "{row}", "reuse": reuse}
    assert shop.many(["a chair", "a table"], **usual).state == "success"
    rows = ["a lamp", "a chair", "a table"]
    for _ in range(2):
        assert shop.many(rows, **usual).state == "success", shop.error()
        named = shop.manifest()
        assert [shop.images()[named[str(row)]] for row in range(3)] == rows
        assert [name.partition(".")[0].partition("-")[0] for name in named.values()] == ["0", "1", "2"]
        assert {"0.png": "a chair", "1.png": "a table"}.items() <= shop.images().items()
        assert len(shop.images()) == 5
        assert shop.paid() == 3


def test_in_a_batch_all_prompts_may_change_at_once_and_change_places(shop: Shop) -> None:
    shop.many(SKUS)
    swapped = [{**SKUS[0], "prompt": "a table"}, {**SKUS[1], "prompt": "a chair"}]
    assert shop.many(swapped).state == "success"
    assert shop.paid() == 2, "what has landed is copied to its new name"
    named = shop.manifest()
    assert [shop.images()[named[row]] for row in "01"] == ["a table", "a chair"]
    new = [{**row, "prompt": f"{row['prompt']} of glass"} for row in SKUS]
    assert shop.many(new).state == "success"
    named = shop.manifest()
    assert [shop.images()[named[row]] for row in "01"] == ["a chair of glass", "a table of glass"]
    assert shop.paid() == 4


def test_a_number_that_is_added_never_takes_another_rows_name(shop: Shop) -> None:
    shop.many([{"prompt": "a chair", "sku": "RT"}])
    rows = [{"prompt": "a red chair", "sku": "RT"}, *({"prompt": f"a {n}", "sku": f"RT-{n}"} for n in range(2, 8))]
    assert shop.many(rows, max_concurrency=50).state == "success"
    named = shop.manifest()
    assert len(set(named.values())) == 7
    assert [shop.images()[named[str(row)]] for row in range(7)] == [row["prompt"] for row in rows]
    assert shop.paid() == 8


def test_in_a_batch_a_name_that_is_under_way_is_not_given_to_another_prompt(shop: Shop) -> None:
    shop.sandbox.faults(route="download", status=500, times=3)
    assert shop.many(SKUS[:1]).state == "failed"
    assert shop.many([{**SKUS[0], "prompt": "a red chair"}]).state == "success"
    assert shop.images() == {"RT-1-2.png": "a red chair"}
    assert shop.many(SKUS[:1]).state == "success"
    assert shop.images() == {"RT-1.png": "a chair", "RT-1-2.png": "a red chair"}
    assert shop.paid() == 2


def test_a_file_that_is_somebody_elses_is_passed_over_where_a_number_is_added(shop: Shop) -> None:
    shop.many(SKUS[:1])
    (shop.folder / "RT-1-2.png").write_bytes(b"somebody's")
    assert shop.many([{**SKUS[0], "prompt": "a red chair"}]).state == "success"
    assert shop.manifest() == {"0": "RT-1-3.png"}
    assert (shop.folder / "RT-1-2.png").read_bytes() == b"somebody's"


@pytest.mark.parametrize("taken", ["RT-1.png", "RT-1.json"])
def test_a_name_that_a_file_of_somebody_elses_has_is_refused_in_a_batch_too(shop: Shop, taken: str) -> None:
    shop.folder.mkdir()
    (shop.folder / taken).write_bytes(b"somebody's")
    shop.many(SKUS)
    assert f"{taken} exists" in shop.error()
    assert (shop.folder / taken).read_bytes() == b"somebody's"
    assert shop.manifest() == {"0": "failed", "1": "RT-2.png"}
    assert shop.paid() == 1


def test_claims_that_earlier_versions_wrote_are_the_task_instances_too(shop: Shop) -> None:
    shop.many(SKUS)
    for path in Path(settings.root().removeprefix("file://"), "names").iterdir():
        claim = json.loads(path.read_text())
        path.write_text(json.dumps({"item": claim["item"], "stem": claim["stem"]}))
    assert shop.many([{**SKUS[0], "prompt": "a red chair"}, SKUS[1]]).state == "success"
    assert shop.manifest() == {"0": "RT-1-2.png", "1": "RT-2.png"}


# A claim that ended without a file


REFUSALS: dict[str, dict[str, Any]] = {
    "refused": {"outcome": "refused"},
    "failed after it was accepted": {"outcome": "bare_failed"},
    "no image": {"outcome": "no_image"},
    "busy": {"status": 503},
    "wrong": {"status": 400},
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=list(REFUSALS))
def test_rows_that_got_no_image_are_corrected_and_get_the_name_that_they_asked_for(
    shop: Shop, fault: dict[str, Any]
) -> None:
    shop.sandbox.faults(route="apimaster.submit", times=2, **fault)
    assert shop.many(SKUS).state == "failed"
    before = shop.paid()
    corrected = [{**row, "prompt": f"{row['prompt']}, please"} for row in SKUS]
    assert shop.many(corrected).state == "success", shop.error()
    assert shop.manifest() == {"0": "RT-1.png", "1": "RT-2.png"}
    assert shop.paid() == before + 2
    if fault.get("outcome") != "no_image":  # which was paid for, so the first prompts are not bought again
        assert shop.many(SKUS).state == "success"
        assert shop.manifest() == {"0": "RT-1-2.png", "1": "RT-2-2.png"}


def test_a_row_that_failed_before_it_had_a_record_is_corrected_and_gets_its_name(
    shop: Shop, onemin: str, tmp_path: Path
) -> None:
    """An upload that fails, a daily budget that is spent: the name was claimed, and no request was on its way."""
    source = tmp_path / "source.png"
    Image.new("RGB", (64, 36), "navy").save(source)
    shop.conn_id = onemin
    row = {"prompt": "make it winter", "image": str(source), "sku": "RT-1"}
    shop.sandbox.faults(route="onemin.upload", status=400)
    assert shop.many([row]).state == "failed"
    assert shop.record_keys() == []
    assert shop.many([{**row, "prompt": "make it summer"}]).state == "success", shop.error()
    assert shop.images() == {"RT-1.jpg": "make it summer"}


def test_one_image_that_was_refused_is_corrected_and_gets_the_name_that_it_asked_for(shop: Shop) -> None:
    shop.sandbox.faults(route="apimaster.submit", outcome="refused")
    assert shop.one("a chair").state == "failed"
    assert shop.one("a red chair").state == "success"
    assert list(shop.images()) == ["RT-1.png"]


def forget_all(shop: Shop) -> None:
    for key in reversed(shop.record_keys()):
        reconcile.forget(shop.ledger, key)


@pytest.mark.parametrize("outcome", ["refused", "image"])
def test_forgetting_a_record_frees_its_name_for_its_own_task(shop: Shop, outcome: str) -> None:
    shop.sandbox.faults(route="apimaster.submit", times=2, outcome=outcome)
    shop.many(SKUS)
    forget_all(shop)
    assert shop.many(SKUS).state == "success", shop.error()
    ending = "-2.png" if outcome == "image" else ".png"  # a file that is there stays
    assert shop.manifest() == {"0": f"RT-1{ending}", "1": f"RT-2{ending}"}
    assert shop.many(SKUS).state == "success"
    assert shop.manifest() == {"0": f"RT-1{ending}", "1": f"RT-2{ending}"}


@pytest.mark.parametrize("outcome", ["refused", "image"])
def test_forgetting_a_record_frees_its_name_for_other_tasks_once_there_is_no_file(shop: Shop, outcome: str) -> None:
    shop.sandbox.faults(route="apimaster.submit", outcome=outcome)
    shop.many(SKUS[:1])
    shop.run = None
    assert shop.one("a stool", "other").state == "failed"
    assert "claimed it" in shop.error()
    forget_all(shop)
    if outcome == "image":
        assert shop.again().state == "failed"
        assert "RT-1.png exists" in shop.error()
        for path in list(shop.folder.iterdir()):
            path.unlink()
    assert shop.again().state == "success", shop.error()
    assert shop.images() == {"RT-1.png": "a stool"}


def test_forgetting_a_record_leaves_the_name_that_another_item_has_taken_over(shop: Shop) -> None:
    shop.sandbox.faults(route="apimaster.submit", outcome="refused")
    shop.many(SKUS[:1])
    [refused] = shop.record_keys()
    shop.many([{**SKUS[0], "prompt": "a red chair"}])
    reconcile.forget(shop.ledger, refused)
    shop.run = None
    assert shop.one("a stool", "other").state == "failed"
    assert "claimed it" in shop.error()
    assert shop.images() == {"RT-1.png": "a red chair"}


def test_a_file_of_records_that_are_gone_keeps_its_name_so_that_nothing_is_bought_beside_it(shop: Shop) -> None:
    assert shop.one("a chair").state == "success"
    assert shop.run is not None
    root = Path(settings.root().removeprefix("file://"))
    (root / "ledger").rename(root / "lost")
    shop.run = None
    shop.airflow.close()
    assert shop.one("a chair").state == "failed"
    assert "RT-1.png exists" in shop.error()
    assert shop.paid() == 1


# What this task instance has left behind itself


def dies_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first copy ends where it calls a function, as if the process had died there."""
    real, calls = getattr(copying, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError("killed")
        return real(*args, **kwargs)

    monkeypatch.setattr(copying, name, dying)


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_an_edit_after_a_copy_within_the_dag_that_was_not_finished_goes_beside_its_image(
    shop: Shop, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(prompt: str, **more: Any) -> Run:
        rows = [{"prompt": prompt, "sku": "RT-1"}]
        return shop.many(rows, reuse="dag", **more) if many else shop.one(prompt, reuse="dag", **more)

    make("a chair", output_path=str(shop.folder.with_name("first")))
    first, shop.run = shop.run, None
    dies_once(monkeypatch, "build")
    with DAG("named", schedule=None) as dag:
        usual = {"output_path": str(shop.folder), "resolution": "512", "poll_interval": 0.02, "reuse": "dag"}
        more = {"task_id": "made", "geminiimg_conn_id": shop.conn_id, **usual}
        if many:
            GeminiImageBatchOperator(requests=[{"prompt": "a chair", "sku": "RT-1"}], file_name="{sku}", **more)
        else:
            GeminiImageGenerateOperator(prompt="a chair", file_name="RT-1", **more)
    assert first is not None
    shop.run = shop.airflow.run_dag(dag, run_id="second")
    assert shop.run.state == "failed"
    assert shop.images() == {"RT-1.png": "a chair"}
    assert make("a red chair").state == "success", shop.error()
    assert shop.images() == {"RT-1.png": "a chair", "RT-1-2.png": "a red chair"}
    assert make("a chair").state == "success", shop.error()
    assert shop.paid() == 2


@REUSE
@pytest.mark.parametrize("at", ["sidecar", "_with_copy"])
def test_an_edit_after_a_copy_to_another_name_that_was_not_finished_goes_beside_its_image(
    shop: Shop, at: str, reuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.one("a chair", reuse=reuse).state == "success"
    dies_once(monkeypatch, at)
    assert shop.one("a chair", reuse=reuse, file_name="x").state == "failed"
    assert shop.one("a red chair", reuse=reuse, file_name="x").state == "success", shop.error()
    assert shop.images() == {"RT-1.png": "a chair", "x.png": "a chair", "x-2.png": "a red chair"}
    assert shop.one("a chair", reuse=reuse, file_name="x").state == "success", shop.error()
    assert shop.paid() == 2


def test_a_copy_goes_beside_the_image_of_another_copy_that_was_not_finished(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.one("a chair").state == "success"
    assert shop.one("a red chair").state == "success"
    dies_once(monkeypatch, "sidecar")
    assert shop.one("a chair", file_name="x").state == "failed"
    assert shop.one("a red chair", file_name="x").state == "success", shop.error()
    assert shop.images()["x.png"] == "a chair"
    assert shop.images()["x-2.png"] == "a red chair"
    assert shop.paid() == 2


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_a_job_that_an_older_record_paid_for_lands_beside_the_image_that_has_its_name_by_now(
    shop: Shop, many: bool
) -> None:
    def make(prompt: str, **more: Any) -> Run:
        return shop.many([{"prompt": prompt, "sku": "RT-1"}], **more) if many else shop.one(prompt, **more)

    shop.sandbox.faults(route="download", status=500, times=3)
    assert make("a chair", output_path=str(shop.folder.with_name("first"))).state == "failed"
    assert make("a red chair").state == "success"
    assert make("a chair").state == "success", shop.error()
    assert shop.images() == {"RT-1.png": "a red chair", "RT-1-2.png": "a chair"}
    assert make("a chair").state == "success", shop.error()
    assert len(shop.images()) == 2
    assert shop.paid() == 2


def test_what_was_purged_keeps_its_files_and_nothing_is_paid_beside_them_when_the_run_is_made_again(shop: Shop) -> None:
    async def purged() -> list[str]:
        return [key async for key in reconcile.purge(shop.ledger, Scope(settings.namespace()), days=0)]

    assert shop.one("a chair").state == "success"
    assert asyncio.run(purged())
    assert shop.record_keys() == []
    shop.run = None
    shop.airflow.close()
    assert shop.one("a red chair").state == "failed"
    assert "RT-1.png exists" in shop.error()
    assert shop.images() == {"RT-1.png": "a chair"}
    assert shop.paid() == 1


def test_somebody_elses_file_is_refused_where_the_task_instance_has_claimed_other_names(shop: Shop) -> None:
    assert shop.one("a chair").state == "success"
    (shop.folder / "x.png").write_bytes(b"somebody's")
    for prompt in ("a chair", "a red chair"):
        assert shop.one(prompt, file_name="x").state == "failed"
        assert "x.png exists" in shop.error()
    assert (shop.folder / "x.png").read_bytes() == b"somebody's"
    assert shop.paid() == 1


# Sidecars


FOREIGN = [
    b"{}",
    b"not JSON",
    b"[]",
    b'{"record": "ledger/default/a/b/c/-1/0/1.json"}',
    b'{"record": 7}',
    b"\xff" * 2_000_000,
]


@pytest.mark.parametrize("content", FOREIGN, ids=["empty", "text", "list", "another record's", "number", "large"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_a_sidecar_never_replaces_somebody_elses_file(shop: Shop, many: bool, content: bytes) -> None:
    shop.sandbox.faults(route="download", status=500, times=3)
    make = (lambda: shop.many(SKUS[:1])) if many else (lambda: shop.one("a chair"))
    assert make().state == "failed"
    (shop.folder).mkdir(exist_ok=True)
    (shop.folder / "RT-1.json").write_bytes(content)
    assert make().state == "success"
    assert (shop.folder / "RT-1.json").read_bytes() == content
    [beside] = [path for path in shop.folder.iterdir() if path.name not in ("RT-1.json", "RT-1.png")]
    image = json.loads(beside.read_text())["images"][0]
    assert image["uri"].endswith("/RT-1.png")
    assert beside.name == f"RT-1-{image['sha256'][:12]}.json"
    beside.write_bytes(b"somebody's too")
    (shop.folder / "RT-1.png").unlink()
    assert make().state == "success"
    assert beside.read_bytes() == b"somebody's too"
    assert (shop.folder / "RT-1.json").read_bytes() == content
    assert shop.paid() == 1


def test_the_images_own_sidecar_is_written_again_when_the_image_is_fetched_again(shop: Shop) -> None:
    shop.one("a chair")
    before = json.loads((shop.folder / "RT-1.json").read_text())
    (shop.folder / "RT-1.png").unlink()
    assert shop.one("a chair").state == "success"
    after = json.loads((shop.folder / "RT-1.json").read_text())
    assert after["landed_at"] > before["landed_at"]
    assert sorted(path.name for path in shop.folder.iterdir()) == ["RT-1.json", "RT-1.png"]


@REUSE
def test_the_sidecar_of_a_copy_replaces_no_file_that_came_after_its_name_was_claimed(
    shop: Shop, reuse: str, tmp_path: Path
) -> None:
    shop.one("a chair", reuse=reuse)
    other = tmp_path / "other"
    assert shop.one("a chair", reuse=reuse, output_path=str(other)).state == "success"
    (other / "RT-1.png").unlink()
    (other / "RT-1.json").write_bytes(b"{}")
    assert shop.one("a chair", reuse=reuse, output_path=str(other)).state == "failed"
    assert "RT-1.json exists" in shop.error()
    assert (other / "RT-1.json").read_bytes() == b"{}"
    assert shop.paid() == 1


# Copies


@REUSE
@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_every_intact_place_counts_and_the_one_that_is_asked_for_first(
    shop: Shop, many: bool, reuse: str, tmp_path: Path
) -> None:
    """Through three folders that are deleted one after the other: it lands and is returned where it is asked for."""

    def at(place: str) -> str:
        where = {"output_path": str(tmp_path / place), "reuse": reuse}
        run = shop.many(SKUS[:1], **where) if many else shop.one("a chair", **where)
        assert run.state == "success", shop.error()
        if many:
            lines = Path(str(run.task("made").value["manifest"]).removeprefix("file://")).read_text().splitlines()
            uri = json.loads(lines[0])["images"][0]["uri"]
        else:
            uri = run.task("made").value["images"][0]["uri"]
        path = Path(uri.removeprefix("file://"))
        assert read_submission(path.read_bytes()) == 1
        assert path.name == "RT-1.png"
        return path.parent.name

    def delete(place: str) -> None:
        shutil.rmtree(tmp_path / place)

    assert at("a") == "a"
    assert at("b") == "b"
    delete("a")
    calls = len(shop.sandbox.calls())
    assert at("b") == "b"
    assert not (tmp_path / "a").exists(), "the copy is enough"
    assert at("c") == "c"
    delete("b")
    assert at("a") == "a"
    assert at("b") == "b"
    assert at("c") == "c"
    assert len(shop.sandbox.calls()) == calls, "the gateway was not asked"
    for place in "abc":
        delete(place)
    assert at("b") == "b"
    assert not (tmp_path / "a").exists(), "it is fetched to where it is asked for"
    assert at("b") == "b"
    assert shop.paid() == 1


def test_another_run_copies_from_a_copy_whose_original_is_gone(shop: Shop, tmp_path: Path) -> None:
    shop.one("a chair", reuse="dag")
    shop.one("a chair", reuse="dag", output_path=str(tmp_path / "b"))
    shutil.rmtree(shop.folder)
    shop.run = None
    with DAG("named", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made", prompt="a chair", geminiimg_conn_id=shop.conn_id, resolution="512", reuse="dag"
        )
    run = shop.airflow.run_dag(dag, run_id="another")
    assert run.state == "success", run.log
    assert run.task("made").value["reused"] is True
    assert shop.paid() == 1


def test_a_copy_is_made_again_under_the_name_that_it_had(shop: Shop) -> None:
    shop.many([{"prompt": "a chair", "sku": "a"}, {"prompt": "a table", "sku": "b"}])
    swapped = [{"prompt": "a chair", "sku": "b"}, {"prompt": "a table", "sku": "a"}]
    shop.many(swapped)
    named = shop.manifest()
    assert named == {"0": "b-2.png", "1": "a-2.png"}
    (shop.folder / "b-2.png").unlink()
    assert shop.many(swapped).state == "success"
    assert shop.manifest() == named
    assert shop.images()["b-2.png"] == "a chair"
    assert shop.paid() == 2
