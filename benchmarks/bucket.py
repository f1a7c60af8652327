"""S3 for the benchmarks: moto in its own process, which answers one request at a time; or SeaweedFS, a real server."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import boto3

from benchmarks.beside import beside

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def _serve(ready: Connection) -> None:
    from tests.harness.moto import start_moto

    with start_moto() as url:
        ready.send(url)
        threading.Event().wait()


@contextlib.contextmanager
def bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """An empty bucket at moto: its URI, and the environment in which boto3 finds it."""
    with beside(_serve) as endpoint:
        yield _created(endpoint)


@contextlib.contextmanager
def real_bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """An empty bucket at SeaweedFS: its URI, and the environment in which boto3 finds it."""
    from tests.harness.servers import seaweedfs

    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder)) as server:
        yield _created(server.url)


def _created(endpoint: str) -> tuple[str, dict[str, str]]:
    name = f"bench-{uuid.uuid4().hex}"
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    ).create_bucket(Bucket=name)
    return f"s3://{name}", {**KEYS, "AWS_ENDPOINT_URL": endpoint}
