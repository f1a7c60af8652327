"""What a batch is asked for: rows as people, files and tasks write them, turned into checked wishes.

What must stay true: everything that can be wrong with a row is found before anything is paid for, and names the row;
one wish is one picture, and the first of a row's several is the one that the row alone would ask for.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_geminiimg.core.batch.columns import (
    BLANK,
    MAX_COLUMNS,
    cell,
    columns_in,
    field_of,
    field_value,
    filled,
    find_column,
    label,
    listed,
    place_of,
    refuse_nothing,
    refuse_twins,
    tidy,
    variant_spellings,
)
from airflow_provider_geminiimg.core.batch.row_files import is_row_file, parse_json_list, read_row_file
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.core.validation.arguments import MAX_IMAGES, MAX_VARIANTS, names_of, stem, whole
from airflow_provider_geminiimg.core.validation.texts import given, normalized, shown
from airflow_provider_geminiimg.exceptions import BadRequestError

MAX_IN_NAME = 1_000  # characters of one label that go into a file's name, which takes 120 bytes of them
MAX_WRONG_ROWS = 5  # that one message names


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One picture that is wanted.

    :param row: number of the row, from 0.
    :param request: what to make, checked.
    :param labels: the row's columns that are no field of a request, and its place; file names are made of them.
    :param line: where the row begins in its file, as an editor shows it; ``None``: it is from no file.
    :param stem: name of its file, without an extension; ``None``: the usual one.
    :param earlier_variant: what versions before told the first of a row's several pictures apart by.
    :param earlier_spellings: other spellings of its variant, and of the earlier one, that versions before told apart.
    """

    row: int
    request: CheckedRequest
    labels: Mapping[str, str]
    line: int | None = None
    stem: str | None = None
    earlier_variant: str | None = None
    earlier_spellings: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where its row stands, for a message."""
        return place_of(self.row, self.line, self.labels)


def read_rows(
    value: Any, files: Files, *, most: int = MAX_IMAGES, encoding: str | None = None, delimiter: str | None = None
) -> list[Mapping[str, Any]]:
    """The rows of `requests`, whatever they came as.

    :param value: a list of prompts and of mappings, a data frame, JSON text of a list, or the URI of a file.
    :param most: rows that are read. Of a file, a list or a generator no more than one further is looked at.
    :param encoding: see `read_row_file`.
    :param delimiter: likewise.
    :raises BadRequestError: it is none of these, or a row is neither a prompt nor a mapping, or there are too many.
    :raises StorageError: the file could not be read.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            value = parse_json_list("requests", text, most + 1)
        elif is_row_file(text):
            value = read_row_file(text, files, most + 1, encoding=encoding, delimiter=delimiter)
        else:
            raise _no_list(text)
    records = records_of(value, most + 1)
    if len(records) > most:
        raise _too_many(f"there are more than {most} rows", most)
    rows = [{"prompt": row} if isinstance(row, str) else row for row in records]
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise BadRequestError(f"requests[{number}] (given: {type(row).__name__}): takes a prompt or a mapping.")
    if not rows:
        raise BadRequestError("requests: is empty.", hint="Give at least one prompt, or skip the task.")
    return rows


def records_of(value: Any, most: int = MAX_IMAGES) -> list[Any]:
    """What a list, a generator or a data frame holds, row by row; iterating a frame would give its columns' names.

    :param most: rows that are made of it. It may hold more.
    :raises BadRequestError: it is none of these, or two columns of the frame have one name.
    """
    for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if hasattr(value, "columns" if method == "to_dicts" else "column_names") and hasattr(value, method):
            return list(getattr(_head(value, most), method)())
    if hasattr(value, "columns") and hasattr(value, "to_dict"):  # pandas
        value = _head(value, most)
        if any(name is not None for name in value.index.names):
            value = value.reset_index()
        refuse_twins(map(str, value.columns))
        return list(value.to_dict("records"))
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _no_list(value)
    return list(itertools.islice(value, most))


def _head(frame: Any, most: int) -> Any:
    """The first rows of a data frame, before each becomes a mapping; pyarrow's tables are sliced."""
    if hasattr(frame, "head"):
        return frame.head(most)
    return frame.slice(0, most) if hasattr(frame, "slice") else frame


