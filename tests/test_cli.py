"""Airflow's own command line knows the provider's connections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


def connections_test(conn_id: str, connection: dict[str, object], home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(connection),
        "COLUMNS": "300",
    }
    command = [sys.executable, "-m", "airflow", "connections", "test", conn_id]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_airflow_connections_test_says_whether_the_key_works_and_spends_nothing(
    sandbox: Sandbox, gateway: str, tmp_path: Path
) -> None:
    good = connections_test("good", sandbox.connection(gateway), tmp_path)
    assert "Connection success!" in good.stdout, good.stdout + good.stderr
    bad = connections_test("bad", sandbox.connection(gateway, key="bad-canary-key"), tmp_path)
    assert "Connection failed!" in bad.stdout
    assert "does not accept the API key" in bad.stdout
    assert "bad-canary-key" not in bad.stdout + bad.stderr
    assert sandbox.ledger() == []
