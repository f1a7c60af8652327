"""The gateways that this package speaks to, by the name that a connection writes.

Adding one is one adapter file, its rows in the catalogue and a line here.

In reading order:

- `base`: what every adapter looks like
- `onemin`: 1min.ai
- `apimaster`: APIMaster.ai
- `responses`: reads an answer
- `results`: finds the images in it
- `reasons`: finds what went wrong in it
- `states`: the words for how a job stands
- `rules`: what an answer means for the money
- `intermediaries`: answers of what stands before a gateway
- `model_refusals`: refusals of a model
- `connection`: an Airflow connection, checked
- `prices`: what an account pays
- `polling`: when to ask again
"""

from __future__ import annotations

from airflow_provider_geminiimg.core.gateways.apimaster import ApiMaster
from airflow_provider_geminiimg.core.gateways.base import (
    Call,
    CheckResult,
    Gateway,
    InputImage,
    JobState,
    JobStatus,
    ResultImage,
)
from airflow_provider_geminiimg.core.gateways.onemin import OneMin
from airflow_provider_geminiimg.exceptions import BadRequestError

__all__ = [
    "GATEWAYS",
    "ApiMaster",
    "Call",
    "CheckResult",
    "Gateway",
    "InputImage",
    "JobState",
    "JobStatus",
    "OneMin",
    "ResultImage",
    "get_gateway",
]

GATEWAYS: dict[str, type[Gateway]] = {adapter.name: adapter for adapter in (OneMin, ApiMaster)}


def get_gateway(name: str, base_url: str | None = None) -> Gateway:
    """The adapter of a gateway.

    :param name: ``1min`` or ``apimaster``.
    :param base_url: the API's base; default: the gateway's own.
    :raises BadRequestError: there is no gateway of that name.
    """
    if not isinstance(name, str) or name not in GATEWAYS:
        allowed = ", ".join(GATEWAYS)
        raise BadRequestError(
            f"gateway: {str(name)[:80]!r} is not one of the gateways; allowed: {allowed}.",
            hint=f"Set the connection's extra `gateway` to one of: {allowed}.",
        )
    return GATEWAYS[name](base_url)
