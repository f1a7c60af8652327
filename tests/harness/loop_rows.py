"""Rows that strike a loop in its second iteration (Airflow 3.4): the first one keeps its image, nothing is paid twice.

Every iteration has records of its own, so what is unknown, collected or cleared in one of them reaches no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.harness.airflow_rows import RUNS_ON, SUCCESS, waits_then_unknown
from tests.harness.live_rows import LiveRow, Plan
from tests.harness.matrix import Balance
from tests.harness.process_rows import (
    POINTS,
    POLLED,
    UNKNOWN,
    Call,
    Grip,
    Point,
    task_killed,
    task_killed_while_sending,
)

EARLIER = "The first iteration keeps its image."
BOTH_LANDED = Balance(submitted=2, paid=2, landed=2, unknown=0, lost=0, paid_twice=0)
ONE_UNKNOWN = Balance(submitted=2, paid=2, landed=1, unknown=1, lost=0, paid_twice=0)


def _call(row: LiveRow) -> Grip:
    row.hold_call("submit", charge="after", prompt_contains="number 1")
    return Call(row)


def _write(path: str, body: str = "") -> Callable[[LiveRow], Grip]:
    return lambda row: row.hold_write(path, body)


LEDGER = "/ledger/default/{dag}/run/body.made/1.-1/"
HELD = {
    name: Point(name, POINTS[name].moment, hold)
    for name, hold in (
        ("sent_paid", _call),
        ("answered", _write(LEDGER, '"state":"submitted"')),
        ("sidecar", _write("/images/{dag}/run/body.made/1.-1/body.made-iteration1.json")),
    )
}


def first_cleared(point: Point) -> Callable[[LiveRow], None]:
    """Clear the first iteration while the second one is held; both run on."""

    def act(row: LiveRow) -> None:
        grip = point.hold(row)
        row.trigger()
        grip.reached()
        first = row.in_iteration(0)
        first.clear()
        first.until(lambda ti: ti["state"] == "success" and ti["try_number"] == 2)
        grip.let_go()
        row.ends("success")

    return act


def second_created_again(point: Point, then: Callable[[LiveRow], None]) -> Callable[[LiveRow], None]:
    """Clear the first iteration with what follows while the second one is held: Airflow ends it and creates another."""

    def act(row: LiveRow) -> None:
        grip = point.hold(row)
        row.trigger()
        grip.reached()
        task, _ = row.processes()
        row.in_iteration(0).clear(include_downstream=True)
        task.wait(timeout=120)
        grip.let_go()
        then(row)

    return act


def _plan(dag_id: str, event: str, point: str, gateway: str, act: Callable[[LiveRow], None], expected: Balance,
          state: str, then: str, **more: Any) -> Plan:  # fmt: skip
    return Plan(dag_id, event, HELD[point].moment, gateway, act, expected, state, then, iteration=1, **more)


KILLED = "The task's process is killed"
AGAIN = "The first iteration is cleared with what follows; Airflow creates the second one again"

PLANS = [
    _plan("loop_sent_paid", KILLED, "sent_paid", "1min", task_killed_while_sending(HELD["sent_paid"]),
          ONE_UNKNOWN, "failed", f"{UNKNOWN} {EARLIER}"),
    _plan("loop_answered", KILLED, "answered", "apimaster", task_killed_while_sending(HELD["answered"]),
          ONE_UNKNOWN, "failed", f"{UNKNOWN} {EARLIER}"),
    _plan("loop_sidecar", KILLED, "sidecar", "1min", task_killed(HELD["sidecar"]),
          BOTH_LANDED, "success", f"{POLLED} {EARLIER}"),
    _plan("loop_cleared", "The first iteration is cleared", "sent_paid", "apimaster", first_cleared(HELD["sent_paid"]),
          BOTH_LANDED, "success", f"{EARLIER} {RUNS_ON}", group="airflow"),
    _plan("loop_again_sent", AGAIN, "sent_paid", "1min",
          second_created_again(HELD["sent_paid"], waits_then_unknown), ONE_UNKNOWN, "failed", f"{UNKNOWN} {EARLIER}",
          group="airflow"),
    _plan("loop_again_sidecar", AGAIN, "sidecar", "apimaster",
          second_created_again(HELD["sidecar"], SUCCESS), BOTH_LANDED, "success", f"{POLLED} {EARLIER}",
          group="airflow"),
]  # fmt: skip
