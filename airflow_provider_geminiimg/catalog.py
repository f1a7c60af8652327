"""What each gateway takes for each model and operation, as one table, so that nothing else needs to know it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

DEFAULT_MODEL = "gemini-3.1-flash-image-preview"


@dataclass(frozen=True)
class Row:
    """One gateway, model and operation."""

    gateway: str
    model: str
    operation: str
    wire_model: str
    fields: frozenset[str]
    resolutions: tuple[str, ...]
    default_resolution: str | None
    aspect_ratios: tuple[str, ...]
    max_reference_images: int
    max_input_bytes: int
    max_total_input_bytes: int
    input_media_types: tuple[str, ...]
    prices: Mapping[str, Decimal]
    price_tiers: Mapping[str, Fraction]
    currency: str
    price_basis: str
    expected_seconds: Mapping[str, float]
    read_timeouts: Mapping[str, float]
    verified: bool
    source: str

    def price(self, resolution: str | None, base: Decimal | None = None) -> Decimal | None:
        """The price of one picture; `base` (from the connection) replaces the catalogue's own."""
        key = resolution or ""
        if base is None:
            return self.prices.get(key)
        tier = self.price_tiers.get(key, Fraction(1))
        return round(base * tier.numerator / tier.denominator, 6)

    def expected(self, resolution: str | None) -> float:
        """Seconds until the first poll."""
        return self.expected_seconds[resolution or ""]

    def read_timeout(self, resolution: str | None) -> float:
        """Seconds to wait for the answer of a synchronous call."""
        return self.read_timeouts[resolution or ""]


@dataclass(frozen=True)
class Limits:
    """What one gateway allows per key."""

    requests_per_minute: int
    uploads_per_minute: int
    uploads_at_once: int
    poll_interval: tuple[float, float]
    source: str


LIMITS: Mapping[str, Limits] = {
    name: Limits(180, 100, 5, (3.0, 5.0), "contracts") for name in ("1min", "apimaster")
}


def _row(gateway: str, operation: str) -> Row:
    keys = ("512", "1K", "2K", "4K")
    pictures = {"image", "reference_images"} if operation == "edit" else set()
    return Row(
        gateway=gateway,
        model=DEFAULT_MODEL,
        operation=operation,
        wire_model=DEFAULT_MODEL,
        fields=frozenset({"resolution", "aspect_ratio", *pictures}),
        resolutions=keys,
        default_resolution="1K",
        aspect_ratios=("1:1", "16:9"),
        max_reference_images=2,
        max_input_bytes=7_000_000,
        max_total_input_bytes=21_000_000,
        input_media_types=("image/png", "image/jpeg", "image/webp"),
        prices={},
        price_tiers={},
        currency="USD",
        price_basis="unknown",
        expected_seconds=dict.fromkeys(keys, 12.0),
        read_timeouts=dict.fromkeys(keys, 210.0),
        verified=True,
        source="skeleton",
    )


def lookup(gateway: str, model: str, operation: str) -> Row:
    """The row of a gateway, model and operation."""
    return dataclasses.replace(_row(gateway, operation), wire_model=model)
