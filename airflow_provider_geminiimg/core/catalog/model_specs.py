"""The rows of the catalogue, one per gateway, model and operation.

What must stay true: rows are data; every figure has its source in `ModelSpec.sources`; a row has a field only if its
source says that the gateway takes it, because both gateways ignore unknown fields and still charge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.catalog.google_models import (
    FLASH,
    FLASH_25,
    FLASH_GA,
    FLASH_LITE,
    GOOGLE_MODELS,
    NANO_BANANA_21,
    PRO,
)


@dataclass(frozen=True)
class ModelSpec:
    """One row: the fields, limits, prices and times of one model and operation at one gateway.

    :param gateway: ``1min`` or ``apimaster``.
    :param model: the row's name. It never changes, even if the model gets a new id; budgets and prices depend on it.
    :param operation: ``generate`` or ``edit``.
    :param wire_model: the id that is sent.
    :param fingerprint_model: the model's name in fingerprints. It never changes and is the same for all ids of the
        model, so that a new id buys nothing twice.
    :param one_id: whether `wire_model` is sent for each of the model's ids.
    :param fields: the allowed request fields besides the prompt.
    :param resolutions: the allowed sizes; empty if the model takes no size.
    :param default_resolution: the size of a request that names none; ``None`` if the model takes no size.
    :param aspect_ratios: the allowed aspect ratios; empty if the model takes none.
    :param max_reference_images: maximum number of reference images besides `image`.
    :param max_input_bytes: maximum size of one input image in bytes.
    :param max_total_input_bytes: maximum size of all input images of a request in bytes.
    :param input_media_types: the allowed media types of input images.
    :param prices: price of one image by size (``""`` if the model takes none); empty if unknown. No gateway publishes
        its prices, so these are estimates.
    :param input_price: additional price for each input image.
    :param currency: the currency of `prices`: ``USD``.
    :param price_basis: ``google_list`` (Google's list price) or ``unknown``.
    :param expected_seconds: typical duration of a job in seconds, by size as in `prices`.
    :param read_timeouts: seconds to wait for a synchronous response, by size as in `prices`.
    :param verified: whether the gateway's documentation lists this model for this operation.
    :param sources: the source of each figure, by field name.
    """

    gateway: str
    model: str
    operation: str
    wire_model: str
    fingerprint_model: str
    fields: frozenset[str]
    resolutions: tuple[str, ...]
    default_resolution: str | None
    aspect_ratios: tuple[str, ...]
    max_reference_images: int
    max_input_bytes: int
    max_total_input_bytes: int
    input_media_types: tuple[str, ...]
    prices: Mapping[str, Decimal]
    input_price: Decimal
    currency: str
    price_basis: str
    expected_seconds: Mapping[str, float]
    read_timeouts: Mapping[str, float]
    verified: bool
    sources: Mapping[str, str]
    one_id: bool = False

    def price(self, resolution: str | None) -> Decimal | None:
        """The price of one image; ``None`` if it is unknown.

        :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; ``None`` if the model takes no size.
        """
        return self.prices.get(resolution or "")

    def expected(self, resolution: str | None) -> float:
        """Typical duration of a job in seconds; the first poll comes that long after the submit."""
        return self.expected_seconds.get(resolution or "", max(self.expected_seconds.values()))

    def read_timeout(self, resolution: str | None) -> float:
        """Seconds to wait for a synchronous response."""
        return self.read_timeouts.get(resolution or "", max(self.read_timeouts.values()))


OWN = "our own estimate; the gateway publishes none"

_IMAGES = frozenset({"image", "reference_images"})
SIZE = frozenset({"resolution"})
_RATIO = frozenset({"aspect_ratio"})
_SAMPLING = frozenset({"temperature", "top_p"})
_SEARCH = frozenset({"google_search", "google_image_search"})

# Google's price of a 1K image, times the tiers of APIMaster's guide.
_APIMASTER_FLASH = {"512": Decimal("0.0672"), "1K": Decimal("0.0672"), "2K": Decimal("0.0896"), "4K": Decimal("0.1344")}

_FLASH_SECONDS = {"512": 9.0, "1K": 9.0, "2K": 15.0, "4K": 26.0}
_PRO_SECONDS = {"1K": 11.0, "2K": 15.0, "4K": 26.0}
_25_SECONDS = {"": 9.0}
_APIMASTER_SECONDS = {"512": 10.0, "1K": 10.0, "2K": 15.0, "4K": 26.0}

_ONEMIN_PAGE = "1min.ai API docs, "
_APIMASTER_PAGE = "APIMaster model guide of Gemini 3.1 Flash Image Preview"

_ONEMIN_SOURCES = {
    "max_input_bytes": "Google's 7 MB an inline image; stricter than the 50 MB a file of the 1min.ai Asset API",
    "max_total_input_bytes": "the most images that a request takes, times the limit of one",
    "input_media_types": "Google's model pages: PNG, JPEG, WebP for every model",
    "prices": "Google's list price; 1min.ai charges credits and publishes no figure",
    "input_price": "Google's list price of an input image",
    "expected_seconds": OWN,
    "read_timeouts": f"{OWN}; three times the 100 s after which the proxy before it gives up",
}
_ONEMIN_UNDOCUMENTED = {
    **_ONEMIN_SOURCES,
    "fields": "not documented by 1min.ai for this model: as for 3.1 Flash",
    "resolutions": "Google's model page",
    "aspect_ratios": "Google's model page",
    "max_reference_images": "not documented by 1min.ai for this model: as for 3.1 Flash",
}
_APIMASTER_SOURCES = {
    "max_input_bytes": "Google's model pages: 7 MB an inline image",
    "max_total_input_bytes": f"{OWN}; images go inline as base64, kept under 20 MB a request (Google's old limit)",
    "input_media_types": "Google's model pages: PNG, JPEG, WebP for every model",
    "input_price": "Google's list price of an input image; APIMaster's is not known",
    "expected_seconds": f"{OWN}; {_APIMASTER_PAGE} asks for a first poll after 10-20 s",
    "read_timeouts": "the gateway itself gives up after 180, 300, 900 s at 1K, 2K, 4K (seen); 30 s more",
}
_APIMASTER_DOC = {
    **_APIMASTER_SOURCES,
    "fields": _APIMASTER_PAGE,
    "resolutions": _APIMASTER_PAGE,
    "aspect_ratios": f"{_APIMASTER_PAGE} (extreme ratios); Google's model page: 14",
    "max_reference_images": f"{_APIMASTER_PAGE}: 14 input images; the one to edit is the first of them",
    "prices": (
        "Google's list price of a 1K image, times 1, 1, 4/3, 2 for 0.5K, 1K, 2K, 4K "
        f"({_APIMASTER_PAGE}). APIMaster charges its channel's price times these and the account's group ratio"
    ),
}
_APIMASTER_UNDOCUMENTED = {
    **_APIMASTER_SOURCES,
    "fields": "not documented by APIMaster for this model: what Google's model shares with 3.1 Flash",
    "resolutions": "Google's model page",
    "aspect_ratios": "Google's model page",
    "max_reference_images": "Google's model page: 14 input images; the one to edit is the first of them",
    "prices": "Google's list price; APIMaster's is not known",
}

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")


def _of_google(model: str) -> dict[str, Any]:
    """The values of a row that come from Google's data."""
    google = GOOGLE_MODELS[model]
    return {
        "model": model,
        "wire_model": model,
        "fingerprint_model": model,
        "resolutions": google.sizes,
        "default_resolution": "1K" if google.sizes else None,
        "aspect_ratios": google.ratios,
        "prices": google.prices,
        "input_price": google.input_price,
        "currency": "USD",
        "price_basis": "google_list",
        "input_media_types": _MEDIA_TYPES,
    }


def _onemin(model: str, expected_seconds: Mapping[str, float], **stated: Any) -> dict[str, Any]:
    return {
        **_of_google(model),
        "gateway": "1min",
        "max_input_bytes": 7_000_000,
        "max_total_input_bytes": 21_000_000,
        "expected_seconds": expected_seconds,
        "read_timeouts": dict.fromkeys(expected_seconds, 300.0),
        "verified": True,
        **stated,
    }


def _apimaster(model: str, expected_seconds: Mapping[str, float], **stated: Any) -> dict[str, Any]:
    return {
        **_of_google(model),
        "gateway": "apimaster",
        "max_input_bytes": 7_000_000,
        "max_total_input_bytes": 15_000_000,
        "expected_seconds": expected_seconds,
        "read_timeouts": {"512": 210.0, "1K": 210.0, "2K": 330.0, "4K": 930.0},
        "verified": False,
        "sources": _APIMASTER_UNDOCUMENTED,
        **stated,
    }


def _onemin_sources(page: str) -> dict[str, str]:
    """The sources of a 1min row: its own page for four fields, and the sources that all 1min rows share."""
    stated = ("fields", "resolutions", "aspect_ratios", "max_reference_images")
    return {**_ONEMIN_SOURCES, **dict.fromkeys(stated, _ONEMIN_PAGE + page)}


_NEW_AT_1MIN: dict[str, Any] = {"verified": False, "sources": _ONEMIN_UNDOCUMENTED}
_AT_1MIN: Mapping[str, dict[str, Any]] = {
    FLASH: _onemin(FLASH, _FLASH_SECONDS),
    PRO: _onemin(PRO, _PRO_SECONDS, aspect_ratios=()),
    FLASH_25: _onemin(FLASH_25, _25_SECONDS, aspect_ratios=(), one_id=True),
    FLASH_LITE: _onemin(FLASH_LITE, {"1K": 9.0}, **_NEW_AT_1MIN),
    NANO_BANANA_21: _onemin(NANO_BANANA_21, _PRO_SECONDS, **_NEW_AT_1MIN),
}
_AT_APIMASTER: Mapping[str, dict[str, Any]] = {
    FLASH: _apimaster(
        FLASH,
        _APIMASTER_SECONDS,
        wire_model=FLASH_GA,
        prices=_APIMASTER_FLASH,
        verified=True,
        sources=_APIMASTER_DOC,
    ),
    PRO: _apimaster(PRO, _PRO_SECONDS),
    FLASH_LITE: _apimaster(FLASH_LITE, {"1K": 10.0}),
    NANO_BANANA_21: _apimaster(NANO_BANANA_21, _PRO_SECONDS),
}


def _both(shared: dict[str, Any], fields: frozenset[str], references: int) -> tuple[ModelSpec, ModelSpec]:
    """The two rows of a model whose generator and editor take the same settings."""
    return (
        ModelSpec(**shared, operation="generate", fields=fields, max_reference_images=0),
        ModelSpec(**shared, operation="edit", fields=_IMAGES | fields, max_reference_images=references),
    )


ROWS: tuple[ModelSpec, ...] = (
    ModelSpec(
        **_AT_1MIN[FLASH],
        operation="generate",
        fields=SIZE | _RATIO | _SAMPLING,
        max_reference_images=0,
        sources=_onemin_sources("Gemini 3.1 Flash Image Preview - Image Generator"),
    ),
    ModelSpec(
        **_AT_1MIN[FLASH],
        operation="edit",
        fields=_IMAGES | SIZE | _RATIO | _SAMPLING,
        max_reference_images=2,
        sources={
            **_onemin_sources("Gemini 3.1 Flash Image Preview - Image Text Editor (its parameter table)"),
            "aspect_ratios": (
                f"{_ONEMIN_PAGE}Gemini 3.1 Flash Image Preview - Image Text Editor: its sample answer shows "
                "aspectRatio in the request that was accepted, its parameter table does not; the generator's 14"
            ),
        },
    ),
    ModelSpec(
        **_AT_1MIN[PRO],
        operation="generate",
        fields=SIZE | _SAMPLING,
        max_reference_images=0,
        sources=_onemin_sources("Gemini 3 Pro Image Preview - Image Generator"),
    ),
    ModelSpec(
        **_AT_1MIN[PRO],
        operation="edit",
        fields=_IMAGES | SIZE | _SAMPLING,
        max_reference_images=2,
        sources=_onemin_sources("Gemini 3 Pro Image Preview - Image Text Editor"),
    ),
    ModelSpec(
        **_AT_1MIN[FLASH_25],
        operation="generate",
        fields=frozenset(),
        max_reference_images=0,
        sources=_onemin_sources("Gemini 2.5 Flash Image - Image Generator"),
    ),
    ModelSpec(
        **{**_AT_1MIN[FLASH_25], **dict.fromkeys(("wire_model", "fingerprint_model"), f"{FLASH_25}-preview")},
        operation="edit",
        fields=_IMAGES,
        max_reference_images=2,
        sources=_onemin_sources("Gemini 2.5 Flash Image Preview - Image Text Editor"),
    ),
    *_both(_AT_1MIN[FLASH_LITE], SIZE | _RATIO | _SAMPLING, 2),
    *_both(_AT_1MIN[NANO_BANANA_21], SIZE | _RATIO | _SAMPLING, 2),
    *_both(_AT_APIMASTER[FLASH], SIZE | _RATIO | _SEARCH, 13),
    *_both(_AT_APIMASTER[PRO], SIZE | _RATIO, 13),
    *_both(_AT_APIMASTER[FLASH_LITE], SIZE | _RATIO, 13),
    *_both(_AT_APIMASTER[NANO_BANANA_21], SIZE | _RATIO | _SEARCH, 13),
)
