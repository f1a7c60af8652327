"""Finds the catalogue row of a model by any of its ids, and the limits of a gateway.

What must stay true: all ids of a model lead to the same row; figures are only here, in `model_specs` and in
`google_models`; a new model or gateway needs new rows there and no new code.
"""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from airflow_provider_geminiimg.core.catalog.google_models import FLASH, FLASH_25, FLASH_GA, GOOGLE_MODELS, PRO
from airflow_provider_geminiimg.core.catalog.model_specs import OWN, SIZE
from airflow_provider_geminiimg.core.catalog.model_specs import ROWS as ROWS
from airflow_provider_geminiimg.core.catalog.model_specs import ModelSpec as ModelSpec
from airflow_provider_geminiimg.exceptions import BadRequestError

DEFAULT_MODELS: Mapping[str, str] = {"1min": FLASH, "apimaster": FLASH_GA}
"""The default model id of each gateway.

Sources: 1min.ai API docs show the preview ids only; APIMaster.ai served `gemini-3.1-flash-image` and no other Gemini
image id on 2026-09-22 (its ComfyUI plugin, stated as checked).
"""

SUCCESSORS: Mapping[str, str] = {
    FLASH: FLASH_GA,
    PRO: "gemini-3-pro-image",
    "gemini-2.5-flash-image-preview": FLASH_25,
}
"""The id of each preview model after its preview. Google shut down the 3.x preview ids on 2026-06-25."""

_SAME_MODEL: Mapping[str, str] = {
    FLASH_GA: FLASH,
    "gemini-3-pro-image": PRO,
    "gemini-2.5-flash-image-preview": FLASH_25,
}
"""Further ids of a row's model. Each is sent unchanged, except for a row with `ModelSpec.one_id`."""


@dataclass(frozen=True)
class Limits:
    """The limits of a gateway for one account.

    :param requests_per_minute: maximum submits, polls and uploads per minute.
    :param uploads_per_minute: maximum uploads per minute.
    :param uploads_at_once: maximum simultaneous uploads.
    :param poll_interval: shortest and longest pause between two polls of a job, in seconds.
    :param sources: the source of each figure, by field name.
    """

    requests_per_minute: int
    uploads_per_minute: int
    uploads_at_once: int
    poll_interval: tuple[float, float]
    sources: Mapping[str, str]


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
            "poll_interval": OWN,
        },
    ),
    "apimaster": Limits(
        requests_per_minute=180,
        uploads_per_minute=180,
        uploads_at_once=5,
        poll_interval=(3.0, 5.0),
        sources={
            "requests_per_minute": OWN,
            "uploads_per_minute": "there are no uploads; the same as requests",
            "uploads_at_once": "there are no uploads",
            "poll_interval": "APIMaster model guide: every 3-5 s",
        },
    ),
}

_BY_KEY = {(row.gateway, row.model, row.operation): row for row in ROWS}


def row_name(model: str) -> str:
    """The model's name in the catalogue, the same for all of its ids; an unknown id is its own name."""
    return _SAME_MODEL.get(model, model)


def _known(gateway: str, model: str, operation: str) -> ModelSpec | None:
    row = _BY_KEY.get((gateway, row_name(model), operation))
    return row if row is None or row.one_id else dataclasses.replace(row, wire_model=model)


def default_model(gateway: str, configured: str | None = None) -> str:
    """The model id for a request that names no model.

    :param gateway: ``1min`` or ``apimaster``.
    :param configured: the connection's default model.
    """
    return configured or DEFAULT_MODELS.get(gateway, FLASH)


def knows(gateway: str, model: str) -> bool:
    """Whether the catalogue has a row for a model on a gateway, by any of its ids."""
    return any(_known(gateway, model, row.operation) for row in ROWS)


def known_ids(gateway: str) -> tuple[str, ...]:
    """All model ids of the catalogue for a gateway."""
    names = dict.fromkeys(row.model for row in ROWS if row.gateway == gateway)
    return (*names, *(other for other, name in _SAME_MODEL.items() if name in names))


def other_ids(row: ModelSpec) -> tuple[str, ...]:
    """The further ids of a row's model that are sent unchanged, without the model's name."""
    return () if row.one_id else tuple(other for other, name in _SAME_MODEL.items() if name == row.model)


def other_id(model: str) -> str | None:
    """The same model's other id: the successor of a preview id, or the preview id of a successor."""
    earlier = {later: first for first, later in SUCCESSORS.items()}
    return SUCCESSORS.get(model) or earlier.get(model)


def did_you_mean(gateway: str, model: str) -> str:
    """A question with the most similar known id; empty if none is similar."""
    close = difflib.get_close_matches(model, known_ids(gateway), n=1, cutoff=0.8)
    return f" Did you mean {close[0]!r}?" if close else ""


def _widest(gateway: str, model: str, operation: str) -> ModelSpec:
    """The row for a model that the catalogue does not have at this gateway: all fields, no price, not verified.

    If another gateway offers the model, Google's sizes and ratios apply.
    """
    row = _BY_KEY[gateway, FLASH, operation]
    google = GOOGLE_MODELS.get(row_name(model))
    if google is not None:
        row = dataclasses.replace(
            row,
            fields=row.fields if google.sizes else row.fields - SIZE,
            resolutions=google.sizes,
            default_resolution="1K" if google.sizes else None,
            aspect_ratios=google.ratios,
        )
    return dataclasses.replace(
        row,
        model=model,
        wire_model=model,
        fingerprint_model=model,
        prices={},
        input_price=Decimal(0),
        price_basis="unknown",
        verified=False,
    )


def lookup(gateway: str, model: str, operation: str) -> ModelSpec:
    """The row that checks, prices and sends a request.

    A model that the catalogue does not have at this gateway gets a `UserWarning` and the gateway's row with the most
    fields, and its id is sent unchanged, because new models appear between releases of this package.

    :param gateway: ``1min`` or ``apimaster``.
    :param model: any id of the model.
    :param operation: ``generate`` or ``edit``.
    :raises BadRequestError: the gateway does not exist.
    """
    if gateway not in LIMITS:
        raise BadRequestError(f"gateway={gateway!r} is not known. Allowed: {', '.join(LIMITS)}.")
    row = _known(gateway, model, operation)
    if row is not None:
        return row
    warnings.warn(
        f"The model {model!r} is not in the catalogue for {operation} on {gateway}: its id is sent unchanged, "
        f"its settings are checked against all that the gateway takes, its price is unknown."
        + did_you_mean(gateway, model),
        UserWarning,
        stacklevel=2,
    )
    return _widest(gateway, model, operation)


def rows_for(model: str | None, operation: str) -> tuple[ModelSpec, ...]:
    """The rows of a model at all gateways, for checks before the gateway is known.

    :param model: any id of the model; ``None`` if it is not known yet: all rows. For a model that no gateway has: each
        gateway's row with the most fields, without a warning (`lookup` warns when the task runs).
    :param operation: ``generate`` or ``edit``.
    """
    if model is None:
        return tuple(row for row in ROWS if row.operation == operation)
    known = (_known(gateway, model, operation) for gateway in LIMITS)
    return tuple(row for row in known if row) or tuple(_widest(gateway, model, operation) for gateway in LIMITS)
