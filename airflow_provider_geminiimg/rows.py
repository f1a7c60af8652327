"""What a batch is asked for: rows as people, files and tasks write them, turned into checked wishes.

What must stay true: everything that can be wrong with a row is found before anything is paid for, and names the row; a
column is a field, a label, or an error, and never dropped; one wish is one picture.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.arguments import MAX_VARIANTS, names_of, whole
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.request import CheckedRequest, ImageRequest, given
from airflow_provider_geminiimg.storage import Files, locate

MAX_FILE_BYTES = 64 * 1024 * 1024  # of a file of rows
MAX_WRONG_ROWS = 5  # that one message names
_UNSAFE = re.compile(r"[^A-Za-z0-9_.~+-]+")
_BLANK = (None, "")


@dataclass(frozen=True, slots=True)
class Wish:
    """One picture that is wanted.

    :param row: number of the row, from 0.
    :param request: what to make, checked.
    :param labels: the row's columns that are no field of a request, and its place; file names are made of them.
    """

    row: int
    request: CheckedRequest
    labels: Mapping[str, str]


def read_rows(value: Any, files: Files) -> list[Mapping[str, Any]]:
    """The rows of `requests`, whatever they came as.

    :param value: a list of prompts and of mappings, JSON text of one, or the URI of a ``.csv``, ``.jsonl`` or ``.json``
        file.
    :raises BadRequestError: it is none of these, or a row is neither a prompt nor a mapping.
    :raises StorageError: the file could not be read.
    """
    if isinstance(value, str):
        value = _from_text(value.strip(), files)
    if isinstance(value, (Mapping, bytes)) or not isinstance(value, Iterable):
        raise _no_list(value)
    rows = [{"prompt": row} if isinstance(row, str) else row for row in value]
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise BadRequestError(f"requests[{number}] (given: {type(row).__name__}): takes a prompt or a mapping.")
    if not rows:
        raise BadRequestError("requests: is empty.", hint="Give at least one prompt, or skip the task.")
    return rows


def wishes(
    rows: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    variants: int,
    *,
    gateway: str,
    default_model: str | None,
) -> list[Wish]:
    """All rows as wishes, in order; a row with ``n`` gives that many.

    :param shared: what holds for every row that says nothing else, by field.
    :param variants: pictures a row, where it does not say ``n``.
    :raises BadRequestError: rows are wrong; the message names the first few.
    """
    found: list[Wish] = []
    wrong: list[str] = []
    for number, row in enumerate(rows):
        try:
            found += _of_row(number, row, shared, variants, gateway, default_model)
        except BadRequestError as error:
            wrong.append(f"row {number}: {' '.join(filter(None, (error.message, error.hint)))}")
    if wrong:
        more = f" and {len(wrong) - MAX_WRONG_ROWS} more" if len(wrong) > MAX_WRONG_ROWS else ""
        raise BadRequestError(
            f"{len(wrong)} of {len(rows)} requests can't be made: {' '.join(wrong[:MAX_WRONG_ROWS])}{more}",
            hint="Rows are counted from 0. Correct them, then clear the task.",
        )
    return found


def file_name(template: str, wish: Wish) -> str:
    """The wish's file name: what the braces stand for, other characters than letters, digits and ``_.~+-`` as ``-``.

    :raises BadRequestError: the wish has nothing of a name in it.
    """
    request = wish.request
    values = {**wish.labels, "model": request.model, "variant": request.variant}
    values |= {"resolution": request.resolution, "aspect_ratio": request.aspect_ratio}
    missing = [name for name in names_of(template) if values.get(name) in _BLANK]
    if missing:
        known = ", ".join(sorted(name for name, value in values.items() if value not in _BLANK))
        raise BadRequestError(f"file_name{given(template)}: row {wish.row} has no {missing[0]}. It has: {known}.")
    return template.format_map({name: _UNSAFE.sub("-", str(value)).strip("-") for name, value in values.items()})


def _from_text(text: str, files: Files) -> Any:
    if text.startswith("["):
        return _json("requests", text)
    kind = text.rpartition(".")[2].lower()
    if kind not in _READERS or not ("/" in text or "://" in text):
        raise _no_list(text)
    files.check(text, "requests")
    data = files.read(text, max_bytes=MAX_FILE_BYTES)
    shown = locate(text, "requests").shown
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequestError(f"requests: {shown} is not UTF-8.") from None
    return _READERS[kind](shown, decoded)


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequestError(f"{where}: is not JSON.") from None


def _json_lines(where: str, text: str) -> list[Any]:
    lines = enumerate(text.splitlines(), 1)
    return [_json(f"{where}, line {number}", line) for number, line in lines if line.strip()]


def _csv(where: str, text: str) -> list[dict[str, Any]]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise BadRequestError(f"{where}: is not CSV ({error}).") from None
    for number, row in enumerate(rows):
        if None in row:
            raise BadRequestError(f"{where}: row {number} has more cells than the header has names.")
    return rows


_READERS = {"csv": _csv, "jsonl": _json_lines, "json": _json}


def _no_list(value: Any) -> BadRequestError:
    return BadRequestError(
        f"requests{given(value)}: takes a list of prompts or of mappings, or the URI of a file that holds one.",
        hint="For one picture write [prompt]. Files end with .csv, .jsonl or .json.",
    )


def _of_row(
    number: int,
    row: Mapping[str, Any],
    shared: Mapping[str, Any],
    variants: int,
    gateway: str,
    default_model: str | None,
) -> Iterator[Wish]:
    fields = {name: value for name, value in shared.items() if value is not None}
    fields |= {name: value for name, value in row.items() if name in ImageRequest.model_fields and value not in _BLANK}
    if "operation" in row:
        raise BadRequestError("operation: there is no such column.", hint="A row with an image is an edit.")
    labels = {name: _label(name, value) for name, value in row.items() if name not in (*ImageRequest.model_fields, "n")}
    count = whole("n", row.get("n"), MAX_VARIANTS) or variants
    fields["operation"] = "edit" if fields.get("image") not in _BLANK else "generate"
    prefix = fields.get("variant")
    for index in range(count):
        if count > 1:
            fields["variant"] = f"{prefix}-{index + 1}" if prefix not in _BLANK else str(index + 1)
        request = ImageRequest.build(**fields).check(gateway, default_model)
        yield Wish(number, request, {**labels, "row": str(number)})


def _label(name: str, value: Any) -> str:
    meant = difflib.get_close_matches(name, [*ImageRequest.model_fields, "n"], n=1, cutoff=0.75)
    if meant:
        raise BadRequestError(f"{name}: there is no such field.", hint=f"Did you mean {meant[0]!r}?")
    if name == "row" or not isinstance(value, str | int | float | None):
        why = "is the row's number" if name == "row" else f"takes text or a number, not {type(value).__name__}"
        raise BadRequestError(f"{name}: {why}.")
    return "" if value is None else str(value)
