"""Error boundaries: any exception inside becomes an error of this package, returned as a value.

The exceptions of URL parsers, idna, TLS, resolvers and decoders for hostile input can't be listed, so any `Exception`
is converted. Invariants: the error is returned and not raised, so that no later exception is chained to it. Of a
foreign exception only the type and the line in this package are kept, because its text and stack frames may hold a
prompt, a signed link or a key.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar

from airflow_provider_geminiimg.exceptions import GeminiImageError, UnexpectedError, without_traceback

T = TypeVar("T")

_PACKAGE = __name__.partition(".")[0]


async def closed(
    work: Awaitable[T], otherwise: Callable[[Exception], GeminiImageError] | None = None
) -> T | GeminiImageError:
    """The result of `work`, or its error without stack frames.

    :param otherwise: converts a foreign exception. Default: `unexpected`.
    """
    try:
        return await work
    except Exception as error:
        return as_outcome(error, otherwise)


def as_outcome(error: Exception, otherwise: Callable[[Exception], GeminiImageError] | None = None) -> GeminiImageError:
    """`error` as an error of this package without stack frames; `otherwise` converts a foreign one (`unexpected`)."""
    return without_traceback(error if isinstance(error, GeminiImageError) else (otherwise or unexpected)(error))


def unexpected(error: Exception) -> UnexpectedError:
    """The error for a foreign exception."""
    return UnexpectedError(f"An unexpected exception was raised ({error_and_place(error)}).")


def error_and_place(error: BaseException) -> str:
    """The type of an exception and the last line of this package in its traceback; never its text."""
    name, place = type(error).__name__, None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == _PACKAGE:
            place = f"{module.removeprefix(f'{_PACKAGE}.')}:{line}"
    return name if place is None else f"{name} at {place}"
