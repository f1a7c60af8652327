"""What benchmarks find: rows, the table for a terminal, and the file that the docs are made from.

What must stay true: the committed file holds what was measured and nothing else; a benchmark that was not run keeps
its rows; a reach stands with its row, so that "met" is never an opinion.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
HEAD = ("benchmark", "figure", "ours", "peer", "theirs", "ratio", "reach", "met")
PACKAGES = ("apache-airflow", "httpx", "aiohttp")


@dataclass(frozen=True)
class Row:
    """One figure, alone or beside a peer's.

    :param benchmark: the name of its module.
    :param figure: what was measured.
    :param unit: of `ours` and `theirs`; such as ``ms``.
    :param ours: the package's figure; ``None``: the peer's is shown for comparison alone.
    :param peer: what it is compared with; empty: nothing.
    :param theirs: the peer's figure, from the same run.
    :param reach: what `ours`, or `ours` divided by `theirs` where there is a peer, shall come to; ``None``: no reach.
    :param at_least: the reach is a lower bound; else it is an upper one.
    """

    benchmark: str
    figure: str
    unit: str
    ours: float | None
    peer: str = ""
    theirs: float | None = None
    reach: float | None = None
    at_least: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's; ``None`` where there is nothing to compare."""
        return None if self.ours is None or not self.theirs else self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        """Whether the reach was reached; ``None`` where there is none, or nothing to hold against it."""
        value = self.ratio if self.peer else self.ours
        if self.reach is None or value is None:
            return None
        return value >= self.reach if self.at_least else value <= self.reach

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEAD`."""
        unit = f" {self.unit}" if self.unit else ""
        ours, theirs = (short(value) + unit if value is not None else "" for value in (self.ours, self.theirs))
        ratio = "" if self.ratio is None else f"{short(self.ratio)} ×"
        sign = "≥" if self.at_least else "≤"
        reach = "" if self.reach is None else f"{sign} {short(self.reach)}{' ×' if self.peer else unit}"
        met = {None: "", True: "yes", False: "no"}[self.met]
        return (self.benchmark, self.figure, ours, self.peer, theirs, ratio, reach, met)


def short(value: float) -> str:
    """A number with three digits that count, and no more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Iterable[Row]) -> str:
    """The table for a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def read(path: Path = RESULTS) -> tuple[dict[str, Any], list[Row]]:
    """The machine of the last run, and the rows; both empty where nothing was measured yet."""
    if not path.exists():
        return {}, []
    found = json.loads(path.read_text())
    return found["machine"], [Row(**row) for row in found["rows"]]


def write(rows: Iterable[Row], machine: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Write the file: one row a line, so that a diff shows what changed."""
    lines = ",\n".join("    " + json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    path.write_text(f'{{\n  "machine": {json.dumps(dict(machine))},\n  "rows": [\n{lines}\n  ]\n}}\n')


def merged(before: Iterable[Row], now: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """`now`, and of `before` what is of other benchmarks in `order`."""
    run = {row.benchmark for row in now}
    kept = [row for row in before if row.benchmark not in run and row.benchmark in order]
    return sorted([*now, *kept], key=lambda row: order.index(row.benchmark))


def machine() -> dict[str, Any]:
    """What the figures were measured on. The load is that before the run: a busy machine measures itself."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "load": round(os.getloadavg()[0], 1),
    }
