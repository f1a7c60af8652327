"""What the user asks for, in neutral words, so that a wrong wish is refused before anything is sent or paid for.

What must stay true: what leaves `ImageRequest.check` is exactly what the gateway's row takes (nothing is dropped or
guessed); every refusal is one `BadRequestError` naming the field, the value and what is allowed, never the prompt's
text or a link's query; one wish has one fingerprint, which changes only with `FINGERPRINT_VERSION`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic

from airflow_provider_geminiimg.core.catalog.lookup import ModelSpec, default_model, lookup, other_ids, rows_for
from airflow_provider_geminiimg.core.validation.arguments import is_literal
from airflow_provider_geminiimg.core.validation.request_values import (
    BOUNDS,
    WHOLE_VARIANT,
    clean,
    did_you_mean,
    refuse,
    refuse_missing_value,
)
from airflow_provider_geminiimg.core.validation.texts import given
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
_IMAGES = ("image", "reference_images")
_EDIT_TAKES_IMAGES = 'Input images belong to the operation "edit" (GeminiImageEditOperator).'


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that its gateway takes as it stands.

    :param gateway: ``1min`` or ``apimaster``.
    :param row: what the gateway takes for this model and operation; `ModelSpec.wire_model` is the id to send.
    :param model: the id as the user wrote it.
    :param operation: ``generate`` or ``edit``.
    :param prompt: what to draw.
    :param resolution: ``512`` ``1K`` ``2K`` ``4K``; never ``None`` where the row takes one.
    :param aspect_ratio: width to height, as in ``16:9``.
    :param temperature: 0.0 to 2.0.
    :param top_p: 0.0 to 1.0.
    :param google_search: ground the image in a web search.
    :param google_image_search: ground it in an image search too.
    :param variant: tells two wanted images of one prompt apart; never sent.
    :param image: URI of the image to edit.
    :param reference_images: URIs of the references.
    """

    gateway: str
    row: ModelSpec = field(repr=False)
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
        """URIs of the images that go in: the one to edit first, then the references."""
        return (() if self.image is None else (self.image,)) + self.reference_images

    def fields(self) -> dict[str, Any]:
        """The settings that are set, by their neutral names, without prompt and images: fit for logs and records."""
        values = {name: getattr(self, name) for name in (*_SETTINGS, "variant")}
        return {name: value for name, value in values.items() if value is not None}

    def fingerprint(self, *, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> str:
        """64 hex digits that are the same exactly for the same wish at the same place.

        :param input_sha256: hex digests of the input images' bytes, in the order of `input_images`. The URIs
            don't count: the same image elsewhere is the same wish.
        :param base_url_host: host of the API.
        :param conn_id: id of the Airflow connection.
        :raises ValueError: when there are not as many digests as input images.
        """
        if len(input_sha256) != len(self.input_images):
            raise ValueError(f"{len(self.input_images)} input images need as many digests, got {len(input_sha256)}.")
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
    :param image: the image to edit: a URI, or a manifest with exactly one image.
    :param reference_images: a list, a JSON array, one URI, a manifest, or a sequence of these.
    :param resolution: ``512`` ``1K`` ``2K`` ``4K`` in any case; ``0.5K`` means ``512``.
    :param aspect_ratio: as in ``16:9``.
    :param temperature: 0.0 to 2.0.
    :param top_p: 0.0 to 1.0.
    :param google_search: true or false.
    :param google_image_search: true or false; needs `google_search`.
    :param variant: any text or number; tells two wanted images of one prompt apart and is never sent.
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

    @pydantic.field_validator("prompt", "model", "variant", *_IMAGES, *_SETTINGS, mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        return clean(str(info.field_name), value)

    @classmethod
    def build(cls, **values: Any) -> ImageRequest:
        """A request from values as people and templates write them; see the class for what each field takes.

        :param values: by the neutral names; ``None``, and an empty text in an optional field, mean unset.
        :raises BadRequestError: for a field that does not exist or a value that can't be what its field means.
        """
        refuse_missing_value(values)
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
        values = {name: getattr(self, name) for name in (*_IMAGES, *_SETTINGS)}
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
    refuse_missing_value({name: value for name, value in {"model": model, **values}.items() if is_literal(value)})
    name = clean("model", model) if is_literal(model) else None
    known = {key: clean(key, value) for key, value in values.items() if is_literal(value)}
    _obey(_union(rows_for(name, operation)), known, f"{name or 'any model'} ({operation} on any gateway)")


def prompt_sha256(prompt: str) -> str:
    """Hex SHA-256 of the prompt's UTF-8 bytes: what records keep where prompts are not recorded."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def _refusal(error: pydantic.ValidationError, values: Mapping[str, Any]) -> BadRequestError:
    """What pydantic itself found wrong (a field that is missing, unknown, or not one of its words)."""
    problem = error.errors(include_url=False, include_context=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        names = ", ".join(ImageRequest.model_fields)
        hint = did_you_mean(name, ImageRequest.model_fields)
        return BadRequestError(f"{name}: there is no such field. Allowed: {names}.", hint=hint)
    shown = "" if name == "prompt" or name not in values else given(values[name])
    return BadRequestError(f"{name}{shown}: {problem['msg']}.")


# Rules of a row. A name that is absent from `values` is not known yet and breaks no rule.


def _only_what_it_takes(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for name in (*_IMAGES, *_SETTINGS):
        value = values.get(name)
        if value in (None, ()) or name in row.fields:
            continue
        takes = ", ".join(("prompt", *(known for known in (*_IMAGES, *_SETTINGS) if known in row.fields)))
        hint = _EDIT_TAKES_IMAGES if name in _IMAGES else ""
        shown = f" ({len(value)} given)" if isinstance(value, tuple) else given(value)
        refuse(name, shown, f"is not taken by {where}, which takes: {takes}.", hint)


def _listed_values(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for name, allowed in (("resolution", row.resolutions), ("aspect_ratio", row.aspect_ratios)):
        value = values.get(name)
        if value is not None and value not in allowed:
            problem = f"is not taken by {where}. Allowed: {', '.join(allowed)}."
            refuse(name, given(value), problem, did_you_mean(value, allowed))


def _within_bounds(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for name, (low, high) in BOUNDS.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            refuse(name, given(value), f"out of range. Allowed: {low} to {high}.")


def _image_search_needs_search(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    if values.get("google_image_search") and not values.get("google_search", True):
        refuse("google_image_search", "=True", f"needs google_search=True, given: {values['google_search']}.")


def _number_of_references(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    count = len(values.get("reference_images", ()))
    if count > row.max_reference_images:
        problem = f"{count} given. {where} takes at most {row.max_reference_images} beside image."
        refuse("reference_images", "", problem)


def _edit_needs_an_image(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    if "image" in row.fields and values.get("image", "") is None:
        refuse("image", "", f"not given. {where} needs the image to edit, as a URI or a manifest with exactly one.")


_RULES = (
    _only_what_it_takes,
    _listed_values,
    _within_bounds,
    _image_search_needs_search,
    _number_of_references,
    _edit_needs_an_image,
)


def _obey(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for rule in _RULES:
        rule(row, values, where)


def _union(rows: Sequence[ModelSpec]) -> ModelSpec:
    """A row that takes whatever one of these takes."""
    return dataclasses.replace(
        rows[0],
        fields=frozenset().union(*(row.fields for row in rows)),
        resolutions=tuple(dict.fromkeys(value for row in rows for value in row.resolutions)),
        aspect_ratios=tuple(dict.fromkeys(value for row in rows for value in row.aspect_ratios)),
        max_reference_images=max(row.max_reference_images for row in rows),
    )
