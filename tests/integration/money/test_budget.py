"""Caps on spending: `max_cost`, and the budgets of a day and of a DAG run, by what the sandbox and the store hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core.execution.runner import CancelledUnsentError
from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.ledger.budget import Budgets, Reservation
from airflow_provider_geminiimg.core.ledger.caps import price_of
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Openers, Store, open_store
from airflow_provider_geminiimg.core.storage.local import LocalStore
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LedgerError,
    NotSentError,
    OutcomeUnknownError,
    OverBudgetError,
    RateLimitedError,
    StorageError,
)
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from tests.harness.records import Wire

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

CENT = 10_000  # millionths
LOG = logging.getLogger("budget")
ITEM = Item("default", "shop", "manual__1", "made", -1)
each_budget = pytest.mark.parametrize("name", ["daily_budget", "run_budget"])


def account(amount: Any, name: str = "daily_budget", **extra: Any) -> GatewayConnection:
    return parse_connection(conn_id="shop", password="key", extra={"gateway": "apimaster", name: amount, **extra})


@asynccontextmanager
async def worker(store: Store, images: int = 1) -> AsyncIterator[Budgets]:
    budgets = Budgets(store, LOG)
    budgets.expect(images)
    yield budgets
    await budgets.close()


async def buy(budgets: Budgets, connection: GatewayConnection, price: int = CENT, item: Item = ITEM) -> None:
    async with budgets.reserved(connection, item, price) as reservation:
        await reservation.spend(paid())


async def paid() -> JobStatus:
    return JobStatus(JobState.RUNNING, job_id="job")


async def raising(error: BaseException) -> JobStatus:
    raise error


async def buy_all(store: Store, connection: GatewayConnection, wanted: int) -> int:
    """How many images one worker could buy, until it was refused."""
    async with worker(store, wanted) as budgets:
        for bought in range(wanted):
            try:
                await buy(budgets, connection)
            except OverBudgetError:
                return bought
    return wanted


def documents(store: Store) -> dict[str, dict[str, Any]]:
    found = {key: store.read(key) for key in store.keys("budgets/")}
    return {key: json.loads(blob.data) for key, blob in found.items() if blob is not None}


def document(store: Store) -> dict[str, Any]:
    [found] = documents(store).values()
    return found


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root, AIRFLOW_OPENERS)


# A budget, of a day or of a DAG run


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("daily_budget", r"next budget at \d{4}-\d\d-\d\d 00:00 UTC, or raise daily_budget on the connection"),
        ("run_budget", r"Raise run_budget on the connection, then clear the task\."),
    ],
)
async def test_a_budget_is_spent_to_its_end_and_not_further(store: Store, name: str, hint: str) -> None:
    connection = account("0.12", name)
    assert await buy_all(store, connection, 20) == 12
    assert document(store) == {"version": 1, "currency": "USD", "spent": 12 * CENT, "leases": {}}
    with pytest.raises(OverBudgetError) as caught:
        async with worker(store) as budgets:
            await buy(budgets, connection)
    said = str(caught.value)
    assert "0.01 USD" in said
    assert f"the {name.replace('_', ' ')} of connection 'shop' does not cover" in said
    assert "0.12 USD, 0.12 are spent and 0 are leased" in said
    assert re.search(hint, said)
    assert "No money was spent." in said


@each_budget
async def test_workers_at_once_never_pass_it_and_leave_nothing_unspent(store: Store, name: str) -> None:
    connection = account("0.24", name)
    bought: list[int] = []

    def work() -> None:  # a worker of its own, with an event loop of its own
        bought.append(asyncio.run(buy_all(store, connection, 8)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sum(bought) == 24
    assert document(store) == {"version": 1, "currency": "USD", "spent": 24 * CENT, "leases": {}}


@each_budget
async def test_images_of_one_worker_that_are_bought_at_once_share_its_leases(store: Store, name: str) -> None:
    connection = account("0.09", name)
    async with worker(store, 100) as budgets:
        ended = await asyncio.gather(*(buy(budgets, connection) for _ in range(12)), return_exceptions=True)
        assert len(document(store)["leases"]) == 1
    assert sum(isinstance(each, OverBudgetError) for each in ended) == 3
    assert document(store)["spent"] == 9 * CENT


async def test_a_worker_writes_far_less_often_than_it_buys_and_gives_the_rest_back(tmp_path: Path) -> None:
    class Counted(LocalStore):
        writes = 0

        def replace(self, key: str, data: bytes, version: str) -> str | None:
            self.writes += 1
            return super().replace(key, data, version)

    store = Counted(str(tmp_path))
    async with worker(store, 1000) as budgets:
        for _ in range(150):
            await buy(budgets, account(100))
        assert sum(document(store)["leases"].values()) == 200 * CENT
    assert document(store)["spent"] == 150 * CENT
    assert store.writes == 2  # the second lease, and the end


@each_budget
async def test_who_buys_one_image_leases_the_price_of_one(store: Store, name: str) -> None:
    async with worker(store) as budgets, budgets.reserved(account(100, name), ITEM, CENT):
        assert list(document(store)["leases"].values()) == [CENT]


@each_budget
async def test_a_killed_worker_loses_at_most_a_hundredth_of_the_budget(store: Store, name: str) -> None:
    connection = account(2, name)
    for _ in range(5):
        killed = Budgets(store, LOG)
        killed.expect(1000)
        await buy(killed, connection)  # and it never gives anything back
    assert sum(document(store)["leases"].values()) == 5 * 2 * CENT
    async with worker(store) as budgets:
        await buy(budgets, connection, 190 * CENT)
    assert await buy_all(store, connection, 1) == 0
    with pytest.raises(OverBudgetError):
        await buy(Budgets(store, LOG), connection)


OUTCOMES: dict[str, tuple[Callable[[], Any], bool]] = {
    "answered": (paid, True),
    "nobody knows": (lambda: raising(OutcomeUnknownError("?")), True),
    "cut off": (lambda: raising(ConnectionResetError()), True),
    "interrupted": (lambda: raising(asyncio.CancelledError()), True),
    "interrupted before it was sent": (lambda: raising(CancelledUnsentError()), False),
    "turned away": (lambda: raising(RateLimitedError("slow down")), False),
    "not sent": (lambda: raising(NotSentError("no connection")), False),
}


@each_budget
@pytest.mark.parametrize(("answer", "spent"), OUTCOMES.values(), ids=OUTCOMES)
async def test_what_may_have_been_paid_for_is_spent_and_what_was_not_is_given_back(
    tmp_path: Path, answer: Callable[[], Any], spent: bool, name: str
) -> None:
    store = LocalStore(str(tmp_path))
    async with worker(store) as budgets:
        with contextlib.suppress(GeminiImageError, ConnectionResetError, asyncio.CancelledError):
            async with budgets.reserved(account(1, name), ITEM, CENT) as reservation:
                await reservation.spend(answer())
    assert document(store)["spent"] == (CENT if spent else 0)


@pytest.mark.parametrize(("billed", "spent"), [(Billed.NO, 0), (Billed.YES, CENT), (Billed.UNKNOWN, CENT)])
async def test_an_answer_that_says_no_counts_as_it_says(tmp_path: Path, billed: Billed, spent: int) -> None:
    store = LocalStore(str(tmp_path))

    async def refused() -> JobStatus:
        return JobStatus(JobState.FAILED, error=GeminiImageError("no", billed=billed))

    async with worker(store) as budgets, budgets.reserved(account(1), ITEM, CENT) as reservation:
        await reservation.spend(refused())
    assert document(store)["spent"] == spent


async def test_who_did_not_send_gives_it_back(store: Store) -> None:
    async with worker(store) as budgets:
        for _ in range(3):
            async with budgets.reserved(account("0.01"), ITEM, CENT) as reservation:
                assert isinstance(reservation, Reservation)
    assert document(store)["spent"] == 0


@each_budget
@pytest.mark.parametrize("loss", ["nothing", "after", "before"])
@pytest.mark.parametrize("operation", ["create", "replace"])
async def test_an_answer_of_the_store_that_gets_lost_changes_no_sum(
    store: Store, operation: str, loss: str, name: str
) -> None:
    wire = Wire(store, "budgets/")
    connection = account("0.20", name)
    async with worker(wire, 20) as budgets:
        for number, used in enumerate(["create", "replace", "replace"]):
            wire.once[used] = loss if (number, used) in ((0, operation), (1, operation)) else ""
            if wire.once[used] == "before":
                with pytest.raises(StorageError, match="No money was spent"):
                    await buy(budgets, connection)
            await buy(budgets, connection)
        wire.once[operation] = loss
    wire.once.clear()
    found = document(store)
    assert found["spent"] + sum(found["leases"].values()) == 3 * CENT


BROKEN = {
    "no JSON": b"{",
    "deeper than anybody reads": b"[" * 100_000,
    "empty": b"",
    "a list": b"[]",
    "no currency": b"{}",
    "a float": b'{"version": 1, "currency": "USD", "spent": 1.5, "leases": {}}',
    "less than nothing": b'{"version": 1, "currency": "USD", "spent": -1, "leases": {}}',
    "a lease of less than nothing": b'{"version": 1, "currency": "USD", "spent": 1, "leases": {"a": -1}}',
    "text": b'{"version": 1, "currency": "USD", "spent": "1", "leases": {}}',
    "of a newer version": b'{"version": 2, "currency": "USD", "spent": 1, "leases": {}}',
    "with more in it": b'{"version": 1, "currency": "USD", "spent": 1, "leases": {}, "refunds": 1}',
}


@each_budget
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
async def test_a_document_that_can_not_be_read_is_an_error_that_names_it_and_nothing_is_bought(
    tmp_path: Path, data: bytes, name: str
) -> None:
    store = LocalStore(str(tmp_path))
    await buy_all(store, account(1, name), 1)
    [key] = documents(store)
    (tmp_path / key).write_bytes(data)
    with pytest.raises(LedgerError, match=re.escape(key)) as caught:
        await buy_all(store, account(1, name), 1)
    assert "No money was spent." in str(caught.value)
    assert (tmp_path / key).read_bytes() == data


@each_budget
async def test_a_currency_that_changed_meanwhile_is_refused(store: Store, name: str) -> None:
    await buy_all(store, account(1, name), 1)
    with pytest.raises(BadRequestError, match="is in USD, but connection 'shop' now uses credits"):
        await buy_all(store, account(1, name, price_currency="credits"), 1)


async def test_connections_and_namespaces_have_budgets_of_their_own(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    other = parse_connection(
        conn_id="../other", password="key", extra={"gateway": "1min", "daily_budget": 1, "price_base": 1}
    )
    async with worker(store) as budgets:
        for connection, namespace in ((account(1), "a"), (account(1), "b"), (other, "a")):
            await buy(budgets, connection, item=replace(ITEM, namespace=namespace))
    folders = sorted(key.rpartition("/")[0] for key in documents(store))
    assert folders == ["budgets/a/..%2Fother", "budgets/a/shop", "budgets/b/shop"]


@each_budget
async def test_a_budget_that_was_raised_counts_at_once_and_one_that_was_lowered_too(store: Store, name: str) -> None:
    assert await buy_all(store, account("0.02", name), 5) == 2
    assert await buy_all(store, account("0.04", name), 5) == 2
    assert await buy_all(store, account("0.01", name), 5) == 0
    assert await buy_all(store, account(0, name), 5) == 0


# Midnight


class Shifted(LocalStore):
    """A disk whose clock is elsewhere."""

    shift = 0.0

    def now(self) -> float:
        return super().now() + self.shift


async def test_at_midnight_by_the_stores_clock_there_is_a_new_budget_and_what_was_reserved_before_stays_there(
    tmp_path: Path,
) -> None:
    store = Shifted(str(tmp_path))
    store.probe()
    before_midnight = 86400 - store.now() % 86400 - 30
    store.shift = before_midnight
    connection = account("0.02")
    async with worker(store, 5) as yesterday, yesterday.reserved(connection, ITEM, CENT) as reservation:
        store.shift = before_midnight + 60
        assert await buy_all(store, connection, 5) == 2
        await reservation.spend(paid())
    first, second = (documents(store)[key] for key in sorted(documents(store)))
    assert (first["spent"], second["spent"]) == (CENT, 2 * CENT)


async def test_a_worker_that_lives_over_midnight_takes_a_new_lease(tmp_path: Path) -> None:
    store = Shifted(str(tmp_path))
    store.probe()
    store.shift = 86400 - store.now() % 86400 - 0.05
    async with worker(store, 1000) as budgets:
        while len(documents(store)) < 2:  # by itself, a twentieth of a second later
            await buy(budgets, account(1000))
            await asyncio.sleep(0)
    first, second = (documents(store)[key] for key in sorted(documents(store)))
    assert first["spent"] > 0
    assert second["spent"] == CENT
    assert not first["leases"]
    assert not second["leases"]


async def test_the_day_is_the_one_of_the_buckets_clock(s3: str) -> None:
    client = boto3.client("s3")

    def dated(response_dict: dict[str, Any], **_: Any) -> None:
        response_dict["headers"]["Date"] = "Fri, 31 Dec 2049 23:59:59 GMT"

    client.meta.events.register("before-parse.s3", dated)
    store = open_store(f"{s3}/root", Openers(s3_client=lambda _: client))
    async with worker(store) as budgets:
        await buy(budgets, account(1))
    assert [key.rpartition("/")[2] for key in documents(store)] == ["2049-12-31.json"]


# A DAG run


@pytest.mark.parametrize("images", [2, 3, 5])
async def test_a_run_budget_of_a_few_images_buys_exactly_these_however_many_tasks_want_one_at_once(
    store: Store, images: int
) -> None:
    connection = account(Decimal(images) / 100, "run_budget")
    bought: list[int] = []
    together = threading.Barrier(8)

    def task(number: int) -> None:
        together.wait()
        bought.append(asyncio.run(buy_all(store, connection, 1 if number % 2 else 3)))  # mapped tasks, and batches

    threads = [threading.Thread(target=task, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sum(bought) == images
    assert document(store) == {"version": 1, "currency": "USD", "spent": images * CENT, "leases": {}}


async def test_a_killed_task_takes_one_image_of_a_small_run_budget_and_no_more(store: Store) -> None:
    connection = account("0.03", "run_budget")
    killed = Budgets(store, LOG)
    killed.expect(100)
    await buy(killed, connection)
    assert await buy_all(store, connection, 5) == 2
    assert list(document(store)["leases"].values()) == [CENT]
    assert await buy_all(store, account("0.04", "run_budget"), 5) == 1


async def test_each_run_dag_namespace_and_connection_has_a_run_budget_of_its_own(store: Store) -> None:
    shop = account("0.01", "run_budget")
    other = replace(shop, conn_id="runs")
    items = [
        ITEM,
        replace(ITEM, run_id="2026-11-29"),
        replace(ITEM, dag_id="a/b", run_id="../c"),
        replace(ITEM, namespace="second"),
    ]
    same_run = (
        replace(ITEM, task_id="another"),
        replace(ITEM, map_index=7, item="0123456789abcdef"),
        replace(ITEM, iteration=2),
    )
    async with worker(store) as budgets:
        for item in items:
            await buy(budgets, shop, item=item)
        await buy(budgets, other)
        for item in same_run:
            with pytest.raises(OverBudgetError):
                await buy(budgets, shop, item=item)
    assert sorted(documents(store)) == [
        "budgets/default/runs/runs/shop/manual__1.json",
        "budgets/default/shop/runs/a%2Fb/..%2Fc.json",
        "budgets/default/shop/runs/shop/2026-11-29.json",
        "budgets/default/shop/runs/shop/manual__1.json",
        "budgets/second/shop/runs/shop/manual__1.json",
    ]


async def test_the_budgets_of_a_day_and_of_a_run_hold_at_once_and_what_one_refuses_the_other_does_not_lose(
    store: Store,
) -> None:
    first, second = ITEM, replace(ITEM, run_id="manual__2")

    async def bought(item: Item, wanted: int = 10) -> int:
        connection = account("0.05", run_budget="0.03")
        async with worker(store, wanted) as budgets:
            ended = [buy(budgets, connection, item=item) for _ in range(wanted)]
            errors = [each for each in await asyncio.gather(*ended, return_exceptions=True) if each is not None]
        assert all(isinstance(each, OverBudgetError) for each in errors)
        return wanted - len(errors)

    assert await bought(first) == 3  # the run's budget ends first
    assert await bought(second) == 2  # the day's
    found = documents(store)
    spent = {key.rpartition("/")[2]: each["spent"] // CENT for key, each in found.items()}
    assert [spent.pop("manual__1.json"), spent.pop("manual__2.json"), *spent.values()] == [3, 2, 5]
    assert not any(each["leases"] for each in found.values())


async def test_a_task_of_a_run_whose_budget_is_spent_leases_nothing_of_the_day(store: Store) -> None:
    connection = account(100, run_budget="0.01")
    async with worker(store, 100) as budgets:
        await buy(budgets, connection)
        day = next(each for key, each in documents(store).items() if "/runs/" not in key)
        for _ in range(3):
            with pytest.raises(OverBudgetError):
                await buy(budgets, connection)
        assert day in documents(store).values()


async def test_midnight_is_no_new_budget_for_a_run(tmp_path: Path) -> None:
    store = Shifted(str(tmp_path))
    connection = account("0.02", "run_budget")
    assert await buy_all(store, connection, 1) == 1
    store.shift = 5 * 86400.0
    assert await buy_all(store, connection, 5) == 1


# What an image costs


def request(gateway: str = "apimaster", **values: Any) -> Any:
    return ImageRequest.build(operation="generate", prompt="a fox", **values).check(gateway)


@pytest.mark.parametrize(
    ("extra", "resolution", "price"),
    [
        ({}, "1K", 67_200),
        ({}, "4K", 134_400),
        ({"price_base": "0.05"}, "1K", 50_000),
        ({"price_base": "0.05"}, "4K", 100_000),
        ({"price_base": "123", "price_currency": "credits"}, "1K", 123_000_000),
    ],
)
def test_the_price_is_the_estimate_in_whole_millionths(extra: dict[str, Any], resolution: str, price: int) -> None:
    assert price_of(request(resolution=resolution), account(1, **extra)) == price


@pytest.mark.filterwarnings("ignore:.*catalogue")
@pytest.mark.parametrize(
    ("extra", "values"),
    [
        ({"price_currency": "credits"}, {"resolution": "1K"}),
        ({}, {"model": "gemini-9-image", "resolution": "1K"}),
        ({"price_base": 1}, {"model": "gemini-9-image", "resolution": "4K"}),
    ],
    ids=["listed in another currency", "of an unknown model", "of an unknown model's other size"],
)
def test_a_price_that_is_not_known_is_refused_where_there_is_a_cap(
    extra: dict[str, Any], values: dict[str, Any]
) -> None:
    for connection, max_cost in ((account(1, **extra), None), (account(None, **extra), Decimal(1))):
        with pytest.raises(BadRequestError, match="`prices`") as caught:
            price_of(request(**values), connection, max_cost)
        said, cap = str(caught.value), "daily_budget" if max_cost is None else "max_cost"
        model = values.get("model", "gemini-3.1-flash-image")
        shown = f'{{"prices": {{"{model}": {{"{values["resolution"]}": <price>}}}}}}'
        for part in (model, values["resolution"], cap, shown, "No money was spent.", repr(connection.conn_id)):
            assert part in said
        filled = json.loads(shown.replace("<price>", "0.5"))  # as it says, and nothing else is asked for then
        assert price_of(request(**values), account(1, **{**extra, **filled})) == 500_000
    assert price_of(request(**values), account(None, **extra)) == 0


# In Airflow


OPERATORS: dict[str, Callable[..., Any]] = {
    "generate": lambda **more: GeminiImageGenerateOperator(prompt="a fox", **more),
    "edit": lambda **more: GeminiImageEditOperator(prompt="a fox", image="/nowhere.png", **more),
    "submit": lambda **more: GeminiImageSubmitOperator(prompt="a fox", **more),
    "batch": lambda **more: GeminiImageBatchOperator(requests=["a fox"], **more),
}


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("value", [0, -1, "0", "much", "1,50", "NaN", "Infinity", "1e999999999", "1e-999999999", True])
def test_a_cap_that_is_no_positive_number_is_refused_when_the_dag_is_parsed(
    make: Callable[..., Any], value: Any
) -> None:
    with pytest.raises(BadRequestError, match="max_cost"):
        make(task_id="picture", max_cost=value)


@pytest.fixture
def capped(sandbox: Sandbox, connect: Callable[..., str]) -> Callable[..., str]:
    """Make a connection with these extras to the sandbox's APIMaster.ai, where a 1K image costs 0.0672."""

    def make(**extra: Any) -> str:
        return connect("capped", **sandbox.connection("apimaster", requests_per_minute=100_000, **extra))

    return make


