"""What goes over the wire, and what every way of failing there means for the money. Against real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import pickle
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from airflow_provider_geminiimg.core.gateways.base import Call, JobState, JobStatus, Reply
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.http import exchange
from airflow_provider_geminiimg.core.http import transport as transport_module
from airflow_provider_geminiimg.core.http.exchange import Exchange
from airflow_provider_geminiimg.core.http.rate_limit import RateLimit, limiter_for
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)

KEY = "canary-key-9f3a"
PROMPT = "a canary prompt about lighthouses"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Received:
    """One request that the server got.

    :param connection: number of the TCP connection it came over.
    """

    connection: int
    head: str
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split()[1]


class RawServer:
    """Answers with the very bytes that a test wants, and may hang up at any point.

    :param answers: by path, the bytes to send; ``None`` hangs up without any.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes | None] = {}
        self.hang_up = False
        self.received: list[Received] = []
        self.connections = 0
        self.open = 0
        self.at_once = 0
        self.release = asyncio.Event()
        self.release.set()
        self.arrived = asyncio.Condition()
        self.base_url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while await self._exchange(number, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _exchange(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0)
        received = Received(number, head, await reader.readexactly(length))
        self.received.append(received)
        self.open += 1
        self.at_once = max(self.at_once, self.open)
        async with self.arrived:
            self.arrived.notify_all()
        await self.release.wait()
        self.open -= 1
        answer = self.answers.get(received.path, OK)
        if answer is not None:
            writer.write(answer)
            await writer.drain()
        return answer is not None and b"ut" not in answer[-2:] and not self.hang_up

    async def wait_for(self, count: int) -> None:
        async with self.arrived:
            await asyncio.wait_for(self.arrived.wait_for(lambda: len(self.received) >= count), 10)


@asynccontextmanager
async def running() -> AsyncIterator[RawServer]:
    raw = RawServer()
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    raw.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        raw.release.set()
        server.close()


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with running() as raw:
        yield raw


@pytest.fixture
async def transport(server: RawServer) -> AsyncIterator[Transport]:
    async with Transport(connection_to(server.base_url)) as opened:
        yield opened


def connection_to(base_url: str, *, gateway: str = "1min", **extra: Any) -> GatewayConnection:
    extra = {"gateway": gateway, "requests_per_minute": 6000, **extra}
    return parse_connection(conn_id="my_conn", password=KEY, host=base_url, extra=extra)


def text(reply: Reply) -> Any:
    return reply.content.decode()


def call(url: str, parse: Callable[[Reply], Any] = text, **values: Any) -> Call[Any]:
    request = httpx.Request("POST", url, json={"a": 1}) if values.get("billable") else url
    return Call(request, parse, **{"read_timeout": 5.0, **values})


def status(head: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def failure(transport: Transport, sent: Call[Any], **values: Any) -> GeminiImageError:
    with pytest.raises(GeminiImageError) as caught:
        await transport.send(sent, **values)
    return caught.value


# The key


@pytest.mark.parametrize(
    ("gateway", "header"), [("1min", f"API-KEY: {KEY}"), ("apimaster", f"Authorization: Bearer {KEY}")]
)
async def test_the_api_gets_the_key_in_the_gateways_own_header(server: RawServer, gateway: str, header: str) -> None:
    async with Transport(connection_to(server.base_url, gateway=gateway)) as transport:
        for billable in (False, True):
            await transport.send(call(f"{transport.gateway.base_url}/any", billable=billable))
    assert [header in received.head for received in server.received] == [True, True]


async def test_another_host_or_port_never_gets_the_key(server: RawServer, transport: Transport) -> None:
    async with running() as other:
        elsewhere = other.base_url.replace("127.0.0.1", "localhost")
        for url in (f"{other.base_url}/a", f"{elsewhere}/b", server.base_url.replace("127.0.0.1", "localhost") + "/c"):
            for billable in (False, True):
                await transport.send(call(url, billable=billable))
        assert len(other.received) == 4
        assert len(server.received) == 2
        assert not any(KEY in received.head for received in other.received + server.received)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("billable", [False, True])
async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(
    server: RawServer, transport: Transport, code: int, billable: bool
) -> None:
    async with running() as other:
        server.answers["/here"] = (
            f"HTTP/1.1 {code} Go\r\nLocation: {other.base_url}/\r\nContent-Length: 0\r\n\r\n".encode()
        )
        error = await failure(transport, call(f"{server.base_url}/here", billable=billable))
        assert other.connections == 0
    assert type(error) is (
        UpstreamFailedError if not billable else OutcomeUnknownError if code == 303 else BadRequestError
    )
    assert str(code) in str(error)
    assert len(server.received) == 1


@pytest.mark.parametrize("location", ["data:,x", "https:x", "//", "https://[half/", "https://\x7f/"])
async def test_a_redirect_to_nowhere_is_no_proof_that_nothing_was_sent(
    server: RawServer, transport: Transport, location: str
) -> None:
    server.answers["/here"] = f"HTTP/1.1 302 Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    error = await failure(transport, call(f"{server.base_url}/here", billable=True))
    assert isinstance(error, OutcomeUnknownError)
    error = await failure(transport, call(f"{server.base_url}/here"))
    assert type(error) is UpstreamFailedError
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("code", "location", "unpaid"),
    [
        *((code, "/jobs/1", False) for code in (301, 302, 303)),
        *((code, "http://127.0.0.1:{port}/jobs/1", False) for code in (301, 302)),
        *((code, "/jobs/1", True) for code in (307, 308)),
        *((302, location, True) for location in ("/login?next=/x", "/auth/sign-in", "https://elsewhere.example/")),
    ],
)
async def test_a_redirect_within_the_host_after_a_submit_may_mean_done(
    server: RawServer, transport: Transport, code: int, location: str, unpaid: bool
) -> None:
    there = location.format(port=server.base_url.rpartition(":")[2])
    server.answers["/here"] = f"HTTP/1.1 {code} Go\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
    error = await failure(transport, call(f"{server.base_url}/here", billable=True))
    assert type(error) is (BadRequestError if unpaid else OutcomeUnknownError)


@pytest.mark.parametrize(("location", "unpaid"), [("xn--bcher-kva", False), ("bücher", False), ("bucher", True)])
def test_a_redirect_within_a_host_whose_name_is_not_ascii_may_mean_done(location: str, unpaid: bool) -> None:
    asked = Exchange(call("https://bücher.example/here", billable=True))
    with pytest.raises(BadRequestError if unpaid else OutcomeUnknownError):
        asked.parsed(Reply(302, {"location": f"https://{location}.example/jobs/1"}, b""))


async def test_neither_the_call_nor_the_outcome_holds_the_key(server: RawServer, transport: Transport) -> None:
    server.answers["/drop"] = None
    sent = call(f"{server.base_url}/drop", billable=True)
    error = await failure(transport, sent)
    assert KEY in server.received[0].head
    assert KEY not in str(sent.request.headers)
    assert error.__cause__ is None
    assert error.__context__ is None
    for holder in (transport, transport._auth):
        assert KEY not in repr(holder)
        with pytest.raises(TypeError):
            pickle.dumps(holder)


async def test_what_the_parser_sees_and_raises_is_free_of_the_key(server: RawServer, transport: Transport) -> None:
    def parse(reply: Reply) -> Any:
        assert KEY not in str(reply.headers)
        raise UpstreamFailedError("Echo.", gateway_message=text(reply), details=f"key {KEY}", code=KEY)

    server.answers["/echo"] = status("500 Oops", f"your key {KEY} at https://x.example/a?sig=canary-sig".encode())
    error = await failure(transport, call(f"{server.base_url}/echo", parse), prompt="")
    assert KEY not in str(error)
    assert "canary-sig" not in str(error)
    assert "your key [secret]" in str(error)


# What a gateway says


def refused(reply: Reply) -> Any:
    raise ContentRefusedError("Refused.", gateway_message=f"refused: {PROMPT}", code="moderation_blocked")


def failed_job(reply: Reply) -> JobStatus:
    error = ContentRefusedError("Refused.", gateway_message=f"refused: {PROMPT} {KEY}", code="moderation_blocked")
    return JobStatus(JobState.FAILED, error=error)


async def test_the_prompt_of_a_billable_call_is_taken_out_of_a_refusal(server: RawServer, transport: Transport) -> None:
    error = await failure(transport, call(server.base_url, refused, billable=True, prompt=PROMPT))
    assert "refused: [prompt]" in str(error)
    assert error.code == "moderation_blocked"


@pytest.mark.parametrize(("prompt", "text"), [(None, "[withheld"), (PROMPT, "refused: [prompt]")])
async def test_a_poll_lets_the_gateways_text_through_only_where_the_prompt_is_known(
    server: RawServer, transport: Transport, prompt: str | None, text: str
) -> None:
    error = await failure(transport, call(server.base_url, refused), prompt=prompt)
    assert text in str(error)
    answer = await transport.send(call(server.base_url, failed_job), prompt=prompt)
    assert answer.error is not None
    assert text in str(answer.error)
    for said in (str(error), str(answer.error)):
        assert PROMPT not in said
        assert KEY not in said


async def test_a_header_in_another_script_does_not_cost_the_answer(server: RawServer, transport: Transport) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-City: S\xc3\xa3o Paulo\r\nX-Odd: \x80\xff\r\nContent-Length: 2\r\n\r\nok"
    server.answers["/here"] = head
    assert await transport.send(call(f"{server.base_url}/here", billable=True)) == "ok"


def encoded(encoding: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("Deflate", zlib.compress)])
async def test_an_answer_in_another_encoding_than_asked_for_is_decoded(
    server: RawServer, transport: Transport, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    server.answers["/packed"] = encoded(encoding, pack(b'{"fine": true}'))
    assert await transport.send(call(f"{server.base_url}/packed", lambda reply: json.loads(reply.content))) == {
        "fine": True
    }


async def test_an_answer_is_unpacked_no_further_than_it_may_be_large(server: RawServer, transport: Transport) -> None:
    server.answers["/bomb"] = encoded("gzip", gzip.compress(bytes(200_000_000), 9))
    tracemalloc.start()
    try:
        for billable, kind in ((True, OutcomeUnknownError), (False, UpstreamFailedError)):
            error = await failure(transport, call(f"{server.base_url}/bomb", billable=billable))
            assert type(error) is kind
            assert "is larger than" in str(error)
        assert tracemalloc.get_traced_memory()[1] < 170_000_000  # 64 MB may come, in a buffer that grows by doubling
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "gzip;q=1"])
async def test_an_answer_in_an_encoding_that_has_no_bounds_is_not_unpacked(
    server: RawServer, transport: Transport, encoding: str
) -> None:
    server.answers["/packed"] = encoded(encoding, gzip.compress(gzip.compress(b'{"fine": true}')))
    assert isinstance(await failure(transport, call(f"{server.base_url}/packed", billable=True)), OutcomeUnknownError)
    error = await failure(transport, call(f"{server.base_url}/packed"))
    assert "has an encoding that was not requested" in str(error)


