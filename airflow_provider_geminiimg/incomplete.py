"""Templates that tell where they print a missing value as a word, such as ``None`` in the middle of a prompt.

What must stay true: a value counts where it is printed or made into text, and nowhere else: a condition, a default and
a comparison may do with a missing value what they like. What a DAG's own ``finalize`` makes of a value is printed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, Undefined, nodes, pass_context
from jinja2.visitor import NodeTransformer

from airflow_provider_geminiimg.absent import IncompleteText, is_missing

_TEXT_FILTERS = frozenset(
    (
        *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "replace"),
        *("string", "striptags", "title", "trim", "truncate", "upper", "urlencode", "wordwrap"),
    )
)
"""Filters that make text of whatever they are given."""


def telling(env: Environment, found: list[IncompleteText]) -> Environment:
    """The environment; the missing values that its templates print are put into `found`, too."""
    usual = env.finalize

    @pass_context  # also keeps Jinja from printing constants while it compiles
    def finalize(context: Any, value: Any) -> Any:
        kind = getattr(getattr(usual, "jinja_pass_arg", None), "name", "")
        given = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (env,)}.get(kind, ())
        printed = value if usual is None else usual(*given, value)
        missing = _first_missing(printed)
        if missing is not None:
            found.append(missing)
        return printed

    overlay: Environment = env.overlay(finalize=finalize)
    overlay.filters = {name: _watched(name, each) for name, each in env.filters.items()}
    overlay.code_generator_class = _joining(env.code_generator_class)
    return overlay


def _first_missing(*values: Any) -> IncompleteText | None:
    """The first that is missing, or text in which one is, as such text."""
    for value in values:
        if isinstance(value, IncompleteText):
            return value
        # An undefined value without a name is an inline `if` without `else`, which is meant so.
        named = isinstance(value, Undefined) and value._undefined_name is not None
        if named or (not isinstance(value, Undefined) and is_missing(value)):
            return IncompleteText(str(value), str(value))  # a strict Undefined raises, as it does where it is printed
    return None


def _watched(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose text remembers that a value in it was missing."""
    if name not in _TEXT_FILTERS:
        return usual

    @functools.wraps(usual)  # and so with what Jinja noted on it about the arguments that it takes
    def watched(*args: Any, **kwargs: Any) -> Any:
        made = usual(*args, **kwargs)
        values = args[1:] if hasattr(usual, "jinja_pass_arg") else args
        if name == "join" and values and isinstance(values[0], (list, tuple)):
            values = (*values[0], *values[1:])
        missing = _first_missing(*(values if name in ("format", "join", "replace") else values[:1]))
        return IncompleteText(made, missing.word) if missing is not None and isinstance(made, str) else made

    return watched


def _joining(usual: Any) -> Any:
    """A code generator for which ``a ~ b`` is ``[a, b] | join``, which is watched."""

    class Joining(NodeTransformer):
        def visit_Concat(self, node: nodes.Concat, *args: Any, **kwargs: Any) -> nodes.Node:
            self.generic_visit(node)
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)

    class Generator(usual):  # type: ignore[misc]
        def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
            joined = Joining().visit(node)
            joined.set_environment(self.environment)
            super().visit_Template(joined, frame)

    return Generator
