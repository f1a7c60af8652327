"""The failure matrix, live: real processes die at exact points, and the sum must come out.

Rows of one Airflow run side by side; those that restart its components run alone, after the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness import AIRFLOW, airflow_rows, component_rows, loop_rows, process_rows
from tests.harness.live_rows import LOOPS, LiveRow, LiveRows, Plan
from tests.harness.matrix import Row

AT_ONCE = 10
ON_S3 = [*process_rows.PLANS, *airflow_rows.PLANS, *loop_rows.PLANS]
ON_DISK = [*component_rows.PLANS, *component_rows.ALONE]
Rows = dict[str, Future[Row]]


@pytest.fixture(scope="module")
def on_s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """The chosen rows, under way in one Airflow whose root is a bucket."""
    with LiveRows(tmp_path_factory.mktemp("s3"), chosen(request, ON_S3)) as stage, ThreadPoolExecutor(AT_ONCE) as pool:
        yield {dag_id: pool.submit(perform, row) for dag_id, row in stage.live_rows.items()}


@pytest.fixture(scope="module")
def on_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """The chosen rows, under way in one Airflow whose root is a folder."""
    plans = chosen(request, ON_DISK)
    alone = {plan.dag_id for plan in component_rows.ALONE}
    with (
        LiveRows(tmp_path_factory.mktemp("disk"), plans, disk=True) as stage,
        ThreadPoolExecutor(AT_ONCE) as pool,
        ThreadPoolExecutor(1) as queue,
    ):
        beside = {name: pool.submit(perform, row) for name, row in stage.live_rows.items() if name not in alone}
        for future in beside.values():
            queue.submit(future.exception)  # nothing is restarted before these have ended
        after = {name: queue.submit(perform, row) for name, row in stage.live_rows.items() if name in alone}
        yield beside | after


def rows(plans: Sequence[Plan]) -> list[Any]:
    return [pytest.param(plan, id=plan.dag_id, marks=[*marks(plan)]) for plan in plans]


def marks(plan: Plan) -> Iterator[pytest.MarkDecorator]:
    if plan.core:
        yield pytest.mark.core
    if not runs_here(plan):
        yield pytest.mark.skip(reason="this Airflow has no loops; 3.4 has")


def runs_here(plan: Plan) -> bool:
    return plan.iteration is None or AIRFLOW >= LOOPS


def chosen(request: pytest.FixtureRequest, plans: Sequence[Plan]) -> list[Plan]:
    names = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    return [plan for plan in plans if plan.dag_id in names and runs_here(plan)]


def perform(row: LiveRow) -> Row:
    row.plan.act(row)
    return row.result()


def check(plan: Plan, row: Row) -> None:
    row.save()
    assert (row.balance, row.state) == (plan.expected, plan.state)


@pytest.mark.parametrize("plan", rows(ON_S3))
def test_paid_work_is_safe_on_s3_when(plan: Plan, on_s3: Rows) -> None:
    check(plan, on_s3[plan.dag_id].result())


@pytest.mark.parametrize("plan", rows(ON_DISK))
def test_paid_work_is_safe_on_disk_when(plan: Plan, on_disk: Rows) -> None:
    check(plan, on_disk[plan.dag_id].result())
