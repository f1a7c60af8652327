"""What dead attempts left behind: looked at, collected, settled, and cleared away. In no test here is anything bought
but by the attempts themselves: the sandbox's own ledger and its count of calls say so.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.fingerprint_index import read_entry
from airflow_provider_geminiimg.core.ledger.layout import RETURNED, record_key, thumbnail_key
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, StoredRecord
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest, SavedRequestStore
from airflow_provider_geminiimg.core.reconcile import RecordEntry, Report, Scope
from airflow_provider_geminiimg.core.reconcile.collect import adopted
from airflow_provider_geminiimg.core.reconcile.resolution import Resolution, read_resolutions
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Files, encode_segment
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    InvalidImageError,
    LedgerError,
    LinkExpiredError,
    OutcomeUnknownError,
    StorageError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.environment import Environment
from tests.harness.canaries import Canaries, Text
from tests.harness.left_behind import LOGGER, SCOPE, LeftBehind
from tests.harness.records import ITEM, Wire, landed, make_record, plan_of, submitted

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

UNPAID, LOST = Resolution("unpaid"), Resolution("lost")
LONG_AGO = 86_400.0


class Memory:
    """A task state store's memory, as one task instance sees it."""

    value: Mapping[str, Any] | None = None

    def token(self) -> str:
        return "a-token"

    def get(self) -> Mapping[str, Any] | None:
        return self.value

    def set(self, value: Mapping[str, Any]) -> None:
        self.value = dict(value)


class Full(Files):
    """A disk without space."""

    def write(self, uri: str, data: bytes, *, media_type: str, sha256: str) -> bool:
        raise StorageError("No space left.")


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=LOGGER)
    return caplog


@pytest.fixture
def left(root: str, sandbox: Sandbox, onemin: str) -> LeftBehind:
    """On disk and on S3."""
    return LeftBehind(sandbox, onemin)


@pytest.fixture
def disk_left(local_root: str, sandbox: Sandbox, onemin: str) -> LeftBehind:
    return LeftBehind(sandbox, onemin)


@pytest.fixture
def each_left(local_root: str, sandbox: Sandbox, geminiimg_conn_id: str) -> LeftBehind:
    """At both gateways."""
    return LeftBehind(sandbox, geminiimg_conn_id)


@pytest.fixture
def link_left(root: str, sandbox: Sandbox, apimaster: str) -> LeftBehind:
    """A gateway that answers with links and no job id."""
    sandbox.settings(honour_async=False, latency=0.0)
    return LeftBehind(sandbox, apimaster)


def nonzero(report: Report) -> dict[str, int]:
    return {what: count for what, count in report.counts().items() if count}


# Looking


NOT_KNOWN = OutcomeUnknownError("Nobody knows.").to_dict()


@pytest.mark.parametrize(
    ("record", "age", "standing"),
    [
        (make_record(), 239.0, "waiting"),
        (make_record(), 240.0, "unknown"),
        (make_record(outcome=NOT_KNOWN), 0.0, "unknown"),
        (submitted(), 239.0, "in-flight"),
        (submitted(), 240.0, "to-collect"),
        (submitted(outcome=InvalidImageError("No image.").to_dict()), 240.0, "to-collect"),
        (submitted(outcome=NOT_KNOWN), 0.0, "unknown"),
        (make_record(state="answered", links=["https://link"]), 0.0, "in-flight"),
        (make_record(state="answered", links=["https://link"]), 240.0, "to-collect"),
        (landed(), 0.0, "landed"),
        (submitted(state="failed", outcome=UpstreamFailedError("x").to_dict()), 999.0, "failed"),
    ],
)
def test_a_record_stands_as_its_state_its_age_and_its_outcome_say(record: Record, age: float, standing: str) -> None:
    assert RecordEntry(record.key, StoredRecord(record, "v", age)).standing == standing


async def test_every_record_of_the_namespace_is_walked_and_filters_leave_out_the_others(left: LeftBehind) -> None:
    odd = dataclasses.replace(ITEM, dag_id="a b/c", run_id="x::y", task_id="..")
    items = [
        ITEM,
        odd,
        dataclasses.replace(odd, run_id="x::z"),
        dataclasses.replace(odd, task_id="...", map_index=3),
        dataclasses.replace(ITEM, namespace="default2"),
    ]
    keys = [record_key(item, n) for item in items for n in (1, 2, 10)]
    for key, item in zip(keys, [item for item in items for _ in range(3)], strict=True):
        n = int(key.rpartition("/")[2].removesuffix(".json"))
        assert left.ledger.create(make_record(item, n))
    left.store.create("ledger/default/notes.json", b"not a record")
    left.store.create(f"{ITEM.path}/notes.json", b"nor is this")

    async def walked(*scope: str | None) -> list[str]:
        return sorted([entry.key async for entry in reconcile.walk(left.ledger, Scope(*scope))])

    assert await walked("default") == sorted(keys[:12])
    assert await walked("default", "a b/c") == sorted(keys[3:12])
    assert await walked("default", "a b/c", "x::y") == sorted([*keys[3:6], *keys[9:12]])
    assert await walked("default", None, "x::y") == sorted([*keys[3:6], *keys[9:12]])
    assert await walked("default", None, None, "..") == sorted(keys[3:9])
    assert await walked("default", "a b") == []
    assert await walked("default2") == sorted(keys[12:])


async def test_a_record_that_can_not_be_read_is_an_entry_like_any_other(left: LeftBehind) -> None:
    left.ledger.create(make_record())
    left.store.create(f"{ITEM.path}/2.json", b"{")
    left.store.create(f"{ITEM.path}/3.json", json.dumps({"schema": 99}).encode())
    entries = [entry async for entry in reconcile.walk(left.ledger, SCOPE)]
    assert [entry.standing for entry in entries] == ["waiting", "unreadable", "unreadable"]
    assert "not JSON" in str(reconcile.summary(entries[1])["error"])
    assert "schema 99" in str(reconcile.summary(entries[2])["error"])
    with pytest.raises(LedgerError, match="not JSON"):
        reconcile.detail(entries[1])


