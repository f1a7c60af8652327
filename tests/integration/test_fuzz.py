"""Everything that reads what others wrote, fed with anything at all: it ends in a value or in an outcome, and it ends.

500 examples each; ``make fuzz`` takes 100,000. What must stay true of each: no exception but those of the tree, nothing
that runs on, no key in what is said, and what a value promises holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pydantic_core
import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.plan import Plan
from airflow_provider_geminiimg.core.batch.rows import read_rows
from airflow_provider_geminiimg.core.execution.task_log import SteadyLogs
from airflow_provider_geminiimg.core.gateways import GATEWAYS
from airflow_provider_geminiimg.core.gateways.base import Call, CheckResult, InputImage, JobState, JobStatus, Reply
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.http import download as download_module
from airflow_provider_geminiimg.core.http import rate_limit
from airflow_provider_geminiimg.core.http.download import download
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.images.inspection import MAX_SIDE, inspect_image
from airflow_provider_geminiimg.core.ledger import budget as budget_module
from airflow_provider_geminiimg.core.ledger import file_names
from airflow_provider_geminiimg.core.ledger.budget import Budgets
from airflow_provider_geminiimg.core.ledger.caps import daily_cap
from airflow_provider_geminiimg.core.ledger.fingerprint_index import read_entry
from airflow_provider_geminiimg.core.ledger.layout import PLANS, RETURNED, is_record_key, record_key
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.decision import Asked, Policy, decide
from airflow_provider_geminiimg.core.purchase.inputs import public_uri
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest, SavedRequestStore
from airflow_provider_geminiimg.core.redaction.printable import printable, printable_json
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.core.storage import (
    Blob,
    Files,
    Openers,
    Store,
    locate,
    open_store,
    same_place,
)
from airflow_provider_geminiimg.core.validation.resolution import Resolution
from airflow_provider_geminiimg.exceptions import (
    KINDS,
    AuthenticationError,
    BadRequestError,
    Billed,
    GeminiImageError,
    InvalidImageError,
    LedgerError,
    OverBudgetError,
    StorageError,
    from_dict,
    scrub,
)
from airflow_provider_geminiimg.gallery.addresses import address_of
from airflow_provider_geminiimg.gallery.markdown import review_markdown
from airflow_provider_geminiimg.gallery.queries import GalleryQueries as GalleryShelf
from airflow_provider_geminiimg.gallery.run_records import RecordFilter
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime import jobs_command
from tests.harness.api_server import api_server, ask_raw, gallery_app
from tests.harness.forbidden import Internet
from tests.harness.odd_records import ODD, odd_record
from tests.harness.orphaned_records import SCOPE
from tests.harness.records import ITEM, landed, make_record
from tests.harness.strategies import (
    ADDRESSES,
    BODIES,
    BYTES,
    DOCUMENTS,
    EXTRAS,
    GALLERY_PATHS,
    GALLERY_QUERIES,
    HEADERS,
    HOSTS,
    JSON,
    KEYS,
    LENGTHS,
    OUTCOMES,
    PROMPT,
    RECORD,
    RECORDS,
    ROW_FILES,
    ROWS,
    SAVED_PLANS,
    SECRET,
    STATUSES,
    TEMPLATES,
    TEXTS,
    WIRE_ANSWERS,
    response,
)

T = TypeVar("T")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=dt.timedelta(seconds=30),  # nothing takes a tenth of a second; this is what "it ends" means
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
warned = pytest.mark.filterwarnings("ignore::UserWarning")  # an unknown model or field is told of, and no error


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
        "submit that waits": adapter.submit(asked, (), synchronous=True),
        "poll": adapter.status("job-1", model=asked.model),
        "check": adapter.check(),
        "upload": adapter.reference(image),
    }
    return {name: call for name, call in found.items() if isinstance(call, Call)}


each_gateway = pytest.mark.parametrize("gateway", GATEWAYS)


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
        assert bool(found.images) == (found.state is JobState.DONE)
        assert (found.error is not None) == (found.state is JobState.FAILED)
        if found.error is not None:
            is_fit(found.error, billable=True, known=known)
        links = [each.url for each in found.images if each.url is not None]
        for link in links:
            with contextlib.suppress(GeminiImageError):
                download_module._parse(link, None)
        record = make_record(state="answered", job_id=found.job_id, links=links, cost={"amount": found.cost})
        assert RECORD.validate_json(RECORD.dump_json(record)) == record
        if found.job_id is not None:
            GATEWAYS["1min"]().status(found.job_id, model="any")
    else:
        assert isinstance(found, (str, CheckResult))


@each_gateway
def test_any_answer_is_a_value_or_an_outcome(gateway: str) -> None:
    every = calls(gateway)

    @fuzz
    @given(BODIES, STATUSES, HEADERS)
    @example(b"[" * 100_000 + b"]" * 100_000, 200, [])
    @example(b'{"aiRecord":' * 100_000, 200, [])
    @example(json.dumps({"errorCode": "X", "details": "[" * 100_000}).encode(), 400, [])
    @example(b'{"data": {"cost": ' + b"9" * 5_000 + b"}}", 200, [])
    def answered(body: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        for name, call in every.items():
            note(name)
            found: Any
            try:
                found = call.parse(Reply(status, httpx.Headers(headers), body))
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
        while len(body) < length and (piece := client.recv(65_536)):
            body += piece

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


async def attempt(doing: Coroutine[Any, Any, T]) -> T | GeminiImageError:
    try:
        return await doing
    except GeminiImageError as error:
        return error


@each_gateway
def test_any_bytes_that_an_api_sends_are_a_value_or_an_outcome(
    wire: Wire, loop: asyncio.AbstractEventLoop, gateway: str
) -> None:
    account = connection(gateway, wire.url)

    async def ask(call: Call[Any], prompt: str | None) -> Any:
        async with Transport(account) as transport:
            return await attempt(transport.send(call, prompt=prompt))

    @fuzz
    @given(WIRE_ANSWERS, st.sampled_from([PROMPT, None]))
    def answered(answer: bytes, prompt: str | None) -> None:
        wire.answer = answer
        for name, call in calls(gateway, account.base_url).items():  # made again, because what is paid for is sent once
            note(name)
            rate_limit._limiters.clear()  # or uploads would wait for their turn
            is_fit(loop.run_until_complete(ask(call, prompt)), billable=call.billable, known=prompt is not None)

    answered()


def test_any_bytes_that_an_images_host_sends_are_a_body_or_an_outcome(
    wire: Wire, loop: asyncio.AbstractEventLoop
) -> None:
    @fuzz
    @given(
        WIRE_ANSWERS
        | st.builds(response, st.just(b"HTTP/1.1 200 OK"), HEADERS, st.just([]), LENGTHS, BYTES, st.just(b""))
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
def test_any_bytes_are_an_image_or_an_invalid_one(data: bytes) -> None:
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


class DictStore(Store):
    """A store in which every key holds the same bytes, and nothing is free."""

    def __init__(self, data: bytes) -> None:
        super().__init__("file:///dict")
        self.data = data

    def create(self, key: str, data: bytes) -> str | None:
        return None

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        return Blob(self.data, "1", 0.0)

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        return None

    def delete(self, key: str) -> None: ...

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        return iter([record_key(ITEM, 1)])

    def folders(self, folder: str) -> list[str]:
        return []

    def now(self) -> float:
        return 0.0


@fuzz
@given(RECORDS, st.integers(0, 2), st.sampled_from(["there", "gone", "unknown"]), st.booleans())
@example(b"[" * 100_000, 0, "there", False)
@example(b'{"schema": ' + b"9" * 5_000 + b"}", 0, "there", False)
def test_any_record_is_read_or_refused_and_decided_about(
    data: bytes, generation: int, seen: Any, vanished: bool
) -> None:
    ledger = Ledger(DictStore(data))
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
        assert decide(found, policy, asked, image=seen, vanished=vanished)
    assert record.error is None or str(record.error)
    for manifest in ([record.manifest] if record.state == "landed" else []) + [
        copy["manifest"] for copy in record.copies
    ]:
        assert manifest is not None
        assert all(isinstance(image["uri"], str) and isinstance(image["sha256"], str) for image in manifest["images"])
    assert all(isinstance(copy["destination"], dict) for copy in record.copies)
    assert repr(record)


@fuzz
@given(st.one_of(BODIES, JSON.map(lambda value: json.dumps({"item": value}).encode())))
@example(b"[" * 100_000)
def test_any_claim_of_a_name_is_somebodys_or_can_not_be_read(data: bytes) -> None:
    with contextlib.suppress(StorageError):
        claim = file_names.read_claim(DictStore(data), "names/fox.json")
        assert claim is not None
        assert all(isinstance(value, str) for value in (claim.item, claim.stem, claim.attempt))


@fuzz
@given(st.one_of(BODIES, st.builds(lambda *two: json.dumps({"record": two[0], "claim": two[1]}).encode(), JSON, JSON)))
@example(b"[" * 100_000)
def test_any_index_entry_names_a_record_or_can_not_be_read(data: bytes) -> None:
    with contextlib.suppress(LedgerError):
        entry = read_entry(DictStore(data), "index/default/dag/f.json")
        assert entry is not None
        assert is_record_key(entry.record)


class Memory(Store):
    """A store in memory."""

    def __init__(self, held: dict[str, bytes]) -> None:
        super().__init__("file:///memory")
        self.held = held

    def create(self, key: str, data: bytes) -> str | None:
        return None if key in self.held else self._put(key, data)

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        data = self.held.get(key)
        return None if data is None else Blob(data, str(hash(data)), 1e9)

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        found = self.read(key)
        return self._put(key, data) if found is not None and found.version == version else None

    def _put(self, key: str, data: bytes) -> str:
        self.held[key] = data
        return str(hash(data))

    def delete(self, key: str) -> None:
        self.held.pop(key, None)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        return iter(sorted(key for key in self.held if key.startswith(prefix) and key > after))

    def folders(self, folder: str) -> list[str]:
        return sorted({key.removeprefix(f"{folder}/").split("/")[0] for key in self.keys(f"{folder}/")})

    def now(self) -> float:
        return 0.0


def test_any_record_is_shown_collected_settled_and_purged_or_is_unreadable(loop: asyncio.AbstractEventLoop) -> None:
    files = Files(Openers(s3_client=lambda conn_id: None), allowed_roots=["s3://bucket/allowed"])
    fine = record_key(replace(ITEM, task_id="zzz"), 1)
    other = RECORD.dump_json(make_record(replace(ITEM, task_id="zzz"), state="failed"))

    @fuzz
    @given(RECORDS)
    def shown(data: bytes) -> None:
        key = record_key(ITEM, 1)
        ledger = Ledger(Memory({key: data, fine: other}))
        gallery = GalleryShelf(ledger, "default", files)
        wanted = RecordFilter(ITEM.dag_id, ITEM.run_id)
        items, after = gallery.page(wanted, None, 60)
        assert after is None
        assert [item["record"] for item in items] == [key, fine]
        as_json({"items": items, "summary": gallery.summary(wanted)})
        entry = reconcile.entry_at(ledger, key)
        assert items[0]["status"] == entry.status
        assert jobs_command._line(reconcile.summary(entry))
        as_json(reconcile.summary(entry))
        if entry.found is None:
            assert key in items[0]["error"]["message"]
            assert key in str(entry.error)
        else:
            as_json(reconcile.detail(entry))
            address = address_of(key)
            assert gallery.record(address) == entry.found.record
            for source in entry.found.record.inputs:
                gallery.made(source)
            with contextlib.suppress(BadRequestError):
                assert review_markdown(entry.found.record.manifest)
        with contextlib.suppress(GeminiImageError):
            reconcile.resolve(ledger, key, Resolution("lost"), dry_run=True)
        purged = loop.run_until_complete(attempt(all_of(reconcile.purge(ledger, SCOPE, days=0.0))))
        assert isinstance(purged, GeminiImageError) or fine in purged

    for what in ODD:
        shown = example(odd_record(what, landed()))(shown)
    shown()


async def all_of(found: AsyncIterator[str]) -> list[str]:
    return [each async for each in found]


def as_json(value: Any) -> None:
    """Check that a server could answer with it, and a terminal show it."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    said = printable_json(value, indent=2)
    assert json.loads(said) == value
    assert all(line.isprintable() for line in said.split("\n"))