async def test_an_answer_that_can_not_be_unpacked_is_no_answer(server: RawServer, transport: Transport) -> None:
    server.answers["/packed"] = encoded("gzip", b"not gzip")
    assert isinstance(await failure(transport, call(f"{server.base_url}/packed", billable=True)), OutcomeUnknownError)


@pytest.mark.parametrize(("billable", "kind"), [(True, OutcomeUnknownError), (False, UpstreamFailedError)])
async def test_an_answer_without_end_is_cut_off(
    server: RawServer, transport: Transport, monkeypatch: pytest.MonkeyPatch, billable: bool, kind: type
) -> None:
    monkeypatch.setattr(exchange, "MAX_ANSWER", {True: 1000, False: 1000})
    server.answers["/large"] = status("200 OK", b"x" * 1001)
    error = await failure(transport, call(f"{server.base_url}/large", billable=billable))
    assert type(error) is kind
    assert "1,000 bytes" in str(error)


# The network


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 200 OK\r\nContent-Le-cut",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{cut",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{cut",
        b"not HTTP at all\r\n\r\ncut",
    ],
    ids=["no answer", "cut in the head", "cut in the body", "cut in a chunk", "no HTTP"],
)
async def test_a_broken_answer_is_unknown_for_a_billable_call_and_a_passing_failure_for_a_free_one(
    server: RawServer, transport: Transport, answer: bytes | None
) -> None:
    server.answers["/broken"] = answer
    error = await failure(transport, call(f"{server.base_url}/broken", billable=True))
    assert type(error) is OutcomeUnknownError
    assert error.billed is Billed.UNKNOWN
    assert len(server.received) == 1
    error = await failure(transport, call(f"{server.base_url}/broken"))
    assert type(error) is UpstreamFailedError
    assert (error.billed, error.retryable) == (Billed.NO, True)


