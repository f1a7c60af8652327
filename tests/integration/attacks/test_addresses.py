"""Addresses that two parsers read differently: ours, and Airflow's `ObjectStoragePath` or a web server behind it.

Each attack goes through an operator, with a store that only fsspec knows. What must stay true of each: it is refused
before anything is sent, or what is written lies at the very key that its URI names, image and sidecar apart.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import forget
from airflow_provider_geminiimg.core.storage import (
    Files,
    object_storage,
    open_store,
    same_place,
    uris,
)
from airflow_provider_geminiimg.core.validation import arguments
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import read_submission
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import FromTask, Target, every_write, image_bytes, outcome, returned
from tests.harness.forbidden import answer

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from tests.harness.inprocess import Run

target, internet, forbidden = attacks.target, web.internet, web.forbidden
pytestmark = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)


@pytest.fixture
def store() -> dict[str, Any]:
    """What lies in ``memory://``, which fsspec alone serves, by key; with and without a connection."""
    from airflow.sdk.io import attach
    from airflow.sdk.io.store import _STORE_CACHE

    MemoryFileSystem.store.clear()
    for conn_id in (None, "mine"):
        _STORE_CACHE.pop(f"memory-{conn_id}" if conn_id else "memory", None)
        attach("memory", conn_id, fs=MemoryFileSystem())
    store: dict[str, Any] = MemoryFileSystem.store
    return store


def put(key: str, data: bytes) -> None:
    MemoryFileSystem().pipe_file(key, data)


OUT = "memory://bucket/out"
TWO_READINGS = {
    "a chain": "memory://bucket/a::b",
    "a chain at the end": "memory://bucket/a::",
    "a chain in front": "simplecache::memory://bucket/a",
    "a chain in front of a disk": "filecache::file:///tmp/a",
    "a chain in a bucket": "memory://a::b/c",
    "an archive": "zip://inner::memory://bucket/a.zip",
    "a chain in a connection": "memory://mine::x@bucket/a",
    "another name of the disk, chained": "local::memory://bucket/a",
    "three colons": "memory://bucket/a:::b",
    "a query": "memory://bucket/a?b",
    "a version": "memory://bucket/a?versionid=1",
    "a fragment": "memory://bucket/a#1234",
    "a tabulator": "memory://bucket/a\tb",
    "a line break": "memory://bucket/a\nb",
    "a carriage return": "memory://bucket/a\rb",
    "a line break in a bucket": "memory://buc\nket/a",
    "a line break in a connection": "memory://mi\nne@bucket/a",
    "a backslash": "memory://bucket/a\\..\\b",
    "a doubled slash": "memory://bucket//a",
    "a doubled slash within": "memory://bucket/a//b",
    "another address in the path": "memory://bucket/memory://other/a",
    "a dot": "memory://bucket/./a",
    "dots and a space": "memory://bucket/.. /a",
    "upwards": "memory://bucket/../a",
    "half an IPv6 address": "memory://[bucket/a",
    "an IPv6 address": "memory://[::1]/a",
    "look-alikes of a slash": "memory://bucket\u2100/a",
    "a space in a bucket": "memory://buc ket/a",
    "a query in a bucket": "memory://bucket?x/a",
    "a storage account": "abfss://container@account.dfs.core.windows.net/a",
}


@pytest.mark.parametrize("name", TWO_READINGS)
def test_an_address_that_fsspec_reads_in_another_way_is_refused_before_anything_is_sent(
    target: Target, store: dict[str, Any], name: str
) -> None:
    uri = TWO_READINGS[name]
    for key in ("/bucket/a.png", "/bucket/b.png", "/bucket/ab.png", "/bucket/a/b.png", "/other/a.png"):
        put(key, image_bytes())
    before = dict(store)
    target.refused_unsent(target.generate(output_path="{{ params.given }}", file_name="fox", given=uri), "output_path")
    target.refused_unsent(target.edit(f"{uri}.png"), "image")
    assert store == before


