"""Fixtures for what dead attempts left behind, see `tests.harness.orphaned_records`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.harness.orphaned_records import LOGGER, OrphanedRecords

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=LOGGER)
    return caplog


@pytest.fixture
def left(root: str, sandbox: Sandbox, onemin: str) -> OrphanedRecords:
    """On disk and on S3."""
    return OrphanedRecords(sandbox, onemin)


@pytest.fixture
def disk_left(local_root: str, sandbox: Sandbox, onemin: str) -> OrphanedRecords:
    return OrphanedRecords(sandbox, onemin)


@pytest.fixture
def each_left(local_root: str, sandbox: Sandbox, geminiimg_conn_id: str) -> OrphanedRecords:
    """At both gateways."""
    return OrphanedRecords(sandbox, geminiimg_conn_id)


@pytest.fixture
def link_left(root: str, sandbox: Sandbox, apimaster: str) -> OrphanedRecords:
    """A gateway that answers with links and no job id."""
    sandbox.settings(honour_async=False, latency=0.0)
    return OrphanedRecords(sandbox, apimaster)
