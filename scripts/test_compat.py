"""``make test-compat``: tests the built wheel with every supported Airflow and Python, in environments under
``.venvs``.

The older Airflows and the newest one run on this Python, the other Pythons run the Airflow of ``constraints.txt``. A
Python that is not installed is listed and skipped; an installed one that does not run is an error under ``CI=true``.

The newest Airflow has no pins of its own: it is the newest final release in the package index, or the newest
pre-release while there is no final one. The other packages are those of ``constraints.txt``, unless the release needs
others; then none is pinned. An index that does not answer is an error under ``CI=true``.

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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".venv" / "bin" / "uv"
PINS = ROOT / "tests" / "compat" / "pins"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OLDER_AIRFLOWS = ("3.1", "3.2")
PINNED_AIRFLOW = "3.3"
NEWEST_AIRFLOW = "3.4"
AIRFLOWS = (*OLDER_AIRFLOWS, PINNED_AIRFLOW, NEWEST_AIRFLOW)
OF_AIRFLOW = ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk")
SECONDS = 600  # for one environment's tests
AT_ONCE = 2  # environments: one downloads and unpacks while the other's tests run

COMPAT = ["tests/compat", "tests/integration/attacks/test_thumbnails.py"]
DOMAIN = [
    "tests/unit/core/test_request.py",
    "tests/unit/core/catalog",
    *(f"tests/unit/core/gateways/test_{name}.py" for name in ("onemin", "apimaster")),
    "tests/unit/core/purchase/test_decision.py",
]
SUMMARY = re.compile(r"\b\d+ (passed|failed|errors?|skipped|deselected)\b.* in [\d.]+s")
TOOLS = ["pytest", "pytest-asyncio", "hypothesis"]


@dataclass(frozen=True)
class Target:
    """One environment.

    :param airflow: one of `AIRFLOWS`.
    :param python: ``3.10`` and so on.
    :param tests: files and folders to run.
    """

    airflow: str
    python: str
    tests: list[str]

    def release(self) -> str:
        """The release of this Airflow: the pinned one, or else the one that the package index has.

        :raises LookupError: the package index does not answer, or has none.
        """
        return self.pins().get("apache-airflow") or choose(self.airflow, offered("apache-airflow"))

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
        if self.airflow == NEWEST_AIRFLOW:
            return {name: version for name, version in pins.items() if name not in OF_AIRFLOW}
        return pins


TARGETS = [
    *(Target(airflow, HERE, COMPAT) for airflow in (NEWEST_AIRFLOW, *OLDER_AIRFLOWS)),
    *(Target(PINNED_AIRFLOW, python, COMPAT + DOMAIN) for python in PYTHONS if python != HERE),
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


def offered(package: str) -> list[str]:
    """The versions of a package in the package index, pre-releases included.

    :raises LookupError: it does not answer.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--pre"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise LookupError(f"the package index names no version of {package}: {done.stderr.strip()[-300:]}")
    return found[1].split(", ")


def choose(minor: str, versions: Iterable[str]) -> str:
    """The newest final release of a minor version, or the newest pre-release while there is no final one.

    :raises LookupError: there is neither.
    """
    known = [Version(version) for version in versions if version.startswith(f"{minor}.")]
    if not known:
        raise LookupError(f"the package index has no Airflow {minor}")
    return str(max(known, key=lambda version: (not version.is_prerelease, version)))


def install(target: Target, release: str, interpreter: Path, wheel: Path, more: Sequence[str] = ()) -> Path:
    """Make the environment, or bring it up to date; gives its Python.

    :param more: packages to install, too.
    """
    home = ROOT / ".venvs" / f"{release}-{target.python}"
    python = home / "bin" / "python"
    if not python.exists():  # also where the interpreter that it points to has gone
        uv("venv", "--quiet", "--clear", "--python", str(interpreter), str(home))
    constraints = home / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in target.pins().items()))
    command = [
        *("pip", "install", "--quiet", "--python", str(python), "--reinstall-package", "airflow-provider-geminiimg"),
        # uv takes a pre-release only of what is named with one.
        *(f"apache-airflow=={release}", f"apache-airflow-core=={release}", "apache-airflow-task-sdk>=1.0.0a0"),
        *(f"{wheel}[sandbox,thumbnails]", *TOOLS, *more),
    ]
    try:
        uv(*command, "-c", str(constraints))
    except subprocess.CalledProcessError:
        if target.airflow != NEWEST_AIRFLOW:
            raise
        print(f"Airflow {release} does not install with constraints.txt; now without it", flush=True)
        uv(*command)
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
    # At the end of the process, Airflow may log something after pytest's last line.
    last = next((line for line in reversed(text.splitlines()) if SUMMARY.search(line)), "no summary")
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
    in_ci = os.environ.get("CI") == "true"
    try:
        release = target.release()
    except LookupError as error:
        print(f"Airflow {target.airflow}, Python {target.python}: NOT TESTED, {error}", flush=True)
        return not in_ci
    title = f"Airflow {release}, Python {target.python}:"
    interpreter, broken = find(target.python)
    if interpreter is None:
        if broken:
            print(f"{title} NOT TESTED, {', '.join(map(str, broken))} does not run", flush=True)
            return not in_ci
        print(f"{title} NOT TESTED, not here: PATH and pyenv have no python{target.python}", flush=True)
        return True
    started = time.monotonic()
    python = install(target, release, interpreter, wheel)
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
