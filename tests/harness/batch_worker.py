"""A worker that makes a batch, without Airflow: what a test may start as a process of its own, and kill."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_geminiimg.core.batch.executor import BatchContext, BatchExecutor, BatchOptions
from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.plan import PlannedImage
from airflow_provider_geminiimg.core.batch.planner import PlanHeader, drafted, plan_of
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.connection import parse_connection
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.storage import Files, join_uri, open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS


@dataclass(frozen=True)
class Work:
    """One attempt of one batch.

    :param connection: what `parse_connection` takes.
    :param root: URI of the root.
    :param task_id: whose batch it is.
    :param prompts: what it wants.
    :param generation: how often it was cleared; each Clear may settle what the attempt before left unknown.
    """

    connection: dict[str, Any]
    root: str
    task_id: str
    prompts: tuple[str, ...]
    generation: int = 0


def work(job: Work) -> None:
    """Make the batch as far as the money goes."""
    logging.disable(logging.ERROR)
    asyncio.run(_work(job))


async def _work(job: Work) -> None:
    connection = parse_connection(**job.connection)
    files = Files(AIRFLOW_OPENERS)
    task = Item("default", "kills", "run", job.task_id, -1)
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(Transport(connection))

        async def connect(_: str) -> Transport:
            return transport

        purchase_context = PurchaseContext(
            Ledger(open_store(job.root, AIRFLOW_OPENERS)), files, connect, logging.getLogger()
        )
        stack.push_async_callback(purchase_context.budgets.close)
        wanted = list(
            image_specs(
                [{"prompt": prompt} for prompt in job.prompts],
                RowDefaults({"resolution": "512"}, connection.gateway, connection.model),
            )
        )
        header = PlanHeader(job.generation, join_uri(job.root, f"pictures/{job.task_id}"), "fox")
        async with drafted(wanted, connection, purchase_context, header) as drafts:
            planned = plan_of(header, drafts, logging.getLogger()).plan()

        def order(item: PlannedImage) -> Order:
            return Order(
                item=replace(task, item=item.key),
                request=item.request(connection),
                connection=connection,
                destination=planned.destination(item),
                policy=Policy(job.generation, on_unknown="resubmit"),
                poll_interval=0.05,
                input_sha256=(),
            )

        batch = BatchContext(order, purchase_context, SubmitGuard(), connection, lambda key: None)
        await BatchExecutor(batch, BatchOptions(max_concurrency=8), {}).run(planned.items)
