"""Runs a DAG as its author would, with the ``dag.test()`` of whatever Airflow is here; see ``scripts/test_compat``.

`tests.harness.inprocess` knows Airflow's insides, and so one version of them. Here nothing is used but what all have.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import DAG

BUNDLE = "dags-folder"


@dataclass(frozen=True)
class Outcome:
    """One task instance after `run_dag`."""

    state: str
    try_number: int
    value: Any


@pytest.fixture(scope="session")
def _database() -> None:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.sdk.execution_time import supervisor
    from airflow.utils import db

    db.initdb()
    DagBundlesManager().sync_bundles_to_db()
    if not hasattr(supervisor.in_process_api_server, "cache_info"):
        # Kept by Airflow itself from 3.3 on; before, dag.test() makes one for every start of a task, a second each.
        supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)


@pytest.fixture
def run_dag(_database: None) -> Callable[[DAG], dict[str, Outcome]]:
    """``run_dag(dag)`` runs it to its end, and gives what became of each ``task_id``, or ``task_id[map_index]``."""

    def run(dag: DAG) -> dict[str, Outcome]:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        _serialize(dag)
        dag_run = dag.test()
        with create_session() as session:
            rows = session.query(XComModel).filter_by(dag_id=dag.dag_id, run_id=dag_run.run_id, key="return_value")
            values = {_name(row): XComModel.deserialize_value(row) for row in rows}
        return {
            _name(ti): Outcome(str(ti.state), ti.try_number, values.get(_name(ti)))
            for ti in dag_run.get_task_instances()
        }

    return run


@pytest.fixture
def write_dag(_database: None) -> Callable[[DAG], None]:
    """``write_dag(dag)`` stores it as the DAG processor would, and runs nothing."""
    return _serialize


def _name(row: Any) -> str:
    return str(row.task_id) if row.map_index < 0 else f"{row.task_id}[{row.map_index}]"


def _serialize(dag: DAG) -> None:
    """Store `dag` as the DAG processor would: dag.test() looks for it in the database."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    try:
        from airflow.serialization.definitions.dag import SerializedDAG
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import SerializedDAG  # type: ignore[attr-defined]

    dag.validate()
    lazy = LazyDeserializedDAG.from_dag(dag)
    with create_session() as session:
        SerializedDAG.bulk_write_to_db(BUNDLE, None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name=BUNDLE, session=session)
