"""Reads rows from files: CSV as spreadsheet programs write it in any country, JSON Lines and JSON.

Invariants: a file that can't be read with certainty is refused; the message has the line number and the remedy. No cell
is dropped, and none gets into another column. Of CSV and JSON Lines, one row at a time is in memory, beside the text.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_provider_geminiimg.core.batch.columns import FIELDS, clean_name, field_of, listed, refuse_twins
from airflow_provider_geminiimg.core.storage import Files, locate
from airflow_provider_geminiimg.core.validation.texts import shown as short
from airflow_provider_geminiimg.exceptions import BadRequestError

MAX_FILE_BYTES = 64 * 1024 * 1024
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, because both marks start with the same bytes
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEP_LINE = re.compile(r'[ \t]{0,99}"?sep=(\\t|[^\r\n"\w])?"?[;,\t|]{0,99}[ \t]{0,99}(?:\r\n|\r|\n|\Z)', re.IGNORECASE)
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_JSON_LINES = re.compile(r"[^\n]*\n|[^\n]+")  # only a line feed ends a line of JSON
_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")
_CONTROLS_OF_BYTES = re.compile("[\x80-\x9f]")  # U+0085 is valid in UTF text; as a byte it is … in cp1252


class LineRow(dict[str, Any]):
    """A row of a file.

    :param line: its first line in the file, from 1.
    """

    def __init__(self, values: Mapping[str, Any], line: int) -> None:
        super().__init__(values)
        self.line = line


@dataclass(frozen=True)
class _Source:
    """The text of a file.

    :param shown: its address for messages, without secrets.
    :param kind: its extension.
    :param delimiter: the argument `delimiter` of the operator.
    :param most: rows to read at most.
    """

    shown: str
    kind: str
    text: str
    delimiter: str | None
    most: int


def is_row_file(text: str) -> bool:
    """Whether the text is the address of a file of rows."""
    return _kind(text) in _READERS and "/" in text


def read_row_file(
    uri: str, files: Files, most: int, *, encoding: str | None, delimiter: str | None
) -> Callable[[], Iterator[Any]]:
    """Read a file of rows.

    :param most: rows to read at most.
    :param encoding: of a file without a byte order mark. Default: UTF-8.
    :param delimiter: of a CSV file. Default: detected from its header.
    :returns: a function that begins an iteration over the rows. The iteration raises `BadRequestError` if the content
        is wrong; the message has the line.
    :raises BadRequestError: the file can't be decoded, or its format is wrong.
    :raises StorageError: the file could not be read.
    """
    files.check(uri, "requests")
    data = files.read(uri, max_bytes=MAX_FILE_BYTES)
    shown = locate(uri, "requests").shown
    kind = _kind(uri)
    source = _Source(shown, kind, _decoded(data, shown, encoding), delimiter, most)
    return partial(_up_to_most, source, _READERS[kind](source))


def _up_to_most(source: _Source, begin: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    rows = itertools.islice(begin(), source.most)
    first = next(rows, None)
    if first is None:
        raise BadRequestError(f"requests: {source.shown} is empty.", hint="Give it at least one row, or skip the task.")
    yield first
    yield from rows


def parse_json(where: str, text: str) -> Any:
    """A JSON value. ``NaN`` becomes ``None``.

    :raises BadRequestError: the text is not JSON, or an object has a key twice.
    """
    with _refused(where):
        return _JSON.decode(text)


def parse_json_list(where: str, text: str, most: int) -> list[Any]:
    """The first values of a JSON list, each parsed like `parse_json`. The rest of the text is not parsed.

    :raises BadRequestError: the text is not a JSON list.
    """
    found: list[Any] = []
    at = _after_blanks(text, 0)
    with _refused(where):
        if text[at : at + 1] != "[":
            raise json.JSONDecodeError("Expecting a list", text, at)
        closed = _END_OF_LIST.match(text, at + 1)
        while closed is None and len(found) < most:
            at = _after_blanks(text, at + 1)
            value, at = _JSON.raw_decode(text, at)
            found.append(value)
            at = _after_blanks(text, at)
            if text[at : at + 1] == "]":
                closed = _END_OF_LIST.match(text, at)
            elif text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if closed is not None and closed.end() < len(text):
            raise json.JSONDecodeError("Extra data", text, closed.end())
    return found


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return at if found is None else found.end()


@contextlib.contextmanager
def _refused(where: str) -> Iterator[None]:
    try:
        yield
    except _WrongJsonError as error:
        raise BadRequestError(f"{where}: {error}") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise BadRequestError(f"{where}: is not JSON ({error.msg}, {at}).") from None
    except ValueError:
        raise BadRequestError(f"{where}: has a number with thousands of digits, which can't be sent.") from None
    except RecursionError:
        raise BadRequestError(f"{where}: is nested too deeply for a request.") from None


class _WrongJsonError(ValueError):
    """JSON with an ambiguous or invalid value."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _WrongJsonError(f"the key {short(twice)!r} occurs twice in one object.")
    return found