async def test_a_record_that_is_listed_and_not_there_is_unreadable_and_not_absent(disk_left: LeftBehind) -> None:
    disk_left.ledger.create(make_record())
    path = Path(disk_left.environment.root.removeprefix("file://")) / record_key(ITEM, 1)
    path.unlink()
    path.symlink_to("nowhere")
    [entry] = [entry async for entry in reconcile.walk(disk_left.ledger, SCOPE)]
    assert (entry.standing, "listed" in str(entry.error)) == ("unreadable", True)


async def test_a_record_that_is_removed_during_the_walk_is_not_there(disk_left: LeftBehind) -> None:
    for n in range(1, 10):
        disk_left.ledger.create(make_record(n=n))
    walk = reconcile.walk(disk_left.ledger, SCOPE)
    await anext(walk)
    disk_left.store.delete(record_key(ITEM, 9))
    assert len([entry async for entry in walk]) == 7


def test_a_record_that_does_not_exist_is_refused_by_its_key(disk_left: LeftBehind) -> None:
    for key in (record_key(ITEM, 1), "ledger/../../etc/passwd", "probe/x", ""):
        with pytest.raises(BadRequestError, match="There is no record"):
            reconcile.entry_at(disk_left.ledger, key)


def test_what_is_shown_of_a_record_has_no_link_and_a_prompt_only_where_prompts_are_recorded(
    disk_left: LeftBehind,
) -> None:
    answered = make_record(state="answered", links=["https://secret.example/x?sig=1"])
    disk_left.ledger.create(answered)
    entry = reconcile.entry_at(disk_left.ledger, answered.key)
    shown = reconcile.detail(entry)
    assert shown["record"]["links"] == 1
    assert "prompt" not in shown["record"]
    assert "secret.example" not in json.dumps([shown, reconcile.summary(entry)])
    disk_left.change(answered, prompt="a red fox")
    assert reconcile.detail(reconcile.entry_at(disk_left.ledger, answered.key))["record"]["prompt"] == "a red fox"


# Collecting


async def test_what_was_left_behind_lands_where_it_was_meant_to_and_its_task_returns_it_at_no_cost(
    left: LeftBehind,
) -> None:
    record = await left.submitted()
    report = await left.collect()
    assert nonzero(report) == {"landed": 1}
    assert report.keys["landed"] == [record.key]
    assert left.image(record) == (f"{left.folder}/hero.png", 1)
    calls = len(left.sandbox.calls())
    for generation in (0, 1):
        assert (await left.attempt(generation=generation)).manifest == left.at(record).manifest
    assert len(left.sandbox.calls()) == calls
    assert left.paid() == 1


async def test_each_job_is_asked_about_once_and_what_has_landed_is_not_asked_about_at_all(
    each_left: LeftBehind,
) -> None:
    left = each_left
    for number in range(20):
        await left.attempt(f"task-{number}", land=False)
    await left.ended()
    for key in left.records():
        left.change(reconcile.entry_at(left.ledger, key).readable().record, answer_within=0.0)
    assert nonzero(await left.collect()) == {"landed": 20}
    assert left.calls("status") == 20
    assert nonzero(await left.collect()) == {}
    assert left.calls("status") == left.calls("submit") == 20


async def test_a_connection_is_looked_up_once_for_all_its_jobs(disk_left: LeftBehind) -> None:
    class Counting(Environment):
        looked_up = 0

        def connection(self, conn_id: str) -> GatewayConnection:
            self.looked_up += 1
            return super().connection(conn_id)

    for number in range(8):
        await disk_left.submitted(f"task-{number}")
    disk_left.environment = counting = Counting(disk_left.environment.log)
    assert nonzero(await disk_left.collect()) == {"landed": 8}
    assert counting.looked_up == 1


async def test_what_an_attempt_may_be_working_on_is_skipped_and_so_is_an_intent_that_may_be_answered(
    left: LeftBehind,
) -> None:
    await left.attempt(land=False)
    left.ledger.create(make_record(dataclasses.replace(ITEM, task_id="sending")))
    await left.ended()
    assert nonzero(await left.collect()) == {"skipped": 2}
    assert left.calls("status") == 0


async def test_a_job_that_still_runs_is_left_for_the_next_collect(each_left: LeftBehind) -> None:
    each_left.sandbox.settings(latency=60)
    record = each_left.old(await each_left.attempt(land=False))
    assert nonzero(await each_left.collect()) == {"running": 1}
    assert each_left.at(record) == record


async def test_links_that_came_without_a_job_id_are_fetched(link_left: LeftBehind) -> None:
    link_left.sandbox.faults(route="download", status=500, times=3)
    record = await link_left.failed()
    assert (record.state, record.job_id) == ("answered", None)
    assert nonzero(await link_left.collect()) == {"landed": 1}
    assert link_left.image(record)[1] == 1
    assert link_left.at(record).links == []
    assert (link_left.paid(), link_left.calls("status")) == (1, 0)


async def test_images_that_came_inline_are_landed_from_the_spool(
    local_root: str, sandbox: Sandbox, apimaster: str
) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (512, 512), "red").save(buffer, "PNG")
    left = LeftBehind(sandbox, apimaster)
    body = {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}
    sandbox.faults(route="apimaster.submit", charge="after", body=body)
    left.environment.files = Full(AIRFLOW_OPENERS)
    record = await left.failed()
    left.environment.files = Files(AIRFLOW_OPENERS)
    assert record.state == "answered"
    assert nonzero(await left.collect()) == {"landed": 1}
    image = (left.at(record).manifest or {})["images"][0]
    assert image["sha256"] == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert list(left.store.keys("spool/")) == []


async def test_what_was_paid_for_before_a_clear_that_asked_for_another_image_is_collected_too(
    left: LeftBehind,
) -> None:
    first = await left.submitted(prompt="a red fox")
    second = await left.attempt(prompt="a blue fox", generation=1)
    assert (second.n, second.state) == (2, "landed")
    assert nonzero(await left.collect()) == {"landed": 1}
    assert left.image(first) == (f"{left.folder}/hero.png", 1)
    assert left.image(second) == (f"{left.folder}/hero-2.png", 2)


