"""Columns in braces in the operator's prompt, and the prompt with a row's cells in their place.

Invariants: text in braces is replaced and never evaluated. Braces around a text that looks like a column name and is
none are an error. The run time is linear in the length of prompt and names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_geminiimg.core.batch.columns import MAX_NAME, ColumnFinder, clean_name, listed
from airflow_provider_geminiimg.core.validation.request_values import MAX_PROMPT
from airflow_provider_geminiimg.core.validation.texts import shown
from airflow_provider_geminiimg.exceptions import BadRequestError

_HEAD_ENDS = re.compile(r"[.!:\[|]")
_ODD = re.compile(r"[\n\"',;|]")  # rare in column names, common in JSON and lists
_NAMELIKE = re.compile(r"[^\"{},;:|=\\<>]*[^\W_][^\"{},;:|=\\<>]*")
_NAMELIKE_CHARACTERS = 100
_MAX_BRACED = 20  # columns with braces in their names
_NEAR_CHARACTERS = 200  # longest name that is compared by similarity
_LOOKS = 20_000  # cheap comparisons (length, letters) per prompt
_COMPARISONS = 100  # full comparisons per prompt
_CLOSE = 0.8  # similarity of a misspelled name and a column


def columns_in(text: Any, names: Sequence[str], has_labels: bool) -> dict[str, str]:
    """The columns that a prompt names in braces, by the text in braces.

    A column is always found by its exact name. Braces around other text that can't be a name (JSON, a list) stay in the
    prompt; if the rows have no labels, all other braces stay too.

    :param names: all column names of the rows.
    :param has_labels: whether any column is a label.
    :raises BadRequestError: the text in braces looks like a column name and is none.
    """
    found: dict[str, str] = {}
    if not isinstance(text, str):
        return found
    text = text[: MAX_PROMPT + 1]  # a longer one is refused
    exact = {clean_name(name).casefold(): name for name in names}
    near = _Neighbours(exact)
    every, odd = ColumnFinder(names), ColumnFinder([name for name in names if _ODD.search(name)])
    for inner in _with_braces_in(text):
        wanted = clean_name(inner).casefold()
        if wanted in exact:
            found[inner] = exact[wanted]
        elif has_labels and (_looks_like_a_name(inner, braces=True) or near.has(wanted)):
            raise _no_such_column(inner, names)
    for inner in dict.fromkeys(_braces([*names, *found]).findall(text)):
        wanted = clean_name(inner).casefold()
        column = exact.get(wanted) if wanted else None
        head = _HEAD_ENDS.split(inner, maxsplit=1)[0].strip()
        if column is None and wanted:
            column = (odd if _ODD.search(inner) else every).find(inner.strip())
        if column is not None:
            found[inner] = column
        elif head and (odd if _ODD.search(head) else every).find(head) is not None:
            raise BadRequestError(f"prompt: {{{shown(inner)}}}: braces take only a column name.")
        elif has_labels and (_looks_like_a_name(inner) or near.has(wanted)):
            raise _no_such_column(inner, names)
    return found


def _no_such_column(inner: str, names: Sequence[str]) -> BadRequestError:
    return BadRequestError(
        f"prompt: {{{shown(inner)}}}: there is no such column. Found: {listed(names)}.",
        hint="For braces that belong to the text, use a prompt column in the rows: nothing is replaced there.",
    )


def _with_braces_in(text: str) -> Iterator[str]:
    """Texts in braces that contain braces, outermost first; without doubled braces and texts over `MAX_NAME`."""
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
    """The prompt with cells in place of braces. The text of a cell is not changed.

    :param values: cells by the text in braces.
    :raises BadRequestError: the result is longer than `MAX_PROMPT`.
    """
    parts, done, length = [], 0, 0
    for found in _braces(values).finditer(text):
        parts += [text[done : found.start()], values.get(found[1], found[0])]
        done = found.end()
        length += len(parts[-1])
        if length > MAX_PROMPT:
            raise BadRequestError(f"prompt: it has more than {MAX_PROMPT} characters with the cells of this row.")
    return "".join([*parts, text[done:]])


def _braces(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for braces and their text, which has no braces except in a column name; doubled braces are text.

    :raises BadRequestError: too many column names contain braces, or one of them is too long.
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
    """Finds misspelled column names. The number of comparisons per prompt is limited, because comparing two names takes
    quadratic time.

    :param names: the column names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if len(name) <= _NEAR_CHARACTERS]
        self._looks, self._comparisons = _LOOKS, _COMPARISONS

    def has(self, wanted: str) -> bool:
        """Whether `wanted` is similar to a column name."""
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
