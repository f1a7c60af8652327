"""What the user asks for, in neutral words, so that a wrong wish is refused before anything is sent or paid for.

What must stay true: what leaves `ImageRequest.check` is exactly what the gateway's row takes (nothing is dropped or
guessed); every refusal is one `BadRequestError` naming the field, the value and what is allowed, never the prompt's
text or a link's query; one wish has one fingerprint, which changes only with `FINGERPRINT_VERSION`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import pydantic

from airflow_provider_geminiimg.core.catalog.lookup import BOUNDS, Row, default_model, lookup, other_ids, rows_for
from airflow_provider_geminiimg.core.validation.absent import is_absent, is_blank, is_no_prompt
from airflow_provider_geminiimg.core.validation.texts import MAX_DEPTH, as_text, refuse_half_characters
from airflow_provider_geminiimg.core.validation.texts import given as given
from airflow_provider_geminiimg.exceptions import BadRequestError

FINGERPRINT_VERSION = 1
REQUEST_FIELDS = (
    "prompt",
    "model",
    "image",
    "reference_images",
    "resolution",
    "aspect_ratio",
    "temperature",
    "top_p",
    "google_search",
    "google_image_search",
    "variant",
)
SHARED = tuple(name for name in REQUEST_FIELDS if name != "variant")  # what all rows of a batch may have in common

_SETTINGS = ("resolution", "aspect_ratio", "temperature", "top_p", "google_search", "google_image_search")
_PICTURES = ("image", "reference_images")
_RESOLUTIONS = {"512": "512", "0.5k": "512", "1k": "1K", "2k": "2K", "4k": "4K"}
_FLAGS = {"true": True, "false": False}
MAX_PROMPT = 1_000_000  # characters, several times what the largest model reads
MAX_INPUTS = 1_000  # pictures that are read of a value before the model's own limit is asked
_REPR = re.compile(r"\s*(?:[\[{]|\(\s*['\"{]|LazyXComSequence\()")
_TOJSON = 'It looks like the text of a Python object: render it with "{{ ... | tojson }}".'
_EDIT_TAKES_PICTURES = 'Input pictures belong to the operation "edit" (GeminiImageEditOperator).'


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that its gateway takes as it stands.

    :param gateway: ``1min`` or ``apimaster``.
    :param row: what the gateway takes for this model and operation; `Row.wire_model` is the id to send.
    :param model: the id as the user wrote it.
    :param operation: ``generate`` or ``edit``.
    :param prompt: what to draw.
    :param resolution: ``512`` ``1K`` ``2K`` ``4K``; never ``None`` where the row takes one.
    :param aspect_ratio: width to height, as in ``16:9``.
    :param temperature: 0.0 to 2.0.
    :param top_p: 0.0 to 1.0.
    :param google_search: ground the picture in a web search.
    :param google_image_search: ground it in an image search too.
    :param variant: tells two wanted pictures of one prompt apart; never sent.
    :param image: URI of the picture to edit.
    :param reference_images: URIs of the references.
    """

    gateway: str
    row: Row = field(repr=False)
    model: str
    operation: str
    prompt: str = field(repr=False)
    resolution: str | None = None
    aspect_ratio: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    google_search: bool | None = None
    google_image_search: bool | None = None
    variant: str | None = None
    image: str | None = field(default=None, repr=False)
    reference_images: tuple[str, ...] = field(default=(), repr=False)

    @property
    def input_images(self) -> tuple[str, ...]:
        """URIs of the pictures that go in: the one to edit first, then the references."""
        return (() if self.image is None else (self.image,)) + self.reference_images

    def fields(self) -> dict[str, Any]:
        """The settings that are set, by their neutral names, without prompt and pictures: fit for logs and records."""
        values = {name: getattr(self, name) for name in (*_SETTINGS, "variant")}
        return {name: value for name, value in values.items() if value is not None}

    def fingerprint(self, *, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> str:
        """64 hex digits that are the same exactly for the same wish at the same place.

        :param input_sha256: hex digests of the input pictures' bytes, in the order of `input_images`. The URIs
            don't count: the same picture elsewhere is the same wish.
        :param base_url_host: host of the API.
        :param conn_id: id of the Airflow connection.
        :raises ValueError: when there are not as many digests as input pictures.
        """
        if len(input_sha256) != len(self.input_images):
            raise ValueError(f"{len(self.input_images)} input pictures need as many digests, got {len(input_sha256)}.")
        return self._digest(self.row.fingerprint_model, input_sha256, base_url_host, conn_id)

    def fingerprints(self, *, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> tuple[str, ...]:
        """`fingerprint`, then those that earlier versions gave the same wish: they told the ids of a model apart, and
        the variants ``1`` and ``1.0``."""
        first = self.fingerprint(input_sha256=input_sha256, base_url_host=base_url_host, conn_id=conn_id)
        names = [self.row.fingerprint_model, *other_ids(self.row)]
        spelled = [self]
        if self.variant is not None and WHOLE_VARIANT.fullmatch(self.variant):
            spelled.append(dataclasses.replace(self, variant=f"{self.variant}.0"))
        every = (each._digest(name, input_sha256, base_url_host, conn_id) for each in spelled for name in names)
        return tuple(dict.fromkeys((first, *every)))

    def _digest(self, model: str, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> str:
        document = {
            "version": FINGERPRINT_VERSION,
            "gateway": self.gateway,
            "base_url_host": base_url_host.lower(),
            "conn_id": conn_id,
            "operation": self.operation,
            "model": model,
            "prompt": self.prompt,
            "fields": self.fields(),
            "input_sha256": list(input_sha256),
        }
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class ImageRequest(pydantic.BaseModel):
    """What the user asks for, before a gateway is known. Make one with `build`.

    :param operation: ``generate`` or ``edit``.
    :param prompt: what to draw; a number becomes its text.
    :param model: model id; unset = the connection's, else the gateway's, see `catalog.default_model`.
    :param image: the picture to edit: a URI, or a manifest with exactly one picture.
    :param reference_images: a list, a JSON array, one URI, a manifest, or a sequence of these.
    :param resolution: ``512`` ``1K`` ``2K`` ``4K`` in any case; ``0.5K`` means ``512``.
    :param aspect_ratio: as in ``16:9``.
    :param temperature: 0.0 to 2.0.
    :param top_p: 0.0 to 1.0.
    :param google_search: true or false.
    :param google_image_search: true or false; needs `google_search`.
    :param variant: any text or number; tells two wanted pictures of one prompt apart and is never sent.
    :raises BadRequestError: for a value that can't be what its field means.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    operation: Literal["generate", "edit"]
    prompt: str = pydantic.Field(repr=False)
    model: str | None = None
    image: str | None = pydantic.Field(default=None, repr=False)
    reference_images: tuple[str, ...] = pydantic.Field(default=(), repr=False)
    resolution: str | None = None
    aspect_ratio: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    google_search: bool | None = None
    google_image_search: bool | None = None
    variant: str | None = None

    @pydantic.field_validator("prompt", "model", "variant", *_PICTURES, *_SETTINGS, mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        return _clean(str(info.field_name), value)

    @classmethod
    def build(cls, **values: Any) -> ImageRequest:
        """A request from values as people and templates write them; see the class for what each field takes.

        :param values: by the neutral names; ``None``, and an empty text in an optional field, mean unset.
        :raises BadRequestError: for a field that does not exist or a value that can't be what its field means.
        """
        _refuse_missing_value(values)
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise _refusal(error, values) from None

    def check(self, gateway: str, connection_model: str | None = None) -> CheckedRequest:
        """This request, if the gateway takes it for its model and operation.

        :param gateway: ``1min`` or ``apimaster``.
        :param connection_model: the connection's model, for a request that names none.
        :raises BadRequestError: naming the field, the value given and what is allowed.
        """
        model = self.model or default_model(gateway, connection_model)
        row = lookup(gateway, model, self.operation)
        values = {name: getattr(self, name) for name in (*_PICTURES, *_SETTINGS)}
        _obey(row, values, f"{model} ({self.operation} on {gateway})")
        values["resolution"] = self.resolution or row.default_resolution
        return CheckedRequest(
            gateway=gateway,
            row=row,
            model=model,
            operation=self.operation,
            prompt=self.prompt,
            variant=self.variant,
            **values,
        )


def check_literals(operation: str, model: Any, **values: Any) -> None:
    """Refuse, when a DAG is parsed, the plain literals that no gateway takes for this model.

    What is only known at run time (templates, XComs, ``literal()``, any object of Airflow's) is left alone, as is
    every field that is not given here.

    :param operation: ``generate`` or ``edit``.
    :param model: the operator's model; unset or templated = any model of the catalogue.
    :param values: the operator's arguments by their neutral names.
    :raises BadRequestError: naming the field, the value given and what is allowed.
    """
    _refuse_missing_value({name: value for name, value in {"model": model, **values}.items() if is_literal(value)})
    name = _clean("model", model) if is_literal(model) else None
    known = {key: _clean(key, value) for key, value in values.items() if is_literal(value)}
    _obey(_union(rows_for(name, operation)), known, f"{name or 'any model'} ({operation} on any gateway)")


def prompt_sha256(prompt: str) -> str:
    """Hex SHA-256 of the prompt's UTF-8 bytes: what records keep where prompts are not recorded."""
    return hashlib.sha256(prompt.encode()).hexdigest()


# Values as people write them


def _refuse(name: str, shown: str, problem: str, hint: str = "") -> NoReturn:
    raise BadRequestError(f"{name}{shown}: {problem}", hint=hint)


def _refuse_missing_value(values: Mapping[str, Any]) -> None:
    """Refuse what is written where a value is missing. A stored request passes: it may have been paid for."""
    for name, value in values.items():
        word = str(value) if isinstance(value, (str, float)) and not is_blank(str(value)) else ""
        if name == "prompt" and is_no_prompt(word):
            _refuse(name, f"={word.strip()!r}", "is what stands where a value is missing; it must say what to draw.")
        if name in ("model", "variant", "image") and word and is_absent(value):
            _refuse(name, given(value), "is what stands where a value is missing.", "Leave it out, or write None.")


def _did_you_mean(value: Any, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def _refusal(error: pydantic.ValidationError, values: Mapping[str, Any]) -> BadRequestError:
    """What pydantic itself found wrong (a field that is missing, unknown, or not one of its words)."""
    problem = error.errors(include_url=False, include_context=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        names = ", ".join(ImageRequest.model_fields)
        hint = _did_you_mean(name, ImageRequest.model_fields)
        return BadRequestError(f"{name}: there is no such field. Allowed: {names}.", hint=hint)
    shown = "" if name == "prompt" or name not in values else given(values[name])
    return BadRequestError(f"{name}{shown}: {problem['msg']}.")


def _prompt(name: str, value: Any) -> str:
    text = as_text(value) if isinstance(value, (int, float)) else value
    if value is not None and not isinstance(text, str):
        _refuse(name, "", f"takes one text, not {type(value).__name__}.")
    if not text or is_blank(text):
        _refuse(name, "", "is empty; it must say what to draw.")
    if len(text) > MAX_PROMPT:
        _refuse(name, "", f"has {len(text)} characters; at most {MAX_PROMPT} are taken.")
    return text


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(name, given(value), f"takes one text, not {type(value).__name__}.")
    return value.strip()


WHOLE_VARIANT = re.compile(r"\s*(-?(?:0|[1-9]\d*))(?:\.0+)?\s*", re.ASCII)


def _variant(name: str, value: Any) -> str:
    """A label; a whole number is written as one, as data frames make floats of columns with empty cells."""
    number = as_text(value) if isinstance(value, (int, float)) else None
    written = _text(name, value) if number is None else number
    whole = WHOLE_VARIANT.fullmatch(written)
    return whole[1] if whole else written


def normalized_resolution(text: str) -> str:
    """A size in the package's own spelling; a word that is no size stays as it is."""
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
        _refuse(name, given(value), f"takes a number from {low} to {high}.")
    return number + 0.0  # -0.0 becomes 0.0: one value, one fingerprint


def _flag(name: str, value: Any) -> bool:
    flag = value if isinstance(value, bool) else _FLAGS.get((as_text(value) or "").strip().lower())
    if flag is None:
        _refuse(name, given(value), "takes true or false.")
    return flag


def _decoded(name: str, value: Any) -> Any:
    """JSON text as what it stands for, any other text stripped; the text of a Python object is refused."""
    if not isinstance(value, str):
        return value
    if not _REPR.match(value):
        return value.strip()
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        _refuse(name, given(value), "takes URIs, JSON or manifests.", _TOJSON)


def _manifest_uris(name: str, value: Mapping[Any, Any]) -> tuple[str, ...]:
    images = [value] if "uri" in value else value.get("images")
    if not isinstance(images, (list, tuple)) or not images:
        _refuse(name, given(value), 'a mapping must be a manifest with pictures: {"images": [{"uri": ...}]}.')
    uris = [image.get("uri") if isinstance(image, Mapping) else None for image in images]
    if not all(isinstance(uri, str) and uri.strip() for uri in uris):
        _refuse(name, given(value), "every picture of a manifest needs its uri.")
    return tuple(str(uri).strip() for uri in uris)


def _picture(name: str, value: Any) -> str:
    value = _decoded(name, value)
    if isinstance(value, Mapping):
        uris = _manifest_uris(name, value)
        if len(uris) != 1:
            _refuse(name, given(value), f"takes exactly one picture, this manifest has {len(uris)}.", "Name one's uri.")
        return uris[0]
    if not isinstance(value, str):
        problem = f"takes one picture, as a URI or as a manifest with exactly one, not {type(value).__name__}."
        _refuse(name, given(value), problem)
    return value


def _pictures(name: str, value: Any, depth: int = 0) -> tuple[str, ...]:
    value = _decoded(name, value)
    if depth > MAX_DEPTH:
        _refuse(name.partition("[")[0], "", f"nests deeper than {MAX_DEPTH} lists.", "Give one flat list.")
    if isinstance(value, str) and value:
        return (value,)
    if isinstance(value, Mapping):
        return _manifest_uris(name, value)
    # A set has no order of its own, and the order of references counts.
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, set, frozenset)):
        found: list[str] = []
        for index, item in enumerate(value):
            uris = _pictures(f"{name}[{index}]", item, depth + 1)
            if not uris:
                _refuse(f"{name}[{index}]", given(item), "is empty; every item must give a picture.")
            found += uris
            if len(found) > MAX_INPUTS:
                _refuse(name, "", f"gives more than {MAX_INPUTS} pictures, which no model takes.")
        return tuple(found)
    _refuse(name, given(value), "takes URIs, as a list, a JSON array, one text, a manifest or a list of manifests.")


_CLEANERS: Mapping[str, Callable[[str, Any], Any]] = {
    "prompt": _prompt,
    "model": _text,
    "image": _picture,
    "reference_images": _pictures,
    "resolution": _resolution,
    "aspect_ratio": _text,
    "temperature": _number,
    "top_p": _number,
    "google_search": _flag,
    "google_image_search": _flag,
    "variant": _variant,
}


def _clean(name: str, value: Any) -> Any:
    """The value of a field as the rest of the package sees it; unset is ``None``, or no pictures at all."""
    unset = value is None or (isinstance(value, str) and not value.strip())
    if unset and name != "prompt":
        return () if name == "reference_images" else None
    cleaned = _CLEANERS[name](name, value)
    for text in cleaned if isinstance(cleaned, tuple) else (cleaned,):
        if isinstance(text, str):
            refuse_half_characters(name, text)
    return cleaned


# Rules of a row. A name that is absent from `values` is not known yet and breaks no rule.


def _only_what_it_takes(row: Row, values: Mapping[str, Any], where: str) -> None:
    for name in (*_PICTURES, *_SETTINGS):
        value = values.get(name)
        if value in (None, ()) or name in row.fields:
            continue
        takes = ", ".join(("prompt", *(known for known in (*_PICTURES, *_SETTINGS) if known in row.fields)))
        hint = _EDIT_TAKES_PICTURES if name in _PICTURES else ""
        shown = f" ({len(value)} given)" if isinstance(value, tuple) else given(value)
        _refuse(name, shown, f"is not taken by {where}, which takes: {takes}.", hint)


def _listed_values(row: Row, values: Mapping[str, Any], where: str) -> None:
    for name, allowed in (("resolution", row.resolutions), ("aspect_ratio", row.aspect_ratios)):
        value = values.get(name)
        if value is not None and value not in allowed:
            problem = f"is not taken by {where}. Allowed: {', '.join(allowed)}."
            _refuse(name, given(value), problem, _did_you_mean(value, allowed))


def _within_bounds(row: Row, values: Mapping[str, Any], where: str) -> None:
    for name, (low, high) in BOUNDS.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            _refuse(name, given(value), f"out of range. Allowed: {low} to {high}.")


def _image_search_needs_search(row: Row, values: Mapping[str, Any], where: str) -> None:
    if values.get("google_image_search") and not values.get("google_search", True):
        _refuse("google_image_search", "=True", f"needs google_search=True, given: {values['google_search']}.")


def _number_of_references(row: Row, values: Mapping[str, Any], where: str) -> None:
    count = len(values.get("reference_images", ()))
    if count > row.max_reference_images:
        problem = f"{count} given. {where} takes at most {row.max_reference_images} beside image."
        _refuse("reference_images", "", problem)


def _edit_needs_an_image(row: Row, values: Mapping[str, Any], where: str) -> None:
    if "image" in row.fields and values.get("image", "") is None:
        _refuse("image", "", f"not given. {where} needs the picture to edit, as a URI or a manifest with exactly one.")


_RULES = (
    _only_what_it_takes,
    _listed_values,
    _within_bounds,
    _image_search_needs_search,
    _number_of_references,
    _edit_needs_an_image,
)


def _obey(row: Row, values: Mapping[str, Any], where: str) -> None:
    for rule in _RULES:
        rule(row, values, where)


def _union(rows: Sequence[Row]) -> Row:
    """A row that takes whatever one of these takes."""
    return dataclasses.replace(
        rows[0],
        fields=frozenset().union(*(row.fields for row in rows)),
        resolutions=tuple(dict.fromkeys(value for row in rows for value in row.resolutions)),
        aspect_ratios=tuple(dict.fromkeys(value for row in rows for value in row.aspect_ratios)),
        max_reference_images=max(row.max_reference_images for row in rows),
    )


def is_literal(value: Any) -> bool:
    """Whether the value stands for itself: no template, nothing of Airflow's."""
    parts, depth = [value], 0
    while parts:  # a level at a time: what nests deeper than the interpreter goes is refused later, with its name
        if not all(map(_may_be_literal, parts)):
            return False
        depth += 1
        parts = [] if depth > MAX_DEPTH else [part for each in parts for part in _parts_of(each)]
    return True


def _may_be_literal(value: Any) -> bool:
    if isinstance(value, str):
        return not any(mark in value for mark in ("{{", "{%", "{#"))
    return value is None or type(value) is dict or isinstance(value, (int, float, list, tuple))


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return (part for pair in value.items() for part in pair)
    return value if isinstance(value, (list, tuple)) else ()
