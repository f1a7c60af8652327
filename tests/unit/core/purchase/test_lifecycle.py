"""One image's life over HTTP and real storage: what an attempt does about what earlier ones left behind.

Each test is an attempt or two at a sandbox's gateway, with the root on disk and on S3. The sandbox's own ledger says
what was paid for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.http import exchange
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.records import Destination, Ledger, Record, StoredRecord, with_error
from airflow_provider_geminiimg.core.purchase import landing, lifecycle
from airflow_provider_geminiimg.core.purchase import submission as submission_module
from airflow_provider_geminiimg.core.purchase.context import CLAIMS_AT_ONCE, PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Order
from airflow_provider_geminiimg.core.purchase.results import JobInFlight, LandedImage
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Files, Store, join_uri, open_store
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InvalidImageError,
    LedgerError,
    LinkExpiredError,
    LostContactError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    StorageError,
    TimedOutError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.sandbox import read_submission
from tests.harness.records import ITEM, Wire, landed, make_record, submitted

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

KEY = "canary-key-0123456789"
PROMPT = "A red fox jumps over the frozen lake while the moon rises"
ROUTES = {"1min": "onemin", "apimaster": "apimaster"}
SHOPS = itertools.count(1)
HTML = "<html><body>A timeout occurred</body></html>"


class Memory:
    """A task state store's memory, as one task instance sees it."""

    def __init__(self, value: Mapping[str, Any] | None = None) -> None:
        self.value = value

    def token(self) -> str:
        return "a-token"

    def get(self) -> Mapping[str, Any] | None:
        return self.value

    def set(self, value: Mapping[str, Any]) -> None:
        self.value = dict(value)


class Moody(Files):
    """Files that can't be written while `full`."""

    full = False

    def write(self, uri: str, data: bytes, *, media_type: str, sha256: str) -> bool:
        if self.full:
            raise StorageError("No space left.", billed=Billed.YES)
        return super().write(uri, data, media_type=media_type, sha256=sha256)


class Shop:
    """The attempts of one test: one root, one sandbox, one gateway."""

    def __init__(self, root: str, sandbox: Sandbox, gateway: str = "1min") -> None:
        self.sandbox = sandbox
        self.gateway = gateway
        self.real: Store = open_store(root, AIRFLOW_OPENERS)
        self.store: Store = self.real
        self.ledger = Ledger(self.real)
        self.files = Moody(AIRFLOW_OPENERS)
        self.folder = join_uri(root.rpartition("/")[0], "pictures")
        self.base_url = sandbox.base_url(gateway)
        self.conn_id = f"shop-{next(SHOPS)}"  # each has a limiter of its own
        self.broken_lines = 0
        self.log: Any = logging.getLogger("a-task")

    def connection(self, base_url: str | None = None) -> GatewayConnection:
        return parse_connection(
            conn_id=self.conn_id,
            password=KEY,
            host=base_url or self.base_url,
            extra={"gateway": self.gateway, "requests_per_minute": 100_000},
        )

    def order(self, **more: Any) -> Order:
        known = {field.name for field in dataclasses.fields(Order)} | {"generation", "on_unknown", "on_clear"}
        wish = {"operation": "generate", "prompt": PROMPT, "resolution": "512"}
        wish |= {name: value for name, value in more.items() if name not in known}
        policy = Policy(more.get("generation", 0), more.get("on_unknown", "fail"), more.get("on_clear", "reuse"))
        values = {name: value for name, value in more.items() if name in known and not hasattr(Policy, name)}
        values = {name: value for name, value in values.items() if name not in ("generation", "on_unknown", "on_clear")}
        usual: dict[str, Any] = {
            "item": ITEM,
            "request": None,
            "connection": self.connection(),
            "destination": Destination(self.folder, "hero"),
            "policy": policy,
            "timeout": 20.0,
            "poll_interval": 0.03,
        }
        order = {**usual, **values}
        order["request"] = order["request"] or ImageRequest.build(**wish).check(self.gateway)
        return Order(**order)

    @asynccontextmanager
    async def attempt(
        self, *, marker: Memory | None = None, guard: SubmitGuard | None = None, **more: Any
    ) -> AsyncIterator[Purchase]:
        """One attempt: `more` are fields of the order, its policy, or its request."""
        async with AsyncExitStack() as stack:

            async def connect(conn_id: str) -> Transport:
                if self.broken_lines:
                    self.broken_lines -= 1
                    return await stack.enter_async_context(Transport(self.connection(nowhere())))
                return await stack.enter_async_context(Transport(self.connection()))

            purchase_context = PurchaseContext(Ledger(self.store), self.files, connect, self.log)
            yield Purchase(self.order(**more), purchase_context, guard or SubmitGuard(), marker)

    async def buy(self, **more: Any) -> dict[str, Any]:
        """The manifest of an attempt that waits for its image."""
        async with self.attempt(**more) as purchase:
            result = await purchase.start()
            if isinstance(result, JobInFlight):
                result = await purchase.finish(result.record)
            return result.manifest

    async def submit(self, **more: Any) -> Record:
        """The record of an attempt that died as soon as its submit was recorded."""
        async with self.attempt(**more) as purchase:
            result = await purchase.start()
            assert isinstance(result, JobInFlight)
            return result.record

    async def refused(self, kind: type[GeminiImageError], **more: Any) -> GeminiImageError:
        """The outcome of an attempt that fails with exactly this kind."""
        with pytest.raises(kind) as caught:
            await self.buy(**more)
        assert caught.value.kind == kind.kind
        return caught.value

    # What is there afterwards

    def found(self) -> StoredRecord:
        found = self.ledger.latest(ITEM)
        assert found is not None
        return found

    @property
    def record(self) -> Record:
        return self.found().record

    def paid(self) -> int:
        return len(self.sandbox.ledger())

    def calls(self) -> int:
        return len(self.sandbox.calls())

    def submits(self) -> int:
        return len(self.sandbox.calls(f"{ROUTES[self.gateway]}.submit"))

    def fault(self, route: str, **values: Any) -> None:
        self.sandbox.faults(route=route if route == "download" else f"{ROUTES[self.gateway]}.{route}", **values)

    def submission(self, manifest: Mapping[str, Any]) -> int:
        """Which paid submission the manifest's image is."""
        data = self.files.read(manifest["images"][0]["uri"], max_bytes=10_000_000)
        return int(read_submission(data))

    def names(self, folder: str | None = None) -> list[str]:
        """The files in the folder of the images."""
        return [name.rpartition("/")[2] for name in self.objects(folder or self.folder)]

    def objects(self, uri: str) -> dict[str, bytes]:
        """Everything under a URI, with its bytes."""
        if uri.startswith("file://"):
            paths = sorted(Path(uri.removeprefix("file://")).rglob("*"))
            return {str(path): path.read_bytes() for path in paths if path.is_file()}
        bucket, _, prefix = f"{uri}/".removeprefix("s3://").partition("/")
        s3 = boto3.client("s3")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]
        return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def delete(self, uri: str) -> None:
        if uri.startswith("file://"):
            Path(uri.removeprefix("file://")).unlink()
        else:
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            boto3.client("s3").delete_object(Bucket=bucket, Key=key)

    def put(self, record: Record) -> Record:
        """A record as an attempt that is dead left it."""
        record = dataclasses.replace(record, conn_id=self.conn_id, gateway=self.gateway)
        record = dataclasses.replace(record, destination=Destination(self.folder, "hero"))
        assert self.ledger.create(record)
        return record

    def overdue(self) -> None:
        """Let the deadline of the last record's answer have passed."""
        self.ledger.change(self.record.key, lambda stored: dataclasses.replace(stored, answer_within=0.0))


