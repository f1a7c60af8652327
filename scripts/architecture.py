"""``make check``: prints the figures of the package's structure, and fails where one of its rules is broken.

The direction of imports is import-linter's; this counts what it can't tell.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp

PACKAGE = "airflow_provider_geminiimg"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
MOST_ENTRIES = {"": 16, "core": 14}  # of a folder; what a reader meets at once
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 40
READS_VERSIONS = {"_compat"}
VERSION_WORDS = ("AIRFLOW_V_", "airflow.__version__", "importlib.metadata", "packaging.version")


def modules() -> Iterator[tuple[str, Path]]:
    """The package's modules, by their dotted name within it."""
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def entries() -> Iterator[str]:
    """Folders with more in them than a reader can take in."""
    for folder, most in MOST_ENTRIES.items():
        found = [path for path in (ROOT / folder).iterdir() if path.name != "__pycache__"]
        print(f"{PACKAGE}/{folder}: {len(found)} entries (at most {most})")
        if len(found) > most:
            yield f"{folder or PACKAGE} has {len(found)} entries, more than {most}"


def cycles() -> Iterator[str]:
    """Groups of modules that import each other, lazy imports included."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    print(f"{len(left)} modules, {sum(map(len, left.values()))} imports")
    while ready := {module for module, imported in left.items() if not imported & left.keys()}:
        for module in ready:
            del left[module]
    if left:
        yield f"imports go in a circle among: {', '.join(sorted(left))}"


def private_names() -> Iterator[str]:
    """Imports of what another module or package keeps for itself."""
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE):
                continue
            room = PACKAGE if "." not in name else f"{PACKAGE}.{name.rpartition('.')[0]}"
            private = [
                alias.name for alias in node.names if alias.name.startswith("_") and not alias.name.startswith("__")
            ]
            inner = [part for part in (node.module or "").split(".") if part.startswith("_") and part != "_compat"]
            if (private and node.module != room) or (inner and not str(node.module).startswith(f"{room}.")):
                yield f"{name}:{node.lineno} imports a private name: {node.module}: {', '.join(private + inner)}"


def versions() -> Iterator[str]:
    """Readers of Airflow's version beside the one that may."""
    for name, path in modules():
        found = [word for word in VERSION_WORDS if word in path.read_text()]
        if found and name not in READS_VERSIONS:
            yield f"{name} reads a version: {', '.join(found)}"


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without those of the functions in it."""
    nested = [node for node in function.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lines = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in (function, *nested)]
    return 2 * lines[0] - sum(lines)


def lengths() -> Iterator[str]:
    """Modules and functions that are too long to be read at once."""
    for name, path in modules():
        text = path.read_text()
        if (lines := text.count("\n")) > MOST_LINES:
            yield f"{name} has {lines} lines, more than {MOST_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = own_lines(node)
                if lines > MOST_LINES_OF_A_FUNCTION and node.name != "__init__":  # those of operators list arguments
                    yield f"{name}.{node.name} has {lines} lines, more than {MOST_LINES_OF_A_FUNCTION}"


def main() -> int:
    """Print what is counted and what is wrong; 1 if anything is."""
    wrong = [*entries(), *cycles(), *private_names(), *versions(), *lengths()]
    for problem in wrong:
        print(problem, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
