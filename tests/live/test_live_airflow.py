"""The live Airflow itself: what the other live tests and the demo build on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.harness.live_airflow import LiveAirflow

TINY = """
    import datetime as dt
    from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
    from airflow.sdk import DAG, Connection, task

    with DAG("tiny", start_date=dt.datetime(2020, 1, 1), schedule=None):

        @task
        def host(**context):
            return [Connection.get("somewhere").host, context["dag_run"].conf["a"]]

        @task
        def double(number):
            print("doubling", number)
            return number * 2

        wait = TimeDeltaSensor(task_id="wait", delta=dt.timedelta(seconds=1), deferrable=True)
        wait >> double.expand(number=[1, 2])
        host()
"""
STUCK = """
    import os
    import pathlib
    import time

    from airflow.sdk import DAG, task

    with DAG("stuck"):

        @task
        def sleep():
            path = pathlib.Path(os.environ["PID_FILE"])
            path.with_suffix(".part").write_text(str(os.getpid()))
            path.with_suffix(".part").rename(path)
            time.sleep(600)

        sleep()
"""


def wait_until(met: Callable[[], object], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_dag_runs_is_cleared_and_its_triggerer_may_be_replaced(live: Callable[..., LiveAirflow]) -> None:
    airflow = live({"tiny.py": TINY}, {"AIRFLOW_CONN_SOMEWHERE": '{"conn_type": "http", "host": "there"}'})
    airflow.trigger("tiny", "run:1", {"a": 7})
    looks: list[int] = []
    assert airflow.wait("tiny", "run:1", watch=lambda tis: looks.append(len(tis))) == "success"
    assert looks

    found = {(ti["task_id"], ti["map_index"]): ti["state"] for ti in airflow.task_instances("tiny", "run:1")}
    assert found == dict.fromkeys([("double", 0), ("double", 1), ("host", -1), ("wait", -1)], "success")
    assert airflow.xcom("tiny", "run:1", "host") == ["there", 7]
    assert airflow.xcom("tiny", "run:1", "double", map_index=1) == 4
    assert "doubling 2" in airflow.task_log("tiny", "run:1", "double", map_index=1)
    assert airflow.run("tiny", "no such run") is None

    airflow.kill("triggerer")
    airflow.spawn("triggerer")
    airflow.clear("tiny", "run:1", "wait")
    assert airflow.wait("tiny", "run:1") == "success"
    tries = {ti["task_id"]: (ti["try_number"], ti["max_tries"]) for ti in airflow.task_instances("tiny", "run:1")}
    assert tries["wait"] == (2, 1)
    assert tries["host"] == (1, 0)


def test_nothing_outlives_stop_not_even_an_orphaned_task(live: Callable[..., LiveAirflow], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    airflow = live({"stuck.py": STUCK}, {"PID_FILE": str(pid_file)})
    airflow.trigger("stuck", "run")
    wait_until(pid_file.exists)
    task = psutil.Process(int(pid_file.read_text()))
    supervisor = task.parent()
    assert supervisor is not None
    supervisor.kill()
    airflow.kill("dag-processor", signal.SIGSTOP)
    wait_until(lambda: task.ppid() != supervisor.pid)
    everyone = [*airflow.processes()]
    assert task in everyone
    airflow.stop()
    assert not [each for each in everyone if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_component_that_ends_is_an_error_with_its_log(tmp_path: Path) -> None:
    airflow = LiveAirflow(tmp_path / "home", tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)no-such-component ended with 2.*invalid choice"):
        airflow.start(("no-such-component",))
    assert not airflow.pids


def test_the_environment_of_the_tests_does_not_leak_into_it(tmp_path: Path) -> None:
    airflow = LiveAirflow(tmp_path / "home", tmp_path, {"MINE": "1"})
    assert os.environ["AIRFLOW_HOME"] not in airflow.env.values()
    assert airflow.env["MINE"] == "1"
    again = LiveAirflow(tmp_path / "home", tmp_path)
    assert again.env["AIRFLOW__CORE__FERNET_KEY"] == airflow.env["AIRFLOW__CORE__FERNET_KEY"]
