"""What `spend` adds up is what the gateway was paid, with what may have been paid beside it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_geminiimg.__main__ import main
from airflow_provider_geminiimg.core.ledger.layout import complete_key
from airflow_provider_geminiimg.core.reconcile import forget, purge, reindex, resolve
from airflow_provider_geminiimg.core.reconcile.run_totals import MAX_READ
from airflow_provider_geminiimg.core.request import prompt_sha256
from airflow_provider_geminiimg.runtime import spend_command
from tests.harness.attempts import Attempts
from tests.harness.orphaned_records import SCOPE, UNPAID, OrphanedRecords, with_an_extra_job
from tests.harness.records import ITEM, landed, make_record, submitted

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

COST = {"amount": 0.1, "currency": "USD", "basis": "gateway"}
Spend = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def spend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Spend:
    """The command, which prints no warning."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # the command sets it, and it must not stay

    def run(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["spend", "--json", *words]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    return run


@pytest.fixture
def left(root: str, sandbox: Sandbox, apimaster: str) -> OrphanedRecords:
    left = OrphanedRecords(sandbox, apimaster)
    counted(left)
    return left


def counted(left: OrphanedRecords) -> None:
    """As in a new root, whose records are all counted."""
    left.store.create("root.json", b"{}")
    asyncio.run(reindex(left.ledger, SCOPE))


def charged(sandbox: Sandbox) -> float:
    return round(sum(float(job["price"]) for job in sandbox.ledger() if job["charged"]), 6)


def amount(row: dict[str, Any]) -> float:
    return round(sum(float(cost["amount"]) for cost in row["costs"]), 6)


def test_the_total_is_what_the_gateway_was_paid(left: OrphanedRecords, sandbox: Sandbox, spend: Spend) -> None:
    async def attempts() -> None:
        for task_id in "abc":
            await left.attempt(task_id)
        await left.submitted("d")
        sandbox.faults(route="apimaster.submit", status=401)
        await left.failed("e")

    asyncio.run(attempts())
    [total] = spend()
    assert amount(total) == charged(sandbox) > 0
    assert (total["paid"], total["images"], total["unknown"], total["complete"]) == (4, 3, 0, True)
    assert all(cost["basis"] in ("gateway", "google_list") for cost in total["costs"])


def test_an_unknown_outcome_is_counted_beside_the_total_until_somebody_knows(
    left: OrphanedRecords, sandbox: Sandbox, spend: Spend
) -> None:
    asyncio.run(left.attempt("a"))
    record = asyncio.run(left.unknown("b", charge="before"))
    [total] = spend()
    assert (total["paid"], total["unknown"], amount(total)) == (1, 1, charged(sandbox))
    resolve(left.ledger, record.key, UNPAID)
    [total] = spend()
    assert (total["paid"], total["unknown"], amount(total)) == (1, 0, charged(sandbox))
    assert [row["task"] for row in spend("--by", "task")] == ["a"]


def test_a_job_that_another_attempt_paid_for_is_counted_before_and_after_its_collect(
    left: OrphanedRecords, sandbox: Sandbox, spend: Spend
) -> None:
    asyncio.run(with_an_extra_job(left))
    for _ in range(2):
        [total] = spend()
        assert (total["paid"], amount(total)) == (2, charged(sandbox))
        asyncio.run(left.collect())


def test_what_was_removed_was_paid_all_the_same(left: OrphanedRecords, sandbox: Sandbox, spend: Spend) -> None:
    async def purged() -> None:
        async for _ in purge(left.ledger, SCOPE, days=0):
            pass

    forget(left.ledger, asyncio.run(left.attempt("a")).key)
    asyncio.run(left.attempt("b"))
    before = spend("--by", "task")
    asyncio.run(purged())
    assert left.records() == []
    assert spend("--by", "task") == before
    assert [row["task"] for row in before] == ["a", "b"]
    assert amount(spend()[0]) == charged(sandbox)


def test_the_total_of_a_run_is_what_the_gateway_was_paid_after_a_killed_attempt(
    sandbox: Sandbox, apimaster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spend: Spend
) -> None:
    with Attempts(tmp_path) as attempts:
        monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", attempts.root.as_uri())
        counted(OrphanedRecords(sandbox, apimaster))
        attempts.start("killed", [f"animal {number}" for number in range(20)], geminiimg_conn_id=apimaster)
        sandbox.faults(
            {"route": "apimaster.submit", "times": 6},
            {"route": "apimaster.submit", "hold": True, "charge": "after", "times": 4},
        )
        assert len(sandbox.held(4, timeout=60)) == 4, attempts.said()
        attempts.kill()
        sandbox.release()
        attempts.deadlines_pass()
        [total] = spend("--dag", "killed", "--run", "run")
        assert total["paid"] <= len(sandbox.ledger()) <= total["paid"] + total["unknown"]
        attempts.again()
        attempts.ended()
        [total] = spend("--dag", "killed", "--run", "run")
        assert total["paid"] <= len(sandbox.ledger()) <= total["paid"] + total["unknown"] == 20
        jobs = {prompt_sha256(job["prompt"]): ["--job", job["job_id"]] for job in sandbox.ledger()}
        for record in (found.record for found in attempts.records() if found.record.state == "intent"):
            assert main(["jobs", "resolve", record.key, *jobs.get(record.prompt_sha256, ["--unpaid"])]) == 0
        [total] = spend("--dag", "killed", "--run", "run")
        assert (total["paid"], total["unknown"], amount(total)) == (len(sandbox.ledger()), 0, charged(sandbox))


def put_some(left: OrphanedRecords) -> None:
    """Records of two DAGs, three runs, two models and two days."""
    runs: list[dict[str, Any]] = [
        {"submitted_at": 1790000000.0},
        {"submitted_at": 1790000000.0, "model": "other"},
        {"submitted_at": 1780000000.0, "cost": {**COST, "basis": "google_list", "estimate": True}},
    ]
    for number, values in enumerate(runs):
        left.ledger.create(landed(replace(ITEM, run_id=f"run{number}"), **{"cost": COST, **values}))
    left.ledger.create(submitted(replace(ITEM, dag_id="z", task_id="t"), conn_id="mine", submitted_at=1790000000.0))
    left.ledger.create(
        make_record(replace(ITEM, dag_id="z", task_id="t"), 2, answer_within=0.0, claimed_at=1790000000.0)
    )
    counted(left)


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        (["dag"], {"campaign": (3, 0), "z": (1, 1)}),
        (["task"], {"hero": (3, 0), "t": (1, 1)}),
        (["connection"], {"mine": (1, 0), "onemin": (3, 1)}),
        (["month"], {"2026-05": (1, 0), "2026-09": (3, 1)}),
        (["day"], {"2026-05-28": (1, 0), "2026-09-21": (3, 1)}),
        (["dag", "month"], {"campaign 2026-05": (1, 0), "campaign 2026-09": (2, 0), "z 2026-09": (1, 1)}),
    ],
    ids=" ".join,
)
def test_spend_is_split_by_what_is_asked_for(
    left: OrphanedRecords, spend: Spend, by: list[str], rows: dict[str, tuple[int, int]]
) -> None:
    put_some(left)
    found = spend(*(word for each in by for word in ("--by", each)))
    assert {" ".join(row[each] for each in by): (row["paid"], row["unknown"]) for row in found} == rows
    assert [row["paid"] for row in spend("--by", "model")] == [3, 1]
    assert [row["paid"] for row in spend("--run", "run1")] == [1]
    assert [row["paid"] for row in spend("--task", "t")] == [1]
    assert [row["paid"] for row in spend("--dag", "nothing")] == [0]


