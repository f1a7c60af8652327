"""The manifest: what a task returns about its images, and the content of the sidecar files.

Invariants: less than 2 KB per image; plain JSON; nothing in it expires or is secret.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.request import CheckedRequest

Basis = Literal["gateway", "connection", "google_list", "reused", "unknown"]
TOLERANCE = 0.1  # relative difference between reported and estimated cost that is not logged


@dataclass(frozen=True)
class StoredImage:
    """One image in storage.

    :param uri: its location.
    :param media_type: from its bytes.
    :param width: pixels; ``None`` if they are not known, see `ImageInfo`.
    :param height: pixels; ``None`` if they are not known.
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
    """The cost of an image.

    :param amount: ``None`` if it is not known.
    :param currency: ``USD`` or ``credits``, or the connection's own.
    :param basis: ``gateway`` (reported by the gateway), ``connection`` (the connection's own prices), ``google_list``
        (Google's list price, because the gateway's price is not known), ``reused`` (nothing was paid: a copy of another
        task's image), ``unknown``. Earlier versions wrote ``gateway`` for some estimates, too.
    :param estimate: whether this package estimated the amount.
    """

    amount: float | None
    currency: str
    basis: Basis
    estimate: bool = False


def estimate(request: CheckedRequest, connection: GatewayConnection) -> Cost:
    """Return the expected cost of one image, including its input images if their price is known.

    The connection's own prices are for the complete image, so input images add nothing to them.

    :param request: the request.
    :param connection: the connection that pays.
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
    """Return the cost that the gateway reported. Gateways report in USD, or not at all."""
    return Cost(amount, "USD", "gateway")


def size_in_words(image: Mapping[str, Any]) -> str:
    """Return the pixels of a manifest's image, for a log line."""
    return f"{image['width']} x {image['height']}" if image["width"] else "pixels unknown"


def cost_in_words(cost: Mapping[str, Any]) -> str:
    """Return the cost of a record or manifest, for a log line; an estimate is marked as such."""
    if cost.get("amount") is None:
        return "cost unknown"
    kind = "estimated by " if cost.get("estimate") else "by "
    return f"{cost['amount']:g} {cost['currency']} ({kind}{cost.get('basis') or 'unknown'})"


def differs_from_estimate(expected: Mapping[str, Any], actual: Cost) -> bool:
    """Return whether the reported cost differs from the estimate by more than `TOLERANCE`."""
    amount, estimated = actual.amount, expected.get("amount")
    if amount is None or estimated is None or expected.get("currency") != actual.currency:
        return False
    return bool(abs(amount - estimated) > TOLERANCE * estimated + 1e-9)


def build(
    record: Record, images: Sequence[StoredImage], *, mismatch: str | None, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the manifest of stored images, as the ledger keeps it and a task returns it.

    :param record: the record of the submission.
    :param images: the written files.
    :param mismatch: one sentence about the difference from the request, or ``None``.
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
    """Build the content of a sidecar file: manifest, hash of the prompt, inputs, and the prompt if prompts are
    recorded.
    """
    extra = {"prompt_sha256": record.prompt_sha256, "inputs": record.inputs}
    return {**manifest, **extra, **({"prompt": record.prompt} if record.prompt is not None else {})}


def iso(seconds: float) -> str:
    """Format Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="milliseconds")
