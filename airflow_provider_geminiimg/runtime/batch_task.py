"""A running batch task: from rows to a plan, to images, to a summary.

Invariant: the plan is saved before the first paid request, so that a retry makes only the missing images.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from airflow.sdk import Context

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.batch.executor import BatchContext, BatchExecutor, BatchOptions
from airflow_provider_geminiimg.core.batch.forecast import refusals
from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.known_images import TaskRecords, known_images
from airflow_provider_geminiimg.core.batch.plan import Plan, PlannedImage
from airflow_provider_geminiimg.core.batch.planner import DraftPlan, PlanHeader, drafted, plan_of
from airflow_provider_geminiimg.core.batch.rows import read_rows
from airflow_provider_geminiimg.core.batch.summary import GOOD, BatchSummary
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard, run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.caps import caps_set
from airflow_provider_geminiimg.core.ledger.layout import PLANS
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequestStore
from airflow_provider_geminiimg.core.request import SHARED
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.core.validation.arguments import DEFAULT_TIMEOUT, DEFAULT_WIDTH
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, IncompleteError, StorageError
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.task_run import TaskRun

_RETURNED = "return_value"  # Airflow's XCom key for the return value of a task
NAMED_FAILURES = 3  # failed images that the error message names


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
    return returned(task, context, lambda: _made(task, context))


def returned(
    task: BatchTask, context: Context, make: Callable[[], tuple[dict[str, Any], Exception | None]]
) -> dict[str, Any]:
    """What a task with a summary returns. If it fails, the summary is pushed as XCom before.

    :param make: returns (summary, error); this function raises the error, so that no traceback holds a prompt.
    :raises GeminiImageError: see `run_task`.
    """
    try:
        summary, failure = make()
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
    attempt = TaskRun(context, task.log)
    plans = SavedRequestStore(Plan, attempt.ledger.store, PLANS, attempt.item, attempt.plan_marker)
    known = plans.read(attempt.generation)
    task.arguments.refuse_missing(None if known is None else task.arguments.checks)
    requests = task.rows(context) if known is None else None
    return make(task, attempt, plans, known, requests)


def make(
    task: BatchTask, attempt: TaskRun, plans: SavedRequestStore[Any], known: Plan | None, requests: Any
) -> tuple[dict[str, Any], Exception | None]:
    """Make the images of a plan.

    :param plans: where the plan is saved.
    :param known: the saved plan; ``None``: it is made from `requests`.
    :returns: (summary, error).
    :raises GeminiImageError: nothing was started.
    """
    lived = run(lambda: closed(_live(task, attempt, plans, known, requests)), task.guard)
    if isinstance(lived, GeminiImageError):
        raise lived
    planned, results, manifest, refusal = lived
    summary = {**results.totals(planned.own), "manifest": manifest}
    task.log.info("%s", summary)
    wanted = task.arguments.checked("min_success")
    return summary, refusal or incomplete(wanted, summary, results, results.bad(planned.own, NAMED_FAILURES))


async def _live(
    task: BatchTask, attempt: TaskRun, plans: SavedRequestStore[Any], planned: Plan | None, requests: Any
) -> tuple[Plan, BatchSummary, str | None, Exception | None]:
    connection = connection_of(task.arguments, attempt)
    async with attempt.purchase_context() as purchase_context:
        await asyncio.to_thread(attempt.ledger.store.probe)
        if planned is None:
            async with drafts_of(task.arguments, attempt, connection, purchase_context, requests) as drafts:
                planned = drafts.plan()
            await asyncio.to_thread(note_planned, task, attempt, planned.keys())
            await asyncio.to_thread(plans.write, attempt.generation, planned)
        else:
            task.log.info("Using %s: %s images.", planned.origin, len(planned.own))
        own, max_cost = {item.key for item in planned.own}, task.arguments.checked("max_cost")
        await asyncio.to_thread(attempt.prefetch, own)
        batch = batch_context(task, attempt, purchase_context, connection, planned)
        refused = await refusals(batch, planned.own, max_cost)
        if caps_set(connection, max_cost):  # then the forecast has used what was listed
            await asyncio.to_thread(attempt.prefetch, own)
        options = BatchOptions(
            max_concurrency=task.arguments.checked("max_concurrency") or DEFAULT_WIDTH,
            fail_fast=task.arguments.checked("on_item_failure") == "fail_fast",
            fail_on_mismatch=task.arguments.checked("on_mismatch") == "fail",
        )
        results = await BatchExecutor(batch, options, refused).run(planned.own)
        manifest, failure = await asyncio.to_thread(_write_down, attempt, plans, planned, results)
    refusal = next(iter(refused.values()), None)
    if refusal is not None and results.collected:
        hint = f"{refusal.hint} Images that were already paid for have been collected: {manifest}.".strip()
        refusal = refusal.evolve(hint=hint)
    return planned, results, manifest, failure or refusal


def connection_of(arguments: TaskArguments, attempt: TaskRun) -> GatewayConnection:
    """The connection that the arguments name, with their limit of requests per minute."""
    connection = attempt.connection(arguments["geminiimg_conn_id"])
    rate = arguments.checked("requests_per_minute")
    return connection if rate is None else attempt.limited(connection.conn_id, rate)


def batch_context(
    task: BatchTask,
    attempt: TaskRun,
    purchase_context: PurchaseContext,
    connection: GatewayConnection,
    planned: Plan,
) -> BatchContext:
    """What the images of a plan share."""
    orders = _orders(task.arguments, attempt, connection, planned)
    return BatchContext(orders, purchase_context, task.guard, connection, attempt.item_marker)


@contextlib.asynccontextmanager
async def drafts_of(
    arguments: TaskArguments,
    attempt: TaskRun,
    connection: GatewayConnection,
    purchase_context: PurchaseContext,
    requests: Any,
) -> AsyncIterator[DraftPlan]:
    """Read the rows and draft an image for each.

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
    async with drafted(specs, connection, purchase_context, header) as drafts:
        del rows  # their text
        records = TaskRecords(attempt.ledger, attempt.item.path, of_dag=checked("reuse") == "dag")
        drafts.rename(await known_images(drafts, connection, records))
        yield plan_of(header, drafts, attempt.log)


