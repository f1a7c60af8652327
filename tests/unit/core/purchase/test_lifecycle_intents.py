"""What an attempt does about an intent that it finds: wait for its answer, buy again, or leave it unknown."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.record import with_error
from airflow_provider_geminiimg.exceptions import Billed, OutcomeUnknownError, StorageError, UpstreamFailedError
from tests.harness.records import ITEM, landed, make_record
from tests.harness.shop import HTML, Shop, until


async def test_two_attempts_at_once_make_one_submission(each_shop: Shop) -> None:
    each_shop.fault("submit", delay=0.3)
    manifests = await asyncio.gather(each_shop.buy(), each_shop.buy())
    assert each_shop.paid() == each_shop.submits() == 1
    assert manifests[0]["images"] == manifests[1]["images"]
    assert each_shop.ledger.numbers(ITEM) == [1]


async def test_eight_attempts_at_once_make_one_submission(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", delay=0.2)
    manifests = await asyncio.gather(*(shop.buy() for _ in range(8)))
    assert shop.paid() == shop.submits() == 1
    assert shop.names() == ["hero.json", "hero.png"]
    assert len({manifest["images"][0]["uri"] for manifest in manifests}) == 1


async def test_an_intent_that_may_still_be_answered_is_waited_for(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.fault("submit", hold=True)
    first = asyncio.create_task(shop.buy())
    await asyncio.to_thread(shop.sandbox.held)
    second = asyncio.create_task(shop.buy())
    await until(lambda: "may still be sending" in caplog.text)
    assert not second.done()
    shop.sandbox.release()
    assert (await first)["images"] == (await second)["images"]
    assert shop.submits() == 1


async def test_an_old_intent_is_outcome_unknown_and_nothing_is_sent(shop: Shop) -> None:
    shop.put(make_record(answer_within=0.0))
    error = await shop.refused(OutcomeUnknownError)
    assert shop.record.key in str(error)
    assert shop.calls() == 0
    for more in ({"generation": 1}, {"generation": 1, "on_clear": "regenerate"}, {"generation": 1, "prompt": "a cat"}):
        await shop.refused(OutcomeUnknownError, **more)
    assert shop.calls() == 0
    assert shop.ledger.numbers(ITEM) == [1]


async def test_an_intent_is_old_by_the_disks_clock(disk_shop: Shop) -> None:
    record = disk_shop.put(make_record(answer_within=240.0))
    path = Path(disk_shop.real.uri.removeprefix("file://")) / record.key
    os.utime(path, (time.time() - 241, time.time() - 241))
    await disk_shop.refused(OutcomeUnknownError)
    assert disk_shop.calls() == 0


async def test_an_old_intent_is_bought_again_where_on_unknown_says_so(shop: Shop) -> None:
    shop.put(make_record(answer_within=0.0))
    manifest = await shop.buy(on_unknown="resubmit")
    assert shop.paid() == 1
    assert (shop.record.n, shop.record.resubmission, shop.record.state) == (2, True, "landed")
    assert manifest["images"][0]["uri"] == f"{shop.folder}/hero-2.png"  # number 1 may still take the name


UNKNOWN: dict[str, dict[str, Any]] = {
    "a bare 500": {"status": 500, "body": ""},
    "a 500": {"status": 500},
    "a web page of a proxy": {"status": 502, "body": HTML},
    "a web page of Cloudflare": {"status": 524, "body": HTML},
    "a web page with 200": {"status": 200, "body": HTML},
    "a connection dropped before it is charged": {"drop": True},
    "a connection dropped after it is charged": {"drop": True, "charge": "after"},
    "an answer cut off": {"cut_after": 10, "charge": "after"},
    "a redirect that is none": {"status": 303, "headers": {"location": "https://example.com/"}, "body": ""},
}


@pytest.mark.parametrize("fault", UNKNOWN)
async def test_an_answer_that_says_nothing_is_outcome_unknown_and_on_unknown_buys_exactly_one_more(
    each_shop: Shop, fault: str
) -> None:
    shop = each_shop
    shop.fault("submit", **UNKNOWN[fault])
    error = await shop.refused(OutcomeUnknownError)
    assert shop.submits() == 1
    assert shop.record.key in str(error)
    assert 'on_unknown="resubmit"' in str(error)
    assert (shop.record.state, (shop.record.outcome or {})["kind"]) == ("intent", "outcome_unknown")
    charged = shop.paid()
    for generation in (0, 0, 1):
        await shop.refused(OutcomeUnknownError, generation=generation)
    assert shop.submits() == 1
    manifest = await shop.buy(on_unknown="resubmit")
    assert (shop.submits(), shop.paid()) == (2, charged + 1)
    assert shop.submission(manifest) == charged + 1
    assert (await shop.buy(on_unknown="resubmit"))["reused"] is True
    assert shop.submits() == 2


async def test_a_second_unknown_outcome_is_not_bought_again_in_the_same_generation(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", drop=True, charge="after", times=3)
    await shop.refused(OutcomeUnknownError)
    for _ in range(3):
        await shop.refused(OutcomeUnknownError, on_unknown="resubmit")
    assert shop.submits() == shop.paid() == 2
    await shop.refused(OutcomeUnknownError, on_unknown="resubmit", generation=1)
    assert shop.submits() == 3


async def test_an_unpaid_failure_in_between_does_not_allow_another_resubmission(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", drop=True, charge="after")
    shop.fault("submit", status=429, headers={"retry-after": "0"})
    shop.fault("submit", drop=True, charge="after")
    await shop.refused(OutcomeUnknownError)
    await shop.refused(OutcomeUnknownError, on_unknown="resubmit")
    assert (shop.submits(), shop.paid()) == (3, 2)
    await shop.refused(OutcomeUnknownError, on_unknown="resubmit")
    assert shop.submits() == 3


async def test_an_attempt_that_is_interrupted_while_it_connects_has_sent_nothing(disk_shop: Shop) -> None:
    shop, reachable = disk_shop, disk_shop.base_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shop.base_url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        attempt = asyncio.create_task(shop.buy())
        (await asyncio.to_thread(silent.accept))[0].close()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
    assert (shop.record.state, (shop.record.outcome or {})["kind"]) == ("failed", "not_sent")
    shop.base_url = reachable
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_an_interrupted_request_is_outcome_unknown(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", hold=True)
    attempt = asyncio.create_task(shop.buy())
    await asyncio.to_thread(shop.sandbox.held)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert (shop.record.state, (shop.record.outcome or {})["kind"]) == ("intent", "outcome_unknown")
    await shop.refused(OutcomeUnknownError)
    assert shop.submits() == 1


async def test_an_attempt_that_comes_back_from_the_dead_keeps_its_image_and_says_perhaps_paid_twice(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.buy())
    await asyncio.to_thread(shop.sandbox.held)
    shop.overdue()
    second = await shop.buy(on_unknown="resubmit")
    shop.sandbox.release()
    assert shop.submission(await first) == 1
    assert shop.submission(second) == 2
    assert "Possible double charge" in caplog.text
    assert shop.names() == ["hero-2.json", "hero-2.png", "hero.json", "hero.png"]
    assert [(shop.ledger.read(record_key(ITEM, n)) or shop.found()).record.state for n in (1, 2)] == ["landed"] * 2


async def resolve_as_unpaid(shop: Shop) -> None:
    """What a person does about an unknown outcome, who takes it that nothing was charged."""
    word = UpstreamFailedError("Settled by hand.", billed=Billed.NO)
    shop.ledger.change(shop.record.key, lambda stored: with_error(stored, word, "failed"))


async def test_an_answer_that_comes_after_its_request_was_resolved_by_hand_is_collected_and_nothing_is_bought(
    shop: Shop,
) -> None:
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.submit())
    await asyncio.to_thread(shop.sandbox.held)
    await resolve_as_unpaid(shop)
    shop.sandbox.release()
    record = await first
    assert (shop.record.state, shop.record.job_id) == ("submitted", record.job_id)
    assert shop.submission(await shop.buy(generation=1)) == 1
    assert shop.paid() == 1


async def test_links_that_come_after_their_request_was_resolved_by_hand_are_not_lost(link_shop: Shop) -> None:
    shop = link_shop
    shop.files.full = True
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.refused(StorageError))
    await asyncio.to_thread(shop.sandbox.held)
    await resolve_as_unpaid(shop)
    shop.sandbox.release()
    await first
    assert shop.record.state == "answered"
    shop.files.full = False
    assert shop.submission(await shop.buy(generation=1)) == 1
    assert shop.paid() == 1


async def test_an_answer_never_goes_into_the_record_of_another_claim(shop: Shop) -> None:
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.submit())
    await asyncio.to_thread(shop.sandbox.held)
    shop.real.delete(shop.record.key)
    other = shop.put(make_record())
    shop.sandbox.release()
    record = await first
    assert shop.record == dataclasses.replace(other, extra_jobs=[str(record.job_id)])


async def test_a_record_with_two_jobs_keeps_the_one_whose_image_has_not_landed(
    shop: Shop,
) -> None:
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.buy())
    await asyncio.to_thread(shop.sandbox.held)
    shop.ledger.change(shop.record.key, lambda stored: dataclasses.replace(stored, state="submitted", job_id="another"))
    shop.sandbox.release()
    manifest = await first
    assert shop.record.manifest == manifest
    assert (shop.record.job_id, shop.record.extra_jobs) == (manifest["job_id"], ["another"])


async def test_an_image_that_has_landed_keeps_its_record_when_another_job_of_that_record_lands(shop: Shop) -> None:
    shop.fault("submit", hold=True, charge="after")
    second = asyncio.create_task(shop.buy())
    await asyncio.to_thread(shop.sandbox.held)
    kept = dataclasses.replace(landed(), claim=shop.record.claim)
    shop.ledger.change(
        shop.record.key,
        lambda stored: dataclasses.replace(stored, state="landed", job_id="another", manifest=kept.manifest),
    )
    shop.sandbox.release()
    await second
    assert shop.record.manifest == kept.manifest
    assert (shop.record.job_id, shop.record.extra_jobs) == ("another", [shop.sandbox.ledger()[0]["job_id"]])
