"""The valid ranges of numbers from outside: in gateway responses and in records.

What must stay true: a number outside of its range counts as missing, as do booleans, NaN and infinity; nothing here
raises, however many digits a number has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


def number(value: Any) -> float | None:
    """A finite number from a JSON number or its text (a trailing per cent sign is ignored), else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value.strip().rstrip("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Range:
    """A range of numbers, both ends included."""

    low: float
    high: float

    def of(self, value: Any) -> float | None:
        """The number, from a JSON number or its text; ``None`` if it is not a number or is out of range."""
        found = number(value)
        return found if found is not None and self.low <= found <= self.high else None


REPORTED_COST = Range(0.0, 1_000.0)  # of one image, in USD; the most expensive one costs under 1 USD
AMOUNT = Range(0.0, 1e15)  # of one image in any currency; tens of thousands of credits are common
PROGRESS = Range(0.0, 100.0)  # per cent
UNIX_SECONDS = Range(0.0, 4_102_444_800.0)  # up to the year 2100; milliseconds are outside
HTTP_STATUS = Range(100, 999)
LONGEST_WAIT = 86_400.0  # seconds


def waiting(value: Any) -> float | None:
    """The seconds that a gateway asks to wait, limited to 0 to `LONGEST_WAIT`; ``None`` if not a number."""
    found = number(value)
    return None if found is None else min(max(0.0, found), LONGEST_WAIT)
