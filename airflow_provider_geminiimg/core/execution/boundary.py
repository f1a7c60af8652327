"""Closed boundaries: whatever is raised inside one goes on as an outcome.

What URL parsers, idna, TLS, resolvers and decoders raise about hostile input can't be listed, so nothing here lists it.
What must stay true: an exception crosses a boundary as a value, so that nothing raised later is chained to it; of one
that is no outcome, only its type and a place in this package go on, because its text and its frames may hold a prompt,
a signed link or a key.
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
    """What `work` brings, or why it brings nothing, without frames.

    :param otherwise: makes the outcome of an exception that is none; default: `unexpected`.
    """
    try:
        return await work
    except Exception as error:
        return as_outcome(error, otherwise)


def as_outcome(error: Exception, otherwise: Callable[[Exception], GeminiImageError] | None = None) -> GeminiImageError:
    """`error` as an outcome without frames: itself, or what `otherwise` makes of it; default: `unexpected`."""
    return without_traceback(error if isinstance(error, GeminiImageError) else (otherwise or unexpected)(error))


def unexpected(error: Exception) -> UnexpectedError:
    """What is to be said of an exception that nobody foresaw."""
    return UnexpectedError(f"It broke off ({error_and_place(error)}).")


def error_and_place(error: BaseException) -> str:
    """The type of an exception, and the line of this package that was at work; never its text."""
    name, place = type(error).__name__, None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == _PACKAGE:
            place = f"{module.removeprefix(f'{_PACKAGE}.')}:{line}"
    return name if place is None else f"{name} at {place}"
