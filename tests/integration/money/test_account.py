"""A job is asked for at the account that was paid for it: what becomes of it once its connection was changed. In no
test here is anything bought beside the jobs of the attempts: the sandbox's own count says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core import reconcile
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.validation.resolution import Resolution
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, OutcomeUnknownError
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness.orphaned_records import LOGGER, OrphanedRecords

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

LONG_AGO = 3600.0
NO_LIMIT = {"requests_per_minute": 100_000}
ROUTES = {"1min": "onemin", "apimaster": "apimaster"}


@pytest.fixture(params=["1min", "apimaster"])
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def other() -> Iterator[Sandbox]:
    """Both gateways once more, at another address."""
    from airflow_provider_geminiimg.sandbox import Sandbox

    with Sandbox(latency=0.05) as box:
        yield box


class Account:
    """One connection, which a test points to other accounts.

    :param sandbox: where it leads first.
    """

    def __init__(self, sandbox: Sandbox, other: Sandbox, connect: Callable[..., str], gateway: str) -> None:
        self.sandbox, self.other, self.gateway = sandbox, other, gateway
        self._connect = connect
        self.point_back()

    def point_back(self) -> None:
        self._connect("acct", **self.sandbox.connection(self.gateway, **NO_LIMIT))

    def point(self, change: str) -> None:
        """Point the connection to another account."""
        connections = {
            "key": self.sandbox.connection(self.gateway, key="another-key", **NO_LIMIT),
            "refused key": self.sandbox.connection(self.gateway, key="bad-key", **NO_LIMIT),
            "host": self.other.connection(self.gateway, **NO_LIMIT),
            "both": self.other.connection(self.gateway, key="another-key", **NO_LIMIT),
            "gateway": self.sandbox.connection("apimaster" if self.gateway == "1min" else "1min", **NO_LIMIT),
            "nowhere": {**self.sandbox.connection(self.gateway, **NO_LIMIT), "host": "http://127.0.0.1:9"},
        }
        self._connect("acct", **connections[change])

    def left(self) -> OrphanedRecords:
        """Attempts that look the connection up as it is now."""
        return OrphanedRecords(self.sandbox, "acct")

    def paid(self) -> int:
        return len(self.sandbox.ledger()) + len(self.other.ledger())


@pytest.fixture
def account(local_root: str, sandbox: Sandbox, other: Sandbox, connect: Callable[..., str], gateway: str) -> Account:
    return Account(sandbox, other, connect, gateway)


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=LOGGER)
    return caplog


CHANGES = ("key", "refused key", "host", "both")


def remove(uri: str) -> None:
    Path(uri.removeprefix("file://")).unlink()


async def long_submitted(account: Account) -> Record:
    """A job that was submitted so long ago that no gateway is given more time to know it."""
    left = account.left()
    return left.change(await left.submitted(), submitted_at=time.time() - LONG_AGO, claimed_at=time.time() - LONG_AGO)


# What a record knows of its account


def connection(host: str = "https://api.1min.ai", key: str = "k-1") -> GatewayConnection:
    return parse_connection(conn_id="c", password=key, host=host, extra={"gateway": "1min"})


async def test_a_record_knows_host_and_a_hash_of_the_key_and_never_the_key(account: Account) -> None:
    record = await account.left().submitted()
    assert record.api_host == account.sandbox.url.removeprefix("http://")
    assert record.key_digest is not None
    assert len(record.key_digest) == 8
    assert b"sandbox-key" not in b"".join(account.left().everything().values())


def test_a_key_is_told_from_another_and_not_by_its_spelling_of_the_host() -> None:
    assert connection(key="a").key_digest != connection(key="b").key_digest
    assert connection(key=" a ").key_digest == connection(key="a").key_digest
    same = ("https://api.1min.ai", "API.1min.AI", "https://api.1min.ai:443/", "https://api.1min.ai/other")
    assert {connection(host).api_host for host in same} == {"api.1min.ai"}
    assert connection("http://[::1]:8080").api_host == "[::1]:8080"


# One image, in every way in which a job is asked for


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("generation", [0, 1], ids=["retry", "clear"])
async def test_a_job_whose_account_is_another_one_now_is_not_lost_and_not_bought_again(
    account: Account, change: str, generation: int
) -> None:
    record = await long_submitted(account)
    account.point(change)
    for _ in range(2):
        with pytest.raises(BadRequestError) as caught:
            await account.left().attempt(generation=generation, on_unknown="resubmit")
        said = str(caught.value)
        assert "Restore the connection" in said
        assert "The image was paid for." in said
        assert ("the API key has changed" in said, "the host was" in said) == (
            "key" in change or change == "both",
            change in ("host", "both"),
        )
    assert account.left().record().key == record.key
    account.point_back()
    landed = await account.left().attempt(generation=generation, on_unknown="resubmit")
    assert account.left().image(landed)[1] == 1
    assert account.paid() == 1


async def test_a_cleared_task_whose_connection_names_its_host_in_another_way_buys_nothing(
    account: Account, connect: Callable[..., str]
) -> None:
    await long_submitted(account)
    url = account.sandbox.base_url(account.gateway).replace("127.0.0.1", "localhost")
    connect("acct", **{**account.sandbox.connection(account.gateway, **NO_LIMIT), "host": url})
    for generation in (1, 2):
        landed = await account.left().attempt(generation=generation)
        assert account.left().image(landed)[1] == 1
    assert account.paid() == 1


async def test_a_job_at_a_host_that_does_not_answer_says_that_the_host_was_changed(account: Account) -> None:
    await long_submitted(account)
    account.point("nowhere")
    with pytest.raises(BadRequestError, match="the host was"):
        await account.left().attempt(on_unknown="resubmit")
    account.point_back()
    await account.left().attempt()
    assert account.paid() == 1


async def test_a_new_key_of_the_same_account_collects_the_job(account: Account) -> None:
    record = await long_submitted(account)
    account.left().change(record, key_digest="01234567")  # submitted with the key before, of this very account
    landed = await account.left().attempt()
    assert account.left().image(landed)[1] == 1
    assert account.paid() == 1


async def test_a_record_of_before_that_knows_no_account_is_compared_with_nothing(account: Account) -> None:
    record = await long_submitted(account)
    account.left().change(record, api_host=None, key_digest=None)
    account.point("key")
    with pytest.raises(OutcomeUnknownError):
        await account.left().attempt()
    assert account.paid() == 1


async def test_a_landed_image_that_is_gone_is_not_given_up_where_the_account_is_another_one_now(
    account: Account,
) -> None:
    left = account.left()
    uri, _ = left.image(await left.attempt())
    account.point("key")
    remove(uri)
    with pytest.raises(BadRequestError, match="Restore the connection"):
        await account.left().attempt()
    account.point_back()
    await account.left().attempt()
    assert account.paid() == 1


@pytest.mark.parametrize("change", [*CHANGES, "gateway"])
async def test_collect_leaves_a_job_whose_account_is_another_one_now_and_says_so(
    account: Account, change: str, lines: pytest.LogCaptureFixture
) -> None:
    record = await long_submitted(account)
    account.point(change)
    report = await account.left().collect()
    assert report.keys["errors"] == [record.key]
    assert "Restore the connection" in lines.text
    account.point_back()
    assert (await account.left().collect()).keys["landed"] == [record.key]
    assert account.paid() == 1


@pytest.mark.parametrize("change", ["key", "gateway"])
@pytest.mark.parametrize("resolution", [Resolution("lost"), Resolution("unpaid"), Resolution("resubmit")], ids=str)
async def test_a_job_whose_account_is_gone_for_good_can_be_resolved(
    account: Account, resolution: Resolution, change: str
) -> None:
    record = await long_submitted(account)
    with pytest.raises(BadRequestError, match="can be collected"):
        reconcile.resolve(account.left().ledger, record.key, resolution)
    account.point(change)
    await account.left().collect()
    account.point("key")
    assert reconcile.resolve(account.left().ledger, record.key, resolution) is True
    again = account.left().attempt(generation=1)
    if resolution.word == "lost":
        with pytest.raises(GeminiImageError):
            await again
    else:
        await again
    assert account.paid() == 1 + (resolution.word != "lost")


# In a real Airflow


DEFERRED = {"deferrable": True, "poll_interval": 0.02}
WAITING = {"deferrable": False, "poll_interval": 0.02}


def one_image(mode: dict[str, Any], **more: Any) -> DAG:
    with DAG("pictures", schedule=None) as dag:
        GeminiImageGenerateOperator(
            **{
                "task_id": "made",
                "prompt": "a fox",
                "geminiimg_conn_id": "acct",
                "on_unknown": "resubmit",
                **mode,
                **more,
            }
        )
    return dag


def batch(mode: dict[str, Any], **more: Any) -> DAG:
    with DAG("pictures", schedule=None) as dag:
        GeminiImageBatchOperator(
            **{
                "task_id": "made",
                "requests": [{"prompt": "a fox"}, {"prompt": "a crow"}],
                "geminiimg_conn_id": "acct",
                "on_unknown": "resubmit",
                "poll_interval": 0.02,
                **more,
            }
        )
    return dag


def pair(mode: dict[str, Any], **more: Any) -> DAG:
    with DAG("pictures", schedule=None) as dag:
        order = GeminiImageSubmitOperator(task_id="order", prompt="a fox", geminiimg_conn_id="acct")
        GeminiImageJobSensor(
            **{
                "task_id": "made",
                "job": order.output,
                "poke_interval": 0.02,
                "timeout": 30,
                "mode": "poke",
                **mode,
                **more,
            }
        )
    return dag


def failed_with(run: Run, text: str) -> BaseException:
    task = run.task("made")
    assert task.state == "failed", run.log
    error = task.error.__cause__ if isinstance(task.error, AirflowFailException) else task.error
    assert error is not None
    assert text in str(error), run.log
    return error


def dies(account: Account, airflow: AirflowHarness, dag: DAG, images: int = 1) -> Run:
    """A run whose task paid, and failed before anything was in storage; long ago."""
    account.sandbox.faults(route="download", status=500, times=3 * images)
    run = airflow.run_dag(dag)
    assert run.task("made").state == "failed", run.log
    assert account.paid() == images
    left = account.left()
    for key in left.records():
        found = left.ledger.read(key)
        assert found is not None
        left.change(found.record, submitted_at=time.time() - LONG_AGO, answer_within=0.0)
    return run


KINDS: dict[str, tuple[Callable[..., DAG], dict[str, Any], int]] = {
    "waiting": (one_image, WAITING, 1),
    "deferred": (one_image, DEFERRED, 1),
    "batch": (batch, {}, 2),
    "sensor": (pair, {}, 1),
    "deferred sensor": (pair, DEFERRED, 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["key", "host"])
@pytest.mark.parametrize("gateway", ["1min"])
def test_no_task_buys_again_where_its_connection_leads_to_another_account(
    airflow: AirflowHarness, account: Account, kind: str, change: str
) -> None:
    make, mode, images = KINDS[kind]
    run = dies(account, airflow, make({**mode, "timeout": 100_000}), images)
    account.point(change)
    failed_with(run.retry("made"), "has changed")
    assert all("another-key" not in str(kwargs) for _, kwargs in run.task("made").triggers)
    account.point_back()
    assert run.retry("made").task("made").state == "success", run.log
    assert account.paid() == images


@pytest.mark.parametrize("gateway", ["apimaster"])
def test_a_job_whose_account_changes_while_a_trigger_waits_is_not_bought_again(
    airflow: AirflowHarness, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_geminiimg.core.gateways import polling
    from airflow_provider_geminiimg.core.purchase import waiting

    monkeypatch.setattr(polling, "VANISHED_GRACE", 0.0)
    monkeypatch.setattr(waiting, "VANISHED_GRACE", 0.0)
    from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

    run_trigger = GeminiImageJobTrigger.run

    changes = iter(["key"])

    async def changed(self: GeminiImageJobTrigger) -> Any:
        for change in changes:
            account.point(change)
        async for event in run_trigger(self):
            yield event

    monkeypatch.setattr(GeminiImageJobTrigger, "run", changed)
    account.sandbox.settings(latency=0.5)
    run = airflow.run_dag(one_image(DEFERRED))
    assert run.task("made").events[0]["status"] == "vanished"
    error = failed_with(run, "has changed")
    assert isinstance(error, BadRequestError)
    account.point_back()
    assert run.clear("made").task("made").state == "success", run.log
    assert account.paid() == 1


@pytest.mark.parametrize("kind", ["waiting", "deferred", "batch"])
@pytest.mark.parametrize("gateway", ["1min"])
def test_a_retry_after_its_connection_was_renamed_says_that_it_is_gone_and_what_to_do(
    airflow: AirflowHarness, account: Account, kind: str, monkeypatch: pytest.MonkeyPatch, connect: Callable[..., str]
) -> None:
    make, mode, images = KINDS[kind]
    run = dies(account, airflow, make(mode), images)
    connect("renamed", **account.sandbox.connection("1min", **NO_LIMIT))
    monkeypatch.delenv("AIRFLOW_CONN_ACCT")
    for dag in (make(mode), make(mode, geminiimg_conn_id="renamed")):
        error = failed_with(run.retry("made", dag=dag), "no Airflow connection 'acct'")
        assert "Restore the connection under this id" in str(error)
        assert "No money was spent" not in str(error)
    account.point_back()
    assert run.retry("made", dag=make(mode)).task("made").state == "success", run.log
    assert account.paid() == images


async def test_a_connection_that_is_gone_is_told_by_collect_too_and_its_record_can_be_resolved(
    account: Account, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    record = await long_submitted(account)
    monkeypatch.delenv("AIRFLOW_CONN_ACCT")
    left = OrphanedRecords(account.sandbox, "acct")
    assert (await left.collect()).keys["errors"] == [record.key]
    assert f"Record {record.key} was submitted through this connection." in lines.text
    assert left.at(record).error is not None
    assert reconcile.resolve(left.ledger, record.key, Resolution("resubmit")) is True
    resolved = left.at(record).error
    assert resolved is not None
    assert resolved.billed is Billed.YES
