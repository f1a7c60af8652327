"""``make check``: prints the figures of the package's structure, and fails where one of its rules is broken.

Which room may import which is import-linter's to say; this counts what it can't tell. What must stay true: an exception
has a reason, and one that nothing needs any more is an error too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp

PACKAGE = Path(__file__).resolve().parents[1] / "airflow_provider_geminiimg"
MOST_ENTRIES = {"": 16, "core": 14}  # of a folder: what a reader meets at once
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 40
KNOWS_VERSIONS = "_compat"
VERSION_WORDS = ("AIRFLOW_V_", "airflow.__version__", "importlib.metadata", "packaging.version")
# What breaks a rule for now, by the name that its line begins with, and why that is better than keeping the rule.
EXCEPTIONS: Mapping[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One module: its dotted name within the package, and what it holds."""

    name: str
    text: str
    tree: ast.Module

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def read(package: Path) -> Iterator[Module]:
    """The modules of a package."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield Module(".".join(path.relative_to(package).with_suffix("").parts), text, ast.parse(text))


def entries(package: Path) -> Iterator[str]:
    """Folders with more in them than a reader can take in."""
    for folder, most in MOST_ENTRIES.items():
        path = package / folder
        count = sum(entry.name != "__pycache__" for entry in path.iterdir()) if path.is_dir() else 0
        print(f"{folder or package.name}: {count} entries, at most {most}")
        if count > most:
            yield f"{folder or package.name} has {count} entries, more than {most}"


def cycles(package: Path) -> Iterator[str]:
    """Modules that import each other, lazy imports included."""
    graph = grimp.build_graph(package.name, exclude_type_checking_imports=True, cache_dir=None)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    print(f"{len(left)} modules, {sum(map(len, left.values()))} imports")
    # Whatever imports nothing that is left is in no circle, and neither is what is imported by nothing that is left.
    while outside := {name for name in left if left[name].isdisjoint(left)} | (
        left.keys() - set().union(*left.values())
    ):
        left = {name: imported - outside for name, imported in left.items() if name not in outside}
    if left:
        yield f"imports go in a circle among: {', '.join(sorted(left))}"


def private_names(package: str, modules: Sequence[Module]) -> Iterator[str]:
    """Imports of what another module or room keeps for itself."""
    for module in modules:
        room = ".".join([package, *module.name.split(".")[:-1]])
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.module.split(".")[0] != package:
                continue
            names = [alias.name for alias in node.names if _is_private(alias.name) and node.module != room]
            path = [part for part in node.module.split(".") if _is_private(part) and part != KNOWS_VERSIONS]
            if names or (path and not node.module.startswith(f"{room}.")):
                yield f"{module.name}:{node.lineno} imports a private name: {node.module}: {', '.join(names or path)}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def versions(modules: Sequence[Module]) -> Iterator[str]:
    """Readers of Airflow's version beside the one that may."""
    for module in modules:
        found = [word for word in VERSION_WORDS if word in module.text]
        if found and module.name != KNOWS_VERSIONS:
            yield f"{module.name} reads a version: {', '.join(found)}"


def lengths(modules: Sequence[Module]) -> Iterator[str]:
    """Modules and functions that are too long to be read at once."""
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
    """Modules of a room in core that its own table of contents does not name."""
    rooms = {module.name.removesuffix(".__init__"): module for module in modules if module.name.endswith(".__init__")}
    for module in modules:
        room, _, name = module.name.rpartition(".")
        if room.startswith("core.") and name != "__init__" and f"`{name}`" not in rooms[room].text:
            yield f"{module.name} is not named in the docstring of {room}"


def broken(package: Path, exceptions: Mapping[str, str]) -> list[str]:
    """What breaks a rule in a package that can be imported, one line each; but for the exceptions."""
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
    return lines + [f"{name} needs no exception any more: take it out of EXCEPTIONS" for name in sorted(unused)]


def main() -> int:
    """Print what is counted, what is excused and what is wrong; 1 if anything is."""
    wrong = broken(PACKAGE, EXCEPTIONS)
    for name, reason in EXCEPTIONS.items():
        print(f"exception: {name}: {reason}")
    print(*wrong, sep="\n", file=sys.stderr, end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
