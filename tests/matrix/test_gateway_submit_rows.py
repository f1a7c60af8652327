"""The failure matrix: what the gateway answers to the paid request itself, or does not answer."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core.catalog.lookup import ModelSpec as CatalogRow
from airflow_provider_geminiimg.core.gateways import apimaster
from airflow_provider_geminiimg.core.purchase import lifecycle
from airflow_provider_geminiimg.exceptions import InsufficientBalanceError
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.matrix import Row, weigh
from tests.harness.rows import (
    AT_1MIN,
    AT_APIMASTER,
    BOTH_PATHS,
    CROSSED,
    LANDED,
    OTHER_PATHS,
    STRAIGHT,
    Case,
    Play,
    each,
    play,
    unknown,
)

PAGE = "<html><body>A timeout occurred</body></html>"
SUBMIT = "on the submit"
IN_THE_ATTEMPT = "The same attempt waits, and sends it again: it is known to be unpaid."
NEXT_ATTEMPT = "The next attempt sends it again: it is known to be unpaid."
NO_RESENDING = ((lifecycle, "RESEND_SECONDS", 0.0),)


FRAMES = (
    ("The connection breaks off behind the answer", "length", BOTH_PATHS),
    ("The connection is reset behind the answer", "reset", OTHER_PATHS),
    ("The answer's last chunk never comes", "chunked", BOTH_PATHS),
)


def nobody_listens(stage: Play) -> None:
    """Lead the connection to a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stage.connect(host=f"http://127.0.0.1:{free.getsockname()[1]}/v1")


def top_up(stage: Play) -> None:
    stage.sandbox.settings(credits=None, balance=None)


def job_ends(stage: Play) -> None:
    """Wait until the gateway has charged for the job that it no longer speaks of; from then on it is quick."""
    while not all(entry["charged"] for entry in stage.sandbox.ledger()):
        pass
    stage.sandbox.settings(sync_gives_up=180)


def unanswered(status: str, fault: dict[str, Any], **more: Any) -> list[Case]:
    """A submit that went out and that no usable answer came to, where the gateway charges and where it does not.

    The task does not come as far as waiting; so each is played once a gateway and once a mode, as are all cases here
    on which they have no bearing.
    """
    return [
        unknown(
            status,
            SUBMIT,
            charged=charged,
            where=CROSSED if charged else STRAIGHT,
            faults=({"route": "submit", "charge": "after" if charged else "before", **fault},),
            **more,
        )
        for charged in (False, True)
    ]


CASES = [
    Case("429 with Retry-After", SUBMIT, IN_THE_ATTEMPT, where=STRAIGHT,
         faults=({"route": "submit", "status": 429, "headers": {"Retry-After": "1"}},)),
    Case("429 without Retry-After", SUBMIT, IN_THE_ATTEMPT, where=CROSSED,
         faults=({"route": "submit", "status": 429, "times": 2},)),
    Case("429 for longer than two minutes", SUBMIT, NEXT_ATTEMPT, where=STRAIGHT,
         faults=({"route": "submit", "status": 429},), patches=NO_RESENDING, attempts=2),
    Case("The gateway can't be reached", SUBMIT, NEXT_ATTEMPT, where=CROSSED,
         patches=NO_RESENDING, prepare=nobody_listens, between=Play.connect, attempts=2),
    Case("502 that says why, in the gateway's own words", SUBMIT, NEXT_ATTEMPT,
         faults=({"route": "submit", "status": 502},), where=AT_APIMASTER, attempts=2),
    Case("503 that says why, in the gateway's own words", SUBMIT, NEXT_ATTEMPT,
         faults=({"route": "submit", "status": 503},), where=AT_APIMASTER, attempts=2),
    *unanswered("429 as a web page", {"status": 429, "body": PAGE}),
    *unanswered("500", {"status": 500}),
    *unanswered("502 as a web page", {"status": 502, "body": PAGE}),
    *unanswered("503 as a web page", {"status": 503, "body": PAGE}),
    *unanswered("522 as a web page", {"status": 522, "body": PAGE}),
    *unanswered("The connection breaks off", {"drop": True}),
    *unanswered(
        "No answer comes in time",
        {"hold": True},
        patches=((CatalogRow, "read_timeout", lambda row, resolution: 0.2), (apimaster, "ASYNC_READ_TIMEOUT", 0.2)),
    ),
    unknown("408, and the job goes on unseen", SUBMIT, charged=True, where=AT_APIMASTER, between=job_ends,
            settings={"honour_async": False, "sync_gives_up": 0.02, "latency": 0.2}),
    Case("PROCESSING after a long wait instead of the image", SUBMIT, "The job is polled.", where=AT_1MIN,
         settings={"honour_async": False, "sync_gives_up": 0.02, "latency": 0.2}),
    Case("The image itself after a long wait instead of a job", SUBMIT, "The image is taken as it is.",
         where=STRAIGHT, settings={"honour_async": False}),
    *(Case(event, SUBMIT, "What came is a whole answer: it counts, and its job is polled.",
           faults=({"route": "submit", "frame": frame},), images=2, where=where)
      for event, frame, where in FRAMES),
    Case("The account has no money", SUBMIT, "Nothing is sent again until a Clear. Top up the account, then clear.",
         settings={"credits": 0, "balance": 0}, attempts=2, error=InsufficientBalanceError, still=("retry",),
         mend=top_up, buys=1, where=CROSSED),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each(CASES))
def test_paid_work_is_safe_from(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "gateway", monkeypatch)


@pytest.mark.parametrize(("gateway", "mode"), STRAIGHT)
def test_paid_work_is_safe_from_money_that_is_gone_half_way(stage: Play) -> None:
    event = "The account has money for two of three mapped items"
    then = "The third fails, and is not sent again until a Clear. Top up, then clear: it is bought, and no other."
    prompts = ["one fox", "two foxes", "three foxes"]
    stage.sandbox.settings(credits=2 * 4500, balance=2 * 0.0672)
    with DAG("rows", schedule=None) as dag:
        GeminiImageGenerateOperator.partial(task_id="made", **stage.usual()).expand(prompt=prompts)
    stage.run = stage.airflow.run_dag(dag)
    for _ in range(2):  # the retry sends nothing
        states = [made.state for made in stage.run.tasks("made")]
        assert (states.count("success"), states.count("failed")) == (2, 1)
        [failed] = [made for made in stage.run.tasks("made") if made.state == "failed"]
        assert isinstance(failed.error, InsufficientBalanceError)
        assert "No money was spent." in str(failed.error)
        assert (len(stage.sandbox.ledger()), stage.submits()) == (2, 3)
        stage.run.retry()
    top_up(stage)
    stage.run.clear("made")
    assert [made.state for made in stage.run.tasks("made")] == ["success"] * 3
    assert stage.submits() == 4
    balance = weigh(stage.sandbox, stage.root)
    assert balance == dataclasses.replace(LANDED, submitted=3, paid=3, landed=3)
    Row("gateway", event, SUBMIT, stage.gateway, stage.mode, balance, "success", then).save()
