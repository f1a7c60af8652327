"""What a person resolves: as unpaid, as lost, or as a job; and what attempts and collects do about it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.validation.resolution import Resolution, read_resolutions
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, LinkExpiredError, UpstreamFailedError
from tests.harness.orphaned_records import LOST, NOT_KNOWN, UNPAID, OrphanedRecords, nonzero
from tests.harness.records import Wire, landed, make_record, submitted
from tests.harness.shop import Memory

if TYPE_CHECKING:
    pass


async def test_what_is_resolved_as_unpaid_is_submitted_again_by_a_retry_and_by_a_clear(left: OrphanedRecords) -> None:
    for number, generation in enumerate((0, 1), start=1):
        record = await left.unknown(f"task-{generation}", charge="before")
        assert reconcile.resolve(left.ledger, record.key, UNPAID) is True
        resolved = left.at(record)
        assert (resolved.state, resolved.error and resolved.error.billed) == ("failed", Billed.NO)
        bought = await left.attempt(f"task-{generation}", generation=generation)
        assert (bought.n, bought.state) == (2, "landed")
        assert left.paid() == number
    assert nonzero(await left.collect()) == {}


async def test_a_job_that_airflow_remembers_is_landed_although_its_request_was_resolved_as_unpaid(
    left: OrphanedRecords,
) -> None:
    memory = Memory()
    record = await left.unknown(marker=memory)
    reconcile.resolve(left.ledger, record.key, UNPAID)
    memory.set({**(memory.get() or {}), "job_id": left.sandbox.ledger()[0]["job_id"]})
    assert left.image(await left.attempt(generation=1, marker=memory)) == (f"{left.folder}/hero.png", 1)
    assert left.calls("submit") == 1


async def test_what_is_resolved_as_lost_is_bought_again_only_by_a_clear_with_regenerate(left: OrphanedRecords) -> None:
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
async def test_what_is_resolved_as_a_job_is_landed_by_collect_a_retry_and_a_clear(
    each_left: OrphanedRecords, by: str
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


async def test_a_job_that_the_gateway_does_not_know_can_be_resolved_in_every_way(left: OrphanedRecords) -> None:
    for task_id, resolution in (("a", UNPAID), ("b", LOST), ("c", Resolution("job", "another"))):
        record = left.change(await left.submitted(task_id), outcome=NOT_KNOWN)
        assert reconcile.resolve(left.ledger, record.key, resolution) is True
        assert (left.at(record).state, left.at(record).job_id) == (
            ("submitted", "another") if resolution.job_id else ("failed", record.job_id)
        )


async def test_a_wrong_job_is_unknown_again_after_the_next_collect_and_can_be_resolved_again(
    left: OrphanedRecords,
) -> None:
    record = left.change(await left.unknown(), claimed_at=time.time() - 601)
    reconcile.resolve(left.ledger, record.key, Resolution("job", "wrong"))
    assert nonzero(await left.collect()) == {"unknown": 1}
    reconcile.resolve(left.ledger, record.key, Resolution("job", left.sandbox.ledger()[0]["job_id"]))
    assert nonzero(await left.collect()) == {"landed": 1}


async def test_an_image_that_nobody_can_fetch_any_more_can_be_given_up_as_lost_and_not_as_unpaid(
    link_left: OrphanedRecords,
) -> None:
    left = link_left
    left.sandbox.faults(route="download", status=404, times=9)
    record = await left.failed()
    assert isinstance(record.error, LinkExpiredError)
    with pytest.raises(BadRequestError, match="Use --lost"):
        reconcile.resolve(left.ledger, record.key, UNPAID)
    reconcile.resolve(left.ledger, record.key, LOST)
    resolved = left.at(record)
    assert (resolved.state, resolved.links) == ("failed", [])
    assert nonzero(await left.collect()) == {}


@pytest.mark.parametrize("resolution", [UNPAID, LOST, Resolution("job", "j")], ids=str)
async def test_settling_again_in_the_same_way_changes_nothing_and_in_another_way_is_refused(
    left: OrphanedRecords, resolution: Resolution
) -> None:
    record = await left.unknown()
    assert reconcile.resolve(left.ledger, record.key, resolution) is True
    before = left.everything()
    assert reconcile.resolve(left.ledger, record.key, resolution) is False
    for other in {UNPAID, LOST, Resolution("job", "k")} - {resolution}:
        with pytest.raises(BadRequestError, match="can't be resolved"):
            reconcile.resolve(left.ledger, record.key, other)
    assert left.everything() == before


async def test_what_another_version_resolved_in_the_same_way_stays(disk_left: OrphanedRecords) -> None:
    record = await disk_left.unknown()
    reconcile.resolve(disk_left.ledger, record.key, LOST)
    disk_left.change(record, outcome={**(disk_left.at(record).outcome or {}), "hint": "Other words."})
    assert reconcile.resolve(disk_left.ledger, record.key, LOST) is False


async def test_what_was_resolved_as_a_job_stays_resolved_when_it_has_landed(left: OrphanedRecords) -> None:
    record = await left.unknown()
    resolution = Resolution("job", left.sandbox.ledger()[0]["job_id"])
    reconcile.resolve(left.ledger, record.key, resolution)
    await left.collect()
    assert reconcile.resolve(left.ledger, record.key, resolution) is False


@pytest.mark.parametrize("resolution", [UNPAID, LOST, Resolution("job", "j")], ids=str)
@pytest.mark.parametrize(
    ("record", "said"),
    [
        (make_record(), "may still be waiting for its answer. Money may have been spent."),
        (
            submitted(),
            "can be collected. The image was paid for. Nothing was changed. `jobs collect` stores the image.",
        ),
        (submitted(answer_within=0.0), "can be collected"),
        (make_record(state="answered", links=["https://x"]), "can be collected"),
        (landed(), "has landed"),
        (
            submitted(state="failed", outcome=UpstreamFailedError("x", billed=Billed.NO).to_dict()),
            "No money was spent.",
        ),
    ],
    ids=["sending", "in flight", "to collect", "answered", "landed", "failed"],
)
def test_nothing_but_an_unknown_outcome_is_resolved(
    disk_left: OrphanedRecords, record: Record, said: str, resolution: Resolution
) -> None:
    disk_left.ledger.create(record)
    with pytest.raises(BadRequestError) as caught:
        reconcile.resolve(disk_left.ledger, record.key, resolution)
    assert said in str(caught.value)
    assert "Nothing was changed." in str(caught.value)
    assert disk_left.at(record) == record


async def test_a_record_that_moves_while_it_is_resolved_is_left_as_it_is(disk_left: OrphanedRecords) -> None:
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
    disk_left: OrphanedRecords,
) -> None:
    record = await disk_left.unknown()
    wire = Wire(disk_left.store)
    wire.once["replace"] = "nothing"
    assert reconcile.resolve(Ledger(wire), record.key, UNPAID) is True
    assert disk_left.at(record).state == "failed"


async def test_a_job_id_that_no_gateway_gives_is_refused(disk_left: OrphanedRecords) -> None:
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