def image_specs(
    rows: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    variants: int,
    *,
    gateway: str,
    default_model: str | None,
    most: int = MAX_IMAGES,
    file_name: str | None = None,
) -> list[ImageSpec]:
    """All rows as wishes, in order; a row with ``n`` gives that many.

    :param shared: what holds for every row that says nothing else, by field; the prompt may name columns in braces.
    :param variants: pictures a row, where it does not say ``n``.
    :param most: pictures that one batch makes. They are counted before the first of them is looked at.
    :param file_name: names columns in braces; ``None``: the usual names.
    :raises BadRequestError: rows are wrong, and the message names the first few; or they ask for too many pictures.
    """
    names = _names_of(rows)
    _refuse_too_many(rows, variants, most)
    maker = _Maker(shared, variants, gateway, default_model, file_name, names)
    found: list[ImageSpec] = []
    wrong: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        try:
            found += maker.of_row(number, row)
        except BadRequestError as error:
            said = " ".join(filter(None, (error.message, error.hint)))
            wrong.setdefault(said, []).append(place_of(number, getattr(row, "line", None), maker.labels(row)))
    if wrong:
        raise _wrong_rows(wrong, len(rows))
    _refuse_shared_variants(found)
    return found


def _names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of all columns that rows have."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(map(tidy, row)))
        if len(names) > MAX_COLUMNS:
            raise BadRequestError(
                f"requests: the rows have more than {MAX_COLUMNS} columns.", hint="Remove those that are not used."
            )
    return list(names)


def _refuse_too_many(rows: Sequence[Mapping[str, Any]], variants: int, most: int) -> None:
    """:raises BadRequestError: the rows ask for more than `most` pictures in all."""
    total = 0
    for row in rows:
        own = next((cell(value) for name, value in row.items() if tidy(name).casefold() == "n"), None)
        try:
            total += whole("n", field_value("n", own), MAX_VARIANTS) or variants
        except BadRequestError:  # named with its row
            total += 1
    if total > most:
        raise _too_many(f"{len(rows)} rows ask for {total} pictures", most)


def _too_many(what: str, most: int) -> BadRequestError:
    return BadRequestError(
        f"requests: {what}; [geminiimg] max_batch_images is {most}.",
        hint="Raise max_batch_images if all of them are meant, or make several tasks of it; then clear the task.",
    )


def file_name(template: str, wish: ImageSpec) -> str:
    """The wish's file name: what the braces stand for, as `name_part` writes it.

    :raises BadRequestError: the wish has nothing of a name in it.
    """
    request = wish.request
    values: dict[str, str | None] = {**wish.labels, "model": request.model, "variant": request.variant or "1"}
    values |= {"resolution": request.resolution, "aspect_ratio": request.aspect_ratio}
    parts: dict[str, str] = {}
    for name in names_of(template):
        column = find_column(name, values)
        value = values[column] if column is not None else None
        if value is None or value == "":
            known = listed(sorted(name for name, value in values.items() if value not in BLANK))
            raise BadRequestError(
                f"file_name{given(template)}: {wish.place} has no {name}. It has: {known}.",
                hint="" if column else "Of a column Product Name write {Product_Name}.",
            )
        if len(value) > MAX_IN_NAME:
            raise BadRequestError(f"file_name{given(template)}: {shown(name)} has more than {MAX_IN_NAME} characters.")
        parts[name] = name_part(value)
        if not parts[name]:
            raise BadRequestError(f"file_name{given(template)}: {name}{given(value)} has no letter or digit.")
    return template.format_map(parts).rstrip(".")  # a value's; Windows drops them, and the template has none there


def name_part(text: str) -> str:
    """What of a text goes into a file's name: letters and digits of any script with their marks, and ``_.~+-``.

    In Unicode's composed form, as two spellings of one letter would be two files, or one, by the file system. Joiners
    go, as nobody sees them; any other character becomes ``-``.
    """
    found: list[str] = []
    for char in normalized("NFC", text):
        is_mark = unicodedata.category(char)[0] == "M" and bool(found) and found[-1] != "-"
        if char.isalnum() or char in "_.~+" or is_mark:
            found.append(char)
        elif char not in "\u200c\u200d" and found[-1:] != ["-"]:
            found.append("-")
    return normalized("NFC", "".join(found)).strip("-")


