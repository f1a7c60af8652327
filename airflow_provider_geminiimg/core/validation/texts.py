"""Values of users, before anything takes them apart or shows them.

What must stay true: nothing here raises anything but `BadRequestError`, whatever the value is; what a message shows of
a value is cut before it is searched for what must be hidden.
"""

from __future__ import annotations

from collections.abc import Sized
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.redaction.scrubbing import normalized as normalized
from airflow_provider_geminiimg.exceptions import BadRequestError, scrub

MAX_DEPTH = 20  # lists within lists; nothing that is meant nests deeper
_SHOWN = 4_000  # characters of a value that are searched for what must be hidden, of which a message shows some
_BITS = 1_100  # of a whole number; 1e308, the largest of the usual numbers, has 1,024


def given(value: Any) -> str:
    """The value for an error message: short, without a link's query, collections by their size alone."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        return f"=a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[:_SHOWN]
    if value is None or isinstance(value, (str, int, float)):
        return f"={scrub(repr(value), limit=100)}"
    size = f" of {len(value)}" if isinstance(value, Sized) else ""
    return f" (given: {type(value).__name__}{size})"


def shown(text: str, limit: int = 60) -> str:
    """A user's own name of something, for an error message."""
    return scrub(text[:_SHOWN], limit=limit)


def as_text(value: Any) -> str | None:
    """A text as it is, and a number as people write it.

    ``None`` for all else, and for a whole number that is larger than anything it could mean: Python refuses to write
    those of more than 4,300 digits.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    return None if isinstance(value, int) and value.bit_length() > _BITS else str(value)


def refuse_half_characters(name: str, text: str) -> None:
    """Refuse a lone surrogate: JSON and Python's texts may hold one, and no file, request or log can.

    :param name: what the message calls the text; made fit for one here, as most of millions of cells need none.
    :raises BadRequestError: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequestError(
            f"{shown(name, 200)}: holds half a character (a lone surrogate), which can't be written as UTF-8."
        ) from None
