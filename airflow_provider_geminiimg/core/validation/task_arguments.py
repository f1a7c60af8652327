"""The rendered arguments of a task, which its operator passes to `runtime`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_geminiimg.core.redaction.scrubbing import scrub
from airflow_provider_geminiimg.core.validation.absent import IncompleteText, UndefinedText
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError

UNSET = "unset"
"""The word that a template renders to if the argument counts as not given."""

Checks = Mapping[str, Callable[[str, Any], Any]]

_PROVIDE_VALUE = (
    f"If no value is intended, omit the argument, or let the template render to the word {UNSET}. Otherwise provide "
    "the missing value (an XCom, a Variable, a parameter), then clear the task."
)


@dataclass(frozen=True, slots=True)
class TaskArguments:
    """The rendered arguments of an operator.

    :param values: the rendered value of each argument.
    :param checks: the parser of each argument; it raises `BadRequestError` for a value that is not allowed.
    :param absent: parts of arguments that are missing after rendering: path -> rendered value.
    :param unrendered: arguments that could not be rendered: name -> the missing variable.
    """

    values: Mapping[str, Any] = field(repr=False)
    checks: Checks
    absent: Mapping[str, Any] = field(repr=False)
    unrendered: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        """The rendered value of an argument."""
        return self.values[name]

    def checked(self, name: str) -> Any:
        """The parsed value of an argument.

        :raises BadRequestError: the value is not allowed.
        """
        return self.checks[name](name, self.values[name])

    def without_empty(self, name: str) -> TaskArguments:
        """These arguments; if `name` is missing after rendering, it counts as not given. A name that does not exist,
        and a text with a missing part, stay errors.
        """
        if name not in self.absent or isinstance(self.absent[name], IncompleteText | UndefinedText):
            return self
        absent = {place: value for place, value in self.absent.items() if place != name}
        return replace(self, values={**self.values, name: None}, absent=absent)

    def refuse_unrendered(self) -> None:
        """:raises BadRequestError: a template refers to something that does not exist."""
        for name, why in self.unrendered.items():
            problem = f"cannot be rendered: {scrub(why, limit=200)}."
            raise BadRequestError(f"{name}: {problem}", hint=_PROVIDE_VALUE)

    def refuse_missing(self, names: Collection[str] | None = None) -> None:
        """Refuse arguments that are given in the DAG but missing after rendering.

        :param names: check only these paths; default: all.
        :raises BadRequestError: a part of an argument is missing.
        """
        self.refuse_unrendered()
        for place, value in self.absent.items():
            if names is None or place in names:
                raise BadRequestError(f"{place}{_problem(value)}", hint=_PROVIDE_VALUE)


def _problem(value: Any) -> str:
    if isinstance(value, IncompleteText):  # it may be a prompt, so it is not shown
        return f": a part of it has no value after rendering, and would appear as {value.word!r} in the text."
    return f"{given(value)}: is empty: the value in the DAG is missing after rendering."
