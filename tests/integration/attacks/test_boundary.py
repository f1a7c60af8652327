"""What nobody listed: answers, addresses, connections and records that break a parser, a resolver or this package.

Each goes through an operator, the sensor or a collect. What must stay true: it ends as an outcome that says whether
money was spent; what was paid for is noted, not lost, and not paid for again by itself; whatever else the same task has
to do is done; and nothing that is raised holds a prompt or a signed link.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseHook

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.gateways.connection import parse_connection
from airflow_provider_geminiimg.core.gateways.reasons import parse_json
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.decision import is_out_of_reach
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    IncompleteError,
    LedgerError,
    OutcomeUnknownError,
    StorageError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger
from tests.harness import attacks
from tests.harness import canaries as search
from tests.harness import forbidden as web
from tests.harness.attacks import PROMPT, Target, outcome
from tests.harness.forbidden import Route, answer
from tests.harness.inprocess import Run

target, internet, forbidden = attacks.target, web.internet, web.forbidden
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)

# Where a redirect may say that it leads.
NOWHERE = {
    "Punycode of nothing": "https://xn--0/",
    "Punycode of nothing further on": "https://a.xn--0/",
    "Punycode of a control character": "https://xn--a/p.png",
    "Punycode without an end": "https://xn--/",
    "Punycode of a pictogram": "https://xn--ls8h.test/",
    "an empty label": "https://a..b/",
    "a dot alone": "https://./",
    "a label that is too long": f"https://{'a' * 64}.test/",
    "a name that is too long": f"https://{'.'.join(['a' * 60] * 5)}/",
    "a bracket": "https://[/",
    "an address cut off": "https://[::1/",
    "an address of a later version": "https://[v1.a:b]/",
    "a port out of range": "https://pictures.test:99999/",
    "a port that is no number": "https://pictures.test:port/",
    "signs that no host has": "https://a,b$'*/",
    "letters of no script": "https://\xad/",
    "a very long path": f"https://pictures.test/{'x' * 66_000}",
    "a script": "data:,x",
}


def _raw(data: bytes) -> Route:
    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return route


# What a host may say instead of an answer.
GARBAGE = {
    "a length of 5000 digits": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx"),
    "a negative length": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx"),
    "two lengths": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
    "a status that is none": _raw(b"HTTP/1.1 2OO OK\r\n\r\n"),
    "a chunk of no length": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a chunk without an end": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n"),
    "another protocol": _raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "headers without names": _raw(b"HTTP/1.1 200 OK\r\n: :\r\n\r\n"),
    "cookies of nobody": answer(
        302, b"", Location="https://xn--0/", Set_Cookie="=;Max-Age=" + "9" * 5000 + ";Expires=x;Domain=[;Version=\xff"
    ),
    "upgrade": _raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
}
HOSTS: dict[str, Route] = {
    **{f"a redirect to {name}": answer(302, b"", Location=location) for name, location in NOWHERE.items()},
    **GARBAGE,
}
LINK = "/p.png?X-Amz-Signature=SECRET"


def hostile(target: Target, name: str, times: int = 1) -> None:
    """Let the next polls name a link at a host that answers so."""
    target.images.routes["/p.png"] = HOSTS[name]
    target.polls_answer(target.link(LINK), times=times)


def holds_nothing_secret(run: Run) -> None:
    """Check that nothing of what a task raised, nor of what it logged, holds the prompt or a signed link."""
    error = run.task("made").error
    assert error is not None
    for text in search.exception(error, lambda name: "search" if "/airflow_provider_geminiimg/" in name else "skip"):
        assert PROMPT.encode() not in text.data, text.where
        assert b"SECRET" not in text.data, text.where
    assert "SECRET" not in run.log


# One image


@ONE_GATEWAY
@pytest.mark.parametrize("name", HOSTS)
def test_a_result_whose_host_breaks_a_parser_is_kept_and_lands_with_a_retry(target: Target, name: str) -> None:
    hostile(target, name)
    run = target.generate()
    target.kept(run, "")
    holds_nothing_secret(run)
    target.lands(run.retry())


@pytest.mark.parametrize("name", ["Punycode of nothing", "an empty label", "a bracket"])
def test_a_result_whose_host_breaks_a_parser_for_good_is_bought_again_by_a_clear_that_says_so(
    target: Target, name: str
) -> None:
    hostile(target, f"a redirect to {name}", times=3)
    run = target.generate()
    for again in (lambda: run, run.retry, lambda: run.clear("made")):
        target.kept(again(), "")
    target.lands(run.clear("made", dag=target.dag(on_clear="regenerate")), 2)


def test_a_link_that_itself_breaks_a_parser_is_kept_and_bought_again_by_a_clear_that_says_so(target: Target) -> None:
    target.polls_answer("https://xn--0/p.png?sig=SECRET", times=4)  # the trigger asks, and then the worker
    run = target.generate(deferrable=True)
    for again in (lambda: run, run.retry):
        target.kept(again(), "which is not a host name")
    holds_nothing_secret(run)
    target.lands(run.clear("made", dag=target.dag(on_clear="regenerate")), 2)


@pytest.mark.parametrize("name", ["a redirect to Punycode of nothing", "a length of 5000 digits"])
def test_a_deferred_task_and_a_sensor_end_in_an_outcome_too(target: Target, name: str) -> None:
    hostile(target, name, times=2)  # the trigger asks, and then the worker
    run = target.generate(deferrable=True)
    target.kept(run, "")
    holds_nothing_secret(run)
    target.lands(run.retry())
    hostile(target, name)
    wait = {"job_id": "job-1", "geminiimg_conn_id": target.conn_id, "poke_interval": 0.02, "timeout": 20}
    error = outcome(target.run_as_is(GeminiImageJobSensor, **wait))
    assert error.billed is Billed.YES


def test_a_result_without_a_job_whose_host_breaks_a_parser_is_noted_and_bought_again_only_when_told(
    target: Target,
) -> None:
    target.images.routes["/p.png"] = HOSTS["a redirect to Punycode of nothing"]
    link = target.link(LINK)
    body = {"aiRecord": {"status": "SUCCESS", "temporaryUrl": link}, "data": [{"url": link}]}
    target.sandbox.faults(route=f"{target.conn_id}.submit", body=body, charge="after")
    run = target.generate()
    for again in (lambda: run, run.retry):
        assert outcome(again()).billed is Billed.YES
        [record] = target.records()
        assert record.state == "answered"
        assert isinstance(record.error, UpstreamFailedError)
    holds_nothing_secret(run)
    target.lands(run.clear("made", dag=target.dag(on_clear="regenerate")), 2)


FORESEEN_BY_NOBODY = [MemoryError(), RecursionError(), ValueError(f"{PROMPT} SECRET"), KeyError(f"{PROMPT} SECRET")]


@ONE_GATEWAY
@pytest.mark.parametrize("raised", FORESEEN_BY_NOBODY, ids=lambda raised: type(raised).__name__)
def test_what_nobody_foresaw_is_noted_after_the_payment_and_lands_with_a_retry(
    target: Target, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _breaking_after_the_payment(target, raised))
        run = target.generate()
    target.kept(run, f"Storing the image failed ({type(raised).__name__} at ")
    holds_nothing_secret(run)
    target.lands(run.retry())


@ONE_GATEWAY
@pytest.mark.parametrize("raised", FORESEEN_BY_NOBODY, ids=lambda raised: type(raised).__name__)
def test_what_nobody_foresaw_before_the_payment_is_an_outcome_too_and_buys_nothing(
    target: Target, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _breaking(raised))
        run = target.generate()
    assert type(raised).__name__ in str(outcome(run))
    holds_nothing_secret(run)
    assert target.sandbox.ledger() == []
    target.lands(run.retry())


def _breaking(raised: Exception, when: Callable[[], bool] = lambda: True) -> Callable[..., int]:
    """An `os.open` that raises so where something is to be written beside the images."""
    usual = os.open

    def broken(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and {"root", "images"} <= set(Path(str(path)).parts) and when():
            raise raised
        return usual(path, flags, *args, **kwargs)

    return broken


def _breaking_after_the_payment(target: Target, raised: Exception) -> Callable[..., int]:
    return _breaking(raised, lambda: bool(target.sandbox.ledger()))


# What goes in


@ONE_GATEWAY
@pytest.mark.parametrize("name", HOSTS)
def test_an_input_whose_host_breaks_a_parser_is_refused_before_anything_is_sent(target: Target, name: str) -> None:
    target.images.routes["/p.png"] = HOSTS[name]
    run = target.edit(target.link(LINK))
    target.refused_unsent(run, "image=")
    assert "SECRET" not in run.log.partition("Updating RenderedTaskInstanceFields")[2]


@ONE_GATEWAY
@pytest.mark.parametrize("address", [*NOWHERE.values(), "https://[[[[", "s3://[", "https://a\x00b/p.png"])
def test_an_input_address_that_breaks_a_parser_is_one_clear_error(target: Target, address: str) -> None:
    if address != "data:,x":
        error = target.refused_unsent(target.edit(address), "image")
        assert isinstance(error, BadRequestError | StorageError)


@ONE_GATEWAY
@pytest.mark.parametrize("name", ["Punycode of nothing", "an empty label", "a bracket"])
def test_an_upload_that_is_redirected_to_nowhere_costs_nothing_and_says_so(
    target: Target, name: str, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(attacks.image_bytes())
    target.sandbox.faults(route="onemin.upload", status=307, headers={"Location": NOWHERE[name]})
    run = target.edit(str(tmp_path / "in.png"))
    error = outcome(run)
    assert isinstance(error, UpstreamFailedError)
    assert error.billed is Billed.NO
    assert target.records() == []
    holds_nothing_secret(run)
    target.lands(run.retry())


def test_a_submit_that_is_redirected_to_nowhere_is_an_unknown_outcome_and_never_sent_again(target: Target) -> None:
    fault = {"status": 303, "headers": {"Location": NOWHERE["Punycode of nothing"]}}
    target.sandbox.faults(route=f"{target.conn_id}.submit", charge="after", **fault)
    run = target.generate()
    for again in (lambda: run, run.retry):
        assert isinstance(outcome(again()), OutcomeUnknownError)
    assert len(target.sandbox.ledger()) == 1
    holds_nothing_secret(run)


# Many images


def _lines(target: Target) -> list[dict[str, Any]]:
    [path] = target.root.glob("images/**/manifest.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _batch(target: Target, **more: Any) -> DAG:
    with DAG("attacked", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="made",
            requests=["a red fox", "a grey wolf", "a brown bear", "a black cat"],
            **{"geminiimg_conn_id": target.conn_id, "poll_interval": 0.02, "max_concurrency": 1, **more},
        )
    return dag


@pytest.mark.parametrize("name", ["a redirect to Punycode of nothing", "a length of 5000 digits"])
def test_a_batch_lands_all_others_and_says_which_failed_and_why(target: Target, name: str) -> None:
    hostile(target, name)
    run = target._run(_batch(target))
    assert isinstance(outcome(run), IncompleteError)
    assert [line["status"] for line in _lines(target)] == ["failed", "landed", "landed", "landed"]
    assert _lines(target)[0]["error"] in ("upstream_failed", "invalid_image")
    assert "SECRET" not in json.dumps(_lines(target))
    holds_nothing_secret(run)
    assert len(target.sandbox.ledger()) == 4
    assert run.retry().task("made").state == "success"
    assert len(target.sandbox.ledger()) == 4


@ONE_GATEWAY
@pytest.mark.parametrize("raised", FORESEEN_BY_NOBODY[1:3], ids=lambda raised: type(raised).__name__)
def test_a_batch_lands_all_others_where_one_raises_what_nobody_foresaw(
    target: Target, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _breaking(raised, lambda: len(target.sandbox.ledger()) == 2))
        run = target._run(_batch(target))
    assert [line["status"] for line in _lines(target)] == ["landed", "failed", "landed", "landed"]
    assert type(raised).__name__ in _lines(target)[1]["message"]
    holds_nothing_secret(run)
    assert run.retry().task("made").state == "success"
    assert len(target.sandbox.ledger()) == 4


def _spoil(target: Target, number: int, **values: Any) -> str:
    """Change what a record says, as whoever can write the root may; its key."""
    path = sorted(target.root.glob("ledger/**/*.json"))[number]
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return str(path.relative_to(target.root))


# Records that can be read, and break whoever goes by them.
SPOILT: dict[str, dict[str, Any]] = {
    "asked for a list": {"request_fields": {"resolution": ["1K"], "aspect_ratio": {"a": 1}}},
    "asked for a ratio without an end": {"request_fields": {"aspect_ratio": f"{'1' * 400}:{'1' * 400}"}},
    "lands in a bracket": {"destination": {"directory": "file://[/", "stem": "fox"}},
    "lands under a null byte": {"destination": {"directory": "file:///tmp/a\x00b", "stem": "fox"}},
    "cost words": {"cost": {"amount": "much", "currency": ["USD"], "basis": {}}},
    "landed nowhere before": {"manifest": {"images": [1]}},
    "a job of another kind": {"job_id": "../../x\r\n"},
    "a model of another kind": {"model": "\x00", "wire_model": "\ud800"},
    "a gateway of another kind": {"gateway": "nobody's"},
    "a time without an end": {"submitted_at": 1e308, "claimed_at": -1e308},
}


def _left_behind(target: Target, count: int) -> None:
    """Leave jobs behind that were paid for, and whose images wait at the gateway."""
    with DAG("attacked", schedule=None) as dag:
        for number in range(count):
            GeminiImageGenerateOperator(**target.arguments({"task_id": f"made-{number}"}))
    target.sandbox.faults(route="download", status=404, times=2 * count)
    run = target._run(dag)
    assert [task.state for task in run.tasks()] == ["failed"] * count
    assert len(target.sandbox.ledger()) == count
    for number in range(count):
        _spoil(target, number, answer_within=0.0, outcome=None)


def _collected(target: Target) -> tuple[Run, dict[str, int]]:
    with DAG("maintenance", schedule=None) as dag:
        GeminiImageCollectOperator(task_id="collect")
    run = target._run(dag)
    records = [path for path in target.root.glob("ledger/**/*.json") if path.is_file()]
    states = [found["state"] for path in records if (found := parse_json(path.read_bytes()))]
    return run, {state: states.count(state) for state in set(states)}


@ONE_GATEWAY
@pytest.mark.parametrize("name", SPOILT)
def test_a_collect_lands_all_others_and_names_the_record_that_breaks_it(target: Target, name: str) -> None:
    _left_behind(target, 3)
    key = _spoil(target, 1, **SPOILT[name])
    run, _ = _collected(target)
    stored = [json.loads(path.read_text()) for path in sorted(target.root.glob("ledger/**/*.json"))]
    assert [record["state"] for record in stored][::2] == ["landed", "landed"]
    if stored[1]["state"] != "landed":  # some of these do no harm
        assert key in run.log
        task = run.task("collect")
        assert task.state == "failed" or key in json.dumps(task.value["keys"].get("failed"))
        assert task.error is None or isinstance(task.error, GeminiImageError)
    assert len(target.sandbox.ledger()) == 3


@pytest.mark.parametrize("name", ["a redirect to Punycode of nothing", "a length of 5000 digits"])
def test_a_collect_lands_all_others_and_notes_the_link_that_breaks_a_parser(target: Target, name: str) -> None:
    _left_behind(target, 3)
    hostile(target, name)
    run, states = _collected(target)
    assert states == {"landed": 2, "submitted": 1}
    assert run.task("collect").value["failed"] == 1
    [left] = [record for record in target.records() if record.state == "submitted"]
    assert is_out_of_reach(left.error)
    assert left.key in run.log
    assert "SECRET" not in run.log
    _, states = _collected(target)
    assert states == {"landed": 3}
    assert len(target.sandbox.ledger()) == 3


@ONE_GATEWAY
def test_a_collect_lands_all_others_where_a_folder_or_a_depth_stands_in_a_records_place(target: Target) -> None:
    _left_behind(target, 4)
    folder, deep = sorted(target.root.glob("ledger/**/*.json"))[1:3]
    folder.unlink()
    folder.mkdir()
    deep.write_text("[" * 100_000)
    run, _ = _collected(target)
    assert isinstance(run.task("collect").error, LedgerError)
    assert str(deep.relative_to(target.root)) in run.log
    assert "2 landed" in str(run.task("collect").error)


@ONE_GATEWAY
@pytest.mark.parametrize("cap", [None, 1.0])
def test_a_batch_lands_all_others_where_a_record_can_not_be_read(target: Target, cap: float | None) -> None:
    target.sandbox.faults(route="download", status=404, times=8)
    run = target._run(_batch(target, max_cost=cap))
    assert [line["status"] for line in _lines(target)] == ["failed"] * 4
    path = sorted(target.root.glob("ledger/**/*.json"))[1]
    path.write_text("[" * 100_000)
    run.retry()
    assert isinstance(outcome(run), IncompleteError)
    assert sorted(line["status"] for line in _lines(target)) == ["failed", "landed", "landed", "landed"]
    assert len(target.sandbox.ledger()) == 4


@ONE_GATEWAY
@pytest.mark.parametrize("name", SPOILT)
def test_a_batch_lands_all_others_where_a_record_breaks_it(target: Target, name: str) -> None:
    target.sandbox.faults(route="download", status=404, times=8)
    run = target._run(_batch(target))
    _spoil(target, 1, **SPOILT[name])
    run.retry()
    made = run.task("made")
    assert made.error is None or isinstance(outcome(run), IncompleteError)
    assert [line["status"] for line in _lines(target)].count("landed") >= 3
    assert len(target.sandbox.ledger()) == 4


def test_a_purge_goes_on_after_what_it_can_not_remove_and_names_it(target: Target) -> None:
    with DAG("attacked", schedule=None) as dag:
        for number in range(3):
            GeminiImageGenerateOperator(**target.arguments({"task_id": f"made-{number}"}))
    assert target._run(dag).state == "success"
    key = _spoil(target, 1, spooled=["../../outside\x00"])
    ledger = Ledger(open_store(target.root.as_uri(), AIRFLOW_OPENERS))
    removed: list[str] = []

    async def purge() -> None:
        async for each in reconcile.purge(ledger, reconcile.Scope("default"), days=0.0):
            removed.append(each)

    with pytest.raises(LedgerError, match="could not be removed") as caught:
        asyncio.run(purge())
    assert key.rsplit("/", 2)[0] in str(caught.value)
    assert len(removed) == 2


# Connections

NO_HOSTS = [
    *(address.removesuffix("/") for address in NOWHERE.values() if address.startswith("https://")),
    "xn--0",
    "xn--0:443",
    "http://xn--0",
    "https://a\\b",
    "https://a%2fb",
    "https://999.1.1.1",
    "https://[fe80::1%25lo]",
    "https://\ud800",
    "https://api.1min.ai/\ud800",
    "https://api.1min.ai/\x01",
    "localhost..",
]


@ONE_GATEWAY
@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_connections_host_that_no_host_can_be_called_is_refused_before_anything_is_sent(
    target: Target, connect: Callable[..., str], host: str
) -> None:
    if "\ud800" in host or "\x01" in host:
        extra = {"gateway": "1min", "allow_http": True}
        with pytest.raises(BadRequestError, match="its host is not an address"):
            parse_connection(conn_id="c", password="key", host=host, extra=extra)
        return
    connect(target.conn_id, host=host, password="key", extra={"gateway": "1min", "allow_http": True})
    run = target.generate()
    error = target.refused_unsent(run, "its host is not an address")
    assert isinstance(error, BadRequestError)


OPERATORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "generate": (GeminiImageGenerateOperator, {"prompt": PROMPT}),
    "deferred": (GeminiImageGenerateOperator, {"prompt": PROMPT, "deferrable": True}),
    "edit": (GeminiImageEditOperator, {"prompt": PROMPT, "image": "/nowhere.png"}),
    "batch": (GeminiImageBatchOperator, {"requests": [PROMPT]}),
    "sensor": (GeminiImageJobSensor, {"job_id": "job-1"}),
}


@ONE_GATEWAY
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_refuses_such_a_connection_in_the_same_words(
    target: Target, connect: Callable[..., str], name: str
) -> None:
    connect(target.conn_id, host="https://xn--0", password="key", extra={"gateway": "1min"})
    operator, more = OPERATORS[name]
    run = target.run_as_is(operator, geminiimg_conn_id=target.conn_id, **more)
    assert isinstance(target.refused_unsent(run, "its host is not an address"), BadRequestError)


@ONE_GATEWAY
def test_a_collect_goes_on_where_one_records_connection_is_such_a_one(
    target: Target, connect: Callable[..., str]
) -> None:
    _left_behind(target, 3)
    connect("broken", host="https://xn--0", password="key", extra={"gateway": "1min"})
    key = _spoil(target, 1, conn_id="broken")
    run, states = _collected(target)
    assert states == {"landed": 2, "submitted": 1}
    assert isinstance(run.task("collect").error, LedgerError)
    assert key in run.log


@ONE_GATEWAY
def test_a_collect_lands_all_others_where_airflow_breaks_for_one(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    _left_behind(target, 3)
    key = _spoil(target, 1, conn_id="broken")
    usual = BaseHook.get_connection

    def looked_up(cls: type[BaseHook], conn_id: str) -> Any:
        if conn_id == "broken":
            raise KeyError(f"{PROMPT} SECRET")  # as a secrets backend may
        return usual(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", classmethod(looked_up))
    run, states = _collected(target)
    assert states == {"landed": 2, "submitted": 1}
    assert isinstance(run.task("collect").error, LedgerError)
    assert key in run.log
    assert "SECRET" not in run.log


async def test_a_trigger_whose_connection_breaks_says_so_and_leaves_the_job_to_the_worker(
    connect: Callable[..., str],
) -> None:
    connect("broken", host="https://xn--0", password="key", extra={"gateway": "1min"})
    now = time.time()
    trigger = GeminiImageJobTrigger("broken", "job-1", "model", now, now + 0.2, 0.0, 0.02)
    [event] = [event async for event in trigger.run()]
    assert event.payload == {"status": event.payload["status"], "job_id": "job-1", "code": None}
    assert event.payload["status"] in ("lost", "timeout")
