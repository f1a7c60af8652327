"""A batch in trouble, over HTTP: content that is refused, an account that runs dry, a gateway that is busy or away."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.harness.attempts import Attempts

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

ITEMS = int(os.environ.get("ITEMS", "1000")) // 5
PROMPTS = [f"image {number:04d}" for number in range(ITEMS)]
AT_ONCE = 8  # requests that a connection sends at once, where it says nothing else
ACCOUNTS = {"onemin": ("credits", 4500), "apimaster": ("balance", 0.0672)}  # its setting, and an image's price in it
OUTAGE = 60.0  # seconds


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    with Attempts(tmp_path_factory.mktemp("trouble")) as them:
        yield them


class Door:
    """Stands in front of a gateway, and refuses connections while it is shut. Those that are open stay.

    :param url: what is behind it.
    """

    def __init__(self, url: str) -> None:
        self._behind = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self._behind.path}"

    def open(self) -> None:
        self._server = self._do(asyncio.start_server(self._pass, "127.0.0.1", self._port))
        self._port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        assert self._server is not None
        self._loop.call_soon_threadsafe(self._server.close)

    def close(self) -> None:
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _do(self, coroutine: Coroutine[Any, Any, asyncio.Server]) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._behind.hostname, self._behind.port)
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
def door(sandbox: Sandbox) -> Iterator[Door]:
    door = Door(sandbox.apimaster_url)
    yield door
    door.close()


def assert_paid_once(sandbox: Sandbox, wanted: int) -> None:
    """So many different images were paid for, and none of them twice."""
    paid = Counter(entry["prompt"] for entry in sandbox.ledger())
    assert set(paid.values()) <= {1}
    assert len(paid) == wanted


def test_every_seventh_image_is_refused_and_the_others_land(
    attempts: Attempts, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    route, refused = f"{geminiimg_conn_id}.submit", ITEMS // 7
    sandbox.faults(*[{"route": route, "times": 6}, {"route": route, "outcome": "refused"}] * refused)
    attempts.start(f"refused_{geminiimg_conn_id}", PROMPTS, geminiimg_conn_id=geminiimg_conn_id)
    result = attempts.ended()
    assert attempts.counts() == {"refused": refused, "landed": ITEMS - refused}
    assert f"{ITEMS - refused} of {ITEMS} images landed" in result["error"]
    assert not result["again"], "a retry would be refused again"
    assert_paid_once(sandbox, ITEMS)


def test_an_account_that_runs_dry_half_way_lands_half_and_a_clear_makes_the_rest(
    attempts: Attempts, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    setting, price = ACCOUNTS[geminiimg_conn_id]
    half = ITEMS // 2
    sandbox.settings(**{setting: round(half * price, 4)})
    attempts.start(f"dry_{geminiimg_conn_id}", PROMPTS, geminiimg_conn_id=geminiimg_conn_id)
    result = attempts.ended()
    counts = attempts.counts()
    assert counts["landed"] == half
    assert 1 <= counts["failed"] <= AT_ONCE
    assert counts["failed"] + counts["skipped"] == ITEMS - half
    assert result["error"]
    assert_paid_once(sandbox, half)
    sandbox.settings(**{setting: None})
    attempts.again(cleared=True)
    assert attempts.ended()["value"]["counts"]["landed"] == ITEMS - half
    assert attempts.counts() == {"reused": half, "landed": ITEMS - half}
    assert_paid_once(sandbox, ITEMS)


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {}], ids=["told how long", "not told"])
def test_a_storm_of_429_costs_time_alone(
    attempts: Attempts, sandbox: Sandbox, geminiimg_conn_id: str, headers: dict[str, str]
) -> None:
    route = f"{geminiimg_conn_id}.submit"
    sandbox.faults({"route": route, "times": 10}, {"route": route, "status": 429, "times": 30, "headers": headers})
    attempts.start(f"storm_{geminiimg_conn_id}_{len(headers)}", PROMPTS, geminiimg_conn_id=geminiimg_conn_id)
    assert attempts.ended()["value"]["counts"]["landed"] == ITEMS, attempts.said()
    assert [call["status"] for call in sandbox.calls(route)].count(429) == 30
    assert_paid_once(sandbox, ITEMS)


def test_a_gateway_that_is_away_for_a_minute_costs_time_alone_or_a_retry(
    attempts: Attempts, sandbox: Sandbox, connect: Callable[..., str], door: Door
) -> None:
    account = sandbox.connection("apimaster", requests_per_minute=100_000)
    conn_id = connect("behind_a_door", **{**account, "host": door.url})
    sandbox.settings(latency=1.0)
    attempts.start("away", PROMPTS, geminiimg_conn_id=conn_id)
    assert len(sandbox.calls("apimaster.submit", count=ITEMS // 10)) >= ITEMS // 10
    door.shut()
    threading.Event().wait(OUTAGE)
    door.open()
    result = attempts.ended()
    counts = attempts.counts()
    lost = counts.pop("failed", 0)  # those that were being waited for: contact was lost, and the jobs were left alone
    assert counts == {"landed": ITEMS - lost}
    assert_paid_once(sandbox, ITEMS)
    if lost:
        assert result["again"], "a retry collects them"
        attempts.again()
        assert attempts.ended()["value"]["counts"]["landed"] == lost
        assert attempts.counts() == {"reused": ITEMS - lost, "landed": lost}
        assert_paid_once(sandbox, ITEMS)


def test_a_gateway_that_says_it_is_away_fails_those_that_it_was_asked_for_and_a_retry_makes_them(
    attempts: Attempts, sandbox: Sandbox, apimaster: str
) -> None:
    away = ITEMS // 2
    sandbox.faults(
        {"route": "apimaster.submit", "times": 10}, {"route": "apimaster.submit", "status": 503, "times": away}
    )
    attempts.start("says_so", PROMPTS, geminiimg_conn_id=apimaster)
    result = attempts.ended()
    assert attempts.counts() == {"landed": ITEMS - away, "failed": away}
    assert result["again"]
    assert_paid_once(sandbox, ITEMS - away)
    attempts.again()
    assert attempts.ended()["value"]["counts"]["landed"] == away
    assert_paid_once(sandbox, ITEMS)
