"""Orphaned records: real attempts make them against the sandbox, and then stop."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
from airflow_provider_geminiimg.core.purchase.results import JobInFlight
from airflow_provider_geminiimg.core.reconcile import Report, Scope, collect
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import join_uri
from airflow_provider_geminiimg.core.validation.resolution import Resolution
from airflow_provider_geminiimg.exceptions import GeminiImageError, OutcomeUnknownError
from airflow_provider_geminiimg.runtime.environment import Environment
from airflow_provider_geminiimg.sandbox import read_submission
from tests.harness.records import ITEM

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

SCOPE = Scope("default")
LOGGER = "left-behind"
NOT_KNOWN = OutcomeUnknownError("Nobody knows.").to_dict()
UNPAID, LOST = Resolution("unpaid"), Resolution("lost")


class OrphanedRecords:
    """One root, one sandbox, one connection, and attempts that are dead by now.

    :param sandbox: the gateways.
    :param conn_id: an Airflow connection that leads there.
    """

    def __init__(self, sandbox: Sandbox, conn_id: str) -> None:
        self.sandbox = sandbox
        self.conn_id = conn_id
        self.environment = Environment(logging.getLogger(LOGGER))
        self.ledger = self.environment.ledger
        self.store = self.ledger.store
        self.folder = join_uri(self.environment.root.rpartition("/")[0], "images")

    # Attempts

    async def attempt(
        self,
        task_id: str = "hero",
        *,
        prompt: str | None = None,
        item: Item = ITEM,
        generation: int = 0,
        marker: Marker | None = None,
        guard: SubmitGuard | None = None,
        land: bool = True,
        **policy: Any,
    ) -> Record:
        """An attempt at one task's image; without `land` it dies as soon as its job is recorded.

        :param prompt: default: one of the task's own.
        :param policy: ``on_unknown``, ``on_clear``.
        :raises GeminiImageError: as the task would.
        """
        request = ImageRequest.build(operation="generate", prompt=prompt or f"a fox for {task_id}", resolution="512")
        connection = self.environment.connection(self.conn_id)
        order = Order(
            item=replace(item, task_id=task_id),
            request=request.check(connection.gateway),
            connection=connection,
            destination=Destination(self.folder, task_id),
            policy=Policy(generation, **policy),
            timeout=20.0,
            poll_interval=0.02,
        )
        async with self.environment.purchase_context() as purchase_context:
            purchase = Purchase(order, purchase_context, guard or SubmitGuard(), marker)
            result = await purchase.start()
            if isinstance(result, JobInFlight) and land:
                result = await purchase.finish(result.record)
        return result.record

    async def submitted(self, task_id: str = "hero", **more: Any) -> Record:
        """An attempt died once its job was recorded, long ago; the job has ended."""
        record = await self.attempt(task_id, land=False, **more)
        await self.ended()
        return self.old(record)

    async def failed(self, task_id: str = "hero", **more: Any) -> Record:
        """The record of an attempt that failed, long ago, because of a fault that the test has queued."""
        try:
            await self.attempt(task_id, **more)
        except GeminiImageError:
            return self.old(self.record(task_id))
        raise AssertionError("the attempt succeeded")

    async def unknown(self, task_id: str = "hero", *, charge: str = "after", **more: Any) -> Record:
        """A request went out, and its answer got lost."""
        route = "onemin.submit" if self.gateway == "1min" else "apimaster.submit"
        self.sandbox.faults(route=route, drop=True, charge=charge)
        record = await self.failed(task_id, **more)
        await self.ended()
        return record

    async def ended(self) -> None:
        """Wait until the gateway has made all of its images."""
        deadline = time.monotonic() + 20
        while any(entry["outcome"] == "running" for entry in self.sandbox.ledger()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    def old(self, record: Record) -> Record:
        """As if it had been written so long ago that nobody is at work on it any more."""
        return self.change(record, answer_within=0.0)

    def change(self, record: Record, **values: Any) -> Record:
        return self.ledger.change(record.key, lambda stored: replace(stored, **values))

    # Collecting

    async def collect(self, scope: Scope = SCOPE, **more: Any) -> Report:
        async with self.environment.purchase_context() as purchase_context:
            return await collect(purchase_context, scope, **more)

    # What is there

    @property
    def gateway(self) -> str:
        return self.environment.connection(self.conn_id).gateway

    def record(self, task_id: str = "hero") -> Record:
        """The record that decides for a task."""
        found = self.ledger.latest(replace(ITEM, task_id=task_id))
        assert found is not None
        return found.record

    def at(self, record: Record) -> Record:
        """A record as it is now."""
        found = self.ledger.read(record.key)
        assert found is not None
        return found.record

    def records(self) -> list[str]:
        """The keys of all records."""
        return list(self.store.keys("ledger/"))

    def image(self, record: Record) -> tuple[str, int]:
        """Where the image of a landed record lies, and which submission it is."""
        manifest = self.at(record).manifest
        assert manifest is not None
        uri = str(manifest["images"][0]["uri"])
        return uri, read_submission(self.environment.files.read(uri, max_bytes=10_000_000))

    def paid(self) -> int:
        return len(self.sandbox.ledger())

    def calls(self, name: str) -> int:
        """How many calls a route of this gateway had."""
        return len(self.sandbox.calls(f"{'onemin' if self.gateway == '1min' else 'apimaster'}.{name}"))

    def everything(self) -> dict[str, bytes]:
        """All objects under the root and in the folder of the images, with their bytes."""
        root = self.environment.root.rpartition("/")[0]
        if root.startswith("file://"):
            paths = sorted(Path(root.removeprefix("file://")).rglob("*"))
            return {str(path): path.read_bytes() for path in paths if path.is_file() and "#" not in path.name}
        s3 = boto3.client("s3")
        bucket = root.removeprefix("s3://")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
        return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


async def with_an_extra_job(left: OrphanedRecords) -> tuple[Record, str]:
    """A record that has landed, and a job that another living attempt paid for beside it."""
    kept = await left.attempt()
    other = await left.submitted("other", prompt="a fox for hero")
    left.store.delete(other.key)
    return left.change(left.at(kept), extra_jobs=[other.job_id], answer_within=0.0), str(other.job_id)


def nonzero(report: Report) -> dict[str, int]:
    """The counts of a report that are not zero."""
    return {what: count for what, count in report.counts().items() if count}