def one(conn_id: str, cls: Any = GeminiImageGenerateOperator, **more: Any) -> DAG:
    with DAG("one", schedule=None, params={"most": 0.05}) as dag:
        cls(
            task_id="pictures", geminiimg_conn_id=conn_id, prompt="a fox", resolution="1K",
            **{"poll_interval": 0.05, **more},
        )  # fmt: skip
    return dag


def many(conn_id: str, count: int = 10, **more: Any) -> DAG:
    with DAG("many", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="pictures", requests=[f"fox {number}" for number in range(count)], resolution="1K",
            geminiimg_conn_id=conn_id, poll_interval=0.05, **more,
        )  # fmt: skip
    return dag


def why(run: Run) -> GeminiImageError:
    error = run.task("pictures").error
    cause = error.__cause__ if isinstance(error, AirflowFailException) else error
    assert isinstance(cause, GeminiImageError), run.log
    return cause


@pytest.mark.parametrize("cls", [GeminiImageGenerateOperator, GeminiImageSubmitOperator])
def test_an_image_over_its_cap_is_refused_before_anything_is_sent(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str, cls: Any
) -> None:
    run = airflow.run_dag(one(capped(), cls, max_cost="{{ params.most }}"))
    error = why(run)
    assert type(error) is OverBudgetError
    assert "would cost 0.0672 USD; max_cost is 0.05 USD. No money was spent." in str(error)
    assert not sandbox.calls()


