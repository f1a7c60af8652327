"""Attempts at one image without Airflow: a root, a gateway of the sandbox, and what is there afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.purchase.results import JobInFlight
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Files, Store, join_uri, open_store
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.sandbox import read_submission
from tests.harness.records import ITEM

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

KEY = "canary-key-0123456789"
PROMPT = "A red fox jumps over the frozen lake while the moon rises"
ROUTES = {"1min": "onemin", "apimaster": "apimaster"}
SHOPS = itertools.count(1)
HTML = "<html><body>A timeout occurred</body></html>"


class Memory:
    """A task state store's memory, as one task instance sees it."""

    def __init__(self, value: Mapping[str, Any] | None = None) -> None:
        self.value = value

    def token(self) -> str:
        return "a-token"

    def get(self) -> Mapping[str, Any] | None:
        return self.value

    def set(self, value: Mapping[str, Any]) -> None:
        self.value = dict(value)


class Moody(Files):
    """Files that can't be written while `full`."""

    full = False

    def write(self, uri: str, data: bytes, *, media_type: str, sha256: str) -> bool:
        if self.full:
            raise StorageError("No space left.", billed=Billed.YES)
        return super().write(uri, data, media_type=media_type, sha256=sha256)


class Shop:
    """The attempts of one test: one root, one sandbox, one gateway."""

    def __init__(self, root: str, sandbox: Sandbox, gateway: str = "1min") -> None:
        self.sandbox = sandbox
        self.gateway = gateway
        self.real: Store = open_store(root, AIRFLOW_OPENERS)
        self.store: Store = self.real
        self.ledger = Ledger(self.real)
        self.files = Moody(AIRFLOW_OPENERS)
        self.folder = join_uri(root.rpartition("/")[0], "pictures")
        self.base_url = sandbox.base_url(gateway)
        self.conn_id = f"shop-{next(SHOPS)}"  # each has a limiter of its own
        self.broken_lines = 0
        self.log: Any = logging.getLogger("a-task")

    def connection(self, base_url: str | None = None) -> GatewayConnection:
        return parse_connection(
            conn_id=self.conn_id,
            password=KEY,
            host=base_url or self.base_url,
            extra={"gateway": self.gateway, "requests_per_minute": 100_000},
        )

    def order(self, **more: Any) -> Order:
        known = {field.name for field in dataclasses.fields(Order)} | {"generation", "on_unknown", "on_clear"}
        request = {"operation": "generate", "prompt": PROMPT, "resolution": "512"}
        request |= {name: value for name, value in more.items() if name not in known}
        policy = Policy(more.get("generation", 0), more.get("on_unknown", "fail"), more.get("on_clear", "reuse"))
        values = {name: value for name, value in more.items() if name in known and not hasattr(Policy, name)}
        values = {name: value for name, value in values.items() if name not in ("generation", "on_unknown", "on_clear")}
        usual: dict[str, Any] = {
            "item": ITEM,
            "request": None,
            "connection": self.connection(),
            "destination": Destination(self.folder, "hero"),
            "policy": policy,
            "timeout": 20.0,
            "poll_interval": 0.03,
        }
        order = {**usual, **values}
        order["request"] = order["request"] or ImageRequest.build(**request).check(self.gateway)
        return Order(**order)

    @asynccontextmanager
    async def attempt(
        self,
        *,
        marker: Memory | None = None,
        guard: SubmitGuard | None = None,
        ledger: Ledger | None = None,
        **more: Any,
    ) -> AsyncIterator[Purchase]:
        """One attempt: `more` are fields of the order, its policy, or its request.

        :param ledger: that has listed records before. Default: a new one.
        """
        async with AsyncExitStack() as stack:

            async def connect(conn_id: str) -> Transport:
                if self.broken_lines:
                    self.broken_lines -= 1
                    return await stack.enter_async_context(Transport(self.connection(nowhere())))
                return await stack.enter_async_context(Transport(self.connection()))

            purchase_context = PurchaseContext(ledger or Ledger(self.store), self.files, connect, self.log)
            yield Purchase(self.order(**more), purchase_context, guard or SubmitGuard(), marker)

    async def buy(self, **more: Any) -> dict[str, Any]:
        """The manifest of an attempt that waits for its image."""
        async with self.attempt(**more) as purchase:
            result = await purchase.start()
            if isinstance(result, JobInFlight):
                result = await purchase.finish(result.record)
            return result.manifest

    async def submit(self, **more: Any) -> Record:
        """The record of an attempt that died as soon as its submit was recorded."""
        async with self.attempt(**more) as purchase:
            result = await purchase.start()
            assert isinstance(result, JobInFlight)
            return result.record

    async def refused(self, kind: type[GeminiImageError], **more: Any) -> GeminiImageError:
        """The outcome of an attempt that fails with exactly this kind."""
        with pytest.raises(kind) as caught:
            await self.buy(**more)
        assert caught.value.kind == kind.kind
        return caught.value

    # What is there afterwards

    def found(self) -> StoredRecord:
        found = self.ledger.latest(ITEM)
        assert found is not None
        return found

    @property
    def record(self) -> Record:
        return self.found().record

    def states(self) -> list[tuple[str, str | None]]:
        """Of each record its state and the kind of its outcome."""
        found = [self.ledger.read(record_key(ITEM, n)) for n in self.ledger.numbers(ITEM)]
        return [(each.record.state, (each.record.outcome or {}).get("kind")) for each in found if each is not None]

    def paid(self) -> int:
        return len(self.sandbox.ledger())

    def calls(self) -> int:
        return len(self.sandbox.calls())

    def submits(self) -> int:
        return len(self.sandbox.calls(f"{ROUTES[self.gateway]}.submit"))

    def fault(self, route: str, **values: Any) -> None:
        self.sandbox.faults(route=route if route == "download" else f"{ROUTES[self.gateway]}.{route}", **values)

    def submission(self, manifest: Mapping[str, Any]) -> int:
        """Which paid submission the manifest's image is."""
        data = self.files.read(manifest["images"][0]["uri"], max_bytes=10_000_000)
        return int(read_submission(data))

    def names(self, folder: str | None = None) -> list[str]:
        """The files in the folder of the images."""
        return [name.rpartition("/")[2] for name in self.objects(folder or self.folder)]

    def objects(self, uri: str) -> dict[str, bytes]:
        """Everything under a URI, with its bytes."""
        if uri.startswith("file://"):
            paths = sorted(Path(uri.removeprefix("file://")).rglob("*"))
            return {str(path): path.read_bytes() for path in paths if path.is_file()}
        bucket, _, prefix = f"{uri}/".removeprefix("s3://").partition("/")
        s3 = boto3.client("s3")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]
        return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def delete(self, uri: str) -> None:
        if uri.startswith("file://"):
            Path(uri.removeprefix("file://")).unlink()
        else:
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            boto3.client("s3").delete_object(Bucket=bucket, Key=key)

    def put(self, record: Record) -> Record:
        """A record as an attempt that is dead left it."""
        record = dataclasses.replace(record, conn_id=self.conn_id, gateway=self.gateway)
        record = dataclasses.replace(record, destination=Destination(self.folder, "hero"))
        assert self.ledger.create(record)
        return record

    def overdue(self) -> None:
        """Let the deadline of the last record's answer have passed."""
        self.ledger.change(self.record.key, lambda stored: dataclasses.replace(stored, answer_within=0.0))


def nowhere() -> str:
    """The address of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def until(ready: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""

    def wait() -> None:
        deadline = time.monotonic() + 10
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    await asyncio.to_thread(wait)


def make_unreadable(uri: str) -> None:
    """Put something at a path on disk that even root can't look at."""
    path = Path(uri.removeprefix("file://"))
    path.unlink()
    path.symlink_to(path)


def png(colour: str = "red") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (512, 512), colour).save(buffer, "PNG")
    return buffer.getvalue()
