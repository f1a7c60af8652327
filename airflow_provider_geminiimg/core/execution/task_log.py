"""The task log: an error while logging must not come between a payment and its record.

Invariant: a line that can't be written is dropped, without an exception. A task whose supervisor was killed logs into a
broken pipe, and may hold the only knowledge of a paid job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from airflow_provider_geminiimg.core.redaction.printable import printable


class Logs(Protocol):
    """The logger methods that this package uses. Airflow's and the standard library's loggers have them."""

    def debug(self, message: Any, /, *args: Any) -> Any: ...
    def info(self, message: Any, /, *args: Any) -> Any: ...
    def warning(self, message: Any, /, *args: Any) -> Any: ...
    def error(self, message: Any, /, *args: Any) -> Any: ...


class SteadyLogs:
    """A logger that never raises and writes one line per message.

    :param log: the underlying logger.
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
