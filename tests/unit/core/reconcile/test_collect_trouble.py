"""What one record's trouble does to the others that are collected, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import Report
from airflow_provider_geminiimg.exceptions import StorageError
from tests.harness.canaries import Canaries, Text
from tests.harness.orphaned_records import NOT_KNOWN, SCOPE, OrphanedRecords, nonzero, with_an_extra_job
from tests.harness.records import Wire

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


def without_its_folder(left: OrphanedRecords, record: Record) -> Callable[[], Any]:
    folder = Path(left.folder.removeprefix("file://")) / "one"
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where a folder should be")
    left.change(record, destination=dataclasses.replace(record.destination, directory=folder.as_uri()))
    return folder.unlink


def without_its_connection(left: OrphanedRecords, record: Record) -> Callable[[], Any]:
    left.change(record, conn_id="gone")
    return lambda: left.change(record, conn_id=record.conn_id)


def of_another_gateway(left: OrphanedRecords, record: Record) -> Callable[[], Any]:
    left.change(record, gateway="apimaster")
    return lambda: left.change(record, gateway=record.gateway)


def at_fault(left: OrphanedRecords, record: Record, report: Report, lines: pytest.LogCaptureFixture) -> None:
    """That `record`, and no other, is told to be one that could not be looked at."""
    assert report.keys["errors"] == [record.key]
    failure = report.failure()
    assert failure is not None
    assert record.key in str(failure)
    assert failure.retryable
    [line] = [line for line in lines.messages if line.startswith("Could not be checked")]
    assert record.key in line
    assert "No money was spent" not in line


@pytest.mark.parametrize("trouble", [without_its_folder, without_its_connection, of_another_gateway])
async def test_one_records_trouble_is_told_and_the_others_land_and_a_later_collect_lands_it_too(
    disk_left: OrphanedRecords, trouble: Any, lines: pytest.LogCaptureFixture
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
    left: OrphanedRecords, fault: dict[str, Any], lines: pytest.LogCaptureFixture
) -> None:
    record = await left.submitted()
    left.sandbox.faults(**fault)
    report = await left.collect()
    assert nonzero(report) == {"errors": 1}
    at_fault(left, record, report, lines)
    assert nonzero(await left.collect()) == {"landed": 1}
    assert left.image(record)[1] == 1


async def test_a_record_that_can_not_be_read_does_not_keep_the_others_from_landing(left: OrphanedRecords) -> None:
    records = [await left.submitted(f"task-{number}") for number in range(3)]
    blob = left.store.read(records[1].key)
    assert blob is not None
    left.store.replace(records[1].key, b"{", blob.version)
    report = await left.collect()
    assert nonzero(report) == {"landed": 2, "errors": 1}
    assert report.keys["errors"] == [records[1].key]
    assert report.failure() is not None


async def test_records_that_can_not_be_listed_are_a_storage_error_and_not_an_empty_ledger(
    disk_left: OrphanedRecords,
) -> None:
    await disk_left.submitted()
    wire = Wire(disk_left.store)
    wire.always["keys"] = "before"
    disk_left.environment.ledger = Ledger(wire)
    with pytest.raises(StorageError):
        await disk_left.collect()


async def test_a_request_without_an_answer_is_reported_until_it_is_resolved_or_bought_again(
    left: OrphanedRecords, lines: pytest.LogCaptureFixture
) -> None:
    record = await left.unknown()
    report = await left.collect()
    assert (nonzero(report), report.failure()) == ({"unknown": 1}, None)
    assert report.keys["unknown"] == [record.key]
    assert "--unpaid, --lost or --job" in lines.text
    await left.attempt(generation=1, on_unknown="resubmit")
    assert nonzero(await left.collect()) == {}
    assert left.at(record) == record, "it is still unknown, and can still be resolved"


async def test_a_dry_run_says_what_it_would_do_calls_no_gateway_and_writes_nothing(
    left: OrphanedRecords, lines: pytest.LogCaptureFixture
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
    canaries, left = Canaries(), OrphanedRecords(sandbox, apimaster)
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