@warned
@fuzz
@given(SAVED_PLANS)
def test_any_plan_asks_for_images_or_is_refused(data: bytes) -> None:
    folder = ITEM.path.removeprefix("ledger/").rpartition("/")[0]
    store = Memory({f"{PLANS}/{folder}/0.json": data})
    seen = GalleryShelf(Ledger(store), "default", Files(Openers(s3_client=lambda conn_id: None)))
    as_json(seen.summary(RecordFilter(ITEM.dag_id, ITEM.run_id)))
    try:
        planned = SavedRequestStore(Plan, store, PLANS, ITEM, None).read(0)
    except LedgerError as error:
        is_said(error)
        return
    assert planned is not None
    for item in planned.items:
        found = item.request(connection("1min"))
        assert isinstance(found, (CheckedRequest, GeminiImageError))
        assert record_key(replace(ITEM, item=item.key), 1)


@fuzz
@given(DOCUMENTS)
def test_any_plan_any_budget_and_any_kept_request_is_read_or_refused(data: bytes) -> None:
    folder = ITEM.path.removeprefix("ledger/").rpartition("/")[0]
    files = Files(Openers(s3_client=lambda conn_id: None))
    store = Memory({f"{PLANS}/{folder}/0.json": data, f"{RETURNED}/{folder}/0.json": data})
    for model, kind in ((Plan, PLANS), (SavedRequest, RETURNED)):
        try:
            assert SavedRequestStore(model, store, kind, ITEM, None).read(0) is not None
        except LedgerError as error:
            is_said(error)
    as_json(GalleryShelf(Ledger(store), "default", files).summary(RecordFilter(ITEM.dag_id, ITEM.run_id)))
    budget = {"daily_budget": 1, "price_base": 0.1, "price_currency": "USD"}
    account = replace(connection("1min"), **{name: Decimal(str(v)) if v != "USD" else v for name, v in budget.items()})
    lease = budget_module._Lease(daily_cap(account, "default", "2026-01-01"), "c")
    store.held[lease.cap.key] = data
    with contextlib.suppress(LedgerError, BadRequestError, OverBudgetError):
        given_ = Budgets(store, SteadyLogs(logging.getLogger("fuzz")))._lease_more(lease, 100)
        assert given_ >= 100


