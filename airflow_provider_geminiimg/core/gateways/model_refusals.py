"""Refusals of a model: which answers are one, and what to say about them.

What must stay true: nothing here changes what an answer means for the money; it only adds what to do next.
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

MOST_SHOWN = 12
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
    """Whether an outcome says that the gateway does not serve the model."""
    if not isinstance(error, (BadRequestError, UpstreamFailedError)) or error.status_code is None:
        return False
    said = " ".join(filter(None, (error.gateway_message, error.details)))
    unserved = isinstance(error, BadRequestError) and error.status_code == _NOT_FOUND
    return unserved or (error.code or "").lower() in _CODES or bool(_WORDS.search(said))


def explained(parse: Callable[[Reply], JobStatus], gateway: str, model: str) -> Callable[[Reply], JobStatus]:
    """`parse`, whose refusals of the model name the id to use instead.

    :param parse: reads the answer to a submit or a poll.
    :param gateway: ``1min`` or ``apimaster``.
    :param model: the id that was sent.
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
        said = f"The successor of {model} is {other}, the same model"
    elif other is not None:
        said = f"This model's earlier id is {other}"
    else:
        return f"The default model of this gateway is {default}."
    return f"{said}: name it as `model`, in the task or on the connection; what has landed is not bought again."


def is_image_model(gateway: str, model: str) -> bool:
    """Whether an id of a gateway's list is one that makes images, by the catalogue or by its name."""
    return knows(gateway, model) or any(word in model.lower() for word in ("image", "banana"))


def shown(models: Sequence[str]) -> str:
    """Some ids for a message, Gemini's first."""
    ordered = sorted(dict.fromkeys(models), key=lambda model: "gemini" not in row_name(model).lower())
    more = f" and {len(ordered) - MOST_SHOWN} more" if len(ordered) > MOST_SHOWN else ""
    return ", ".join(ordered[:MOST_SHOWN]) + more
