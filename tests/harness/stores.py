"""New places in stores of the clouds' kinds, each behind its real client: ``STORES="disk s3 seaweed gs abfs"``.

`make test` uses those that start in a second; `make test-stores` uses all.
"""

from __future__ import annotations

import json
import os
import uuid

import boto3
import pytest

from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import default_google_client
from tests.harness.servers import AZURE_ACCOUNT, AZURE_KEY, KEY, Server

STORES = os.environ.get("STORES", "disk s3 gs").split()
BUCKETS = [store for store in STORES if store != "disk"]
_SEAWEED_BUCKET = "images"  # each bucket takes seven volumes, so there is one


def new_seaweed(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of the SeaweedFS bucket, which boto3's own settings lead to."""
    use_s3(server.url, monkeypatch)
    client = boto3.client("s3")
    if _SEAWEED_BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=_SEAWEED_BUCKET)
    return f"s3://{_SEAWEED_BUCKET}/{uuid.uuid4().hex}"


def use_s3(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 find an S3 server and its keys."""
    monkeypatch.setattr(object_stores, "_CLIENTS", {})
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def new_google_bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty bucket, which Google's own client finds without credentials."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    bucket = f"test-{uuid.uuid4().hex}"
    default_google_client(None).create_bucket(bucket)
    return f"gs://{bucket}"


def new_azure_container(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty container of the account that the connection ``azurite`` names."""
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={server.url};"
    )
    extra = {"connection_string": text}
    monkeypatch.setenv("AIRFLOW_CONN_AZURITE", json.dumps({"conn_type": "wasb", "extra": extra}))
    container = f"test-{uuid.uuid4().hex}"
    object_stores.default_azure_client("azurite").create_container(container)
    return f"abfs://azurite@{container}"
