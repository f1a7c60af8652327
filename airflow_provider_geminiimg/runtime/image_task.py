"""One picture's life, as a running task sees it.

What must stay true: nothing is decided here. An attempt asks `Purchase`, then defers or returns.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, NoReturn

from airflow.sdk import Context

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.ledger.records import Destination, Record
from airflow_provider_geminiimg.core.purchase.copying import asked_last
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError
from airflow_provider_geminiimg.operators._base import DEFAULT_TIMEOUT, ImageOperator
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.task_run import BACKSTOP, MAX_DEFERRALS, Attempt, finished

_AT_ANOTHER_PLACE = (
    "What was paid for before is on record: a retry lands it where it was to land then, and a Clear with another "
    "file_name or output_path lands it there."
)


def live(
    operator: ImageOperator, context: Context, *, wait: bool, at_once: bool = False, job_id: str | None = None
) -> Any:
    """One picture's life, from wherever it stands.

    :param wait: wait for a running job here; otherwise defer.
    :param at_once: poll before waiting.
    :param job_id: the job that a trigger waited for.
    """
    attempt, order = _prepare(operator, context)

    async def lived() -> tuple[Record, dict[str, Any] | None]:
        async with attempt.workshop() as workshop:
            purchase = Purchase(order, workshop, attempt.guard, attempt.marker)
            if job_id is not None:
                return await purchase.resume(job_id)
            record, manifest = await purchase.start()
            if manifest is None and wait:
                return await purchase.finish(record, at_once=at_once)
            return record, manifest

    found = run(lambda: closed(lived()), attempt.guard)
    if isinstance(found, GeminiImageError):
        raise_outcome(found)
    return operator._ended(attempt, order, *found)


def ended(
    operator: ImageOperator, attempt: Attempt, order: Order, record: Record, manifest: dict[str, Any] | None
) -> Any:
    """What the task returns; a job that runs is deferred."""
    if manifest is None:
        _wait_in_triggerer(operator, attempt, record, order)
    return finished(manifest, operator._checked("on_mismatch"))


def defer_again(operator: ImageOperator, context: Context) -> None:
    """Defer once more, unless that was done often enough for this job."""
    attempt, order = _prepare(operator, context)
    found = attempt.ledger.latest(attempt.item)
    if found is None or found.record.state != "submitted" or found.record.deferrals >= MAX_DEFERRALS:
        return
    record = attempt.count_deferral(found.record)
    _wait_in_triggerer(operator, attempt, record, order)


def _prepare(operator: ImageOperator, context: Context) -> tuple[Attempt, Order]:
    attempt = None
    try:
        attempt = Attempt(context, operator.log)
        operator._stopped_through(attempt.guard)
        return attempt, _order(operator, attempt)
    except GeminiImageError as error:
        if attempt is not None and attempt.marker is not None and attempt.marker.get() is not None:
            error.billed = Billed.UNKNOWN  # this attempt spent nothing, an earlier one may have
        raise_outcome(error)


def _order(operator: ImageOperator, attempt: Attempt) -> Order:
    operator._checked("on_mismatch")
    connection = attempt.connection(operator.geminiimg_conn_id)
    request: CheckedRequest | GeminiImageError
    try:
        request = operator._asked(attempt, connection)
    except GeminiImageError as error:
        request = error
    variant = request.variant if isinstance(request, CheckedRequest) else None
    try:
        destination = attempt.destination(operator.output_path, operator.file_name, variant)
    except BadRequestError as error:
        # Nothing is bought for it; what was paid for, perhaps while such names were allowed, lands where it was to.
        request, destination = error, _destination_on_record(attempt, error)
    return Order(
        item=attempt.item,
        request=request,
        connection=connection,
        destination=destination,
        policy=Policy(
            generation=attempt.generation,
            on_unknown=operator._checked("on_unknown"),
            on_clear=operator._checked("on_clear"),
            reuse=operator._checked("reuse"),
        ),
        timeout=operator._checked("timeout") or DEFAULT_TIMEOUT,
        poll_interval=operator._checked("poll_interval"),
        record_prompts=settings.record_prompts(),
        max_cost=operator._checked("max_cost"),
    )


def _destination_on_record(attempt: Attempt, error: BadRequestError) -> Destination:
    """Where the image that was asked for before was to land.

    :param error: why it can't be where it is asked for now; raised where nothing was asked for before.
    """
    found = attempt.ledger.latest(attempt.item)
    if found is None:
        raise error
    error.billed, error.hint = Billed.UNKNOWN, _AT_ANOTHER_PLACE
    return asked_last(found.record)


def _wait_in_triggerer(operator: ImageOperator, attempt: Attempt, record: Record, order: Order) -> NoReturn:
    deadline = (record.submitted_at or record.claimed_at) + order.timeout
    operator.log.info("Waiting for job %s in the triggerer.", printable(str(record.job_id)))
    operator.defer(
        trigger=attempt.trigger(record, deadline, order.poll_interval),
        method_name="execute_complete",
        timeout=timedelta(seconds=max(0.0, deadline - time.time()) + BACKSTOP),
    )
