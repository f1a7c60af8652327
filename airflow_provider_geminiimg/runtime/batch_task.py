"""Many images in one task, as it runs: from its rows to its summary."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Context

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.batch.executor import BatchContext, BatchExecutor, BatchOptions
from airflow_provider_geminiimg.core.batch.forecast import refusals
from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.known_images import TaskRecords, with_known_images
from airflow_provider_geminiimg.core.batch.plan import Plan, PlannedImage
from airflow_provider_geminiimg.core.batch.planner import PlanHeader, log_twins, plan
from airflow_provider_geminiimg.core.batch.rows import read_rows
from airflow_provider_geminiimg.core.batch.summary import GOOD, BatchSummary
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard, run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import PLANS
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequestStore
from airflow_provider_geminiimg.core.request import SHARED
from airflow_provider_geminiimg.core.storage import Files, join_uri
from airflow_provider_geminiimg.core.validation.arguments import DEFAULT_TIMEOUT, DEFAULT_WIDTH
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import GeminiImageError, IncompleteError, StorageError
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.task_run import TaskRun

_RETURNED = "return_value"  # what Airflow calls the XCom of what a task returns
_NAMED_FAILURES = 3  # in the message of a task that fails


@dataclass(frozen=True, slots=True)
class BatchTask:
    """What one task instance asks for.

    :param arguments: those of `GeminiImageBatchOperator`.
    :param rows: gives what the task's first attempt is asked for.
    :param guard: ends the buying when the task is killed.
    :param log: the task's logger.
    :param pushes: whether the summary shall be an XCom.
    :param multiple_outputs: each of its fields as an XCom of its own, too.
    """

    arguments: TaskArguments
    rows: Callable[[Mapping[str, Any]], Any]
    guard: SubmitGuard
    log: Logs
    pushes: bool
    multiple_outputs: bool


def run_task(task: BatchTask, context: Context) -> dict[str, Any]:
    """Plan, or read what was planned; make what is missing; say what became of each."""
    try:
        summary, failure = _made(task, context)
    except GeminiImageError as error:
        raise_outcome(error)
    if failure is not None:
        _push(task, context, summary)
        if isinstance(failure, GeminiImageError):
            raise_outcome(failure)
        raise failure.with_traceback(None)
    return summary


def _push(task: BatchTask, context: Context, summary: Mapping[str, Any]) -> None:
    """The summary as the XCom that it is on success: Airflow keeps what a task returns, and not what it raises with."""
    if not task.pushes:
        return
    several = dict(summary) if task.multiple_outputs else {}
    try:
        for key, value in {**several, _RETURNED: dict(summary)}.items():
            context["ti"].xcom_push(key, value)
    except Exception as error:  # the outcome counts, and it is in the log
        task.log.warning("The summary could not be kept as an XCom (%s).", type(error).__name__)


def _made(task: BatchTask, context: Context) -> tuple[dict[str, Any], Exception | None]:
    """The summary, and why the task fails, if it does. Whoever raises that has no prompt among its variables."""
    attempt = TaskRun(context, task.log)
    plans = SavedRequestStore(Plan, attempt.ledger.store, PLANS, attempt.item, attempt.plan_marker)
    known = plans.read(attempt.generation)
    task.arguments.refuse_nothing(None if known is None else task.arguments.checks)
    requests = task.rows(context) if known is None else None
    lived = run(lambda: closed(_live(task, attempt, plans, known, requests)), task.guard)
    if isinstance(lived, GeminiImageError):
        raise lived
    planned, tally, manifest, refusal = lived
    summary = {**tally.totals(planned.items), "manifest": manifest}
    task.log.info("%s", summary)
    return summary, refusal or _failure(task, planned, tally, summary)


async def _live(
    task: BatchTask, attempt: TaskRun, plans: SavedRequestStore[Plan], planned: Plan | None, requests: Any
) -> tuple[Plan, BatchSummary, str | None, Exception | None]:
    connection = attempt.connection(task.arguments["geminiimg_conn_id"])
    rate = task.arguments.checked("requests_per_minute")
    if rate is not None:
        connection = attempt.limited(connection.conn_id, rate)
    async with attempt.purchase_context() as purchase_context:
        await asyncio.to_thread(attempt.ledger.store.probe)
        if planned is None:
            planned = await _planned(task.arguments, attempt, connection, purchase_context, requests)
            await asyncio.to_thread(plans.write, attempt.generation, planned)
        else:
            task.log.info("Keeping to what the first attempt planned: %s images.", len(planned.items))
        await asyncio.to_thread(attempt.ledger.prefetch, attempt.item)
        orders = _orders(task.arguments, attempt, connection, planned)
        batch = BatchContext(orders, purchase_context, task.guard, connection, attempt.item_marker)
        refused = await refusals(batch, planned.items, task.arguments.checked("max_cost"))
        options = BatchOptions(
            max_concurrency=task.arguments.checked("max_concurrency") or DEFAULT_WIDTH,
            fail_fast=task.arguments.checked("on_item_failure") == "fail_fast",
            fail_on_mismatch=task.arguments.checked("on_mismatch") == "fail",
        )
        tally = await BatchExecutor(batch, options, refused).run(planned.items)
        manifest, failure = await asyncio.to_thread(_write_down, attempt, plans, planned, tally)
    refusal = next(iter(refused.values()), None)
    if refusal is not None and tally.collected:
        hint = f"{refusal.hint} What was paid for before has been collected: {manifest}.".strip()
        refusal = refusal.evolve(hint=hint)
    return planned, tally, manifest, failure or refusal


async def _planned(
    arguments: TaskArguments,
    attempt: TaskRun,
    connection: GatewayConnection,
    purchase_context: PurchaseContext,
    requests: Any,
) -> Plan:
    """Read the rows and plan an image for each.

    :raises BadRequestError: rows are wrong.
    :raises GeminiImageError: the store failed, or a record can't be read.
    """
    checked = arguments.checked
    encoding, delimiter = checked("encoding"), checked("delimiter")
    most = settings.max_batch_images()
    rows = await asyncio.to_thread(
        lambda: read_rows(requests, purchase_context.files, most=most, encoding=encoding, delimiter=delimiter)
    )
    defaults = RowDefaults(
        shared={name: arguments[name] for name in SHARED},
        gateway=connection.gateway,
        default_model=connection.model,
        variants=checked("n") or 1,
        file_name=checked("file_name"),
    )
    specs = image_specs(rows, defaults, most=most)
    directory = checked("output_path")
    header = PlanHeader(attempt.generation, directory or attempt.folder, attempt.destination(directory, None).stem)
    planned = await plan(specs, connection, purchase_context, header)
    records = TaskRecords(attempt.ledger, attempt.item.path, of_dag=checked("reuse") == "dag")
    planned = await with_known_images(planned, specs, connection, records)
    log_twins(planned, attempt.log)
    return planned


def _write_down(
    attempt: TaskRun, plans: SavedRequestStore[Plan], planned: Plan, tally: BatchSummary
) -> tuple[str | None, Exception | None]:
    """Write the manifest, and that all has landed, if it has.

    :returns: where the manifest is, if it is there; and what failed, which is not raised, as the summary would be lost.
    """
    manifest = join_uri(attempt.folder, "manifest.jsonl")
    written = None
    try:
        _write_manifest(attempt.files, manifest, tally, planned)
        written = manifest
        if tally.all_landed:
            plans.finish(attempt.generation, planned.carried_out())
    except Exception as error:
        return written, error
    return written, None


def _write_manifest(files: Files, uri: str, tally: BatchSummary, planned: Plan) -> None:
    try:
        files.put(uri, tally.manifest(planned.items), media_type="application/x-ndjson")
    except StorageError as error:
        hint = f"{error.hint} What has landed stays, and a retry writes the manifest anew, at no cost."
        raise error.evolve(billed=tally.billed, of_many=True, hint=hint) from error.__cause__


def _orders(
    arguments: TaskArguments, attempt: TaskRun, connection: GatewayConnection, planned: Plan
) -> Callable[[PlannedImage], Order]:
    """What gives the order of each image. What all have in common is checked now, once."""
    usual: dict[str, Any] = {
        "connection": connection,
        "policy": Policy(
            generation=attempt.generation,
            on_unknown=arguments.checked("on_unknown"),
            on_clear=arguments.checked("on_clear"),
            reuse=arguments.checked("reuse"),
        ),
        "timeout": arguments.checked("timeout") or DEFAULT_TIMEOUT,
        "poll_interval": arguments.checked("poll_interval"),
        "record_prompts": settings.record_prompts(),
        "max_cost": arguments.checked("max_cost"),
    }

    def order(item: PlannedImage) -> Order:
        return Order(
            item=dataclasses.replace(attempt.item, item=item.key),
            request=item.request(connection),
            destination=planned.destination(item),
            input_sha256=item.input_sha256,
            fingerprint=item.fingerprint,
            **usual,
        )

    return order


def _failure(task: BatchTask, planned: Plan, tally: BatchSummary, summary: Mapping[str, Any]) -> IncompleteError | None:
    """Why the task fails, if it does."""
    wanted = task.arguments.checked("min_success")
    total = len(planned.items)
    good = sum(summary["counts"][status] for status in GOOD)
    needed = wanted * total if isinstance(wanted, float) else min(wanted, total)
    if good >= needed:
        return None
    named = " ".join(tally.bad(planned.items, _NAMED_FAILURES))
    others = ", ".join(
        f"{count} {status}" for status, count in summary["counts"].items() if count and status not in GOOD
    )
    return IncompleteError(
        f"{good} of {total} images landed ({others}), min_success={wanted}. "
        f"All of them: {summary['manifest']}. {named}",
        billed=tally.billed,
        retryable=tally.retryable,
    )
