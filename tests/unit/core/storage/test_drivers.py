"""What the driver of each kind of store has to tell apart: no object, no bucket, no permission, no answer."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from airflow_provider_geminiimg.core.storage import Files, Store, locate, open_store
from airflow_provider_geminiimg.exceptions import BadRequestError, StorageError
from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS, CONNECTIONS
from tests.harness.moto import WsgiApp, start_moto
from tests.harness.stores import BUCKETS, use_s3

PNG = "image/png"


@pytest.fixture(params=BUCKETS)
def place(request: pytest.FixtureRequest) -> str:
    """A URI in a bucket of each kind."""
    return f"{request.getfixturevalue(request.param)}/root"


@pytest.fixture
def store(place: str) -> Store:
    return open_store(place, AIRFLOW_OPENERS)


def elsewhere(uri: str) -> str:
    """The same URI in a bucket that does not exist."""
    found = locate(uri)
    conn = f"{found.conn_id}@" if found.conn_id else ""
    return f"{found.scheme}://{conn}no-{found.bucket}/root"


ASKED: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("a/b.json"),
    "create": lambda store: store.create("a/b.json", b"-"),
    "keys": lambda store: list(store.keys("a/")),
    "folders": lambda store: store.folders("a"),
    "now": lambda store: store.now(),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_missing_bucket_is_an_error_that_names_it_and_never_an_absent_object(place: str, asked: str) -> None:
    store = open_store(elsewhere(place), AIRFLOW_OPENERS)
    with pytest.raises(StorageError, match=r"no-\S+ failed|no-\S+/\S* failed") as caught:
        ASKED[asked](store)
    assert not caught.value.retryable
    assert "Create the" in caught.value.hint


def test_a_missing_bucket_is_no_missing_file(place: str) -> None:
    files, uri = Files(AIRFLOW_OPENERS), f"{elsewhere(place)}/a.png"
    assert files.state(uri) == "unknown"
    with pytest.raises(StorageError):
        files.read(uri, max_bytes=9)
    with pytest.raises(BadRequestError, match="cannot be written to"):
        files.check_writable(elsewhere(place))


def lead_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients of all kinds of stores ask this server, once."""
    use_s3(url, monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setattr("airflow_provider_geminiimg.core.storage.gcs._RETRY_SECONDS", 0.1)
    account = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;BlobEndpoint={url}/a;"
    extra = {"connection_string": account, "retry_total": 0}
    monkeypatch.setenv("AIRFLOW_CONN_AZURITE", json.dumps({"conn_type": "wasb", "extra": extra}))


def test_nobody_listening_is_an_error_that_may_pass(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        lead_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        with pytest.raises(StorageError) as caught:
            open_store(place, AIRFLOW_OPENERS).read("a.json")
    assert caught.value.retryable


@pytest.mark.parametrize(
    "name", ["a b", "ü/é", "per%20cent", "plus+", "amp&er", "equals=", "~tilde", "com,ma", "co:lon"]
)
def test_names_are_literal(store: Store, name: str) -> None:
    assert store.create(name, b"-")
    assert store.read(name) is not None
    assert list(store.keys("")) == [name]
    store.delete(name)
    assert list(store.keys("")) == []


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.create("empty", b"")
    found = store.read("empty")
    assert found is not None
    assert found.data == b""
    assert store.create("empty", b"-") is None


def test_of_a_large_object_a_part_is_read(store: Store) -> None:
    store.create("large", b"x" * 100_000)
    found = store.read("large", 10)
    assert found is not None
    assert found.data == b"x" * 11


@pytest.fixture
def many(store: Store) -> list[str]:
    keys = [f"{folder}/{number:03}.json" for folder in ("a", "b", "b-c") for number in range(4)]
    for key in keys:
        store.create(key, b"{}")
    return keys


def test_each_key_is_listed_once_from_wherever_a_listing_goes_on(store: Store, many: list[str]) -> None:
    found: list[str] = []
    while some := list(islice(store.keys("", found[-1] if found else ""), 5)):
        found += some
    assert sorted(found) == sorted(many)
    assert len({key.rpartition("/")[0]: None for key in found}) == 3


def test_a_listing_goes_on_after_a_key_that_is_gone(store: Store, many: list[str]) -> None:
    store.delete("b/001.json")
    assert list(store.keys("b/", "b/001.json")) == ["b/002.json", "b/003.json"]
    assert list(store.keys("b/", "b/003.json")) == []


def test_all_of_many_objects_are_removed(store: Store, many: list[str]) -> None:
    store.delete_all([*many[1:], "never/was.json"])
    assert list(store.keys("")) == many[:1]


def test_an_image_is_written_once_and_other_bytes_do_not_replace_it(place: str) -> None:
    files, data, uri = Files(AIRFLOW_OPENERS), b"\x89PNG" * 1000, f"{place}/out/a.png"
    digest = hashlib.sha256(data).hexdigest()
    assert files.write(uri, data, media_type=PNG, sha256=digest)
    assert files.write(uri, data, media_type=PNG, sha256=digest)
    assert not files.write(uri, b"other", media_type=PNG, sha256=hashlib.sha256(b"other").hexdigest())
    assert files.read(uri, max_bytes=len(data)) == data
    assert files.sha256(uri) == digest
    assert files.state(uri) == "there"
    assert files.there([uri, f"{place}/out/b.png"]) == [uri]
    files.put(uri, b"new", media_type=PNG)
    assert files.read(uri, max_bytes=9) == b"new"
    assert files.state(f"{place}/out/b.png") == "gone"


def test_a_batchs_threads_need_no_more_connections_than_the_client_keeps(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        assert all(pool.map(lambda number: store.create(f"a/{number}.json", b"{}"), range(4 * CONNECTIONS)))
    assert "Connection pool is full" not in caplog.text


def test_the_threads_of_an_airflow_connection_to_s3_find_their_connections(
    s3: str, connect: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    connect("aws", conn_type="aws", login="test", password="test")
    store = open_store(s3.replace("s3://", "s3://aws@"), AIRFLOW_OPENERS)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        assert all(pool.map(lambda number: store.create(f"a/{number}.json", b"{}"), range(4 * CONNECTIONS)))
    assert "Connection pool is full" not in caplog.text


class Answering:
    """A WSGI middleware that changes what S3 answers."""

    def __init__(self) -> None:
        self.change: Callable[[bytes], bytes] | None = None

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            body = b"".join(app(environ, start_response))  # with the length of all of it
            return [body if self.change is None else self.change(body)]

        return answer


@pytest.fixture
def answering(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Answering, str]]:
    script = Answering()
    with start_moto(script) as url:
        use_s3(url, monkeypatch)
        yield script, f"{s3}/root"


@pytest.mark.parametrize("limit", [None, 5_000, 100_000])
def test_a_body_that_ends_early_is_an_error_that_may_pass(answering: tuple[Answering, str], limit: int | None) -> None:
    script, uri = answering
    store, files = open_store(uri, AIRFLOW_OPENERS), Files(AIRFLOW_OPENERS)
    store.create("a.json", b"x" * 10_000)
    files.put(f"{uri}/out.csv", b"row\n" * 2_500, media_type="text/csv")
    script.change = lambda body: body[: len(body) // 4]
    with pytest.raises(StorageError) as caught:
        store.read("a.json", limit)
    assert caught.value.retryable
    with pytest.raises(StorageError):
        files.read(f"{uri}/out.csv", max_bytes=limit or 1 << 20)


def test_a_listing_that_does_not_say_where_it_goes_on_is_not_taken_for_a_whole_one(
    answering: tuple[Answering, str],
) -> None:
    script, uri = answering
    store = open_store(uri, AIRFLOW_OPENERS)
    store.create("a.json", b"{}")
    script.change = lambda body: body.replace(b">false</IsTruncated>", b">true</IsTruncated>")
    with pytest.raises(StorageError) as caught:
        list(store.keys(""))
    assert caught.value.retryable


PAGE = b"<html><body>Please log in</body></html>"


@pytest.mark.parametrize("asked", [*ASKED, "version"])
def test_a_page_of_a_proxy_is_not_taken_for_an_answer_of_the_store(
    asked: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def proxy(app: WsgiApp) -> WsgiApp:
        def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/html")])
            return [PAGE]

        return answer

    with start_moto(proxy) as url:
        lead_to(url, monkeypatch)
        store = open_store(place, AIRFLOW_OPENERS)
        if asked == "version":
            assert Files(AIRFLOW_OPENERS).state(f"{place}/a.png") == "unknown"
        else:
            with pytest.raises(StorageError) as caught:
                ASKED[asked](store)
            assert caught.value.retryable


@pytest.mark.parametrize("scheme", ["gs", "abfs"])
def test_a_missing_extra_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "_CLIENTS", {})
    names = (
        "google.cloud.storage",
        "google.cloud.storage.retry",
        "google.api_core.exceptions",
        "google.auth.exceptions",
        "azure.core.exceptions",
    )
    for name in (*names, "azure.storage.blob", "airflow.providers.microsoft.azure.hooks.wasb"):
        monkeypatch.setitem(sys.modules, name, None)
    store = open_store(f"{scheme}://bucket/root", AIRFLOW_OPENERS)
    for asked in ASKED.values():
        with pytest.raises(BadRequestError, match="install") as caught:
            asked(store)
        assert "airflow-provider-geminiimg[" in caught.value.hint
    assert Files(AIRFLOW_OPENERS).state(f"{scheme}://bucket/a.png") == "unknown"
