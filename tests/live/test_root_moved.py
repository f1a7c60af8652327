"""A ledger that was moved away: a cleared task buys nothing. Since Airflow 3.4 the Clear empties the task's state."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness import AIRFLOW
from tests.harness.live_airflow import LiveAirflow

# Only Airflow 3.3 keeps a task's state at a Clear, and the state names the record; else the root's identity tells.
REFUSED = "Airflow's task state has record" if AIRFLOW == (3, 3) else "There is no root.json under"
SOURCE = """
    from airflow.sdk import DAG

    from airflow_provider_geminiimg import GeminiImageGenerateOperator

    with DAG("moved"):
        GeminiImageGenerateOperator(task_id="made", prompt="a red fox", resolution="512", poll_interval=0.5)
"""


def test_a_cleared_task_buys_nothing_if_the_ledger_was_moved_away(
    live: Callable[..., LiveAirflow], tmp_path: Path
) -> None:
    root, moved = tmp_path / "root", tmp_path / "moved"
    with Sandbox(latency=0.5) as sandbox:
        env = {
            "AIRFLOW_CONN_GEMINIIMG_DEFAULT": sandbox.connection_json("1min"),
            "AIRFLOW__GEMINIIMG__ROOT": root.as_uri(),
        }
        airflow = live({"moved.py": SOURCE}, env)
        airflow.trigger("moved", "run")
        assert airflow.wait("moved", "run", timeout=300) == "success"
        before = airflow.xcom("moved", "run", "made")

        root.rename(moved)
        airflow.clear("moved", "run", "made")
        assert airflow.wait("moved", "run", timeout=300) == "failed"
        log = airflow.task_log("moved", "run", "made", attempt=2)
        assert REFUSED in log
        assert len(sandbox.calls("onemin.submit")) == 1

        assert not [*root.rglob("*.json")]
        shutil.rmtree(root, ignore_errors=True)  # the lock and the folder that a check of the storage may leave
        moved.rename(root)
        airflow.clear("moved", "run", "made")
        assert airflow.wait("moved", "run", timeout=300) == "success"
        assert airflow.xcom("moved", "run", "made") == {**before, "reused": True}
        assert len(sandbox.calls("onemin.submit")) == 1
