"""The failure matrix: what the gateway says of a job that it has taken, and what its links bring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from airflow_provider_geminiimg.core.gateways.base import Call
from airflow_provider_geminiimg.core.http import download
from airflow_provider_geminiimg.exceptions import (
    ContentRefusedError,
    LinkExpiredError,
    NoImageError,
    OutcomeUnknownError,
    UpstreamFailedError,
)
from tests.harness.rows import (
    AT_1MIN,
    AT_APIMASTER,
    BUY_AGAIN,
    CROSSED,
    LANDED,
    NO_IMAGE,
    STRAIGHT,
    UNKNOWN_PAID,
    UNPAID,
    Case,
    Play,
    each,
    play,
)

PAGE = "<html><body>A timeout occurred</body></html>"
POLL, DOWNLOAD, JOB = "on a poll", "on the download", "at the job's end"
ASKED_AGAIN = "A failed poll does not fail the job: it is polled again."
LANDS_LATER = "The next attempt polls the same job and downloads again, at no cost."
BOUGHT_AGAIN = 'Nothing is sent again. A Clear with `on_clear="regenerate"` buys again.'
FORGOTTEN: Mapping[str, Mapping[str, Any]] = {
    "1min": {"body": {"aiRecord": None}},
    "apimaster": {"status": 404, "body": {"error": {"message": "task_not_exist", "code": "task_not_exist"}}},
}
NO_LINK: Mapping[str, Any] = {
    "1min": {"aiRecord": {"status": "SUCCESS", "aiRecordDetail": {"resultObject": ["development/images/fox.png"]}}},
    "apimaster": {"data": {"status": "succeeded", "result": {"images": [{"url": "imgs/fox.jpg"}]}}},
}
REFUSED_FREE = dataclasses.replace(UNPAID, submitted=1)
QUICK_CALLS = (
    (Call.__init__, "__defaults__", (False, 0.2, None, False)),
)  # the read timeout of a call that costs nothing
QUICK_DOWNLOADS = ((download, "_READ_SECONDS", 0.2),)


def polls_fail(stage: Play) -> None:
    """Let the first attempt lose contact to its job; where it defers, the trigger does, and then the worker."""
    stage.fault("status", status=502, times=5 if stage.mode == "waiting" else 10)


def forgets_at_first(stage: Play) -> None:
    stage.fault("status", times=2, **FORGOTTEN[stage.gateway])


def no_link_at_first(stage: Play) -> None:
    stage.fault("status", times=2, body=NO_LINK[stage.gateway])


def forgets(stage: Play, times: int = 6) -> None:
    """Let the gateway know nothing of a job that was submitted a quarter of an hour ago."""
    path = stage.folder / stage.record.key
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "submitted_at": record["submitted_at"] - 900}))
    stage.fault("status", times=times, **FORGOTTEN[stage.gateway])


def forgets_in_one_attempt(stage: Play) -> None:
    forgets(stage, times=1 if stage.mode == "waiting" else 2)


def links_work_again(stage: Play) -> None:
    stage.sandbox.settings(link_seconds=3600)


def nothing(stage: Play) -> None:
    """All is well again by itself."""


def link_is_cut_off(stage: Play) -> None:
    stage.sandbox.settings(link_seconds=0)


CASES = [
    Case("429 with Retry-After", POLL, "The next poll waits as long as `Retry-After` says.",
         faults=({"route": "status", "status": 429, "headers": {"Retry-After": "1"}},)),
    Case("429 without Retry-After, many times", POLL, "The polls slow down. The job is not given up for that.",
         faults=({"route": "status", "status": 429, "times": 7},)),
    Case("500, 502, 503, then a 522 page", POLL, ASKED_AGAIN,
         faults=[{"route": "status", "status": 500}, {"route": "status", "status": 502},
                 {"route": "status", "status": 503}, {"route": "status", "status": 522, "body": PAGE}]),
    Case("The connection breaks off", POLL, ASKED_AGAIN, faults=({"route": "status", "drop": True},)),
    Case("No answer comes in time", POLL, ASKED_AGAIN, faults=({"route": "status", "hold": True},),
         patches=QUICK_CALLS),
    Case("502 for as long as the attempt asks", POLL,
         "The attempt gives up; the job keeps running. The next attempt polls the same job.",
         prepare=polls_fail, attempts=2),
    Case("Done, with the link still missing", POLL, "The next poll asks for the link again.",
         prepare=no_link_at_first),
    Case("The gateway does not know the job", "within 10 minutes of the submit", ASKED_AGAIN,
         prepare=forgets_at_first),
    Case("The gateway does not know the job", "later than 10 minutes after the submit",
         "Outcome unknown, each attempt asks once more. Nothing is sent again; a Clear with "
         '`on_unknown="resubmit"` buys again.',
         UNKNOWN_PAID, prepare=polls_fail, between=forgets, attempts=2, error=OutcomeUnknownError,
         still=("retry", "clear"),
         again=BUY_AGAIN),
    Case("The gateway does not know the job, and knows it again afterwards", "later than 10 minutes after the submit",
         "Outcome unknown at first. A Clear asks once more, and lands it at no cost.",
         prepare=polls_fail, between=forgets_in_one_attempt, attempts=2, error=OutcomeUnknownError, mend=nothing),
    Case("Failed without a reason", JOB, "The gateway does not charge for it. The next attempt submits.",
         dataclasses.replace(LANDED, submitted=2), attempts=2, faults=({"route": "submit", "outcome": "bare_failed"},),
         where=AT_APIMASTER),
    Case("Failed without a reason", JOB, BOUGHT_AGAIN, NO_IMAGE, attempts=2, error=UpstreamFailedError,
         faults=({"route": "submit", "outcome": "bare_failed"},), still=("retry", "clear"), again=BUY_AGAIN,
         where=AT_1MIN),
    Case("A refusal, wrapped in another error", JOB,
         "The gateway does not charge for it. Change the prompt, then clear.",
         REFUSED_FREE, attempts=2, error=ContentRefusedError, faults=({"route": "submit", "outcome": "refused"},),
         still=("retry",), again={"prompt": "a kind fox"}, where=AT_APIMASTER),
    Case("A refusal, wrapped in another error", JOB, "The gateway may charge for it. Change the prompt, then clear.",
         NO_IMAGE, attempts=2, error=ContentRefusedError, faults=({"route": "submit", "outcome": "refused"},),
         still=("retry", "clear"), again={"prompt": "a kind fox"}, where=AT_1MIN),
    Case("Success without an image", JOB, BOUGHT_AGAIN, NO_IMAGE, attempts=2, error=NoImageError,
         faults=({"route": "submit", "outcome": "no_image"},), still=("retry", "clear"), again=BUY_AGAIN),
    Case("500, 502, then 503", DOWNLOAD, LANDS_LATER, attempts=2, where=STRAIGHT,
         faults=[{"route": "download", "status": status} for status in (500, 502, 503)]),
    Case("500, of a link that came with the answer to the submit", DOWNLOAD,
         "The next attempt downloads again, at no cost: the link, or the job, is on record.", attempts=2,
         settings={"honour_async": False, "latency": 0}, faults=({"route": "download", "status": 500, "times": 3},)),
    Case("429", DOWNLOAD, "The same attempt downloads again.", where=CROSSED,
         faults=({"route": "download", "status": 429},)),
    Case("A 522 page that calls itself a success", DOWNLOAD, LANDS_LATER, attempts=2, where=STRAIGHT,
         faults=({"route": "download", "status": 200, "body": PAGE, "times": 3},)),
    Case("The connection breaks off before the first byte", DOWNLOAD, LANDS_LATER, attempts=2, where=CROSSED,
         faults=({"route": "download", "drop": True, "times": 3},)),
    Case("The connection breaks off in the middle", DOWNLOAD, LANDS_LATER, attempts=2, where=STRAIGHT,
         faults=({"route": "download", "cut_after": 500, "times": 3},)),
    Case("No byte comes in time", DOWNLOAD, "The same attempt downloads again.", where=CROSSED,
         faults=({"route": "download", "hold": True},), patches=QUICK_DOWNLOADS),
    Case("The link expires", "between poll and download", "The same attempt asks for a fresh link.",
         faults=({"route": "download", "status": 403},)),
    Case("The links expire for good", "between poll and download",
         "Each retry and each Clear asks for a fresh link, at no cost. Download the image from the gateway's "
         'console, or buy again by a Clear with `on_clear="regenerate"`.',
         NO_IMAGE, settings={"link_seconds": 0}, attempts=2, error=LinkExpiredError, still=("retry", "clear"),
         where=STRAIGHT),
    Case("The links expire, and work again afterwards", "between poll and download",
         "Each retry and each Clear asks for a fresh link, at no cost.",
         settings={"link_seconds": 0}, attempts=2, error=LinkExpiredError, mend=links_work_again,
         where=CROSSED),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each(CASES))
def test_paid_work_is_safe_from(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "gateway", monkeypatch)