async def test_two_collects_at_once_do_as_one(left: LeftBehind) -> None:
    records = [await left.submitted(f"task-{number}") for number in range(3)]
    reports = await asyncio.gather(left.collect(), left.collect())
    assert all(report.counts()["errors"] == 0 for report in reports)
    assert sorted(left.image(record) for record in records) == [
        (f"{left.folder}/task-{number}.png", number + 1) for number in range(3)
    ]
    assert (left.paid(), left.calls("submit")) == (3, 3)


async def with_an_extra_job(left: LeftBehind) -> tuple[Record, str]:
    """A record that has landed, and a job that another living attempt paid for beside it."""
    kept = await left.attempt()
    other = await left.submitted("other", prompt="a fox for hero")
    left.store.delete(other.key)
    return left.change(left.at(kept), extra_jobs=[other.job_id], answer_within=0.0), str(other.job_id)


async def test_a_job_that_was_paid_for_beside_the_records_own_gets_a_record_and_a_file_of_its_own_once(
    left: LeftBehind, lines: pytest.LogCaptureFixture
) -> None:
    kept, job_id = await with_an_extra_job(left)
    report = await left.collect()
    assert nonzero(report) == {"landed": 1}
    [key] = report.keys["landed"]
    digest = hashlib.sha256(f"{left.gateway}\n{job_id}".encode()).hexdigest()[:16]
    assert key == record_key(dataclasses.replace(ITEM, item=f"x{digest}"), 1)
    extra = reconcile.entry_at(left.ledger, key).readable().record
    assert (extra.job_id, left.image(extra)) == (job_id, (f"{left.folder}/hero-x{digest}.png", 2))
    assert f"Perhaps paid twice: job {job_id}" in lines.text
    assert left.image(kept) == (f"{left.folder}/hero.png", 1)
    left.change(extra, answer_within=0.0)
    before = left.everything()
    assert nonzero(await left.collect()) == {}
    assert left.everything() == before
    assert left.calls("submit") == 2


async def test_two_collects_at_once_give_an_extra_job_one_record(left: LeftBehind) -> None:
    await with_an_extra_job(left)
    await asyncio.gather(left.collect(), left.collect())
    assert [key for key in left.records() if "/x" in key.removeprefix("ledger/")] == [
        key for key in left.records() if key not in (record_key(ITEM, 1),)
    ]
    assert len(left.records()) == 2
    assert sum(name.endswith(".png") for name in left.everything()) == 2


async def test_an_extra_job_that_still_runs_keeps_its_record_for_the_next_collect(left: LeftBehind) -> None:
    await with_an_extra_job(left)
    left.sandbox.settings(latency=60)
    running = await left.attempt("running", land=False)
    left.store.delete(running.key)
    left.change(left.record(), extra_jobs=[running.job_id])
    before = left.calls("status")
    for number in (1, 2):
        assert nonzero(await left.collect()) == {"running": 1}
        assert left.calls("status") == before + number
    assert len(left.records()) == 2


async def test_an_extra_job_is_looked_at_once_where_its_new_record_is_listed_by_the_same_walk(
    disk_left: LeftBehind,
) -> None:
    class Paged(Wire):
        """Lists as a bucket does: what comes late is on a later page."""

        def keys(self, prefix: str) -> Iterator[str]:
            last = ""
            while (key := next((key for key in super().keys(prefix) if key > last), None)) is not None:
                yield (last := key)

    left = disk_left
    left.sandbox.settings(latency=60)
    running = await left.attempt(land=False)
    left.store.delete(running.key)
    for n in range(1, 9):
        extra = [running.job_id] if n == 1 else []
        left.ledger.create(landed(n=n, conn_id=left.conn_id, extra_jobs=extra, answer_within=0.0))
    left.environment.ledger = Ledger(Paged(left.store))
    assert nonzero(await left.collect()) == {"running": 1}
    assert len(left.records()) == 9
    assert left.calls("status") == 1


async def test_an_extra_job_of_an_attempt_that_may_still_land_it_is_left_to_that_attempt(left: LeftBehind) -> None:
    await with_an_extra_job(left)
    left.change(left.record(), answer_within=60.0)
    assert nonzero(await left.collect()) == {}
    assert len(left.records()) == 1


async def test_a_job_that_the_gateway_does_not_know_is_noted_as_unknown_and_lands_should_it_come_back(
    each_left: LeftBehind, lines: pytest.LogCaptureFixture
) -> None:
    left = each_left
    record = await left.submitted()
    left.change(record, job_id="nowhere", submitted_at=time.time() - 601)
    for _ in range(2):
        report = await left.collect()
        assert (nonzero(report), report.failure()) == ({"unknown": 1}, None)
        assert isinstance(left.at(record).error, OutcomeUnknownError)
    assert "jobs resolve" in lines.text
    left.change(record, job_id=record.job_id)
    assert nonzero(await left.collect()) == {"landed": 1}


async def test_a_young_job_that_the_gateway_does_not_know_yet_is_running(left: LeftBehind) -> None:
    record = await left.submitted()
    left.change(record, job_id="nowhere")
    assert nonzero(await left.collect()) == {"running": 1}


@pytest.mark.parametrize("outcome", ["failed", "refused", "bare_failed"])
async def test_a_job_that_failed_is_recorded_as_failed(each_left: LeftBehind, outcome: str) -> None:
    each_left.sandbox.faults(
        route="onemin.submit" if each_left.gateway == "1min" else "apimaster.submit", outcome=outcome
    )
    record = await each_left.submitted()
    report = await each_left.collect()
    assert (nonzero(report), report.failure()) == ({"failed": 1}, None)
    assert each_left.at(record).state == "failed"
    assert nonzero(await each_left.collect()) == {}


