"""Results of benchmarks: rows, the table for a terminal, and the file that the docs are generated from.

Invariants: the committed file contains only measured figures. A benchmark that was not run keeps its rows. The target
is a part of its row.
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
HEAD = ("benchmark", "figure", "ours", "peer", "theirs", "ratio", "target", "met")
PACKAGES = ("apache-airflow", "httpx", "aiohttp")


@dataclass(frozen=True)
class Row:
    """One figure, alone or compared with a peer's.

    :param benchmark: name of its module.
    :param figure: description of the measurement.
    :param unit: of `ours` and `theirs`, for example ``ms``.
    :param ours: the package's figure; ``None``: the peer's figure is shown for comparison only.
    :param peer: the compared code; empty: nothing.
    :param theirs: the peer's figure from the same run.
    :param target: target for `ours`, or for `ours` divided by `theirs` if there is a peer; ``None``: no target.
    :param at_least: the target is a lower bound; otherwise an upper bound.
    """

    benchmark: str
    figure: str
    unit: str
    ours: float | None
    peer: str = ""
    theirs: float | None = None
    target: float | None = None
    at_least: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's; ``None`` without a peer."""
        return None if self.ours is None or not self.theirs else self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without a target or without a figure."""
        value = self.ratio if self.peer else self.ours
        if self.target is None or value is None:
            return None
        return value >= self.target if self.at_least else value <= self.target

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEAD`."""
        unit = f" {self.unit}" if self.unit else ""
        ours, theirs = (short(value) + unit if value is not None else "" for value in (self.ours, self.theirs))
        ratio = "" if self.ratio is None else f"{short(self.ratio)} ×"
        sign = "≥" if self.at_least else "≤"
        target = "" if self.target is None else f"{sign} {short(self.target)}{' ×' if self.peer else unit}"
        met = {None: "", True: "yes", False: "no"}[self.met]
        return (self.benchmark, self.figure, ours, self.peer, theirs, ratio, target, met)


def short(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Iterable[Row]) -> str:
    """The table for a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def read(path: Path = RESULTS) -> tuple[dict[str, Any], list[Row]]:
    """Return the machine of the last run, and the rows; both empty if there are no results yet."""
    if not path.exists():
        return {}, []
    found = json.loads(path.read_text())
    return found["machine"], [Row(**row) for row in found["rows"]]


def write(rows: Iterable[Row], machine: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Write the file with one row per line, so that a diff shows the changes."""
    lines = ",\n".join("    " + json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    path.write_text(f'{{\n  "machine": {json.dumps(dict(machine))},\n  "rows": [\n{lines}\n  ]\n}}\n')


def merged(before: Iterable[Row], now: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Return `now`, together with the rows of other benchmarks in `order` from `before`."""
    run = {row.benchmark for row in now}
    kept = [row for row in before if row.benchmark not in run and row.benchmark in order]
    return sorted([*now, *kept], key=lambda row: order.index(row.benchmark))


def machine() -> dict[str, Any]:
    """Return the machine of the measurement. The load is measured before the run."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "load": round(os.getloadavg()[0], 1),
    }
