"""Rows in which Airflow, or a person in front of it, ends or repeats a task: at which point, and what must come out."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from tests.harness.live_rows import LiveRow, Plan
from tests.harness.matrix import Balance
from tests.harness.process_rows import BOUGHT, LANDED, POINTS, POLLED, UNKNOWN, UNKNOWN_PAID, WAITS, stays_unknown

Act = Callable[[LiveRow], None]

TWO = Balance(submitted=2, paid=2, landed=2, unknown=0, lost=0, paid_twice=0)
SUBMITTING = "while waiting for the gateway's answer"
DEFERRED = "while deferred"
DOWNLOADING = "while downloading"
RUNS_ON = "The task runs on, records the answer and lands the image."
COLLECTED = "Nothing waits for the job any more. The collect operator lands its image."
REPORTED = "Outcome unknown. Nothing is sent again by itself. The collect operator reports it; a person resolves it."
BOTH = "The new image is bought, the collect operator lands the earlier one."


def while_held(strike: Act, then: Act, *, point: str) -> Act:
    """Hold the task at a point, strike, see its process end, let the held call go, go on."""

    def act(row: LiveRow) -> None:
        grip = POINTS[point].hold(row)
        row.trigger()
        grip.reached()
        task, _ = row.processes()
        strike(row)
        task.wait(timeout=60)
        grip.let_go()
        then(row)

    return act


def while_running(strike: Act, then: Act, *, point: str) -> Act:
    """Hold the task at a point, strike, let the held call go at once, go on."""

    def act(row: LiveRow) -> None:
        grip = POINTS[point].hold(row)
        row.trigger()
        grip.reached()
        strike(row)
        grip.let_go()
        then(row)

    return act


def while_deferred(strike: Act, then: Act) -> Act:
    """Strike while the task waits in the triggerer and its poll is held."""

    def act(row: LiveRow) -> None:
        row.hold_call("status")
        row.trigger()
        row.deferred()
        row.called()
        strike(row)
        row.sandbox.release()
        then(row)

    return act


def after_success(strike: Act, then: Act) -> Act:
    def act(row: LiveRow) -> None:
        row.trigger()
        row.ends("success")
        strike(row)
        then(row)

    return act


def ends(state: str) -> Act:
    return lambda row: row.ends(state)


def marked(state: str) -> Act:
    def strike(row: LiveRow) -> None:
        row.mark(state)
        row.until(lambda ti: ti["state"] == state)

    return strike


def collected(state: str) -> Act:
    """The state stays, and one look by the collect command lands what was paid for."""

    def then(row: LiveRow) -> None:
        row.ends(state)
        row.deadline_passes()
        row.collect()

    return then


def reported(row: LiveRow) -> None:
    """The task counts as done, and the collect command says what nobody knows."""
    row.ends("success")
    row.deadline_passes()
    assert "unknown" in row.jobs("list", "--dag", row.dag_id)
    assert row.submits() == 1


def unknown(row: LiveRow) -> None:
    row.deadline_passes()
    stays_unknown(row)


def waits_then_unknown(row: LiveRow) -> None:
    """The next attempt waits for the dead one's answer until it is overdue."""
    row.says(WAITS)
    unknown(row)


def told_to_stop(row: LiveRow) -> None:
    row.kill("task", signal.SIGTERM)
    row.says("Kill received")


def bought_by_the_next(row: LiveRow) -> None:
    """The attempt that was told to stop has claimed a record, and left its request to the next one."""
    row.ends("success")
    assert [(record.n, record.state) for record in row.records()] == [(1, "failed"), (2, "landed")]


def cleared(row: LiveRow) -> None:
    row.clear()


def recreated(row: LiveRow) -> None:
    row.delete_run()
    row.trigger()


def deleted(row: LiveRow) -> None:
    row.delete_run()


def triggered_again(then: Act) -> Act:
    def again(row: LiveRow) -> None:
        row.trigger()
        then(row)

    return again


def after_edit(strike: Act, **arguments: str) -> Act:
    """Strike after the author has edited the task: another prompt, unless said otherwise."""

    def struck(row: LiveRow) -> None:
        row.edit(**(arguments or {"prompt": f"another {row.prompt}"}))
        strike(row)

    return struck


def after_failure(strike: Act, then: Act) -> Act:
    """Strike when the task has failed on a download, its job paid for."""

    def act(row: LiveRow) -> None:
        row.sandbox.faults(route="download", status=500, times=3)
        row.trigger()
        row.ends("failed")
        strike(row)
        then(row)

    return act


def nothing(row: LiveRow) -> None:
    """Airflow itself strikes."""


SUCCESS = ends("success")
EDITED = after_edit(cleared)
REGENERATED = after_edit(cleared, on_clear="regenerate")
ONCE: dict[str, Any] = {"arguments": {"retries": 0}}
IN_TRIGGERER: dict[str, Any] = {"deferrable": True}


def _plan(dag_id: str, event: str, moment: str, gateway: str, act: Act, expected: Balance, state: str, then: str,
          **more: Any) -> Plan:  # fmt: skip
    return Plan(dag_id, event, moment, gateway, act, expected, state, then, group="airflow", **more)


SIGTERM, TIMEOUT = "SIGTERM to the task's process", "`execution_timeout` passes"
MARKED = {state: f"The task is marked as {state}" for state in ("failed", "success")}
AGAIN, OTHERWISE = (
    "The DAG run is marked as failed, deleted and made again",
    "The DAG run is deleted and made again, with another prompt",
)
CLEARED, EDIT = "The task is cleared", "The task is cleared after its prompt was edited"
REBUY = 'The task is cleared with `on_clear="regenerate"`'