async def test_a_link_that_is_gone_for_good_is_told_and_its_record_stays(each_left: LeftBehind) -> None:
    left = each_left
    gone, fine = await left.submitted("gone"), await left.submitted("fine")
    left.sandbox.faults(route="download", status=404, times=2)
    scope = Scope("default", None, None, "gone")
    report = await left.collect(scope)
    assert (nonzero(report), report.failure()) == ({"failed": 1}, None)
    assert isinstance(left.at(gone).error, LinkExpiredError)
    assert left.at(gone).state == "submitted"
    assert nonzero(await left.collect()) == {"landed": 2}
    assert left.image(gone)[1] == 1
    assert left.image(fine)[1] == 2


# What one record's trouble does to the others


def without_its_folder(left: LeftBehind, record: Record) -> Callable[[], Any]:
    folder = Path(left.folder.removeprefix("file://")) / "one"
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where a folder should be")
    left.change(record, destination=dataclasses.replace(record.destination, directory=folder.as_uri()))
    return folder.unlink


def without_its_connection(left: LeftBehind, record: Record) -> Callable[[], Any]:
    left.change(record, conn_id="gone")
    return lambda: left.change(record, conn_id=record.conn_id)


def of_another_gateway(left: LeftBehind, record: Record) -> Callable[[], Any]:
    left.change(record, gateway="apimaster")
    return lambda: left.change(record, gateway=record.gateway)


def at_fault(left: LeftBehind, record: Record, report: Report, lines: pytest.LogCaptureFixture) -> None:
    """That `record`, and no other, is told to be one that could not be looked at."""
    assert report.keys["errors"] == [record.key]
    failure = report.failure()
    assert failure is not None
    assert record.key in str(failure)
    assert failure.retryable
    [line] = [line for line in lines.messages if line.startswith("Could not be looked at")]
    assert record.key in line
    assert "No money was spent" not in line


@pytest.mark.parametrize("trouble", [without_its_folder, without_its_connection, of_another_gateway])
async def test_one_records_trouble_is_told_and_the_others_land_and_a_later_collect_lands_it_too(
    disk_left: LeftBehind, trouble: Any, lines: pytest.LogCaptureFixture
) -> None:
    left = disk_left
    one = await left.submitted("a-trouble")
    others = [await left.submitted(f"b-task-{number}") for number in range(9)]
    mend = trouble(left, one)
    report = await left.collect()
    assert nonzero(report) == {"landed": 9, "errors": 1}
    assert sorted(report.keys["landed"]) == sorted(other.key for other in others)
    at_fault(left, one, report, lines)
    mend()
    assert nonzero(await left.collect()) == {"landed": 1}
    assert left.image(one)[1] == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"route": "onemin.status", "status": 502},
        {"route": "onemin.status", "drop": True},
        {"route": "download", "status": 500, "times": 3},
        {"route": "download", "drop": True, "times": 3},
    ],
    ids=str,
)
async def test_a_gateway_that_is_down_is_told_and_a_later_collect_lands_the_image(
    left: LeftBehind, fault: dict[str, Any], lines: pytest.LogCaptureFixture
) -> None:
    record = await left.submitted()
    left.sandbox.faults(**fault)
    report = await left.collect()
    assert nonzero(report) == {"errors": 1}
    at_fault(left, record, report, lines)
    assert nonzero(await left.collect()) == {"landed": 1}
    assert left.image(record)[1] == 1


async def test_a_record_that_can_not_be_read_does_not_keep_the_others_from_landing(left: LeftBehind) -> None:
    records = [await left.submitted(f"task-{number}") for number in range(3)]
    blob = left.store.read(records[1].key)
    assert blob is not None
    left.store.replace(records[1].key, b"{", blob.version)
    report = await left.collect()
    assert nonzero(report) == {"landed": 2, "errors": 1}
    assert report.keys["errors"] == [records[1].key]
    assert report.failure() is not None


async def test_records_that_can_not_be_listed_are_a_storage_error_and_not_an_empty_ledger(
    disk_left: LeftBehind,
) -> None:
    await disk_left.submitted()
    wire = Wire(disk_left.store)
    wire.always["keys"] = "before"
    disk_left.environment.ledger = Ledger(wire)
    with pytest.raises(StorageError):
        await disk_left.collect()


async def test_a_request_without_an_answer_is_reported_until_it_is_settled_or_bought_again(
    left: LeftBehind, lines: pytest.LogCaptureFixture
) -> None:
    record = await left.unknown()
    report = await left.collect()
    assert (nonzero(report), report.failure()) == ({"unknown": 1}, None)
    assert report.keys["unknown"] == [record.key]
    assert "--unpaid, --lost or --job" in lines.text
    await left.attempt(generation=1, on_unknown="resubmit")
    assert nonzero(await left.collect()) == {}
    assert left.at(record) == record, "it is still unknown, and can still be settled"


async def test_a_dry_run_says_what_it_would_do_calls_no_gateway_and_writes_nothing(
    left: LeftBehind, lines: pytest.LogCaptureFixture
) -> None:
    record = await left.submitted("to-collect")
    lost = await left.unknown("lost")
    vanished = left.change(await left.submitted("vanished"), outcome=NOT_KNOWN)
    await left.attempt("young", land=False)
    _, extra = await with_an_extra_job(left)
    before, calls = left.everything(), len(left.sandbox.calls())
    report = await left.collect(dry_run=True)
    assert nonzero(report) == {"to_collect": 2, "unknown": 2, "skipped": 1}
    assert sorted(report.keys["unknown"]) == sorted([lost.key, vanished.key])
    assert record.key in report.keys["to_collect"]
    assert str(record.job_id) in lines.text
    assert extra in lines.text
    assert left.everything() == before
    assert len(left.sandbox.calls()) == calls


def test_a_report_of_any_size_has_all_counts_and_fits_into_2_kb() -> None:
    report = Report()
    for what in report.keys:
        report.keys[what] = [f"ledger/{what}/{'x' * 300}/{number}.json" for number in range(500)]
    result = report.result()
    assert len(json.dumps(result)) < 2000
    assert all(count == 500 for what, count in result.items() if what != "keys")
    assert list(result["keys"]) == ["errors"], "first what needs somebody"
    assert len(str(report.failure())) < 1500


