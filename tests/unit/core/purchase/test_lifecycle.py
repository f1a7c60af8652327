"""One image's life over HTTP and real storage: what an attempt does, be it the first, or after one that failed.

Each test is an attempt or two at a sandbox's gateway, with the root on disk and on S3. The sandbox's own ledger says
what was paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core.execution.byte_semaphore import MEMORY_LIMIT
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.http import transport
from airflow_provider_geminiimg.core.http.rate_limit import limiter_for
from airflow_provider_geminiimg.core.http.transport import NoTurnError
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.purchase import lifecycle
from airflow_provider_geminiimg.core.reconcile.scan import record_status
from airflow_provider_geminiimg.exceptions import (
    Billed,
    ContentRefusedError,
    GeminiImageError,
    LedgerError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)
from tests.harness.records import ITEM, Wire, make_record
from tests.harness.shop import KEY, PROMPT, ROUTES, Memory, Shop

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("quick")


# Nothing was there


async def test_a_first_attempt_buys_once_and_lands(shop: Shop) -> None:
    manifest = await shop.buy()
    assert shop.paid() == 1
    assert shop.submission(manifest) == 1
    assert shop.names() == ["hero.json", "hero.png"]
    record = shop.record
    assert (record.n, record.state, record.manifest) == (1, "landed", manifest)
    assert (record.links, record.outcome) == ([], None)
    assert manifest["reused"] is False


async def test_nothing_is_paid_for_while_the_memory_for_images_is_used_up(disk_shop: Shop) -> None:
    async with disk_shop.attempt() as purchase:
        with purchase.purchase_context.memory.held(MEMORY_LIMIT + 1):
            starting = asyncio.create_task(purchase.start())
            done, _ = await asyncio.wait([starting], timeout=3.0)
            assert (done, disk_shop.submits()) == (set(), 0)
        await starting
    assert disk_shop.paid() == 1


async def test_both_gateways_give_the_same_manifest(local_root: str, sandbox: Sandbox) -> None:
    one = await Shop(local_root, sandbox, "1min").buy()
    other_item = dataclasses.replace(ITEM, task_id="other")
    other = await Shop(local_root, sandbox, "apimaster").buy(
        item=other_item, destination=Destination(one["images"][0]["uri"].rpartition("/")[0], "other")
    )
    assert set(one) == set(other)
    assert set(one["images"][0]) == set(other["images"][0])
    assert len(json.dumps(one)) < 2000
    assert shop_paid(sandbox) == ["1min", "apimaster"]


def shop_paid(sandbox: Sandbox) -> list[str]:
    return [entry["gateway"] for entry in sandbox.ledger()]


async def test_the_marker_is_set_before_the_request_is_sent(shop: Shop) -> None:
    marker = Memory()
    shop.fault("submit", status=500)
    await shop.refused(OutcomeUnknownError, marker=marker)
    assert marker.value == {"record": shop.record.key, "claim": shop.record.claim}


class OrphansLog:
    """The log of a task whose supervisor was killed: nobody reads the pipe any more."""

    def __init__(self) -> None:
        reader, self._pipe = os.pipe()
        os.close(reader)

    def info(self, message: str, *args: Any) -> None:
        os.write(self._pipe, (message % args).encode())

    warning = error = info


async def test_a_log_that_nobody_reads_any_more_keeps_no_answer_from_its_record(shop: Shop) -> None:
    shop.log = OrphansLog()
    with pytest.raises(BrokenPipeError):
        shop.log.info("a line")
    record = await shop.submit()
    assert shop.record == record
    assert (record.state, shop.paid()) == ("submitted", 1)
    assert shop.submission(await shop.buy()) == 1


async def test_a_marker_without_its_record_means_that_the_ledger_is_not_shared(shop: Shop) -> None:
    marker = Memory({"record": record_key(ITEM, 1), "claim": "c"})
    error = await shop.refused(LedgerError, marker=marker)
    assert record_key(ITEM, 1) in str(error)
    assert "[geminiimg] root" in str(error)
    assert shop.calls() == 0
    assert shop.ledger.latest(ITEM) is None


async def test_a_record_that_a_person_had_removed_may_be_missing_and_only_the_one_of_that_claim(shop: Shop) -> None:
    marker = Memory()
    shop.fault("submit", drop=True)
    await shop.refused(OutcomeUnknownError, marker=marker)
    record = shop.record
    shop.real.delete(record.key)
    shop.ledger.add_tombstone(dataclasses.replace(record, claim="of another attempt"))
    assert "was removed" in str(await shop.refused(LedgerError, marker=marker))
    assert shop.submits() == 1
    shop.ledger.add_tombstone(record)
    assert shop.submission(await shop.buy(marker=marker)) == 1


async def test_a_job_that_is_remembered_for_another_claim_is_not_taken_for_the_records_own(disk_shop: Shop) -> None:
    record = disk_shop.put(make_record(answer_within=0.0))
    other = Memory({"record": record.key, "claim": "another", "job_id": "job-1"})
    await disk_shop.refused(OutcomeUnknownError, marker=other)
    assert disk_shop.calls() == 0


async def test_a_clear_that_is_noted_in_a_record_does_not_postpone_the_deadline_of_its_answer(
    disk_shop: Shop, local_root: str
) -> None:
    record = disk_shop.put(make_record(told="the state before the Clear"))
    path = Path(local_root.removeprefix("file://"), record.key)
    os.utime(path, (time.time() - 2 * record.answer_within,) * 2)
    marker = Memory()
    await disk_shop.refused(OutcomeUnknownError, marker=marker)
    assert disk_shop.record.told == marker.token(), "the Clear is noted"
    assert record_status(disk_shop.found()) == "unknown"
    await disk_shop.refused(OutcomeUnknownError, marker=marker)
    assert disk_shop.calls() == 0


async def test_a_marker_that_can_not_be_set_lets_nothing_be_sent(disk_shop: Shop) -> None:
    shop = disk_shop

    class Broken(Memory):
        def set(self, value: Mapping[str, Any]) -> None:
            raise RuntimeError("no API server")

    with pytest.raises(RuntimeError):
        await shop.buy(marker=Broken())
    assert shop.submits() == 0
    assert (shop.record.state, shop.record.outcome and shop.record.outcome["kind"]) == ("failed", "not_sent")
    assert shop.submission(await shop.buy()) == 1


# It had failed


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
async def test_429_is_sent_again_in_the_same_attempt_and_each_try_is_on_record(
    root: str, sandbox: Sandbox, gateway: str
) -> None:
    shop = Shop(root, sandbox, gateway)
    shop.fault("submit", status=429, headers={"retry-after": "0"}, times=2)
    manifest = await shop.buy()
    assert (shop.submits(), shop.paid()) == (3, 1)
    assert manifest["images"][0]["uri"] == f"{shop.folder}/hero.png"
    assert shop.states() == [("failed", "rate_limited"), ("failed", "rate_limited"), ("landed", None)]


async def test_429_that_asks_to_wait_too_long_ends_the_attempt_and_the_next_one_buys(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", status=429, headers={"retry-after": "600"})
    error = await shop.refused(RateLimitedError)
    assert error.retry_after == 600
    assert shop.states() == [("failed", "rate_limited")]
    shop.conn_id += "-unpaused"
    assert shop.submission(await shop.buy()) == 1


async def test_what_could_not_be_sent_is_sent_again_and_on_record_as_unpaid(shop: Shop) -> None:
    shop.broken_lines = 2
    manifest = await shop.buy()
    assert (shop.submits(), shop.paid()) == (1, 1)
    assert shop.submission(manifest) == 1
    assert shop.states() == [("failed", "not_sent"), ("failed", "not_sent"), ("landed", None)]


async def test_what_could_not_be_sent_in_time_is_an_unpaid_failure_and_the_next_attempt_buys(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = disk_shop
    monkeypatch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
    shop.broken_lines = 1
    error = await shop.refused(NotSentError)
    assert "No money was spent." in str(error)
    assert shop.submission(await shop.buy()) == 1


async def test_a_turn_is_waited_for_until_the_timeout_however_short_requests_are_sent_again(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = disk_shop
    monkeypatch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
    monkeypatch.setattr(transport, "BILLABLE_WAIT", 0.05)
    monkeypatch.setattr(transport, "AGAIN_SECONDS", 0.01)
    limiter_for(shop.connection()).pause(1.0)
    error = await shop.refused(NoTurnError, timeout=0.3)
    assert "nothing was sent" in str(error)
    assert shop.states() == []
    assert shop.submission(await shop.buy()) == 1
    assert shop.states() == [("landed", None)]


@pytest.mark.parametrize("status", [401, 402, 404])
async def test_a_refusal_that_a_retry_can_not_help_is_repeated_without_a_call_until_a_clear(
    sandbox: Sandbox, local_root: str, status: int
) -> None:
    shop = Shop(local_root, sandbox, "apimaster")
    shop.fault("submit", status=status)
    with pytest.raises(GeminiImageError) as first:
        await shop.buy()
    with pytest.raises(GeminiImageError) as again:
        await shop.buy()
    assert again.value.to_dict() == first.value.to_dict()
    assert first.value.billed is Billed.NO
    assert shop.submits() == 1
    assert shop.submission(await shop.buy(generation=1)) == 1


@pytest.mark.parametrize("outcome", ["refused", "failed", "bare_failed"])
async def test_a_job_that_failed_after_it_was_perhaps_paid_is_bought_again_only_by_regenerate(
    disk_shop: Shop, outcome: str
) -> None:
    shop = disk_shop
    shop.fault("submit", outcome=outcome)
    with pytest.raises((UpstreamFailedError, ContentRefusedError)) as first:
        await shop.buy()
    for more in ({}, {"generation": 1}, {"on_unknown": "resubmit"}, {"on_clear": "regenerate"}):
        with pytest.raises(type(first.value)):
            await shop.buy(**more)
    assert shop.submits() == 1
    assert shop.record.state == "failed"
    shop.submission(await shop.buy(generation=1, on_clear="regenerate"))
    assert shop.submits() == 2


async def test_a_refund_that_the_gateway_gives_for_sure_is_an_unpaid_failure(sandbox: Sandbox, local_root: str) -> None:
    shop = Shop(local_root, sandbox, "apimaster")
    shop.fault("submit", outcome="failed")
    with pytest.raises(UpstreamFailedError) as caught:
        await shop.buy()
    assert caught.value.billed is Billed.NO
    assert shop.submission(await shop.buy()) == 2


# Being told to stop


async def test_a_stopped_attempt_submits_nothing_and_leaves_no_record(disk_shop: Shop) -> None:
    shop = disk_shop
    guard = SubmitGuard()
    guard.stop()
    await shop.refused(NotSentError, guard=guard)
    assert shop.calls() == 0
    assert shop.ledger.latest(ITEM) is None


async def test_a_stopped_attempt_still_collects_what_was_paid_for(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    guard = SubmitGuard()
    guard.stop()
    assert shop.submission(await shop.buy(guard=guard)) == 1


async def test_an_attempt_is_paying_from_before_its_claim_is_written(disk_shop: Shop) -> None:
    """Else a timeout that strikes in between leaves an intent that looks like a lost payment."""
    shop = disk_shop
    await asyncio.to_thread(shop.real.probe)
    guard, begun, go_on = SubmitGuard(), threading.Event(), threading.Event()

    class Slow(Wire):
        def create(self, key: str, data: bytes) -> str | None:
            if key.startswith("ledger/"):
                begun.set()
                go_on.wait(10)
            return super().create(key, data)

    shop.store = Slow(shop.real)
    attempt = asyncio.create_task(shop.buy(guard=guard))
    await asyncio.to_thread(begun.wait, 10)
    guard.stop()
    idle = guard.wait_idle(0)
    go_on.set()
    with pytest.raises(NotSentError):
        await attempt
    assert not idle
    assert shop.states() == [("failed", "not_sent")]
    assert shop.submits() == 0


# Secrets


def everything(shop: Shop, caplog: pytest.LogCaptureFixture) -> str:
    stored = [*shop.objects(shop.real.uri).values(), *shop.objects(shop.folder).values()]
    texts = [data.decode() for data in stored if not data.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF"))]
    return "\n".join([*texts, caplog.text])


async def test_key_prompt_and_signed_link_are_in_no_record_sidecar_or_log(
    root: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="a-task")
    for gateway in ROUTES:
        shop = Shop(root, sandbox, gateway)
        for name, fault in (("fine", None), ("echo", "refused_echo"), ("bare", "bare_failed")):
            if fault:
                shop.fault("submit", outcome=fault)
            item = dataclasses.replace(ITEM, dag_id=gateway, task_id=name)
            with contextlib.suppress(GeminiImageError):
                await shop.buy(item=item, destination=Destination(shop.folder, f"{gateway}-{name}"))
    shop = Shop(root, sandbox)
    found = everything(shop, caplog)
    assert "landed" in found
    for secret in (KEY, "frozen lake", PROMPT[:20], "X-Amz-Signature", "Amz-"):
        assert secret not in found


async def test_the_prompt_is_in_record_and_sidecar_where_prompts_are_recorded(shop: Shop) -> None:
    await shop.buy(record_prompts=True)
    assert shop.record.prompt == PROMPT
    sidecar = json.loads(shop.files.read(f"{shop.folder}/hero.json", max_bytes=10_000))
    assert sidecar["prompt"] == PROMPT


async def test_the_sidecar_names_the_inputs_and_the_prompts_hash(disk_shop: Shop) -> None:
    shop = disk_shop
    manifest = await shop.buy()
    sidecar = json.loads(shop.files.read(f"{shop.folder}/hero.json", max_bytes=10_000))
    assert {name: sidecar[name] for name in manifest} == manifest
    assert sidecar["prompt_sha256"] == shop.record.prompt_sha256
    assert sidecar["inputs"] == []
