"""Parsers of arguments: of the operators, of the sensor, of a batch's rows, and of amounts of money.

A parser takes the name and the rendered value of an argument, and returns the parsed value or raises `BadRequestError`.
What must stay true: importing this module is fast, because every parse of a DAG file imports it.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

from airflow_provider_geminiimg.core.validation.texts import (
    MAX_DEPTH,
    as_text,
    given,
    normalized,
    refuse_lone_surrogates,
)
from airflow_provider_geminiimg.exceptions import BadRequestError

OnClear = Literal["reuse", "regenerate"]
OnMismatch = Literal["accept", "fail"]
OnUnknown = Literal["fail", "resubmit"]
ReuseScope = Literal["task", "dag"]

DEFAULT_TIMEOUT = 1800.0  # seconds; APIMaster runs a job for up to 20 minutes, and charges for it if it finishes
DEFAULT_WIDTH = 50  # images of a batch under way at once
MAX_SECONDS = 30 * 86400.0  # for waits; a much longer one is no valid date, which would fail only after paying
MAX_VARIANTS = 100  # per row
MAX_IMAGES = 10_000  # images and rows per batch; default of [geminiimg] max_batch_images
_LARGEST = 15  # digits of an amount before the point; with six decimals Python calculates exactly
_DIGITS = 30  # digits after the point; 1e-999999999 as text would exhaust the memory
_CHARACTERS = 100  # maximum length of a number as text
_FLAGS = {"true": True, "false": False}
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".json")
_WINDOWS_CHARACTERS = '<>:"|?*'  # not allowed in Windows file names; ":" would name a stream of another file
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]|con(in|out)\$) *(\.|$)", re.IGNORECASE)


def text(name: str, value: Any) -> str | None:
    """A text; ``None`` and empty mean unset.

    :raises BadRequestError: the value is not text.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRequestError(f"{name}{given(value)}: must be text, not {type(value).__name__}.")
    refuse_lone_surrogates(name, value)
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """One text or a sequence of them; ``None`` and empty mean none.

    :raises BadRequestError: a value is not text, or empty.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        one = text(name, value)
        return () if one is None else (one,)
    found = [text(f"{name}[{index}]", each) for index, each in enumerate(value)]
    if None in found:
        raise BadRequestError(f"{name}: one of the values is empty.")
    return tuple(filter(None, found))


def choice(name: str, value: Any, allowed: Any) -> Any:
    """One of the values of a ``Literal``.

    :raises BadRequestError: the value is another one.
    """
    if value not in get_args(allowed):
        words = " or ".join(map(repr, get_args(allowed)))
        raise BadRequestError(f"{name}{given(value)}: is not allowed. Allowed: {words}.")
    return value


def seconds(name: str, value: Any) -> float | None:
    """A number of seconds above 0 and up to `MAX_SECONDS`, or a ``timedelta``; ``None`` and empty mean unset.

    :raises BadRequestError: the value is anything else.
    """
    if value is None or value == "":
        return None
    number = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        number = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError, ArithmeticError):
        number = math.nan
    if not 0 < number <= MAX_SECONDS:
        allowed = f"Allowed: above 0, up to {MAX_SECONDS:.0f} (30 days)"
        raise BadRequestError(f"{name}{given(value)}: must be a number of seconds. {allowed}.")
    return number


def money(name: str, value: Any) -> Decimal | None:
    """An amount of money above 0; ``None`` and empty mean unset.

    :raises BadRequestError: the value is anything else.
    """
    if value is None or value == "":
        return None
    amount = to_decimal(value)
    if amount is None or amount <= 0:
        raise BadRequestError(f"{name}{given(value)}: must be a number above 0, in the connection's price currency.")
    return amount


def whole(name: str, value: Any, most: int) -> int | None:
    """A whole number from 1 to `most`; ``None`` and empty mean unset.

    :raises BadRequestError: the value is anything else.
    """
    if value is None or value == "":
        return None
    try:
        is_float = isinstance(value, float | Decimal) and value == value // 1  # pandas converts whole numbers to floats
        number = 0 if isinstance(value, bool) else int(value) if is_float else int(as_text(value) or "")
    except (ValueError, ArithmeticError):
        number = 0
    if not 1 <= number <= most:
        raise BadRequestError(f"{name}{given(value)}: must be a whole number from 1 to {most}.")
    return number


def require_one_job(job: Any, job_id: Any) -> None:
    """:raises BadRequestError: a sensor has neither `job` nor `job_id`, or both."""
    if (job is None) == (job_id in (None, "")):
        found = "neither (did the submit task run?)" if job is None else "both"
        raise BadRequestError(f"job, job_id: exactly one of them is required; given: {found}.")


def flag(name: str, value: Any) -> bool | None:
    """A boolean, or the text ``true`` or ``false`` in any case; ``None`` and empty mean unset.

    :raises BadRequestError: the value is anything else.
    """
    if value is None or value == "":
        return None
    found = value if isinstance(value, bool) else _FLAGS.get((as_text(value) or "").strip().lower())
    if found is None:
        raise BadRequestError(f"{name}{given(value)}: must be true or false.")
    return found


def is_literal(value: Any) -> bool:
    """Whether the value is a plain literal: not a template, and no object of Airflow."""
    parts, depth = [value], 0
    while parts:  # level by level, not recursively: a value that nests too deep is refused later, with its name
        if not all(map(_may_be_literal, parts)):
            return False
        depth += 1
        parts = [] if depth > MAX_DEPTH else [part for each in parts for part in _parts_of(each)]
    return True


def _may_be_literal(value: Any) -> bool:
    if isinstance(value, str):
        return not any(mark in value for mark in ("{{", "{%", "{#"))
    return value is None or type(value) is dict or isinstance(value, (int, float, list, tuple))


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return (part for pair in value.items() for part in pair)
    return value if isinstance(value, (list, tuple)) else ()


def to_decimal(value: object) -> Decimal | None:
    """A finite number or its text as an exact decimal; ``None`` if it is not a number or has too many digits."""
    written = (as_text(value) or "").strip()
    try:
        number = Decimal(written if len(written) <= _CHARACTERS else "NaN")
    except InvalidOperation:
        return None
    known = number.is_finite() and -_DIGITS < number.adjusted() < _LARGEST
    return number if known else None


def encoding(name: str, value: Any) -> str | None:
    """The name of a text encoding of Python; ``None`` and empty mean unset.

    :raises BadRequestError: Python has no text encoding with that name.
    """
    codec = (text(name, value) or "").strip()
    if not codec:
        return None
    try:
        "".encode(codec)  # refuses codecs that do not encode text, such as base64
    except (LookupError, ValueError):
        allowed = "Allowed: utf-8, utf-16, cp1252, and every other text encoding of Python"
        raise BadRequestError(f"{name}{given(value)}: is not an encoding. {allowed}.") from None
    return codec


def delimiter(name: str, value: Any) -> str | None:
    """A delimiter of CSV cells; ``None`` and empty mean unset.

    :raises BadRequestError: the value is not one character, or is a quote, line break, letter or digit.
    """
    char = text(name, value)
    if char is None:
        return None
    char = {"\\t": "\t", "tab": "\t"}.get(char, char)
    if len(char) != 1 or char in '\r\n"\0' or char.isalnum():
        raise BadRequestError(f'{name}{given(value)}: must be one character, such as ";", "," or "\\t".')
    return char


def stem(name: str, value: Any) -> str | None:
    """A file name without extension, in Unicode's composed form (NFC); ``None`` means unset.

    :raises BadRequestError: the name is empty, a path, hidden, too long, has an image's extension, or is not allowed
        on Windows.
    """
    if value is None:
        return None
    plain = (as_text(value) or "").strip()
    refuse_lone_surrogates(name, plain)
    plain = normalized("NFC", plain)  # otherwise two encodings of one letter would be two files
    wrong = (
        "empty or not text" if not plain
        else "a path" if any(char in plain for char in "/\\\0") or plain in (".", "..")
        else "hidden" if plain.startswith(".")
        else "with control characters" if not plain.isprintable()
        else "longer than 120 bytes" if len(plain.encode()) > 120
        else "with an extension, which comes from the image's bytes" if plain.lower().endswith(_IMAGE_SUFFIXES)
        else f"with a character that is not allowed on Windows ({_WINDOWS_CHARACTERS})"
        if any(char in _WINDOWS_CHARACTERS for char in plain)
        else "a device on Windows" if _WINDOWS_DEVICE.match(plain)
        else "with a trailing dot, which Windows removes" if plain.endswith(".")
        else None
    )  # fmt: skip
    if wrong:
        allowed = "Allowed: a plain name without folder and extension, up to 120 bytes"
        raise BadRequestError(f"{name}{given(value)}: is {wrong}. {allowed}.")
    return plain


def portable_stem(generated: str) -> str:
    """A generated file name, made valid on Windows."""
    name = re.sub(f"[{_WINDOWS_CHARACTERS}]", lambda found: f"%{ord(found[0]):02X}", generated)
    device = _WINDOWS_DEVICE.match(name)
    if device:
        end = device.end(1)
        name = f"{name[:end]}_{name[end:]}"
    return f"{name}_" if name.endswith(".") else name


def names_of(template: str) -> list[str]:
    """The column names in a file name template such as ``{sku}-{aspect_ratio}``.

    :raises BadRequestError: braces are not paired, or contain more than a name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadRequestError(f"file_name{given(template)}: {error}.") from None
    names = [name for _, name, _, _ in parts if name is not None]
    if any(not name.isidentifier() or spec or conversion for _, name, spec, conversion in parts if name is not None):
        raise BadRequestError(f"file_name{given(template)}: braces must contain the name of a column, such as {{sku}}.")
    return names
