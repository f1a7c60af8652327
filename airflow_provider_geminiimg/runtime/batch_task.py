"""A running batch task: from rows to a plan, to images, to a summary.

Invariant: the plan is saved before the first paid request, so that a retry makes only the missing images.
"""

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

_RETURNED = "return_value"  # Airflow's XCom key for the return value of a task
_NAMED_FAILURES = 3  # failed images that the error message names


@dataclass(frozen=True, slots=True)
class BatchTask:
    """The description of one task instance.

    :param arguments: of `GeminiImageBatchOperator`.
    :param rows: returns the rows; called only if there is no saved plan.
    :param guard: the stop flag for paid requests.
    :param log: the logger of the task.
    :param pushes: push the summary as XCom.
    :param multiple_outputs: also push each field of the summary as its own XCom.
    """

    arguments: TaskArguments
    rows: Callable[[Mapping[str, Any]], Any]
    guard: SubmitGuard
    log: Logs
    pushes: bool
    multiple_outputs: bool


def run_task(task: BatchTask, context: Context) -> dict[str, Any]:
    """Plan the images, or read the saved plan; make the missing images; return the summary.

    :raises GeminiImageError: nothing was started, or the task failed; raised by `raise_outcome`.
    """
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
    """Push the summary of a failed task as XCom: Airflow stores only the return value of a successful task."""
    if not task.pushes:
        return
    several = dict(summary) if task.multiple_outputs else {}
    try:
        for key, value in {**several, _RETURNED: dict(summary)}.items():
            context["ti"].xcom_push(key, value)
    except Exception as error:  # the task fails anyway, and the log has the summary
        task.log.warning("The summary could not be pushed as XCom (%s).", type(error).__name__)


def _made(task: BatchTask, context: Context) -> tuple[dict[str, Any], Exception | None]:
    """Returns (summary, error). The caller raises the error, so that no traceback holds a prompt."""
    attempt = TaskRun(context, task.log)
    plans = SavedRequestStore(Plan, attempt.ledger.store, PLANS, attempt.item, attempt.plan_marker)
    known = plans.read(attempt.generation)
    task.arguments.refuse_missing(None if known is None else task.arguments.checks)
    requests = task.rows(context) if known is None else None
    lived = run(lambda: closed(_live(task, attempt, plans, known, requests)), task.guard)
    if isinstance(lived, GeminiImageError):
        raise lived
    planned, results, manifest, refusal = lived
    summary = {**results.totals(planned.items), "manifest": manifest}
    task.log.info("%s", summary)
    return summary, refusal or _failure(task, planned, results, summary)


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
            task.log.info("Using the plan of the first attempt: %s images.", len(planned.items))
        await asyncio.to_thread(attempt.ledger.prefetch, attempt.item)
        orders = _orders(task.arguments, attempt, connection, planned)
        batch = BatchContext(orders, purchase_context, task.guard, connection, attempt.item_marker)
        refused = await refusals(batch, planned.items, task.arguments.checked("max_cost"))
        options = BatchOptions(
            max_concurrency=task.arguments.checked("max_concurrency") or DEFAULT_WIDTH,
            fail_fast=task.arguments.checked("on_item_failure") == "fail_fast",
            fail_on_mismatch=task.arguments.checked("on_mismatch") == "fail",
        )
        results = await BatchExecutor(batch, options, refused).run(planned.items)
        manifest, failure = await asyncio.to_thread(_write_down, attempt, plans, planned, results)
    refusal = next(iter(refused.values()), None)
    if refusal is not None and results.collected:
        hint = f"{refusal.hint} Images that were already paid for have been collected: {manifest}.".strip()
        refusal = refusal.evolve(hint=hint)
    return planned, results, manifest, failure or refusal


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
    attempt: TaskRun, plans: SavedRequestStore[Plan], planned: Plan, results: BatchSummary
) -> tuple[str | None, Exception | None]:
    """Write the manifest; if all images have landed, delete the prompts from the saved plan.

    :returns: (URI of the manifest or ``None``, error or ``None``). The error is not raised here, because the caller
        still has to return the summary.
    """
    manifest = join_uri(attempt.folder, "manifest.jsonl")
    written = None
    try:
        _write_manifest(attempt.files, manifest, results, planned)
        written = manifest
        if results.all_landed:
            plans.finish(attempt.generation, planned.carried_out())
    except Exception as error:
        return written, error
    return written, None


def _write_manifest(files: Files, uri: str, results: BatchSummary, planned: Plan) -> None:
    try:
        files.put(uri, results.manifest(planned.items), media_type="application/x-ndjson")
    except StorageError as error:
        hint = f"{error.hint} The images that landed stay. A retry writes the manifest again, at no cost."
        raise error.evolve(billed=results.billed, of_many=True, hint=hint) from error.__cause__


def _orders(
    arguments: TaskArguments, attempt: TaskRun, connection: GatewayConnection, planned: Plan
) -> Callable[[PlannedImage], Order]:
    """A function that makes the order of each image. Shared arguments are parsed here, once, before any image."""
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


def _failure(
    task: BatchTask, planned: Plan, results: BatchSummary, summary: Mapping[str, Any]
) -> IncompleteError | None:
    """The error of a task in which fewer than `min_success` images landed."""
    wanted = task.arguments.checked("min_success")
    total = len(planned.items)
    good = sum(summary["counts"][status] for status in GOOD)
    needed = wanted * total if isinstance(wanted, float) else min(wanted, total)
    if good >= needed:
        return None
    named = " ".join(results.bad(planned.items, _NAMED_FAILURES))
    others = ", ".join(
        f"{count} {status}" for status, count in summary["counts"].items() if count and status not in GOOD
    )
    return IncompleteError(
        f"{good} of {total} images landed ({others}), min_success={wanted}. "
        f"Details of each image: {summary['manifest']}. {named}",
        billed=results.billed,
        retryable=results.retryable,
    )
