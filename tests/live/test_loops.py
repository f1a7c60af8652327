"""Task Loops in a real Airflow (3.4): every iteration pays once, and keeps its own images after retries and Clears."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness import AIRFLOW, REPOSITORY
from tests.harness.live_airflow import LiveAirflow
from tests.harness.live_rows import LOOPS, SETTINGS
from tests.harness.loops import DAGS, EVENTS, HEAD, ITERATIONS, KINDS, Cell, LoopRuns
from tests.harness.postgres import Postgres

pytestmark = pytest.mark.skipif(AIRFLOW < LOOPS, reason="this Airflow has no loops; 3.4 has")

AT_ONCE = 3  # kinds
CORE = ("plain", "retry")
TABLE = REPOSITORY / "build" / "loops.txt"
Cells = dict[tuple[str, str], Future[Cell]]


def cells() -> list[Any]:
    """Every kind with every event."""
    return [
        pytest.param(kind, event, id=f"{kind}-{event}", marks=[pytest.mark.core] if (kind, event) == CORE else [])
        for kind in KINDS
        for event in EVENTS
    ]


def chosen(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """The events of each kind that were asked for; those that clear need the new run first."""
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        if item.path == request.path and isinstance(item, pytest.Function):
            wanted.setdefault(item.callspec.params["kind"], []).append(item.callspec.params["event"])
    for events in wanted.values():
        if "fresh" not in events and any(EVENTS[event].clears is not None for event in events):
            events.insert(0, "fresh")
    return wanted


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    """The chosen events, under way in one Airflow: those of a kind one after another, several kinds side by side."""
    home = tmp_path_factory.mktemp("loops")
    wanted = chosen(request)
    with ExitStack() as stack:
        sandboxes = {kind: stack.enter_context(Sandbox(latency=0.5)) for kind in wanted}
        postgres = stack.enter_context(Postgres())
        env = {
            **SETTINGS,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url,
            "AIRFLOW__GEMINIIMG__ROOT": (home / "root").as_uri(),
            "PYTHONPATH": str(REPOSITORY),
        }
        for kind, sandbox in sandboxes.items():
            connection = sandbox.connection_json(KINDS[kind].gateway, requests_per_minute=6000)
            env |= {f"AIRFLOW_CONN_{kind.upper()}": connection, f"SANDBOX_{kind.upper()}": sandbox.url}
        (home / "dags").mkdir()
        (home / "dags" / "loops.py").write_text(textwrap.dedent(DAGS))
        airflow = stack.enter_context(LiveAirflow(home / "airflow", home / "dags", env))
        found: Cells = {(kind, event): Future() for kind, events in wanted.items() for event in events}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for kind, sandbox in sandboxes.items():
                pool.submit(perform, LoopRuns(airflow, kind, sandbox), wanted[kind], found)
            yield found
    save(found)


def perform(runs: LoopRuns, events: list[str], found: Cells) -> None:
    """Let the events of a kind happen; after one that failed, the next ones do not."""
    for event in events:
        future = found[runs.dag_id, event]
        try:
            future.set_result(runs.perform(event))
        except BaseException as error:
            for left in events[events.index(event) :]:
                found[runs.dag_id, left].set_exception(error)
            return


def save(found: Cells) -> None:
    """Keep the table of results."""
    lines = [future.result().line() for future in found.values() if future.exception() is None]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join((HEAD, *lines)) + "\n")


@pytest.mark.parametrize(("kind", "event"), cells())
def test_every_iteration_keeps_its_own_images_and_pays_once(seen: Cells, kind: str, event: str) -> None:
    cell = seen[kind, event].result()
    print(cell.line())
    images = ITERATIONS * KINDS[kind].images
    numbers = [number for found in cell.images.values() for number in found]
    clears = EVENTS[event].clears is not None
    assert cell.paid == (0 if clears else images)
    assert cell.landed == len(set(numbers)) == len(numbers) == images
    assert cell.unchanged is (True if clears else None)
    assert {index.partition(".")[0] for index in cell.images} == {str(each) for each in range(ITERATIONS)}
    if event != "fresh":  # a busy scheduler may try a task of a new run again, too
        assert cell.again >= EVENTS[event].again
    if clears:
        assert cell.again == EVENTS[event].again
