"""The rules of the package's structure, each broken by a tiny package."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import pytest

from scripts.architecture import PACKAGE, broken
from tests.harness import REPOSITORY, TESTS

Check = Callable[..., list[str]]
NUMBERS = count()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Writes the modules of a package that can be imported, and checks it."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / f"tiny{next(NUMBERS)}"

    def write_and_check(modules: Mapping[str, str], **exceptions: str) -> list[str]:
        for path, text in modules.items():
            file = package / path
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(textwrap.dedent(text).replace("PACKAGE", package.name))
        return [line.replace(package.name, "PACKAGE") for line in broken(package, exceptions)]

    return write_and_check


def test_a_package_that_keeps_the_rules_is_fine(check: Check) -> None:
    modules = {"a.py": "from PACKAGE.core.b import name", "core/b.py": "name = 1", "_compat.py": "AIRFLOW_V_3_3 = True"}
    assert check(modules) == []


@pytest.mark.parametrize(("folder", "most"), [("", 16), ("core/", 14)])
def test_a_folder_of_too_many_entries_is_named(check: Check, folder: str, most: int) -> None:
    modules = {f"{folder}m{number}.py": "" for number in range(most)}
    assert check(modules) == [f"{folder.strip('/') or 'PACKAGE'} has {most + 1} entries, more than {most}"]


def test_modules_that_import_each_other_are_named_and_no_others(check: Check) -> None:
    modules = {
        "a.py": "from PACKAGE import b",
        "b.py": "def later():\n    from PACKAGE.c import name",
        "c.py": "from PACKAGE import a, below\nname = 1",
        "above.py": "from PACKAGE import a",
        "below.py": "",
    }
    assert check(modules) == ["imports go in a circle among: PACKAGE.a, PACKAGE.b, PACKAGE.c"]


def test_imports_for_the_type_checker_close_no_circle(check: Check) -> None:
    modules = {
        "a.py": "from PACKAGE import b",
        "b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PACKAGE import a",
    }
    assert check(modules) == []


def test_a_private_name_of_another_module_is_named(check: Check) -> None:
    modules = {"a.py": "\nfrom PACKAGE.b import _name, other", "b.py": "_name = other = 1"}
    assert check(modules) == ["a:2 imports a private name: PACKAGE.b: _name"]


def test_a_private_module_belongs_to_its_package(check: Check) -> None:
    modules = {
        "named/_inner.py": "name = 1",
        "named/door.py": "from PACKAGE.named import _inner\nfrom PACKAGE.named._inner import name",
        "other/thief.py": "from PACKAGE.named._inner import name",
    }
    assert check(modules) == ["other.thief:1 imports a private name: PACKAGE.named._inner: _inner"]


def test_only_compat_reads_a_version(check: Check) -> None:
    modules = {"a.py": "from importlib.metadata import version", "_compat.py": "from importlib.metadata import version"}
    assert check(modules) == ["a reads a version: importlib.metadata"]


def test_a_long_module_is_named(check: Check) -> None:
    assert check({"a.py": "x = 1\n" * 401}) == ["a has 401 lines, more than 400"]


def test_a_long_function_is_named_but_an_init_and_what_is_inside_others_is_not(check: Check) -> None:
    short = "    x = 1\n" * 39
    body = "    x = 1\n" * 40
    inner = "    def inner():\n" + "        x = 1\n" * 39
    modules = {
        "a.py": f"def short():\n{short}\ndef long():\n{body}",
        "b.py": f"class C:\n    def __init__(self):\n{textwrap.indent(body, '    ')}",
        "c.py": f"async def outer():\n{inner}{inner}    return inner\n",
    }
    assert check(modules) == ["a.long has 41 lines, more than 40"]


def test_each_module_of_a_package_is_named_in_its_docstring(check: Check) -> None:
    modules = {"core/named/__init__.py": '"""A package.\n\n- `module`: it is\n"""', "core/named/module.py": ""}
    assert check(modules) == []
    assert check({"core/named/other.py": ""}) == ["core.named.other is not named in the docstring of core.named"]


def test_an_exception_excuses_what_it_names_and_is_an_error_once_nothing_needs_it(check: Check) -> None:
    modules = {"a.py": "x = 1\n" * 401, "b.py": "x = 1\n" * 401}
    assert check(modules, a="for a reason") == ["b has 401 lines, more than 400"]
    assert check({"a.py": ""}, a="for a reason", b="for a reason") == [
        "a no longer needs an exception: remove it from EXCEPTIONS"
    ]


MAPS = ("docs/architecture.md", "CONTRIBUTING.md")
PATH = re.compile(r"(?<![\w/.…<])([\w-]+(?:/[\w-]+)*(?:/|\.(?:py|md|toml|json)))(?![\w<*])")
NAMES = re.compile(r"`([\w/]+\.py)` \(((?:`[\w.]+`(?:, )?)+)\)")


@pytest.mark.parametrize("page", MAPS)
def test_each_path_that_a_map_of_the_code_names_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    inside = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    paths = {path for code in inside for path in PATH.findall(code)}
    assert len(paths) > 20
    assert not [path for path in sorted(paths) if not any((base / path).exists() for base in (REPOSITORY, PACKAGE))]


@pytest.mark.parametrize("page", MAPS)
def test_each_name_that_a_map_of_the_code_gives_for_a_module_is_in_it(page: str) -> None:
    lost = []
    for path, names in NAMES.findall((REPOSITORY / page).read_text()):
        source = next(base / path for base in (PACKAGE, REPOSITORY) if (base / path).exists()).read_text()
        lost += [f"{path}: {name}" for name in re.findall(r"[\w.]+", names) if name.split(".")[-1] not in source]
    assert not lost


# The tree of tests

UNIT = TESTS / "unit"
SUITES = ("browser", "compat", "distributed", "heavy", "integration", "live", "matrix", "stores", "unit")
ELSEWHERE = {"benchmarks": REPOSITORY / "benchmarks", "harness": TESTS / "harness", "scripts": REPOSITORY / "scripts"}


@pytest.mark.parametrize("path", sorted(UNIT.rglob("test_*.py")), ids=lambda path: str(path.relative_to(UNIT)))
def test_a_unit_test_lies_at_the_path_of_its_module_and_begins_with_its_name(path: Path) -> None:
    first, *others = path.relative_to(UNIT).parts
    folder = (
        ELSEWHERE[first].joinpath(*others).parent if first in ELSEWHERE else PACKAGE / path.parent.relative_to(UNIT)
    )
    modules = {"package" if folder == PACKAGE else folder.name, *(module.stem for module in folder.glob("*.py"))}
    name = path.stem.removeprefix("test_")
    assert any(name == module or name.startswith(f"{module}_") for module in modules), sorted(modules)


def test_every_test_lies_in_a_suite_that_a_target_of_make_runs_and_none_is_longer_than_a_thousand_lines() -> None:
    tests = [path for path in TESTS.rglob("test_*.py") if "fixtures" not in path.parts]
    assert not [path for path in tests if path.relative_to(TESTS).parts[0] not in SUITES]
    assert not [path for path in tests if len(path.read_text().splitlines()) > 1000]


def test_the_harness_imports_no_script() -> None:
    imports = re.compile(r"^\s*(?:from|import) scripts\b", re.MULTILINE)
    assert not [path for path in (TESTS / "harness").rglob("*.py") if imports.search(path.read_text())]
