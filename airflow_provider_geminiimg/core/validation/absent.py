"""Recognizes missing values: empty text, and the words that programs write for a missing value.

An empty cell of pandas becomes the text ``nan``, a missing XCom becomes ``None``, a missing JSON value ``null``. What
must stay true: none of these counts as a prompt or as a given argument.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sized
from decimal import Decimal
from types import MappingProxyType
from typing import Any

RENDERED_WORDS = frozenset(
    (
        *("nan", "NaN", "-nan", "None", "NaT", "<NA>", "null", "undefined", "Undefined", "NULL"),
        *("[]", "()", "set()", '""', "''", "[null]", "[None]", '[""]', "['']"),
    )
)
"""The words of Python, pandas, JSON and JavaScript for a missing value. Case-sensitive: a label may be "none"."""

_NO_PROMPTS = frozenset(word.casefold() for word in RENDERED_WORDS) | {
    *("na", "n/a", "<n/a>", "#n/a", "#n/a n/a", "#na", "#null!", "#ref!", "#value!", "#name?", "#div/0!", "#num!"),
    *("-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "inf", "-inf", "nil", "{}"),
}  # words of spreadsheets, pandas and NumPy for a missing value, casefolded
_DEPTH = 20  # nested lists; arguments with deeper lists are refused elsewhere
_SPACE = re.compile(r"\s+")


def is_blank(text: str) -> bool:
    """Whether a text has only white space, control and zero-width characters."""
    return all(unicodedata.category(char)[0] in "ZC" and unicodedata.category(char) != "Co" for char in text)


def is_no_prompt(text: str) -> bool:
    """Whether the complete text is a word for a missing value, ignoring case."""
    return text.strip().casefold() in _NO_PROMPTS


def is_absent(value: Any) -> bool:
    """Whether a rendered value is missing: ``None``, NaN, blank text, an empty list, or a word for a missing value."""
    if isinstance(value, str):
        return is_blank(value) or _SPACE.sub("", value) in RENDERED_WORDS
    # An empty mapping is not missing; the argument's parser decides about it.
    return not isinstance(value, Mapping) and (is_missing(value) or (isinstance(value, Sized) and len(value) == 0))


def is_missing(value: Any) -> bool:
    """Whether a value that is not text is missing: ``None``, NaN, or an empty list or mapping."""
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas, which may not be installed
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, (list, tuple, set, frozenset, dict)) and not value


class IncompleteText(str):
    """Text that contains a word for a missing value.

    :param text: the text.
    :param word: the word, such as ``None``.
    :param is_undefined: the missing value is a name that does not exist.
    """

    word: str
    is_undefined: bool

    def __new__(cls, text: str, word: str, *, is_undefined: bool = False) -> IncompleteText:
        made = super().__new__(cls, text)
        made.word = word
        made.is_undefined = is_undefined
        return made

    def __getitem__(self, part: Any) -> str:
        text = super().__getitem__(part)
        if self.word.casefold() not in text.casefold():
            return text
        return IncompleteText(text, self.word, is_undefined=self.is_undefined)


class UndefinedText(str):
    """A complete rendered value that is the text of a name that does not exist: probably a typo, and not a missing
    value that the DAG allows.
    """


def missing_after_rendering(
    name: str,
    written: Any,
    rendered: Any,
    incomplete: Mapping[int, IncompleteText] = MappingProxyType({}),
    depth: int = 0,
) -> Iterator[tuple[str, Any]]:
    """The parts of an argument that the DAG gives and that are missing after rendering.

    :param name: the name of the argument.
    :param written: the value in the DAG. A value that is empty in the DAG is intended and does not count.
    :param rendered: the rendered value.
    :param incomplete: texts in `rendered` with a missing value, by their ``id()``.
    :param depth: the current nesting depth.
    :returns: the path of each part, such as ``requests[0].prompt``, and its rendered value.
    """
    if _is_written_as_nothing(written):
        return
    if id(rendered) in incomplete:
        yield name, incomplete[id(rendered)]
        return
    if is_absent(rendered):
        yield name, rendered
        return
    for key, part, became in _parts(written, rendered) if depth < _DEPTH else ():
        if not (
            isinstance(part, str) and part == became
        ):  # an unchanged text in a list or row is no template, so it is intended
            yield from missing_after_rendering(f"{name}{key}", part, became, incomplete, depth + 1)


def _is_written_as_nothing(written: Any) -> bool:
    return is_blank(written) if isinstance(written, str) else written is None or written in ([], (), {})


def _parts(written: Any, rendered: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(written, dict) and isinstance(rendered, Mapping):
        yield from ((f".{key}", part, rendered.get(key)) for key, part in written.items())
    elif isinstance(written, (list, tuple)) and isinstance(rendered, (list, tuple)):
        both = enumerate(zip(written, rendered, strict=False))
        yield from ((f"[{index}]", part, became) for index, (part, became) in both)
