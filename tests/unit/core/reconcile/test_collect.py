"""What dead attempts left behind, collected: in no test here is anything bought but by the attempts themselves."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import Scope
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.exceptions import LinkExpiredError, OutcomeUnknownError, StorageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.environment import Environment
from tests.harness.orphaned_records import OrphanedRecords, nonzero, with_an_extra_job
from tests.harness.records import ITEM, Wire, landed, make_record

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


class Full(Files):
    """A disk without space."""

    def write(self, uri: str, data: bytes, *, media_type: str, sha256: str) -> bool:
        raise StorageError("No space left.")


async def test_what_was_left_behind_lands_where_it_was_meant_to_and_its_task_returns_it_at_no_cost(
    left: OrphanedRecords,
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
    each_left: OrphanedRecords,
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


async def test_a_connection_is_looked_up_once_for_all_its_jobs(disk_left: OrphanedRecords) -> None:
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
    left: OrphanedRecords,
) -> None:
    await left.attempt(land=False)
    left.ledger.create(make_record(dataclasses.replace(ITEM, task_id="sending")))
    await left.ended()
    assert nonzero(await left.collect()) == {"skipped": 2}
    assert left.calls("status") == 0


async def test_a_job_that_still_runs_is_left_for_the_next_collect(each_left: OrphanedRecords) -> None:
    each_left.sandbox.settings(latency=60)
    record = each_left.old(await each_left.attempt(land=False))
    assert nonzero(await each_left.collect()) == {"running": 1}
    assert each_left.at(record) == record


async def test_links_that_came_without_a_job_id_are_fetched(link_left: OrphanedRecords) -> None:
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
    left = OrphanedRecords(sandbox, apimaster)
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
    left: OrphanedRecords,
) -> None:
    first = await left.submitted(prompt="a red fox")
    second = await left.attempt(prompt="a blue fox", generation=1)
    assert (second.n, second.state) == (2, "landed")
    assert nonzero(await left.collect()) == {"landed": 1}
    assert left.image(first) == (f"{left.folder}/hero.png", 1)
    assert left.image(second) == (f"{left.folder}/hero-2.png", 2)


async def test_two_collects_at_once_do_as_one(left: OrphanedRecords) -> None:
    records = [await left.submitted(f"task-{number}") for number in range(3)]
    reports = await asyncio.gather(left.collect(), left.collect())
    assert all(report.counts()["errors"] == 0 for report in reports)
    assert sorted(left.image(record) for record in records) == [
        (f"{left.folder}/task-{number}.png", number + 1) for number in range(3)
    ]
    assert (left.paid(), left.calls("submit")) == (3, 3)


async def test_a_job_that_was_paid_for_beside_the_records_own_gets_a_record_and_a_file_of_its_own_once(
    left: OrphanedRecords, lines: pytest.LogCaptureFixture
) -> None:
    kept, job_id = await with_an_extra_job(left)
    report = await left.collect()
    assert nonzero(report) == {"landed": 1}
    [key] = report.keys["landed"]
    digest = hashlib.sha256(f"{left.gateway}\n{job_id}".encode()).hexdigest()[:16]
    assert key == record_key(dataclasses.replace(ITEM, item=f"x{digest}"), 1)
    extra = reconcile.entry_at(left.ledger, key).readable().record
    assert (extra.job_id, left.image(extra)) == (job_id, (f"{left.folder}/hero-x{digest}.png", 2))
    assert f"Possible double charge: extra job {job_id}" in lines.text
    assert left.image(kept) == (f"{left.folder}/hero.png", 1)
    left.change(extra, answer_within=0.0)
    before = left.everything()
    assert nonzero(await left.collect()) == {}
    assert left.everything() == before
    assert left.calls("submit") == 2


async def test_two_collects_at_once_give_an_extra_job_one_record(left: OrphanedRecords) -> None:
    await with_an_extra_job(left)
    await asyncio.gather(left.collect(), left.collect())
    assert [key for key in left.records() if "/x" in key.removeprefix("ledger/")] == [
        key for key in left.records() if key not in (record_key(ITEM, 1),)
    ]
    assert len(left.records()) == 2
    assert sum(name.endswith(".png") for name in left.everything()) == 2


async def test_an_extra_job_that_still_runs_keeps_its_record_for_the_next_collect(left: OrphanedRecords) -> None:
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
    disk_left: OrphanedRecords,
) -> None:
    class Paged(Wire):
        """Lists as a bucket does: what comes late is on a later page."""

        def keys(self, prefix: str, after: str = "") -> Iterator[str]:
            while (key := next(super().keys(prefix, after), None)) is not None:
                yield (after := key)

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


async def test_an_extra_job_of_an_attempt_that_may_still_land_it_is_left_to_that_attempt(left: OrphanedRecords) -> None:
    await with_an_extra_job(left)
    left.change(left.record(), answer_within=60.0)
    assert nonzero(await left.collect()) == {}
    assert len(left.records()) == 1


async def test_a_job_that_the_gateway_does_not_know_is_noted_as_unknown_and_lands_should_it_come_back(
    each_left: OrphanedRecords, lines: pytest.LogCaptureFixture
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


async def test_a_young_job_that_the_gateway_does_not_know_yet_is_running(left: OrphanedRecords) -> None:
    record = await left.submitted()
    left.change(record, job_id="nowhere")
    assert nonzero(await left.collect()) == {"running": 1}


@pytest.mark.parametrize("outcome", ["failed", "refused", "bare_failed"])
async def test_a_job_that_failed_is_recorded_as_failed(each_left: OrphanedRecords, outcome: str) -> None:
    each_left.sandbox.faults(
        route="onemin.submit" if each_left.gateway == "1min" else "apimaster.submit", outcome=outcome
    )
    record = await each_left.submitted()
    report = await each_left.collect()
    assert (nonzero(report), report.failure()) == ({"failed": 1}, None)
    assert each_left.at(record).state == "failed"
    assert nonzero(await each_left.collect()) == {}


async def test_a_link_that_is_gone_for_good_is_told_and_its_record_stays(each_left: OrphanedRecords) -> None:
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