def _constant(token: str) -> None:
    if token != "NaN":
        raise _WrongJsonError(f"{token} is not a number that can be sent.")


def _finite(token: str) -> float:
    number = float(token)
    if math.isinf(number):
        raise _WrongJsonError(f"{short(token)} is not a number that can be sent.")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
_BLANKS = re.compile(r"[ \t\r\n]*")
_END_OF_LIST = re.compile(r"[ \t\r\n]*\][ \t\r\n]*")


def _kind(uri: str) -> str:
    return uri.rpartition(".")[2].lower()


# Bytes


def _decoded(data: bytes, shown: str, encoding: str | None) -> str:
    """The decoded text. A byte order mark takes precedence over `encoding`."""
    name = next((name for mark, name in _BOMS if data.startswith(mark)), encoding or "utf-8")
    _refuse_utf8_as(name, data, shown)
    try:
        text = data.decode(name).lstrip("\ufeff")  # some programs write the mark twice
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        said = name.removesuffix("-sig").upper() if name.startswith("utf") else name
        raise BadRequestError(f"requests: {shown} is not {said} (line {line}).", hint=_remedy(data)) from None
    if "\0" in text:
        raise BadRequestError(f"requests: {shown} holds null characters.", hint=_remedy(data))
    wrong = (_CONTROLS if codecs.lookup(name).name.startswith("utf") else _CONTROLS_OF_BYTES).search(text)
    if wrong is not None:
        line = text.count("\n", 0, wrong.start()) + 1
        raise BadRequestError(f"requests: {shown}, line {line}: is not in {name}.", hint=_remedy(data))
    return text


def _refuse_utf8_as(name: str, data: bytes, shown: str) -> None:
    """UTF-8 read by an encoding of one byte a character is other text, and hardly ever an error of the encoding's own.

    :raises BadRequestError: the encoding is such, and the file is UTF-8.
    """
    if codecs.lookup(name).name.startswith("utf") or data.isascii():
        return
    try:
        data.decode("utf-8")
    except UnicodeError:
        return
    if len(data.decode(name, "replace")) == len(data):
        line = next(number for number, line in enumerate(data.split(b"\n"), 1) if not line.isascii())
        raise BadRequestError(
            f"requests: {shown} is UTF-8, and not {name} (line {line}).", hint="Leave the argument encoding out."
        )


def _remedy(data: bytes) -> str:
    if b"\0" in data:
        order = "le" if data[1::2].count(0) >= data[::2].count(0) else "be"
        return f'Save it as UTF-8; or, if it is UTF-16 without a byte order mark, give encoding="utf-16-{order}".'
    return (
        'Save it as UTF-8 (Excel: "CSV UTF-8"); or give the encoding that it has, such as encoding="cp1252" (Windows, '
        'Western Europe), "cp1250", "cp1251", "mac_roman" or "shift_jis".'
    )


# CSV


def _csv(source: _Source) -> Callable[[], Iterator[Any]]:
    sep_line = _SEP_LINE.match(source.text)
    text = source.text[sep_line.end() :] if sep_line is not None else source.text
    first = 1 if sep_line is None else 2
    said = None if sep_line is None or sep_line[1] is None else sep_line[1].replace("\\t", "\t")
    delimiter = source.delimiter or said or _detected(source, text, first)
    return partial(_csv_rows, source, text, first, delimiter)


def _csv_rows(source: _Source, text: str, first: int, delimiter: str) -> Iterator[LineRow]:
    header: list[str] = []
    for line, cells in _filled_records(source, text, first, delimiter):
        if header:
            yield LineRow(_by_name(source, line, header, cells, delimiter), line)
            continue
        header = [clean_name(name) for name in cells]
        try:
            refuse_twins(header)
        except BadRequestError as error:
            message = f"requests: {source.shown}, line {line}: {error.message}"
            raise error.evolve(message=message) from error.__cause__