# What users write


@warned
def test_any_file_of_rows_is_rows_or_refused(tmp_path: Path) -> None:
    files = Files(Openers(s3_client=lambda conn_id: None))

    @fuzz
    @given(
        ROW_FILES,
        st.sampled_from(["rows.csv", "rows.json", "rows.jsonl", "rows.tsv", "rows.txt"]),
        st.sampled_from([None, "utf-8", "cp1252", "utf-16", "mac_roman", "utf-32-be"]),
        st.sampled_from([None, ",", ";", "\t", "^"]),
        TEMPLATES,
    )
    def read(data: bytes, name: str, encoding: str | None, delimiter: str | None, template: str | None) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        try:
            rows = read_rows(str(path), files, encoding=encoding, delimiter=delimiter)
        except BadRequestError as error:
            is_short(error)
            return
        are_specs_or_refused(rows, template)

    read()


@warned
@fuzz
@given(ROWS, TEMPLATES)
def test_any_list_of_rows_is_specs_or_refused(value: Any, template: str | None) -> None:
    files = Files(Openers(s3_client=lambda conn_id: None))
    for given_ in (value, json.dumps(value)):
        try:
            rows = read_rows(given_, files)
        except BadRequestError as error:
            is_short(error)
            continue
        are_specs_or_refused(rows, template)


