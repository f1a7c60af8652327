"""What the rows of the failure matrix share: a gateway each, and waits that take no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.inprocess import AirflowHarness
    from harness.rows import Play

    from airflow_provider_geminiimg.sandbox import Sandbox


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_geminiimg import lifecycle

    monkeypatch.setattr(lifecycle, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(lifecycle.random, "uniform", lambda low, high: 0.01)


@pytest.fixture
def stage(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str], local_root: str, gateway: str, mode: str
) -> Play:
    """One item on its way, with the root on disk. Needs the parameters ``gateway`` and ``mode``."""
    from harness.rows import Play

    return Play(airflow, sandbox, connect, local_root, gateway, mode)
