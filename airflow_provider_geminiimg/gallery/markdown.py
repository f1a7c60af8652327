"""Markdown tables of images, for the body of Airflow's `ApprovalOperator` and `HITLOperator`, and of our review
operator.

Invariants: every address is built here from a parsed record key, and leads to the gallery, which checks the reader's
permissions. All other texts of a manifest are displayed as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.ledger.layout import is_record_key
from airflow_provider_geminiimg.core.purchase.inputs import public_uri
from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.gallery.addresses import Address, address_of
from airflow_provider_geminiimg.gallery.routes import PREFIX

_GALLERY = PREFIX.lstrip("/")  # relative, because Airflow may be served under a path
_MAX_TEXT = 120  # characters of one text in a table cell
_ALLOWED = "Allowed: the result of a task of this package, or a list of such results: images=my_task.output."

_MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation, which a backslash turns into plain text
# GitHub's Markdown turns addresses into links after it has removed the backslashes. An invisible character inside
# the address prevents this.
_ADDRESS = re.compile(r"(?<=/)(?=/)|(?<=@)|(?<=www)(?=\.)", re.IGNORECASE)
_UNSEEN = "\u2060"


def review_markdown(manifest: Any, columns: int = 3) -> str:
    """Build Markdown tables of images: number and file name above each image; pixels, model, cost and mismatch below
    it.

    A click on an image opens it in full size. Image and preview come from the gallery, which shows them to users who
    may read the DAG. If an image has no address in the gallery (its record belongs to another ``[geminiimg]
    namespace``, or its ids are very long), the table contains "No preview".

    :param manifest: the result of a task, or a list of such results, also of a mapped task, or JSON text.
    :param columns: images side by side. Airflow shows them up to 300 pixels wide.
    :raises BadRequestError: it is not a manifest, or `columns` is below 1.
    """
    if columns < 1:
        raise BadRequestError(f"columns{given(columns)}: takes a whole number from 1.")
    cells = [cell for number, each in enumerate(manifests(manifest), 1) for cell in _cells(number, each)]
    return "\n\n".join(_table(cells[start : start + columns]) for start in range(0, len(cells), columns))


def manifests(value: Any, name: str = "manifest") -> list[dict[str, Any]]:
    """Return the manifests in `value`, at least one.

    :param value: see `review_markdown`.
    :param name: of the argument, for the error.
    :raises BadRequestError: there is none, or `value` contains something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRequestError(f"{name}{given(value)}: is neither a manifest nor JSON.", hint=_ALLOWED) from None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray, set, frozenset)):
        raise BadRequestError(f"{name}{given(value)}: is not a manifest.", hint=_ALLOWED)
    found = list(value)
    if not found:
        raise BadRequestError(f"{name}{given(value)}: contains no image.", hint=_ALLOWED)
    for index, each in enumerate(found):
        if not _is_manifest(each):
            raise BadRequestError(f"{name}[{index}]{given(each)}: is not a manifest with images.", hint=_ALLOWED)
    return [dict(each) for each in found]


def labels(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each manifest: ``1: name.png``, ``2: name.png`` and so on; labels are unique."""
    return [f"{number}: {_name(each['images'][0])}" for number, each in enumerate(found, 1)]


def _is_manifest(value: Any) -> bool:
    images = value.get("images") if isinstance(value, Mapping) else None
    if not isinstance(images, (list, tuple)) or not images:
        return False
    return all(isinstance(image, Mapping) and isinstance(image.get("uri"), str) for image in images)


def _cells(number: int, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    address, images = _address(manifest.get("record")), manifest["images"]
    for index, image in enumerate(images):
        label = f"{number}: {_name(image)}"
        if len(images) > 1:
            label += f" ({index + 1} of {len(images)})"
        shown = "No preview"
        if address is not None:
            preview, whole = address.thumbnail(index), address.image(index)
            shown = f"[![Image {number}]({_GALLERY}/{preview})]({_GALLERY}/{whole})"
        yield _text(label), shown, " · ".join(map(_text, _facts(manifest, image)))


def _table(cells: Sequence[tuple[str, str, str]]) -> str:
    names, *rest = (f"| {' | '.join(row)} |" for row in zip(*cells, strict=True))
    return "\n".join([names, f"|{' --- |' * len(cells)}", *rest])


def _facts(manifest: Mapping[str, Any], image: Mapping[str, Any]) -> Iterator[str]:
    yield f"{image.get('width') or '?'} × {image.get('height') or '?'}"
    if manifest.get("model"):
        yield str(manifest["model"])
    cost = manifest.get("cost")
    if isinstance(cost, Mapping) and cost.get("amount") is not None:
        yield f"{cost['amount']} {cost.get('currency', '')}"
    else:
        yield "cost unknown"
    if manifest.get("mismatch"):
        yield f"not as asked: {manifest['mismatch']}"


def _address(key: Any) -> Address | None:
    """Return the gallery's address of a record's images; ``None`` if there is none."""
    if not isinstance(key, str) or not is_record_key(key):
        return None
    try:
        address = address_of(key)
        address.image(0)
    except ValueError:  # a map index that is not a number, or a lone surrogate
        return None
    if address.key(settings.namespace()) != key:
        return None
    # Browsers remove . and .. from an address, quoted or not.
    return None if {".", ".."} & {address.dag_id, address.run_id, address.task_id, address.item} else address


def _name(image: Mapping[str, Any]) -> str:
    return _plain(public_uri(image["uri"]).rsplit("/", 1)[-1]) or "image"


def _plain(text: str) -> str:
    """Return one short line without control characters, direction marks and lone surrogates."""
    line = " ".join(printable(text, " ").split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"


def _text(text: str) -> str:
    """Return Markdown that displays as `text`, also in a table."""
    return _MARKUP.sub(r"\\\g<0>", _ADDRESS.sub(_UNSEEN, _plain(text)))
