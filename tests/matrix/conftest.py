"""What the rows of the failure matrix share: a gateway, storage that can be in trouble, waits that take no time."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness
    from tests.harness.rows import Play
    from tests.harness.s3_proxy import S3Proxy
    from tests.harness.storage_faults import BucketFaults


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_geminiimg.core.purchase import lifecycle, submission

    monkeypatch.setattr(lifecycle, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(submission, "RECORD_AGAIN", 0.02)
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.01)


@pytest.fixture
def stage(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str], local_root: str, gateway: str, mode: str
) -> Play:
    """One item on its way, with the root on disk. Needs the parameters ``gateway`` and ``mode``."""
    from tests.harness.rows import Play

    return Play(airflow, sandbox, connect, local_root, gateway, mode)


@pytest.fixture(scope="module")
def bucket() -> BucketFaults:
    from tests.harness.storage_faults import BucketFaults

    return BucketFaults()


@pytest.fixture(scope="module")
def s3_proxy() -> S3Proxy:
    from tests.harness.s3_proxy import S3Proxy

    return S3Proxy()


@pytest.fixture(scope="module")
def _moto(bucket: BucketFaults, s3_proxy: S3Proxy) -> Iterator[str]:
    from tests.harness.moto import start_moto

    with start_moto(lambda app: s3_proxy(bucket(app))) as url:
        yield url


@pytest.fixture(scope="module")
def clients(_moto: str) -> dict[str, Any]:
    """Two S3 clients: one that waits a minute for an answer, as the package's own, and one that waits half a second."""
    import boto3
    from botocore.config import Config

    def client(**settings: Any) -> Any:
        session = boto3.session.Session("test", "test", region_name="us-east-1")
        return session.client("s3", endpoint_url=_moto, config=Config(max_pool_connections=32, **settings))

    impatient = {"read_timeout": 0.5, "retries": {"mode": "standard", "total_max_attempts": 2}}
    return {"patient": client(), "impatient": client(**impatient)}


@pytest.fixture
def bucket_stage(
    stage: Play,
    bucket: BucketFaults,
    s3_proxy: S3Proxy,
    s3_root: str,
    clients: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Play]:
    """As `stage`, with the root in a bucket, whose client is patient."""
    from airflow_provider_geminiimg.hooks import object_stores

    stage.root, stage.trouble = s3_root, bucket
    monkeypatch.setattr(object_stores, "_CLIENTS", {(os.getpid(), None): clients["patient"]})
    yield stage
    bucket.end()
    s3_proxy.open()


@pytest.fixture
def impatient_stage(bucket_stage: Play, clients: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Play:
    """As `bucket_stage`, with the client that does not wait long."""
    from airflow_provider_geminiimg.hooks import object_stores

    monkeypatch.setattr(object_stores, "_CLIENTS", {(os.getpid(), None): clients["impatient"]})
    return bucket_stage
