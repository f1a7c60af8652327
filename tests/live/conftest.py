"""Fixtures for tests with a whole Airflow. Its start takes 10 to 20 s, so let one test see much."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness import REPOSITORY
from tests.harness.live_airflow import LiveAirflow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., LiveAirflow]]:
    """Start an Airflow: ``live({"my_dag.py": "source"}, {"AIRFLOW_CONN_X": "..."})``. It ends with the test.

    Its home is ``tmp_path / "airflow"``; nothing of the test's own ``AIRFLOW*`` environment reaches it.
    """
    started: list[LiveAirflow] = []

    def start(dags: Mapping[str, str], env: Mapping[str, str] | None = None) -> LiveAirflow:
        folder = tmp_path / "dags"
        folder.mkdir(exist_ok=True)
        for name, source in dags.items():
            (folder / name).write_text(textwrap.dedent(source))
        airflow = LiveAirflow(tmp_path / "airflow", folder, {"PYTHONPATH": str(REPOSITORY), **(env or {})})
        started.append(airflow)
        airflow.start()
        return airflow

    yield start
    for airflow in started:
        airflow.stop()
