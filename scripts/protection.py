"""One protection that ``make mutation`` takes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Protection:
    """One protection, and how it is taken out.

    :param name: what it promises.
    :param file: where it is, in the package.
    :param code: the code that keeps the promise; it must be there once.
    :param without: what stands there instead.
    :param live: the live rows that need it, where those in this process can't tell; as pytest's ``-k`` takes them.
    :param tests: the files of tests of which each has one that turns red, and which to run, as pytest's ``-k`` takes
        them; empty: the rows of the matrix turn red.
    """

    name: str
    file: str
    code: str
    without: str
    live: str = ""
    tests: Mapping[str, str] = field(default_factory=dict)
