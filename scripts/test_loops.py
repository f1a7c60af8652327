"""``make test-loops``: runs live tests with the newest Airflow, in its environment of ``make test-compat``.

The installed wheel gives the package its metadata; Python finds the source tree first, so the tests test that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.test_compat import HERE, NEWEST_AIRFLOW, ROOT, Target, build, install

# What the live tests and the browser tests need besides the package: FAB's users, a bucket, PostgreSQL's drivers.
TOOLS = (
    *("apache-airflow-providers-amazon", "apache-airflow-providers-fab"),
    *("asyncpg", "moto[server]", "psutil", "psycopg2-binary", "playwright"),
)
LOOPS = [f"tests/live/test_{name}.py" for name in ("loops", "matrix", "root_moved")]
TABLE = ROOT / "build" / "loops.txt"  # the tests write it
BROWSER = ["tests/browser/test_loops.py"]


def selection(*, core: bool, every: bool, browser: bool = False) -> list[str]:
    """The arguments of pytest: which tests."""
    if browser:
        return BROWSER
    if every:
        return ["tests/live"]
    return [*LOOPS, "-k", "loop or moved", *(["-m", "core"] if core else [])]


def main() -> int:
    """The exit status of pytest, or 1 without Airflow."""
    parser = argparse.ArgumentParser(prog="test_loops", description=__doc__)
    parser.add_argument("--core", action="store_true", help="only what continuous integration runs")
    parser.add_argument("--all", action="store_true", help="every live test")
    parser.add_argument("--browser", action="store_true", help="only the browser tests of the gallery")
    given = parser.parse_args()
    target = Target(NEWEST_AIRFLOW, HERE, [])
    try:
        release = target.release()
    except LookupError as error:
        print(f"Airflow {NEWEST_AIRFLOW}: NOT TESTED, {error}")
        return int(os.environ.get("CI") == "true")
    with tempfile.TemporaryDirectory(prefix="geminiimg-loops-") as name:
        wheel, _ = build(Path(name))
        python = install(target, release, Path(sys.executable), wheel, TOOLS)
    print(f"Airflow {release}, Python {HERE}", flush=True)
    tests = selection(core=given.core, every=given.all, browser=given.browser)
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *tests]
    TABLE.unlink(missing_ok=True)
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if TABLE.exists():
        print(TABLE.read_text(), end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
