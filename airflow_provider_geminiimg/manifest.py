"""What a task returns about its pictures, and what lies beside each picture as its sidecar.

What must stay true: under 2 KB a picture, plain JSON, nothing in it expires or is secret.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Literal

from airflow_provider_geminiimg.catalog import Row
from airflow_provider_geminiimg.ledger import Record

Basis = Literal["gateway", "connection", "google_list", "reused", "unknown"]


@dataclass(frozen=True)
class StoredImage:
    """One picture in storage.

    :param uri: where it lies.
    :param media_type: from its bytes.
    :param width: pixels.
    :param height: pixels.
    :param size: bytes.
    :param sha256: hex digest of the bytes, which are exactly those that the gateway sent.
    """

    uri: str
    media_type: str
    width: int
    height: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Cost:
    """What a picture costs.

    :param amount: ``None`` where it is not known.
    :param currency: ``USD`` or ``credits``, or the connection's own.
    :param basis: ``gateway`` (its documented price, or what it reported), ``connection`` (the connection's price
        base), ``google_list`` (Google's list price: the gateway's own price is not known), ``reused`` (nothing was
        paid: another task of the DAG had it), ``unknown``.
    """

    amount: float | None
    currency: str
    basis: Basis


def estimate(row: Row, resolution: str | None, price_base: Decimal | None, price_currency: str | None) -> Cost:
    """What one picture is expected to cost.

    :param row: the catalogue's row.
    :param resolution: the neutral resolution, ``None`` where the model takes none.
    :param price_base: the connection's price of a 1K picture; other resolutions keep the catalogue's proportions.
    :param price_currency: the connection's currency, default USD.
    """
    listed = row.price(resolution)
    if price_base is not None:
        base = row.price("1K") or listed
        if listed is None or not base:
            amount = float(price_base) if resolution in (None, "1K") else None
            return Cost(amount, price_currency or "USD", "connection")
        return Cost(float(round(price_base * listed / base, 6)), price_currency or "USD", "connection")
    if listed is None:
        return Cost(None, row.currency, "unknown")
    return Cost(float(round(listed, 6)), row.currency, row.price_basis)  # type: ignore[arg-type]


def build(
    record: Record, images: Sequence[StoredImage], *, mismatch: str | None, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of what landed, as the ledger keeps it and a task returns it.

    :param record: what was paid for.
    :param images: what was written.
    :param mismatch: one sentence on how the picture differs from what was asked, or ``None``.
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
    """What lies beside a picture: manifest, the prompt's hash, inputs, and the prompt if prompts are recorded."""
    extra = {"prompt_sha256": record.prompt_sha256, "inputs": record.inputs}
    return {**manifest, **extra, **({"prompt": record.prompt} if record.prompt is not None else {})}


def iso(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="milliseconds")
