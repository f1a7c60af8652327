"""What the user asks for, in neutral words, checked against the catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from airflow_provider_geminiimg.catalog import DEFAULT_MODEL, Row, lookup

FINGERPRINT_VERSION = 1
_SETTINGS = ("resolution", "aspect_ratio", "temperature", "top_p", "google_search", "google_image_search")


@dataclass(frozen=True)
class CheckedRequest:
    """A request that its gateway takes as it stands."""

    gateway: str
    row: Row
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
        """The pictures that go in: the one to edit first, then the references."""
        return (() if self.image is None else (self.image,)) + self.reference_images

    def fields(self) -> dict[str, Any]:
        """The settings that are set, by their neutral names, without prompt and pictures."""
        values = {name: getattr(self, name) for name in (*_SETTINGS, "variant")}
        return {name: value for name, value in values.items() if value is not None}

    def fingerprint(self, *, input_sha256: Sequence[str], base_url_host: str, conn_id: str) -> str:
        """64 hex digits that tell this request from every other one."""
        document = {
            "version": FINGERPRINT_VERSION,
            "gateway": self.gateway,
            "base_url_host": base_url_host,
            "conn_id": conn_id,
            "operation": self.operation,
            "model": self.row.wire_model,
            "prompt": self.prompt,
            "fields": self.fields(),
            "input_sha256": list(input_sha256),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ImageRequest(pydantic.BaseModel):
    """What the user asks for."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    operation: str
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

    @classmethod
    def build(cls, **values: Any) -> ImageRequest:
        """A request from values as people write them."""
        return cls(**{name: value for name, value in values.items() if value is not None})

    def check(self, gateway: str, default_model: str | None = None) -> CheckedRequest:
        """This request, if the gateway takes it."""
        model = self.model or default_model or DEFAULT_MODEL
        row = lookup(gateway, model, self.operation)
        values = {**self.model_dump(), "model": model, "resolution": self.resolution or row.default_resolution}
        return CheckedRequest(gateway=gateway, row=row, **values)


def check_literals(operation: str, model: Any, **values: Any) -> None:
    """Refuse what no gateway takes, when a DAG is parsed."""


def prompt_sha256(prompt: str) -> str:
    """Hex digest of the prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()
