"""The failure matrix: the tasks of a wide batch are killed. Each runs in a process of its own, without Airflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.matrix import Balance, Row, weigh
from tests.harness.wide_attempts import WideAttempts

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

PROMPTS = [f"fox number {number}" for number in range(10, 22)]
KILLED = ("number 12", "number 15")  # one image of each of the first two shards
LANDED = Balance(submitted=12, paid=12, landed=12, unknown=0, lost=0, paid_twice=0)
ROUTES = {"1min": "onemin", "apimaster": "apimaster"}


@pytest.fixture(params=["1min", "apimaster"])
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tasks(tmp_path: Path, onemin: str, apimaster: str, gateway: str) -> Iterator[WideAttempts]:
    with WideAttempts(tmp_path, onemin if gateway == "1min" else apimaster) as tasks:
        tasks.plan(f"killed_{ROUTES[gateway]}", PROMPTS, 3)
        yield tasks


def saved(tasks: WideAttempts, sandbox: Sandbox, gateway: str, event: str, moment: str, state: str, then: str) -> Row:
    balance = weigh(sandbox, tasks.root.as_uri())
    return Row("shards", event, moment, gateway, "batch", balance, state, then).save()


def test_two_shards_killed_while_they_download_lose_nothing_and_pay_once(
    tasks: WideAttempts, sandbox: Sandbox, gateway: str
) -> None:
    for number in (0, 1):
        sandbox.faults(route="download", hold=True)
        tasks.shard(number, max_concurrency=1)
        assert sandbox.held(1, timeout=60), tasks.said()
        tasks.kill()
        sandbox.release()
    tasks.shard(2)
    assert tasks.ended()["value"]["counts"]["landed"] == 4
    tasks.merge()
    said = tasks.ended()
    assert "images landed" in said["error"]
    assert said["again"] is False
    for number in (0, 1):
        tasks.shard(number)
        assert tasks.ended()["value"]["items"] == 4
    tasks.merge()
    value = tasks.ended()["value"]
    assert value["counts"]["landed"] + value["counts"]["reused"] == 12
    assert [line["row"] for line in tasks.lines(value["manifest"])] == [*range(12)]
    then = "The next attempts find the plan of their shard, land what was paid for and buy the rest."
    row = saved(tasks, sandbox, gateway, "Two shards are killed", "while downloading", "success", then)
    assert row.balance == LANDED


def test_two_shards_killed_and_planned_again_with_another_number_of_shards_pay_once(
    tasks: WideAttempts, sandbox: Sandbox, gateway: str
) -> None:
    for number in (0, 1):
        sandbox.faults(route="download", hold=True)
        tasks.shard(number, max_concurrency=1)
        assert sandbox.held(1, timeout=60), tasks.said()
        tasks.kill()
        sandbox.release()
    tasks.plan(tasks.dag_id, PROMPTS, 2, generation=1)
    for number in range(2):
        tasks.shard(number)
        assert tasks.ended()["value"], tasks.said()
    tasks.merge()
    assert tasks.ended()["value"]["items"] == 12
    then = "Clear the plan and the tasks after it. The new shards find what was paid for, land it and buy the rest."
    event = "Two shards are killed, and the DAG then has another number of shards"
    row = saved(tasks, sandbox, gateway, event, "while downloading", "success", then)
    assert row.balance == LANDED


def test_two_shards_killed_while_they_send_leave_one_unknown_image_each(
    tasks: WideAttempts, sandbox: Sandbox, gateway: str
) -> None:
    for number, prompt in enumerate(KILLED):
        sandbox.faults(route=f"{ROUTES[gateway]}.submit", hold=True, charge="after", prompt_contains=prompt)
        tasks.shard(number, max_concurrency=1)
        assert sandbox.held(1, timeout=60), tasks.said()
        tasks.kill()
        sandbox.release()
    tasks.deadlines_pass()
    for number in range(3):
        tasks.shard(number)
        tasks.ended()
    tasks.merge()
    tasks.ended()
    row = saved(
        tasks, sandbox, gateway, "Two shards are killed", "while waiting for the gateway's answer", "failed",
        "The next attempts make all other images. Nothing that may have been sent is sent again by itself. A person "
        "resolves it.",
    )  # fmt: skip
    assert row.balance == dataclasses.replace(LANDED, landed=10, unknown=2)


def test_a_merge_that_is_killed_is_repeated_and_buys_nothing(
    tasks: WideAttempts, sandbox: Sandbox, gateway: str
) -> None:
    for number in range(3):
        tasks.shard(number)
        assert tasks.ended()["value"]["counts"]["landed"] == 4
    tasks.merge(dies_before="/foxes.shards/-1/manifest.jsonl")
    tasks.merge()
    value = tasks.ended()["value"]
    assert value["counts"]["landed"] == 12
    assert [line["row"] for line in tasks.lines(value["manifest"])] == [*range(12)]
    then = "The next attempt writes the manifest. It makes no request."
    row = saved(tasks, sandbox, gateway, "The merge is killed", "before it writes the manifest", "success", then)
    assert row.balance == LANDED
