"""What each gateway takes, gateway by model by operation, as one table, so that no other module holds such a figure.

What must stay true: rows are data; every figure names its source in `Row.sources`; a field stands in a row only where
its source says that this gateway takes it, because both gateways ignore what they don't know and charge all the same.
A new model or gateway is new rows here, not new code elsewhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.exceptions import BadRequestError

DEFAULT_MODEL = "gemini-3.1-flash-image-preview"
PRO_MODEL = "gemini-3-pro-image-preview"
FLASH_25_MODEL = "gemini-2.5-flash-image"

SUCCESSORS: Mapping[str, str] = {
    "gemini-3.1-flash-image": DEFAULT_MODEL,
    "gemini-3-pro-image": PRO_MODEL,
}
"""Ids that Google announced as successors of the preview ids: they share that row and are sent as they are written."""

OTHER_IDS: Mapping[str, str] = {"gemini-2.5-flash-image-preview": FLASH_25_MODEL}
"""Ids by which one operation of a gateway knows a model: users may write them, the row's own `wire_model` is sent."""

BOUNDS: Mapping[str, tuple[float, float]] = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0)}
"""Lowest and highest value. Source: 1min.ai API docs, the parameter tables of the image generators and editors."""


@dataclass(frozen=True)
class Row:
    """What one gateway takes for one model and operation, and what to expect of it.

    :param gateway: ``1min`` or ``apimaster``.
    :param model: the id that users write.
    :param operation: ``generate`` or ``edit``.
    :param wire_model: the id that is sent.
    :param fields: the neutral names that it takes beside the prompt.
    :param resolutions: the neutral sizes that it takes; empty where it takes none.
    :param default_resolution: what is sent when none is asked for; ``None`` where it takes none.
    :param aspect_ratios: the ratios that it takes; empty where it takes none.
    :param max_reference_images: how many references beside `image`.
    :param max_input_bytes: bytes that one input picture may have.
    :param max_total_input_bytes: bytes that all input pictures of one request may have.
    :param input_media_types: what an input picture may be.
    :param prices: price of one picture by resolution (``""`` where it takes none); empty = unknown.
    :param currency: of `prices`: ``USD``.
    :param price_basis: ``gateway`` (its own price), ``google_list`` (Google's list price) or ``unknown``.
    :param expected_seconds: seconds after which a first poll makes sense, by resolution as in `prices`.
    :param read_timeouts: seconds to wait for a synchronous answer, by resolution as in `prices`.
    :param verified: whether the gateway's own documentation shows this model in this operation.
    :param sources: where each of these figures comes from, by field name.
    """

    gateway: str
    model: str
    operation: str
    wire_model: str
    fields: frozenset[str]
    resolutions: tuple[str, ...]
    default_resolution: str | None
    aspect_ratios: tuple[str, ...]
    max_reference_images: int
    max_input_bytes: int
    max_total_input_bytes: int
    input_media_types: tuple[str, ...]
    prices: Mapping[str, Decimal]
    currency: str
    price_basis: str
    expected_seconds: Mapping[str, float]
    read_timeouts: Mapping[str, float]
    verified: bool
    sources: Mapping[str, str]

    def price(self, resolution: str | None) -> Decimal | None:
        """The price of one picture, or ``None`` where it is unknown.

        :param resolution: a neutral size; ``None`` where the row takes none.
        """
        return self.prices.get(resolution or "")

    def expected(self, resolution: str | None) -> float:
        """Seconds after the submit at which the first poll makes sense."""
        return self.expected_seconds.get(resolution or "", max(self.expected_seconds.values()))

    def read_timeout(self, resolution: str | None) -> float:
        """Seconds to wait for the answer of a synchronous call."""
        return self.read_timeouts.get(resolution or "", max(self.read_timeouts.values()))


@dataclass(frozen=True)
class Limits:
    """What one gateway allows one account.

    :param requests_per_minute: submits, polls and uploads together.
    :param uploads_per_minute: uploads alone.
    :param uploads_at_once: uploads at the same time.
    :param poll_interval: shortest and longest pause between two polls of a job, in seconds.
    :param sources: where each of these figures comes from, by field name.
    """

    requests_per_minute: int
    uploads_per_minute: int
    uploads_at_once: int
    poll_interval: tuple[float, float]
    sources: Mapping[str, str]


_OWN = "our own estimate; the gateway publishes none"

