"""A protection that ``make mutation`` removes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Protection:
    """A protection, and how to remove it.

    :param name: its promise.
    :param file: its file in the package.
    :param code: the protecting code; it must occur exactly once.
    :param without: the replacement.
    :param live: live rows that need it, if the rows in this process do not; for pytest's ``-k``.
    :param tests: test files that must each fail, with the tests to run for pytest's ``-k``; empty: rows of the matrix
        must fail.
    """

    name: str
    file: str
    code: str
    without: str
    live: str = ""
    tests: Mapping[str, str] = field(default_factory=dict)
