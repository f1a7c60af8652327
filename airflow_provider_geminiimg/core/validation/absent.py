"""What stands for no value at all: empty text, and the words that are written where a value is missing.

An empty cell of pandas becomes the text ``nan``, an XCom that is not there becomes ``None``, JSON's becomes ``null``.
What must stay true: none of these is a prompt, and none of them passes for an argument that somebody wrote.
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
"""What Python, pandas, JSON and JavaScript write for no value. In this spelling alone: a label may be "none"."""

_NO_PROMPTS = frozenset(word.casefold() for word in RENDERED_WORDS) | {
    *("na", "n/a", "<n/a>", "#n/a", "#n/a n/a", "#na", "#null!", "#ref!", "#value!", "#name?", "#div/0!", "#num!"),
    *("-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "inf", "-inf", "nil", "{}"),
}  # what spreadsheets, pandas and NumPy write where there is nothing to see, casefolded
_DEPTH = 20  # lists within lists; what takes lists refuses deeper ones
_SPACE = re.compile(r"\s+")


def is_blank(text: str) -> bool:
    """Whether a text has nothing in it that anybody could see: white space, control and zero-width characters."""
    return all(unicodedata.category(char)[0] in "ZC" and unicodedata.category(char) != "Co" for char in text)


def is_no_prompt(text: str) -> bool:
    """Whether the whole text is a word for a missing value, in any case."""
    return text.strip().casefold() in _NO_PROMPTS


def is_absent(value: Any) -> bool:
    """Whether a rendered value is none: ``None``, NaN, nothing to see, an empty list, or a word for it."""
    if isinstance(value, str):
        return is_blank(value) or _SPACE.sub("", value) in RENDERED_WORDS
    # An empty mapping is left to what reads it.
    return not isinstance(value, Mapping) and (is_missing(value) or (isinstance(value, Sized) and len(value) == 0))


def is_missing(value: Any) -> bool:
    """Whether a value that is no text is none: ``None``, NaN, an empty list or mapping. As text it would be a word."""
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas, which may not be there
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, (list, tuple, set, frozenset, dict)) and not value


class IncompleteText(str):
    """Text in which a missing value is printed as a word.

    :param text: the text.
    :param word: what stands for the value.
    """

    word: str

    def __new__(cls, text: str, word: str) -> IncompleteText:
        made = super().__new__(cls, text)
        made.word = word
        return made

    def __getitem__(self, part: Any) -> str:
        text = super().__getitem__(part)
        return IncompleteText(text, self.word) if self.word.casefold() in text.casefold() else text


def came_to_nothing(
    name: str,
    written: Any,
    rendered: Any,
    incomplete: Mapping[int, IncompleteText] = MappingProxyType({}),
    depth: int = 0,
) -> Iterator[tuple[str, Any]]:
    """What is written, and is nothing once it is rendered: the place of each, and what it came to.

    :param name: the argument.
    :param written: as it stands in the DAG. What is written as nothing is wanted so.
    :param rendered: what became of it.
    :param incomplete: texts in it, by their identity, in which something is missing.
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
        if not (isinstance(part, str) and part == became):  # a word in a list or a row that is no template is meant so
            yield from came_to_nothing(f"{name}{key}", part, became, incomplete, depth + 1)


def _is_written_as_nothing(written: Any) -> bool:
    return is_blank(written) if isinstance(written, str) else written is None or written in ([], (), {})


def _parts(written: Any, rendered: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(written, dict) and isinstance(rendered, Mapping):
        yield from ((f".{key}", part, rendered.get(key)) for key, part in written.items())
    elif isinstance(written, (list, tuple)) and isinstance(rendered, (list, tuple)):
        both = enumerate(zip(written, rendered, strict=False))
        yield from ((f"[{index}]", part, became) for index, (part, became) in both)
