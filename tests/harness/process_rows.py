"""Rows in which a worker's process dies: what is killed, at which point, and what must come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.harness.live_rows import LiveRow, Plan
from tests.harness.matrix import Balance

LANDED = Balance(submitted=1, paid=1, landed=1, unknown=0, lost=0, paid_twice=0)
UNKNOWN_PAID = Balance(submitted=1, paid=1, landed=0, unknown=1, lost=0, paid_twice=0)
UNKNOWN_UNPAID = Balance(submitted=0, paid=0, landed=0, unknown=1, lost=0, paid_twice=0)
WAITS = "may still be sending"  # what an attempt says that finds another one's intent


class Grip(Protocol):
    """A process held at a point."""

    def reached(self) -> object: ...
    def let_go(self) -> object: ...
    def drop(self) -> object: ...


@dataclass
class Call:
    """A grip on a call that the gateway holds."""

    row: LiveRow

    def reached(self) -> None:
        self.row.called()

    def let_go(self) -> None:
        self.row.sandbox.release()

    drop = let_go  # what is left of the call then depends on the fault


@dataclass(frozen=True)
class Point:
    """A moment in an image's life at which a process can be held."""

    name: str
    moment: str
    hold: Callable[[LiveRow], Grip]


def _call(operation: str, **fault: object) -> Callable[[LiveRow], Grip]:
    def hold(row: LiveRow) -> Grip:
        row.hold_call(operation, **fault)
        return Call(row)

    return hold


def _write(path: str, body: str = "") -> Callable[[LiveRow], Grip]:
    return lambda row: row.hold_write(path, body)


LEDGER = "/ledger/default/{dag}/"
POINTS = {
    point.name: point
    for point in (
        Point("intent", "before the intent is recorded", _write(LEDGER, '"state":"intent"')),
        Point("sent_unpaid", "while sending, before the gateway has the request", _call("submit", drop=True)),
        Point("sent_paid", "while waiting for the gateway's answer", _call("submit", charge="after")),
        Point("answered", "between the gateway's answer and its record", _write(LEDGER, '"state":"submitted"')),
        Point("noted", "between the record of the answer and the note of whose job it is", _write("/jobs/", "/{dag}/")),
        Point("polling", "while polling", _call("status")),
        Point("download", "while downloading", _call("download")),
        Point("sidecar", "between the image and its sidecar", _write("/images/{dag}/run/made/-1/made.json")),
        Point("landed", "after landing, before the task reports success", _write("/index/default/{dag}/")),
    )
}


def task_killed(point: Point) -> Callable[[LiveRow], None]:
    def act(row: LiveRow) -> None:
        grip = point.hold(row)
        row.trigger()
        grip.reached()
        row.kill("task")
        grip.drop()
        row.ends("success")

    return act


def task_killed_while_sending(point: Point) -> Callable[[LiveRow], None]:
    def act(row: LiveRow) -> None:
        grip = point.hold(row)
        row.trigger()
        grip.reached()
        row.kill("task")
        grip.drop()
        row.says(WAITS)
        row.deadline_passes()
        stays_unknown(row)

    return act


def supervisor_killed(point: Point) -> Callable[[LiveRow], None]:
    def act(row: LiveRow) -> None:
        grip = point.hold(row)
        row.trigger()
        grip.reached()
        row.kill("supervisor")
        row.attempt(2)
        grip.let_go()
        row.ends("success")

    return act


def stays_unknown(row: LiveRow) -> None:
    """The outcome is unknown, and neither a retry nor a Clear sends anything."""
    row.ends("failed")
    sent = row.submits()
    row.clear()
    row.ends("failed")
    assert row.submits() == sent == 1 + (row.plan.iteration or 0)  # each iteration before it has sent one


POLLED = "The next attempt asks for the same job and lands its image."
BOUGHT = "Nothing was sent. The next attempt buys the image."
UNKNOWN = "Outcome unknown. Nothing is sent again by itself. A person resolves it."

PLANS = [
    *(
        Plan(f"task_{name}_{gateway}", "The task's process is killed", POINTS[name].moment, gateway, act(POINTS[name]),
             expected, state, then, core=True)
        for name, gateway, act, expected, state, then in (
            ("intent", "1min", task_killed, LANDED, "success", BOUGHT),
            ("sent_unpaid", "apimaster", task_killed_while_sending, UNKNOWN_UNPAID, "failed", UNKNOWN),
            ("sent_paid", "1min", task_killed_while_sending, UNKNOWN_PAID, "failed", UNKNOWN),
            ("answered", "apimaster", task_killed_while_sending, UNKNOWN_PAID, "failed", UNKNOWN),
            ("noted", "1min", task_killed, LANDED, "success", POLLED),
            ("polling", "1min", task_killed, LANDED, "success", POLLED),
            ("download", "apimaster", task_killed, LANDED, "success", POLLED),
            ("sidecar", "1min", task_killed, LANDED, "success", POLLED),
            ("landed", "apimaster", task_killed, LANDED, "success", POLLED),
        )
    ),
    *(
        Plan(f"task_{name}_deferred", "The task's process is killed", POINTS[name].moment, gateway,
             task_killed(POINTS[name]), LANDED, "success", POLLED, deferrable=True)
        for name, gateway in (("download", "1min"), ("sidecar", "apimaster"), ("landed", "1min"))
    ),
    *(
        Plan(f"supervisor_{name}", "The task's supervisor is killed, the task's process lives on", POINTS[name].moment,
             gateway, supervisor_killed(POINTS[name]), LANDED, "success", then)
        for name, gateway, then in (
            ("intent", "apimaster", BOUGHT),
            ("sent_paid", "1min", POLLED),
            ("answered", "apimaster", POLLED),
            ("polling", "1min", POLLED),
            ("download", "apimaster", POLLED),
            ("sidecar", "1min", POLLED),
            ("landed", "apimaster", POLLED),
        )
    ),
]  # fmt: skip
