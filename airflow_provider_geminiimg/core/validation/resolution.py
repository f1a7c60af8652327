"""The decision of a person about a record with an unknown outcome, and its parser for the collect operator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError

Word = Literal["unpaid", "lost", "resubmit", "job"]

_WORDS: tuple[Word, ...] = ("unpaid", "lost", "resubmit")
_SHAPE = (
    'takes {key: "unpaid"}, {key: "lost"}, {key: "resubmit"} or {key: {"job": "the gateway\'s id of the job"}}, '
    "also as JSON text."
)


@dataclass(frozen=True)
class Resolution:
    """The decision of a person.

    :param word: ``unpaid``: nothing was charged; ``lost``: it was charged and the image is lost; ``resubmit``: buy
        again in any case; ``job``: the request is the job `job_id`.
    :param job_id: the job id of the gateway.
    """

    word: Word
    job_id: str | None = None

    def __str__(self) -> str:
        return f"job {self.job_id}" if self.word == "job" else self.word


def read_resolutions(value: Any) -> dict[str, Resolution]:
    """Parse the argument ``resolve``: a mapping from record keys to decisions, or its JSON text.

    :raises BadRequestError: the value has another form.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRequestError(f"resolve{given(value)}: {_SHAPE} Render it with | tojson.") from None
    if not isinstance(value, Mapping):
        raise BadRequestError(f"resolve{given(value)}: {_SHAPE}")
    return {str(key): _resolution(word) for key, word in value.items()}


def _resolution(value: Any) -> Resolution:
    for word in _WORDS:
        if value == word:
            return Resolution(word)
    job_id = value.get("job") if isinstance(value, Mapping) and len(value) == 1 else None
    if not isinstance(job_id, str) or not job_id.strip():
        raise BadRequestError(f"resolve{given(value)}: {_SHAPE}")
    return Resolution("job", job_id.strip())
