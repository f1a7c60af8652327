"""Nothing that these tests start outlives them, also when they are asked to end."""

from __future__ import annotations

from scripts.playground import end_when_asked


def pytest_configure() -> None:
    end_when_asked()