async def test_what_collect_says_holds_no_link_and_no_prompt(
    local_root: str, sandbox: Sandbox, apimaster: str, lines: pytest.LogCaptureFixture
) -> None:
    lines.set_level(logging.DEBUG)
    canaries, left = Canaries(), LeftBehind(sandbox, apimaster)
    await left.submitted("fine", prompt=canaries.prompt)
    sandbox.faults(route="apimaster.submit", outcome="refused_echo")
    await left.submitted("refused", prompt=canaries.prompt)
    sandbox.settings(honour_async=False, latency=0.0)
    sandbox.faults(route="download", status=500, times=3)
    await left.failed("answered", prompt=canaries.prompt)
    sandbox.faults(route="download", status=404, times=9)
    lines.clear()
    first, second = await left.collect(), await left.collect()
    assert nonzero(first) == {"failed": 3}
    assert nonzero(second) == {"failed": 2}
    canaries.add_links(sandbox.links())
    entries = [entry async for entry in reconcile.walk(left.ledger, SCOPE)]
    said = [lines.text, json.dumps([first.result(), second.result()])]
    said += [json.dumps([reconcile.summary(entry), reconcile.detail(entry)]) for entry in entries]
    assert len(entries) == 3
    assert not canaries.leaks(Text("what was said", text.encode()) for text in said)


# Settling


async def test_what_is_settled_as_unpaid_is_submitted_again_by_a_retry_and_by_a_clear(left: LeftBehind) -> None:
    for number, generation in enumerate((0, 1), start=1):
        record = await left.unknown(f"task-{generation}", charge="before")
        assert reconcile.resolve(left.ledger, record.key, UNPAID) is True
        settled = left.at(record)
        assert (settled.state, settled.error and settled.error.billed) == ("failed", Billed.NO)
        bought = await left.attempt(f"task-{generation}", generation=generation)
        assert (bought.n, bought.state) == (2, "landed")
        assert left.paid() == number
    assert nonzero(await left.collect()) == {}


async def test_a_job_that_airflow_remembers_is_landed_although_its_request_was_settled_as_unpaid(
    left: LeftBehind,
) -> None:
    memory = Memory()
    record = await left.unknown(marker=memory)
    reconcile.resolve(left.ledger, record.key, UNPAID)
    memory.set({**(memory.get() or {}), "job_id": left.sandbox.ledger()[0]["job_id"]})
    assert left.image(await left.attempt(generation=1, marker=memory)) == (f"{left.folder}/hero.png", 1)
    assert left.calls("submit") == 1


async def test_what_is_settled_as_lost_is_bought_again_only_by_a_clear_with_regenerate(left: LeftBehind) -> None:
    record = await left.unknown()
    assert reconcile.resolve(left.ledger, record.key, LOST) is True
    for generation in (0, 1):
        with pytest.raises(LinkExpiredError, match="regenerate"):
            await left.attempt(generation=generation)
    assert left.calls("submit") == 1
    assert nonzero(await left.collect()) == {}
    bought = await left.attempt(generation=1, on_clear="regenerate")
    assert left.image(bought)[1] == 2


@pytest.mark.parametrize("by", ["collect", "retry", "clear"])
async def test_what_is_settled_as_a_job_is_landed_by_collect_a_retry_and_a_clear(
    each_left: LeftBehind, by: str
) -> None:
    left = each_left
    record = await left.unknown()
    [entry] = left.sandbox.ledger()
    left.change(record, answer_within=600.0)
    assert reconcile.resolve(left.ledger, record.key, Resolution("job", entry["job_id"])) is True
    if by == "collect":
        assert nonzero(await left.collect()) == {"landed": 1}
    else:
        await left.attempt(generation=int(by == "clear"))
    assert left.image(record) == (f"{left.folder}/hero.png", 1)
    assert left.calls("submit") == 1


async def test_a_job_that_the_gateway_does_not_know_can_be_settled_in_every_way(left: LeftBehind) -> None:
    for task_id, verdict in (("a", UNPAID), ("b", LOST), ("c", Resolution("job", "another"))):
        record = left.change(await left.submitted(task_id), outcome=NOT_KNOWN)
        assert reconcile.resolve(left.ledger, record.key, verdict) is True
        assert (left.at(record).state, left.at(record).job_id) == (
            ("submitted", "another") if verdict.job_id else ("failed", record.job_id)
        )


async def test_a_wrong_job_is_unknown_again_after_the_next_collect_and_can_be_settled_anew(left: LeftBehind) -> None:
    record = left.change(await left.unknown(), claimed_at=time.time() - 601)
    reconcile.resolve(left.ledger, record.key, Resolution("job", "wrong"))
    assert nonzero(await left.collect()) == {"unknown": 1}
    reconcile.resolve(left.ledger, record.key, Resolution("job", left.sandbox.ledger()[0]["job_id"]))
    assert nonzero(await left.collect()) == {"landed": 1}


async def test_an_image_that_nobody_can_fetch_any_more_can_be_given_up_as_lost_and_not_as_unpaid(
    link_left: LeftBehind,
) -> None:
    left = link_left
    left.sandbox.faults(route="download", status=404, times=9)
    record = await left.failed()
    assert isinstance(record.error, LinkExpiredError)
    with pytest.raises(BadRequestError, match="Only --lost is left"):
        reconcile.resolve(left.ledger, record.key, UNPAID)
    reconcile.resolve(left.ledger, record.key, LOST)
    settled = left.at(record)
    assert (settled.state, settled.links) == ("failed", [])
    assert nonzero(await left.collect()) == {}


@pytest.mark.parametrize("verdict", [UNPAID, LOST, Resolution("job", "j")], ids=str)
async def test_settling_again_in_the_same_way_changes_nothing_and_in_another_way_is_refused(
    left: LeftBehind, verdict: Resolution
) -> None:
    record = await left.unknown()
    assert reconcile.resolve(left.ledger, record.key, verdict) is True
    before = left.everything()
    assert reconcile.resolve(left.ledger, record.key, verdict) is False
    for other in {UNPAID, LOST, Resolution("job", "k")} - {verdict}:
        with pytest.raises(BadRequestError, match="can't be settled"):
            reconcile.resolve(left.ledger, record.key, other)
    assert left.everything() == before


