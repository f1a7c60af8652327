"""The catalogue: what each gateway takes for each model, found by any id that users write, and what it allows.

What must stay true: all ids of a model lead to one row; no other module but `model_rows` and `google_models` holds a
figure; a new model or gateway is new rows there, not new code elsewhere.
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
"""The id that is sent where nobody names a model.

Sources: 1min.ai API docs show the preview ids alone; APIMaster.ai served `gemini-3.1-flash-image` and no other Gemini
image id on 2026-09-22 (its ComfyUI plugin, stated as checked).
"""

SUCCESSORS: Mapping[str, str] = {
    FLASH: FLASH_GA,
    PRO: "gemini-3-pro-image",
    "gemini-2.5-flash-image-preview": FLASH_25,
}
"""The id that Google gave a preview model when it left preview. Google shut the 3.x preview ids down on 2026-06-25."""

_SAME_MODEL: Mapping[str, str] = {
    FLASH_GA: FLASH,
    "gemini-3-pro-image": PRO,
    "gemini-2.5-flash-image-preview": FLASH_25,
}
"""Other ids of a row's model. Each is sent as it is written, but for a row that knows its model by one id alone."""

"""Lowest and highest value. Source: 1min.ai API docs, the parameter tables of the image generators and editors."""


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
    """The name under which the catalogue has a model: one for all of its ids; an id that is not known is its own."""
    return _SAME_MODEL.get(model, model)


def _known(gateway: str, model: str, operation: str) -> ModelSpec | None:
    row = _BY_KEY.get((gateway, row_name(model), operation))
    return row if row is None or row.one_id else dataclasses.replace(row, wire_model=model)


def default_model(gateway: str, configured: str | None = None) -> str:
    """The id that is sent where a request names no model.

    :param gateway: ``1min`` or ``apimaster``.
    :param configured: the connection's own default.
    """
    return configured or DEFAULT_MODELS.get(gateway, FLASH)


def knows(gateway: str, model: str) -> bool:
    """Whether the catalogue has a row for a model on a gateway, by any of its ids."""
    return any(_known(gateway, model, row.operation) for row in ROWS)


def known_ids(gateway: str) -> tuple[str, ...]:
    """Every id by which users may write the models that the catalogue has on a gateway."""
    names = dict.fromkeys(row.model for row in ROWS if row.gateway == gateway)
    return (*names, *(other for other, name in _SAME_MODEL.items() if name in names))


def other_ids(row: ModelSpec) -> tuple[str, ...]:
    """The ids of a row's model that are sent as they are written, without its name."""
    return () if row.one_id else tuple(other for other, name in _SAME_MODEL.items() if name == row.model)


def other_id(model: str) -> str | None:
    """The same model's other id: the successor of a preview id, or the preview id of a successor."""
    earlier = {later: first for first, later in SUCCESSORS.items()}
    return SUCCESSORS.get(model) or earlier.get(model)


def did_you_mean(gateway: str, model: str) -> str:
    """A question that names the known id nearest to one that is not known; empty where none is near."""
    close = difflib.get_close_matches(model, known_ids(gateway), n=1, cutoff=0.8)
    return f" Did you mean {close[0]!r}?" if close else ""


def _widest(gateway: str, model: str, operation: str) -> ModelSpec:
    """What the gateway takes at most, for a model that the catalogue does not know there: no price, not verified.

    Of a model that another gateway offers, Google's own sizes and ratios are known all the same.
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
    """The row by which a request is checked, priced and sent.

    A model that the catalogue does not know on this gateway gets one `UserWarning` and the gateway's widest row, to
    be sent under the id as written: model ids change faster than releases of this package.

    :param gateway: ``1min`` or ``apimaster``.
    :param model: an id as users write it; all ids of one model lead to one row, and each is sent as it is written.
    :param operation: ``generate`` or ``edit``.
    :raises BadRequestError: for a gateway that does not exist.
    """
    if gateway not in LIMITS:
        raise BadRequestError(f"gateway={gateway!r} is not known. Allowed: {', '.join(LIMITS)}.")
    row = _known(gateway, model, operation)
    if row is not None:
        return row
    warnings.warn(
        f"The model {model!r} is not in this package's catalogue for {operation} on {gateway}: it is sent as it is, "
        f"its settings are checked by the gateway's widest table, its price is unknown." + did_you_mean(gateway, model),
        UserWarning,
        stacklevel=2,
    )
    return _widest(gateway, model, operation)


def rows_for(model: str | None, operation: str) -> tuple[ModelSpec, ...]:
    """The rows of a model over all gateways, for checks that are made before the gateway is known.

    :param model: an id as users write it; ``None`` means that the model is not known yet either: all rows. For a
        model that no gateway knows: every gateway's widest row, without a warning (`lookup` gives it at run time).
    :param operation: ``generate`` or ``edit``.
    """
    if model is None:
        return tuple(row for row in ROWS if row.operation == operation)
    known = (_known(gateway, model, operation) for gateway in LIMITS)
    return tuple(row for row in known if row) or tuple(_widest(gateway, model, operation) for gateway in LIMITS)
