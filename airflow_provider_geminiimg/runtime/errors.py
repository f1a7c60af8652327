"""How an error leaves a task: whether Airflow may retry it."""

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
    """Raise the error for Airflow, without stack frames.

    :raises AirflowFailException: from the error, if Airflow must not retry.
    :raises GeminiImageError: the error itself, otherwise.
    """
    error = without_traceback(error)
    is_final = isinstance(error, IncompleteError) and not error.retryable
    if is_final or isinstance(error, BadRequestError | OutcomeUnknownError | MismatchError):
        raise AirflowFailException(str(error)) from error
    raise error
