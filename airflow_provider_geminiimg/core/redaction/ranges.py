"""Numbers from outside, in answers of gateways and in what records hold: each within what it can mean.

What must stay true: a number outside of its range is no number, as are true and false, NaN and the infinite; nothing
here raises, however many digits there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


def number(value: Any) -> float | None:
    """A finite number from a JSON number or its text (a per cent sign is ignored), else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value.strip().rstrip("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Range:
    """What a number can be, both ends included."""

    low: float
    high: float

    def of(self, value: Any) -> float | None:
        """The number, from a JSON number or its text; ``None`` where it is none, or outside."""
        found = number(value)
        return found if found is not None and self.low <= found <= self.high else None


REPORTED_COST = Range(0.0, 1_000.0)  # of one image, in USD; the dearest is a few tenths of one
AMOUNT = Range(0.0, 1e15)  # of one image in any currency; credits come in tens of thousands
PROGRESS = Range(0.0, 100.0)  # per cent
UNIX_SECONDS = Range(0.0, 4_102_444_800.0)  # up to the year 2100; milliseconds are outside
HTTP_STATUS = Range(100, 999)
LONGEST_WAIT = 86_400.0  # seconds that are obeyed


def waiting(value: Any) -> float | None:
    """Seconds to wait, as a gateway tells them: none is below 0, and a day stands for all that is longer."""
    found = number(value)
    return None if found is None else min(max(0.0, found), LONGEST_WAIT)
