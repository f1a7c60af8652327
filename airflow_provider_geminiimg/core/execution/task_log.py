"""The task's log: a line that can't be written must not come between a payment and its record.

What must stay true: such a line is lost, nothing else. A task whose supervisor was killed logs into a broken pipe, and
may be the only one who knows what was just paid for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from airflow_provider_geminiimg.core.redaction.printable import printable


class Logs(Protocol):
    """The part of a logger that is used here; Airflow's and the standard library's both have it."""

    def debug(self, message: Any, /, *args: Any) -> Any: ...
    def info(self, message: Any, /, *args: Any) -> Any: ...
    def warning(self, message: Any, /, *args: Any) -> Any: ...
    def error(self, message: Any, /, *args: Any) -> Any: ...


class SteadyLogs:
    """A logger whose own failures stay its own, and whose lines are each one line, whatever is said in them.

    :param log: where the lines go.
    """

    def __init__(self, log: Logs) -> None:
        self._log = log

    def debug(self, message: Any, /, *args: Any) -> None:
        self._say(self._log.debug, message, args)

    def info(self, message: Any, /, *args: Any) -> None:
        self._say(self._log.info, message, args)

    def warning(self, message: Any, /, *args: Any) -> None:
        self._say(self._log.warning, message, args)

    def error(self, message: Any, /, *args: Any) -> None:
        self._say(self._log.error, message, args)

    def _say(self, say: Callable[..., Any], message: Any, args: tuple[Any, ...]) -> None:
        with contextlib.suppress(Exception):
            say("%s", printable(str(message) % args if args else str(message)))
