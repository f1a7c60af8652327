"""What a decorated function asked for, kept in the store until it has landed."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import RETURNED
from airflow_provider_geminiimg.core.purchase.saved_requests import Kept, Wanted
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.runtime.task_run import Attempt


def request(attempt: Attempt, connection: GatewayConnection, ask: Callable[[], ImageRequest]) -> CheckedRequest:
    """What the first attempt was told to make; this one, where it is the first, asks.

    :raises GeminiImageError: it can't be made, or is not known any more.
    """
    kept = _kept(attempt)
    known = kept.read(attempt.generation)
    if known is None:
        asked = ask()
        checked = asked.check(connection.gateway, connection.model)
        kept.write(attempt.generation, Wanted(request=asked))
        return checked
    if known.request is None:
        raise LedgerError(
            "This was made before, and what the function asked for is not kept that long.",
            billed=Billed.YES,
            hint="Clear the task, which calls the function again.",
        )
    attempt.log.info("Keeping to what the function returned to the first attempt.")
    return known.request.check(connection.gateway, connection.model)


def forget(attempt: Attempt) -> None:
    """Keep no prompt any longer: the picture has landed."""
    try:
        _kept(attempt).finish(attempt.generation, Wanted(request=None))
    except GeminiImageError as error:
        attempt.log.error("What the function returned is still under the root, though it landed: %s", error)


def _kept(attempt: Attempt) -> Kept[Wanted]:
    return Kept(Wanted, attempt.ledger.store, RETURNED, attempt.item, attempt.plan_marker)