WHOLE = b'{"task_id": "job-1"}'
BROKEN_FRAMES = {
    "closed, without a length": b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE,
    "a length that is too large": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + WHOLE,
    "blanks, and a length that is too large": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + WHOLE + b"\r\n",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n" + WHOLE + b"\r\n",
    "a chunk that is cut": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\n" + WHOLE,
    "a chunk that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n" + WHOLE + b"\r\nzz\r\n",
    "cut gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 99\r\n\r\n" + gzip.compress(WHOLE)[:-5],
    "gzip that is none": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + WHOLE,
    "an encoding that is none": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 20\r\n\r\n" + WHOLE,
}


# A free call whose answer has a chunk that is none is made again: aiohttp lets go of such an answer.
READABLE = [
    pytest.param(answer, billable, id=f"{'paid' if billable else 'free'}-{name}")
    for name, answer in BROKEN_FRAMES.items()
    for billable in (False, True)
    if billable or name != "a chunk that is none"
]


@pytest.mark.parametrize(("answer", "billable"), READABLE)
async def test_a_json_object_that_came_whole_is_the_answer_whatever_its_frame(
    server: RawServer, transport: Transport, answer: bytes, billable: bool
) -> None:
    server.hang_up = True
    server.answers["/here"] = answer
    sent = call(f"{server.base_url}/here", lambda reply: json.loads(reply.content), billable=billable)
    assert await transport.send(sent) == json.loads(WHOLE)
    assert len(server.received) == 1


