"""Everything that reads what others wrote, fed with anything at all: it ends in a value or in an outcome, and it ends.

500 examples each; ``make fuzz`` takes 100,000. What must stay true of each: no exception but those of the tree, nothing
that runs on, no key in what is said, and what a value promises holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import httpx
import pytest
from harness.attacks import picture
from harness.forbidden import Internet
from harness.records import ITEM, make_record
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from airflow_provider_geminiimg import download as download_module
from airflow_provider_geminiimg import names
from airflow_provider_geminiimg import transport as transport_module
from airflow_provider_geminiimg.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.decision import Asked, Policy, decide
from airflow_provider_geminiimg.download import download
from airflow_provider_geminiimg.exceptions import (
    KINDS,
    BadRequestError,
    Billed,
    GeminiImageError,
    InvalidImageError,
    LedgerError,
    StorageError,
    from_dict,
    scrub,
)
from airflow_provider_geminiimg.gateways import GATEWAYS
from airflow_provider_geminiimg.gateways.base import Call, CheckResult, InputImage, JobState, JobStatus
from airflow_provider_geminiimg.images import MAX_SIDE, inspect_image
from airflow_provider_geminiimg.inputs import public_uri
from airflow_provider_geminiimg.ledger import Destination, Ledger, Record, record_key
from airflow_provider_geminiimg.request import ImageRequest
from airflow_provider_geminiimg.storage import Blob, Files, Store, locate, same_place
from airflow_provider_geminiimg.transport import Transport

T = TypeVar("T")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=dt.timedelta(seconds=30),  # nothing takes a tenth of a second; this is what "it ends" means
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

SECRET = "sk-fuzz/0123456789+abcdef=="
PROMPT = "a red fox in the snow, as a woodcut"
KEY = "development/images/2025_01_15_city.png"
LINK = "https://apimaster.ai/imgs/1782633695067198543.jpg"
SIGNED = f"https://s3.amazonaws.com/{KEY}?X-Amz-Date=20250115T105045Z&X-Amz-Expires=604800&X-Amz-Signature=abc"

# What gateways say

_WORDS = st.sampled_from(
    [
        *("SUCCESS", "FAILURE", "PROCESSING", "succeeded", "failed", "in_progress", "submitted", "task_not_exist"),
        *("moderation_blocked", "SAFETY", "insufficient_user_quota", "INSUFFICIENT_CREDITS", "bad_response"),
        *(
            KEY,
            LINK,
            SIGNED,
            "data:image/png;base64,AA==",
            "data:;base64,?",
            "DATA:,",
            "task_01K8SGYNNNVBQTXNR4MM964S7K",
        ),
        *(
            "http://[::1",
            "https://h:99999/x",
            "https://①/",
            "https://a\\@b/",
            "//x",
            "..",
            "\ud800",
            "\0",
            "a\nb",
            "9" * 400,
        ),
        *(
            '{"error": {"code": 1}}',
            '{"error": "' * 20,
            "[" * 2_000,
            '"finish_reason": "SAFETY"',
            f"key {SECRET}",
            PROMPT,
        ),
        *("request id: 20250115204512", "1e400", "-1", "50%", "nan", " "),
    ]
)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), _WORDS)
_NAMES = st.sampled_from(
    [
        *(
            "aiRecord",
            "aiRecordDetail",
            "uuid",
            "status",
            "resultObject",
            "responseObject",
            "temporaryUrl",
            "errorMessage",
        ),
        *("error", "errorCode", "code", "message", "details", "type", "param", "reason", "finishReason"),
        *("data", "task_id", "id", "result", "images", "image", "output", "url", "urls", "b64_json", "key", "path"),
        *("progress", "cost", "expires_at", "fileContent", "asset", "models", "teamUser"),
    ]
)
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5))
_OBJECTS = st.dictionaries(_NAMES, _JSON, max_size=5)
_ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "aiRecord": _OBJECTS | st.none(),
        "temporaryUrl": _JSON,
        "data": _OBJECTS | st.lists(_OBJECTS, max_size=2),
        "code": _JSON,
        "error": _JSON,
        "message": _JSON,
        "asset": _OBJECTS,
        "fileContent": _OBJECTS,
    },
)
_WRITTEN = st.one_of(_JSON, _ANSWERS).map(lambda value: json.dumps(value).encode())
BODIES = st.one_of(
    st.binary(max_size=60),
    _WRITTEN,
    st.builds(lambda body, at: body[:at], _WRITTEN, st.integers(0, 60)),
    st.builds(
        lambda open_, times: open_ * times,
        st.sampled_from([b"[", b'{"data":', b'{"aiRecord":', b"<"]),
        st.integers(1, 9_999),
    ),
)
STATUSES = st.one_of(
    st.just(200), st.sampled_from([400, 401, 403, 404, 408, 429, 500, 502, 503, 522]), st.integers(100, 999)
)
_HEADER_NAMES = st.sampled_from(
    [
        b"Retry-After",
        b"Date",
        b"Content-Type",
        b"X-Request-Id",
        b"X-Oneapi-Request-Id",
        b"Location",
        b"Set-Cookie",
        b"Link",
    ]
)
_HEADER_VALUES = st.one_of(
    st.binary(max_size=12).map(lambda value: bytes(byte for byte in value if byte not in b"\r\n\0")),
    st.sampled_from(
        [
            b"1e999",
            b"0",
            b"-5",
            b"Wed, 21 Oct 9999 07:28:00 -2359",
            b"Wed, 99 Oct 2026",
            b"text/html",
            b"application/json",
        ]
    ),
    st.sampled_from(
        [b"https:x", b"data:,x", b"//", b"https://[half/", b"/next", b"a=b; Domain=.", b"a=" + b"x" * 5_000]
    ),
)
HEADERS = st.lists(st.tuples(_HEADER_NAMES, _HEADER_VALUES), max_size=4)


def connection(gateway: str, base_url: str = "https://gateway.test") -> GatewayConnection:
    extra = {"gateway": gateway, "requests_per_minute": 1_000_000}
    return parse_connection(conn_id=f"fuzz-{gateway}", password=SECRET, host=base_url, extra=extra)


def calls(gateway: str, base_url: str = "https://gateway.test") -> dict[str, Call[Any]]:
    """Every call of a gateway that has an answer."""
    adapter = GATEWAYS[gateway](base_url)
    asked = ImageRequest.build(operation="generate", prompt=PROMPT).check(gateway)
    image = InputImage(b"\x89PNG", "image/png", "0" * 64)
    found = {
        "submit": adapter.submit(asked, ()),
        "submit that waits": adapter.submit(asked, (), wait=True),
        "poll": adapter.status("job-1", model=asked.model),
        "check": adapter.check(),
        "upload": adapter.reference(image),
    }
    return {name: call for name, call in found.items() if isinstance(call, Call)}


CALLS = [(gateway, name) for gateway in GATEWAYS for name in calls(gateway)]
each_call = pytest.mark.parametrize(("gateway", "name"), CALLS, ids=[f"{gateway} {name}" for gateway, name in CALLS])


def is_fit(found: Any, *, billable: bool, known: bool) -> None:
    """Check what a call brought, be it a value or an outcome, as everybody behind it relies on it.

    :param known: whether the prompt was known where the outcome was scrubbed.
    """
    if isinstance(found, GeminiImageError):
        assert type(found) in KINDS.values()
        assert billable or found.billed is not Billed.UNKNOWN
        said = str(found)
        assert said.isprintable()
        assert SECRET not in said
        assert PROMPT not in said
        assert not known or "[withheld" not in said
        written = json.dumps(found.to_dict(), allow_nan=False)
        assert vars(from_dict(json.loads(written))) == vars(found)
        assert found.retry_after is None or found.retry_after >= 0
    elif isinstance(found, JobStatus):
        assert bool(found.pictures) == (found.state is JobState.DONE)
        assert (found.error is not None) == (found.state is JobState.FAILED)
        if found.error is not None:
            is_fit(found.error, billable=True, known=known)
        links = [each.url for each in found.pictures if each.url is not None]
        for link in links:
            with contextlib.suppress(GeminiImageError):
                download_module._parse(link, None)
        record = make_record(state="answered", job_id=found.job_id, links=links, cost={"amount": found.cost})
        assert RECORD.validate_json(RECORD.dump_json(record)) == record
        if found.job_id is not None:
            GATEWAYS["1min"]().status(found.job_id, model="any")
    else:
        assert isinstance(found, (str, CheckResult))


RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@each_call
def test_any_answer_is_a_value_or_an_outcome(gateway: str, name: str) -> None:
    call = calls(gateway)[name]

    @fuzz
    @given(BODIES, STATUSES, HEADERS)
    @example(b"[" * 100_000 + b"]" * 100_000, 200, [])
    @example(b'{"aiRecord":' * 100_000, 200, [])
    @example(json.dumps({"errorCode": "X", "details": "[" * 100_000}).encode(), 400, [])
    @example(b'{"data": {"cost": ' + b"9" * 5_000 + b"}}", 200, [])
    def answered(body: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        found: Any
        try:
            found = call.parse(httpx.Response(status, content=body, headers=headers))
        except GeminiImageError as error:
            found = error.scrubbed(secrets=[SECRET], prompt=PROMPT)
        if isinstance(found, JobStatus) and found.error is not None:
            object.__setattr__(found, "error", found.error.scrubbed(secrets=[SECRET], prompt=PROMPT))
        is_fit(found, billable=call.billable, known=True)

    answered()


# What comes over the wire


class Wire:
    """A server that reads a request, answers with the bytes that it was told, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                self._read(client)
                client.sendall(self.answer)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65_536):
                    pass

    def _read(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65_536)
            if not piece:
                return
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
        length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
        while len(body) < length:
            body += client.recv(65_536)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The server; no other host is known, and none can be reached."""
    Internet().install(monkeypatch)
    look_up = socket.getaddrinfo

    def getaddrinfo(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in ("127.0.0.1", b"127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "not in this box")
        return look_up(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    server = Wire()
    yield server
    server.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


_LINES = st.one_of(
    st.builds(lambda status, why: b"HTTP/1.1 %d %b" % (status, why), STATUSES, st.binary(max_size=6)),
    st.sampled_from([b"HTTP/1.0 200", b"HTTP/1.1 200 OK", b"HTTP/2 200", b"HTTP/1.1 2000 OK", b"SSH-2.0-x", b""]),
    st.binary(max_size=20),
)
_TRANSFER = st.sampled_from(
    [
        b"Content-Encoding: gzip",
        b"Content-Encoding: identity",
        b"Content-Encoding: br, gzip",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Length: 5",
        b"Content-Length: 18446744073709551616",
        b"Content-Length: -1",
        b"Content-Length: " + b"9" * 5_000,
        b"Connection: close",
        b"Connection: upgrade\r\nUpgrade: websocket",
        b"X: " + b"x" * 200_000,
    ]
)
_LENGTHS = st.sampled_from(["right", "none", "short"])
_CHUNKS = st.sampled_from([b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffffffff\r\nx", b"0\r\n\r\n"])


def response(
    line: bytes, headers: list[tuple[bytes, bytes]], more: list[bytes], length: str, body: bytes, chunks: bytes
) -> bytes:
    head = [line, *(b"%b: %b" % pair for pair in headers), *more]
    if length != "none":
        head.append(b"Content-Length: %d" % (len(body) + (7 if length == "short" else 0)))
    return b"\r\n".join(head) + b"\r\n\r\n" + chunks + body


WIRE_ANSWERS = st.one_of(
    st.binary(max_size=200),
    st.builds(response, _LINES, HEADERS, st.lists(_TRANSFER, max_size=2), _LENGTHS, BODIES, _CHUNKS),
    st.builds(response, st.just(b"HTTP/1.1 200 OK"), HEADERS, st.just([]), st.just("right"), BODIES, st.just(b"")),
)


async def attempt(doing: Coroutine[Any, Any, T]) -> T | GeminiImageError:
    try:
        return await doing
    except GeminiImageError as error:
        return error


@each_call
def test_any_bytes_that_an_api_sends_are_a_value_or_an_outcome(
    wire: Wire, loop: asyncio.AbstractEventLoop, gateway: str, name: str
) -> None:
    @fuzz
    @given(WIRE_ANSWERS, st.sampled_from([PROMPT, None]))
    def answered(answer: bytes, prompt: str | None) -> None:
        wire.answer = answer
        account = connection(gateway, wire.url)
        transport_module._limiters.clear()  # or uploads would wait for their turn
        call = calls(gateway, account.base_url)[name]

        async def ask() -> Any:
            async with Transport(account) as transport:
                return await attempt(transport.send(call, prompt=prompt))

        found = loop.run_until_complete(ask())
        is_fit(found, billable=call.billable, known=prompt is not None)

    answered()


PICTURES = {kind: picture((9, 7), kind) for kind in ("PNG", "JPEG", "WEBP")}


def mutated(data: bytes, at: int, cut: int, inserted: bytes) -> bytes:
    at %= len(data)
    return data[:at] + inserted + data[at + cut :]


BYTES = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda magic, rest: magic + rest,
        st.sampled_from([data[:n] for data in PICTURES.values() for n in (2, 4, 8, 16, 33)]),
        st.binary(max_size=80),
    ),
    st.builds(
        mutated,
        st.sampled_from(list(PICTURES.values())),
        st.integers(0, 1_000),
        st.integers(0, 60),
        st.binary(max_size=12),
    ),
)


def test_any_bytes_that_a_pictures_host_sends_are_a_body_or_an_outcome(
    wire: Wire, loop: asyncio.AbstractEventLoop
) -> None:
    @fuzz
    @given(
        WIRE_ANSWERS
        | st.builds(response, st.just(b"HTTP/1.1 200 OK"), HEADERS, st.just([]), _LENGTHS, BYTES, st.just(b""))
    )
    def answered(answer: bytes) -> None:
        wire.answer = answer
        found = loop.run_until_complete(
            attempt(download(f"{wire.url}/p.png?sig=SECRET", max_bytes=100_000, timeout=20, exempt=wire.url))
        )
        if isinstance(found, GeminiImageError):
            assert type(found) in KINDS.values()
            assert found.billed is Billed.YES
            assert found.hint
            assert "sig=SECRET" not in str(found)
            assert str(found).isprintable()
        else:
            assert 0 < len(found) <= 100_000

    answered()


@fuzz
@given(BYTES)
def test_any_bytes_are_a_picture_or_an_invalid_one(data: bytes) -> None:
    try:
        info = inspect_image(data)
    except InvalidImageError as error:
        is_said(error)
        return
    assert 0 < info.width <= MAX_SIDE
    assert 0 < info.height <= MAX_SIDE
    assert (info.media_type, info.extension) in {("image/png", "png"), ("image/jpeg", "jpg"), ("image/webp", "webp")}


def is_said(error: GeminiImageError) -> None:
    assert str(error).isprintable()
    assert error.hint


# What lies in the ledger


class Shelf(Store):
    """A store in which every key holds the same bytes, and nothing is free."""

    def __init__(self, data: bytes) -> None:
        super().__init__("file:///shelf")
        self.data = data

    def create(self, key: str, data: bytes) -> str | None:
        return None

    def read(self, key: str) -> Blob | None:
        return Blob(self.data, "1", 0.0)

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        return None

    def delete(self, key: str) -> None: ...

    def keys(self, prefix: str) -> Iterator[str]:
        return iter([record_key(ITEM, 1)])


_OUTCOME = st.one_of(
    _JSON,
    st.dictionaries(
        st.sampled_from(
            ["kind", "message", "billed", "retryable", "hint", "code", "status_code", "retry_after", "new"]
        ),
        st.one_of(_JSON, st.sampled_from([*KINDS, "yes", "no", "unknown"])),
    ),
)
_IMAGES = st.lists(
    st.dictionaries(st.sampled_from(["uri", "sha256", "width", "size"]), _JSON | st.just("s3://b/k")), max_size=2
)
_MANIFESTS = st.one_of(_JSON, st.fixed_dictionaries({"images": _JSON | _IMAGES}))
_STATES = st.sampled_from(["intent", "submitted", "answered", "landed", "failed"])
_FIELDS: dict[str, Any] = json.loads(RECORD.dump_json(make_record(claim="c", job_id="job-1", submitted_at=1.0)))
_RECORDS = st.builds(
    lambda changed, state: json.dumps({**_FIELDS, "state": state, **changed}).encode(),
    st.one_of(
        st.dictionaries(st.sampled_from(list(_FIELDS)), _JSON, max_size=2),
        st.fixed_dictionaries(
            {},
            optional={
                "outcome": _OUTCOME,
                "manifest": _MANIFESTS,
                "copies": st.lists(
                    _OBJECTS | st.fixed_dictionaries({"destination": _JSON, "manifest": _MANIFESTS}), max_size=2
                ),
            },
        ),
    ),
    _STATES,
)


@fuzz
@given(st.one_of(BODIES, _RECORDS), st.integers(0, 2), st.sampled_from(["there", "gone", "unknown"]), st.booleans())
@example(b"[" * 100_000, 0, "there", False)
@example(b'{"schema": ' + b"9" * 5_000 + b"}", 0, "there", False)
def test_any_record_is_read_or_refused_and_decided_about(
    data: bytes, generation: int, seen: Any, vanished: bool
) -> None:
    ledger = Ledger(Shelf(data))
    try:
        found = ledger.latest(ITEM)
    except LedgerError as error:
        is_said(error)
        return
    assert found is not None
    record = found.record
    assert record.key == record_key(ITEM, 1)
    for on_clear in ("reuse", "regenerate"):
        policy = Policy(generation, on_clear=on_clear)  # type: ignore[arg-type]
        asked = Asked(record.fingerprint, Destination("file:///elsewhere", "fox"))
        assert decide(found, policy, asked, picture=seen, vanished=vanished)
    assert record.error is None or str(record.error)
    for manifest in ([record.manifest] if record.state == "landed" else []) + [
        copy["manifest"] for copy in record.copies
    ]:
        assert manifest is not None
        assert all(isinstance(image["uri"], str) and isinstance(image["sha256"], str) for image in manifest["images"])
    assert all(isinstance(copy["destination"], dict) for copy in record.copies)
    assert repr(record)


@fuzz
@given(st.one_of(BODIES, _JSON.map(lambda value: json.dumps({"item": value}).encode())))
@example(b"[" * 100_000)
def test_any_claim_of_a_name_is_somebodys_or_can_not_be_read(data: bytes) -> None:
    with pytest.raises((StorageError, BadRequestError)):
        names._claim(Ledger(Shelf(data)), "ledger/mine", Destination("file:///out", "fox"), "file:///out/fox")


# What is said, and what is written in addresses

_KEYS = st.text("abcdefXYZ0189-_./+=&%\"'\\", min_size=8, max_size=40)
_TEXTS = st.one_of(st.text(max_size=200), _WORDS)


@fuzz
@given(_TEXTS, _KEYS, st.one_of(st.none(), st.text(max_size=60)), _TEXTS, st.integers(0, 9), st.integers(1, 600))
def test_any_text_is_scrubbed_of_the_key(
    before: str, key: str, prompt: str | None, after: str, way: int, limit: int
) -> None:
    ways = [str, json.dumps, lambda text: json.dumps(json.dumps(text)), repr, lambda text: text.upper()]
    said = f"{before}{ways[way % len(ways)](key)}{after}"
    found = scrub(said, secrets=[key], prompt=prompt, limit=limit)
    assert len(found) <= limit
    assert found.isprintable()
    assert key not in found


@fuzz
@given(st.text(max_size=100), st.lists(st.text(max_size=20), max_size=3), st.none() | st.text(max_size=100))
def test_any_text_any_secret_and_any_prompt_can_be_scrubbed(said: str, secrets: list[str], prompt: str | None) -> None:
    assert scrub(said, secrets=secrets, prompt=prompt).isprintable()


@fuzz
@given(st.one_of(_OUTCOME.filter(lambda value: isinstance(value, dict)), st.dictionaries(st.text(max_size=10), _JSON)))
def test_any_mapping_is_an_outcome_or_none(values: dict[str, Any]) -> None:
    try:
        error = from_dict(values)
    except (TypeError, ValueError):
        return
    assert type(error) in KINDS.values()
    assert str(error)
    assert vars(from_dict(error.to_dict())) == vars(error)
    assert str(error.scrubbed(prompt=PROMPT)).isprintable()


_ADDRESSES = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda scheme, rest: f"{scheme}{rest}",
        st.sampled_from(
            ["s3://", "s3://conn@", "file://", "https://", "HTTPS://", "/", "gs://", "data:", "https://a@", "::"]
        ),
        st.text("ab/.%2eE@:?#\\[]\0\n狐 ", max_size=20),
    ),
)


@fuzz
@given(_ADDRESSES)
def test_any_address_is_a_place_or_refused(address: str) -> None:
    files = Files(s3_client=lambda conn_id: None, allowed_roots=["s3://bucket/allowed", "https://in.test/allowed"])
    with contextlib.suppress(BadRequestError):
        files.check(address, "image")
        place = locate(address)
        assert place.segments()[:4] in {("s3", "", "bucket", "allowed"), ("https", "", "in.test", "allowed")}
    with contextlib.suppress(BadRequestError):
        place = locate(address)
        assert ".." not in place.path.split("/")
        assert len(same_place(address)) == 64
        assert "?" not in public_uri(address) or place.scheme in ("s3", "file")
        assert "?" not in place.shown or place.scheme in ("s3", "file")
    with contextlib.suppress(GeminiImageError):
        download_module._parse(address, None)
