"""Recognizes responses that refuse a model, and adds a hint about which model id to use.

What must stay true: nothing here changes whether money was spent; only the hint changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from airflow_provider_geminiimg.core.catalog.lookup import DEFAULT_MODELS, SUCCESSORS, knows, other_id, row_name
from airflow_provider_geminiimg.core.gateways.base import JobStatus, Reply
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, UpstreamFailedError

T = TypeVar("T")

MAX_SHOWN = 12
_CODES = frozenset(
    {"model_not_found", "model_not_available", "model_not_supported", "unsupported_model", "invalid_model"}
)
_WORDS = re.compile(
    r"\bmodels?\b.{0,120}\b(not (found|supported|available|enabled|exist)|unsupported|unavailable|unknown|invalid|"
    r"no longer|retired|deprecated|shut ?down|discontinued|does ?n.t exist)\b"
    r"|\b(no (such|available channels?)|unknown|unsupported|invalid)\b.{0,40}\bmodels?\b",
    re.IGNORECASE | re.DOTALL,
)
_NOT_FOUND = 404


def refuses_model(error: GeminiImageError) -> bool:
    """Whether an error says that the gateway does not serve the model."""
    if not isinstance(error, (BadRequestError, UpstreamFailedError)) or error.status_code is None:
        return False
    text = " ".join(filter(None, (error.gateway_message, error.details)))
    not_found = isinstance(error, BadRequestError) and error.status_code == _NOT_FOUND
    return not_found or (error.code or "").lower() in _CODES or bool(_WORDS.search(text))


def explained(parse: Callable[[Reply], JobStatus], gateway: str, model: str) -> Callable[[Reply], JobStatus]:
    """Wrap `parse`, so that an error that refuses the model suggests another model id.

    :param parse: parses the response to a submit or a poll.
    :param gateway: ``1min`` or ``apimaster``.
    :param model: the model id that was sent.
    """

    def parsed(reply: Reply) -> JobStatus:
        try:
            status = parse(reply)
        except GeminiImageError as error:
            raise _with_hint(error, gateway, model) from error.__cause__
        if status.error is None:
            return status
        return replace(status, error=_with_hint(status.error, gateway, model))

    return parsed


def _with_hint(error: GeminiImageError, gateway: str, model: str) -> GeminiImageError:
    if not refuses_model(error):
        return error
    return error.evolve(hint=" ".join(part for part in (error.hint, _instead(gateway, model)) if part))


def _instead(gateway: str, model: str) -> str:
    other, default = other_id(model), DEFAULT_MODELS[gateway]
    if other is not None and model in SUCCESSORS:
        suggestion = f"The successor of {model} is {other}, the same model"
    elif other is not None:
        suggestion = f"This model's earlier id is {other}"
    else:
        return f"The default model of this gateway is {default}."
    return f"{suggestion}: set it as `model` of the task or connection; images that have landed are not bought again."


def is_image_model(gateway: str, model: str) -> bool:
    """Whether a model id of a gateway's list belongs to an image model, by the catalogue or by its name."""
    return knows(gateway, model) or any(word in model.lower() for word in ("image", "banana"))


def shown(models: Sequence[str]) -> str:
    """Up to `MAX_SHOWN` model ids for a message, Gemini models first."""
    ordered = sorted(dict.fromkeys(models), key=lambda model: "gemini" not in row_name(model).lower())
    more = f" and {len(ordered) - MAX_SHOWN} more" if len(ordered) > MAX_SHOWN else ""
    return ", ".join(ordered[:MAX_SHOWN]) + more