async def test_what_another_version_settled_in_the_same_way_is_settled(disk_left: LeftBehind) -> None:
    record = await disk_left.unknown()
    reconcile.resolve(disk_left.ledger, record.key, LOST)
    disk_left.change(record, outcome={**(disk_left.at(record).outcome or {}), "hint": "Other words."})
    assert reconcile.resolve(disk_left.ledger, record.key, LOST) is False


async def test_what_was_settled_as_a_job_stays_settled_when_it_has_landed(left: LeftBehind) -> None:
    record = await left.unknown()
    verdict = Resolution("job", left.sandbox.ledger()[0]["job_id"])
    reconcile.resolve(left.ledger, record.key, verdict)
    await left.collect()
    assert reconcile.resolve(left.ledger, record.key, verdict) is False


@pytest.mark.parametrize("verdict", [UNPAID, LOST, Resolution("job", "j")], ids=str)
@pytest.mark.parametrize(
    ("record", "said"),
    [
        (make_record(), "may still be waiting for its answer. Money may have been spent."),
        (submitted(), "is not lost. The image was paid for. Nothing was changed. `jobs collect` lands it."),
        (submitted(answer_within=0.0), "is not lost"),
        (make_record(state="answered", links=["https://x"]), "is not lost"),
        (landed(), "has landed"),
        (
            submitted(state="failed", outcome=UpstreamFailedError("x", billed=Billed.NO).to_dict()),
            "No money was spent.",
        ),
    ],
    ids=["sending", "in flight", "to collect", "answered", "landed", "failed"],
)
def test_nothing_but_an_unknown_outcome_is_settled(
    disk_left: LeftBehind, record: Record, said: str, verdict: Resolution
) -> None:
    disk_left.ledger.create(record)
    with pytest.raises(BadRequestError) as caught:
        reconcile.resolve(disk_left.ledger, record.key, verdict)
    assert said in str(caught.value)
    assert "Nothing was changed." in str(caught.value)
    assert disk_left.at(record) == record


async def test_a_record_that_moves_while_it_is_settled_is_left_as_it_is(disk_left: LeftBehind) -> None:
    record = await disk_left.unknown()

    class Meddled(Wire):
        """Somebody else is faster."""

        def replace(self, key: str, data: bytes, version: str) -> str | None:
            disk_left.change(record, state="submitted", job_id="late", outcome=None)
            return super().replace(key, data, version)

    with pytest.raises(BadRequestError, match="has just changed"):
        reconcile.resolve(Ledger(Meddled(disk_left.store)), record.key, UNPAID)
    assert (disk_left.at(record).state, disk_left.at(record).job_id) == ("submitted", "late")


async def test_a_verdict_that_was_written_although_the_store_did_not_say_so_is_no_refusal(
    disk_left: LeftBehind,
) -> None:
    record = await disk_left.unknown()
    wire = Wire(disk_left.store)
    wire.once["replace"] = "nothing"
    assert reconcile.resolve(Ledger(wire), record.key, UNPAID) is True
    assert disk_left.at(record).state == "failed"


async def test_a_job_id_that_no_gateway_gives_is_refused(disk_left: LeftBehind) -> None:
    record = await disk_left.unknown()
    for wrong in ("..", "a\nb", "x" * 600):
        with pytest.raises(BadRequestError, match="job id"):
            reconcile.resolve(disk_left.ledger, record.key, Resolution("job", wrong))
    assert disk_left.at(record) == record


def test_verdicts_are_read_from_a_mapping_and_from_its_json_text() -> None:
    said = {"k": "unpaid", "l": "lost", "m": {"job": " id "}}
    wanted = {"k": UNPAID, "l": LOST, "m": Resolution("job", "id")}
    assert read_resolutions(said) == read_resolutions(json.dumps(said)) == wanted
    assert read_resolutions(None) == read_resolutions("") == read_resolutions({}) == read_resolutions("{}") == {}


@pytest.mark.parametrize(
    "wrong",
    [
        "unpaid",
        "{'k': 'lost'}",
        "[]",
        ["k"],
        7,
        {"k": "paid"},
        {"k": {"job": ""}},
        {"k": {"job": 7}},
        {"k": {}},
        {"k": 1},
    ],
    ids=str,
)
def test_anything_else_is_no_verdict(wrong: Any) -> None:
    with pytest.raises(BadRequestError, match="resolve"):
        read_resolutions(wrong)


# Removing one


async def test_a_record_that_was_removed_on_purpose_is_bought_again_also_where_airflow_remembers_it(
    left: LeftBehind,
) -> None:
    memory = Memory()
    record = await left.unknown(marker=memory)
    with pytest.raises(BadRequestError, match="--force"):
        reconcile.forget(left.ledger, record.key)
    reconcile.forget(left.ledger, record.key, force=True)
    assert left.records() == []
    bought = await left.attempt(generation=1, marker=memory)
    assert (bought.n, left.image(bought)) == (1, (f"{left.folder}/hero.png", 2))


async def test_a_record_that_is_missing_beside_one_that_was_removed_on_purpose_is_still_missed(
    left: LeftBehind,
) -> None:
    memory = Memory()
    record = await left.unknown(marker=memory)
    reconcile.forget(left.ledger, record.key, force=True)
    again = await left.attempt(generation=1, marker=memory)
    assert again.key == record.key
    left.store.delete(again.key)
    with pytest.raises(LedgerError, match="was removed"):
        await left.attempt(generation=1, marker=memory)
    assert left.calls("submit") == 2


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        make_record(outcome=NOT_KNOWN),
        submitted(),
        submitted(outcome=NOT_KNOWN),
        make_record(state="answered", links=["https://x"]),
        landed(extra_jobs=["paid for, too"]),
    ],
    ids=["sending", "unknown", "submitted", "vanished", "answered", "extra job"],
)
def test_what_may_hold_something_paid_for_is_removed_only_by_a_word_that_says_so(
    disk_left: LeftBehind, record: Record
) -> None:
    disk_left.ledger.create(record)
    before = disk_left.everything()
    with pytest.raises(BadRequestError, match="is not removed") as caught:
        reconcile.forget(disk_left.ledger, record.key)
    assert "No money was spent" not in str(caught.value)
    assert disk_left.everything() == before
    reconcile.forget(disk_left.ledger, record.key, force=True)
    assert disk_left.records() == []


