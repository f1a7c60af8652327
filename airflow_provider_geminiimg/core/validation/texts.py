"""Untrusted values of users: as text, and in error messages.

What must stay true: for any value, nothing here raises any exception except `BadRequestError`; a value in a message is
shortened before secrets are removed from it, to bound the time.
"""

from __future__ import annotations

from collections.abc import Sized
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.redaction.scrubbing import normalized as normalized
from airflow_provider_geminiimg.exceptions import BadRequestError, scrub

MAX_DEPTH = 20  # nested lists
_SHOWN = 4_000  # characters of a value that are scrubbed; a message shows fewer
_BITS = 1_100  # of an integer; 1e308, the largest float, has 1,024


def given(value: Any) -> str:
    """The value for an error message: shortened, without a link's query; of a collection only its size."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        return f"=a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[:_SHOWN]
    if value is None or isinstance(value, (str, int, float)):
        return f"={scrub(repr(value), limit=100)}"
    size = f" of {len(value)}" if isinstance(value, Sized) else ""
    return f" (given: {type(value).__name__}{size})"


def shown(text: str, limit: int = 60) -> str:
    """A name that a user chose, shortened and scrubbed for an error message."""
    return scrub(text[:_SHOWN], limit=limit)


def as_text(value: Any) -> str | None:
    """A text unchanged, or a number as text.

    ``None`` for any other type, and for an integer of more than 1,100 bits, because Python refuses to convert an
    integer of more than 4,300 digits.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    return None if isinstance(value, int) and value.bit_length() > _BITS else str(value)


def refuse_lone_surrogates(name: str, text: str) -> None:
    """Refuse a text with a lone surrogate, which JSON and Python allow but UTF-8 cannot encode.

    :param name: the name of the text in the message; it is scrubbed here.
    :raises BadRequestError: the text contains a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequestError(
            f"{shown(name, 200)}: contains half a character (a lone surrogate), which UTF-8 cannot encode."
        ) from None
