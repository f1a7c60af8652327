"""Templates that tell where they print a missing value as a word, such as ``None`` in the middle of a prompt.

What must stay true: a value counts where it is printed or made into text, and nowhere else: a condition, a default and
a comparison may do with a missing value what they like. What a DAG's own ``finalize`` makes of a value is printed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote_plus

from jinja2 import Environment, Undefined, pass_context
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import markup_join, str_join
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_geminiimg.core.validation.absent import IncompleteText, is_missing

_TEXT_FILTERS = frozenset(
    (
        *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "replace"),
        *("string", "striptags", "title", "trim", "truncate", "upper", "urlencode", "wordwrap"),
    )
)
"""Filters that make text of whatever they are given."""
_OPERATORS = SandboxedEnvironment.default_binop_table
_DEPTH = 3  # lists and mappings within each other that are looked through for a missing value


def telling(env: Environment, found: list[IncompleteText]) -> Environment:
    """The environment; the missing values that its templates print are put into `found`, too."""
    usual = env.finalize

    @pass_context  # also keeps Jinja from printing constants while it compiles
    def finalize(context: Any, value: Any) -> Any:
        kind = getattr(getattr(usual, "jinja_pass_arg", None), "name", "")
        given = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (env,)}.get(kind, ())
        printed = value if usual is None else usual(*given, value)
        missing = next(_missing([printed], 0), None)
        if missing is not None:
            found.append(missing)
        return printed

    overlay: Any = env.overlay(finalize=finalize, optimized=False)  # nothing is worked out where nobody watches
    overlay.filters = {name: _watched(name, each) for name, each in env.filters.items()}
    # Jinja compiles calls and operators so that its sandbox can look at them; here it is these functions that do.
    overlay.sandboxed, overlay.intercepted_unops, overlay.intercepted_binops = True, frozenset(), frozenset(_OPERATORS)
    overlay.call, overlay.call_binop = functools.partial(_called, env), functools.partial(_operated, env)
    overlay.concatenated = _concatenated
    overlay.code_generator_class = _joining(env.code_generator_class)
    return overlay  # type: ignore[no-any-return]


def _called(env: Any, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """A call in a template. Of functions only methods of texts are watched: a DAG's own print what they like."""
    call = functools.partial(env.call, context) if env.sandboxed else context.call
    made = call(function, *args, **kwargs)
    text = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps `format`
    return _told(made, (text, *args, *kwargs.values())) if isinstance(text, str) else made


def _operated(env: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
    own = env.sandboxed and operator in env.intercepted_binops
    made = env.call_binop(context, operator, left, right) if own else _OPERATORS[operator](left, right)
    return _told(made, (left, right))


def _concatenated(context: Any, parts: tuple[Any, ...]) -> Any:
    return _told((markup_join if context.eval_ctx.autoescape else str_join)(parts), parts)


def _watched(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose text remembers that a missing value is printed in it. A DAG's own filters print what they like."""
    if name not in _TEXT_FILTERS or usual is not FILTERS.get(name):
        return usual

    @functools.wraps(usual)  # and so with what Jinja noted on it about the arguments that it takes
    def watched(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if name == "join" and isinstance(given[1], Iterator):
            given[1] = list(given[1])  # it can be gone through once
        made = usual(*given, **kwargs)
        attribute = kwargs.get("attribute", given[3] if name == "join" and len(given) > 3 else None)
        if attribute is not None:
            given[1] = list(map(make_attrgetter(given[0].environment, attribute), given[1]))
        return _told(made, (*given, *kwargs.values()))

    return watched


def _told(made: Any, parts: Iterable[Any]) -> Any:
    """`made`; text in which a missing value of its parts is printed remembers that."""
    if not isinstance(made, str):
        return made
    return next((IncompleteText(made, each.word) for each in _missing(parts) if _is_printed(each.word, made)), made)


def _missing(values: Iterable[Any], depth: int = _DEPTH) -> Iterator[IncompleteText]:
    """Those that are missing, and texts in which one is, as such text."""
    for value in values:
        # An undefined value without a name is an inline `if` without `else`, which is meant so.
        if isinstance(value, IncompleteText):
            yield value
        elif isinstance(value, Undefined):
            if value._undefined_name is not None:
                yield IncompleteText(str(value), str(value))  # a strict one raises, as it does where it is printed
        elif is_missing(value) or (isinstance(value, (list, tuple)) and all(map(is_missing, value))):
            yield IncompleteText(str(value), str(value))
        if depth and isinstance(value, (Mapping, list, tuple)):
            yield from _missing(value.values() if isinstance(value, Mapping) else value, depth - 1)


def _is_printed(word: str, text: str) -> bool:
    """Whether a word for a missing value is in a text, as filters and methods may have left it."""
    folded = text.casefold()
    return any(each.casefold() in folded for each in (word, FILTERS["escape"](word), quote_plus(word)))


def _joining(usual: Any) -> Any:
    """A code generator for which ``~`` is `_concatenated`."""

    class Generator(usual):  # type: ignore[misc]
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concatenated(context, (")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    return Generator
