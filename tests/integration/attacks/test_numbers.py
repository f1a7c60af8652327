"""Numbers from outside that are none: costs, waits, times and counts, of gateways and of records.

What must stay true: a number that can't be what it stands for is as good as none; nothing that was paid for fails over
one, and nothing that is added up, kept or shown holds one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.gateways.apimaster import ApiMaster
from airflow_provider_geminiimg.core.gateways.base import JobState, Reply
from airflow_provider_geminiimg.core.gateways.onemin import OneMin
from airflow_provider_geminiimg.exceptions import RateLimitedError, from_dict
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, answers, outcome, returned
from tests.harness.forbidden import Host, Route, answer, done

target, api, internet, forbidden, host = attacks.target, attacks.api, web.internet, web.forbidden, web.host

APIMASTER = pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)  # 1min.ai reports no cost
DIGITS = "9" * 5_000
NO_NUMBERS = ["1e308", "-1e308", "-1e6", "-0.01", "1001", "1e400", "NaN", "-Infinity", "true", DIGITS, f'"{DIGITS}"']
NO_NUMBERS += ['"1e308"', '"-1"', '"NaN"', "[1]", "{}", '""', "null", f"1e{DIGITS}", "9" * 400]


def poll(api: Host, number: str, place: str = "cost") -> Route:
    """The answer of a gateway whose job is done, with a number as it stands."""
    body = json.dumps(done(f"{api.url}/p.png")).replace('"status": "succeeded"', f'"status": "succeeded", "{place}": 0')
    return answer(body=body.replace(f'"{place}": 0', f'"{place}": {number}').encode(), Content_Type="application/json")


def made(target: Target) -> Any:
    run = target.run_as_is(
        GeminiImageBatchOperator, requests=["a fox"], geminiimg_conn_id=target.conn_id, poll_interval=0.02
    )
    return run, returned(run)


@APIMASTER
@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:9])
def test_a_cost_that_is_none_fails_no_batch_and_is_in_no_sum(target: Target, api: Host, number: str) -> None:
    answers(api, poll=poll(api, number))
    _, summary = made(target)
    assert summary["counts"]["landed"] == 1
    assert list(summary["cost"]) == ["USD (google_list, estimate)"]
    assert 0.0 < summary["cost"]["USD (google_list, estimate)"] < 1.0
    json.dumps(summary, allow_nan=False)
    assert {record.manifest["cost"]["basis"] for record in target.records() if record.manifest} == {"google_list"}


@APIMASTER
@pytest.mark.parametrize("number", ["0", "0.05", '"0.05"', "1000"])
def test_a_cost_that_may_be_one_is_believed(target: Target, api: Host, number: str) -> None:
    answers(api, poll=poll(api, number))
    _, summary = made(target)
    assert summary["cost"] == {"USD (gateway)": pytest.approx(float(number.strip('"')))}


@APIMASTER
@pytest.mark.parametrize("amount", [1e308, -1e6, 1e16])
def test_a_cost_that_an_earlier_version_believed_is_taken_out_of_its_record(
    target: Target, api: Host, amount: float
) -> None:
    answers(api)
    run, _ = made(target)
    for path in target.root.glob("ledger/**/*.json"):
        values = json.loads(path.read_text())
        values["cost"] = values["manifest"]["cost"] = {"amount": amount, "currency": "USD", "basis": "gateway"}
        path.write_text(json.dumps(values))
    assert {record.manifest["cost"]["amount"] for record in target.records() if record.manifest} == {None}
    run.clear("made")
    summary = returned(run)
    assert summary["counts"]["reused"] == 1
    json.dumps(summary, allow_nan=False)
    assert len([path for path, _ in api.requests if "async" in path]) == 1


@pytest.mark.parametrize("place", ["progress", "expires_at", "created", "code", "quota", "usedCredit", "finish_time"])
@pytest.mark.parametrize("number", ["1e308", DIGITS, "-1", "NaN", "true"], ids=lambda number: number[:6])
def test_a_number_that_is_none_spoils_nothing_else_in_an_answer(place: str, number: str) -> None:
    def told(body: str) -> Reply:
        return Reply(200, {"content-type": "application/json"}, body.replace("0.5", number).encode())

    one = f'{{"aiRecord": {{"uuid": "j", "status": "PROCESSING", "{place}": 0.5}}, "{place}": 0.5}}'
    master = f'{{"data": {{"task_id": "j", "status": "in_progress", "{place}": 0.5}}}}'
    for call, body in ((OneMin().status("j", model="m"), one), (ApiMaster().status("j", model="m"), master)):
        status = call.parse(told(body))
        assert (status.state, status.job_id) == (JobState.RUNNING, "j")
        assert status.progress is None or 0 <= status.progress <= 100
        assert status.expires_at is None or 0 <= status.expires_at < 5e9


def test_a_paid_answer_with_a_number_without_an_end_still_names_its_job(target: Target, api: Host) -> None:
    body = {
        "aiRecord": {"uuid": "job-1", "status": "PROCESSING", "teamUser": {"usedCredit": 0.5}},
        "data": [{"status": "submitted", "task_id": "job-1", "cost": 0.5}],
    }
    sent = json.dumps(body).replace("0.5", DIGITS).encode()
    answers(api, submit=answer(body=sent, Content_Type="application/json"))
    returned(target.generate())
    assert [record.job_id for record in target.records()] == ["job-1"]


WAITS = {
    "1e308": 86_400,
    DIGITS[:4_400]: None,
    "86401": 86_400,
    "-5": 0,
    "nan": None,
    "inf": None,
    "1e400": None,
    "Fri, 31 Dec 9999 23:59:59 GMT": 86_400,
}


@pytest.mark.parametrize(("told", "wait"), WAITS.items(), ids=lambda value: str(value)[:9])
def test_a_wait_that_is_none_is_not_obeyed(told: str, wait: float | None) -> None:
    refused = Reply(429, {"content-type": "application/json", "retry-after": told}, b'{"error": {"message": "slow"}}')
    for gateway in (OneMin(), ApiMaster()):
        with pytest.raises(RateLimitedError) as raised:
            gateway.status("job-1", model="m").parse(refused)
        assert raised.value.retry_after == wait


def test_a_wait_without_an_end_ends_the_attempt_at_once(target: Target, api: Host) -> None:
    body = b'{"error": {"message": "slow down"}}'
    answers(api, submit=answer(429, body, Content_Type="application/json", Retry_After="1e308"))
    error = outcome(target.generate(execution_timeout=None))
    assert isinstance(error, RateLimitedError)
    assert error.retry_after == 86_400


@pytest.mark.parametrize("wait", [1e308, -1.0, math.nan, math.inf, 10**400])
def test_a_wait_in_a_record_is_one(wait: float) -> None:
    error = from_dict({"kind": "rate_limited", "message": "x", "billed": "no", "retry_after": wait, "status_code": 429})
    assert error.retry_after is None or 0 <= error.retry_after <= 86_400
    for status in (10**400, -1, 0, 1000):
        assert from_dict({"kind": "upstream_failed", "message": "x", "status_code": status}).status_code is None


@APIMASTER
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("claimed_at", "1e308"),
        ("submitted_at", "-1"),
        ("landed_at", "1e15"),
        ("answer_within", "NaN"),
        ("deferrals", "1e300"),
    ],
)
def test_a_record_with_a_time_or_a_count_that_is_none_is_an_error_that_names_it(
    target: Target, api: Host, name: str, number: str, connect: Callable[..., str]
) -> None:
    answers(api)
    run = target.generate()
    [path] = list(Path(target.root).glob("ledger/**/*.json"))
    values = {**json.loads(path.read_text()), name: "HERE"}
    path.write_text(json.dumps(values).replace('"HERE"', number))
    run.clear("made")
    assert outcome(run).kind == "ledger"