@pytest.mark.parametrize("answer", [frame for frame in BROKEN_FRAMES.values() if WHOLE in frame])
async def test_json_that_did_not_come_whole_is_no_answer(
    server: RawServer, transport: Transport, answer: bytes
) -> None:
    server.hang_up = True
    server.answers["/here"] = answer.replace(WHOLE, WHOLE[:-1])[:-1]
    sent = call(f"{server.base_url}/here", lambda reply: json.loads(reply.content), billable=True)
    assert type(await failure(transport, sent)) is OutcomeUnknownError


async def test_a_whole_answer_is_not_waited_on_where_more_was_announced(
    server: RawServer, transport: Transport
) -> None:
    server.answers["/here"] = BROKEN_FRAMES["a length that is too large"]
    sent = call(f"{server.base_url}/here", billable=True, read_timeout=60)
    assert await asyncio.wait_for(transport.send(sent), 10) == WHOLE.decode()


@pytest.mark.parametrize(("billable", "kind"), [(True, OutcomeUnknownError), (False, UpstreamFailedError)])
async def test_an_answer_that_does_not_come_in_time_is_not_waited_for(
    server: RawServer, transport: Transport, billable: bool, kind: type
) -> None:
    server.release.clear()
    error = await failure(transport, call(server.base_url, billable=billable, read_timeout=0.1))
    assert type(error) is kind
    assert len(server.received) == 1


@pytest.mark.parametrize(("billable", "kind"), [(True, OutcomeUnknownError), (False, UpstreamFailedError)])
async def test_an_answer_that_only_drips_is_given_up_before_the_ledger_gives_the_attempt_up(
    monkeypatch: pytest.MonkeyPatch, billable: bool, kind: type
) -> None:
    monkeypatch.setattr(exchange, "OVERHEAD", 0.2)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Transport(connection_to(url)) as transport:
        error = await asyncio.wait_for(failure(transport, call(url, billable=billable, read_timeout=0.2)), 10)
    assert type(error) is kind
    server.close()


def test_a_billable_call_ends_before_the_ledger_takes_its_attempt_for_dead() -> None:
    assert transport_module.BILLABLE_WAIT + exchange.OVERHEAD < 60


@pytest.mark.parametrize("billable", [False, True])
async def test_a_refused_connection_is_known_to_be_unpaid(unused_tcp_port: int, billable: bool) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with Transport(connection_to(url)) as transport:
        error = await failure(transport, call(url, billable=billable))
    assert type(error) is NotSentError
    assert (error.billed, error.retryable) == (Billed.NO, True)


async def test_a_name_that_does_not_resolve_is_known_to_be_unpaid() -> None:
    async with Transport(connection_to("https://no-such-host.invalid")) as transport:
        error = await failure(transport, call("https://no-such-host.invalid/x", billable=True))
    assert type(error) is NotSentError


async def test_a_failing_tls_handshake_is_known_to_be_unpaid(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "CONNECT_TIMEOUT", 0.3)
    url = server.base_url.replace("http://", "https://")
    async with Transport(connection_to(url)) as transport:
        error = await failure(transport, call(url, billable=True))
    assert type(error) is NotSentError
    assert server.received == []