def test_what_was_paid_for_lands_whatever_the_caps_are_by_then(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    sandbox.faults(route="download", status=404, times=2)
    run = airflow.run_dag(one(capped(), max_cost=0.0672))
    assert run.state == "failed"
    capped(daily_budget=0)
    run.retry("pictures", dag=one("capped", max_cost=0.01))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


def test_a_batch_over_its_cap_buys_nothing_and_names_the_sum(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    run = airflow.run_dag(many(capped(), max_cost=0.6))
    error = why(run)
    assert type(error) is OverBudgetError
    assert "Buying 10 images would cost 0.672 USD; max_cost is 0.6 USD. No money was spent." in str(error)
    assert not sandbox.calls()
    run.clear("pictures", dag=many("capped", max_cost="0.672"))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 10


def test_a_batchs_cap_counts_what_is_bought_now_and_what_is_under_way_is_collected(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    sandbox.faults(route="download", status=404, times=4)
    run = airflow.run_dag(many(capped(), 3, max_cost=0.2016, max_concurrency=1))
    assert lines(run) == ["failed", "failed", "landed"]
    run.clear("pictures", dag=many("capped", 5, max_cost=0.13))
    error = why(run)
    assert type(error) is OverBudgetError
    assert "Buying 2 images would cost 0.1344 USD; max_cost is 0.13 USD." in str(error)
    assert lines(run) == ["landed", "landed", "reused", "failed", "failed"]
    assert len(sandbox.ledger()) == 3
    run.clear("pictures", dag=many("capped", 5, max_cost=0.1344))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 5


def test_a_batch_stops_where_the_daily_budget_ends_and_goes_on_when_it_is_raised(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], s3_root: str
) -> None:
    dag = many(capped(daily_budget=0.3), max_concurrency=2)
    run = airflow.run_dag(dag)
    assert run.state == "failed"
    assert len(sandbox.ledger()) == 4
    counts = lines(run)
    assert counts.count("landed") == 4
    assert counts.count("failed") <= 2
    assert counts.count("failed") + counts.count("skipped") == 6
    assert "daily budget of connection 'capped' does not cover: of 0.3 USD" in str(why(run))
    store = open_store(s3_root, AIRFLOW_OPENERS)
    assert document(store) == {"version": 1, "currency": "USD", "spent": 4 * 67_200, "leases": {}}
    capped(daily_budget=10)
    run.clear("pictures")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 10
    assert document(store)["spent"] == 10 * 67_200


def lines(run: Run) -> list[str]:
    from airflow_provider_geminiimg import settings
    from airflow_provider_geminiimg.core.storage import Files, encode_segment, join_uri

    place = f"images/many/{encode_segment(run.run_id)}/pictures/-1/manifest.jsonl"
    data = Files(AIRFLOW_OPENERS).read(join_uri(settings.root(), place), max_bytes=64_000_000)
    return [json.loads(line)["status"] for line in data.splitlines()]


def test_one_price_that_is_not_known_refuses_a_whole_batch_under_a_budget(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    dag = many(capped(daily_budget=100, price_currency="credits"))
    error = why(airflow.run_dag(dag))
    assert type(error) is BadRequestError
    assert "`prices`" in str(error)
    assert not sandbox.calls()


@pytest.mark.filterwarnings("ignore:.*catalogue")
def test_all_prices_of_a_batch_that_are_not_known_are_in_one_message(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    rows = [
        {"prompt": "a", "model": "gemini-8-image", "resolution": "2K"},
        {"prompt": "b", "model": "gemini-9-image", "resolution": "4K"},
        {"prompt": "c", "model": "gemini-9-image"},
        {"prompt": "d"},
    ]
    conn_id = capped(daily_budget=100)
    with DAG("many", schedule=None) as dag:
        GeminiImageBatchOperator(task_id="pictures", geminiimg_conn_id=conn_id, requests=rows, max_cost=50)
    said = str(why(airflow.run_dag(dag)))
    assert (
        "price of an image of gemini-8-image at 2K, gemini-9-image at 4K, gemini-9-image at 1K in USD is not known"
        in said
    )
    assert "max_cost and daily_budget" in said
    assert '{"prices": {"gemini-8-image": {"2K": <price>}, "gemini-9-image": {"4K": <price>, "1K": <price>}}}' in said
    assert not sandbox.calls()


def test_a_base_price_does_not_make_other_models_cheap_under_a_cap(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    conn_id = capped(price_base="0.05")
    for number, (extra, bought) in enumerate((({}, 0), ({"model": "gemini-3.1-flash-image"}, 1))):
        with DAG(f"capped_{number}", schedule=None) as dag:
            GeminiImageGenerateOperator(
                task_id="picture",
                prompt=f"a fox {number}",
                geminiimg_conn_id=conn_id,
                max_cost="0.1",
                poll_interval=0.05,
                resolution="2K",
                **{"model": "gemini-3-pro-image", **extra},
            )
        run = airflow.run_dag(dag)
        assert (run.state == "success") == bool(bought), run.log
        assert len(sandbox.ledger()) == bought


def test_input_images_count_in_the_estimate_and_in_a_cap() -> None:
    edit = ImageRequest.build(operation="edit", prompt="x", image="s3://a", reference_images=["s3://b", "s3://c"])
    for gateway in ("1min", "apimaster"):
        connection = parse_connection(conn_id="shop", password="key", extra={"gateway": gateway, "daily_budget": 1})
        assert price_of(edit.check(gateway), connection) == 67_200 + 3 * 600
    own = parse_connection(conn_id="shop", password="k", extra={"gateway": "1min", "daily_budget": 1, "price_base": 1})
    assert price_of(edit.check("1min"), own) == 1_000_000


def test_images_of_single_tasks_share_the_daily_budget_and_the_refused_ones_cost_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    conn_id = capped(daily_budget="0.14")
    with DAG("mapped", schedule=None) as dag:
        GeminiImageGenerateOperator.partial(
            task_id="pictures", geminiimg_conn_id=conn_id, resolution="1K", poll_interval=0.05
        ).expand(prompt=["a", "b", "c", "d"])
    airflow.run_dag(dag)
    assert len(sandbox.ledger()) == 2


# The budget of a DAG run, in Airflow


def test_all_tasks_of_a_run_share_its_budget_with_their_mapped_tasks_and_batches(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    more: dict[str, Any] = {"geminiimg_conn_id": capped(run_budget="0.48"), "resolution": "1K", "poll_interval": 0.05}
    with DAG("whole", schedule=None) as dag:  # an image costs 0.0672
        first = GeminiImageGenerateOperator(task_id="first", prompt="a fox", **more)
        mapped = GeminiImageGenerateOperator.partial(task_id="mapped", **more).expand(prompt=["a", "b", "c"])
        batch = GeminiImageBatchOperator(task_id="batch", requests=list("defgh"), min_success=0, **more)
        last = GeminiImageSubmitOperator(task_id="pictures", prompt="too late", **more)
        first >> mapped >> batch >> last
    run = airflow.run_dag(dag)
    assert len(sandbox.ledger()) == 7
    assert run.task("batch").value["counts"]["landed"] == 3
    said = str(why(run))
    assert "which the run budget of connection 'capped' does not cover: of 0.48 USD, 0.4704 are spent and 0 are" in said
    assert "No money was spent. Raise run_budget on the connection, then clear the task." in said
    assert airflow.run_dag(one("capped"), run_id="another").state == "success"  # a run of its own


def test_retries_and_clears_of_a_run_continue_its_budget_and_go_on_when_it_is_raised(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], s3_root: str
) -> None:
    def dag() -> DAG:
        return one(conn_id, on_clear="regenerate")

    conn_id = capped(run_budget="0.1344")
    run = airflow.run_dag(dag())
    run.clear("pictures")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 2
    for again in (run.clear, run.retry):
        again("pictures")
        error = why(run)
        assert isinstance(error, OverBudgetError)
        assert error.billed is Billed.NO
        assert "of 0.1344 USD, 0.1344 are spent and 0 are leased" in str(error)
    assert len(sandbox.ledger()) == 2
    capped(run_budget="0.2016")
    run.clear("pictures")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 3
    assert document(open_store(s3_root, AIRFLOW_OPENERS))["spent"] == 3 * 67_200


def test_a_price_that_is_not_known_is_refused_under_a_run_budget_by_a_task_and_by_a_batch(
    airflow: AirflowHarness, sandbox: Sandbox, capped: Callable[..., str], local_root: str
) -> None:
    conn_id = capped(run_budget=100, price_currency="credits")
    for dag in (one(conn_id), many(conn_id)):
        error = why(airflow.run_dag(dag))
        assert type(error) is BadRequestError
        assert "a cap is set (run_budget)" in str(error)
    assert not sandbox.calls()
