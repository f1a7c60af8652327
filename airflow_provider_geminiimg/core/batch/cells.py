"""The values of the cells of a batch's rows, also after a spreadsheet or a data frame converted them.

Invariants: a converted value becomes the original value again if that is certain (``16:9`` as a time, ``0,7``, ``2.0``,
``WAHR``). An error value of a spreadsheet, or its text for an empty cell, is refused before money is spent.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.validation.request_values import WHOLE_VARIANT
from airflow_provider_geminiimg.core.validation.texts import as_text, given, refuse_lone_surrogates, shown
from airflow_provider_geminiimg.exceptions import BadRequestError

BLANK = (None, "")
_EMPTY_TEXTS = frozenset(("nan", "NaN", "<NA>", "NaT", "None", "null", "NULL"))
_SHEET_ERROR = re.compile(r"#(?:N/A|NV|[^\W\d_]{2,12}(?:/0)?[!?])|Err:\d{3}|###+")
_RATIO = re.compile(r"\s*0?(\d{1,2}):0?(\d{1,2})(?::00)?(?:\s*([AP])\.?M\.?)?\s*", re.IGNORECASE)
_WHOLE = re.compile(r"\s*(\d+)[.,]0{1,2}\s*")
_DECIMAL_COMMA = re.compile(r"\s*(?:\d+,\d{1,2}|0,\d+)\s*")
_TRUE = frozenset(("wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar", "prawda", "истина", "yes", "ja", "1"))
_FALSE = frozenset(("falsch", "faux", "falso", "onwaar", "fałsz", "ложь", "no", "nein", "0"))
_NUMBERS = frozenset(("temperature", "top_p"))
_FLAGS = frozenset(("google_search", "google_image_search"))


def cell(value: Any) -> Any:
    """The value of a cell as a plain Python object; ``None`` for the empty values of all libraries (NaN, NA, NaT)."""
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas, which this package does not import
        return None
    if value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str) and not value.strip():
        return None
    return value


def label(name: str, value: Any) -> str:
    """The text of a label. ``2.0`` becomes ``2``, because pandas turns whole numbers into floats.

    :raises BadRequestError: the value is not text, a number or a date, or has an incomplete Unicode character.
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dt.date | dt.time):
        return value.isoformat().removesuffix("T00:00:00")  # pandas turns dates into timestamps
    text = str(value) if isinstance(value, bool) else as_text(value)
    if text is None:
        raise BadRequestError(f"{shown(name)}{given(value)}: takes text or a number.")
    refuse_lone_surrogates(name, text)
    return text


def field_value(name: str, value: Any) -> Any:
    """The value of a request field, without the conversions of spreadsheets: ``16:9`` as a time, ``0,7``, ``WAHR``.

    :raises BadRequestError: the cell holds an error value of a spreadsheet, or the text of an empty cell.
    """
    if isinstance(value, dt.time) and name == "aspect_ratio":
        value = value.isoformat()
    if name == "variant":
        return variant_spellings(value)[0]
    if isinstance(value, Decimal):
        value = str(value)
    if not isinstance(value, str):
        return value
    plain = value.strip()
    refuse_missing(name, plain)
    if name == "aspect_ratio" and (found := _RATIO.fullmatch(plain)):
        width = int(found[1]) + (12 if (found[3] or "").upper() == "P" and int(found[1]) < 12 else 0)
        return f"{width}:{int(found[2])}"
    if name in ("resolution", "n") and (found := _WHOLE.fullmatch(plain)):
        return found[1]
    if name in _NUMBERS and _DECIMAL_COMMA.fullmatch(plain):
        return plain.replace(",", ".")
    if name in _FLAGS:
        word = plain.casefold()
        return True if word in _TRUE else False if word in _FALSE else value
    return value


def variant_spellings(value: Any) -> tuple[Any, ...]:
    """A variant, followed by the other spellings that earlier versions of this package used for it.

    ``2.0`` becomes ``2``, because pandas turns whole numbers into floats, also in the files that it writes.

    :raises BadRequestError: the cell holds an error value of a spreadsheet, or the text of an empty cell.
    """
    written = as_text(value)
    if written is None:
        return (value,)
    text = written.strip()
    refuse_missing("variant", text)
    found = WHOLE_VARIANT.fullmatch(text)
    if found is None:
        return (text if isinstance(value, Decimal) else value,)
    whole = found[1]
    return tuple(dict.fromkeys([whole, text, f"{whole}.0"]))


def refuse_missing(name: str, value: str) -> None:
    """:raises BadRequestError: the text is an error value of a spreadsheet, or its text for an empty cell."""
    if value.strip() in _EMPTY_TEXTS:
        raise BadRequestError(
            f"{shown(name)}{given(value)}: is the text that some programs write for an empty cell.",
            hint="Leave the cell empty.",
        )
    if _SHEET_ERROR.fullmatch(value.strip()):
        raise BadRequestError(
            f"{shown(name)}{given(value)}: is an error value of a spreadsheet.", hint="Correct the cell."
        )
