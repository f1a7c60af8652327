"""Hosts that announce more than they send, and send more than there is memory for, fifty at once.

Each attack goes through a batch. What must stay true: the process grows by what has arrived, within a budget that all
share; and whoever waits for memory gets it in the end.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import psutil
import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core import storage
from airflow_provider_geminiimg.core.execution import byte_semaphore
from airflow_provider_geminiimg.core.gateways import apimaster
from airflow_provider_geminiimg.core.http import download_buffer, exchange, transport
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, image_bytes
from tests.harness.forbidden import Host, Route, answer, as_json, done

target, api, internet, forbidden, host = attacks.target, attacks.api, web.internet, web.forbidden, web.host

ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)
AT_ONCE = 50
MB = 1024 * 1024
BUDGET = (
    320 * MB
)  # what the process may grow by: memory for landing, one image more, sockets, and whatever else it does


class Growth:
    """`most` bytes that this process has been larger than at the beginning."""

    def __init__(self) -> None:
        self.most = 0


@contextlib.contextmanager
def growth() -> Iterator[Growth]:
    """Of this process, looked at every few milliseconds within this block."""
    with contextlib.suppress(AttributeError):  # what an earlier test gave back would hide what this one takes
        ctypes.CDLL(None).malloc_trim(0)
    found, over, process = Growth(), threading.Event(), psutil.Process()
    begun = process.memory_info().rss

    def look() -> None:
        while not over.wait(0.005):
            found.most = max(found.most, process.memory_info().rss - begun)

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()


class Crowd:
    """A gateway whose first job has a small image, and whose others have what `/crowd` sends once that has landed.

    `arrived` is set when all of them are being fetched at once, or are never going to be.
    """

    def __init__(self, api: Host, route: Route) -> None:
        self.api = api
        self.submits = self.fetches = self.polls = 0
        self.arrived = threading.Event()
        self._lock = threading.Lock()
        self._small = threading.Event()
        api.routes |= {"/small.png": self._first, "/crowd.png": self._others(route)}
        api.otherwise = self._answer

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            if handler.command == "POST":
                self.submits += 1
                as_json({"data": [{"status": "submitted", "task_id": f"job-{self.submits}"}]})(handler)
                return
            first = "/job-1?" in handler.path
            self.polls += self._small.is_set()
            if first or self.polls > 3 * AT_ONCE:
                as_json(done(f"{self.api.url}/{'small' if first else 'crowd'}.png"))(handler)
            else:
                as_json({"data": {"status": "in_progress"}})(handler)

    def _first(self, handler: BaseHTTPRequestHandler) -> None:
        answer(body=image_bytes((16, 16)))(handler)
        self._small.set()

    def _others(self, route: Route) -> Route:
        def fetched(handler: BaseHTTPRequestHandler) -> None:
            with self._lock:
                self.fetches += 1
                if self.fetches >= AT_ONCE - 1:
                    self.arrived.set()
            route(handler)

        return fetched


def run(target: Target, **more: Any) -> Any:
    with growth() as grown:
        ran = target.run_as_is(
            GeminiImageBatchOperator,
            requests=[f"number {number}" for number in range(AT_ONCE)],
            geminiimg_conn_id=target.conn_id,
            max_concurrency=AT_ONCE,
            poll_interval=0.1,
            **more,
        )
    return ran, grown


@ONE_GATEWAY
def test_fifty_bodies_of_one_byte_that_announce_64_MiB_take_what_arrived(target: Target, api: Host) -> None:
    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(MAX_IMAGE_BYTES))
        handler.end_headers()
        handler.wfile.write(b"\x89")
        handler.wfile.flush()
        crowd.arrived.wait(3)

    crowd = Crowd(api, route)
    _, grown = run(target)
    assert crowd.arrived.is_set(), "they were not fetched at once"
    assert grown.most < BUDGET
    assert crowd.submits == AT_ONCE
    states = [record.state for record in target.records()]
    assert (states.count("landed"), states.count("submitted")) == (1, AT_ONCE - 1)


@ONE_GATEWAY
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
def test_fifty_large_images_behind_a_small_one_share_the_budget_and_all_land(
    target: Target, api: Host, framing: str
) -> None:
    body = image_bytes((16, 16)) + bytes(14 * MB)

    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1" if framing == "chunked" else "HTTP/1.0"
        handler.send_response(200)
        if framing != "none":
            of_length = ("Content-Length", str(len(body)))
            handler.send_header(*(of_length if framing == "length" else ("Transfer-Encoding", "chunked")))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for at in range(0, len(body), MB):
            piece = body[at : at + MB]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if framing == "chunked" else piece)
        handler.wfile.write(b"0\r\n\r\n" if framing == "chunked" else b"")

    attacks.answers(api, job_id="before")  # what the first batch of a process imports is not measured
    target.run_as_is(GeminiImageBatchOperator, requests=["before"], geminiimg_conn_id=target.conn_id)
    crowd = Crowd(api, route)
    ran, grown = run(target)
    assert ran.task("made").state == "success", ran.log
    assert grown.most < BUDGET
    assert crowd.submits == AT_ONCE
    assert {record.state for record in target.records()} == {"landed"}


@ONE_GATEWAY
def test_fifty_large_answers_to_submits_share_a_budget_and_each_is_paid_once(
    target: Target, api: Host, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MEMORY_WAIT", 600.0)  # on a busy machine 30 s pass while others are read
    extra = {"gateway": "apimaster", "requests_per_minute": 100_000, "max_concurrency": AT_ONCE}
    connect(target.conn_id, host=f"{api.url}/v1", password="key", extra=extra)
    crowd = Crowd(api, answer(body=image_bytes()))
    padding = "x" * 24_000_000

    def answered(handler: BaseHTTPRequestHandler) -> None:
        if handler.command != "POST":
            crowd._answer(handler)
            return
        with crowd._lock:
            crowd.submits += 1
            job_id = f"job-{crowd.submits}"
        head = json.dumps({"padding": ""})[:-2].encode()
        tail = f'", "data": [{{"status": "submitted", "task_id": "{job_id}"}}]}}'.encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(head) + len(padding) + len(tail)))
        handler.end_headers()
        handler.wfile.write(head)
        for _ in range(24):
            handler.wfile.write(b"x" * 1_000_000)
        handler.wfile.write(tail)

    api.otherwise = answered
    ran, grown = run(target)
    assert ran.task("made").state == "success", ran.log
    assert grown.most < 2 * BUDGET
    assert crowd.submits == AT_ONCE


@ONE_GATEWAY
def test_a_paid_answer_that_stands_still_and_fills_the_room_costs_no_other_its_image(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (transport, "MAX_RESPONSE_MEMORY", 8_000_000),
        (exchange, "MEMORY_WAIT", 1.0),
        (exchange, "OVERHEAD", 3.0),
        (apimaster, "ASYNC_READ_TIMEOUT", 15.0),
    ):
        monkeypatch.setattr(module, name, value)
    crowd, stands_still, over = Crowd(api, answer(body=image_bytes())), threading.Event(), threading.Event()

    def answered(handler: BaseHTTPRequestHandler) -> None:
        if handler.command != "POST":
            as_json(done(f"{api.url}/p.png"))(handler)
            return
        with crowd._lock:
            crowd.submits += 1
            last, job_id = crowd.submits == 4, f"job-{crowd.submits}"  # which is given up last, too
        body = {"padding": "x" * 1_500_000, "data": [{"status": "submitted", "task_id": job_id}]}
        if last:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b'{"padding": "' + b"x" * 30_000_000)  # far more than sockets hold
            stands_still.set()
            while not over.wait(0.5):
                handler.wfile.write(b"x")
        else:
            stands_still.wait(12)
            as_json(body)(handler)

    api.otherwise = answered
    ran = target.run_as_is(
        GeminiImageBatchOperator,
        requests=[f"number {number}" for number in range(4)],
        geminiimg_conn_id=target.conn_id,
        poll_interval=0.1,
    )
    over.set()
    assert crowd.submits == 4
    states = [record.state for record in target.records()]
    assert (states.count("landed"), states.count("intent")) == (3, 1), ran.log


class Trickle:
    """A host that sends `first` bytes, and from then on hardly any, whenever it is asked for one image.

    `full` is set once the first of them are there; `others` when the gateway's other images have been fetched.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.asked = 0
        self.before_others = 0
        self.full, self.others, self.over = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        if self.asked == 2:
            self.others.wait(20)
        self.before_others += not self.others.is_set()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"\x89PNG\r\n\x1a\n" + bytes(self.first))
        self.full.set()
        while not self.over.wait(0.05):
            handler.wfile.write(b"x" * 1_000)


