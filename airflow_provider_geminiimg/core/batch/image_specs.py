"""Rows turned into checked requests, one `ImageSpec` per image.

Invariants: every error in a row is found before money is spent, and its message names the row. The first image of a row
with ``n`` is the image that the row without ``n`` would make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_geminiimg.core.batch.cells import (
    BLANK,
    cell,
    field_value,
    label,
    refuse_missing,
    variant_spellings,
)
from airflow_provider_geminiimg.core.batch.columns import (
    MAX_COLUMNS,
    clean_name,
    field_of,
    find_column,
    listed,
    place_of,
    refuse_twins,
)
from airflow_provider_geminiimg.core.batch.prompt_columns import columns_in, filled
from airflow_provider_geminiimg.core.batch.row_file_names import file_name
from airflow_provider_geminiimg.core.batch.rows import too_many
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.core.validation.arguments import MAX_IMAGES, MAX_VARIANTS, names_of, stem, whole
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError

MAX_WRONG_ROWS = 5  # named in one message


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One requested image.

    :param row: index of the row, from 0.
    :param request: the checked request.
    :param labels: the columns of the row that are not request fields, and ``row``; used in file names.
    :param line: first line of the row in its file, from 1; ``None`` if the rows are not from a file.
    :param stem: file name without extension; ``None``: the default name.
    :param earlier_variant: the variant that earlier versions of this package gave to the first of several images.
    :param earlier_spellings: spellings of the variants that earlier versions treated as different variants.
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
        """The place of the row, for a message."""
        return place_of(self.row, self.line, self.labels)

    def name_values(self) -> dict[str, str | None]:
        """The values for a file name template, by the name in braces."""
        request = self.request
        values: dict[str, str | None] = {**self.labels, "model": request.model, "variant": request.variant or "1"}
        return values | {"resolution": request.resolution, "aspect_ratio": request.aspect_ratio}


@dataclass(frozen=True, slots=True)
class RowDefaults:
    """Defaults for all rows.

    :param shared: values by request field; the prompt may name columns in braces.
    :param gateway: of the connection.
    :param default_model: of the connection.
    :param variants: images per row without ``n``.
    :param file_name: template with columns in braces; ``None``: default names.
    """

    shared: Mapping[str, Any]
    gateway: str
    default_model: str | None = None
    variants: int = 1
    file_name: str | None = None


def image_specs(
    rows: Iterable[Mapping[str, Any]], defaults: RowDefaults, *, most: int = MAX_IMAGES
) -> Iterator[ImageSpec]:
    """Iterate over the images of all rows, in order; a row with ``n`` gives ``n`` images.

    All rows are checked before the iteration ends, so nothing may depend on an image before that.

    :param rows: iterated over several times; one row at a time is in memory.
    :param most: limit on the number of images. They are counted before the first row is checked.
    :raises BadRequestError: rows are wrong (the message names the first few), or there are too many images.
    """
    maker = _Maker(defaults, _names_of(rows))
    total = _refuse_too_many(rows, defaults.variants, most)
    variants = _Variants()
    wrong: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        try:
            specs = list(maker.of_row(number, row))
        except BadRequestError as error:
            said = " ".join(filter(None, (error.message, error.hint)))
            wrong.setdefault(said, []).append(place_of(number, getattr(row, "line", None), maker.labels(row)))
            continue
        if not wrong:
            variants.add(specs)
            yield from specs
    if wrong:
        raise _wrong_rows(wrong, total)
    variants.check()


def _names_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of all columns that rows have."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(map(clean_name, row)))
        if len(names) > MAX_COLUMNS:
            raise BadRequestError(
                f"requests: the rows have more than {MAX_COLUMNS} columns.", hint="Remove those that are not used."
            )
    return list(names)


def _refuse_too_many(rows: Iterable[Mapping[str, Any]], variants: int, most: int) -> int:
    """The number of rows.

    :raises BadRequestError: the rows ask for more than `most` images in all.
    """
    total = count = 0
    for row in rows:
        count += 1
        own = next((cell(value) for name, value in row.items() if clean_name(name).casefold() == "n"), None)
        try:
            total += whole("n", field_value("n", own), MAX_VARIANTS) or variants
        except BadRequestError:  # named with its row
            total += 1
    if total > most:
        raise too_many(f"{count} rows ask for {total} images", most)
    return count


class _Variants:
    """The images with a variant, to refuse a further image of one row that is another row's only one: it would be made
    once, and fewer images than requested.
    """

    def __init__(self) -> None:
        self._own: dict[bytes, tuple[int, str]] = {}
        self._further: dict[bytes, tuple[int, str]] = {}
        self._shared: tuple[str, str, str] | None = None

    def add(self, specs: Sequence[ImageSpec]) -> None:
        """Add the images of one row."""
        for index, spec in enumerate(specs):
            if spec.request.variant is None:
                continue
            key, place = _identity(spec.request), (spec.row, spec.place)
            other = (self._own if index else self._further).get(key)
            (self._further if index else self._own).setdefault(key, place)
            if other is not None and other[0] != spec.row and self._shared is None:
                places = (spec.place, other[1]) if index else (other[1], spec.place)
                self._shared = (given(spec.request.variant), *places)

    def check(self) -> None:
        """:raises BadRequestError: there is such a pair."""
        if self._shared is not None:
            variant, further, own = self._shared
            raise BadRequestError(
                f"{further}: one of its n images has the variant{variant}, and so has {own}, which asks for the same "
                "otherwise.",
                hint="Give one of them another variant, or ask for all in one row.",
            )


def _identity(request: CheckedRequest) -> bytes:
    parts = (request.row.fingerprint_model, request.operation, request.prompt, request.input_images, request.fields())
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
    """Makes the specs of rows.

    :param names: all column names of the rows.
    """

    def __init__(self, defaults: RowDefaults, names: Sequence[str]) -> None:
        self.defaults = defaults
        self.shared = {name: value for name, value in defaults.shared.items() if value is not None}
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
        count = whole("n", fields.pop("n", None), MAX_VARIANTS) or self.defaults.variants
        line = getattr(row, "line", None)
        prefix = fields.get("variant")
        written = next((value for name, value in cells.items() if self._field(name) == "variant"), None)
        written = written if written is not None else prefix
        spellings = variant_spellings(written)[1:]
        for index in range(count):
            if index:
                fields["variant"] = f"{prefix}-{index + 1}" if prefix not in BLANK else str(index + 1)
            request = ImageRequest.build(**fields).check(self.defaults.gateway, self.defaults.default_model)
            earlier = None if index or count == 1 else f"{written}-1".strip() if request.variant else "1"
            others = [f"{each}-{index + 1}" for each in spellings if count > 1]
            spec = ImageSpec(number, request, labels, line, None, earlier, (*(() if index else spellings), *others))
            if (template := self.defaults.file_name) is not None:
                spec = replace(spec, stem=stem("file_name", file_name(template, spec.place, spec.name_values())))
            yield spec

    def labels(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        """The labels of a wrong row, for its message; empty if they can't be read."""
        try:
            self._check_shape(tuple(row))
            return self._labels(_cells(row))
        except BadRequestError:
            return {}

    def _check_shape(self, names: tuple[str, ...]) -> None:
        """Check the column names of a row, once per set of names.

        :raises BadRequestError: a name is wrong, or two columns are the same field.
        """
        if names in self._shapes:
            return
        refuse_twins(names)
        owners: dict[str, str] = {}
        for name in map(clean_name, names):
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
                if not in_prompt:  # a column that the prompt names needs no other meaning
                    raise
                self._fields[name] = None
        return self._fields[name]

    @property
    def prompt_columns(self) -> Mapping[str, str]:
        """The columns that the prompt of the operator names, by the text in braces."""
        if self._prompt_columns is None:
            has_labels = not all(map(_is_field, self.names))
            self._prompt_columns = columns_in(self.shared.get("prompt"), self.names, has_labels)
        return self._prompt_columns

    def _own(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The row's own values, by request field."""
        named = {self._field(name): value for name, value in cells.items() if value is not None}
        return {field: field_value(field, value) for field, value in named.items() if field is not None}

    def _labels(self, cells: Mapping[str, Any]) -> dict[str, str]:
        """The labels of a row, those of file names first. A column that only the prompt uses is not a label."""
        template = self.defaults.file_name
        of_names = {find_column(name, cells) for name in names_of(template)} if template else set()
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
                raise BadRequestError(
                    f"prompt: names column {column!r}, which is empty in this row.", hint="Fill the cell."
                )
            refuse_missing(column, values[inner])
        return filled(self.shared["prompt"], values) if columns else self.shared["prompt"]

    def _no_prompt(self, own: str | None) -> BadRequestError:
        if own is not None:
            return BadRequestError(f"{own}: is empty; it must describe the image.")
        others = [name for name in self.names if not _is_field(name)]
        example = others[0] if others else "product"
        return BadRequestError(
            f"prompt: there is no such column. Found: {listed(self.names)}.",
            hint=f"Rename the column that describes the image to prompt, or give the operator a prompt with columns "
            f'in braces, such as prompt="Photo of {{{example}}}".',
        )


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row by column name, after `clean_name`; columns without a name count as one.

    :raises BadRequestError: several columns without a name have values.
    """
    found = {clean_name(name): cell(value) for name, value in row.items() if clean_name(name)}
    nameless = [value for name, value in row.items() if not clean_name(name) and cell(value) is not None]
    if len(nameless) > 1:
        raise BadRequestError(f"{len(nameless)} columns without a name have values.", hint="Name each of them.")
    return {**found, **({"": cell(nameless[0])} if nameless else {})}


def _is_field(name: str) -> bool:
    try:
        return field_of(name) is not None
    except BadRequestError:
        return False