@pytest.mark.parametrize("record", [landed(), make_record(state="failed", outcome=NOT_KNOWN)], ids=["landed", "failed"])
def test_what_has_come_to_its_end_is_removed_at_once(disk_left: LeftBehind, record: Record) -> None:
    disk_left.ledger.create(record)
    reconcile.forget(disk_left.ledger, record.key)
    assert disk_left.records() == []


def test_only_the_record_that_decides_can_be_removed(disk_left: LeftBehind) -> None:
    for n in (1, 2, 10):
        disk_left.ledger.create(landed(n=n))
    with pytest.raises(BadRequestError, match=r"/10\.json decides"):
        reconcile.forget(disk_left.ledger, record_key(ITEM, 2))
    for n in (10, 2, 1):
        reconcile.forget(disk_left.ledger, record_key(ITEM, n))
    assert disk_left.records() == []


def test_an_unreadable_record_is_not_removed(disk_left: LeftBehind) -> None:
    disk_left.store.create(record_key(ITEM, 1), b"{")
    with pytest.raises(LedgerError, match="not JSON"):
        reconcile.forget(disk_left.ledger, record_key(ITEM, 1), force=True)


async def test_a_removal_that_breaks_off_leaves_a_record_that_says_lost_and_can_be_done_again(left: LeftBehind) -> None:
    memory = Memory()
    record = await left.attempt(land=False, marker=memory)
    wire = Wire(left.store, "ledger/")
    wire.always["delete"] = "before"
    with pytest.raises(StorageError):
        reconcile.forget(Ledger(wire), record.key, force=True)
    assert left.at(record).state == "failed"
    with pytest.raises(LinkExpiredError):
        await left.attempt(marker=memory)
    reconcile.forget(left.ledger, record.key)
    assert (await left.attempt(marker=memory)).state == "landed"


async def test_with_a_record_go_its_index_entry_and_its_spool_and_the_image_and_the_name_stay(
    left: LeftBehind,
) -> None:
    kept, gone = await left.attempt("kept"), await left.attempt("gone")
    [uri] = [image["uri"] for image in (gone.manifest or {})["images"]]
    left.change(gone, spooled=["spool/x"])
    left.store.create("spool/x", b"bytes")
    reconcile.forget(left.ledger, gone.key)
    assert left.environment.files.state(uri) == "there"
    assert list(left.store.keys("spool/")) == []
    assert list(left.store.keys("index/")) == [f"index/default/{encode_segment(ITEM.dag_id)}/{kept.fingerprint}.json"]
    assert len(list(left.store.keys("names/"))) == 2


async def test_with_a_record_go_its_thumbnails_and_no_others(left: LeftBehind) -> None:
    kept, gone = await left.attempt("kept"), await left.attempt("gone")
    assert list(left.store.keys("thumbs/")) == [thumbnail_key(record.key, 0) for record in (gone, kept)]
    reconcile.forget(left.ledger, gone.key)
    assert list(left.store.keys("thumbs/")) == [thumbnail_key(kept.key, 0)]


async def test_thumbnails_go_before_their_record_so_that_none_is_left_that_nobody_finds(disk_left: LeftBehind) -> None:
    record = await disk_left.attempt()
    wire = Wire(disk_left.store, "ledger/")
    wire.always["delete"] = "before"
    with pytest.raises(StorageError):
        reconcile.forget(Ledger(wire), record.key)
    assert list(disk_left.store.keys("thumbs/")) == []


async def test_an_index_entry_that_points_to_another_record_stays(left: LeftBehind) -> None:
    one = await left.attempt("one", prompt="the same")
    other = await left.attempt("other", prompt="the same")
    reconcile.forget(left.ledger, one.key)
    [entry] = left.store.keys("index/")
    found = read_entry(left.store, entry)
    assert found is not None
    assert found.record == other.key, "the newest"


async def test_an_extra_job_whose_record_was_removed_is_not_taken_up_again(left: LeftBehind) -> None:
    record, job_id = await with_an_extra_job(left)
    await left.collect()
    reconcile.forget(left.ledger, adopted(record, job_id).key)
    assert nonzero(await left.collect()) == {}
    assert left.records() == [record.key]
    reconcile.forget(left.ledger, record.key)


# Removing old ones


async def purged(left: LeftBehind, days: float = 0.0, **more: Any) -> list[str]:
    return [key async for key in reconcile.purge(left.ledger, SCOPE, days=days, **more)]


async def test_old_records_of_which_everything_has_ended_go_and_all_images_stay(left: LeftBehind) -> None:
    first = await left.attempt("old", prompt="a red fox")
    second = await left.attempt("old", prompt="a blue fox", generation=1)
    images = {name: data for name, data in left.everything().items() if name.endswith((".png", ".json"))}
    assert await purged(left, 1.0) == []
    assert await purged(left, dry_run=True) == [first.key, second.key]
    assert left.records() == [first.key, second.key]
    assert await purged(left) == [first.key, second.key]
    assert left.records() == []
    assert list(left.store.keys("index/")) == list(left.store.keys("forgotten/")) == []
    assert list(left.store.keys("thumbs/")) == []
    folder = left.folder.rpartition("/")[2]
    assert {name for name in images if f"{folder}/" in name} == {
        name for name in left.everything() if f"{folder}/" in name
    }


UNFINISHED = {
    "sending": make_record(n=2),
    "unknown": make_record(n=2, outcome=NOT_KNOWN),
    "submitted": submitted(n=2),
    "answered": make_record(n=2, state="answered"),
    "another item": submitted(dataclasses.replace(ITEM, item="x0123")),
    "extra job": landed(n=2, extra_jobs=["paid for, too"]),
}