def nowhere() -> str:
    """The address of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def until(ready: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""

    def wait() -> None:
        deadline = time.monotonic() + 10
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    await asyncio.to_thread(wait)


def make_unreadable(uri: str) -> None:
    """Put something at a path on disk that even root can't look at."""
    path = Path(uri.removeprefix("file://"))
    path.unlink()
    path.symlink_to(path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="a-task")
    monkeypatch.setattr(lifecycle, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(submission_module, "RECORD_AGAIN", 0.02)
    monkeypatch.setattr(lifecycle.random, "uniform", lambda low, high: 0.01)


@pytest.fixture
def shop(root: str, sandbox: Sandbox) -> Shop:
    return Shop(root, sandbox)


@pytest.fixture
def disk_shop(local_root: str, sandbox: Sandbox) -> Shop:
    return Shop(local_root, sandbox)


@pytest.fixture(params=["1min", "apimaster"])
def each_shop(local_root: str, sandbox: Sandbox, request: pytest.FixtureRequest) -> Shop:
    return Shop(local_root, sandbox, request.param)


@pytest.fixture
def link_shop(root: str, sandbox: Sandbox) -> Shop:
    """A gateway that answers with links and no job id."""
    sandbox.settings(honour_async=False, latency=0.0)
    return Shop(root, sandbox, "apimaster")


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


# An intent was there


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
    assert "Perhaps paid twice" in caplog.text
    assert shop.names() == ["hero-2.json", "hero-2.png", "hero.json", "hero.png"]
    assert [(shop.ledger.read(record_key(ITEM, n)) or shop.found()).record.state for n in (1, 2)] == ["landed"] * 2


async def settle_as_unpaid(shop: Shop) -> None:
    """What a person does about an unknown outcome, who takes it that nothing was charged."""
    word = UpstreamFailedError("Settled by hand.", billed=Billed.NO)
    shop.ledger.change(shop.record.key, lambda stored: with_error(stored, word, "failed"))


async def test_an_answer_that_comes_after_its_request_was_settled_by_hand_is_collected_and_nothing_is_bought(
    shop: Shop,
) -> None:
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.submit())
    await asyncio.to_thread(shop.sandbox.held)
    await settle_as_unpaid(shop)
    shop.sandbox.release()
    record = await first
    assert (shop.record.state, shop.record.job_id) == ("submitted", record.job_id)
    assert shop.submission(await shop.buy(generation=1)) == 1
    assert shop.paid() == 1


async def test_links_that_come_after_their_request_was_settled_by_hand_are_not_lost(link_shop: Shop) -> None:
    shop = link_shop
    shop.files.full = True
    shop.fault("submit", hold=True, charge="after")
    first = asyncio.create_task(shop.refused(StorageError))
    await asyncio.to_thread(shop.sandbox.held)
    await settle_as_unpaid(shop)
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
    assert shop.record == dataclasses.replace(other, extra_jobs=[record.job_id])


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


# A job was there


async def test_a_submitted_job_is_collected_by_the_next_attempt(each_shop: Shop) -> None:
    record = await each_shop.submit()
    assert each_shop.record.state == "submitted"
    manifest = await each_shop.buy()
    assert each_shop.paid() == each_shop.submits() == 1
    assert manifest["job_id"] == record.job_id
    assert each_shop.submission(manifest) == 1