@ONE_GATEWAY
@pytest.mark.parametrize("first", [0, 36 * MB], ids=["from the first byte", "once it has filled the limit"])
def test_a_host_that_trickles_keeps_the_room_from_others_for_one_window_and_its_image_is_fetched_again(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    trickle, fetched, lock = Trickle(first), [], threading.Lock()

    def small(handler: BaseHTTPRequestHandler) -> None:
        answer(body=image_bytes())(handler)
        with lock:
            fetched.append(handler.path)
        if len(fetched) == 7:
            trickle.others.set()

    def answered(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "POST":
            with lock:
                submits.append(handler.path)
                number = len(submits)
            as_json({"data": [{"status": "submitted", "task_id": f"job-{number}"}]})(handler)
        elif "/job-1?" in handler.path:
            as_json(done(f"{api.url}/trickle.png"))(handler)
        else:
            as_json(done(f"{api.url}/p.png") if trickle.full.is_set() else {"data": {"status": "queued"}})(handler)

    submits: list[str] = []
    api.routes |= {"/trickle.png": trickle, "/p.png": small}
    api.otherwise = answered
    with monkeypatch.context() as patch:
        patch.setattr(download_buffer, "_WINDOW", 1.0)
        patch.setattr(byte_semaphore, "EXPECTED_SECONDS", 1.0)
        ran = target.run_as_is(
            GeminiImageBatchOperator,
            requests=[f"number {number}" for number in range(8)],
            geminiimg_conn_id=target.conn_id,
            poll_interval=0.1,
        )
    trickle.over.set()
    assert trickle.asked == 3
    assert trickle.before_others == 1, "the memory was not released between two attempts"
    [waiting] = [record for record in target.records() if record.state != "landed"]
    assert (waiting.state, waiting.job_id) == ("submitted", "job-1")
    assert waiting.error is not None
    assert waiting.error.retryable
    assert "sends the image too slowly" in waiting.error.message
    api.routes["/trickle.png"] = answer(body=image_bytes())
    assert ran.retry("made").state == "success", ran.log
    assert {record.state for record in target.records()} == {"landed"}
    assert len(submits) == 8


@ONE_GATEWAY
def test_a_slow_host_whose_image_goes_on_is_waited_for(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_buffer, "_WINDOW", 1.0)  # 30 s as 1 s, so that this link is one of 100 kB/s
    body = image_bytes((16, 16)) + bytes(10 * MB)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for at in range(0, len(body), 300_000):
            handler.wfile.write(body[at : at + 300_000])
            over.wait(0.1)

    over = threading.Event()
    api.routes["/p.png"] = slow
    attacks.answers(api)
    [image] = attacks.returned(target.generate())["images"]
    assert image["size"] == len(body)


# What the batch itself holds


def inputs(target: Target, count: int) -> dict[str, Any]:
    """Arguments of an edit with so many inputs of 7 MB."""
    uris = []
    for number in range(count):
        path = target.folder / f"in-{number}.png"
        path.write_bytes(image_bytes((64, 64)) + bytes([number]) * 6_900_000)
        uris.append(str(path))
    return {"image": uris[0], "reference_images": uris[1:]}


EDITS = {"onemin": (16, 3), "apimaster": (AT_ONCE, 2)}  # how many, and the inputs of each; uploads have a rate


def test_a_batch_of_edits_holds_the_inputs_of_few_at_a_time_and_makes_each_once(target: Target, api: Host) -> None:
    edits, count = EDITS[target.conn_id]
    jobs, lock = iter(range(1, 2 * edits)), threading.Lock()

    def answered(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "POST":
            with lock:
                job_id = f"job-{next(jobs)}"
            record = {"uuid": job_id, "status": "PROCESSING"}
            as_json({"aiRecord": record, "data": [{"status": "submitted", "task_id": job_id}]})(handler)
        else:
            as_json(done(f"{api.url}/p.png"))(handler)

    api.routes["/api/assets"] = as_json({"fileContent": {"path": "up/in.png"}})
    api.otherwise = answered
    prompts = [f"number {number}" for number in range(edits)]
    given = inputs(target, count)
    with growth() as grown:
        ran = target.run_as_is(
            GeminiImageBatchOperator,
            requests=[{"prompt": prompt, **given} for prompt in prompts],
            geminiimg_conn_id=target.conn_id,
            max_concurrency=AT_ONCE,
            poll_interval=0.1,
        )
    assert ran.task("made").state == "success", ran.log
    assert grown.most < 2 * BUDGET  # one request of 20 MB, several times over, and what the allocator keeps of them
    assert len(target.records()) == edits
    assert {record.state for record in target.records()} == {"landed"}
    assert next(jobs) == edits + 1


@ONE_GATEWAY
@pytest.mark.parametrize("reuse", ["task", "dag"])
def test_a_batch_of_large_images_that_are_copied_holds_few_at_a_time_and_buys_none(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch, reuse: str
) -> None:
    data = image_bytes((16, 16)) + bytes(12 * MB)
    body = json.dumps({"data": [{"b64_json": base64.b64encode(data).decode()}]}).encode()
    api.otherwise = answer(body=body, Content_Type="application/json")

    def batch(folder: str) -> dict[str, Any]:
        return {
            "requests": [f"number {number}" for number in range(AT_ONCE)],
            "geminiimg_conn_id": target.conn_id,
            "max_concurrency": AT_ONCE,
            "reuse": reuse,
            "output_path": str(target.folder / folder),
        }

    ran = target.run_as_is(GeminiImageBatchOperator, **batch("first"))
    assert ran.task("made").state == "success", ran.log
    write, over = storage.Files.write, threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        over.wait(0.2)
        return write(*args, **kwargs)

    monkeypatch.setattr(storage.Files, "write", slow)
    api.otherwise = answer(500)
    with growth() as grown:
        if reuse == "dag":
            ran = target.run_as_is(GeminiImageBatchOperator, **batch("second"))
        else:
            with DAG("attacked", schedule=None) as edited:
                GeminiImageBatchOperator(task_id="made", **batch("second"))
            ran.clear(dag=edited)
    assert ran.task("made").state == "success", ran.log
    assert len(list((target.folder / "second").glob("*.png"))) == AT_ONCE
    assert grown.most < 2 * BUDGET


@ONE_GATEWAY
def test_a_batch_of_large_images_that_come_inline_holds_few_at_a_time_and_loses_none(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_bytes((16, 16)) + bytes(12 * MB)
    body = json.dumps({"data": [{"b64_json": base64.b64encode(data).decode()}]}).encode()
    write, over = storage.Files.write, threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        over.wait(0.5)
        return write(*args, **kwargs)

    monkeypatch.setattr(storage.Files, "write", slow)
    api.otherwise = answer(body=body, Content_Type="application/json")
    with growth() as grown:
        ran = target.run_as_is(
            GeminiImageBatchOperator,
            requests=[f"number {number}" for number in range(AT_ONCE)],
            geminiimg_conn_id=target.conn_id,
            max_concurrency=AT_ONCE,
        )
    assert ran.task("made").state == "success", ran.log
    assert grown.most < 2 * BUDGET
    assert {record.state for record in target.records()} == {"landed"}
    assert len(api.requests) == AT_ONCE