@pytest.mark.parametrize("name", ["a chain", "a chain in front", "a query", "a line break"])
def test_such_an_address_is_refused_wherever_an_input_comes_from(
    target: Target, store: dict[str, Any], name: str
) -> None:
    uri = TWO_READINGS[name]
    put("/bucket/a", image_bytes())
    for more in ({"image": FromTask({"images": [{"uri": uri}]})}, {"image": "/x.png", "reference_images": [uri]}):
        assert "image" in str(target.refused_unsent(target.run_as(GeminiImageEditOperator, **more), ""))
    wait = {"job_id": "job-1", "geminiimg_conn_id": target.conn_id, "output_path": uri, "timeout": 5.0}
    target.refused_unsent(target.run_as_is(GeminiImageJobSensor, **wait), "output_path")


FILE_NAMES = ["a::b", "::b", "a::", "a:b", "fox.png:hidden", "a?b", "a*", "a|b", 'a"b', "a<b", "a>b"]
DEVICES = ["CON", "con", "aux.", "NUL.png", "nul", "Prn.fox", "COM1", "lpt9.x", "com¹", "CONIN$", "aux .b", "fox."]


def test_a_file_name_that_is_another_file_elsewhere_is_refused_before_anything_is_sent(
    target: Target, store: dict[str, Any]
) -> None:
    with every_write() as seen:
        for number, name in enumerate((*FILE_NAMES, *DEVICES)):
            out = OUT if number % 2 else str(target.folder / "out")
            run = target.generate(file_name="{{ params.given }}", output_path=out, given=f" {name} ")
            target.refused_unsent(run, "file_name=")
    assert (store, seen) == ({}, [])


def batch(target: Target, rows: Any, **more: Any) -> Any:
    usual = {"geminiimg_conn_id": target.conn_id, "poll_interval": 0.02}
    return target.run_as_is(GeminiImageBatchOperator, requests=rows, **{**usual, **more})


@pytest.mark.parametrize("more", [{"file_name": "{sku}::{row}"}, {"file_name": "nul"}, {"output_path": f"{OUT}/a::b"}])
def test_a_batch_refuses_such_names_when_its_dag_is_parsed_or_before_anything_is_sent(
    target: Target, store: dict[str, Any], more: dict[str, Any]
) -> None:
    name = next(iter(more))
    run, said = None, ""
    rows = [{"prompt": "a fox", "sku": "A-1"}, {"prompt": "a bear", "sku": "A-2"}]
    try:
        run = batch(target, rows, **{"output_path": OUT, **more})
    except BadRequestError as error:
        said = str(error)
    assert name in (said if run is None else str(target.refused_unsent(run, name)))
    assert (store, target.sandbox.calls()) == ({}, [])


def test_a_batch_names_the_row_whose_value_is_a_device(target: Target, store: dict[str, Any]) -> None:
    rows = [{"prompt": "a fox", "sku": "A-1"}, {"prompt": "a bear", "sku": "Con"}]
    error = target.refused_unsent(batch(target, rows, output_path=OUT, file_name="{sku}"), "'Con'")
    assert "row 1" in str(error)
    assert store == {}


def test_values_of_rows_lose_what_no_file_name_may_have(target: Target, store: dict[str, Any]) -> None:
    rows = [
        {"prompt": "a fox", "sku": "A::1"},
        {"prompt": "a bear", "sku": "B?x=1#2"},
        {"prompt": "a cat", "sku": "C."},
    ]
    run = batch(target, rows, output_path=OUT, file_name="{sku}")
    assert run.state == "success", run.log
    assert sorted(store) == [f"/bucket/out/{name}.{end}" for name in ("A-1", "B-x-1-2", "C") for end in ("json", "png")]
    assert len(target.sandbox.ledger()) == 3


def test_rows_of_a_chained_address_are_not_read(target: Target, store: dict[str, Any]) -> None:
    put("/bucket/rows", json.dumps([{"prompt": "a fox"}]).encode())
    for uri in ("memory://bucket/rows::x.json", "simplecache::memory://bucket/rows.json"):
        target.refused_unsent(batch(target, uri), "requests")


