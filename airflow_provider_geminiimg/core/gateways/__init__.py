"""The supported gateways, by the name that a connection uses.

A new gateway needs an adapter module, rows in the catalogue and a line in `GATEWAYS`.

In reading order:

- `base`: the interface of all adapters
- `onemin`: the adapter of 1min.ai
- `apimaster`: the adapter of APIMaster.ai
- `responses`: parses a response
- `results`: finds the images in a response
- `reasons`: finds the error in a response
- `states`: the status words of jobs
- `rules`: which error a response means, and whether money was spent
- `intermediaries`: responses of proxies and CDNs in front of a gateway
- `model_refusals`: responses that refuse a model
- `connection`: checks an Airflow connection
- `prices`: the prices of an account
- `polling`: the poll schedule
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
    """Create the adapter of a gateway.

    :param name: ``1min`` or ``apimaster``.
    :param base_url: base URL of the API; default: the gateway's own.
    :raises BadRequestError: there is no gateway with that name.
    """
    if not isinstance(name, str) or name not in GATEWAYS:
        allowed = ", ".join(GATEWAYS)
        raise BadRequestError(
            f"gateway: {str(name)[:80]!r} is not a gateway. Allowed: {allowed}.",
            hint=f"Set the connection's extra `gateway` to one of: {allowed}.",
        )
    return GATEWAYS[name](base_url)
