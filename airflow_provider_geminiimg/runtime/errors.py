"""How an outcome leaves a task."""

from __future__ import annotations

from typing import NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    IncompleteError,
    MismatchError,
    OutcomeUnknownError,
    without_traceback,
)


def raise_outcome(error: GeminiImageError) -> NoReturn:
    """Raise the outcome as Airflow needs it, and bare: its message says what happened.

    :raises AirflowFailException: from the outcome, where no retry may touch it.
    :raises GeminiImageError: the outcome itself, otherwise.
    """
    error = without_traceback(error)
    settled = isinstance(error, IncompleteError) and not error.retryable
    if settled or isinstance(error, BadRequestError | OutcomeUnknownError | MismatchError):
        raise AirflowFailException(str(error)) from error
    raise error
