"""An Airflow retry policy that retries only errors that a retry can help.

Invariants: the decision uses only fields of the error (`retryable`, `billed`, `retry_after`), so it covers new error
classes too. The ledger makes retries safe, with or without this policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError:
    raise ImportError(
        "IMAGE_RETRY_POLICY needs Airflow 3.3 or newer. Leave it out: plain `retries` never pay twice either."
    ) from None

from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError

if TYPE_CHECKING:
    from airflow.sdk import Context

DELAYS: Mapping[Billed, timedelta] = {
    # The job or its image is at the gateway, its link expires, and a retry costs nothing.
    Billed.YES: timedelta(seconds=30),
    # The attempt has already resent the request for a short time, so the gateway needs longer.
    Billed.NO: timedelta(minutes=3),
    Billed.UNKNOWN: timedelta(minutes=3),
}
LONGEST = timedelta(hours=1)  # upper limit for the Retry-After of a gateway


class ImageRetryPolicy(RetryPolicy):
    """Retries an error of this package if a retry can help, after the gateway's Retry-After or the delay in `DELAYS`.

    Other errors of this package fail the task at once, regardless of its `retries`. For all other exceptions the
    `retries` and `retry_delay` of the task apply.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide about a retry after a failure; called by Airflow."""
        if not isinstance(exception, GeminiImageError):
            return RetryDecision.default()
        if not exception.retryable:
            return RetryDecision.fail(f"{exception.kind}: no retry can help")
        return RetryDecision.retry(delay_after(exception), f"{exception.kind}: a retry can help")


def delay_after(error: GeminiImageError) -> timedelta:
    """The wait before a retry."""
    if error.retry_after is None:
        return DELAYS[error.billed]
    return timedelta(seconds=min(error.retry_after, LONGEST.total_seconds()))


IMAGE_RETRY_POLICY = ImageRetryPolicy()
