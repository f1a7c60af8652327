"""What a check found."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.exceptions import GeminiImageError, UnexpectedError

_WIDTH = 28  # of the names of checks in the table


class Level(str, enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    :param check: name of the check.
    :param level: an error stops images or endangers money; a warning does not.
    :param message: what was found.
    :param remedy: what to do; empty if there is nothing to do.
    """

    check: str
    level: Level
    message: str
    remedy: str = ""

    def values(self) -> dict[str, Any]:
        """This finding as JSON values."""
        return {**asdict(self), "level": self.level.value}

    def lines(self) -> Iterator[str]:
        """Its lines in the table."""
        yield f"{self.level.value:9}{self.check:{_WIDTH}}  {printable(self.message)}"
        if self.remedy:
            yield f"{'':{_WIDTH + 11}}What to do: {printable(self.remedy)}"


class UnavailableError(Exception):
    """What a check needs is not available in this process.

    :param message: what is missing.
    :param remedy: where it is available.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy


@dataclass(frozen=True)
class Check:
    """Makes the findings of one check.

    :param name: its name.
    """

    name: str

    def ok(self, message: str) -> Finding:
        return Finding(self.name, Level.OK, message)

    def skipped(self, message: str, remedy: str = "") -> Finding:
        return Finding(self.name, Level.SKIPPED, message, remedy)

    def warning(self, message: str, remedy: str) -> Finding:
        return Finding(self.name, Level.WARNING, message, remedy)

    def error(self, message: str, remedy: str) -> Finding:
        return Finding(self.name, Level.ERROR, message, remedy)

    def failed(self, error: GeminiImageError, level: Level = Level.ERROR) -> Finding:
        """The finding for an error of this package."""
        if isinstance(error, UnexpectedError):
            return Finding(
                self.name, level, error.message, "Run the doctor again. If it happens again, report this line."
            )
        # The hints of errors are written for tasks.
        hint = error.hint.replace(", then clear the task", "").replace("Nothing was sent by this attempt. ", "")
        said = f" The answer was: {error.gateway_message}" if error.gateway_message else ""
        return Finding(
            self.name, level, f"{error.message}{said}", hint or "Read the message, and run the doctor again."
        )


def summary(findings: Iterable[Finding]) -> str:
    """The number of errors and warnings, in words."""
    levels = [finding.level for finding in findings]
    errors, warnings, skipped = (levels.count(level) for level in (Level.ERROR, Level.WARNING, Level.SKIPPED))
    return f"{len(levels)} findings: errors {errors}, warnings {warnings}, skipped {skipped}."