def _refuse_shared_variants(wanted: Sequence[ImageSpec]) -> None:
    """A further picture of one row that is another row's only one would be made once, and fewer than were asked for.

    :raises BadRequestError: there is such a pair.
    """
    own: dict[str, ImageSpec] = {}
    further: dict[str, ImageSpec] = {}
    for before, wish in zip([None, *wanted], wanted, strict=False):
        if wish.request.variant is not None:
            is_further = before is not None and before.row == wish.row
            (further if is_further else own).setdefault(_identity(wish.request), wish)
    for key, wish in further.items():
        if key in own and own[key].row != wish.row:
            variant = given(wish.request.variant)
            raise BadRequestError(
                f"{wish.place}: one of its n pictures has the variant{variant}, and so has {own[key].place}, which "
                "asks for the same otherwise.",
                hint="Give one of them another variant, or ask for all in one row.",
            )


def _identity(request: CheckedRequest) -> str:
    parts = (request.row.fingerprint_model, request.operation, request.prompt, request.input_images, request.fields())
    return repr(parts)


def _no_list(value: Any) -> BadRequestError:
    return BadRequestError(
        f"requests{given(value)}: takes a list of prompts or of mappings, or the URI of a file that holds one.",
        hint="For one picture write [prompt]. Files end with .csv, .tsv, .jsonl or .json; what else there is (.xlsx, a "
        "query) a @task can read and return.",
    )


def _wrong_rows(wrong: Mapping[str, Sequence[str]], total: int) -> BadRequestError:
    """One error for all rows that are wrong; rows with the same fault are named together."""
    count = sum(map(len, wrong.values()))
    said = []
    for message, places in list(wrong.items())[:MAX_WRONG_ROWS]:
        more = f" and {len(places) - MAX_WRONG_ROWS} more" if len(places) > MAX_WRONG_ROWS else ""
        named = f"all {total} rows" if len(places) == total > 1 else f"{', '.join(places[:MAX_WRONG_ROWS])}{more}"
        said.append(f"{named}: {message}")
    rest = f" There are {len(wrong) - MAX_WRONG_ROWS} other faults." if len(wrong) > MAX_WRONG_ROWS else ""
    return BadRequestError(
        f"{count} of {total} requests can't be made: {' '.join(said)}{rest}",
        hint="Lines are those of the file; rows of a list are counted from 0. Correct them, then clear the task.",
    )


