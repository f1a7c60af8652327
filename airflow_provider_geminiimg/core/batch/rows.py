"""Reads the rows of a batch from a list, a data frame, JSON text or a file.

Invariant: at most one row more than allowed is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from airflow_provider_geminiimg.core.batch.columns import refuse_twins
from airflow_provider_geminiimg.core.batch.row_files import is_row_file, parse_json_list, read_row_file
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.core.validation.arguments import MAX_IMAGES
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError


class Rows(Iterable[Mapping[str, Any]]):
    """The rows of a batch. They may be iterated over several times; each row is made anew.

    :param begin: begins an iteration over prompts and mappings.
    """

    def __init__(self, begin: Callable[[], Iterable[Any]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self._begin():
            yield {"prompt": row} if isinstance(row, str) else row


def read_rows(
    value: Any, files: Files, *, most: int = MAX_IMAGES, encoding: str | None = None, delimiter: str | None = None
) -> Rows:
    """The rows of the argument `requests`.

    :param value: a list of prompts and mappings, a data frame, JSON text of a list, or the URI of a file.
    :param most: limit on the number of rows; at most one more row is read.
    :param encoding: see `read_row_file`.
    :param delimiter: see `read_row_file`.
    :raises BadRequestError: the value is none of these, a row is not a prompt or a mapping, or there are too many rows.
    :raises StorageError: the file could not be read.
    """
    text = value.strip() if isinstance(value, str) else ""
    if is_row_file(text) and not text.startswith("["):
        rows = Rows(read_row_file(text, files, most + 1, encoding=encoding, delimiter=delimiter))
    else:
        records = records_of(parse_json_list("requests", text, most + 1) if text.startswith("[") else value, most + 1)
        rows = Rows(records.__iter__)
    number, wrong = -1, None
    for number, row in enumerate(rows):
        if wrong is None and not (isinstance(row, Mapping) and all(isinstance(name, str) for name in row)):
            wrong = f"requests[{number}] (given: {type(row).__name__}): takes a prompt or a mapping."
    if number >= most:
        raise too_many(f"there are more than {most} rows", most)
    if wrong is not None:
        raise BadRequestError(wrong)
    if number < 0:
        raise BadRequestError("requests: is empty.", hint="Give at least one prompt, or skip the task.")
    return rows


def records_of(value: Any, most: int = MAX_IMAGES) -> list[Any]:
    """The rows of a list, a generator or a data frame.

    :param most: rows to return at most.
    :raises BadRequestError: the value is none of these, or two columns of a data frame have the same name.
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
    """The first rows of a data frame; pyarrow tables have no ``head`` and are sliced."""
    if hasattr(frame, "head"):
        return frame.head(most)
    return frame.slice(0, most) if hasattr(frame, "slice") else frame


def too_many(what: str, most: int) -> BadRequestError:
    """The error for more rows or images than a batch may have.

    :param what: a sentence about the number of rows or images.
    """
    return BadRequestError(
        f"requests: {what}; [geminiimg] max_batch_images is {most}.",
        hint="Raise max_batch_images if all of them are intended, or use several tasks; then clear the task.",
    )


def _no_list(value: Any) -> BadRequestError:
    return BadRequestError(
        f"requests{given(value)}: takes a list of prompts or of mappings, or the URI of a file that holds one.",
        hint="For one image write [prompt]. File names end with .csv, .tsv, .jsonl or .json. For other sources (.xlsx, "
        "a query), read them in a @task and return a list.",
    )
