"""What becomes of the rows that were run: in the terminal, in the committed file, in the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import failure_matrix
from scripts.failure_matrix import lines, main, read_committed, table

COUNTS = dict.fromkeys(failure_matrix.COUNTS, 0)


def row(event: str, gateway: str = "1min", mode: str = "waiting", group: str = "gateway", **counts: int) -> Any:
    more = {"moment": "on a poll", "balance": {**COUNTS, **counts}, "state": "success", "then": "It lands."}
    return {"group": group, "event": event, "gateway": gateway, "mode": mode, **more}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(failure_matrix, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(failure_matrix, "COMMITTED", tmp_path / "committed.json")
    return tmp_path


def ran(folder: Path, *rows: Any) -> None:
    """Leave what a run of these rows leaves."""
    for number, each in enumerate(rows):
        path = folder / "results" / each["group"] / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(each))


def events() -> list[str]:
    return [each["event"] for each in read_committed()]


def test_rows_that_differ_in_gateway_and_mode_alone_are_one_line() -> None:
    alike = [row("502", gateway, mode) for gateway in ("apimaster", "1min") for mode in ("waiting", "deferred")]
    [first, other, last] = lines([*alike, row("503", "apimaster"), row("503", unknown=1)])
    assert (first.gateways, first.modes, first.where) == (("1min", "apimaster"), ("waiting", "deferred"), "all")
    assert {other.where, last.where} == {"1min, waiting", "apimaster, waiting"}
    assert len(table(alike).splitlines()) == 3  # head, line, sum


def test_what_is_written_is_what_the_check_wants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(folder, row("503"), row("502"))
    assert main(["--check"]) == 1
    assert '+{"group": "gateway", "event": "502"' in capsys.readouterr().out
    assert main(["--write"]) == 0
    assert events() == ["502", "503"]
    assert main(["--check"]) == 0
    ran(folder, row("503", unknown=1), row("502"))
    assert main(["--check"]) == 1


def test_a_row_that_was_not_run_stays_unless_its_group_was_run_whole(folder: Path) -> None:
    ran(folder, row("502"), row("killed", group="processes"))
    main(["--write"])
    ran(folder, row("503"), row("killed", group="processes"))
    assert main(["--check", "--whole", "processes"]) == 1
    main(["--write"])
    assert events() == ["killed", "502", "503"]
    assert main(["--check"]) == 0
    assert main(["--check", "--whole", "gateway"]) == 1
    main(["--write", "--whole", "gateway"])
    assert events() == ["killed", "503"]


@pytest.mark.parametrize(("airflow", "left"), [((3, 3), ["502", "killed"]), ((3, 4), ["502"])])
def test_a_row_that_this_airflow_cannot_run_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, airflow: tuple[int, int], left: list[str]
) -> None:
    ran(folder, row("502"), row("killed", mode="loop"))
    main(["--write"])
    (folder / "results" / "gateway" / "1.json").unlink()
    monkeypatch.setattr(failure_matrix, "AIRFLOW", airflow)
    main(["--write", "--whole", "gateway"])
    assert events() == left


def test_nothing_that_was_run_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 1
    assert "No row has been run" in capsys.readouterr().err