async def test_a_retry_uses_the_recorded_request_and_destination_and_says_what_differs(
    disk_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = disk_shop
    await shop.submit()
    elsewhere = Destination(f"{shop.folder}/elsewhere", "other")
    manifest = await shop.buy(prompt="a cat", resolution="1K", destination=elsewhere)
    assert manifest["images"][0]["uri"] == f"{shop.folder}/hero.png"
    assert shop.submits() == 1
    assert "changed: prompt, destination, resolution; the recorded request is used all the same" in caplog.text


async def test_a_retry_collects_even_where_what_is_asked_for_is_wrong_now(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    assert shop.submission(await shop.buy(request=BadRequestError("prompt: is empty."))) == 1


async def test_a_clear_with_the_same_request_collects_the_job(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    manifest = await shop.buy(generation=1, on_unknown="resubmit", on_clear="regenerate")
    assert shop.submits() == 1
    assert shop.submission(manifest) == 1
    assert (await shop.buy(generation=1, on_clear="regenerate"))["reused"] is True
    assert shop.submits() == 1


async def test_a_clear_collects_the_job_even_where_its_input_is_gone(disk_shop: Shop, tmp_path: Path) -> None:
    shop, edit = disk_shop, {"operation": "edit", "image": str(tmp_path / "in.png")}
    (tmp_path / "in.png").write_bytes(png())
    await shop.submit(**edit)
    (tmp_path / "in.png").unlink()
    other = {**edit, "image": str(tmp_path / "other.png")}
    await shop.refused(BadRequestError, generation=1, **other)
    await shop.refused(BadRequestError, generation=1, prompt="a cat", **edit)
    assert shop.submission(await shop.buy(generation=1, **edit)) == 1
    assert shop.submits() == 1


@pytest.mark.parametrize("between", ["nothing", "another image", "a refusal"])
async def test_a_clear_returns_what_has_landed_even_where_its_input_is_gone(
    disk_shop: Shop, tmp_path: Path, between: str
) -> None:
    shop, edit = disk_shop, {"operation": "edit", "image": str(tmp_path / "in.png")}
    (tmp_path / "in.png").write_bytes(png())
    first = await shop.buy(**edit)
    if between == "another image":
        await shop.buy(generation=1, prompt="a cat", **edit)
    elif between == "a refusal":
        shop.sandbox.faults(route="onemin.submit", outcome="refused")
        await shop.refused(ContentRefusedError, generation=1, prompt="a cat", **edit)
    (tmp_path / "in.png").unlink()
    paid = shop.paid()
    for generation in (2, 3):
        again = await shop.buy(generation=generation, **edit)
        assert (again["images"], again["reused"]) == (first["images"], True)
    await shop.refused(BadRequestError, generation=4, prompt="a dog", **edit)
    await shop.refused(BadRequestError, generation=4, on_clear="regenerate", **edit)
    assert shop.paid() == paid


async def test_a_clear_that_asks_for_another_image_buys_it_and_keeps_the_first_to_collect(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    first = await shop.submit()
    manifest = await shop.buy(generation=1, prompt="a cat")
    assert shop.paid() == 2
    assert shop.submission(manifest) == 2
    assert manifest["images"][0]["uri"] == f"{shop.folder}/hero-2.png"
    assert "changed: prompt; submitting what is asked for now" in caplog.text
    kept = shop.ledger.read(first.key)
    assert kept is not None
    assert (kept.record.state, kept.record.job_id) == ("submitted", first.job_id)


async def test_a_job_that_the_gateway_never_knew_is_outcome_unknown_after_ten_minutes(each_shop: Shop) -> None:
    shop = each_shop
    shop.put(submitted(job_id="no-such-job", submitted_at=time.time() - 601))
    error = await shop.refused(OutcomeUnknownError, timeout=5000.0)
    assert "no-such-job" in str(error)
    assert shop.submits() == 0
    assert shop.submission(await shop.buy(timeout=5000.0, on_unknown="resubmit")) == 1
    assert (shop.record.n, shop.record.resubmission) == (2, True)


async def test_a_young_job_that_the_gateway_does_not_know_yet_is_running(each_shop: Shop) -> None:
    each_shop.put(submitted(job_id="no-such-job", submitted_at=time.time()))
    await each_shop.refused(TimedOutError, timeout=0.2, on_unknown="resubmit")
    assert each_shop.submits() == 0
    assert each_shop.record.state == "submitted"


async def test_a_job_that_runs_past_the_timeout_is_left_alone_and_collected_later(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.sandbox.settings(latency=0.6)
    await shop.refused(TimedOutError, timeout=0.1)
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_gateway_that_can_not_be_asked_leaves_the_job_alone(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    shop.fault("status", status=502, times=5)
    await shop.refused(LostContactError)
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_connection_that_leads_to_another_gateway_now_does_not_lose_the_job(disk_shop: Shop) -> None:
    shop = disk_shop
    await shop.submit()
    other = Shop(shop.real.uri, shop.sandbox, "apimaster")
    other.conn_id = shop.conn_id
    error = await other.refused(BadRequestError)
    assert "now leads to apimaster" in str(error)
    assert shop.submission(await shop.buy()) == 1
    assert shop.paid() == 1


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
    assert states(shop) == [("failed", "rate_limited"), ("failed", "rate_limited"), ("landed", None)]


def states(shop: Shop) -> list[tuple[str, str | None]]:
    found = [shop.ledger.read(record_key(ITEM, n)) for n in shop.ledger.numbers(ITEM)]
    return [(each.record.state, (each.record.outcome or {}).get("kind")) for each in found if each is not None]


async def test_429_that_asks_to_wait_too_long_ends_the_attempt_and_the_next_one_buys(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", status=429, headers={"retry-after": "600"})
    error = await shop.refused(RateLimitedError)
    assert error.retry_after == 600
    assert states(shop) == [("failed", "rate_limited")]
    shop.conn_id += "-unpaused"
    assert shop.submission(await shop.buy()) == 1


async def test_what_could_not_be_sent_is_sent_again_and_on_record_as_unpaid(shop: Shop) -> None:
    shop.broken_lines = 2
    manifest = await shop.buy()
    assert (shop.submits(), shop.paid()) == (1, 1)
    assert shop.submission(manifest) == 1
    assert states(shop) == [("failed", "not_sent"), ("failed", "not_sent"), ("landed", None)]


async def test_what_could_not_be_sent_in_time_is_an_unpaid_failure_and_the_next_attempt_buys(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = disk_shop
    monkeypatch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
    shop.broken_lines = 1
    error = await shop.refused(NotSentError)
    assert "No money was spent." in str(error)
    assert shop.submission(await shop.buy()) == 1


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


# Links and bytes without a job


async def test_an_answered_link_is_fetched_by_the_next_attempt_and_then_forgotten(link_shop: Shop) -> None:
    shop = link_shop
    shop.fault("download", status=404)
    await shop.refused(LinkExpiredError)
    assert shop.record.state == "answered"
    assert shop.record.job_id is None
    link = shop.record.links[0]
    manifest = await shop.buy()
    assert shop.paid() == shop.submits() == 1
    assert shop.submission(manifest) == 1
    assert shop.record.links == []
    assert not any(link.encode() in data for data in shop.objects(shop.real.uri).values())


async def test_an_answered_link_that_is_gone_for_good_is_an_error_until_regenerate(link_shop: Shop) -> None:
    shop = link_shop
    shop.sandbox.settings(link_seconds=0)
    for more in ({}, {}, {"generation": 1}, {"on_clear": "regenerate"}):
        error = await shop.refused(LinkExpiredError, **more)
        assert 'on_clear="regenerate"' in str(error)
    assert shop.submits() == 1
    shop.sandbox.settings(link_seconds=600)
    assert shop.submission(await shop.buy(generation=2, on_clear="regenerate")) == 2


async def test_a_link_answer_whose_record_was_written_although_the_store_did_not_say_so_is_no_second_payment(
    link_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = link_shop
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.once["replace"] = "nothing"
    shop.store = wire
    await shop.buy()
    assert "Perhaps paid twice" not in caplog.text
    assert shop.record.extra_jobs == []


def png(colour: str = "red") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (512, 512), colour).save(buffer, "PNG")
    return buffer.getvalue()


def answers_inline(shop: Shop, data: bytes) -> bytes:
    """Let the gateway's next answer have the image's bytes in it."""
    shop.fault("submit", charge="after", body={"data": [{"b64_json": base64.b64encode(data).decode()}]})
    return data


def inline_shop(root: str, sandbox: Sandbox) -> tuple[Shop, bytes]:
    shop = Shop(root, sandbox, "apimaster")
    return shop, answers_inline(shop, png())


async def test_inline_bytes_land_and_leave_no_spool(root: str, sandbox: Sandbox) -> None:
    shop, data = inline_shop(root, sandbox)
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert list(shop.real.keys("spool/")) == []
    assert shop.submits() == 1


async def test_inline_bytes_that_could_not_land_are_landed_from_the_spool_by_the_next_attempt(
    root: str, sandbox: Sandbox
) -> None:
    shop, data = inline_shop(root, sandbox)
    shop.files.full = True
    await shop.refused(StorageError)
    assert shop.record.state == "answered"
    shop.files.full = False
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert list(shop.real.keys("spool/")) == []
    assert shop.submits() == 1


async def test_inline_bytes_that_a_record_left_which_is_gone_are_not_taken_for_those_of_the_next(
    root: str, sandbox: Sandbox
) -> None:
    shop, _ = inline_shop(root, sandbox)
    shop.files.full = True
    await shop.refused(StorageError)
    shop.real.delete(shop.record.key)
    data = answers_inline(shop, png("blue"))
    await shop.refused(StorageError)
    shop.files.full = False
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data


async def test_inline_bytes_that_could_not_be_spooled_at_once_are_spooled_before_the_record_names_them(
    root: str, sandbox: Sandbox
) -> None:
    shop, data = inline_shop(root, sandbox)
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "spool/")
    wire.once["create"] = "before"
    shop.store = wire
    shop.files.full = True
    async with shop.attempt() as purchase:
        with pytest.raises(StorageError):
            await purchase.start()
        await until(lambda: shop.record.state != "intent")
    shop.files.full = False
    manifest = await shop.buy()
    assert shop.files.read(manifest["images"][0]["uri"], max_bytes=10**6) == data
    assert shop.submits() == 1


# It had landed


async def test_a_landed_image_is_returned_without_a_call(shop: Shop) -> None:
    first = await shop.buy()
    calls = shop.calls()
    for generation in (0, 1):
        assert await shop.buy(generation=generation) == {**first, "reused": True}
    assert shop.calls() == calls


async def test_regenerate_after_a_clear_buys_once_more_and_keeps_both_images(shop: Shop) -> None:
    await shop.buy()
    second = await shop.buy(generation=1, on_clear="regenerate")
    assert shop.submission(second) == 2
    assert await shop.buy(generation=1, on_clear="regenerate") == {**second, "reused": True}
    assert shop.submits() == 2
    assert shop.names() == ["hero-2.json", "hero-2.png", "hero.json", "hero.png"]


async def test_a_landed_image_that_is_gone_comes_back_from_the_gateway_without_cost(shop: Shop) -> None:
    first = await shop.buy()
    uri = first["images"][0]["uri"]
    shop.delete(uri)
    again = await shop.buy()
    assert again["images"] == first["images"]
    assert shop.submission(again) == 1
    assert shop.paid() == shop.submits() == 1


async def test_an_image_gone_at_the_gateway_too_is_an_error_until_regenerate_buys_again(shop: Shop) -> None:
    first = await shop.buy()
    shop.delete(first["images"][0]["uri"])
    shop.sandbox.reset()
    await shop.refused(LinkExpiredError)
    calls = shop.calls()
    for more in ({}, {"generation": 1}, {"on_clear": "regenerate", "on_unknown": "resubmit"}):
        error = await shop.refused(LinkExpiredError, **more)
        assert 'on_clear="regenerate"' in str(error)
    assert shop.calls() == calls
    assert shop.paid() == 0
    shop.submission(await shop.buy(generation=1, on_clear="regenerate"))
    assert shop.paid() == 1


async def test_a_link_image_that_is_gone_has_no_job_to_ask_for(link_shop: Shop) -> None:
    manifest = await link_shop.buy()
    link_shop.delete(manifest["images"][0]["uri"])
    calls = link_shop.calls()
    await link_shop.refused(LinkExpiredError)
    assert link_shop.calls() == calls


async def test_a_disk_that_will_not_tell_whether_the_image_is_there_is_a_storage_error(disk_shop: Shop) -> None:
    manifest = await disk_shop.buy()
    make_unreadable(manifest["images"][0]["uri"])
    calls = disk_shop.calls()
    error = await disk_shop.refused(StorageError)
    assert error.billed is Billed.YES
    assert disk_shop.calls() == calls


async def test_a_bucket_that_will_not_tell_whether_the_image_is_there_is_a_storage_error(
    s3_root: str, sandbox: Sandbox
) -> None:
    shop = Shop(s3_root, sandbox)
    s3 = boto3.client("s3")
    bucket = f"{s3_root.removeprefix('s3://').partition('/')[0]}-pictures"
    s3.create_bucket(Bucket=bucket)
    shop.folder = f"s3://{bucket}"
    manifest = await shop.buy()
    for key in shop.objects(shop.folder):
        s3.delete_object(Bucket=bucket, Key=key)
    s3.delete_bucket(Bucket=bucket)
    calls = shop.calls()
    error = await shop.refused(StorageError)
    assert manifest["record"] in str(error)
    assert shop.calls() == calls


# Copies


async def test_another_destination_after_a_clear_is_a_copy_without_a_call(shop: Shop) -> None:
    first = await shop.buy()
    calls = shop.calls()
    there = Destination(f"{shop.folder}-2", "copy")
    copied = await shop.buy(generation=1, destination=there)
    assert copied["images"] == [{**first["images"][0], "uri": f"{shop.folder}-2/copy.png"}]
    assert copied["reused"] is True
    assert shop.submission(copied) == 1
    assert await shop.buy(generation=1, destination=there) == copied
    assert shop.calls() == calls
    assert shop.names(there.directory) == ["copy.json", "copy.png"]
    assert shop.names() == ["hero.json", "hero.png"]
    assert len(shop.record.copies) == 1


async def test_a_copy_that_is_gone_is_made_again(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    copied = await shop.buy(generation=1, destination=there)
    shop.delete(copied["images"][0]["uri"])
    again = await shop.buy(generation=1, destination=there)
    assert shop.submission(again) == 1
    assert shop.paid() == 1


async def test_a_copy_that_an_attempt_wrote_and_could_not_record_is_taken_by_the_next(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store = wire
    await shop.refused(StorageError, generation=1, destination=there)
    shop.store = shop.real
    copied = await shop.buy(generation=1, destination=there)
    assert copied["images"][0]["uri"] == f"{shop.folder}-2/copy.png"
    assert shop.names(there.directory) == ["copy.json", "copy.png"]
    assert shop.paid() == 1


async def test_a_copy_replaces_no_file_of_anybody_else(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    shop.files.put(f"{there.directory}/copy.json", b"{}", media_type="application/json")
    shop.files.put(f"{there.directory}/copy.png", b"mine", media_type="image/png")
    with contextlib.suppress(BadRequestError):
        await shop.buy(generation=1, destination=there)
    assert shop.files.read(f"{there.directory}/copy.json", max_bytes=10) == b"{}"
    assert shop.files.read(f"{there.directory}/copy.png", max_bytes=10) == b"mine"


async def test_every_intact_place_counts_and_the_one_that_is_asked_for_first(shop: Shop) -> None:
    places = {name: Destination(f"{shop.folder}-{name}", "hero") for name in "abc"}

    async def at(name: str, generation: int) -> str:
        manifest = await shop.buy(generation=generation, destination=places[name])
        assert shop.submission(manifest) == 1
        return manifest["images"][0]["uri"].rpartition("/")[0].rpartition("-")[2]

    assert [await at(name, generation) for generation, name in enumerate("abca")] == list("abca")
    calls = shop.calls()
    shop.delete(f"{places['a'].directory}/hero.png")
    assert await at("a", 0) == "b", "a retry makes no copy"
    assert await at("c", 0) == "c"
    assert await at("a", 5) == "a"
    shop.delete(f"{places['b'].directory}/hero.png")
    assert await at("b", 6) == "b"
    assert shop.calls() == calls
    for name in "abc":
        shop.delete(f"{places[name].directory}/hero.png")
    assert await at("b", 7) == "b"
    assert shop.names(places["a"].directory) == ["hero.json"]
    assert shop.record.destination == places["b"]
    assert await at("b", 8) == "b"
    assert shop.paid() == 1


async def test_a_copy_is_made_from_another_place_where_the_first_one_holds_other_bytes_now(shop: Shop) -> None:
    first = await shop.buy()
    await shop.buy(generation=1, destination=Destination(f"{shop.folder}-2", "copy"))
    shop.files.put(first["images"][0]["uri"], b"changed", media_type="image/png")
    third = await shop.buy(generation=2, destination=Destination(f"{shop.folder}-3", "copy"))
    assert shop.submission(third) == 1
    assert shop.files.read(first["images"][0]["uri"], max_bytes=10) == b"changed"
    assert shop.paid() == 1


async def test_a_sidecar_that_somebody_put_there_while_the_job_ran_is_not_replaced(shop: Shop) -> None:
    await shop.submit()
    shop.files.put(f"{shop.folder}/hero.json", b"mine", media_type="application/json")
    manifest = await shop.buy()
    assert shop.files.read(f"{shop.folder}/hero.json", max_bytes=10) == b"mine"
    digest = manifest["images"][0]["sha256"][:12]
    assert shop.names() == [f"hero-{digest}.json", "hero.json", "hero.png"]


async def test_the_images_own_sidecar_is_replaced_when_the_image_comes_again(shop: Shop) -> None:
    first = await shop.buy()
    shop.delete(first["images"][0]["uri"])
    again = await shop.buy()
    sidecar = json.loads(shop.files.read(f"{shop.folder}/hero.json", max_bytes=10_000))
    assert sidecar["landed_at"] == again["landed_at"] > first["landed_at"]
    assert shop.names() == ["hero.json", "hero.png"]


async def test_regenerate_where_a_copy_has_the_name_lands_beside_it(shop: Shop) -> None:
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    await shop.buy(generation=1, destination=there)
    manifest = await shop.buy(generation=2, destination=there, on_clear="regenerate")
    assert shop.submission(manifest) == 2
    assert "copy.png" in shop.names(there.directory)


# Names


async def test_a_name_that_another_task_claimed_is_refused_before_anything_is_sent(shop: Shop) -> None:
    other = dataclasses.replace(ITEM, task_id="other")
    shop.fault("submit", status=401)
    with pytest.raises(AuthenticationError):
        await shop.buy(item=other)
    calls = shop.calls()
    error = await shop.refused(BadRequestError)
    assert "hero" in str(error)
    assert "other" in str(error)
    assert shop.calls() == calls
    assert shop.sandbox.ledger() == []
    assert shop.ledger.latest(ITEM) is None


@pytest.mark.parametrize("name", ["hero.png", "hero.jpg", "hero.webp", "hero.json"])
async def test_a_name_that_a_file_has_is_refused_before_anything_is_sent(shop: Shop, name: str) -> None:
    shop.files.put(f"{shop.folder}/{name}", b"mine", media_type="text/plain")
    error = await shop.refused(BadRequestError)
    assert name in str(error)
    assert shop.calls() == 0
    assert shop.ledger.latest(ITEM) is None
    assert shop.files.read(f"{shop.folder}/{name}", max_bytes=10) == b"mine"


async def test_a_name_is_the_same_however_its_folder_is_written(disk_shop: Shop) -> None:
    other = dataclasses.replace(ITEM, task_id="other")
    await disk_shop.submit()
    for folder in (disk_shop.folder.removeprefix("file://"), f"{disk_shop.folder}/", f"{disk_shop.folder}//"):
        await disk_shop.refused(BadRequestError, item=other, destination=Destination(folder, "hero"))
    assert disk_shop.submits() == 1


async def test_a_file_that_takes_the_name_while_the_job_runs_is_not_replaced(shop: Shop) -> None:
    await shop.submit()
    shop.files.put(f"{shop.folder}/hero.png", b"mine", media_type="text/plain")
    manifest = await shop.buy()
    assert shop.submission(manifest) == 1
    assert shop.files.read(f"{shop.folder}/hero.png", max_bytes=10) == b"mine"


async def test_a_directory_that_can_not_be_written_is_refused_before_anything_is_sent(
    disk_shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    await disk_shop.refused(BadRequestError, destination=Destination((tmp_path / "file").as_uri(), "hero"))
    assert disk_shop.calls() == 0
    assert disk_shop.ledger.latest(ITEM) is None


@pytest.mark.parametrize("wrong", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"], ids=["empty", "HTML", "cut"])
async def test_an_input_that_is_no_image_is_refused_before_anything_is_sent(
    disk_shop: Shop, tmp_path: Path, wrong: bytes
) -> None:
    (tmp_path / "in.png").write_bytes(wrong)
    error = await disk_shop.refused(BadRequestError, operation="edit", image=str(tmp_path / "in.png"))
    assert "in.png" in str(error)
    assert disk_shop.calls() == 0
    assert disk_shop.ledger.latest(ITEM) is None


async def test_an_upload_that_fails_leaves_no_record(disk_shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png())
    disk_shop.fault("upload", status=401)
    await disk_shop.refused(AuthenticationError, operation="edit", image=str(tmp_path / "in.png"))
    assert disk_shop.ledger.latest(ITEM) is None
    manifest = await disk_shop.buy(operation="edit", image=str(tmp_path / "in.png"))
    assert disk_shop.submission(manifest) == 1
    assert [item["uri"] for item in disk_shop.record.inputs] == [str(tmp_path / "in.png")]


# The store fails


async def test_a_store_that_fails_right_after_the_answer_does_not_lose_the_image(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store = wire
    async with shop.attempt() as purchase:
        result = await asyncio.wait_for(started(purchase, wire), 10)
        assert isinstance(result, JobInFlight)
        record = result.record
        assert f"Job {record.job_id} was paid for, but its record {record.key} could not be written" in caplog.text
        manifest = (await purchase.finish(record)).manifest
    assert shop.submission(manifest) == 1
    assert shop.paid() == shop.submits() == 1
    assert shop.record.state == "landed"


async def started(purchase: Purchase, wire: Wire) -> LandedImage | JobInFlight:
    """Start, and mend the line as soon as recording has failed once."""

    async def mend() -> None:
        await until(lambda: purchase.submission._recording is not None)
        wire.always.clear()

    mending = asyncio.create_task(mend())
    try:
        return await purchase.start()
    finally:
        await mending


async def test_a_store_that_never_comes_back_does_not_keep_the_image_from_landing(
    link_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = link_shop
    await asyncio.to_thread(shop.real.probe)
    wire = Wire(shop.real, "ledger/")
    wire.always["replace"] = "before"
    shop.store = wire
    manifest = await shop.buy()
    assert shop.submission(manifest) == 1
    assert "could not be written" in caplog.text
    shop.store = shop.real
    shop.overdue()
    await shop.refused(OutcomeUnknownError)
    assert shop.submits() == 1


async def test_an_attempt_that_is_interrupted_while_it_records_its_job_has_logged_it(
    disk_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = disk_shop
    await asyncio.to_thread(shop.real.probe)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Wire):
        def replace(self, key: str, data: bytes, version: str) -> str | None:
            begun.set()
            go_on.wait(10)
            raise StorageError("The line is down.")

    shop.store = Slow(shop.real, "ledger/")
    attempt = asyncio.create_task(shop.buy())
    await asyncio.to_thread(begun.wait, 10)
    attempt.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert f"job {shop.sandbox.ledger()[0]['job_id']} (record {shop.record.key})" in caplog.text


async def test_a_landing_that_could_not_be_recorded_at_once_is_recorded(shop: Shop) -> None:
    record = await shop.submit()
    wire = Wire(shop.real, "ledger/")
    wire.once["replace"] = "before"
    shop.store = wire
    manifest = await shop.buy()
    assert (shop.record.key, shop.record.state, shop.record.manifest) == (record.key, "landed", manifest)


async def test_a_store_that_can_not_be_read_lets_nothing_be_sent(shop: Shop) -> None:
    await asyncio.to_thread(shop.real.probe)
    for operation in ("keys", "create"):
        wire = Wire(shop.real, "ledger/")
        wire.always[operation] = "before"
        shop.store = wire
        await shop.refused(StorageError)
    assert shop.submits() == 0


async def test_a_store_that_can_not_be_read_does_not_say_that_nothing_was_spent(disk_shop: Shop) -> None:
    shop, marker = disk_shop, Memory()
    wire = Wire(shop.real, "ledger/")
    wire.always["keys"] = "before"
    shop.store = wire
    assert (await shop.refused(StorageError, marker=marker)).billed is Billed.NO
    shop.store = shop.real
    record = await shop.submit(marker=marker)
    shop.store = wire
    assert (await shop.refused(StorageError, marker=marker)).billed is Billed.UNKNOWN
    assert (await shop.refused(StorageError)).billed is Billed.UNKNOWN
    async with shop.attempt() as purchase:
        with pytest.raises(StorageError) as caught:
            await purchase.resume(str(record.job_id))
    assert caught.value.billed is Billed.YES


async def test_a_claim_that_took_too_long_for_its_answer_to_be_in_time_sends_nothing(
    disk_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = disk_shop
    # The exchange fits into what is left of the time that other attempts wait.
    assert submission_module.CLAIM_SECONDS + exchange.OVERHEAD <= submission_module.ANSWER_MARGIN
    monkeypatch.setattr(submission_module, "CLAIM_SECONDS", -1.0)
    monkeypatch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
    await shop.refused(NotSentError)
    assert shop.submits() == 0
    assert states(shop) == [("failed", "not_sent")]


async def test_a_record_that_can_not_be_read_lets_nothing_be_sent(shop: Shop) -> None:
    assert shop.real.create(record_key(ITEM, 1), b"{") is not None
    error = await shop.refused(LedgerError)
    assert record_key(ITEM, 1) in str(error)
    assert shop.calls() == 0


async def test_a_claim_whose_answer_got_lost_is_used(shop: Shop) -> None:
    await asyncio.to_thread(shop.real.probe)
    for fault in ("nothing", "after"):
        wire = Wire(shop.real, "ledger/")
        wire.once["create"] = fault
        shop.store = wire
        item = dataclasses.replace(ITEM, task_id=fault)
        manifest = await shop.buy(item=item, destination=Destination(shop.folder, fault))
        assert manifest["reused"] is False
    assert shop.submits() == shop.paid() == 2


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
    assert states(shop) == [("failed", "not_sent")]
    assert shop.submits() == 0


# Downloads


@pytest.mark.parametrize("status", [403, 404])
async def test_a_link_that_expires_between_poll_and_download_is_asked_for_again(each_shop: Shop, status: int) -> None:
    each_shop.fault("download", status=status, body=HTML)
    manifest = await each_shop.buy()
    assert each_shop.submission(manifest) == 1
    assert each_shop.paid() == each_shop.submits() == 1


async def test_a_result_that_is_no_image_is_downloaded_again_and_never_bought_again(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("download", status=200, body=HTML, times=3)
    await shop.refused(InvalidImageError)
    assert shop.record.state == "submitted"
    assert shop.names() == []
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_result_that_never_becomes_an_image_is_bought_again_by_a_clear_with_regenerate(
    disk_shop: Shop,
) -> None:
    shop = disk_shop
    shop.fault("download", status=200, body=HTML, times=9)
    await shop.refused(InvalidImageError)
    await shop.refused(InvalidImageError, on_clear="regenerate")
    await shop.refused(InvalidImageError, generation=1)
    assert shop.submits() == 1
    assert shop.submission(await shop.buy(generation=2, on_clear="regenerate")) == 2


async def test_a_download_that_is_cut_off_is_repeated(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("download", cut_after=100)
    assert shop.submission(await shop.buy()) == 1
    assert shop.submits() == 1


async def test_a_failure_of_an_attempt_that_another_one_overtook_is_not_noted(disk_shop: Shop) -> None:
    shop = disk_shop
    before = await shop.submit()
    await shop.buy()
    async with shop.attempt() as purchase:
        await purchase.collector(before).note(before, LinkExpiredError("gone"))
    assert (shop.record.state, shop.record.outcome) == ("landed", None)


async def test_a_reported_cost_is_in_the_gateways_currency_whatever_the_connection_counts_in(
    disk_shop: Shop,
) -> None:
    record = make_record(cost={"amount": 900.0, "currency": "credits", "basis": "connection"})
    async with disk_shop.attempt() as purchase:
        cost = purchase.writer._cost
    assert cost(record, None) == record.cost
    assert cost(record, 0.05) == {"amount": 0.05, "currency": "USD", "basis": "gateway", "estimate": False}


async def test_an_image_that_can_not_be_stored_is_stored_by_the_next_attempt(shop: Shop) -> None:
    shop.files.full = True
    await shop.refused(StorageError)
    assert shop.record.state == "submitted"
    shop.files.full = False
    assert shop.submission(await shop.buy()) == 1
    assert shop.paid() == 1


async def test_an_image_that_is_not_what_was_asked_for_lands_and_says_so(disk_shop: Shop) -> None:
    shop = disk_shop
    shop.fault("submit", outcome="wrong_size")
    manifest = await shop.buy(aspect_ratio="16:9", resolution="2K")
    assert manifest["mismatch"]
    assert shop.submission(manifest) == 1
    assert landing.mismatch_error(manifest) is not None


# What a trigger's event brings


async def test_a_trigger_event_lands_its_job(shop: Shop) -> None:
    record = await shop.submit()
    async with shop.attempt() as purchase:
        result = await purchase.resume(str(record.job_id))
        landed, manifest = result.record, result.manifest
    assert shop.submission(manifest) == 1
    assert landed.state == "landed"


async def test_a_trigger_event_lands_its_job_even_without_a_record(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    record = await shop.submit()
    shop.real.delete(record.key)
    async with shop.attempt() as purchase:
        manifest = (await purchase.resume(str(record.job_id))).manifest
    assert shop.submission(manifest) == 1
    assert f"Job {record.job_id} is not in the ledger" in caplog.text
    assert shop.record.state == "landed"
    assert shop.submits() == 1


async def test_a_trigger_event_lands_its_job_where_the_record_is_still_an_intent(shop: Shop) -> None:
    record = await shop.submit()
    shop.real.delete(record.key)
    shop.put(dataclasses.replace(record, state="intent", job_id=None))
    async with shop.attempt() as purchase:
        manifest = (await purchase.resume(str(record.job_id))).manifest
    assert shop.submission(manifest) == 1
    assert (shop.record.state, shop.record.job_id) == ("landed", record.job_id)
    assert shop.submits() == 1


async def test_a_trigger_event_never_lands_its_job_on_the_record_of_another_submission(disk_shop: Shop) -> None:
    shop = disk_shop
    first = await shop.submit()
    shop.put(make_record(n=2, generation=1))
    async with shop.attempt() as purchase:
        result = await asyncio.wait_for(purchase.resume(str(first.job_id)), 10)
        landed, manifest = result.record, result.manifest
    assert (landed.key, landed.state) == (first.key, "landed")
    assert shop.submission(manifest) == 1
    assert (shop.record.state, shop.record.job_id) == ("intent", None)


async def test_a_trigger_event_of_a_job_that_has_landed_meanwhile_returns_it(disk_shop: Shop) -> None:
    shop = disk_shop
    first = await shop.buy()
    async with shop.attempt() as purchase:
        manifest = (await purchase.resume(first["job_id"])).manifest
    assert manifest == {**first, "reused": True}


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


# Claims: what a process may leave unknown that the gateway never saw.


class SlowStore:
    """A store whose creates of records wait for the test.

    :param expected: so many at once set `full`.
    """

    def __init__(self, real: Store, expected: int) -> None:
        self._real = real
        self._expected = expected
        self._lock = threading.Lock()
        self.go_on = threading.Event()
        self.full = threading.Event()
        self.waiting = self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create(self, key: str, data: bytes) -> str | None:
        if not key.startswith("ledger/"):
            return self._real.create(key, data)
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            if self.waiting == self._expected:
                self.full.set()
        assert self.go_on.wait(30)
        try:
            return self._real.create(key, data)
        finally:
            with self._lock:
                self.waiting -= 1


async def test_a_slow_store_is_given_few_claims_at_once_however_many_images_wait(disk_shop: Shop) -> None:
    shop = disk_shop
    slow: Any = SlowStore(shop.real, CLAIMS_AT_ONCE)
    async with AsyncExitStack() as stack:

        async def connect(conn_id: str) -> Transport:
            return await stack.enter_async_context(Transport(shop.connection()))

        purchase_context = PurchaseContext(Ledger(slow), shop.files, connect, shop.log)

        async def one(number: int) -> None:
            order = shop.order(
                item=dataclasses.replace(ITEM, item=f"{number:016x}"),
                prompt=f"fox {number}",
                destination=Destination(shop.folder, f"fox-{number}"),
            )
            result = await (purchase := Purchase(order, purchase_context, SubmitGuard(), None)).start()
            if isinstance(result, JobInFlight):
                await purchase.finish(result.record)

        images = asyncio.gather(*(one(number) for number in range(7)))
        assert await asyncio.to_thread(slow.full.wait, 30)
        assert shop.submits() == 0
        slow.go_on.set()
        await images
    assert slow.most == CLAIMS_AT_ONCE
    assert shop.paid() == 7


async def test_who_is_told_to_stop_while_the_store_takes_the_claim_leaves_no_unknown_outcome(disk_shop: Shop) -> None:
    shop, guard = disk_shop, SubmitGuard()
    slow: Any = SlowStore(shop.real, 1)
    shop.store = slow
    buying = asyncio.create_task(shop.buy(guard=guard))
    assert await asyncio.to_thread(slow.full.wait, 30)
    guard.stop()
    buying.cancel()
    slow.go_on.set()
    await asyncio.wait([buying])
    await asyncio.get_running_loop().shutdown_default_executor()
    assert shop.submits() == 0
    assert states(shop) == [("failed", "not_sent")]
