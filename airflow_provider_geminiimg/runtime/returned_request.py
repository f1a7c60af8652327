"""The request that a decorated function returned, saved until its image has landed.

Invariant: the function is called once per Clear. A retry uses the saved request.
"""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import RETURNED
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest, SavedRequestStore
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.runtime.task_run import TaskRun


def request(attempt: TaskRun, connection: GatewayConnection, ask: Callable[[], ImageRequest]) -> CheckedRequest:
    """The saved request of the first attempt. The first attempt calls `ask` and saves the result.

    :param ask: calls the decorated function.
    :raises GeminiImageError: the request is not valid, or was deleted after its image landed.
    """
    requests = _store(attempt)
    known = requests.read(attempt.generation)
    if known is None:
        asked = ask()
        checked = asked.check(connection.gateway, connection.model)
        requests.write(attempt.generation, SavedRequest(request=asked))
        return checked
    if known.request is None:
        raise LedgerError(
            "The image of this task has landed before, and the request of the function is deleted after landing.",
            billed=Billed.YES,
            hint="Clear the task: it calls the function again.",
        )
    attempt.log.info("Using the request that the function returned to the first attempt.")
    return known.request.check(connection.gateway, connection.model)


def forget(attempt: TaskRun) -> None:
    """Delete the saved prompt, because the image has landed."""
    try:
        _store(attempt).finish(attempt.generation, SavedRequest(request=None))
    except GeminiImageError as error:
        attempt.log.error("The image landed, but the saved request of the function could not be deleted: %s", error)


def _store(attempt: TaskRun) -> SavedRequestStore[SavedRequest]:
    return SavedRequestStore(SavedRequest, attempt.ledger.store, RETURNED, attempt.item, attempt.plan_marker)
