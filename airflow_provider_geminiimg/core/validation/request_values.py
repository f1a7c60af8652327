"""Parsers of the fields of a request, for values from DAGs, templates and rows.

What must stay true: every refusal is a `BadRequestError` that names the field and the allowed values, and never
contains the prompt or a link's query.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from airflow_provider_geminiimg.core.validation.absent import is_absent, is_blank, is_no_prompt
from airflow_provider_geminiimg.core.validation.arguments import flag
from airflow_provider_geminiimg.core.validation.texts import MAX_DEPTH, as_text, given, refuse_lone_surrogates
from airflow_provider_geminiimg.exceptions import BadRequestError

BOUNDS: Mapping[str, tuple[float, float]] = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0)}
MAX_PROMPT = 1_000_000  # characters, several times what the largest model reads
MAX_MODEL = 200  # characters of a model id; the longest id of a gateway has 32
MAX_INPUTS = 1_000  # images in a value; the model's own limit is checked later
_RESOLUTIONS = {"512": "512", "0.5k": "512", "1k": "1K", "2k": "2K", "4k": "4K"}
_REPR = re.compile(r"\s*(?:[\[{]|\(\s*['\"{]|LazyXComSequence\()")
_TOJSON = 'It looks like the text of a Python object. Render it as JSON: "{{ ... | tojson }}".'


def refuse(name: str, shown: str, problem: str, hint: str = "") -> NoReturn:
    raise BadRequestError(f"{name}{shown}: {problem}", hint=hint)


def refuse_missing_value(values: Mapping[str, Any]) -> None:
    """Refuse words for a missing value. Not used for a stored request, because it may have been paid for."""
    for name, value in values.items():
        word = str(value) if isinstance(value, (str, float)) and not is_blank(str(value)) else ""
        if name == "prompt" and is_no_prompt(word):
            refuse(name, f"={word.strip()!r}", "stands for a missing value. The prompt must describe the image.")
        if name in ("model", "variant", "image") and word and is_absent(value):
            refuse(name, given(value), "stands for a missing value.", "Omit the argument, or use None.")


def did_you_mean(value: Any, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def _prompt(name: str, value: Any) -> str:
    text = as_text(value) if isinstance(value, (int, float)) else value
    if value is not None and not isinstance(text, str):
        refuse(name, "", f"must be text, not {type(value).__name__}.")
    if not text or is_blank(text):
        refuse(name, "", "is empty. The prompt must describe the image.")
    if len(text) > MAX_PROMPT:
        refuse(name, "", f"has {len(text)} characters; at most {MAX_PROMPT} are allowed.")
    return text


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(name, given(value), f"must be text, not {type(value).__name__}.")
    return value.strip()


def _model(name: str, value: Any) -> str:
    """A model id. An unknown id is allowed and is sent unchanged."""
    model = _text(name, value)
    if len(model) > MAX_MODEL or not model.isprintable():
        refuse(name, given(value), f"is not a model id, which has up to {MAX_MODEL} printable characters.")
    return model


WHOLE_VARIANT = re.compile(r"\s*(-?(?:0|[1-9]\d*))(?:\.0+)?\s*", re.ASCII)


def _variant(name: str, value: Any) -> str:
    """A label. A whole float becomes an integer, because pandas converts a column with empty cells to float."""
    number = as_text(value) if isinstance(value, (int, float)) else None
    written = _text(name, value) if number is None else number
    whole = WHOLE_VARIANT.fullmatch(written)
    return whole[1] if whole else written


def normalized_resolution(text: str) -> str:
    """A size as ``512``, ``1K``, ``2K`` or ``4K``; any other text is unchanged."""
    return _RESOLUTIONS.get(text.strip().lower(), text.strip())


def _resolution(name: str, value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return normalized_resolution(f"{value:g}" if number else _text(name, value))


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        low, high = BOUNDS[name]
        refuse(name, given(value), f"must be a number from {low} to {high}.")
    return number + 0.0  # -0.0 becomes 0.0: one value, one fingerprint


def _decoded(name: str, value: Any) -> Any:
    """The value of a JSON list or object; other text is stripped.

    :raises BadRequestError: the text of a Python object.
    """
    if not isinstance(value, str):
        return value
    if not _REPR.match(value):
        return value.strip()
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        refuse(name, given(value), "must be URIs, JSON or manifests.", _TOJSON)


def _manifest_uris(name: str, value: Mapping[Any, Any]) -> tuple[str, ...]:
    images = [value] if "uri" in value else value.get("images")
    if not isinstance(images, (list, tuple)) or not images:
        refuse(name, given(value), 'a mapping must be a manifest with images: {"images": [{"uri": ...}]}.')
    uris = [image.get("uri") if isinstance(image, Mapping) else None for image in images]
    if not all(isinstance(uri, str) and uri.strip() for uri in uris):
        refuse(name, given(value), "every image of a manifest needs its uri.")
    return tuple(str(uri).strip() for uri in uris)


def _image(name: str, value: Any) -> str:
    value = _decoded(name, value)
    if isinstance(value, Mapping):
        uris = _manifest_uris(name, value)
        if len(uris) != 1:
            refuse(
                name,
                given(value),
                f"must be exactly one image; this manifest has {len(uris)}.",
                "Give the uri of one of them.",
            )
        return uris[0]
    if not isinstance(value, str):
        problem = f"must be one image, as a URI or as a manifest with exactly one, not {type(value).__name__}."
        refuse(name, given(value), problem)
    return value


def _images(name: str, value: Any, depth: int = 0) -> tuple[str, ...]:
    value = _decoded(name, value)
    if depth > MAX_DEPTH:
        refuse(name.partition("[")[0], "", f"has more than {MAX_DEPTH} nested lists.", "Give one flat list.")
    if isinstance(value, str) and value:
        return (value,)
    if isinstance(value, Mapping):
        return _manifest_uris(name, value)
    # A set has no order, but the order of references matters.
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, set, frozenset)):
        found: list[str] = []
        for index, item in enumerate(value):
            uris = _images(f"{name}[{index}]", item, depth + 1)
            if not uris:
                refuse(f"{name}[{index}]", given(item), "is empty; every item must be an image.")
            found += uris
            if len(found) > MAX_INPUTS:
                refuse(name, "", f"has more than {MAX_INPUTS} images, which no model takes.")
        return tuple(found)
    refuse(name, given(value), "must be URIs: a list, a JSON array, one text, a manifest or a list of manifests.")


_CLEANERS: Mapping[str, Callable[[str, Any], Any]] = {
    "prompt": _prompt,
    "model": _model,
    "image": _image,
    "reference_images": _images,
    "resolution": _resolution,
    "aspect_ratio": _text,
    "temperature": _number,
    "top_p": _number,
    "google_search": flag,
    "google_image_search": flag,
    "variant": _variant,
}


def clean(name: str, value: Any) -> Any:
    """Parse a field of a request.

    :param name: the name of the field.
    :param value: the value; ``None`` and blank text mean unset, except for the prompt.
    :returns: the parsed value; an unset field is ``None``, or ``()`` for `reference_images`.
    :raises BadRequestError: the value is not allowed.
    """
    unset = value is None or (isinstance(value, str) and not value.strip())
    if unset and name != "prompt":
        return () if name == "reference_images" else None
    cleaned = _CLEANERS[name](name, value)
    for text in cleaned if isinstance(cleaned, tuple) else (cleaned,):
        if isinstance(text, str):
            refuse_lone_surrogates(name, text)
    return cleaned
