"""Fixtures for attempts at one image, see `tests.harness.shop`. Waits take no time there."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core.purchase import lifecycle
from airflow_provider_geminiimg.core.purchase import submission as submission_module
from tests.harness.shop import Shop

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="a-task")
    monkeypatch.setattr(lifecycle, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(submission_module, "RECORD_AGAIN", 0.02)
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.01)


@pytest.fixture
def shop(root: str, sandbox: Sandbox, quick: None) -> Shop:
    return Shop(root, sandbox)


@pytest.fixture
def disk_shop(local_root: str, sandbox: Sandbox, quick: None) -> Shop:
    return Shop(local_root, sandbox)


@pytest.fixture(params=["1min", "apimaster"])
def each_shop(local_root: str, sandbox: Sandbox, quick: None, request: pytest.FixtureRequest) -> Shop:
    return Shop(local_root, sandbox, request.param)


@pytest.fixture
def link_shop(root: str, sandbox: Sandbox, quick: None) -> Shop:
    """A gateway that answers with links and no job id."""
    sandbox.settings(honour_async=False, latency=0.0)
    return Shop(root, sandbox, "apimaster")
