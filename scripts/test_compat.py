"""``make test-compat``: tests the built wheel with every supported Airflow and Python, in environments under
``.venvs``.

The two oldest Airflows run on this Python, the other Pythons run the newest Airflow. A Python that is not installed is
listed and skipped; an installed one that does not run is an error under ``CI=true``.

Invariants: the wheel is tested, never the source tree, so the tests run from a copy without the package. Only packages
are downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".venv" / "bin" / "uv"
PINS = ROOT / "tests" / "compat" / "pins"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OLDER_AIRFLOWS = ("3.1", "3.2")
NEWEST_AIRFLOW = "3.3"
SECONDS = 300  # for one environment's tests
AT_ONCE = 2  # environments: one downloads and unpacks while the other's tests run

COMPAT = ["tests/compat", "tests/integration/attacks/test_thumbnails.py"]
DOMAIN = [
    "tests/unit/core/test_request.py",
    "tests/unit/core/catalog",
    *(f"tests/unit/core/gateways/test_{name}.py" for name in ("onemin", "apimaster")),
    "tests/unit/core/purchase/test_decision.py",
]
TOOLS = ["pytest", "pytest-asyncio", "hypothesis"]


@dataclass(frozen=True)
class Target:
    """One environment.

    :param airflow: ``3.1``, ``3.2`` or ``3.3``; the pins say which release of it.
    :param python: ``3.10`` and so on.
    :param tests: files and folders to run.
    """

    airflow: str
    python: str
    tests: list[str]

    def pins(self) -> dict[str, str]:
        """What ``constraints.txt`` pins, but for what this Airflow or this Python needs otherwise."""
        pins: dict[str, str] = {}
        for path in (
            ROOT / "constraints.txt",
            PINS / f"python-{self.python}.txt",
            PINS / f"airflow-{self.airflow}.txt",
        ):
            lines = path.read_text().splitlines() if path.exists() else []
            for name, equals, version in (line.partition("==") for line in lines):
                if equals:
                    pins[name] = version
        return pins


TARGETS = [
    *(Target(airflow, HERE, COMPAT) for airflow in OLDER_AIRFLOWS),
    *(Target(NEWEST_AIRFLOW, python, COMPAT + DOMAIN) for python in PYTHONS if python != HERE),
]


def interpreters(python: str) -> Iterator[Path]:
    """Where an interpreter may be: this one, any in PATH, pyenv's."""
    if python == HERE:
        yield Path(sys.executable)
        return
    for folder in os.get_exec_path():
        yield Path(folder) / f"python{python}"
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(pyenv.glob(f"versions/{python}.*/bin/python"), reverse=True)


def find(python: str) -> tuple[Path | None, list[Path]]:
    """The first interpreter that runs, and those before it that do not."""
    broken = []
    for path in interpreters(python):
        if path.exists():
            code = subprocess.run([path, "-c", "import ssl, sqlite3"], capture_output=True, check=False).returncode
            if code == 0:
                return path, []
            if code != 127:  # a shim of pyenv says so for a version that is not switched on
                broken.append(path)
    return None, broken


def install(target: Target, interpreter: Path, wheel: Path) -> Path:
    """Make the environment, or bring it up to date; gives its Python."""
    pins = target.pins()
    home = ROOT / ".venvs" / f"{pins['apache-airflow']}-{target.python}"
    python = home / "bin" / "python"
    if not python.exists():  # also where the interpreter that it points to has gone
        uv("venv", "--quiet", "--clear", "--python", str(interpreter), str(home))
    constraints = home / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    uv(
        *("pip", "install", "--quiet", "--python", str(python), "-c", str(constraints)),
        *("--reinstall-package", "airflow-provider-geminiimg"),
        *(f"apache-airflow=={pins['apache-airflow']}", f"{wheel}[sandbox,thumbnails]", *TOOLS),
    )
    return python


def uv(*arguments: str) -> None:
    subprocess.run([UV, *arguments], check=True, env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"})


def run_tests(python: Path, suite: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether they passed, and pytest's last line; all its lines are printed where they did not."""
    # A test that is stuck is ended, with its lines.
    stuck = [f"-ofaulthandler_timeout={SECONDS * 0.6}", "-ofaulthandler_exit_on_timeout=true"]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:logging", *stuck, *tests]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST_"))}
    try:
        done = subprocess.run(
            command,
            cwd=suite,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        print((error.output or b"").decode(errors="replace"))
        return False, f"not done within {SECONDS} s"
    text = done.stdout.decode(errors="replace").strip()
    last = text.splitlines()[-1] if text else "no output"
    if done.returncode:
        print(text)
    return done.returncode == 0, re.sub(r"=+ ?| in [\d.]+s.*", "", last).strip()


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel, and a copy of the tests and of the scripts they use, beside no package."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [wheel] = (folder / "dist").glob("*.whl")
    suite = folder / "suite"
    for name in ("tests", "scripts"):
        ignore = shutil.ignore_patterns("__pycache__", "live")
        shutil.copytree(ROOT / name, suite / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", suite)
    return wheel, suite


def check(target: Target, wheel: Path, suite: Path) -> bool:
    """Run one target and print what became of it."""
    title = f"Airflow {target.pins()['apache-airflow']}, Python {target.python}:"
    interpreter, broken = find(target.python)
    if interpreter is None:
        if broken:
            print(f"{title} NOT TESTED, {', '.join(map(str, broken))} does not run", flush=True)
            return os.environ.get("CI") != "true"
        print(f"{title} NOT TESTED, not here: PATH and pyenv have no python{target.python}", flush=True)
        return True
    started = time.monotonic()
    python = install(target, interpreter, wheel)
    installed = time.monotonic()
    passed, last = run_tests(python, suite, target.tests)
    seconds = f"install {installed - started:.0f} s, tests {time.monotonic() - installed:.0f} s"
    print(f"{title} {'ok' if passed else 'FAILED'}, {last} ({seconds})", flush=True)
    return passed


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="geminiimg-compat-") as name:
        wheel, suite = build(Path(name))
        print(f"Wheel: {wheel.name} ({time.monotonic() - started:.0f} s)", flush=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(lambda target: check(target, wheel, suite), TARGETS))
    print(f"All: {time.monotonic() - started:.0f} s")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
