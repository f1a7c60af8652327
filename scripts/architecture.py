"""``make check``: counts the package's structure, and fails if it breaks a rule.

import-linter checks which package may import which; this script checks the other rules.

Invariant: every exception to a rule has a reason, and an exception that is no longer needed is an error.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp

PACKAGE = Path(__file__).resolve().parents[1] / "airflow_provider_geminiimg"
MOST_ENTRIES = {"": 16, "core": 14}  # maximum number of entries in a folder
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 40
KNOWS_VERSIONS = "_compat"
VERSION_WORDS = ("AIRFLOW_V_", "airflow.__version__", "importlib.metadata", "packaging.version")
# Permitted exceptions: the first word of the error line, and the reason.
EXCEPTIONS: Mapping[str, str] = {"runtime.doctor.installation": "tells versions, and decides nothing by them"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module: its dotted name within the package, and its content."""

    name: str
    text: str
    tree: ast.Module

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def read(package: Path) -> Iterator[Module]:
    """Iterate over the modules of a package."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield Module(".".join(path.relative_to(package).with_suffix("").parts), text, ast.parse(text))


def entries(package: Path) -> Iterator[str]:
    """Report folders with too many entries."""
    for folder, most in MOST_ENTRIES.items():
        path = package / folder
        count = sum(entry.name != "__pycache__" for entry in path.iterdir()) if path.is_dir() else 0
        print(f"{folder or package.name}: {count} entries, at most {most}")
        if count > most:
            yield f"{folder or package.name} has {count} entries, more than {most}"


def cycles(package: Path) -> Iterator[str]:
    """Report modules that import each other, including lazy imports."""
    graph = grimp.build_graph(package.name, exclude_type_checking_imports=True, cache_dir=None)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    print(f"{len(left)} modules, {sum(map(len, left.values()))} imports")
    # Repeatedly remove modules that import no remaining module, or that no remaining module imports; cycles remain.
    while outside := {name for name in left if left[name].isdisjoint(left)} | (
        left.keys() - set().union(*left.values())
    ):
        left = {name: imported - outside for name, imported in left.items() if name not in outside}
    if left:
        yield f"imports go in a circle among: {', '.join(sorted(left))}"


def private_names(package: str, modules: Sequence[Module]) -> Iterator[str]:
    """Report imports of a private name from another module or package."""
    for module in modules:
        folder = ".".join([package, *module.name.split(".")[:-1]])
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.module.split(".")[0] != package:
                continue
            names = [alias.name for alias in node.names if _is_private(alias.name) and node.module != folder]
            path = [part for part in node.module.split(".") if _is_private(part) and part != KNOWS_VERSIONS]
            if names or (path and not node.module.startswith(f"{folder}.")):
                yield f"{module.name}:{node.lineno} imports a private name: {node.module}: {', '.join(names or path)}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def versions(modules: Sequence[Module]) -> Iterator[str]:
    """Report modules that read Airflow's version, except the one that may."""
    for module in modules:
        found = [word for word in VERSION_WORDS if word in module.text]
        if found and module.name != KNOWS_VERSIONS:
            yield f"{module.name} reads a version: {', '.join(found)}"


def lengths(modules: Sequence[Module]) -> Iterator[str]:
    """Report modules and functions that are too long."""
    for module in modules:
        if (lines := module.text.count("\n")) > MOST_LINES:
            yield f"{module.name} has {lines} lines, more than {MOST_LINES}"
        for function in module.functions:
            lines = _lines(function) - sum(_lines(node) for node in function.body if isinstance(node, Function))
            if lines > MOST_LINES_OF_A_FUNCTION and function.name != "__init__":  # those of operators list arguments
                yield f"{module.name}.{function.name} has {lines} lines, more than {MOST_LINES_OF_A_FUNCTION}"


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def contents(modules: Sequence[Module]) -> Iterator[str]:
    """Report modules in core that the docstring of their package does not name."""
    packages = {
        module.name.removesuffix(".__init__"): module for module in modules if module.name.endswith(".__init__")
    }
    for module in modules:
        package, _, name = module.name.rpartition(".")
        if package.startswith("core.") and name != "__init__" and f"`{name}`" not in packages[package].text:
            yield f"{module.name} is not named in the docstring of {package}"


def broken(package: Path, exceptions: Mapping[str, str]) -> list[str]:
    """Return one line for each broken rule, without the permitted exceptions."""
    modules = list(read(package))
    found = [
        *entries(package),
        *cycles(package),
        *private_names(package.name, modules),
        *versions(modules),
        *lengths(modules),
        *contents(modules),
    ]
    unused = exceptions.keys() - {line.split()[0] for line in found}
    lines = [line for line in found if line.split()[0] not in exceptions]
    return lines + [f"{name} no longer needs an exception: remove it from EXCEPTIONS" for name in sorted(unused)]


def main() -> int:
    """Print the counts, the exceptions and the errors; return 1 if there are errors."""
    wrong = broken(PACKAGE, EXCEPTIONS)
    for name, reason in EXCEPTIONS.items():
        print(f"exception: {name}: {reason}")
    print(*wrong, sep="\n", file=sys.stderr, end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