PLANS = [
    _plan("term_intent", SIGTERM, POINTS["intent"].moment, "1min",
          while_running(told_to_stop, bought_by_the_next, point="intent"), LANDED, "success", BOUGHT),
    _plan("term_submitting", SIGTERM, SUBMITTING, "apimaster", while_running(told_to_stop, SUCCESS, point="sent_paid"),
          LANDED, "success", RUNS_ON),
    _plan("term_downloading", SIGTERM, DOWNLOADING, "1min", while_running(told_to_stop, SUCCESS, point="download"),
          LANDED, "success", RUNS_ON, core=True),
    _plan("timeout_submitting", TIMEOUT, SUBMITTING, "apimaster", while_held(nothing, stays_unknown, point="sent_paid"),
          UNKNOWN_PAID, "failed", UNKNOWN, arguments={"execution_timeout": 15}),
    _plan("timeout_downloading", TIMEOUT, DOWNLOADING, "1min", while_held(nothing, SUCCESS, point="download"),
          LANDED, "success", POLLED, arguments={"execution_timeout": 15}),
    _plan("timeout_deferred", TIMEOUT, DEFERRED, "apimaster", after_success(nothing, SUCCESS),
          LANDED, "success", "It does not count while a task is deferred.", **IN_TRIGGERER, latency=75.0,
          arguments={"execution_timeout": 60}),
    *(
        plan
        for state in ("failed", "success")
        for plan in (
            _plan(f"{state}_submitting", MARKED[state], SUBMITTING, "1min",
                  while_held(marked(state), unknown if state == "failed" else reported, point="sent_paid"),
                  UNKNOWN_PAID, state, UNKNOWN if state == "failed" else REPORTED),
            _plan(f"{state}_deferred", MARKED[state], DEFERRED, "apimaster",
                  while_deferred(marked(state), collected(state)), LANDED, state, COLLECTED, **IN_TRIGGERER),
            _plan(f"{state}_downloading", MARKED[state], DOWNLOADING, "1min",
                  while_held(marked(state), collected(state), point="download"), LANDED, state, COLLECTED,
                  core=state == "failed"),
        )
    ),
    _plan("again_submitting", AGAIN, SUBMITTING, "apimaster",
          while_held(deleted, triggered_again(waits_then_unknown), point="sent_paid"), UNKNOWN_PAID, "failed", UNKNOWN),
    _plan("again_deferred", AGAIN, DEFERRED, "1min", while_deferred(recreated, SUCCESS), LANDED, "success", POLLED,
          **IN_TRIGGERER),
    _plan("again_downloading", AGAIN, DOWNLOADING, "apimaster",
          while_held(deleted, triggered_again(SUCCESS), point="download"), LANDED, "success", POLLED),
    _plan("again_success", AGAIN, "after success", "1min", after_success(recreated, SUCCESS), LANDED, "success",
          "The image is returned, at no cost."),
    _plan("again_edited", OTHERWISE, "after success", "apimaster", after_success(after_edit(recreated), SUCCESS),
          TWO, "success", "Counts as a Clear: the other image is bought. Before Airflow 3.3 the first is returned."),
    _plan("clear_submitting", CLEARED, SUBMITTING, "1min", while_held(cleared, waits_then_unknown, point="sent_paid"),
          UNKNOWN_PAID, "failed", UNKNOWN),
    _plan("clear_downloading", CLEARED, DOWNLOADING, "apimaster", while_held(cleared, SUCCESS, point="download"),
          LANDED, "success", POLLED),
    _plan("clear_deferred", CLEARED, DEFERRED, "1min", while_deferred(cleared, SUCCESS), LANDED, "success", POLLED,
          **IN_TRIGGERER),
    _plan("clear_success", CLEARED, "after success", "apimaster", after_success(cleared, SUCCESS), LANDED, "success",
          "The image is returned, at no cost."),
    _plan("clear_failure", CLEARED, "after it failed on the download", "1min", after_failure(cleared, SUCCESS),
          LANDED, "success", POLLED, **ONCE),
    _plan("edit_submitting", EDIT, SUBMITTING, "apimaster", while_held(EDITED, waits_then_unknown, point="sent_paid"),
          UNKNOWN_PAID, "failed", UNKNOWN),
    _plan("edit_downloading", EDIT, DOWNLOADING, "1min", while_held(EDITED, collected("success"), point="download"),
        TWO, "success", BOTH),
    _plan("edit_deferred", EDIT, DEFERRED, "apimaster", while_deferred(EDITED, collected("success")),
          TWO, "success", BOTH, **IN_TRIGGERER),
    _plan("edit_success", EDIT, "after success", "1min", after_success(EDITED, SUCCESS), TWO, "success",
          "The new image is bought and lands beside the first."),
    _plan("edit_failure", EDIT, "after it failed on the download", "apimaster",
          after_failure(EDITED, collected("success")), TWO, "success", BOTH, **ONCE),
    _plan("rebuy_deferred", REBUY, DEFERRED, "1min", while_deferred(REGENERATED, SUCCESS), LANDED, "success",
          "The job still runs, and is waited for.", **IN_TRIGGERER),
    _plan("rebuy_success", REBUY, "after success", "apimaster", after_success(REGENERATED, SUCCESS),
          TWO, "success", "A second image is bought, as asked.", asked_again=1),
    _plan("rebuy_failure", REBUY, "after it failed on the download", "1min", after_failure(REGENERATED, SUCCESS),
          LANDED, "success", POLLED, **ONCE),
]  # fmt: skip
