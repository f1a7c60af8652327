"""The file name of each image, from the template ``file_name`` and its row.

Invariants: a name is the same on every file system. A template with a column that a row lacks is an error that names
the row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Set

from airflow_provider_geminiimg.core.batch.cells import BLANK
from airflow_provider_geminiimg.core.batch.columns import find_column, listed
from airflow_provider_geminiimg.core.validation.arguments import names_of
from airflow_provider_geminiimg.core.validation.texts import given, normalized, shown
from airflow_provider_geminiimg.exceptions import BadRequestError

MAX_IN_NAME = 1_000  # characters of one label; the whole name may have 120 bytes
_NUMBERED = re.compile(r"(.+)-([1-9][0-9]{0,8})", re.DOTALL)


def file_name(template: str, place: str, values: Mapping[str, str | None]) -> str:
    """The template with values in place of braces, each converted by `name_part`.

    :param place: the place of the row, for a message.
    :param values: the values by the name in braces.
    :raises BadRequestError: a value is missing, or too long.
    """
    parts: dict[str, str] = {}
    for name in names_of(template):
        column = find_column(name, values)
        value = values[column] if column is not None else None
        if value is None or value == "":
            known = listed(sorted(name for name, value in values.items() if value not in BLANK))
            raise BadRequestError(
                f"file_name{given(template)}: {place} has no {name}. It has: {known}.",
                hint="" if column else "For a column Product Name write {Product_Name}.",
            )
        if len(value) > MAX_IN_NAME:
            raise BadRequestError(f"file_name{given(template)}: {shown(name)} has more than {MAX_IN_NAME} characters.")
        parts[name] = name_part(value)
        if not parts[name]:
            raise BadRequestError(f"file_name{given(template)}: {name}{given(value)} has no letter or digit.")
    return template.format_map(parts).rstrip(".")  # a value's; Windows drops them, and the template has none there


def numbers_after(names: Set[str]) -> dict[str, tuple[int, ...]]:
    """The numbers that must not be added to names, because the result is another of the names.

    :param names: from `str.casefold`, because some file systems ignore case.
    :returns: for ``hero`` and ``hero-2``: 2 for ``hero``.
    """
    found: dict[str, set[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is not None and match[1] in names:
            found.setdefault(match[1], set()).add(int(match[2]))
    return {name: tuple(sorted(numbers)) for name, numbers in found.items()}


def name_part(text: str) -> str:
    """What of a text goes into a file's name: letters and digits of any script with their marks, and ``_.~+-``.

    The result is in Unicode's composed form, because file systems differ on two spellings of one letter. Invisible
    joiners are removed; any other character becomes ``-``.
    """
    found: list[str] = []
    for char in normalized("NFC", text):
        is_mark = unicodedata.category(char)[0] == "M" and bool(found) and found[-1] != "-"
        if char.isalnum() or char in "_.~+" or is_mark:
            found.append(char)
        elif char not in "\u200c\u200d" and found[-1:] != ["-"]:
            found.append("-")
    return normalized("NFC", "".join(found)).strip("-")
