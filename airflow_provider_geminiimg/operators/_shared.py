"""What operators have in common, however many pictures they buy: checked arguments, and an end to buying."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_geminiimg._compat import TakesTexts
from airflow_provider_geminiimg.request import is_literal

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_geminiimg.runner import Guard


class ChecksArguments(TakesTexts):
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
