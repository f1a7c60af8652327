"""The rendered arguments of a task, as its operator hands them to what runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_geminiimg.core.redaction.scrubbing import scrub
from airflow_provider_geminiimg.core.validation.absent import IncompleteText
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError

UNSET = "unset"
"""What a template renders to where it means that the argument shall count as not given."""

Checks = Mapping[str, Callable[[str, Any], Any]]

_WANT_NOTHING = (
    f"Where nothing is meant, leave the argument out, or let the template render to the word {UNSET}. Otherwise give "
    "the value that is missing (an XCom, a Variable, a parameter), then clear the task."
)


@dataclass(frozen=True, slots=True)
class TaskArguments:
    """What an operator was given, after rendering.

    :param values: argument -> what it was rendered to.
    :param checks: argument -> what reads its value, and raises `BadRequestError` where it is none.
    :param absent: place in an argument -> what is left there of something that the DAG says.
    :param unrendered: argument -> what its template names that is not there.
    """

    values: Mapping[str, Any] = field(repr=False)
    checks: Checks
    absent: Mapping[str, Any] = field(repr=False)
    unrendered: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        """The argument as it was rendered."""
        return self.values[name]

    def checked(self, name: str) -> Any:
        """The argument, read.

        :raises BadRequestError: it is none of what it can be.
        """
        return self.checks[name](name, self.values[name])

    def refuse_unrendered(self) -> None:
        """:raises BadRequestError: a template names something that is not there."""
        for name, why in self.unrendered.items():
            problem = f"can't be rendered: {scrub(why, limit=200)}."
            raise BadRequestError(f"{name}: {problem}", hint=_WANT_NOTHING)

    def refuse_nothing(self, names: Collection[str] | None = None) -> None:
        """Refuse what came to nothing.

        :param names: of these arguments alone.
        :raises BadRequestError: an argument is written in the DAG, and nothing is left of it.
        """
        self.refuse_unrendered()
        for place, value in self.absent.items():
            if names is None or place in names:
                raise BadRequestError(f"{place}{_problem(value)}", hint=_WANT_NOTHING)


def _problem(value: Any) -> str:
    if isinstance(value, IncompleteText):  # which may be a prompt, and so is not shown
        return f": a part of it came to nothing when it was rendered, and would be {value.word!r} in the text."
    return f"{given(value)}: is empty: what the DAG says came to nothing when it was rendered."
