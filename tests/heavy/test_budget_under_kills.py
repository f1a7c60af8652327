"""Two batches in two processes under one budget, of a day or of their DAG run, and kills: it is never passed, and most
of it can be spent.

The sandbox says what was charged. A process is killed when the sandbox has counted so many requests, drawn by a seed.
What it left under way counts as unknown at once and is bought again, so each kill costs the budget the most that it
can: what was leased and not yet sent, which is at most the price of the two images that are sent at once.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import pytest

from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness.batch_worker import Work, work

RUNS = 20
KILLS = 4
IMAGES = 100  # that the budget pays for; each of the two batches wants three quarters of them
PRICE = Decimal("0.0672")
BUDGET = IMAGES * PRICE
BUDGETS = ("daily_budget", "run_budget")
LONG_AGO = 3600.0  # seconds that a dead process's intents are made older, so that nobody waits for their answers
CALLS_EACH = 3  # of one image: submit, poll, download
PATIENCE = 300.0

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.harness.batch_worker"])


@dataclass
class Worker:
    """One of the two batches, and the process that makes it."""

    job: Work
    root: Path
    process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """Another attempt."""
        self.process = PROCESSES.Process(target=work, args=(self.job,), daemon=True)
        self.process.start()
        self.job = replace(self.job, generation=self.job.generation + 1)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.join()
        then = time.time() - LONG_AGO
        for path in (self.root / "ledger/default/kills/run" / self.job.task_id).rglob("*.json"):
            os.utime(path, (then, then))

    def end(self) -> None:
        assert self.process is not None
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0


@dataclass
class Outcome:
    """One run."""

    seed: int
    killed_after: list[int] = field(default_factory=list)
    charged: Decimal = Decimal()
    submissions: int = 0

    def line(self) -> str:
        moments = " ".join(map(str, self.killed_after))
        return (
            f"{self.seed:4}  {moments:20}  {self.submissions:9}  {self.charged:7}  {BUDGET}  "
            f"{self.charged / BUDGET:6.1%}"
        )


HEAD = "seed  killed after calls    submitted  charged   budget   spent"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(latency=0.02) as box:
        yield box


def until(sandbox: Sandbox, calls: int, workers: Sequence[Worker]) -> None:
    """Wait until the sandbox has had so many calls, or nobody makes any."""
    while len(sandbox.calls(count=calls, timeout=0.5)) < calls and any(worker.alive for worker in workers):
        pass


def charged(sandbox: Sandbox) -> Decimal:
    return sum((Decimal(str(entry["price"])) for entry in sandbox.ledger() if entry["charged"]), Decimal())


def run(seed: int, sandbox: Sandbox, root: Path) -> Outcome:
    """Two batches that want more than there is, `KILLS` kills, and retries until nothing more can be bought."""
    sandbox.reset()
    chance = random.Random(seed)
    connection = {
        "conn_id": "shared",
        "password": "key",
        "host": sandbox.base_url("apimaster"),
        "extra": {
            "gateway": "apimaster",
            "requests_per_minute": 100_000,
            "max_concurrency": 2,
            BUDGETS[seed % len(BUDGETS)]: str(BUDGET),
        },
    }
    workers = [
        Worker(Work(connection, root.as_uri(), name, tuple(f"{name} {at}" for at in range(IMAGES * 3 // 4))), root)
        for name in ("day", "night")
    ]
    for worker in workers:
        worker.start()
    outcome = Outcome(seed)
    for moment in sorted(chance.sample(range(4, IMAGES * CALLS_EACH * 9 // 10), KILLS)):
        victim = chance.choice(workers)
        until(sandbox, moment, workers)
        if victim.alive:
            victim.kill()
            outcome.killed_after.append(moment)
            victim.start()
        assert charged(sandbox) <= BUDGET
    for worker in workers:
        worker.end()
    before = -1
    while before < len(sandbox.ledger()):  # what the one gave back when it ended, the other one can spend
        before = len(sandbox.ledger())
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.end()
    outcome.submissions, outcome.charged = len(sandbox.ledger()), charged(sandbox)
    return outcome


def test_two_batches_that_are_killed_never_pass_their_budget_and_can_spend_nine_tenths_of_it(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [run(seed, sandbox, tmp_path / str(seed)) for seed in range(RUNS)]
    with capsys.disabled():
        print("", HEAD, *(outcome.line() for outcome in outcomes), sep="\n")
    assert all(outcome.charged <= BUDGET for outcome in outcomes)
    assert all(outcome.charged >= BUDGET * 9 / 10 for outcome in outcomes)
    assert sum(len(outcome.killed_after) for outcome in outcomes) >= RUNS * KILLS * 3 // 4
