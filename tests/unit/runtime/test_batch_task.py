"""How many images of a batch must land."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from airflow_provider_geminiimg.exceptions import Billed
from airflow_provider_geminiimg.runtime.batch_task import incomplete


@dataclass(frozen=True)
class Paid:
    """The rest of the outcome of a batch."""

    billed: Billed = Billed.YES
    retryable: bool = False


@pytest.mark.parametrize(
    ("wanted", "total", "needed"), [(0.28, 25, 7), (0.14, 50, 7), (0.7, 10, 7), (1.0, 3, 3), (2, 25, 2), (30, 25, 25)]
)
def test_exactly_as_many_images_as_were_asked_for_are_enough(wanted: float, total: int, needed: int) -> None:
    for good, enough in ((needed - 1, False), (needed, True)):
        counts = {"landed": good, "reused": 0, "refused": total - good}
        error = incomplete(wanted, {"items": total, "counts": counts, "manifest": "m.jsonl"}, Paid(), [])
        assert (error is None) == enough
