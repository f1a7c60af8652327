"""The failure matrix: deadlines that pass, and clocks that disagree."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import airflow_provider_geminiimg.runtime.batch_task
import airflow_provider_geminiimg.runtime.image_task
import airflow_provider_geminiimg.runtime.sensor_task  # noqa: F401 - operators import these when they run; they need the clock
from airflow_provider_geminiimg.core.ledger.account_limits import Holder, Holders, Timeline
from airflow_provider_geminiimg.core.ledger.layout import limit_key
from airflow_provider_geminiimg.core.storage import LocalStore
from airflow_provider_geminiimg.exceptions import OutcomeUnknownError, TimedOutError
from tests.harness.rows import (
    BUY_AGAIN,
    CROSSED,
    LANDED,
    STRAIGHT,
    UNKNOWN_PAID,
    UNKNOWN_UNPAID,
    Case,
    Play,
    each,
    play,
)
from tests.harness.s3_proxy import S3Proxy, let_go_of_each

PACKAGE = "airflow_provider_geminiimg."
HOUR = 3600.0


class Clock:
    """The module `time` as the package sees it, with a wall clock of its own. All else is the real one."""

    offset = 0.0

    def time(self) -> float:
        return time.time() + self.offset

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture(autouse=True)
def clock(stage: Play, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The worker's clock, to be put forward or back."""
    clock = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGE) and not name.startswith(f"{PACKAGE}sandbox") and vars(module).get("time") is time:
            monkeypatch.setattr(module, "time", clock)
    stage.trouble = clock
    return clock


def turn(seconds: float) -> Callable[[Play], None]:
    """Put the worker's clock forward, or back."""

    def turned(stage: Play) -> None:
        stage.trouble.offset = seconds

    return turned


def polls_fail(stage: Play) -> None:
    """Let the first attempt lose contact to its job; where it defers, the trigger does, and then the worker."""
    stage.fault("status", status=502, times=5 if stage.mode == "waiting" else 10)


def job_ends(stage: Play) -> None:
    while any(entry["outcome"] == "running" for entry in stage.sandbox.ledger()):
        pass


def died_while_sending(*, seconds_ago: float, answer_within: float) -> Callable[[Play], None]:
    """Leave the record as an attempt leaves it that died between sending and the answer; Airflow then retries."""

    def died(stage: Play) -> None:
        path = stage.folder / stage.record.key
        path.write_text(json.dumps({**json.loads(path.read_text()), "outcome": None, "answer_within": answer_within}))
        then = time.time() - seconds_ago
        os.utime(path, (then, then))
        stage.retry()

    return died


LEASED_SECONDS = 3.0
LEASED: dict[str, Callable[[float], Holders | Timeline]] = {
    "submit": lambda until: Holders(holders={"killed": Holder(units=1, wanted=1, until=until)}),
    "rate": lambda until: Timeline(next=until),
}


def leased(name: str) -> Callable[[Play], None]:
    """Leave the leases of a limit as a process leaves them that was killed a while ago."""

    def killed(stage: Play) -> None:
        usual = stage.sandbox.connection(stage.gateway, requests_per_minute=600, max_concurrency=1)
        stage.connect(**usual)
        stage.until = time.time() + LEASED_SECONDS
        store = LocalStore(str(stage.folder))
        conn_id = stage.usual()["geminiimg_conn_id"]
        store.create(limit_key("default", conn_id, name), LEASED[name](stage.until).model_dump_json().encode())

    return killed


def waited_for(stage: Play) -> None:
    [submit] = [call for call in stage.sandbox.calls() if str(call["route"]).endswith(".submit")]
    assert stage.until < submit["time"]


def sent(*, charged: bool) -> tuple[dict[str, Any], ...]:
    return ({"route": "submit", "drop": True, "charge": "after" if charged else "before"},)


