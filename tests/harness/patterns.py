"""Every regular expression of the package, and texts that make those slow that can be made slow.

What must stay true: an expression that somebody adds is found here by itself, wherever in the package it stands.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import airflow_provider_geminiimg

if hasattr(re, "_parser"):  # since Python 3.11
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_parse as parser

_WAYS = frozenset(("search", "match", "fullmatch", "finditer"))
_ALIKE = {"split": "finditer", "findall": "finditer", "sub": "finditer", "subn": "finditer", "compile": "finditer"}
_NOT_SHIPPED = ("airflow_provider_geminiimg.sandbox", "airflow_provider_geminiimg.__main__")


@dataclass(frozen=True)
class Found:
    """A regular expression.

    :param where: module and line, or module and name.
    :param how: the methods by which the package looks for it.
    """

    where: str
    pattern: re.Pattern[Any]
    how: frozenset[str]

    def seconds(self, text: Any) -> float:
        """What it takes to look for it in a text, in the slowest of the package's ways."""
        slowest = 0.0
        for way in _WAYS & self.how:
            since = time.process_time()
            found = getattr(self.pattern, way)(text)
            if way == "finditer":
                for _ in found:
                    pass
            slowest = max(slowest, time.process_time() - since)
        return slowest


def every_pattern() -> list[Found]:
    """Those that modules hold compiled, and those that calls of `re` name or spell out."""
    found: dict[tuple[Any, int], Found] = {}
    for info in pkgutil.walk_packages(airflow_provider_geminiimg.__path__, "airflow_provider_geminiimg."):
        if info.name.startswith(_NOT_SHIPPED):
            continue
        module = importlib.import_module(info.name)
        source = inspect.getsource(module)
        for each in (*_held(info.name, module, source), *_called(info.name, module, ast.parse(source))):
            key = (each.pattern.pattern, each.pattern.flags)
            ways = found[key].how | each.how if key in found else each.how
            found[key] = Found(each.where, each.pattern, ways)
    return list(found.values())


def _held(where: str, module: Any, source: str) -> Iterator[Found]:
    for name, value in list(vars(module).items()):
        # One that is handed on, or stands among others, may be looked for in any way.
        ways = set(re.findall(rf"\b{name}\.(\w+)\(", source)) & {*_WAYS, *_ALIKE}
        if not ways and isinstance(value, Mapping):
            ways = set(re.findall(r"\.(fullmatch|match)\(", source))
        ways = ways or {"finditer"}
        for pattern in _patterns(value):
            yield Found(f"{where}.{name}", pattern, frozenset(_ALIKE.get(way, way) for way in ways))


def _patterns(value: Any, depth: int = 0) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, (Mapping, tuple, list)) and depth < 3:
        for each in list(value.values() if isinstance(value, Mapping) else value):
            yield from _patterns(each, depth + 1)


def _called(where: str, module: Any, tree: ast.AST) -> Iterator[Found]:
    loops: dict[str, list[str]] = {}
    for loop in ast.walk(tree):
        if isinstance(loop, ast.For) and isinstance(loop.iter, ast.Name):
            for name in ast.walk(loop.target):
                if isinstance(name, ast.Name):
                    loops.setdefault(name.id, []).append(loop.iter.id)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        way = node.func.attr
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and way in {*_WAYS, *_ALIKE}):
            continue
        if way == "compile" and isinstance(node.args[0], ast.Constant):
            continue  # held by the module
        flags = re.IGNORECASE if any("IGNORECASE" in ast.dump(more) for more in (*node.args, *node.keywords)) else 0
        for text in _texts(node.args[0], vars(module), loops):
            yield Found(f"{where}:{node.lineno}", re.compile(text, flags), frozenset([_ALIKE.get(way, way)]))


def _texts(node: ast.expr, names: Mapping[str, Any], loops: Mapping[str, list[str]]) -> Iterator[Any]:
    if isinstance(node, ast.Constant):
        yield node.value
    elif isinstance(node, ast.Name) and isinstance(names.get(node.id), (str, bytes)):
        yield names[node.id]
    elif isinstance(node, ast.Name):  # the first of each pair
        yield from (pair[0] for table in loops.get(node.id, ()) for pair in names.get(table, ()))


def _parts(tree: Any, ignore_case: bool) -> Iterator[str]:
    """Runs of literals, and a character of each class, of a parsed expression."""
    run = ""
    for op, value in tree:
        name = str(op)
        if name == "LITERAL":
            run += chr(value)
            continue
        if run:
            yield run
            run = ""
        if name == "IN":
            yield from _of_class(value)
        elif name == "NOT_LITERAL":
            yield "a" if value != ord("a") else "b"
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            yield from _parts(value[2], ignore_case)
        elif name == "SUBPATTERN":
            yield from _parts(value[3], ignore_case)
        elif name == "BRANCH":
            for branch in value[1]:
                yield from _parts(branch, ignore_case)
        elif name in ("ASSERT", "ASSERT_NOT"):
            yield from _parts(value[1], ignore_case)
        elif name == "ATOMIC_GROUP":
            yield from _parts(value, ignore_case)
    if run:
        yield run


def _of_class(items: Iterable[Any]) -> Iterator[str]:
    samples = {
        "CATEGORY_SPACE": " ",
        "CATEGORY_DIGIT": "1",
        "CATEGORY_WORD": "a",
        "CATEGORY_NOT_SPACE": "x",
        "CATEGORY_NOT_WORD": "-",
        "CATEGORY_NOT_DIGIT": "x",
    }
    negated = any(str(op) == "NEGATE" for op, _ in items)
    for op, value in items:
        name = str(op)
        if name == "LITERAL" and not negated:
            yield chr(value)
        elif name == "RANGE" and not negated:
            yield chr(value[0])
        elif name == "CATEGORY" and not negated:
            yield samples.get(str(value), "x")
    if negated:
        yield "x"
        yield " "
        yield ":"


def attacks(pattern: re.Pattern[Any], length: int) -> Iterator[Any]:
    """Texts of about this length, made of the expression's own parts: the shapes that take a polynomial time."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    flags = pattern.flags & ~re.UNICODE
    parts = list(dict.fromkeys(_parts(parser.parse(text, flags), bool(flags & re.IGNORECASE))))[:24]
    whole = "".join(parts)
    leads = list(dict.fromkeys(["", *parts, *("".join(parts[:n]) for n in range(2, 7)), whole]))
    pumps = list(dict.fromkeys([*parts, " ", "\n", "a", *(a + b for a in parts[:8] for b in parts[:8]), *leads[1:]]))
    for lead in leads[:14]:
        for pump in filter(None, pumps):
            body = lead + pump * (max(1, (length - len(lead)) // len(pump))) + "\0"
            yield body if isinstance(pattern.pattern, str) else body.encode("latin-1", "replace")
