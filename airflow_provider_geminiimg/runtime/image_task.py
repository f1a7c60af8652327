"""A running task that buys one image.

Invariant: this module decides nothing about money and does not defer. It builds an `Order`, calls `Purchase` and
returns the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Context

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard, run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.purchase.copying import asked_last
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.purchase.results import JobInFlight, LandedImage
from airflow_provider_geminiimg.core.request import REQUEST_FIELDS, VALID_WITHOUT_IMAGE, CheckedRequest, ImageRequest
from airflow_provider_geminiimg.core.validation.arguments import DEFAULT_TIMEOUT
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError
from airflow_provider_geminiimg.runtime import returned_request
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.task_run import MAX_DEFERRALS, Landed, Pending, TaskRun, finished

_AT_ANOTHER_PLACE = (
    "An earlier attempt may have paid for the image. A retry stores it at the recorded destination; a Clear with "
    "another file_name or output_path stores it there."
)


@dataclass(frozen=True, slots=True)
class ImageTask:
    """The description of one task instance.

    :param arguments: of `ImageOperator`.
    :param operation: ``generate`` or ``edit``.
    :param guard: the stop flag for paid requests.
    :param log: the logger of the task.
    :param function: returns the request of a decorated function; called at most once per Clear.
    """

    arguments: TaskArguments
    operation: str
    guard: SubmitGuard
    log: Logs
    function: Callable[[Mapping[str, Any]], ImageRequest] | None = None


def run_task(
    task: ImageTask,
    context: Context,
    *,
    wait: bool | None = None,
    poll_immediately: bool = False,
    job_id: str | None = None,
) -> Landed | Pending:
    """Buy the image, or continue with what earlier attempts recorded.

    :param wait: wait for a running job in this process. ``None``: unless the argument `deferrable` is true.
    :param poll_immediately: poll before the first wait.
    :param job_id: the job that a trigger waited for.
    :raises GeminiImageError: why there is no image, raised by `raise_outcome`.
    """
    attempt, order = _prepare(task, context)
    waits = not task.arguments.checked("deferrable") if wait is None else wait

    async def lived() -> LandedImage | JobInFlight:
        async with attempt.purchase_context() as purchase_context:
            purchase = Purchase(order, purchase_context, task.guard, attempt.marker)
            if job_id is not None:
                return await purchase.resume(job_id)
            result = await purchase.start()
            if isinstance(result, JobInFlight) and waits:
                return await purchase.finish(result.record, poll_immediately=poll_immediately)
            return result

    found = run(lambda: closed(lived()), task.guard)
    if isinstance(found, GeminiImageError):
        raise_outcome(found)
    if isinstance(found, JobInFlight):
        return _pending(attempt, found.record, order)
    if task.function is not None:
        returned_request.forget(attempt)
    return Landed(found.record, finished(found.manifest, task.arguments.checked("on_mismatch")))


def wait_again(task: ImageTask, context: Context) -> Pending | None:
    """The deferral for a job after its trigger crashed; ``None`` if no job is running or `MAX_DEFERRALS` is reached."""
    attempt, order = _prepare(task, context)
    found = attempt.ledger.latest(attempt.item)
    if found is None or found.record.state != "submitted" or found.record.deferrals >= MAX_DEFERRALS:
        return None
    return _pending(attempt, attempt.count_deferral(found.record), order)


def _pending(attempt: TaskRun, record: Record, order: Order) -> Pending:
    deadline = (record.submitted_at or record.claimed_at) + order.timeout
    return attempt.pending(record, deadline, order.poll_interval)


def _prepare(task: ImageTask, context: Context) -> tuple[TaskRun, Order]:
    attempt = None
    try:
        attempt = TaskRun(context, task.log)
        return attempt, _order(task, attempt, context)
    except GeminiImageError as error:
        if attempt is not None and attempt.marker is not None and attempt.marker.get() is not None:
            error = error.evolve(billed=Billed.UNKNOWN)  # this attempt spent nothing, an earlier one may have
        raise_outcome(error)


def _order(task: ImageTask, attempt: TaskRun, context: Context) -> Order:
    arguments = task.arguments
    for name in ("on_mismatch", "deferrable"):  # used after the payment, so parsed before it
        arguments.checked(name)
    connection = attempt.connection(arguments["geminiimg_conn_id"])
    request: CheckedRequest | GeminiImageError
    try:
        request = _request(task, attempt, connection, context)
    except GeminiImageError as error:
        request = error
    variant = request.variant if isinstance(request, CheckedRequest) else None
    try:
        destination = attempt.destination(arguments["output_path"], arguments["file_name"], variant)
    except BadRequestError as error:
        # Nothing is bought. An image that was paid for earlier lands at its recorded destination.
        recorded = attempt.ledger.latest(attempt.item)
        if recorded is None:
            raise
        request, destination = error.evolve(billed=Billed.UNKNOWN, hint=_AT_ANOTHER_PLACE), asked_last(recorded.record)
    return Order(
        item=attempt.item,
        request=request,
        connection=connection,
        destination=destination,
        policy=Policy(
            generation=attempt.generation,
            on_unknown=arguments.checked("on_unknown"),
            on_clear=arguments.checked("on_clear"),
            reuse=arguments.checked("reuse"),
        ),
        timeout=arguments.checked("timeout") or DEFAULT_TIMEOUT,
        poll_interval=arguments.checked("poll_interval"),
        record_prompts=settings.record_prompts(),
        max_cost=arguments.checked("max_cost"),
    )


def _request(task: ImageTask, attempt: TaskRun, connection: GatewayConnection, context: Context) -> CheckedRequest:
    """The request of this attempt, checked for the gateway of the connection."""
    arguments, function = task.arguments, task.function
    if function is not None:
        arguments.refuse_missing()
        return returned_request.request(attempt, connection, lambda: function(context))
    arguments.refuse_unrendered()
    operation = {"operation": task.operation}
    if _may_generate(arguments):
        arguments, operation = arguments.without_empty("image"), {}
    asked = ImageRequest.build(**operation, **{name: arguments[name] for name in REQUEST_FIELDS})
    if asked.operation != task.operation:
        attempt.log.info('image is empty, and if_no_image is "generate": the request is a generation.')
    try:
        request = asked.check(connection.gateway, connection.model)
    except BadRequestError as error:
        if asked.operation == task.operation:
            raise
        raise error.evolve(hint=VALID_WITHOUT_IMAGE) from None
    arguments.refuse_missing()
    return request


def _may_generate(arguments: TaskArguments) -> bool:
    """Whether the DAG allows a generation if the image to edit is empty."""
    return "if_no_image" in arguments.checks and arguments.checked("if_no_image") == "generate"
