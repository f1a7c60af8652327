"""The rows of a batch, as people, files and tasks write them: read, and no more of them than are allowed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_geminiimg.core.batch.columns import refuse_twins
from airflow_provider_geminiimg.core.batch.row_files import is_row_file, parse_json_list, read_row_file
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.core.validation.arguments import MAX_IMAGES
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError


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
        raise too_many(f"there are more than {most} rows", most)
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


def too_many(what: str, most: int) -> BadRequestError:
    """What to raise for more rows or images than one batch makes.

    :param what: what there is too much of.
    """
    return BadRequestError(
        f"requests: {what}; [geminiimg] max_batch_images is {most}.",
        hint="Raise max_batch_images if all of them are meant, or make several tasks of it; then clear the task.",
    )


def _no_list(value: Any) -> BadRequestError:
    return BadRequestError(
        f"requests{given(value)}: takes a list of prompts or of mappings, or the URI of a file that holds one.",
        hint="For one image write [prompt]. Files end with .csv, .tsv, .jsonl or .json; what else there is (.xlsx, a "
        "query) a @task can read and return.",
    )
