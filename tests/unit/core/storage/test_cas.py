"""A conditional write whose answer gets lost is known again as one's own, whoever makes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from airflow.sdk import DAG

import airflow_provider_geminiimg
from airflow_provider_geminiimg.core.ledger.file_names import reserve_name
from airflow_provider_geminiimg.core.ledger.fingerprint_index import point_to, read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequestStore
from airflow_provider_geminiimg.core.storage import (
    Blob,
    Expected,
    Files,
    Store,
    create_or_read,
    open_store,
    replace_or_read,
    update,
)
from airflow_provider_geminiimg.exceptions import BadRequestError, StorageError
from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.moto import WsgiApp, start_moto
from tests.harness.records import ITEM, Traced, Wire, make_record

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

LOSSES = ["nothing", "after"]  # refused because the first try had won; an error, although it was done
KEY = "index/default/dag/f.json"


class Forgetful:
    """A WSGI middleware that does matching writes, and loses their first answers.

    botocore repeats a request three times. Fewer lost answers come out as "taken", all of them as a failure.
    """

    def __init__(self) -> None:
        self.lose(0)

    def lose(self, answers: int, *paths: str) -> None:
        self._answers, self._paths, self._lost = answers, paths, dict[tuple[str, bytes], int]()

    @property
    def lost(self) -> int:
        return len(self._lost)

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def forgetful(environ: dict[str, Any], start_response: Any) -> Any:
            import io

            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if environ["REQUEST_METHOD"] != "PUT" or not any(path in environ["PATH_INFO"] for path in self._paths):
                return app(environ, start_response)
            write = (environ["PATH_INFO"], body)
            if self._lost.setdefault(write, 0) >= self._answers:
                return app(environ, start_response)
            self._lost[write] += 1
            list(app(environ, lambda *_: None))
            start_response("500 Lost", [("Content-Length", "0")])
            return [b""]

        return forgetful


@pytest.fixture(scope="module")
def line() -> Forgetful:
    return Forgetful()


@pytest.fixture(scope="module")
def _moto(line: Forgetful) -> Iterator[str]:
    with start_moto(line) as url:
        yield url


@pytest.fixture
def bad_root(line: Forgetful, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`[geminiimg] root` in a bucket whose answers get lost as `line` is told."""

    monkeypatch.setattr(object_stores, "_CLIENTS", {})  # another test's client leads to another server
    yield s3_root
    line.lose(0)


@pytest.fixture
def real(tmp_path: Path) -> Store:
    return open_store((tmp_path / "root").as_uri(), AIRFLOW_OPENERS)


# --- the two functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_a_creation_and_a_replacement_are_found_again_by_their_bytes(real: Store, loss: str) -> None:
    wire = Wire(real)
    wire.once["create"] = loss
    created = create_or_read(wire, "a", b"1")
    assert (created.ours, created.blob.data) == (True, b"1")
    wire.once["replace"] = loss
    replaced = replace_or_read(wire, "a", b"2", created.blob.version)
    assert replaced is not None
    assert (replaced.ours, replaced.blob.data) == (True, b"2")
    assert replaced.blob.version == real.read("a").version  # type: ignore[union-attr]


