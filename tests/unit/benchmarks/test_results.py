"""What the benchmarks find, as rows, and what the docs' file holds. The figures themselves are `make bench`'s."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import BENCHMARKS, detection, results
from benchmarks.results import Row, merged, read, table, write
from tests.harness import REPOSITORY


def row(benchmark: str = "poll", ours: float | None = 1.0, **values: object) -> Row:
    return Row(benchmark, "CPU of a poll", "ms", ours, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (row(target=1.0), True),
        (row(target=0.9), False),
        (row(target=0.5, peer="httpx", theirs=2.0), True),
        (row(target=0.4, peer="httpx", theirs=2.0), False),
        (row(target=0.5, peer="httpx", theirs=2.0, at_least=True), True),
        (row(target=0.6, peer="httpx", theirs=2.0, at_least=True), False),
        (row(peer="httpx", theirs=2.0), None),
    ],
)
def test_a_reach_is_held_against_the_ratio_where_there_is_a_peer(found: Row, met: bool | None) -> None:
    assert found.met is met


def test_the_table_says_what_was_to_be_reached_and_whether_it_was() -> None:
    [_, line] = table([row(target=0.4, peer="httpx", theirs=2.0)]).splitlines()
    assert line.split("  ")[-1] == "no"
    assert "0.5 ×" in line
    assert "≤ 0.4 ×" in line


def test_a_benchmark_that_was_not_run_keeps_its_rows_and_one_that_is_gone_does_not(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write([row("poll"), row("parse"), row("gone")], {"processors": 2}, path)
    machine, before = read(path)
    assert machine == {"processors": 2}
    assert merged(before, [row("parse", 5.0)], ["poll", "parse"]) == [row("poll"), row("parse", 5.0)]


def test_the_committed_results_are_of_benchmarks_that_there_are() -> None:
    assert {found.benchmark for found in results.read()[1]} <= set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_has_a_module_and_a_place_in_the_docs(name: str) -> None:
    assert find_spec(f"benchmarks.{name}") is not None
    assert f"bench_{name} }}}}" in (REPOSITORY / "docs" / "benchmarks.md").read_text()


def test_the_catalogues_schedule_asks_less_often_than_every_four_seconds_and_knows_no_later() -> None:
    """The reaches of `make bench`, whose other figures need a machine of their own."""
    rows = [found for found in detection.run(quick=True) if "sigma 0.3" in found.figure]
    assert [found.met for found in rows] == [True, True]