def note_planned(task: BatchTask, attempt: TaskRun, items: Set[str]) -> None:
    """Note in the run's summary how many images are planned. Without it, only the gallery lacks a number.

    :param items: names of the planned items in the ledger.
    """
    try:
        attempt.ledger.summaries.plan(attempt.item.task_instance, items)
    except GeminiImageError as error:
        task.log.warning(
            "The number of planned images was not saved, so the gallery does not show how many are missing: %s %s",
            error.message, error.hint,
        )  # fmt: skip


def _write_down(
    attempt: TaskRun, plans: SavedRequestStore[Any], planned: Plan, results: BatchSummary
) -> tuple[str | None, Exception | None]:
    """Write the manifest; if all images have landed, delete the prompts from the saved plan.

    :returns: (URI of the manifest or ``None``, error or ``None``). The error is not raised here, because the caller
        still has to return the summary.
    """
    written = None
    try:
        write_manifest(attempt.files, attempt.manifest, results.manifest(planned.own), results.billed)
        written = attempt.manifest
        if results.all_landed:
            plans.finish(planned.generation, planned.carried_out())
    except Exception as error:
        return written, error
    return written, None


def write_manifest(files: Files, uri: str, lines: Iterable[bytes], billed: Billed) -> None:
    """Write the manifest of a batch.

    :param billed: whether any image of the batch was paid for.
    :raises StorageError: it could not be written.
    """
    try:
        files.put(uri, lines, media_type="application/x-ndjson")
    except StorageError as error:
        hint = f"{error.hint} The images that landed stay. A retry writes the manifest again, at no cost."
        raise error.evolve(billed=billed, of_many=True, hint=hint) from error.__cause__


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

    numbers = planned.numbers()

    def order(item: PlannedImage) -> Order:
        return Order(
            item=dataclasses.replace(attempt.item, item=item.key),
            request=planned.request(item, connection),
            destination=planned.destination(item),
            input_sha256=item.input_sha256,
            fingerprint=item.fingerprint,
            avoid=numbers.get(item.stem.casefold(), ()),
            **usual,
        )

    return order


class Outcomes(Protocol):
    """What the error of an incomplete batch says about its images."""

    @property
    def billed(self) -> Billed: ...
    @property
    def retryable(self) -> bool: ...


def incomplete(
    wanted: float, summary: Mapping[str, Any], results: Outcomes, failures: Sequence[str]
) -> IncompleteError | None:
    """The error of a task in which fewer than `min_success` images landed.

    :param wanted: `min_success`: a count (``int``), or a ratio (``float``).
    :param failures: sentences about some of the failed images.
    """
    total, counts = summary["items"], summary["counts"]
    good = sum(counts[status] for status in GOOD)
    # As it is written: in binary, 0.28 of 25 images would be a little more than 7.
    needed = Decimal(str(wanted)) * total if isinstance(wanted, float) else min(wanted, total)
    if good >= needed:
        return None
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status not in GOOD)
    return IncompleteError(
        f"{good} of {total} images landed ({others}), min_success={wanted}. "
        f"Details of each image: {summary['manifest']}. {' '.join(failures)}",
        billed=results.billed,
        retryable=results.retryable,
    )
