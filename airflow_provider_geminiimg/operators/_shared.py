"""What operators have in common, however many pictures they buy: checked arguments, and an end to buying."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sized
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_geminiimg._compat import TakesTexts
from airflow_provider_geminiimg.core.request import given, is_literal
from airflow_provider_geminiimg.core.validation.absent import IncompleteText, came_to_nothing
from airflow_provider_geminiimg.exceptions import BadRequestError, scrub

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_geminiimg.core.execution.runner import Guard

UNSET = "unset"
"""What a template renders to where it means that the argument shall count as not given."""

_OF_FUNCTION = ("op_args", "op_kwargs")  # what a function takes is its own business, where it can see what it takes
_WANT_NOTHING = (
    f"Where nothing is meant, leave the argument out, or let the template render to the word {UNSET}. Otherwise give "
    "the value that is missing (an XCom, a Variable, a parameter), then clear the task."
)


class RefusesNothing(TakesTexts):
    """An operator for which what is written in the DAG and comes to nothing is an error, never an absent argument."""

    _absent: Mapping[str, Any] = MappingProxyType({})  # place -> what it came to
    _unrendered: Mapping[str, str] = MappingProxyType({})  # argument -> what is missing

    def _rendered(
        self,
        name: str,
        written: Any,
        rendered: Any,
        incomplete: Mapping[int, IncompleteText] = MappingProxyType({}),
        why: str = "",
    ) -> None:
        if why:
            setattr(self, name, None)  # a template's own text is no argument
            self._unrendered = {**self._unrendered, name: why}
            return
        if isinstance(written, str) and isinstance(rendered, str) and written != rendered and rendered.strip() == UNSET:
            setattr(self, name, None)
            return
        found = dict(came_to_nothing(name, written, rendered, incomplete))
        if incomplete and not any(isinstance(value, IncompleteText) for value in found.values()):
            found[name] = next(iter(incomplete.values()))  # in a set, or in an object with arguments of its own
        if name in _OF_FUNCTION:
            found = {place: value for place, value in found.items() if isinstance(value, IncompleteText)}
        if name in found and not isinstance(rendered, (str, Sized)):
            setattr(self, name, None)  # Airflow can't show NaN among the rendered fields
        self._absent = {**self._absent, **found}

    def _refuse_unrendered(self) -> None:
        """:raises BadRequestError: a template names something that is not there."""
        for name, why in self._unrendered.items():
            problem = f"can't be rendered: {scrub(why, limit=200)}."
            raise BadRequestError(f"{name}: {problem}", hint=_WANT_NOTHING)

    def _refuse_nothing(self, names: Collection[str] | None = None) -> None:
        """Refuse what came to nothing.

        :param names: of these arguments alone.
        :raises BadRequestError: an argument is written in the DAG, and nothing is left of it.
        """
        self._refuse_unrendered()
        for place, value in self._absent.items():
            if names is None or place in names:
                raise BadRequestError(f"{place}{_problem(value)}", hint=_WANT_NOTHING)


def _problem(value: Any) -> str:
    if isinstance(value, IncompleteText):  # which may be a prompt, and so is not shown
        return f": a part of it came to nothing when it was rendered, and would be {value.word!r} in the text."
    return f"{given(value)}: is empty: what the DAG says came to nothing when it was rendered."


class ChecksArguments(RefusesNothing):
    """An operator that knows of each of its own arguments what it takes."""

    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]]

    def _checked(self, name: str) -> Any:
        """The rendered argument.

        :raises BadRequestError: it is none of what it can be.
        """
        return self.checks[name](name, getattr(self, name))

    def _check_literals(self) -> None:
        """Refuse what can be known to be wrong when the DAG is parsed."""
        for name in self.checks:
            if is_literal(getattr(self, name)):
                self._checked(name)


class BuysPictures(ChecksArguments):
    """An operator that spends money, until it is told to stop."""

    log: Logger
    _guard: Guard | None = None
    _killed = False

    def on_kill(self) -> None:
        """From now on nothing is bought. What was paid for stays on record: neither gateway can cancel."""
        self._killed = True
        if self._guard is not None:
            self._guard.stop()
        self.log.warning("Told to stop: nothing is bought from now on. What was paid for stays on record.")

    def _stopped_through(self, guard: Guard) -> None:
        """Let `on_kill` end what this guard watches, also where it came first."""
        self._guard = guard
        if self._killed:
            guard.stop()
