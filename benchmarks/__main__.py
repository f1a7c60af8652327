"""``python -m benchmarks [NAME...]``: run all benchmarks or some, print a table, and write ``results.json``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from benchmarks import BENCHMARKS, results
from benchmarks.results import Row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 if ``--check`` finds missing results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the package, and compares it with code that a user might write instead.",
        epilog="\n".join(f"{name:12} {text}" for name, text in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="short runs to test the benchmarks; writes nothing")
    parser.add_argument("--check", action="store_true", help="run nothing; check that each benchmark has a result")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}.")
    if given.check:
        return check()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as wherever they are installed
    machine = results.machine()
    if machine["load"] > 0.5 * (os.cpu_count() or 1):
        print(f"The machine is busy (load {machine['load']}): ratios are more reliable than figures.", flush=True)
    rows: list[Row] = []
    for name in given.names or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]} ...", end=" ", flush=True)
        began = time.monotonic()
        rows += import_module(f"benchmarks.{name}").run(given.quick)
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    print("\n" + results.table(rows), end="")
    if not given.quick:
        results.write(results.merged(results.read()[1], rows, list(BENCHMARKS)), machine)
    return 0


def check() -> int:
    """Check that the committed results contain exactly these benchmarks."""
    measured = {row.benchmark for row in results.read()[1]}
    missing, left = [name for name in BENCHMARKS if name not in measured], measured - set(BENCHMARKS)
    for name in missing:
        print(f"{name} has no result: make bench NAMES={name}", file=sys.stderr)
    for name in sorted(left):
        print(f"{name} is not a benchmark: make bench removes its rows", file=sys.stderr)
    return int(bool(missing or left))


if __name__ == "__main__":
    sys.exit(main())
