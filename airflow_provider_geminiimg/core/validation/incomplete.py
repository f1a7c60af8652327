"""Detects templates that render a missing value as a word, such as ``None`` in the middle of a prompt.

What must stay true: a missing value counts only where it is printed or converted to text; conditions, defaults and
comparisons may use missing values. If a DAG sets Jinja's ``finalize``, its result is the printed value.
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
"""Filters that convert any value to text."""
_OPERATORS = SandboxedEnvironment.default_binop_table
_DEPTH = 3  # nested lists and mappings that are searched for a missing value


def recording_missing(env: Environment, found: list[IncompleteText]) -> Environment:
    """An overlay of `env` that also appends the missing values which its templates print to `found`."""
    original = env.finalize

    @pass_context  # also prevents Jinja from printing constants during compilation
    def finalize(context: Any, value: Any) -> Any:
        kind = getattr(getattr(original, "jinja_pass_arg", None), "name", "")
        given = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (env,)}.get(kind, ())
        printed = value if original is None else original(*given, value)
        missing = next(_missing([printed], 0), None)
        if missing is not None:
            found.append(missing)
        return printed

    overlay: Any = env.overlay(finalize=finalize, optimized=False)  # no constant folding, which would not be observed
    overlay.filters = {name: _marking_filter(name, each) for name, each in env.filters.items()}
    # As for a sandbox, Jinja compiles calls and operators to calls of these functions.
    overlay.sandboxed, overlay.intercepted_unops, overlay.intercepted_binops = True, frozenset(), frozenset(_OPERATORS)
    overlay.call, overlay.call_binop = functools.partial(_call, env), functools.partial(_binary_operation, env)
    overlay.concatenated = _concatenated
    overlay.code_generator_class = _concatenating(env.code_generator_class)
    return overlay  # type: ignore[no-any-return]


def _call(env: Any, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """A call in a template. Only methods of texts are observed; a DAG's own functions are not."""
    call = functools.partial(env.call, context) if env.sandboxed else context.call
    made = call(function, *args, **kwargs)
    text = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps `format`
    return _marked(made, (text, *args, *kwargs.values())) if isinstance(text, str) else made


def _binary_operation(env: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
    own = env.sandboxed and operator in env.intercepted_binops
    made = env.call_binop(context, operator, left, right) if own else _OPERATORS[operator](left, right)
    return _marked(made, (left, right))


def _concatenated(context: Any, parts: tuple[Any, ...]) -> Any:
    return _marked((markup_join if context.eval_ctx.autoescape else str_join)(parts), parts)


def _marking_filter(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that marks its text as incomplete if it contains a missing value. A DAG's own filters are unchanged."""
    if name not in _TEXT_FILTERS or original is not FILTERS.get(name):
        return original

    @functools.wraps(original)  # also copies Jinja's attributes about its arguments
    def marking(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if name == "join" and isinstance(given[1], Iterator):
            given[1] = list(given[1])  # an iterator can be read only once
        made = original(*given, **kwargs)
        attribute = kwargs.get("attribute", given[3] if name == "join" and len(given) > 3 else None)
        if attribute is not None:
            given[1] = list(map(make_attrgetter(given[0].environment, attribute), given[1]))
        return _marked(made, (*given, *kwargs.values()))

    return marking


def _marked(made: Any, parts: Iterable[Any]) -> Any:
    """`made`, as `IncompleteText` if it is text that contains a missing value of its parts."""
    if not isinstance(made, str):
        return made
    printed = [each for each in _missing(parts) if _is_printed(each.word, made)]
    undefined = any(each.is_undefined for each in printed)
    return IncompleteText(made, printed[0].word, is_undefined=undefined) if printed else made


def _missing(values: Iterable[Any], depth: int = _DEPTH) -> Iterator[IncompleteText]:
    """The missing values and incomplete texts among `values`, each as `IncompleteText`."""
    for value in values:
        # An undefined value without a name comes from an inline `if` without `else`, which is intended.
        if isinstance(value, IncompleteText):
            yield value
        elif isinstance(value, Undefined):
            if value._undefined_name is not None:
                text = str(value)  # StrictUndefined raises here, as when printed
                yield IncompleteText(text, text, is_undefined=True)
        elif is_missing(value) or (isinstance(value, (list, tuple)) and all(map(is_missing, value))):
            yield IncompleteText(str(value), str(value))
        if depth and isinstance(value, (Mapping, list, tuple)):
            yield from _missing(value.values() if isinstance(value, Mapping) else value, depth - 1)


def _is_printed(word: str, text: str) -> bool:
    """Whether a text contains a word for a missing value, also escaped or in another case."""
    folded = text.casefold()
    return any(each.casefold() in folded for each in (word, FILTERS["escape"](word), quote_plus(word)))


def _concatenating(base: Any) -> Any:
    """A code generator that compiles ``~`` to `_concatenated`."""

    class Generator(base):  # type: ignore[misc]
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concatenated(context, (")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    return Generator
