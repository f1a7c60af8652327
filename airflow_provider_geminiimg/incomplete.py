"""Templates that tell where they print a missing value as a word, such as ``None`` in the middle of a prompt.

What must stay true: a value counts where it is printed or made into text, and nowhere else: a condition, a default and
a comparison may do with a missing value what they like. What a DAG's own ``finalize`` makes of a value is printed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from typing import Any
from urllib.parse import quote_plus

from jinja2 import Environment, Undefined, nodes, pass_context, pass_eval_context
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import markup_join, str_join
from jinja2.visitor import NodeTransformer

from airflow_provider_geminiimg.absent import IncompleteText, is_missing

_TEXT_FILTERS = frozenset(
    (
        *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "replace"),
        *("string", "striptags", "title", "trim", "truncate", "upper", "urlencode", "wordwrap"),
    )
)
"""Filters that make text of whatever they are given."""
_ALL_COUNT = ("format", "join", "replace", "%", ".format", "~")  # of which the arguments are put into the text, too


def _percent(template: Any, values: Any) -> Any:
    return template % values


@pass_context
def _format(context: Any, template: Any, *values: Any, **named: Any) -> Any:
    env = context.environment
    method = env.getattr(template, "format")
    # As Jinja calls it: in a sandbox a format must not get at what a template must not.
    return getattr(env, "call", context.call)(*([context] if hasattr(env, "call") else []), method, *values, **named)


@pass_eval_context
def _concat(eval_ctx: Any, parts: Any) -> Any:
    return (markup_join if eval_ctx.autoescape else str_join)(parts)


_OPERATIONS: dict[str, Callable[..., Any]] = {"%": _percent, ".format": _format, "~": _concat}
"""What makes text without being a filter, as filters of names that no template can write."""


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
    overlay.filters = {name: _watched(name, each) for name, each in {**env.filters, **_OPERATIONS}.items()}
    overlay.code_generator_class = _with_filters(env.code_generator_class)
    return overlay


def _first_missing(*values: Any) -> IncompleteText | None:
    """The first that is missing, or text in which one is, as such text."""
    for value in values:
        if isinstance(value, IncompleteText):
            return value
        # An undefined value without a name is an inline `if` without `else`, which is meant so.
        named = isinstance(value, Undefined) and value._undefined_name is not None
        if named or (not isinstance(value, Undefined) and (is_missing(value) or _all_missing(value))):
            return IncompleteText(str(value), str(value))  # a strict Undefined raises, as it does where it is printed
    return None


def _all_missing(value: Any) -> bool:
    """Whether it is a list of nothing, as an XCom of several tasks is where none returned anything."""
    return isinstance(value, (list, tuple)) and all(map(is_missing, value))


def _watched(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose text remembers that a missing value is printed in it. A DAG's own filters print what they like."""
    if usual is not _OPERATIONS.get(name) and (name not in _TEXT_FILTERS or usual is not FILTERS.get(name)):
        return usual
    first = 1 if hasattr(usual, "jinja_pass_arg") else 0

    @functools.wraps(usual)  # and so with what Jinja noted on it about the arguments that it takes
    def watched(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if name == "join" and len(given) > first and isinstance(given[first], Iterator):
            given[first] = list(given[first])  # it can be gone through once
        made = usual(*given, **kwargs)
        values = [*given[first:], *kwargs.values()]
        counted = values if name in _ALL_COUNT else values[:1]
        listed = _joined(*given, **kwargs) if name == "join" else _listed(counted) if name in ("%", "~") else ()
        missing = _first_missing(*counted, *listed)
        printed = missing is not None and isinstance(made, str) and _is_printed(missing.word, made)
        return IncompleteText(made, missing.word) if missing is not None and printed else made

    return watched


def _listed(values: Iterable[Any]) -> Iterator[Any]:
    """What stands in the lists and mappings among some values."""
    for value in values:
        part = value.values() if isinstance(value, Mapping) else value
        if isinstance(part, (list, tuple, ValuesView)):
            yield from part


def _joined(eval_ctx: Any, value: Any = (), d: Any = "", attribute: Any = None) -> Iterator[Any]:
    """What the filter `join` puts together."""
    if isinstance(value, (str, Undefined)) or not isinstance(value, Iterable):
        return
    yield from value if attribute is None else map(make_attrgetter(eval_ctx.environment, attribute), value)


def _is_printed(word: str, text: str) -> bool:
    """Whether a filter left the word for a missing value in what it made: an empty list joins to no text at all."""
    folded = text.casefold()
    return any(each.casefold() in folded for each in (word, FILTERS["escape"](word), quote_plus(word)))


def _with_filters(usual: Any) -> Any:
    """A code generator for which what makes text of values is a filter, which is watched."""

    class AsFilters(NodeTransformer):
        def visit_Concat(self, node: nodes.Concat, *args: Any, **kwargs: Any) -> nodes.Node:
            self.generic_visit(node)
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(parts, "~", [], [], None, None, lineno=node.lineno)

        def visit_Mod(self, node: nodes.Mod, *args: Any, **kwargs: Any) -> nodes.Node:
            self.generic_visit(node)
            return nodes.Filter(node.left, "%", [node.right], [], None, None, lineno=node.lineno)

        def visit_Call(self, node: nodes.Call, *args: Any, **kwargs: Any) -> nodes.Node:
            self.generic_visit(node)
            if not (isinstance(node.node, nodes.Getattr) and node.node.attr == "format"):
                return node
            given = (node.args, node.kwargs, node.dyn_args, node.dyn_kwargs)
            return nodes.Filter(node.node.node, ".format", *given, lineno=node.lineno)

        def visit_CallBlock(self, node: nodes.CallBlock, *args: Any, **kwargs: Any) -> nodes.Node:
            call = node.call
            self.generic_visit(node)
            node.call = call  # it must stay a call
            return node

    class Generator(usual):  # type: ignore[misc]
        def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
            changed = AsFilters().visit(node)
            changed.set_environment(self.environment)
            super().visit_Template(changed, frame)

    return Generator