@pytest.mark.parametrize("answers", ["never", "with a tunnel to nobody"])
async def test_what_is_told_to_a_proxy_before_the_request_is_no_byte_of_it(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    monkeypatch.setattr(exchange, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setenv("HTTPS_PROXY", server.base_url)
    if answers == "never":
        server.release.clear()
    server.answers["gateway.invalid:443"] = b"HTTP/1.1 200 Connection established\r\n\r\n"
    written: list[bool] = []
    async with Transport(connection_to("https://gateway.invalid")) as transport:
        paid = call("https://gateway.invalid/x", billable=True, read_timeout=0.3)
        async with transport.turn(paid):
            with pytest.raises(NotSentError):
                await transport.send(paid, has_turn=True, sent=lambda: written.append(True))
    server.release.set()
    assert [received.head.split()[0] for received in server.received] == ["CONNECT"]
    assert written == []


async def test_a_billable_call_never_meets_a_pooled_connection_that_the_server_is_closing(
    server: RawServer, transport: Transport
) -> None:
    server.hang_up = True  # every answer leaves the client with a connection that is about to close
    for _ in range(30):
        await transport.send_free(call(f"{server.base_url}/poll"))
        assert await transport.send(call(f"{server.base_url}/submit", billable=True)) == "ok"
    submits = [received.connection for received in server.received if received.path == "/submit"]
    polls = {received.connection for received in server.received if received.path == "/poll"}
    assert len(submits) == len(set(submits)) == 30
    assert not polls & set(submits)


async def test_free_calls_share_connections_and_billable_ones_open_their_own(
    server: RawServer, transport: Transport
) -> None:
    for billable in (False, True, False, True, False):
        await transport.send(call(server.base_url, billable=billable))
    assert [received.connection for received in server.received] == [1, 2, 1, 3, 1]


async def test_a_parser_that_breaks_does_not_hide_a_payment(server: RawServer, transport: Transport) -> None:
    sent = call(server.base_url, lambda reply: json.loads(reply.content), billable=True)
    assert type(await failure(transport, sent)) is OutcomeUnknownError


async def test_a_cancelled_billable_call_is_cancelled_and_its_connection_closed(
    server: RawServer, transport: Transport
) -> None:
    server.release.clear()
    sending = asyncio.create_task(transport.send(call(server.base_url, billable=True)))
    await server.wait_for(1)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    server.release.set()
    assert await transport.send(call(server.base_url, billable=True)) == "ok"


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    server: RawServer, transport: Transport, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_tcp_port}")
    assert await transport.send(call(server.base_url, billable=True)) == "ok"


async def test_a_closed_transport_sends_nothing(server: RawServer, transport: Transport) -> None:
    await transport.send(call(server.base_url))
    await transport.aclose()
    for billable in (False, True):
        with pytest.raises(NotSentError, match="closed"):
            await transport.send(call(server.base_url, billable=billable))
    assert len(server.received) == 1


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_no_log_record_holds_the_key_a_link_signature_or_the_prompt(
    server: RawServer, transport: Transport, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    caplog.set_level(level)
    url = f"{server.base_url}/result?X-Amz-Signature=canary-sig"
    server.answers["/result?X-Amz-Signature=canary-sig"] = (
        f"HTTP/1.1 200 OK\r\nX-Echo: {KEY}\r\nSet-Cookie: canary-sig\r\nContent-Length: 2\r\n\r\nok".encode()
    )
    await transport.send(call(url, billable=True, prompt=PROMPT))
    await transport.send(call(url))
    said = "\n".join(record.getMessage() for record in caplog.records)
    for canary in (KEY, "canary-sig", PROMPT):
        assert canary not in said


# Retries of free calls


async def test_a_free_call_is_tried_three_times(server: RawServer, transport: Transport) -> None:
    server.answers["/drop"] = None
    with pytest.raises(UpstreamFailedError):
        await transport.send_free(call(f"{server.base_url}/drop"))
    assert len(server.received) == 3


async def test_an_upload_is_sent_again_whole(server: RawServer, transport: Transport) -> None:
    answers = iter([UpstreamFailedError("Busy."), RateLimitedError("Slow."), None])

    def parse(reply: Reply) -> str:
        if (error := next(answers)) is not None:
            raise error
        return "stored"

    request = httpx.Request(
        "POST", f"{server.base_url}/assets", files={"asset": ("a.png", b"\x89PNG" * 50, "image/png")}
    )
    assert await transport.send_free(Call(request, parse)) == "stored"
    assert len(server.received) == 3
    assert {received.body for received in server.received} == {server.received[0].body}
    assert server.received[0].body.count(b"\x89PNG") == 50


async def test_a_free_failure_that_will_not_pass_is_not_tried_again(server: RawServer, transport: Transport) -> None:
    def parse(reply: Reply) -> str:
        raise AuthenticationError("No.")

    with pytest.raises(AuthenticationError):
        await transport.send_free(call(server.base_url, parse))
    assert len(server.received) == 1


async def test_retrying_a_billable_call_is_refused_before_it_is_sent(server: RawServer, transport: Transport) -> None:
    with pytest.raises(ValueError, match="billable"):
        await transport.send_free(call(server.base_url, billable=True))
    assert server.received == []


# Limits


async def test_max_concurrency_bounds_what_is_under_way(server: RawServer) -> None:
    server.release.clear()
    async with Transport(connection_to(server.base_url, max_concurrency=2)) as transport:
        polls = [asyncio.create_task(transport.send(call(server.base_url))) for _ in range(6)]
        await server.wait_for(2)
        server.release.set()
        assert await asyncio.gather(*polls) == ["ok"] * 6
    assert server.at_once == 2
    assert server.connections == 2


async def test_polls_that_wait_do_not_hold_up_a_submit(server: RawServer) -> None:
    server.release.clear()
    async with Transport(connection_to(server.base_url, max_concurrency=1)) as transport:
        poll = asyncio.create_task(transport.send(call(server.base_url)))
        await server.wait_for(1)
        submit = asyncio.create_task(transport.send(call(server.base_url, billable=True)))
        await server.wait_for(2)
        server.release.set()
        assert (await poll, await submit) == ("ok", "ok")


async def test_a_submit_whose_turn_does_not_come_is_known_to_be_unsent(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "BILLABLE_WAIT", 0.1)
    connection = connection_to(server.base_url)
    limiter_for(connection).pause(60)
    async with Transport(connection) as transport:
        error = await failure(transport, call(server.base_url, billable=True))
    assert type(error) is RateLimitedError
    assert error.billed is Billed.NO
    assert server.connections == 0


async def test_a_retry_after_slows_every_transport_of_the_connection_down(server: RawServer) -> None:
    def slow_down(reply: Reply) -> str:
        raise RateLimitedError("Slow.", retry_after=0.4)

    connection = connection_to(server.base_url)
    async with Transport(connection) as first, Transport(connection) as second:
        await failure(first, call(server.base_url, slow_down))
        told = time.monotonic()
        await second.send(call(server.base_url, billable=True))
        assert time.monotonic() - told >= 0.35


def test_transports_of_one_connection_share_a_limiter_and_those_of_others_do_not() -> None:
    one = limiter_for(connection_to("http://127.0.0.1:1"))
    assert limiter_for(connection_to("http://127.0.0.1:1")) is one
    assert limiter_for(connection_to("http://127.0.0.1:2")) is not one


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.mark.parametrize("per_minute", [1, 2, 10, 100, 180])
def test_no_sixty_seconds_see_more_calls_than_allowed_and_the_rate_is_used(clock: Clock, per_minute: int) -> None:
    limit = RateLimit(per_minute)
    passed: list[float] = []
    while clock.now < 1000 + 600:
        wait = limit.take()
        if wait == 0.0:
            passed.append(clock.now)
        clock.now += wait
    for start in passed:
        assert sum(start <= at < start + 59.999 for at in passed) <= per_minute
    assert len(passed) >= 10 * per_minute * 0.9


def test_a_caller_of_low_priority_leaves_half_of_the_burst_to_others(clock: Clock) -> None:
    limit = RateLimit(200)
    low = 0
    while limit.take(low_priority=True) == 0.0:
        low += 1
    urgent = 0
    while limit.take() == 0.0:
        urgent += 1
    assert (low, urgent) == (11, 9)
    assert limit.take(low_priority=True) > limit.take()


def test_a_pause_is_never_longer_than_two_minutes(clock: Clock) -> None:
    limit = RateLimit(60)
    limit.pause(86_400)
    assert limit.take() == pytest.approx(120)
    clock.now += 121
    assert limit.take() == 0.0
