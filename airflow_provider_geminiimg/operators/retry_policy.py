"""Airflow's retries by what went wrong: what a retry can help is retried when it makes sense, all else fails at once.

What must stay true: the decision is the outcome's own word (`retryable`, `billed`, `retry_after`), so an outcome that
is added to the tree has one; nothing here makes a retry safe, the ledger does, with or without this policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError:
    raise ImportError(
        "IMAGE_RETRY_POLICY needs Airflow 3.3 or newer. Leave it out here: plain `retries` pay for nothing twice."
    ) from None

from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError

if TYPE_CHECKING:
    from airflow.sdk import Context

DELAYS: Mapping[Billed, timedelta] = {
    # The job or its image waits at the gateway, its link has an end, and asking again costs nothing.
    Billed.YES: timedelta(seconds=30),
    # Whoever turned the request away needs time, and the attempt has waited a little already.
    Billed.NO: timedelta(minutes=3),
    Billed.UNKNOWN: timedelta(minutes=3),
}
LONGEST = timedelta(hours=1)  # that a gateway's Retry-After is obeyed


class ImageRetryPolicy(RetryPolicy):
    """Retries an outcome if it says that a retry can help: as late as the gateway told, else as `DELAYS` says.

    Every other outcome fails the task at once, whatever its `retries`; exceptions that are no outcome go by the task's
    own `retries` and `retry_delay`.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """What Airflow asks after a failure."""
        if not isinstance(exception, GeminiImageError):
            return RetryDecision.default()
        if not exception.retryable:
            return RetryDecision.fail(f"{exception.kind}: no retry can help")
        return RetryDecision.retry(delay_after(exception), f"{exception.kind}: a retry can help")


def delay_after(error: GeminiImageError) -> timedelta:
    """How long to wait before a retry."""
    if error.retry_after is None:
        return DELAYS[error.billed]
    return timedelta(seconds=min(error.retry_after, LONGEST.total_seconds()))


IMAGE_RETRY_POLICY = ImageRetryPolicy()