def _by_name(
    source: _Source, line: int, header: Sequence[str], cells: Sequence[str], delimiter: str
) -> dict[str, str | None]:
    for number, text in enumerate(cells):
        if text.strip() and (number >= len(header) or not header[number]):
            more = number >= len(header)
            what = "has more cells than the header has names" if more else f"column {number + 1} has no name"
            word = DELIMITERS.get(delimiter, repr(delimiter))
            raise BadRequestError(
                f"requests: {source.shown}, line {line}: {what}. Found: {listed(filter(None, header))}.",
                hint=f"The delimiter of the cells is {word}. Put text that contains it into quotes; if it is wrong, "
                'set the delimiter, such as delimiter=";".',
            )
    padded = [*cells, *[None] * (len(header) - len(cells))]
    return {name: value for name, value in zip(header, padded, strict=False) if name}


def _filled_records(source: _Source, text: str, first: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with its first line."""
    reader = csv.reader((line[0] for line in _LINES.finditer(text)), delimiter=delimiter, strict=True)
    line = first
    try:
        for cells in reader:
            if any(map(clean_name, cells)):
                yield line, cells
            line = first + reader.line_num
    except csv.Error as error:
        raise BadRequestError(
            f"requests: {source.shown}, line {line}: is not CSV ({error}).",
            hint="A cell that starts with a quote must end with one, a quote inside it must be doubled, and a cell may "
            f"have at most {csv.field_size_limit()} characters. Correct this line, or one of the lines before it.",
        ) from None


def _detected(source: _Source, text: str, first: int) -> str:
    """The delimiter, from the header; if several are possible, the one that fits all rows."""
    headers = {each: _header(source, text, first, each) for each in DELIMITERS}
    several = [each for each, cells in headers.items() if len(cells) > 1]
    if len(several) < 2:
        return several[0] if several else "\t" if source.kind in ("tsv", "tab") else ","
    fitting = [each for each in several if _fits(source, text, first, each)] or several
    ranks = {each: (_fields(headers[each]), len(list(filter(None, headers[each])))) for each in fitting}
    best = [each for each in fitting if ranks[each] == max(ranks.values())]
    if len(best) > 1:
        words = " or ".join(DELIMITERS[each] for each in best)
        raise BadRequestError(
            f"requests: {source.shown}: the delimiter may be {words}.", hint='Set the delimiter: delimiter=";".'
        )
    return best[0]


def _header(source: _Source, text: str, first: int, delimiter: str) -> list[str]:
    try:
        _, cells = next(_filled_records(source, text, first, delimiter), (0, []))
    except BadRequestError:
        return []
    return list(map(clean_name, cells))


def _fits(source: _Source, text: str, first: int, delimiter: str) -> bool:
    try:
        records = _filled_records(source, text, first, delimiter)
        width = len(next(records)[1])
        return all(not any(cells[width:]) for _, cells in records)
    except BadRequestError:
        return False


def _fields(header: Sequence[str]) -> int:
    """The number of header cells that are request fields."""
    found = 0
    for name in header:
        try:
            found += field_of(name) in FIELDS
        except BadRequestError:
            continue
    return found


# JSON


def _json_lines(source: _Source) -> Callable[[], Iterator[Any]]:
    return partial(_json_line_rows, source)


def _json_line_rows(source: _Source) -> Iterator[LineRow]:
    for number, found in enumerate(_JSON_LINES.finditer(source.text), 1):
        line = found[0]
        if not line.strip():
            continue
        where = f"requests: {source.shown}, line {number}"
        value = parse_json(where, line.rstrip("\n"))
        row = {"prompt": value} if isinstance(value, str) else value
        if not isinstance(row, Mapping):
            raise BadRequestError(f"{where} (given: {type(value).__name__}): takes a prompt or a mapping.")
        yield LineRow(row, number)


def _json(source: _Source) -> Callable[[], Iterator[Any]]:
    if not source.text.lstrip().startswith("["):
        raise BadRequestError(f"requests: {source.shown}: is not a list of prompts or mappings.")
    return parse_json_list(f"requests: {source.shown}", source.text, source.most).__iter__


_READERS = {"csv": _csv, "tsv": _csv, "tab": _csv, "jsonl": _json_lines, "ndjson": _json_lines, "json": _json}
