"""The failure matrix: tasks of one DAG that want the same image (``reuse="dag"``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.exceptions import AuthenticationError
from tests.harness.matrix import read_records
from tests.harness.rows import CROSSED, LANDED, STRAIGHT, Case, Play, race
from tests.harness.s3_proxy import S3Proxy, let_go_of_each

TWO_BOUGHT = dataclasses.replace(LANDED, submitted=2, paid=2, landed=2)


@pytest.fixture(autouse=True)
def shared(stage: Play) -> None:
    stage.arguments.update(reuse="dag")


def landed(stage: Play) -> dict[str, Record]:
    """What each task has landed."""
    records = [found.record for found in read_records(stage.root)]
    return {record.key.split("/")[4]: record for record in records if record.state == "landed"}


def sha256(record: Record) -> str:
    return str((record.manifest or {})["images"][0]["sha256"])


def image_of(record: Record) -> Path:
    return Path((record.manifest or {})["images"][0]["uri"].removeprefix("file://"))


@pytest.mark.parametrize(("gateway", "mode"), STRAIGHT)
def test_two_tasks_that_want_one_image_at_once_pay_once(bucket_stage: Play, s3_proxy: S3Proxy) -> None:
    stage = bucket_stage
    looks = [s3_proxy.hold("GET", "/index/", when="after") for _ in range(2)]
    assert race(stage, stage.rival(task_id="other"), looks) is None
    assert stage.submits() == 1
    assert (stage.task.state, stage.balance()) == ("success", LANDED)
    both = landed(stage)
    assert both.keys() == {"made", "other"}
    assert len(set(map(sha256, both.values()))) == 1
    assert len({each.reused_from for each in both.values()}) == 2
    event, moment = 'Two tasks with `reuse="dag"` want one image at once', "before the submit"
    then = "One of them buys it, the other waits and copies it: both have it."
    stage.save("storage", Case(event, moment, then), stage.balance())


@pytest.mark.parametrize(("gateway", "mode"), CROSSED)
def test_who_waits_for_another_tasks_image_buys_it_when_that_one_fails_unpaid(
    bucket_stage: Play, s3_proxy: S3Proxy
) -> None:
    stage = bucket_stage
    stage.fault("submit", hold=True, status=401)
    looks = [s3_proxy.hold("GET", "/run/other/") for _ in range(2)]

    with ThreadPoolExecutor() as pool:
        first = pool.submit(stage.rival(task_id="other"))
        assert stage.sandbox.held(1)
        looking = pool.submit(let_go_of_each, looks, stage.sandbox.release)
        stage.start()
        looking.result()
        assert isinstance(first.exception(), AuthenticationError)
    assert stage.submits() == 2
    assert (stage.task.state, stage.balance()) == ("success", LANDED)
    assert landed(stage).keys() == {"made"}
    event, moment = 'The task that another one with `reuse="dag"` waits for', "its submit fails unpaid"
    stage.save("storage", Case(event, moment, "The other one buys the image."), stage.balance())


def remove(path: Path, other: Path) -> None:
    path.unlink()


def replace(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


NOT_AS_IT_LANDED = {"is gone": remove, "is another one by now": replace}


@pytest.mark.parametrize("what", NOT_AS_IT_LANDED)
@pytest.mark.parametrize(("gateway", "mode"), STRAIGHT)
def test_an_image_that_is_not_the_one_that_landed_is_never_copied(stage: Play, what: str) -> None:
    first: Callable[[], object] = stage.rival(task_id="other")
    first()
    stage.rival(task_id="another", prompt="a blue fox")()
    path = image_of(landed(stage)["other"])
    NOT_AS_IT_LANDED[what](path, image_of(landed(stage)["another"]))
    stage.start()
    assert stage.task.state == "success"
    assert stage.submits() == 3
    path.unlink(missing_ok=True)
    first()  # its own image again, from the gateway
    assert stage.submits() == 3
    both = landed(stage)
    assert len({sha256(both["made"]), sha256(both["other"])}) == 2
    # Two tasks have asked for it, and each has one.
    balance = stage.balance(asked_again=1)
    assert balance == dataclasses.replace(LANDED, submitted=3, paid=3, landed=3)
    event = f'The image that a task with `reuse="dag"` would copy {what}'
    then = "It is bought again, nothing wrong is copied. "
    then += "Once nothing lies there, its own task lands it again at no cost."
    stage.save("storage", Case(event, "between two tasks", then), balance)
