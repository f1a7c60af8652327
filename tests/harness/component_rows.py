"""Rows on disk: the task's process dies in the middle of a write, and Airflow's own components die or restart."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.harness.live_rows import LiveRow, Plan
from tests.harness.matrix import Balance
from tests.harness.process_rows import BOUGHT, LANDED, POLLED, UNKNOWN, UNKNOWN_PAID, WAITS, stays_unknown

Act = Callable[[LiveRow], None]
TWO = Balance(submitted=2, paid=2, landed=2, unknown=0, lost=0, paid_twice=0)
RECORD = "/ledger/default/{dag}/"
IMAGE = "/images/{dag}/run/made/-1/made.png"
SIDECAR = "/images/{dag}/run/made/-1/made.json"


def struck(event: str, path: str, victim: str, *, nth: int = 1) -> Act:
    """The process that is about to link or replace this file kills its task or its supervisor."""

    def act(row: LiveRow) -> None:
        row.strike(event, path, victim, nth)
        row.trigger()
        row.ends("success")
        assert row.task["try_number"] == 2

    return act


def orphan_struck(row: LiveRow) -> None:
    """The orphan claims a record whose request it then leaves to the next attempt."""
    struck("os.link", RECORD, "supervisor")(row)
    assert [(record.n, record.state) for record in row.records()] == [(1, "failed"), (2, "landed")]


def struck_before_the_record(row: LiveRow) -> None:
    row.strike("os.rename", RECORD, "task")
    row.trigger()
    row.says(WAITS)
    row.deadline_passes()
    stays_unknown(row)


def while_polling(strike: Act) -> Act:
    """Strike while the job's poll is held, then let it go; somebody lands the image."""

    def act(row: LiveRow) -> None:
        row.hold_call("status")
        row.trigger()
        if row.plan.deferrable:
            row.deferred()
        row.called()
        strike(row)
        row.sandbox.release()
        row.ends("success")

    return act


def restarted(component: str, signal_number: int = signal.SIGTERM, **env: str) -> Act:
    def strike(row: LiveRow) -> None:
        row.airflow.kill(component, signal_number)
        row.airflow.spawn(component, env=env)
        row.stage.looks_again()

    return strike


def taken_over(row: LiveRow) -> None:
    """A second triggerer takes over from one that stands still, which then wakes up, and is alone."""
    airflow = row.airflow
    row.hold_call("status")
    row.trigger()
    row.deferred()
    row.called()
    airflow.kill("triggerer", signal.SIGSTOP)
    airflow.spawn("triggerer", "second triggerer")
    row.ends("success")
    airflow.kill("triggerer", signal.SIGCONT)
    row.sandbox.release()
    airflow.kill("second triggerer", signal.SIGTERM)
    row.edit(prompt=f"another {row.prompt}")
    row.clear()
    row.ends("success")


def without_the_class(row: LiveRow) -> None:
    """The triggerer can't import the trigger; it can again afterwards."""
    restarted("triggerer", GEMINIIMG_TEST_HIDDEN="airflow_provider_geminiimg.triggers.job")(row)
    row.trigger()
    row.ends("success")
    restarted("triggerer")(row)


KILLED, LIVES_ON = "The task's process is killed", "The task's supervisor is killed, the task's process lives on"
DEFERRED = "while deferred"

PLANS = [
    Plan("disk_intent", KILLED, "before the intent's file has its name", "1min",
         struck("os.link", RECORD, "task"), LANDED, "success", BOUGHT),
    Plan("disk_answer", KILLED, "before the answer's file has its name", "apimaster",
         struck_before_the_record, UNKNOWN_PAID, "failed", UNKNOWN, core=True),
    Plan("disk_picture", KILLED, "before the image's file has its name", "1min",
         struck("os.link", IMAGE, "task"), LANDED, "success", POLLED, core=True),
    Plan("disk_sidecar", KILLED, "before the sidecar's file has its name", "apimaster",
         struck("os.link", SIDECAR, "task"), LANDED, "success", POLLED, core=True),
    Plan("disk_landing", KILLED, "before the landing's record has its name", "1min",
         struck("os.rename", RECORD, "task", nth=2), LANDED, "success", POLLED),
    Plan("disk_orphan_intent", LIVES_ON, "before the intent's file has its name", "apimaster",
         orphan_struck, LANDED, "success", BOUGHT, core=True),
    Plan("disk_orphan_answer", LIVES_ON, "before the answer's file has its name", "1min",
         struck("os.rename", RECORD, "supervisor"), LANDED, "success", POLLED, core=True),
]  # fmt: skip

WAITED = "Another triggerer, or the same one after its restart, waits for the same job."
ALONE = [
    Plan("triggerer_kill", "The triggerer is killed", DEFERRED, "1min",
         while_polling(restarted("triggerer", signal.SIGKILL)), LANDED, "success", WAITED, deferrable=True, core=True),
    Plan("triggerer_term", "The triggerer is stopped with SIGTERM", DEFERRED, "apimaster",
         while_polling(restarted("triggerer")), LANDED, "success", WAITED, deferrable=True),
    Plan("triggerer_stop", "The triggerer stands still, a second one takes over, the first wakes up", DEFERRED, "1min",
         taken_over, TWO, "success", WAITED, deferrable=True, core=True),
    Plan("triggerer_class", "The triggerer can't import the trigger", DEFERRED, "apimaster",
         without_the_class, LANDED, "success", "The worker waits for the job itself.", deferrable=True, core=True),
    Plan("scheduler_kill", "The scheduler and all workers are killed", "while polling", "1min",
         while_polling(restarted("scheduler", signal.SIGKILL)), LANDED, "success", POLLED),
    Plan("scheduler_term", "The scheduler restarts", DEFERRED, "apimaster",
         while_polling(restarted("scheduler")), LANDED, "success", WAITED, deferrable=True),
    Plan("api_waiting", "The API server restarts", "while polling", "apimaster",
         while_polling(restarted("api-server")), LANDED, "success", POLLED),
    Plan("api_deferred", "The API server restarts", DEFERRED, "1min",
         while_polling(restarted("api-server")), LANDED, "success", WAITED, deferrable=True),
]  # fmt: skip
