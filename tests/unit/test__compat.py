"""Which iteration of a loop a task runs in, from what Airflow says about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_geminiimg._compat import iteration_of
from airflow_provider_geminiimg.exceptions import LedgerError


def ti(map_index: int, **region: Any) -> SimpleNamespace:
    return SimpleNamespace(map_index=map_index, **region)


@pytest.mark.parametrize("index", [0, 1, 12])
@pytest.mark.parametrize("map_index", [-1, 0, 5])
def test_a_task_in_a_loop_has_the_iteration_that_airflow_names(index: int, map_index: int) -> None:
    context = {"loop": SimpleNamespace(index=index), "ti": ti(map_index, region_index=7)}
    assert iteration_of(context) == index


@pytest.mark.parametrize(
    "task",
    [ti(-1), ti(3), ti(-1, region_index=-1), ti(-1, region_index=None), ti(3, region_index=3)],
    ids=["before 3.4", "mapped, before 3.4", "plain", "plain, without a position", "mapped"],
)
def test_a_task_outside_loops_has_none(task: SimpleNamespace) -> None:
    assert iteration_of({"ti": task}) is None


@pytest.mark.parametrize("position", [0, 1])
def test_a_loop_that_does_not_say_its_iteration_is_an_error_and_not_a_task_outside_loops(position: int) -> None:
    with pytest.raises(LedgerError, match="does not say in which iteration"):
        iteration_of({"ti": ti(-1, region_index=position)})