@pytest.mark.parametrize("kind", UNFINISHED)
async def test_nothing_goes_of_a_task_of_which_something_has_not_ended(disk_left: LeftBehind, kind: str) -> None:
    other = landed(dataclasses.replace(ITEM, task_id="other"))
    for record in (landed(), UNFINISHED[kind], landed(n=3), other):
        disk_left.ledger.create(record)
    assert await purged(disk_left) == [other.key]
    assert len(disk_left.records()) == 3


async def test_nothing_goes_of_a_task_of_which_a_record_can_not_be_read(disk_left: LeftBehind) -> None:
    disk_left.ledger.create(landed())
    disk_left.store.create(record_key(ITEM, 2), b"{")
    assert await purged(disk_left) == []


async def test_age_is_counted_by_the_stores_clock_and_the_youngest_record_counts(disk_left: LeftBehind) -> None:
    for n in (1, 2):
        disk_left.ledger.create(landed(n=n))
    root = Path(disk_left.environment.root.removeprefix("file://"))
    long_ago = time.time() - 10 * LONG_AGO
    os.utime(root / record_key(ITEM, 1), (long_ago, long_ago))
    assert await purged(disk_left, 9.0) == []
    os.utime(root / record_key(ITEM, 2), (long_ago, long_ago))
    assert await purged(disk_left, 11.0) == []
    assert await purged(disk_left, 9.0) == [record_key(ITEM, 1), record_key(ITEM, 2)]


async def test_a_purge_that_breaks_off_has_left_the_record_that_decides(disk_left: LeftBehind) -> None:
    for n in (2, 9, 10):
        disk_left.ledger.create(landed(n=n))

    class Breaking(Wire):
        def delete(self, key: str) -> None:
            if key.endswith("/10.json"):
                raise StorageError("The line is down.")
            super().delete(key)

    with pytest.raises(StorageError):
        _ = [key async for key in reconcile.purge(Ledger(Breaking(disk_left.store)), SCOPE, days=0.0)]
    assert disk_left.records() == [record_key(ITEM, 10)]


async def test_an_extra_job_goes_together_with_the_record_that_names_it(left: LeftBehind) -> None:
    record, job_id = await with_an_extra_job(left)
    assert await purged(left) == []
    await left.collect()
    assert await purged(left) == [record.key, adopted(record, job_id).key]


async def test_a_clear_of_what_was_purged_says_so_instead_of_paying_again_where_airflow_remembers(
    left: LeftBehind,
) -> None:
    memory = Memory()
    await left.attempt(marker=memory)
    await purged(left)
    with pytest.raises(LedgerError, match="was removed"):
        await left.attempt(generation=1, marker=memory)
    assert left.paid() == 1


FINGERPRINTS = [character * 64 for character in "abc"]


def batch_of(left: LeftBehind, fingerprints: Sequence[str], **values: Any) -> list[Record]:
    """What a batch's attempt has landed."""
    records = [landed(dataclasses.replace(ITEM, item=each[:16]), fingerprint=each, **values) for each in fingerprints]
    for record in records:
        assert left.ledger.create(record)
    return records


async def test_a_batchs_plan_goes_together_with_the_records_of_all_that_it_wanted(left: LeftBehind) -> None:
    records = batch_of(left, FINGERPRINTS)
    plan = plan_of(left.store, ITEM, [*FINGERPRINTS, FINGERPRINTS[0]])
    assert await purged(left, 1.0) == []
    assert await purged(left, dry_run=True) == [plan, *(record.key for record in records)]
    assert left.store.read(plan) is not None
    await purged(left)
    assert list(left.store.keys("batches/")) == left.records() == []


async def test_a_plan_stays_while_something_of_it_is_not_made_or_can_not_be_told(left: LeftBehind) -> None:
    records = batch_of(left, FINGERPRINTS[:2])
    unmade = plan_of(left.store, ITEM, FINGERPRINTS)
    unreadable = unmade.replace("/0.json", "/1.json")
    left.store.create(unreadable, b"{")
    assert await purged(left) == [record.key for record in records]
    assert list(left.store.keys("batches/")) == [unmade, unreadable]


def returned(left: LeftBehind, generation: int, prompt: str | None) -> str:
    """What a function returned; ``None``: it has landed."""
    request = None if prompt is None else ImageRequest(operation="generate", prompt=prompt)
    item = dataclasses.replace(ITEM, task_id="hero")
    SavedRequestStore(SavedRequest, left.store, RETURNED, item, None).write(generation, SavedRequest(request=request))
    return list(left.store.keys(f"{RETURNED}/"))[-1]


async def test_what_a_function_returned_goes_together_with_the_record_of_its_image(left: LeftBehind) -> None:
    kept = [returned(left, 0, None)]
    blob = left.store.read(kept[0])
    kept.append(returned(left, 1, "a red fox"))
    left.store.create(kept[0], blob.data)  # versions before left it there
    record = await left.attempt(prompt="a red fox")
    assert await purged(left, 1.0) == []
    assert await purged(left, dry_run=True) == [*kept, record.key]
    assert await purged(left) == [*kept, record.key]
    assert list(left.store.keys(f"{RETURNED}/")) == left.records() == []


async def test_what_a_function_returned_stays_while_its_image_is_not_made_or_nobody_can_tell(
    left: LeftBehind,
) -> None:
    other = await left.attempt(prompt="a red fox")
    unmade = returned(left, 0, "a grey wolf")
    unreadable = unmade.replace("/0.json", "/1.json")
    left.store.create(unreadable, b"{")
    assert await purged(left, dry_run=True) == [other.key]
    unfinished = await left.submitted(prompt="a grey wolf", generation=1)
    assert await purged(left) == []
    assert list(left.store.keys(f"{RETURNED}/")) == [unmade, unreadable]
    await left.collect()
    assert await purged(left) == [unmade, other.key, unfinished.key]
    assert list(left.store.keys(f"{RETURNED}/")) == [unreadable]


async def test_a_purge_leaves_other_namespaces_alone(disk_left: LeftBehind) -> None:
    other = landed(dataclasses.replace(ITEM, namespace="other"))
    disk_left.ledger.create(other)
    assert await purged(disk_left) == []
    assert disk_left.records() == [other.key]
