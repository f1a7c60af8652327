"""What records cost, added up by the groups that they are counted in.

Invariants: only what was certainly charged is an amount. A request that may have been charged, and one without a known
price, are counted beside the amounts. Amounts of two currencies, or from two bases, are never added. Sums are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.ledger.summary_parts import RecordGroup


@dataclass
class Spend:
    """What some records cost.

    :param paid: number of paid requests.
    :param images: number of their images that were stored.
    :param amounts: sum by currency, basis and whether it is an estimate.
    :param without_price: number of paid requests without a known price.
    :param unknown: number of requests of which it is not known whether they were paid.
    """

    paid: int = 0
    images: int = 0
    amounts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    without_price: int = 0
    unknown: int = 0

    def add(self, group: RecordGroup, count: int) -> None:
        """Add records of one group."""
        self.unknown += count if group.billed == "unknown" else 0
        if group.billed != "yes":
            return
        self.paid += count
        self.images += count * group.images
        if group.amount is None or not math.isfinite(group.amount):
            self.without_price += count
        else:
            which = (str(group.currency), str(group.basis), group.estimate)
            self.amounts[which] += count * Decimal(repr(group.amount))  # type: ignore[assignment]

    def costs(self) -> list[dict[str, Any]]:
        """The sums, as plain values."""
        return [
            {"amount": float(amount), "currency": currency, "basis": basis, "estimate": estimate}
            for (currency, basis, estimate), amount in sorted(self.amounts.items())
        ]