class _Maker:
    """Makes wishes of rows.

    :param names: of all columns that the rows have.
    """

    def __init__(
        self,
        shared: Mapping[str, Any],
        variants: int,
        gateway: str,
        default_model: str | None,
        file_name: str | None,
        names: Sequence[str],
    ) -> None:
        self.shared = {name: value for name, value in shared.items() if value is not None}
        self.variants = variants
        self.gateway = gateway
        self.default_model = default_model
        self.file_name = file_name
        self.names = names
        self._fields: dict[str, str | None] = {}
        self._prompt_columns: dict[str, str] | None = None
        self._shapes: set[tuple[str, ...]] = set()

    def of_row(self, number: int, row: Mapping[str, Any]) -> Iterator[ImageSpec]:
        self._check_shape(tuple(row))
        cells = _cells(row)
        labels = {**self._labels(cells), "row": str(number)}
        fields = {**self.shared, **self._own(cells)}
        fields["prompt"] = self._prompt(cells, fields)
        count = whole("n", fields.pop("n", None), MAX_VARIANTS) or self.variants
        fields["operation"] = "edit" if fields.get("image") not in BLANK else "generate"
        line = getattr(row, "line", None)
        prefix = fields.get("variant")
        written = next((value for name, value in cells.items() if self._field(name) == "variant"), None)
        written = written if written is not None else prefix
        spellings = variant_spellings(written)[1:]
        for index in range(count):
            if index:
                fields["variant"] = f"{prefix}-{index + 1}" if prefix not in BLANK else str(index + 1)
            request = ImageRequest.build(**fields).check(self.gateway, self.default_model)
            earlier = None if index or count == 1 else f"{written}-1".strip() if request.variant else "1"
            others = [f"{each}-{index + 1}" for each in spellings if count > 1]
            wish = ImageSpec(number, request, labels, line, None, earlier, (*(() if index else spellings), *others))
            if self.file_name is not None:
                wish = replace(wish, stem=stem("file_name", file_name(self.file_name, wish)))
            yield wish

    def labels(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        """A wrong row's labels, as far as there are such: its message names them."""
        try:
            self._check_shape(tuple(row))
            return self._labels(_cells(row))
        except BadRequestError:
            return {}

    def _check_shape(self, names: tuple[str, ...]) -> None:
        """Whether the columns of a row are what columns can be. Rows of a file have the same ones."""
        if names in self._shapes:
            return
        refuse_twins(names)
        owners: dict[str, str] = {}
        for name in map(tidy, names):
            field = self._field(name)
            if field is not None and owners.setdefault(field, name) != name:
                raise BadRequestError(
                    f"{owners[field]!r} and {name!r}: both columns are {field}.", hint="Rename or remove one of them."
                )
        self._shapes.add(names)

    def _field(self, name: str) -> str | None:
        if name not in self._fields:
            in_prompt = name in self.prompt_columns.values()
            try:
                self._fields[name] = field_of(name)
            except BadRequestError:
                if not in_prompt:  # else it is plain what the column is for
                    raise
                self._fields[name] = None
        return self._fields[name]

    @property
    def prompt_columns(self) -> Mapping[str, str]:
        """The columns that the operator's prompt names, by what stands between its braces."""
        if self._prompt_columns is None:
            has_labels = not all(map(_is_field, self.names))
            self._prompt_columns = columns_in(self.shared.get("prompt"), self.names, has_labels)
        return self._prompt_columns

    def _own(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """What a row says itself, by field."""
        named = {self._field(name): value for name, value in cells.items() if value is not None}
        return {field: field_value(field, value) for field, value in named.items() if field is not None}

    def _labels(self, cells: Mapping[str, Any]) -> dict[str, str]:
        """A row's labels, those of file names first. What only the prompt is made of is prompt, and no label."""
        of_names = {find_column(name, cells) for name in names_of(self.file_name)} if self.file_name else set()
        prompt = set(self.prompt_columns.values()) - of_names
        names = [name for name in cells if self._field(name) is None and name not in prompt]
        return {name: label(name, cells[name]) for name in sorted(names, key=lambda name: name not in of_names)}

    def _prompt(self, cells: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
        own = next((name for name in cells if self._field(name) == "prompt"), None)
        columns = self.prompt_columns
        if own is not None and cells[own] is not None and own not in columns.values():
            return fields["prompt"]
        if "prompt" not in fields:
            raise self._no_prompt(own)
        values = {}
        for inner, column in columns.items():
            values[inner] = label(column, cells.get(column))
            if not values[inner]:
                raise BadRequestError(f"prompt: has no {column!r}, which it names.", hint="Fill the cell.")
            refuse_nothing(column, values[inner])
        return filled(self.shared["prompt"], values) if columns else self.shared["prompt"]

    def _no_prompt(self, own: str | None) -> BadRequestError:
        if own is not None:
            return BadRequestError(f"{own}: is empty; it must say what to draw.")
        others = [name for name in self.names if not _is_field(name)]
        example = others[0] if others else "product"
        return BadRequestError(
            f"prompt: there is no such column. Found: {listed(self.names)}.",
            hint=f"Call the column that says what to draw prompt, or give the operator a prompt that names columns in "
            f'braces, such as prompt="Photo of {{{example}}}".',
        )


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's cells by the tidy names of their columns; nameless ones are one column.

    :raises BadRequestError: several columns without a name hold something.
    """
    found = {tidy(name): cell(value) for name, value in row.items() if tidy(name)}
    nameless = [value for name, value in row.items() if not tidy(name) and cell(value) is not None]
    if len(nameless) > 1:
        raise BadRequestError(f"{len(nameless)} columns without a name hold something.", hint="Name each of them.")
    return {**found, **({"": cell(nameless[0])} if nameless else {})}


def _is_field(name: str) -> bool:
    try:
        return field_of(name) is not None
    except BadRequestError:
        return False