def are_specs_or_refused(rows: Any, template: str | None) -> None:
    for gateway, shared in itertools.product(GATEWAYS, ({}, {"prompt": "a {sku} in {x}"})):
        try:
            wanted = list(image_specs(rows, RowDefaults(shared, gateway, file_name=template)))
        except BadRequestError as error:
            is_short(error)
            continue
        for spec in wanted:
            assert spec.place.isprintable()
            assert spec.stem is None or not {"/", "\0"} & {*spec.stem}
            assert pydantic_core.to_json({"labels": spec.labels, "values": spec.request.fields()})


def is_short(error: GeminiImageError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 20_000


@warned
@fuzz
@given(
    HOSTS, st.none() | st.text(max_size=9) | st.sampled_from(["http", "https", "v1"]), st.none() | st.integers(), EXTRAS
)
def test_any_connection_leads_to_an_address_or_is_refused(host: Any, schema: Any, port: Any, extra: Any) -> None:
    try:
        found = parse_connection(conn_id="fuzz", password=SECRET, host=host, schema=schema, port=port, extra=extra)
    except (BadRequestError, AuthenticationError) as error:
        is_short(error)
        return
    url = httpx.URL(found.base_url)
    assert url.scheme in ("http", "https")
    assert url.host
    assert not url.userinfo
    assert found.api_host.isprintable()
    assert found.adapter().check() is not None


# What a gallery is asked


@pytest.fixture(scope="module")
def gallery(_airflow_home: Path) -> Iterator[Any]:
    with api_server():
        yield gallery_app()


def test_any_address_of_the_gallery_is_answered(gallery: Any, local_root: str, loop: asyncio.AbstractEventLoop) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    assert ledger.create(make_record(state="failed"))
    logging.getLogger("httpx").setLevel(logging.WARNING)

    @fuzz
    @given(GALLERY_PATHS, GALLERY_QUERIES, HEADERS)
    def answered(path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        fit = [(name.lower(), value) for name, value in headers]
        status, body = loop.run_until_complete(ask_raw(gallery, path, query, [*fit, (b"if-none-match", b'"x"')]))
        assert status in (200, 307, 400, 403, 404, 422), body
        if status >= 400:
            assert json.loads(body)["detail"]
            assert len(body) < 2_000

    answered()


# What is said, and what is written in addresses


@fuzz
@given(st.text(st.characters(), max_size=60), JSON)
def test_any_text_and_any_value_can_be_printed(text: str, value: Any) -> None:
    said = printable(text)
    assert said.isprintable()
    assert printable(said) == said
    assert len(printable(text, " ")) == len(text)
    assert printable_json([text, value]).isprintable()
    plain = printable(text)
    assert json.loads(printable_json([plain, json.dumps(value)])) == [plain, json.dumps(value)]


@fuzz
@given(TEXTS, KEYS, st.one_of(st.none(), st.text(max_size=60)), TEXTS, st.integers(0, 9), st.integers(1, 600))
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
@given(OUTCOMES)
def test_any_mapping_is_an_outcome_or_none(values: dict[str, Any]) -> None:
    try:
        error = from_dict(values)
    except (TypeError, ValueError):
        return
    assert type(error) in KINDS.values()
    assert str(error)
    assert vars(from_dict(error.to_dict())) == vars(error)
    assert str(error.scrubbed(prompt=PROMPT)).isprintable()


@fuzz
@given(ADDRESSES)
@example("HTTP://0?/..")
def test_any_address_is_a_place_or_refused(address: str) -> None:
    files = Files(
        Openers(s3_client=lambda conn_id: None),
        allowed_roots=["s3://bucket/allowed", "https://in.test/allowed"],
    )
    with contextlib.suppress(BadRequestError):
        files.check(address, "image")
        place = locate(address)
        assert place.segments()[:4] in {("s3", "", "bucket", "allowed"), ("https", "", "in.test", "allowed")}
    with contextlib.suppress(BadRequestError):
        place = locate(address)
        asked_for = place.path.partition("?")[0] if place.scheme in ("http", "https") else place.path
        assert ".." not in asked_for.split("/")
        assert len(same_place(address)) == 64
        assert "?" not in public_uri(address) or place.scheme in ("s3", "file")
        assert "?" not in place.shown or place.scheme in ("s3", "file")
    with contextlib.suppress(GeminiImageError):
        download_module._parse(address, None)