LIMITS: Mapping[str, Limits] = {
    "1min": Limits(
        requests_per_minute=180,
        uploads_per_minute=100,
        uploads_at_once=5,
        poll_interval=(3.0, 5.0),
        sources={
            "requests_per_minute": "default limit of an API key as reported by public clients of 1min.ai",
            "uploads_per_minute": "1min.ai Asset API docs",
            "uploads_at_once": "1min.ai Asset API docs",
            "poll_interval": _OWN,
        },
    ),
    "apimaster": Limits(
        requests_per_minute=180,
        uploads_per_minute=180,
        uploads_at_once=5,
        poll_interval=(3.0, 5.0),
        sources={
            "requests_per_minute": _OWN,
            "uploads_per_minute": "there are no uploads; the same as requests",
            "uploads_at_once": "there are no uploads",
            "poll_interval": "APIMaster model guide: every 3-5 s",
        },
    ),
}

_RATIOS_10 = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
_RATIOS_14 = ("1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9")
_SIZES_4 = ("512", "1K", "2K", "4K")
_SIZES_3 = ("1K", "2K", "4K")

_PICTURES = frozenset({"image", "reference_images"})
_SIZE = frozenset({"resolution"})
_RATIO = frozenset({"aspect_ratio"})
_SAMPLING = frozenset({"temperature", "top_p"})
_SEARCH = frozenset({"google_search", "google_image_search"})

_GOOGLE_FLASH = {"512": Decimal("0.045"), "1K": Decimal("0.067"), "2K": Decimal("0.101"), "4K": Decimal("0.151")}
_GOOGLE_PRO = {"1K": Decimal("0.134"), "2K": Decimal("0.134"), "4K": Decimal("0.24")}
_GOOGLE_25 = {"": Decimal("0.039")}
_APIMASTER_FLASH = {"512": Decimal("0.0672"), "1K": Decimal("0.0672"), "2K": Decimal("0.0896"), "4K": Decimal("0.1344")}

_FLASH_SECONDS = {"512": 9.0, "1K": 9.0, "2K": 15.0, "4K": 26.0}
_PRO_SECONDS = {"1K": 11.0, "2K": 15.0, "4K": 26.0}
_25_SECONDS = {"": 9.0}
_APIMASTER_SECONDS = {"512": 10.0, "1K": 10.0, "2K": 15.0, "4K": 26.0}

_ONEMIN_PAGE = "1min.ai API docs, "
_APIMASTER_PAGE = "APIMaster model guide of Gemini 3.1 Flash Image Preview"