PLAIN = {
    "a plain one": "memory://bucket/a",
    "its scheme in capitals": "MEMORY://bucket/a",
    "a connection": "memory://mine@bucket/a",
    "an at sign in the path": "memory://bucket/a@b",
    "percent signs": "memory://bucket/100%25/%2e%2e",
    "a space and letters": "memory://bucket/my föx/狐",
    "brackets, as in a pattern": "memory://bucket/[ab]*",
    "one colon": "memory://bucket/run:1",
    "a semicolon": "memory://bucket/a;b=c",
    "a port": "memory://bucket:8020/a",
    "capitals in a bucket": "memory://Bucket/a",
    "a space at the end": "memory://bucket/a ",
    "a tilde": "memory://bucket/~a/$HOME",
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_written_through_fsspec_lies_at_the_very_key_of_its_uri(
    target: Target, store: dict[str, Any], name: str
) -> None:
    uri = PLAIN[name]
    put("/bucket/b/p.png", b"somebody else's")
    manifest = returned(target.generate(output_path="{{ params.given }}", file_name="fox", given=uri))
    [image] = manifest["images"]
    assert image["uri"] == f"{uri}/fox.png"
    key = image["uri"].partition("://")[2].rpartition("mine@")[2]
    assert set(store) == {"/bucket/b/p.png", f"/{key}", f"/{key.removesuffix('png')}json"}
    assert read_submission(store[f"/{key}"].getvalue()) == target.sandbox.ledger()[0]["number"]
    assert json.loads(store[f"/{key.removesuffix('png')}json"].getvalue())["record"] == manifest["record"]
    edited = target.edit(FromTask(manifest), resolution="512")
    assert edited.state == "success", edited.log


@pytest.mark.parametrize(
    ("how", "uri"), [("collect", f"{OUT}/a::b"), ("collect", f"{OUT}/a\nb"), ("sensor", f"{OUT}/a\nb")]
)
def test_a_destination_that_was_changed_by_hand_gets_nothing_written_elsewhere(
    target: Target, store: dict[str, Any], uri: str, how: str
) -> None:
    target.images.routes["/p.png"] = answer(body=b"<svg/>")
    target.polls_answer(target.link(), times=2)
    run = target.generate(output_path=OUT, file_name="fox", retries=0)
    assert run.state == "failed"
    [record] = target.root.glob("ledger/**/1.json")
    record.write_text(record.read_text().replace(json.dumps(OUT), json.dumps(uri)))
    target.images.routes["/p.png"] = answer(body=image_bytes())
    before = dict(store)
    if how == "collect":
        os.utime(record, (1e9, 1e9))  # whoever it belonged to is long gone
        collected = target.run_as_is(GeminiImageCollectOperator)
        assert "ObjectStoragePath would open another file" in collected.log
    else:
        beside = {"geminiimg_conn_id": target.conn_id, "poll_interval": 0.02, "deferrable": False}
        job_id = target.sandbox.ledger()[0]["job_id"]
        waited = target.run_as_is(GeminiImageJobSensor, job_id=job_id, output_path=uri, **beside)
        assert "output_path" in str(outcome(waited))
    assert store == before
    assert len(target.sandbox.ledger()) == 1
    assert target.records()[0].job_id == target.sandbox.ledger()[0]["job_id"]


REFUSED_NOW = [("disk", "sale: red"), ("store", "a::b"), ("store", "a?b")]


def paid_before_it_was_refused(target: Target, monkeypatch: pytest.MonkeyPatch, out: str, name: str) -> Run:
    """A task of an earlier version, whose image is paid for and has not landed, under a name that was allowed then."""
    target.images.routes["/p.png"] = answer(body=b"<svg/>")
    target.polls_answer(target.link(), times=2)
    with monkeypatch.context() as then:
        then.setattr(arguments, "_WINDOWS_CHARACTERS", "\0")
        then.setattr(uris, "_REREAD", {})
        then.setattr(object_storage, "_is_at", lambda *_: True)
        run = target.generate(output_path=out, file_name="{{ params.given }}", given=name, retries=0)
    assert (run.state, [record.state for record in target.records()]) == ("failed", ["submitted"]), run.log
    target.images.routes["/p.png"] = answer(body=image_bytes())
    return run


def test_what_was_paid_for_under_a_name_that_is_refused_now_lands_on_a_retry(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = target.folder / "out"
    run = paid_before_it_was_refused(target, monkeypatch, str(out), "sale: red")
    run.retry("made")
    assert run.state == "success", run.log
    assert (out / "sale: red.png").read_bytes() == image_bytes()
    assert len(target.sandbox.ledger()) == 1


@pytest.mark.parametrize(("place", "name"), REFUSED_NOW)
def test_what_was_paid_for_under_a_name_that_is_refused_now_is_not_bought_again_and_lands_under_another(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    out = OUT if place == "store" else str(target.folder / "out")
    run = paid_before_it_was_refused(target, monkeypatch, out, name)
    run.clear("made")
    error = outcome(run)
    assert "file_name=" in str(error)
    assert (error.billed, "a Clear with another file_name" in error.hint) == (Billed.UNKNOWN, True)
    target.polls_answer(target.link(), times=2)
    run.clear("made", dag=target.dag(output_path=out, file_name="fox"))
    assert run.state == "success", run.log
    assert returned(run)["images"][0]["uri"] == f"{out}/fox.png"
    assert len(target.sandbox.ledger()) == 1


LOOKED_AT = ("memory://bucket/a//b", "memory://bucket//a", "memory://bucket/a?b", "memory://bucket/a#b")
NOT_LOOKED_AT = (
    *("memory://bucket/a::b", "memory://bucket/a\tb", "memory://bucket/./a", "memory://bucket/a\\b"),
    *("memory://bucket/.. /a", "memory://buc ket/a"),
)


def landed_before_it_was_refused(target: Target, monkeypatch: pytest.MonkeyPatch, out: str) -> tuple[Run, DAG, str]:
    """The run, DAG and record's text of a task whose image landed at an address that was allowed then."""
    dag = target.dag(output_path="{{ params.given }}", file_name="fox", given=out, retries=0)
    with monkeypatch.context() as then:
        then.setattr(uris, "_REREAD", {})
        then.setattr(uris, "CHAIN", "\0\0")
        then.setattr(uris, "_HOST", re.compile(".*"))
        then.setattr(object_storage, "_is_at", lambda *_: True)
        run = target.airflow.run_dag(dag)
    assert returned(run)["images"][0]["uri"] == f"{out}/fox.png"
    [record] = target.root.glob("ledger/**/1.json")
    return run, dag, record.read_text()


@pytest.mark.parametrize("out", LOOKED_AT)
def test_an_image_at_an_address_that_is_refused_now_is_returned_and_copied_on_a_clear(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    run, dag, _ = landed_before_it_was_refused(target, monkeypatch, out)
    [key] = [key for key in store if key.endswith("/fox.png")]
    bought = store[key].getvalue()
    run.clear("made", dag=dag)
    assert returned(run)["images"][0]["uri"] == f"{out}/fox.png"
    run.clear("made", dag=target.dag(output_path=OUT, file_name="fox"))
    assert returned(run)["images"][0]["uri"] == f"{OUT}/fox.png"
    assert store["/bucket/out/fox.png"].getvalue() == store[key].getvalue() == bought
    assert len(target.sandbox.ledger()) == 1


@pytest.mark.parametrize("out", LOOKED_AT)
def test_another_image_at_an_address_that_is_refused_now_is_not_copied(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    run, _, _ = landed_before_it_was_refused(target, monkeypatch, out)
    [key] = [key for key in store if key.endswith("/fox.png")]
    put(key, image_bytes())
    error = outcome(run.clear("made", dag=target.dag(output_path=OUT, file_name="fox")))
    assert "is not the one that landed" in str(error)
    assert "/bucket/out/fox.png" not in store
    assert len(target.sandbox.ledger()) == 1


@pytest.mark.parametrize("moved", [False, True], ids=["as it was", "with another output_path"])
@pytest.mark.parametrize("out", NOT_LOOKED_AT)
def test_an_image_at_an_address_that_leads_elsewhere_is_not_looked_for_and_not_bought_again(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch, out: str, moved: bool
) -> None:
    run, dag, record = landed_before_it_was_refused(target, monkeypatch, out)
    before = dict(store)
    run.clear("made", dag=target.dag(output_path=OUT, file_name="fox", retries=0) if moved else dag)
    error = outcome(run)
    assert "Can't tell whether the image of record" in str(error)
    assert (error.billed, "copy the file by hand" in error.hint) == (Billed.YES, True)
    assert "A stored image cannot be checked: uri: " in run.log
    assert store == before
    assert [path.read_text() for path in target.root.glob("ledger/**/*.json")] == [record]
    assert len(target.sandbox.ledger()) == 1
    run.clear("made", dag=target.dag(output_path=OUT, file_name="fox", on_clear="regenerate"))
    assert returned(run)["images"][0]["uri"] == f"{OUT}/fox.png"
    assert len(target.sandbox.ledger()) == 2  # in so many words


def test_a_collect_says_where_what_was_paid_for_can_land_that_it_can_not_write(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = paid_before_it_was_refused(target, monkeypatch, OUT, "a?b")
    [record] = target.root.glob("ledger/**/1.json")
    os.utime(record, (1e9, 1e9))  # whoever it belonged to is long gone
    target.polls_answer(target.link(), times=2)
    collected = target.run_as_is(GeminiImageCollectOperator)
    assert "clear the task with another output_path: the paid image lands there" in collected.log
    target.polls_answer(target.link(), times=2)
    run.clear("made", dag=target.dag(output_path=OUT, file_name="fox"))
    assert returned(run)["images"][0]["uri"] == f"{OUT}/fox.png"
    assert len(target.sandbox.ledger()) == 1


def test_a_record_whose_place_is_an_address_no_longer_keeps_nobody_from_buying_or_forgetting(
    target: Target, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = paid_before_it_was_refused(target, monkeypatch, OUT, "a::b")
    key = target.records()[0].key
    run.clear("made", dag=target.dag(output_path=OUT, file_name="fox", prompt="a bear"))
    assert run.state == "success", run.log
    assert len(target.sandbox.ledger()) == 2
    ledger = Ledger(open_store(target.root.as_uri(), AIRFLOW_OPENERS))
    with pytest.raises(BadRequestError, match="has a later record"):
        forget(ledger, key, force=True)
    for number in (2, 1):
        forget(ledger, key.replace("/1.json", f"/{number}.json"), force=True)
    assert target.records() == []


@pytest.mark.parametrize("root", ["{folder}/a::b", "file://{folder}/a::b", "s3://bucket/a::b", "memory://bucket/root"])
def test_a_root_below_which_addresses_would_be_chains_is_refused(
    target: Target, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    uri = root.format(folder=target.folder)
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", uri)
    error = outcome(target.generate())
    assert "root: " in str(error)
    assert target.sandbox.calls() == []
    assert not list(target.folder.glob("a*"))
    with pytest.raises(BadRequestError, match="root: "):
        open_store(uri, AIRFLOW_OPENERS)


@pytest.mark.usefixtures("target")
def test_names_of_one_scheme_are_one_place() -> None:
    for names in (("gs", "gcs", "GS"), ("abfs", "abfss", "adl"), ("s3", "s3a", "S3N"), ("file", "local")):
        assert len({same_place(f"{name}:///b/a" if "file" in names else f"{name}://c@b/a") for name in names}) == 1
    files = Files(AIRFLOW_OPENERS, allowed_roots=["gcs://b/x"])
    files.check("gs://b/x/y", "image")


TASKS = {
    "aux": "aux_",
    "CON.x": "CON_.x",
    "nul.": "nul_._",
    "fox.": "fox._",
    "console": "console",
}


def test_a_file_that_is_named_after_its_task_has_a_name_on_windows(target: Target) -> None:
    for number, (task_id, name) in enumerate(TASKS.items(), 1):
        run = target.run_as(GeminiImageGenerateOperator, task_id=task_id, prompt=f"fox {number}")
        made = run.task(task_id)
        assert made.state == "success", made.log
        assert Path(made.value["images"][0]["uri"]).name == f"{name}.png"


def test_a_file_that_is_named_after_a_variant_has_no_colon(target: Target) -> None:
    manifest = returned(target.generate(variant="16:9"))
    assert Path(manifest["images"][0]["uri"]).name == "made-v16%3A9.png"


def test_a_pattern_in_a_folder_removes_nobody_elses_file(target: Target, store: dict[str, Any]) -> None:
    put("/bucket/out/.geminiimg-x.png", b"somebody else's")
    returned(target.generate(output_path="memory://bucket/o*t", file_name="fox"))
    assert set(store) == {"/bucket/out/.geminiimg-x.png", "/bucket/o*t/fox.png", "/bucket/o*t/fox.json"}