def test_a_creation_is_found_again_by_its_claim_where_somebody_has_changed_it_since(real: Store) -> None:
    real.create("a", b'{"claim": "mine", "state": "resolved"}')
    wire = Wire(real)
    wire.once["create"] = "after"
    stored = create_or_read(wire, "a", b'{"claim": "mine"}', is_ours=lambda data: json.loads(data)["claim"] == "mine")
    assert stored.ours
    assert b"resolved" in stored.blob.data


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_write_that_never_arrived_is_a_failure_and_not_taken_for_another_writer(real: Store, operation: str) -> None:
    version = str(real.create("b", b"0"))
    wire = Wire(real)
    wire.once[operation] = "before"
    with pytest.raises(StorageError, match="the line is down"):
        create_or_read(wire, "a", b"1") if operation == "create" else replace_or_read(wire, "b", b"1", version)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_many_updates_over_a_bad_line_none_is_lost_and_none_is_done_twice(real: Store, loss: str) -> None:
    def add(name: str) -> Callable[[Blob | None], bytes | None]:
        def step(blob: Blob | None) -> bytes | None:
            names = [] if blob is None else json.loads(blob.data)
            return None if name in names else json.dumps([*names, name]).encode()

        return step

    def work(worker: int) -> None:
        for number in range(5):
            wire = Wire(real)
            wire.once = {"create": loss, "replace": loss}
            update(wire, "a", add(f"{worker}-{number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = real.read("a")
    assert found is not None
    names = json.loads(found.data)
    assert len(names) == len(set(names)) == 20


def test_nothing_outside_of_storage_writes_on_condition_by_itself() -> None:
    package = Path(airflow_provider_geminiimg.__file__).parent
    alone = re.compile(r"store\.(create|replace)\(")
    found = [
        path.name for path in package.rglob("*.py") if path.parent.name != "storage" and alone.search(path.read_text())
    ]
    assert found == []


# --- everybody who uses them ------------------------------------------------------------------------------------------


class Wanted(pydantic.BaseModel):
    prompt: str


@pytest.mark.parametrize("loss", LOSSES)
def test_a_plan_is_saved_and_finished_though_answers_get_lost(real: Store, loss: str) -> None:
    wire = Wire(real)
    kept = SavedRequestStore(Wanted, wire, "batches", ITEM, None)
    wire.once["create"] = loss
    kept.write(0, Wanted(prompt="a red fox"))
    wire.once["replace"] = loss
    kept.finish(0, Wanted(prompt=""))
    assert kept.read(0) == Wanted(prompt="")


@pytest.mark.parametrize("loss", LOSSES)
def test_an_index_entry_is_written_though_answers_get_lost(real: Store, loss: str) -> None:
    wire, record = Wire(real), make_record()
    wire.once["create"] = loss
    assert write_entry(wire, KEY, record, None)
    later = replace(record, claim="later")
    wire.once["replace"] = loss
    assert write_entry(wire, KEY, later, read_entry(real, KEY))
    third = replace(make_record(n=2), claim="third")
    wire.once["replace"] = loss
    point_to(wire, KEY, third)
    assert read_entry(real, KEY).record == third.key  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_record_is_claimed_changed_and_excused_though_answers_get_lost(real: Store, loss: str) -> None:
    wire, record = Wire(real), make_record()
    ledger = Ledger(wire)
    wire.once["create"] = loss
    assert ledger.create(record) is not None
    wire.once["replace"] = loss
    assert ledger.change(record.key, lambda stored: replace(stored, deferrals=stored.deferrals + 1)).deferrals == 1
    assert Ledger(real).read(record.key).record.deferrals == 1  # type: ignore[union-attr]
    wire.once["create"] = loss
    ledger.add_tombstone(record)
    assert ledger.has_tombstone(record.key, record.claim)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_name_is_claimed_though_the_answer_gets_lost_and_another_item_is_still_refused(
    real: Store, loss: str, tmp_path: Path
) -> None:
    wire, files = Wire(real), Files(AIRFLOW_OPENERS)
    destination = Destination(str(tmp_path / "out"), "hero")
    wire.once["create"] = loss
    assert reserve_name(Ledger(wire), files, ITEM.path, destination, 1) == ""
    with pytest.raises(BadRequestError, match="is taken"):
        reserve_name(Ledger(wire), files, replace(ITEM, task_id="other").path, destination, 1)


@pytest.mark.parametrize("answers", [1, 3], ids=["some answers", "all answers"])
@pytest.mark.parametrize("many", [False, True], ids=["single", "batch"])
def test_answers_of_conditional_writes_get_lost_and_every_image_is_paid_once_and_lands_in_one_attempt(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    connect: Callable[..., str],
    bad_root: str,
    line: Forgetful,
    answers: int,
    many: bool,
) -> None:
    extra = {"requests_per_minute": 100_000, "daily_budget": "5"}
    conn_id = connect("capped", **sandbox.connection("apimaster", **extra))
    usual: dict[str, Any] = {
        "task_id": "made", "resolution": "512", "poll_interval": 0.02, "geminiimg_conn_id": conn_id, "reuse": "dag",
    }  # fmt: skip
    with DAG("lost", schedule=None) as dag:
        if many:
            GeminiImageBatchOperator(requests=["a red fox", "a grey wolf", "a brown bear"], **usual)
        else:
            GeminiImageGenerateOperator(prompt="a red fox", **usual)
    line.lose(answers, "/ledger/", "/index/", "/names/", "/budgets/", "/batches/", "/images/")
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == (3 if many else 1)
    assert line.lost > 5
    run.clear("made")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == (3 if many else 1)


def test_what_a_caller_expects_spares_the_read_and_never_replaces_another_writers_change(tmp_path: Path) -> None:
    store = Traced(open_store(tmp_path.as_uri(), AIRFLOW_OPENERS))

    def added(blob: Blob | None) -> bytes:
        return (b"" if blob is None else blob.data) + b"."

    first = update(store, KEY, added, expected=Expected(None))
    assert [operation for operation, _ in store.calls] == ["create"]
    second = update(store, KEY, added, expected=Expected(first))
    assert [operation for operation, _ in store.calls] == ["create", "replace"]
    assert second is not None
    assert second.data == b".."
    for stale in (None, first):
        update(store, KEY, added, expected=Expected(stale))
    assert (store.read(KEY) or Blob(b"", "", 0)).data == b"...."


def test_a_step_that_fails_or_changes_nothing_is_repeated_with_what_is_stored(tmp_path: Path) -> None:
    store = Traced(open_store(tmp_path.as_uri(), AIRFLOW_OPENERS))
    store.create(KEY, b"stored")
    seen: list[bytes | None] = []

    def nothing(blob: Blob | None) -> None:
        seen.append(None if blob is None else blob.data)

    def failing(blob: Blob | None) -> None:
        nothing(blob)
        raise StorageError("It does not fit.")

    assert (update(store, KEY, nothing, expected=Expected(None)) or Blob(b"", "", 0)).data == b"stored"
    with pytest.raises(StorageError, match="does not fit"):
        update(store, KEY, failing, expected=Expected(None))
    assert seen == [None, b"stored"] * 2
