"""The request for one image: its fields, its check against the catalogue, and its fingerprint.

What must stay true: `ImageRequest.check` returns exactly the given fields (nothing is dropped or guessed), or refuses
the request before anything is sent or paid; every refusal is a `BadRequestError` that names the field, the value and
the allowed values, and never contains the prompt or a link's query; equal requests have equal fingerprints, and a
fingerprint changes only with `FINGERPRINT_VERSION`.
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
SHARED = tuple(name for name in REQUEST_FIELDS if name != "variant")  # fields that a batch may set for all rows
VALID_WITHOUT_IMAGE = 'With if_no_image="generate", the arguments must also be valid without an image.'

_SETTINGS = ("resolution", "aspect_ratio", "temperature", "top_p", "google_search", "google_image_search")
_IMAGES = ("image", "reference_images")
_EDIT_TAKES_IMAGES = 'Input images belong to the operation "edit" (GeminiImageEditOperator).'


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that its gateway accepts.

    :param gateway: ``1min`` or ``apimaster``.
    :param row: the catalogue's row of the model and operation; `ModelSpec.wire_model` is the id to send.
    :param model: the model id as the user wrote it.
    :param operation: ``generate`` or ``edit``.
    :param prompt: description of the image or of the edit.
    :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; ``None`` only if the model takes no size.
    :param aspect_ratio: width to height, as in ``16:9``.
    :param temperature: 0.0 to 2.0.
    :param top_p: 0.0 to 1.0.
    :param google_search: ground the image in a web search.
    :param google_image_search: also ground it in an image search.
    :param variant: distinguishes two images of the same request; never sent.
    :param image: URI of the image to edit.
    :param reference_images: URIs of the reference images.
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
        """URIs of the input images: the image to edit, then the references."""
        return (() if self.image is None else (self.image,)) + self.reference_images

    def fields(self) -> dict[str, Any]:
        """The fields that are set, without prompt and images, for logs and records."""
        values = {name: getattr(self, name) for name in (*_SETTINGS, "variant")}
        return {name: value for name, value in values.items() if value is not None}

    def fingerprint(self, *, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> str:
        """The fingerprint: 64 hex digits, equal exactly for equal requests through the same connection.

        :param input_sha256: hex digests of the input images' bytes, in the order of `input_images`. The URIs do not
            matter: the same image at another place gives the same fingerprint.
        :param base_url_host: host of the API.
        :param conn_id: id of the Airflow connection.
        :raises ValueError: the number of digests is not the number of input images.
        """
        if len(input_sha256) != len(self.input_images):
            raise ValueError(f"{len(self.input_images)} input images need as many digests, got {len(input_sha256)}.")
        return self._digest(self.row.fingerprint_model, input_sha256, base_url_host, conn_id)

    def fingerprints(self, *, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> tuple[str, ...]:
        """The `fingerprint`, then the fingerprints that earlier versions gave the same request: they distinguished the
        ids of a model, and the variants ``1`` and ``1.0``. The parameters are those of `fingerprint`."""
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
    """A request before its gateway is known. Create one with `build`.

    :param operation: ``generate`` or ``edit``. Default: ``edit`` with an `image`, ``generate`` without one.
    :param prompt: description of the image or of the edit; a number becomes text.
    :param model: model id; default: the connection's model, else the gateway's default, see `lookup.default_model`.
    :param image: the image to edit: a URI, or a manifest with exactly one image.
    :param reference_images: a list, a JSON array, one URI, a manifest, or a sequence of these.
    :param resolution: ``512``, ``1K``, ``2K`` or ``4K`` in any case; ``0.5K`` means ``512``.
    :param aspect_ratio: as in ``16:9``.
    :param temperature: 0.0 to 2.0.
    :param top_p: 0.0 to 1.0.
    :param google_search: true or false.
    :param google_image_search: true or false; needs `google_search`.
    :param variant: any text or number; distinguishes two images of the same request and is never sent.
    :raises BadRequestError: a value is not allowed for its field.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    operation: Literal["generate", "edit"] = "generate"
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
        if info.field_name == "image" and isinstance(value, str) and not value.strip():
            raise BadRequestError("image is empty text.", hint="To generate, leave image out, or give None.")
        return clean(str(info.field_name), value)

    @pydantic.model_validator(mode="after")
    def _infer_operation(self) -> ImageRequest:
        if "operation" not in self.model_fields_set and self.image is not None:
            self.__dict__["operation"] = "edit"  # bypasses `frozen`, and leaves `model_fields_set` as it is
        return self

    @classmethod
    def build(cls, **values: Any) -> ImageRequest:
        """Create a request from values of DAGs, templates or rows.

        :param values: the fields by name, see the class; ``None``, and blank text in an optional field, mean unset.
        :raises BadRequestError: a field does not exist, or its value is not allowed.
        """
        refuse_missing_value(values)
        if isinstance(values.get("image"), str) and not values["image"].strip():
            values["image"] = None
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise _refusal(error, values) from None

    def check(self, gateway: str, connection_model: str | None = None) -> CheckedRequest:
        """Check this request against the gateway's row for its model and operation.

        :param gateway: ``1min`` or ``apimaster``.
        :param connection_model: the connection's model, for a request that names none.
        :raises BadRequestError: the gateway does not accept a field; names the field, its value and the allowed values.
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
    """Check literal arguments when a DAG is parsed; refuse those that no gateway accepts for the model.

    Values that are only known at run time (templates, XComs, ``literal()``, any object of Airflow) are not checked.

    :param operation: ``generate`` or ``edit``.
    :param model: the operator's model; if unset or templated, any model of the catalogue.
    :param values: the operator's arguments by name.
    :raises BadRequestError: a value is not allowed; names the field, its value and the allowed values.
    """
    refuse_missing_value({name: value for name, value in {"model": model, **values}.items() if is_literal(value)})
    name = clean("model", model) if is_literal(model) else None
    known = {key: clean(key, value) for key, value in values.items() if is_literal(value)}
    _obey(_union(rows_for(name, operation)), known, f"{name or 'any model'} ({operation} on any gateway)")


def prompt_sha256(prompt: str) -> str:
    """Hex SHA-256 of the prompt in UTF-8; records contain it instead of the prompt unless prompts are recorded."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def _refusal(error: pydantic.ValidationError, values: Mapping[str, Any]) -> BadRequestError:
    """The error for what pydantic refuses: a missing or unknown field, or a value that is not in a ``Literal``."""
    problem = error.errors(include_url=False, include_context=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        names = ", ".join(ImageRequest.model_fields)
        hint = did_you_mean(name, ImageRequest.model_fields)
        return BadRequestError(f"{name}: there is no such field. Allowed: {names}.", hint=hint)
    shown = "" if name == "prompt" or name not in values else given(values[name])
    return BadRequestError(f"{name}{shown}: {problem['msg']}.")


# The rules of a row. A field that is missing in `values` is not known yet and breaks no rule.


def _only_what_it_takes(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for name in (*_IMAGES, *_SETTINGS):
        value = values.get(name)
        if value in (None, ()) or name in row.fields:
            continue
        takes = ", ".join(("prompt", *(known for known in (*_IMAGES, *_SETTINGS) if known in row.fields)))
        hint = _EDIT_TAKES_IMAGES if name in _IMAGES else ""
        shown = f" ({len(value)} given)" if isinstance(value, tuple) else given(value)
        refuse(name, shown, f"is not accepted by {where}, which accepts: {takes}.", hint)


def _listed_values(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for name, allowed in (("resolution", row.resolutions), ("aspect_ratio", row.aspect_ratios)):
        value = values.get(name)
        if value is not None and value not in allowed:
            problem = f"is not accepted by {where}. Allowed: {', '.join(allowed)}."
            refuse(name, given(value), problem, did_you_mean(value, allowed))


def _within_bounds(row: ModelSpec, values: Mapping[str, Any], where: str) -> None:
    for name, (low, high) in BOUNDS.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            refuse(name, given(value), f"is out of range. Allowed: {low} to {high}.")


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
    """A row that accepts everything that at least one of `rows` accepts."""
    return dataclasses.replace(
        rows[0],
        fields=frozenset().union(*(row.fields for row in rows)),
        resolutions=tuple(dict.fromkeys(value for row in rows for value in row.resolutions)),
        aspect_ratios=tuple(dict.fromkeys(value for row in rows for value in row.aspect_ratios)),
        max_reference_images=max(row.max_reference_images for row in rows),
    )
