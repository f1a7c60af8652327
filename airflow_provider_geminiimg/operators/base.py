"""Base classes of all operators: rendered arguments with their checks, and the stop signal for paid requests.

Invariant: an argument that is set in the DAG and renders to nothing is an error. It never counts as not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_geminiimg._compat import LiteralXComMixin
from airflow_provider_geminiimg.core.validation.absent import IncompleteText, UndefinedText, missing_after_rendering
from airflow_provider_geminiimg.core.validation.arguments import is_literal
from airflow_provider_geminiimg.core.validation.task_arguments import UNSET, Checks, TaskArguments

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_geminiimg.core.execution.runner import SubmitGuard

_OF_FUNCTION = ("op_args", "op_kwargs")  # the decorated function checks empty values of its own arguments


class CheckedArgumentsMixin(LiteralXComMixin):
    """Checks the arguments after rendering. An argument that is set in the DAG and renders to nothing is an error."""

    template_fields: Sequence[str]
    checks: ClassVar[Checks] = MappingProxyType({})
    _absent: Mapping[str, Any] = MappingProxyType({})  # path of an empty argument -> its rendered value
    _unrendered: Mapping[str, str] = MappingProxyType({})  # argument -> why it can't be rendered

    def _rendered(
        self,
        name: str,
        written: Any,
        rendered: Any,
        incomplete: Mapping[int, IncompleteText] = MappingProxyType({}),
        why: str = "",
    ) -> None:
        if why:
            setattr(self, name, None)  # the text of a template must not be used as the value
            self._unrendered = {**self._unrendered, name: why}
            return
        if isinstance(written, str) and isinstance(rendered, str) and written != rendered and rendered.strip() == UNSET:
            setattr(self, name, None)
            return
        found = dict(missing_after_rendering(name, written, rendered, incomplete))
        if incomplete and not any(isinstance(value, IncompleteText) for value in found.values()):
            found[name] = next(iter(incomplete.values()))  # inside a set, or inside an object with template fields
        if name in _OF_FUNCTION:
            found = {place: value for place, value in found.items() if isinstance(value, IncompleteText)}
        if name in found and not isinstance(rendered, (str, Sized)):
            setattr(self, name, None)  # Airflow can't serialize NaN as a rendered field
        if name in found and self._is_undefined:
            found[name] = UndefinedText(found[name])
        self._absent = {**self._absent, **found}

    def _arguments(self) -> TaskArguments:
        """The rendered arguments, with their parsers, for `runtime`."""
        values = {name: getattr(self, name) for name in (*self.template_fields, *self.checks)}
        return TaskArguments(values, self.checks, self._absent, self._unrendered)

    def _check_literals(self) -> None:
        """Check the arguments that are not templates, when the DAG is parsed.

        :raises BadRequestError: one is wrong.
        """
        for name, check in self.checks.items():
            if is_literal(getattr(self, name)):
                check(name, getattr(self, name))


class PaidTaskMixin(CheckedArgumentsMixin):
    """An operator that sends paid requests until Airflow kills the task."""

    log: Logger
    _guard: SubmitGuard | None = None
    _killed = False

    def on_kill(self) -> None:
        """Send no further paid requests. Paid jobs stay in the ledger, because neither gateway can cancel a job."""
        self._killed = True
        if self._guard is not None:
            self._guard.stop()
        self.log.warning(
            "Kill received: no further paid requests. Paid jobs stay in the ledger; the next attempt collects them."
        )

    def _new_guard(self) -> SubmitGuard:
        """The stop flag that `on_kill` sets; it is already set if `on_kill` was called before."""
        from airflow_provider_geminiimg.core.execution.runner import SubmitGuard

        self._guard = SubmitGuard()
        if self._killed:
            self._guard.stop()
        return self._guard
