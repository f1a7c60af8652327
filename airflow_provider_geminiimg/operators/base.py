"""What operators have in common, however many images they buy: checked arguments, and an end to buying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_geminiimg._compat import LiteralXComMixin
from airflow_provider_geminiimg.core.validation.absent import IncompleteText, came_to_nothing
from airflow_provider_geminiimg.core.validation.arguments import is_literal
from airflow_provider_geminiimg.core.validation.task_arguments import UNSET, Checks, TaskArguments

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_geminiimg.core.execution.runner import SubmitGuard

_OF_FUNCTION = ("op_args", "op_kwargs")  # what a function takes is its own business, where it can see what it takes


class CheckedArgumentsMixin(LiteralXComMixin):
    """An operator for which what is written in the DAG and comes to nothing is an error, never an absent argument."""

    template_fields: Sequence[str]
    checks: ClassVar[Checks] = MappingProxyType({})
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

    def _arguments(self) -> TaskArguments:
        """What was rendered, for what runs the task."""
        values = {name: getattr(self, name) for name in (*self.template_fields, *self.checks)}
        return TaskArguments(values, self.checks, self._absent, self._unrendered)

    def _check_literals(self) -> None:
        """Refuse what can be known to be wrong when the DAG is parsed."""
        for name, check in self.checks.items():
            if is_literal(getattr(self, name)):
                check(name, getattr(self, name))


class PaidTaskMixin(CheckedArgumentsMixin):
    """An operator that spends money, until it is told to stop."""

    log: Logger
    _guard: SubmitGuard | None = None
    _killed = False

    def on_kill(self) -> None:
        """From now on nothing is bought. What was paid for stays on record: neither gateway can cancel."""
        self._killed = True
        if self._guard is not None:
            self._guard.stop()
        self.log.warning("Told to stop: nothing is bought from now on. What was paid for stays on record.")

    def _new_guard(self) -> SubmitGuard:
        """What `on_kill` ends from now on; ended already where it came first."""
        from airflow_provider_geminiimg.core.execution.runner import SubmitGuard

        self._guard = SubmitGuard()
        if self._killed:
            self._guard.stop()
        return self._guard
