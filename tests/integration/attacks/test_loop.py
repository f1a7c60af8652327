"""Answers of a few bytes that cost seconds of CPU: in the triggerer's event loop, where every deferred task waits
meanwhile, and in the loop of a batch.

Each attack goes through an operator. What must stay true of each: the loop goes on, and a job that was paid for is
still there, whatever was answered when it was asked about.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_geminiimg.core.http import exchange
from airflow_provider_geminiimg.exceptions import OutcomeUnknownError
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.triggers import job as job_module
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, answers, image_bytes, outcome, returned
from tests.harness.forbidden import Host, Route, answer, as_json, done
from tests.harness.stalls import Stalls, stalls

target, api, internet, forbidden, host = attacks.target, attacks.api, web.internet, web.forbidden, web.host

# Which gateway it is makes a difference to the reading alone, which the triggerer's tests have for both.
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)
OTHER_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)
LONGEST = 1.0  # CPU seconds that a loop may stand still; it is 0.02 on a quiet machine
MOST = 20.0  # CPU seconds that an attempt may take in all


def filled(unit: str, size: int) -> str:
    return unit * (size // len(unit))


# What stands where the image's link does, by its size: a text, or JSON as it stands.
TEXTS: dict[str, Callable[[int], str]] = {
    "separators of links": lambda size: f"data:{filled(', ;|', size)}",
    "blanks in a link": lambda size: f"https://a/{filled(' ', size)}x",
    "Markdown that never ends": lambda size: f"](data:{filled('[](', size)}",
    "a title of blanks": lambda size: f"![](data:x{filled(' ', size)}y)",
    "HTML that never ends": lambda size: f"](data:{filled('<a ', size)}",
    "closing parentheses": lambda size: f"https://a/{filled(')', size)}",
    "percent signs": lambda size: f"data:image/png,%89PNG%0d%0a%1a%0a{filled('%41', size)}",
    "many links": lambda size: filled("https://a/b.png ", size),
    "base64 of single letters": lambda size: f"data:image/png;base64,{filled('a ', size)}",
}
VALUES: dict[str, Callable[[int], str]] = {
    "lists": lambda size: f"[{filled('[],', size)}0]",
    "objects": lambda size: f"[{filled('{},', size)}0]",
    "lists in lists": lambda size: filled("[", size),
    "short texts": lambda size: f"[{filled(json.dumps(filled('[](', 19_000)) + ',', size)}0]",
    "short texts of HTML": lambda size: f"[{filled(json.dumps(filled('<a ', 19_000)) + ',', size)}0]",
    "escapes": lambda size: f'"{filled(chr(92) + "u0041", size)}"',
    "escaped slashes": lambda size: f'"data:image/png;base64,{filled(chr(92) + "/", size)}"',
    "backslashes": lambda size: f'"https://a/{filled(chr(92) * 2, size)}"',
    "inputs": lambda size: "",
    "a number": lambda size: filled("9", size),
}


def hostile(name: str, size: int) -> bytes:
    """The answer to a poll, of about `size` bytes, good for both gateways."""
    held = json.dumps(TEXTS[name](size)) if name in TEXTS else VALUES[name](size)
    if name == "inputs":
        inputs = [f"in/{number}.png" for number in range(size // 40)]
        detail = {"promptObject": {"imageUrl": inputs}, "resultObject": inputs}
        return json.dumps({"aiRecord": {"uuid": "job-1", "status": "SUCCESS", "aiRecordDetail": detail}}).encode()
    body: dict[str, Any] = {
        "aiRecord": {"uuid": "job-1", "status": "SUCCESS", "aiRecordDetail": {"resultObject": "@"}},
        "data": {"task_id": "job-1", "status": "succeeded", "result": {"images": "@"}},
    }
    first, _, last = json.dumps(body).partition('"@"')
    return f"{first}{held}{last.replace(chr(34) + '@' + chr(34), '0')}".encode()


def packed(body: bytes) -> Route:
    return answer(body=gzip.compress(body), Content_Encoding="gzip", Content_Type="application/json")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stalls]:
    monkeypatch.setattr(job_module, "MIN_SECONDS", 0.0)
    with stalls() as found:
        yield found


def deferred(target: Target, **more: Any) -> Any:
    return target.generate(deferrable=True, **more)


def go_on(watched: Stalls) -> None:
    assert watched.turns > 5
    assert watched.longest < LONGEST
    assert watched.seconds < MOST


# In the triggerer


@pytest.mark.parametrize("name", [*TEXTS, *VALUES])
def test_a_poll_that_unpacks_to_16_MB_does_not_stop_the_triggerer_and_loses_no_job(
    target: Target, api: Host, watched: Stalls, name: str
) -> None:
    polls = iter([packed(hostile(name, 15_000_000))])
    answers(api, poll=lambda handler: next(polls, as_json(done(f"{api.url}/p.png")))(handler))
    run = deferred(target)
    go_on(watched)
    assert returned(run)["images"]
    assert len([path for path, _ in api.requests if "generations" in path or "features" in path]) == 1


@pytest.mark.parametrize("name", [*TEXTS, *VALUES])
@pytest.mark.parametrize("size", [18_000, 900_000])
def test_a_poll_of_a_size_that_is_read_does_not_stop_the_triggerer(
    target: Target, api: Host, watched: Stalls, name: str, size: int
) -> None:
    polls = iter([packed(hostile(name, size))])
    answers(api, poll=lambda handler: next(polls, as_json(done(f"{api.url}/p.png")))(handler))
    deferred(target)
    go_on(watched)
    assert [record.job_id for record in target.records()] == ["job-1"]


def test_an_image_that_came_inline_and_is_too_large_for_the_triggerer_lands_from_the_worker(
    target: Target, api: Host, watched: Stalls
) -> None:
    data = image_bytes() + bytes(2_000_000)
    inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    both = done(inline)
    both["data"]["result"]["images"] = [{"url": inline}]
    both["aiRecord"]["temporaryUrl"] = inline
    answers(api, poll=as_json(both))
    run = deferred(target)
    assert [event["status"] for event in run.task("made").events] == ["too_large"]
    [image] = returned(run)["images"]
    assert image["size"] == len(data)
    assert watched.longest < LONGEST


# In a batch


@ONE_GATEWAY
@pytest.mark.parametrize("name", [*TEXTS, *VALUES])
def test_a_poll_that_unpacks_to_16_MB_does_not_stop_the_rest_of_a_batch(
    target: Target, api: Host, watched: Stalls, name: str
) -> None:
    polls = iter([packed(hostile(name, 15_000_000))])
    answers(api, poll=lambda handler: next(polls, as_json(done(f"{api.url}/p.png")))(handler))
    target.run_as_is(GeminiImageBatchOperator, requests=["one"], geminiimg_conn_id=target.conn_id, poll_interval=0.02)
    go_on(watched)
    assert [record.job_id for record in target.records()] == ["job-1"]


@OTHER_GATEWAY
@pytest.mark.parametrize("name", [*TEXTS, *VALUES])
def test_the_answer_to_a_submit_does_not_stop_the_rest_of_a_batch_and_is_never_asked_for_again(
    target: Target, api: Host, watched: Stalls, name: str
) -> None:
    answers(api, submit=packed(hostile(name, 15_000_000)))
    run = target.generate(prompt="a red fox, seen from above, " * 500)
    go_on(watched)
    run.retry("made")
    assert len([path for path, _ in api.requests if "generations" in path or "features" in path]) == 1


def test_a_refusal_that_repeats_a_long_prompt_is_scrubbed_beside_the_loop(
    target: Target, api: Host, watched: Stalls
) -> None:
    prompt = "a red fox, seen from above, " * 700
    said = {"error": {"code": "moderation_blocked", "message": f"refused: {prompt[:1800]}"}, "message": prompt}
    answers(api, submit=answer(400, body=json.dumps(said).encode(), Content_Type="application/json"))
    run = target.generate(prompt=prompt)
    assert "seen from above" not in str(outcome(run))
    assert watched.longest < LONGEST / 4


# Bodies that cost more than their bytes


def test_an_answer_in_pieces_that_are_objects_is_looked_at_once(
    target: Target, api: Host, watched: Stalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def route(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "6000000")
        handler.end_headers()
        handler.wfile.write(b'{"a": "' + b"x" * 1_000_000 + b'"}')
        for _ in range(10_000):
            handler.wfile.write(b'{"a": 1}')
            handler.wfile.flush()

    answers(api, submit=route)
    assert isinstance(outcome(target.generate()), OutcomeUnknownError)
    go_on(watched)


def test_what_follows_a_packed_answer_is_bounded_too(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_ANSWER", {True: 100_000, False: 100_000})

    def route(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.write(gzip.compress(b'{"a'))
        while True:
            handler.wfile.write(b"x" * 10_000)
            api.sent += 10_000

    answers(api, poll=route)
    run = target.generate()
    assert "could not be polled" in str(outcome(run))
    assert api.sent < 40_000_000
    answers(api)
    assert run.retry().state == "success"


# Hosts and name servers


@ONE_GATEWAY
@pytest.mark.parametrize("place", ["link", "redirect"])
def test_a_host_of_thousands_of_labels_is_refused_before_they_are_looked_at(
    target: Target, api: Host, watched: Stalls, place: str
) -> None:
    labels = 9_000 if place == "link" else 32_000
    nowhere = f"https://{'a.' * labels}com/p.png"
    api.routes["/p.png"] = answer(302, Location=nowhere)
    answers(api, poll=as_json(done(nowhere)) if place == "link" else None)
    assert "not a host name" in str(outcome(target.generate()))
    assert watched.longest < LONGEST / 4


@OTHER_GATEWAY
def test_name_servers_that_do_not_answer_keep_nothing_from_being_written(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, run, hanging, gave_up = socket.getaddrinfo, asyncio.run, [], []
    landed, over = threading.Event(), threading.Event()

    def getaddrinfo(name: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(name).startswith("silent"):
            return look_up(name, *args, **kwargs)
        hanging.append(name)
        if not over.wait(30):
            gave_up.append(name)
        raise socket.gaierror("no answer")

    async def writes() -> None:
        while len(hanging) < 32:  # noqa: ASYNC110 - threads add to it
            await asyncio.sleep(0.01)
        await asyncio.to_thread(over.set)  # as whatever is written in a store

    async def beside(main: Any) -> Any:
        writing = asyncio.create_task(writes())
        try:
            return await main
        finally:
            writing.cancel()

    def small(handler: Any) -> None:
        answer(body=image_bytes((16, 16)))(handler)
        landed.set()  # from now on many are fetched at once

    def route(handler: Any) -> None:
        if handler.command == "POST":
            number = len([path for path, _ in api.requests if "generations" in path])
            as_json({"data": [{"status": "submitted", "task_id": f"job-{number}"}]})(handler)
        elif "job-1?" in handler.path:
            as_json(done(f"{api.url}/small.png"))(handler)
        elif landed.is_set():
            as_json(done("https://silent.test/p.png"))(handler)
        else:
            as_json({"data": {"status": "in_progress"}})(handler)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(asyncio, "run", lambda main, **options: run(beside(main), **options))
    api.routes["/small.png"], api.otherwise = small, route
    requests = [f"number {number}" for number in range(45)]
    target.run_as_is(GeminiImageBatchOperator, requests=requests, geminiimg_conn_id=target.conn_id, poll_interval=0.1)
    assert len(hanging) >= 32
    assert not gave_up  # something was written while all of them hung
