"""Columns that the operator's prompt names in braces, and the prompt with a row's cells in their place.

What must stay true: text in braces is replaced and never evaluated; braces around what looks like a column's name, and
is none, are an error; the time that it takes grows with the length of prompt and names, and not with their product.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_geminiimg.core.batch.columns import MAX_NAME, ColumnFinder, listed, tidy
from airflow_provider_geminiimg.core.validation.request_values import MAX_PROMPT
from airflow_provider_geminiimg.core.validation.texts import shown
from airflow_provider_geminiimg.exceptions import BadRequestError

_HEAD_ENDS = re.compile(r"[.!:\[|]")
_ODD = re.compile(r"[\n\"',;|]")  # in few columns' names, and in most of what JSON and lists are made of
_NAMELIKE = re.compile(r"[^\"{},;:|=\\<>]*[^\W_][^\"{},;:|=\\<>]*")
_NAMELIKE_CHARACTERS = 100
_MAX_BRACED = 20  # columns with braces in their names
_NEAR_CHARACTERS = 200  # of a name that is compared letter by letter
_LOOKS = 20_000  # at the length and letters of two names, for one prompt
_COMPARISONS = 100  # letter by letter
_CLOSE = 0.8  # how alike a misspelt name and a column are


def columns_in(text: Any, names: Sequence[str], has_labels: bool) -> dict[str, str]:
    """The columns that a prompt names in braces, by what stands between the braces.

    A column is found by its exact name whatever that holds. Braces around what can't be a name (JSON, a list) stay as
    they are; where no row has a label, all others too.

    :param names: the columns that the rows have.
    :param has_labels: whether one of them is no field.
    :raises BadRequestError: braces around what looks like a name, and is none of them.
    """
    found: dict[str, str] = {}
    if not isinstance(text, str):
        return found
    text = text[: MAX_PROMPT + 1]  # a longer one is refused
    exact = {tidy(name).casefold(): name for name in names}
    near = _Neighbours(exact)
    every, odd = ColumnFinder(names), ColumnFinder([name for name in names if _ODD.search(name)])
    for inner in _with_braces_in(text):
        wanted = tidy(inner).casefold()
        if wanted in exact:
            found[inner] = exact[wanted]
        elif has_labels and (_looks_like_a_name(inner, braces=True) or near.has(wanted)):
            raise _no_such_column(inner, names)
    for inner in dict.fromkeys(_braces([*names, *found]).findall(text)):
        wanted = tidy(inner).casefold()
        column = exact.get(wanted) if wanted else None
        head = _HEAD_ENDS.split(inner, maxsplit=1)[0].strip()
        if column is None and wanted:
            column = (odd if _ODD.search(inner) else every).find(inner.strip())
        if column is not None:
            found[inner] = column
        elif head and (odd if _ODD.search(head) else every).find(head) is not None:
            raise BadRequestError(f"prompt: {{{shown(inner)}}}: braces take a column's name alone.")
        elif has_labels and (_looks_like_a_name(inner) or near.has(wanted)):
            raise _no_such_column(inner, names)
    return found


def _no_such_column(inner: str, names: Sequence[str]) -> BadRequestError:
    return BadRequestError(
        f"prompt: {{{shown(inner)}}}: there is no such column. Found: {listed(names)}.",
        hint="Braces that belong to the text go into the rows' own prompt column, where nothing is replaced.",
    )


def _with_braces_in(text: str) -> Iterator[str]:
    """What stands between braces and has braces itself, outermost first; doubled braces hold no column, and no column's
    name is longer than `MAX_NAME`."""
    opened: list[int] = []
    pairs: dict[int, int] = {}
    for at, char in enumerate(text):
        if char == "{":
            opened.append(at)
        elif char == "}" and opened:
            pairs[opened.pop()] = at
    for start, end in sorted(pairs.items()):
        doubled = pairs.get(start + 1) == end - 1 or pairs.get(start - 1) == end + 1
        if not doubled and end - start <= MAX_NAME and "{" in text[start + 1 : end]:
            yield text[start + 1 : end]


def filled(text: str, values: Mapping[str, str]) -> str:
    """The prompt with its columns' cells, by what stands between the braces. What a cell holds stays as it is.

    :raises BadRequestError: it would be longer than any prompt.
    """
    parts, done, length = [], 0, 0
    for found in _braces(values).finditer(text):
        parts += [text[done : found.start()], values.get(found[1], found[0])]
        done = found.end()
        length += len(parts[-1])
        if length > MAX_PROMPT:
            raise BadRequestError(f"prompt: with the row's cells it has more than {MAX_PROMPT} characters.")
    return "".join([*parts, text[done:]])


def _braces(names: Iterable[str]) -> re.Pattern[str]:
    """Braces and what they hold, which has none itself but in a column's name; doubled ones are text.

    :raises BadRequestError: more such names than can be looked for at each brace.
    """
    braced = sorted({name for name in names if "{" in name or "}" in name}, key=len, reverse=True)
    if len(braced) > _MAX_BRACED or any(len(name) > _NEAR_CHARACTERS for name in braced):
        raise BadRequestError(
            f"prompt: too many or too long columns have braces in their names: {listed(braced)}.",
            hint="Rename them, or put whole prompts into a prompt column.",
        )
    held = "|".join([*map(re.escape, braced), "[^{}]*"])
    return re.compile(rf"(?:(?<!\{{)|(?=\{{(?:{held})\}}(?!\}})))\{{({held})\}}")


def _shown(inner: str) -> str:
    return shown(inner)


def _looks_like_a_name(inner: str, *, braces: bool = False) -> bool:
    text = re.sub(r"[{}]", "", inner).strip() if braces else inner.strip()
    quoted = text[:1] == "'" or "\n" in inner
    return 0 < len(text) <= _NAMELIKE_CHARACTERS and not quoted and _NAMELIKE.fullmatch(text) is not None


class _Neighbours:
    """Tells what is a column's name but for a few characters. A prompt of thousands of braces gets no more looks than
    one of a few: to compare two names takes the square of their length, and more.

    :param names: of the columns.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if len(name) <= _NEAR_CHARACTERS]
        self._looks, self._comparisons = _LOOKS, _COMPARISONS

    def has(self, wanted: str) -> bool:
        """Whether this, which may be JSON, is nearly one of them."""
        matcher = difflib.SequenceMatcher()
        matcher.set_seq2(wanted[: 2 * _NEAR_CHARACTERS])
        for name in self._names:
            if self._looks and self._comparisons and 0.6 * len(name) <= len(wanted) <= 1.7 * len(name):
                self._looks -= 1
                matcher.set_seq1(name)
                if matcher.real_quick_ratio() >= _CLOSE and matcher.quick_ratio() >= _CLOSE:
                    self._comparisons -= 1
                    if matcher.ratio() >= _CLOSE:
                        return True
        return False