_ONEMIN_SOURCES = {
    "max_input_bytes": "Google's 7 MB an inline picture; stricter than the 50 MB a file of the 1min.ai Asset API",
    "max_total_input_bytes": "the most pictures that a request takes, times the limit of one",
    "input_media_types": "Google's model pages: PNG, JPEG, WebP for every model",
    "prices": "Google's list price; 1min.ai charges credits and publishes no figure",
    "expected_seconds": _OWN,
    "read_timeouts": f"{_OWN}; three times the 100 s after which the proxy before it gives up",
}
_APIMASTER_SOURCES = {
    "max_input_bytes": "Google's model pages: 7 MB an inline picture",
    "max_total_input_bytes": f"{_OWN}; pictures go inline as base64, kept under 20 MB a request (Google's old limit)",
    "input_media_types": "Google's model pages: PNG, JPEG, WebP for every model",
    "expected_seconds": f"{_OWN}; {_APIMASTER_PAGE} asks for a first poll after 10-20 s",
    "read_timeouts": "the gateway itself gives up after 180, 300, 900 s at 1K, 2K, 4K (seen); 30 s more",
}
_APIMASTER_DOC = {
    "fields": _APIMASTER_PAGE,
    "resolutions": _APIMASTER_PAGE,
    "aspect_ratios": f"{_APIMASTER_PAGE} (extreme ratios); Google's model page: 14",
    "max_reference_images": f"{_APIMASTER_PAGE}: 14 input pictures; the one to edit is the first of them",
    "prices": (
        "base of 0.0672 USD as third parties recorded it, times 1, 1, 4/3, 2 for 0.5K, 1K, 2K, 4K "
        f"({_APIMASTER_PAGE}), before the account's group ratio"
    ),
}
_APIMASTER_UNDOCUMENTED = {
    "fields": "not documented by APIMaster for this model: what Google's model shares with 3.1 Flash, without search",
    "resolutions": "Google's model page",
    "aspect_ratios": "Google's model page: 10",
    "max_reference_images": "Google's model page: 14 input pictures; the one to edit is the first of them",
    "prices": "Google's list price; APIMaster's is not known",
}

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
_ONEMIN: dict[str, Any] = {
    "gateway": "1min",
    "max_input_bytes": 7_000_000,
    "max_total_input_bytes": 21_000_000,
    "input_media_types": _MEDIA_TYPES,
    "currency": "USD",
    "price_basis": "google_list",
    "verified": True,
}
_APIMASTER: dict[str, Any] = {
    "gateway": "apimaster",
    "max_input_bytes": 7_000_000,
    "max_total_input_bytes": 15_000_000,
    "input_media_types": _MEDIA_TYPES,
    "currency": "USD",
    "read_timeouts": {"512": 210.0, "1K": 210.0, "2K": 330.0, "4K": 930.0},
}
_ONEMIN_FLASH: dict[str, Any] = {
    **_ONEMIN,
    "model": DEFAULT_MODEL,
    "wire_model": DEFAULT_MODEL,
    "resolutions": _SIZES_4,
    "default_resolution": "1K",
    "prices": _GOOGLE_FLASH,
    "expected_seconds": _FLASH_SECONDS,
    "read_timeouts": dict.fromkeys(_SIZES_4, 300.0),
}
_ONEMIN_PRO: dict[str, Any] = {
    **_ONEMIN,
    "model": PRO_MODEL,
    "wire_model": PRO_MODEL,
    "resolutions": _SIZES_3,
    "default_resolution": "1K",
    "aspect_ratios": (),
    "prices": _GOOGLE_PRO,
    "expected_seconds": _PRO_SECONDS,
    "read_timeouts": dict.fromkeys(_SIZES_3, 300.0),
}
_ONEMIN_25: dict[str, Any] = {
    **_ONEMIN,
    "model": FLASH_25_MODEL,
    "resolutions": (),
    "default_resolution": None,
    "aspect_ratios": (),
    "prices": _GOOGLE_25,
    "expected_seconds": _25_SECONDS,
    "read_timeouts": {"": 300.0},
}
_APIMASTER_31: dict[str, Any] = {
    **_APIMASTER,
    "model": DEFAULT_MODEL,
    "wire_model": DEFAULT_MODEL,
    "resolutions": _SIZES_4,
    "default_resolution": "1K",
    "aspect_ratios": _RATIOS_14,
    "prices": _APIMASTER_FLASH,
    "price_basis": "gateway",
    "expected_seconds": _APIMASTER_SECONDS,
    "verified": True,
    "sources": {**_APIMASTER_SOURCES, **_APIMASTER_DOC},
}
_APIMASTER_PRO: dict[str, Any] = {
    **_APIMASTER,
    "model": PRO_MODEL,
    "wire_model": PRO_MODEL,
    "resolutions": _SIZES_3,
    "default_resolution": "1K",
    "aspect_ratios": _RATIOS_10,
    "prices": _GOOGLE_PRO,
    "price_basis": "google_list",
    "expected_seconds": _PRO_SECONDS,
    "verified": False,
    "sources": {**_APIMASTER_SOURCES, **_APIMASTER_UNDOCUMENTED},
}


def _onemin_sources(page: str) -> dict[str, str]:
    """The figures of a 1min row that its own page states, beside those that all 1min rows share."""
    stated = ("fields", "resolutions", "aspect_ratios", "max_reference_images")
    return {**_ONEMIN_SOURCES, **dict.fromkeys(stated, _ONEMIN_PAGE + page)}