def test_each_amount_is_printed_with_its_basis_and_what_has_no_price_is_counted_beside_it(
    left: OrphanedRecords, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    put_some(left)
    assert main(["spend", "--by", "dag"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "] loc=" not in line]
    assert lines == [
        "campaign  3 paid, 3 images, 0.2 USD (gateway), 0.1 USD (google_list, estimate)",
        "z  1 paid, 0 images, 1 paid without a known price, 1 perhaps paid",
    ]


def test_what_is_not_counted_is_said(
    left: OrphanedRecords, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setattr("airflow_provider_geminiimg.core.reconcile.run_totals.MAX_READ", 1)
    assert MAX_READ > 1
    put_some(left)
    damaged = landed(replace(ITEM, task_id="odd"))
    left.ledger.open_index.add(damaged)
    left.store.create(damaged.key, b"{")
    left.store.delete(complete_key("default"))
    assert main(["spend", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [line.split(". ")[0].split(",")[0] for line in err.splitlines()] == [
        "warning: An earlier version wrote a part of this ledger",
        "warning: 1 records can't be read",
        "warning: A run has more open records than are read at once",
    ]
    [row] = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert row["complete"] is False


def test_the_values_to_choose_from_are_all_there_are() -> None:
    from airflow_provider_geminiimg.core.reconcile.spend import BY

    assert tuple(BY) == spend_command._BY


@pytest.mark.skipif(airflow_version.startswith("3.1."), reason="Airflow 3.1 asks no provider for commands")
def test_airflow_has_the_command_too(left: OrphanedRecords) -> None:
    left.ledger.create(landed(cost=COST))
    counted(left)
    command = [sys.executable, "-m", "airflow", "geminiimg", "spend", "--by", "model", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [row] = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert (row["model"], row["costs"][0]["amount"], row["costs"][0]["basis"]) == (landed().model, 0.1, "gateway")
