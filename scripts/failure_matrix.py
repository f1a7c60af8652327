"""``python -m scripts.failure_matrix``: collects the results of the failure matrix, for the terminal and for the docs.

Each row that runs leaves a file in ``build/matrix``.

Invariants: the committed file, which the docs are generated from, contains only test results. Writing it twice gives
the same file.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "matrix"
COMMITTED = ROOT / "docs" / "failure-matrix.json"
GROUPS = ("processes", "airflow", "gateway", "storage", "time", "shards")
GATEWAYS, MODES = ("1min", "apimaster"), ("waiting", "deferred", "batch", "collect", "sensor", "loop")
NEEDS = {"loop": (3, 4)}  # the first Airflow that can run a mode
AIRFLOW = tuple(int(part) for part in metadata.version("apache-airflow").split(".")[:2])
COUNTS = ("submitted", "paid", "landed", "unknown", "no_image", "lost", "paid_twice")
HEAD = ("row", "gateway", "mode", *(name.replace("_", " ") for name in COUNTS), "state")

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """Rows that came out alike, on several gateways or in several modes.

    :param row: the first of them.
    :param gateways: theirs.
    :param modes: theirs.
    """

    row: Row
    gateways: tuple[str, ...]
    modes: tuple[str, ...]

    @property
    def where(self) -> str:
        """The gateways and modes, as far as they are not all of the usual ones."""
        gateways = "" if self.gateways == GATEWAYS else " ".join(self.gateways)
        usual = {MODES[:2]: "", MODES[:3]: "in batches too"}
        modes = usual.get(self.modes, " ".join(self.modes))
        return ", ".join(filter(None, (gateways, modes))) or "all"

    @property
    def counts(self) -> list[str]:
        return [str(self.row["balance"][name]) for name in COUNTS]


def read_results(since: float = 0.0) -> list[Row]:
    """The rows of ``build/matrix``, sorted.

    :param since: only those written later than this, in Unix seconds.
    """
    return ordered(json.loads(path.read_text()) for path in RESULTS.glob("*/*.json") if path.stat().st_mtime >= since)


def read_committed() -> list[Row]:
    """The rows that the docs are made from."""
    rows: list[Row] = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else []
    return rows


def ordered(rows: Iterable[Row]) -> list[Row]:
    """`rows` by group, event, moment, gateway and mode."""
    return sorted(rows, key=lambda row: (GROUPS.index(row["group"]), _name(row)))


def merged(committed: Iterable[Row], results: Iterable[Row], whole: Sequence[str]) -> list[Row]:
    """The committed rows, with the results in place of those of the same name.

    :param whole: groups that have been run whole: a committed row of theirs that has no result is no row any more,
        unless this Airflow cannot run it.
    """
    rows = {_name(row): row for row in committed if row["group"] not in whole or not _runs_here(row)}
    return ordered({**rows, **{_name(row): row for row in results}}.values())


def lines(rows: Iterable[Row]) -> list[Line]:
    """`rows`, those put together that differ in gateway and mode alone."""
    alike: dict[str, list[Row]] = {}
    for row in ordered(rows):
        same = {name: value for name, value in row.items() if name not in ("gateway", "mode")}
        alike.setdefault(json.dumps(same, sort_keys=True), []).append(row)
    return [
        Line(
            found[0],
            tuple(sorted({row["gateway"] for row in found}, key=GATEWAYS.index)),
            tuple(sorted({row["mode"] for row in found}, key=MODES.index)),
        )
        for found in alike.values()
    ]


def total(rows: Iterable[Row]) -> dict[str, int]:
    """The sum of each count."""
    found = list(rows)
    return {name: sum(row["balance"][name] for row in found) for name in COUNTS}


def table(rows: Sequence[Row]) -> str:
    """The table for a terminal, and its sum."""
    cells = [list(HEAD)]
    for line in lines(rows):
        title = f"{line.row['group']}: {_title(line.row)}"
        cells.append([title, " ".join(line.gateways), " ".join(line.modes), *line.counts, line.row["state"]])
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    text = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in total(rows).items())
    return f"{text}\n{len(rows)} rows: {counts}.\n"


def written(rows: Sequence[Row]) -> str:
    """`rows` as the committed file has them: one a line, so that a diff shows what changed."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def _runs_here(row: Row) -> bool:
    return NEEDS.get(row["mode"], ()) <= AIRFLOW


def _name(row: Row) -> tuple[str, ...]:
    return tuple(str(row[part]) for part in ("group", "event", "moment", "gateway", "mode"))


def _title(row: Row) -> str:
    return ", ".join(filter(None, (row["event"], row["moment"])))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where the committed file is not what the results say."""
    parser = argparse.ArgumentParser(prog="failure_matrix", description="The failure matrix's results.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--print", action="store_true", help="print the results as a table")
    action.add_argument("--write", action="store_true", help="put them into docs/failure-matrix.json")
    action.add_argument("--check", action="store_true", help="fail where that file does not hold them")
    parser.add_argument(
        "--whole", nargs="+", choices=GROUPS, default=(), metavar="GROUP",
        help=f"groups that have been run whole, so that they have no other row: {', '.join(GROUPS)}",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    results, before = read_results(), read_committed()
    if not results:
        print("No row has been run: make test-safety, make test-live.", file=sys.stderr)
        return 1
    if given.print:
        print(table(results), end="")
        return 0
    old, new = written(before), written(merged(before, results, given.whole))
    if given.write:
        COMMITTED.write_text(new)
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(old.splitlines(True), new.splitlines(True), "committed", "seen in this run", n=0)
    )
    if old != new:
        print("\nThe docs say otherwise. If this is right: python -m scripts.failure_matrix --write", file=sys.stderr)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