ROWS: tuple[Row, ...] = (
    Row(
        **_ONEMIN_FLASH,
        operation="generate",
        fields=_SIZE | _RATIO | _SAMPLING,
        aspect_ratios=_RATIOS_14,
        max_reference_images=0,
        sources=_onemin_sources("Gemini 3.1 Flash Image Preview - Image Generator"),
    ),
    Row(
        **_ONEMIN_FLASH,
        operation="edit",
        fields=_PICTURES | _SIZE | _SAMPLING,
        aspect_ratios=(),
        max_reference_images=2,
        sources=_onemin_sources("Gemini 3.1 Flash Image Preview - Image Text Editor (its parameter table)"),
    ),
    Row(
        **_ONEMIN_PRO,
        operation="generate",
        fields=_SIZE | _SAMPLING,
        max_reference_images=0,
        sources=_onemin_sources("Gemini 3 Pro Image Preview - Image Generator"),
    ),
    Row(
        **_ONEMIN_PRO,
        operation="edit",
        fields=_PICTURES | _SIZE | _SAMPLING,
        max_reference_images=2,
        sources=_onemin_sources("Gemini 3 Pro Image Preview - Image Text Editor"),
    ),
    Row(
        **_ONEMIN_25,
        operation="generate",
        wire_model=FLASH_25_MODEL,
        fields=frozenset(),
        max_reference_images=0,
        sources=_onemin_sources("Gemini 2.5 Flash Image - Image Generator"),
    ),
    Row(
        **_ONEMIN_25,
        operation="edit",
        wire_model="gemini-2.5-flash-image-preview",
        fields=_PICTURES,
        max_reference_images=2,
        sources=_onemin_sources("Gemini 2.5 Flash Image Preview - Image Text Editor"),
    ),
    Row(
        **_APIMASTER_31,
        operation="generate",
        fields=_SIZE | _RATIO | _SEARCH,
        max_reference_images=0,
    ),
    Row(
        **_APIMASTER_31,
        operation="edit",
        fields=_PICTURES | _SIZE | _RATIO | _SEARCH,
        max_reference_images=13,
    ),
    Row(
        **_APIMASTER_PRO,
        operation="generate",
        fields=_SIZE | _RATIO,
        max_reference_images=0,
    ),
    Row(
        **_APIMASTER_PRO,
        operation="edit",
        fields=_PICTURES | _SIZE | _RATIO,
        max_reference_images=13,
    ),
)

_BY_KEY = {(row.gateway, row.model, row.operation): row for row in ROWS}


def _known(gateway: str, model: str, operation: str) -> Row | None:
    row = _BY_KEY.get((gateway, SUCCESSORS.get(model) or OTHER_IDS.get(model, model), operation))
    return dataclasses.replace(row, wire_model=model) if row and model in SUCCESSORS else row


def knows(gateway: str, model: str) -> bool:
    """Whether the catalogue has a row for a model on a gateway, by any of its ids."""
    return any(_known(gateway, model, row.operation) for row in ROWS)


def _widest(gateway: str, model: str, operation: str) -> Row:
    """What the gateway takes at most, for a model that the catalogue does not know there: no price, not verified."""
    return dataclasses.replace(
        _BY_KEY[gateway, DEFAULT_MODEL, operation],
        model=model,
        wire_model=model,
        prices={},
        price_basis="unknown",
        verified=False,
    )


def lookup(gateway: str, model: str, operation: str) -> Row:
    """The row by which a request is checked, priced and sent.

    A model that the catalogue does not know on this gateway gets one `UserWarning` and the gateway's widest row, to
    be sent under the id as written: model ids change faster than releases of this package.

    :param gateway: ``1min`` or ``apimaster``.
    :param model: an id as users write it; successors' ids lead to their predecessor's row.
    :param operation: ``generate`` or ``edit``.
    :raises BadRequestError: for a gateway that does not exist.
    """
    if gateway not in LIMITS:
        raise BadRequestError(f"gateway={gateway!r} is not known. Allowed: {', '.join(LIMITS)}.")
    row = _known(gateway, model, operation)
    if row is not None:
        return row
    ids = [known.model for known in ROWS if (known.gateway, known.operation) == (gateway, operation)]
    close = difflib.get_close_matches(model, ids, n=1, cutoff=0.8)
    warnings.warn(
        f"The model {model!r} is not in this package's catalogue for {operation} on {gateway}: it is sent as it is, "
        f"its settings are checked by the gateway's widest table, its price is unknown."
        + (f" Did you mean {close[0]!r}?" if close else ""),
        UserWarning,
        stacklevel=2,
    )
    return _widest(gateway, model, operation)


def rows_for(model: str | None, operation: str) -> tuple[Row, ...]:
    """The rows of a model over all gateways, for checks that are made before the gateway is known.

    :param model: an id as users write it; ``None`` means that the model is not known yet either: all rows. For a
        model that no gateway knows: every gateway's widest row, without a warning (`lookup` gives it at run time).
    :param operation: ``generate`` or ``edit``.
    """
    if model is None:
        return tuple(row for row in ROWS if row.operation == operation)
    known = (_known(gateway, model, operation) for gateway in LIMITS)
    return tuple(row for row in known if row) or tuple(_widest(gateway, model, operation) for gateway in LIMITS)
