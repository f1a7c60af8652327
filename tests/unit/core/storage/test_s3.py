"""How requests to S3 are signed, and what stores that speak its language want otherwise."""

from __future__ import annotations

import base64
import io
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from urllib3 import HTTPResponse

from airflow_provider_geminiimg.core.storage import Files, Store, open_store
from airflow_provider_geminiimg.core.storage.base import sha256
from airflow_provider_geminiimg.core.storage.s3 import S3Driver
from airflow_provider_geminiimg.exceptions import StorageError
from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.lacking import LackingStore, is_put
from tests.harness.moto import start_moto
from tests.harness.stores import use_s3


@pytest.mark.parametrize(
    ("url", "signed"),
    [
        (None, "UNSIGNED-PAYLOAD"),
        ("https://s3.us-east-1.amazonaws.com", "UNSIGNED-PAYLOAD"),
        ("https://localhost:1", sha256(b"data")),
        ("http://localhost:1", sha256(b"data")),
    ],
)
def test_the_signature_covers_the_hash_of_the_body_unless_amazon_compares_the_checksum(
    url: str | None, signed: str
) -> None:
    client: Any = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    sent: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {"ETag": '"1"'}, HTTPResponse(io.BytesIO(), preload_content=False))

    client.meta.events.register("before-send.s3", answer)
    S3Driver(lambda _: client, None, "bucket").put("key", b"data", "text/plain", sha256(b"data"))
    headers = {
        name: str(value, "ascii") if isinstance(value, bytes) else value for name, value in sent[0].headers.items()
    }
    assert headers["X-Amz-Content-SHA256"] == signed
    assert headers["x-amz-checksum-sha256"] == base64.b64encode(bytes.fromhex(sha256(b"data"))).decode()
    assert ";x-amz-checksum-sha256;" in headers["Authorization"]


@pytest.fixture
def unquoted(monkeypatch: pytest.MonkeyPatch, s3: str) -> Iterator[tuple[LackingStore, Store]]:
    """A store that refuses versions in quotes, and a root in it."""
    server = LackingStore()
    with start_moto(server) as url:
        use_s3(url, monkeypatch)
        server.unquoted = True
        yield server, open_store(f"{s3}/root", AIRFLOW_OPENERS)


@pytest.mark.parametrize("encrypts", [False, True])
def test_a_root_may_be_in_a_store_that_refuses_versions_in_quotes_or_encrypts(
    unquoted: tuple[LackingStore, Store], encrypts: bool
) -> None:
    server, store = unquoted
    server.encrypts, server.unquoted = encrypts, not encrypts
    store.probe()


def test_the_settings_of_an_airflow_connection_hold_and_the_checksum_is_sent_all_the_same(
    s3: str, monkeypatch: pytest.MonkeyPatch, connect: Callable[..., str]
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    use_s3("http://127.0.0.1:1", monkeypatch)
    config = {
        "s3": {"addressing_style": "path"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    extra = {"region_name": "eu-west-1", "config_kwargs": config, "service_config": {"s3": {"endpoint_url": endpoint}}}
    connect("store", conn_type="aws", login="test", password="test", extra=extra)
    client = object_stores.default_s3_client("store")
    bucket = f"with.dots.{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    sent: list[str] = []
    client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.url))
    open_store(f"s3://store@{bucket}/root", AIRFLOW_OPENERS).probe()
    assert all(url.startswith(f"{endpoint}/{bucket}") for url in sent)
    driver = S3Driver(lambda _: client, None, bucket)
    driver.put("key", b"data", "text/plain", sha256(b"data"))
    assert driver.stored_sha256("key") == sha256(b"data")


def test_of_two_writers_one_replaces_an_object_where_quotes_are_refused(unquoted: tuple[LackingStore, Store]) -> None:
    server, store = unquoted
    first = store.create("a", b"one")
    assert first is not None
    assert store.replace("a", b"two", first) is not None
    assert store.replace("a", b"three", first) is None
    assert store.replace("gone", b"three", first) is None
    found = store.read("a")
    assert found is not None
    assert found.data == b"two"
    server.puts.clear()
    assert store.replace("a", b"four", found.version) is not None
    assert len(server.puts) == 1  # what was learned is used at once


def test_a_version_that_is_gone_is_never_sent_without_quotes(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store might take it for no condition at all."""
    server = LackingStore()
    with start_moto(server) as url:
        use_s3(url, monkeypatch)
        store, other = (open_store(f"{s3}/root", AIRFLOW_OPENERS) for _ in range(2))
        first = store.create("a", b"one")
        assert first is not None
        assert other.replace("a", b"two", first) is not None
        server.puts.clear()
        assert store.replace("a", b"three", first) is None
        assert other.replace("a", b"three", first) is None
        assert len(server.puts) == 2


@pytest.mark.parametrize("code", ["BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"])
def test_a_body_that_was_damaged_on_the_way_is_sent_again_and_checksums_are_not_given_up(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    server = LackingStore()
    with start_moto(server) as url:
        use_s3(url, monkeypatch)
        damaged = iter([True, False, True])
        server.refuse(lambda *asked: is_put()(*asked) and next(damaged, False), 400, code, under="/")
        assert open_store(f"{s3}/root", AIRFLOW_OPENERS).create("a", b"data") is not None
        files = Files(AIRFLOW_OPENERS)
        assert files.write(f"{s3}/a.png", b"data", media_type="image/png", sha256=sha256(b"data"))
        assert files.sha256(f"{s3}/a.png") == sha256(b"data")
    assert "does not support checksums" not in caplog.text


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"])
def test_keys_that_the_store_does_not_know_are_no_missing_permission(
    s3: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    server = LackingStore()
    with start_moto(server) as url:
        use_s3(url, monkeypatch)
        server.refuse(lambda *_: True, 403, code, under="/")
        with pytest.raises(StorageError, match=code) as caught:
            open_store(f"{s3}/root", AIRFLOW_OPENERS).read("a")
    assert not caught.value.retryable
    assert "Check the access key" in caught.value.hint
    assert "Grant" not in caught.value.hint
    assert f" {url.removeprefix('http://')} " in caught.value.hint


@pytest.mark.parametrize(
    ("scheme", "code", "todo"), [("http", "EndpointConnection", "Check the endpoint"), ("https", "SSL", "certificate")]
)
def test_where_requests_go_is_told_if_no_answer_comes(
    monkeypatch: pytest.MonkeyPatch, s3: str, scheme: str, code: str, todo: str
) -> None:
    """Without an endpoint they go to Amazon; a server without TLS stands for one with another certificate."""
    with start_moto() as url:
        place = url.removeprefix("http://")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        if scheme == "http":
            place = "127.0.0.1:1"
        use_s3(f"{scheme}://{place}", monkeypatch)
        with pytest.raises(StorageError, match=code) as caught:
            open_store(f"{s3}/root", AIRFLOW_OPENERS).read("a")
    assert caught.value.retryable
    assert todo in caught.value.hint
    assert place in caught.value.hint
