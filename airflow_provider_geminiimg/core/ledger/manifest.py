"""What a task returns about its images, and what lies beside each image as its sidecar.

What must stay true: under 2 KB an image, plain JSON, nothing in it expires or is secret.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.records import Record
from airflow_provider_geminiimg.core.request import CheckedRequest

Basis = Literal["gateway", "connection", "google_list", "reused", "unknown"]
TOLERANCE = 0.1  # by which a reported cost may differ from the estimate, as a share of it, without a word


@dataclass(frozen=True)
class StoredImage:
    """One image in storage.

    :param uri: where it lies.
    :param media_type: from its bytes.
    :param width: pixels; ``None`` where they can't be told, see `ImageInfo`.
    :param height: likewise.
    :param size: bytes.
    :param sha256: hex digest of the bytes, which are exactly those that the gateway sent.
    """

    uri: str
    media_type: str
    width: int | None
    height: int | None
    size: int
    sha256: str


@dataclass(frozen=True)
class Cost:
    """What an image costs.

    :param amount: ``None`` where it is not known.
    :param currency: ``USD`` or ``credits``, or the connection's own.
    :param basis: ``gateway`` (what the gateway reported), ``connection`` (by the prices that the connection states),
        ``google_list`` (by Google's list price, because what the gateway charges is not known), ``reused`` (nothing
        was paid: another task of the DAG had it), ``unknown``. Earlier versions wrote ``gateway`` for an estimate too.
    :param estimate: whether the amount is this package's estimate, and not what the gateway reported.
    """

    amount: float | None
    currency: str
    basis: Basis
    estimate: bool = False


def estimate(request: CheckedRequest, connection: GatewayConnection) -> Cost:
    """What one image is expected to cost, its input images included where their price is known.

    The connection's own prices are taken as they are: they say what a whole image costs.

    :param request: what is asked for.
    :param connection: through which account.
    """
    row = request.row
    own, listed = connection.own_price(row, request.resolution), row.price(request.resolution)
    if own is not None:
        return Cost(float(round(own, 6)), connection.price_currency or "USD", "connection", estimate=True)
    if listed is None:
        return Cost(None, row.currency, "unknown")
    amount = listed + row.input_price * len(request.input_images)
    return Cost(float(round(amount, 6)), row.currency, row.price_basis, estimate=True)  # type: ignore[arg-type]


def reported(amount: float) -> Cost:
    """What the gateway said that an image cost. Gateways report in USD, or not at all."""
    return Cost(amount, "USD", "gateway")


def size_in_words(image: Mapping[str, Any]) -> str:
    """The pixels of a manifest's image, for a log line."""
    return f"{image['width']} x {image['height']}" if image["width"] else "pixels unknown"


def cost_in_words(cost: Mapping[str, Any]) -> str:
    """A cost of a record or manifest, for a log line: an estimate says that it is one."""
    if cost.get("amount") is None:
        return "cost unknown"
    kind = "estimated by " if cost.get("estimate") else "by "
    return f"{cost['amount']:g} {cost['currency']} ({kind}{cost.get('basis') or 'unknown'})"


def differs_from_estimate(expected: Mapping[str, Any], actual: Cost) -> bool:
    """Whether what the gateway reported differs from the estimate by more than a tenth of it."""
    amount, estimated = actual.amount, expected.get("amount")
    if amount is None or estimated is None or expected.get("currency") != actual.currency:
        return False
    return bool(abs(amount - estimated) > TOLERANCE * estimated + 1e-9)


def build(
    record: Record, images: Sequence[StoredImage], *, mismatch: str | None, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of what landed, as the ledger keeps it and a task returns it.

    :param record: what was paid for.
    :param images: what was written.
    :param mismatch: one sentence on how the image differs from what was asked, or ``None``.
    :param cost: see `Cost`.
    """
    return {
        "images": [asdict(image) for image in images],
        "gateway": record.gateway,
        "model": record.model,
        "operation": record.operation,
        "job_id": record.job_id,
        "fingerprint": record.fingerprint,
        "record": record.key,
        "reused": record.reused_from is not None,
        "cost": dict(cost),
        "requested": record.request_fields,
        "mismatch": mismatch,
        "submitted_at": iso(record.submitted_at or record.claimed_at),
        "landed_at": iso(time.time()),
    }


def sidecar(manifest: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """What lies beside an image: manifest, the prompt's hash, inputs, and the prompt if prompts are recorded."""
    extra = {"prompt_sha256": record.prompt_sha256, "inputs": record.inputs}
    return {**manifest, **extra, **({"prompt": record.prompt} if record.prompt is not None else {})}


def iso(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="milliseconds")
