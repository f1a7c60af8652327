"""What a decorated function asked for, kept in the store until it has landed."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import RETURNED
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest, SavedRequestStore
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.runtime.task_run import TaskRun


def request(attempt: TaskRun, connection: GatewayConnection, ask: Callable[[], ImageRequest]) -> CheckedRequest:
    """What the first attempt was told to make; this one, where it is the first, asks.

    :raises GeminiImageError: it can't be made, or is not known any more.
    """
    kept = _kept(attempt)
    known = kept.read(attempt.generation)
    if known is None:
        asked = ask()
        checked = asked.check(connection.gateway, connection.model)
        kept.write(attempt.generation, SavedRequest(request=asked))
        return checked
    if known.request is None:
        raise LedgerError(
            "This was made before, and what the function asked for is not kept that long.",
            billed=Billed.YES,
            hint="Clear the task, which calls the function again.",
        )
    attempt.log.info("Keeping to what the function returned to the first attempt.")
    return known.request.check(connection.gateway, connection.model)


def forget(attempt: TaskRun) -> None:
    """Keep no prompt any longer: the image has landed."""
    try:
        _kept(attempt).finish(attempt.generation, SavedRequest(request=None))
    except GeminiImageError as error:
        attempt.log.error("What the function returned is still under the root, though it landed: %s", error)


def _kept(attempt: TaskRun) -> SavedRequestStore[SavedRequest]:
    return SavedRequestStore(SavedRequest, attempt.ledger.store, RETURNED, attempt.item, attempt.plan_marker)
