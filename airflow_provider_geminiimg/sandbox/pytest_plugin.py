"""The pytest fixture `geminiimg_sandbox`.

Add ``pytest_plugins = ["airflow_provider_geminiimg.sandbox.pytest_plugin"]`` to your top-level ``conftest.py``. One
sandbox serves the whole session, and is empty at the start of every test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox.server import Sandbox


@pytest.fixture(scope="session")
def _geminiimg_sandbox_server() -> Iterator[Sandbox]:
    from airflow_provider_geminiimg.sandbox.server import Sandbox

    with Sandbox(latency=0.2) as box:
        yield box


@pytest.fixture
def geminiimg_sandbox(_geminiimg_sandbox_server: Sandbox) -> Sandbox:
    """A running, empty sandbox on a free port, with a latency of 0.2 s."""
    _geminiimg_sandbox_server.reset()
    return _geminiimg_sandbox_server