UNKNOWN = {
    "attempts": 2, "error": OutcomeUnknownError, "still": ("retry", "clear"), "again": BUY_AGAIN,
    "then": 'Outcome unknown. Nothing is sent again; a Clear with `on_unknown="resubmit"` buys again.',
}  # fmt: skip
TIMED_OUT = {
    "attempts": 2, "error": TimedOutError, "mend": job_ends,
    "then": "The job keeps running. Each attempt polls it once more. Once it has ended, a Clear lands it at no cost.",
}  # fmt: skip
PASSED = died_while_sending(seconds_ago=600, answer_within=240)
PASSING = died_while_sending(seconds_ago=0, answer_within=0.5)
WAITING = "while the next attempt waits for it"
RETRY = "between submit and retry"

CASES = [
    *(Case("The answer's deadline passes", f"{moment}, {'charged' if charged else 'not charged'}",
           expected=UNKNOWN_PAID if charged else UNKNOWN_UNPAID, faults=sent(charged=charged), between=died,
           where=CROSSED if charged else STRAIGHT, **UNKNOWN)
      for charged in (False, True)
      for moment, died in (("before the next attempt", PASSED), (WAITING, PASSING))),
    Case("The task's `timeout` passes", "while the job runs", arguments={"timeout": 0.2}, settings={"latency": 5.0},
         **TIMED_OUT),
    Case("The worker's clock steps back an hour", RETRY, "The job is polled as ever.",
         where=STRAIGHT, prepare=polls_fail, between=turn(-HOUR), attempts=2),
    Case("The worker's clock steps forward an hour", RETRY, "The next attempt asks once, and lands it.",
         where=CROSSED, prepare=polls_fail, between=turn(HOUR), attempts=2),
    Case("The worker's clock steps forward an hour", f"{RETRY}, while the job runs", where=STRAIGHT,
         prepare=polls_fail, between=turn(HOUR), settings={"latency": 6.0}, **TIMED_OUT),
    Case("The worker's clock is an hour behind the storage's", "all along", "Nothing changes.",
         where=CROSSED, prepare=turn(-HOUR)),
    Case("The worker's clock is an hour ahead of the storage's", "all along", "Nothing changes.",
         where=STRAIGHT, prepare=turn(HOUR)),
    *(Case("Another process is killed", f"while it has leased {what}", where=STRAIGHT, prepare=leased(name),
           then="The attempt waits until the lease has ended, and buys the image.", holds=waited_for)
      for name, what in (("rate", "the connection's next seconds"), ("submit", "all of its `max_concurrency`"))),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each(CASES))
def test_paid_work_is_safe_from(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "time", monkeypatch)


CLOCKS = {
    "with clocks that agree": 0.0,
    "with the worker's clock an hour behind the storage's": -HOUR,
    "with the worker's clock an hour ahead of the storage's": HOUR,
}


@pytest.mark.parametrize("reading", CLOCKS)
@pytest.mark.parametrize(("gateway", "mode"), STRAIGHT)
def test_an_attempt_that_is_still_sending_is_waited_for_by_the_storages_clock(
    bucket_stage: Play, s3_proxy: S3Proxy, clock: Clock, reading: str
) -> None:
    stage = bucket_stage
    stage.fault("submit", hold=True)
    looks = [s3_proxy.hold("GET", "/1.json"), s3_proxy.hold("GET", "/1.json")]

    with ThreadPoolExecutor() as pool:
        sending = pool.submit(stage.rival())
        assert stage.sandbox.held(1)
        clock.offset = CLOCKS[reading]
        looking = pool.submit(let_go_of_each, looks, stage.sandbox.release)
        stage.start()
        looking.result()
        sending.result()
    assert stage.submits() == 1
    assert (stage.task.state, stage.balance()) == ("success", LANDED)
    then = "It is waited for, and its job is collected. Ages come from the storage's clock."
    case = Case("Another attempt is still sending", reading, then)
    stage.save("time", case, stage.balance())
