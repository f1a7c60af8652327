"""A real Airflow in the test's own process: `AirflowHarness.run_dag` runs a DAG object in about 0.1 s.

What is real: the metadata database, the serialized DAG, the scheduling decisions, the execution API, the task runner
with its rendering, mapping, XComs, task state store and retries, and the records by which a deferred task is resumed.
What is not: executor, processes and log files. For those see ``tests/harness/live_airflow.py``.

What must stay true: this file decides nothing that Airflow decides. A task's state changes only by Airflow's own
functions: `DagRun.schedule_tis`, the execution API, `Trigger.submit_event`, `Trigger.submit_failure`,
`clear_task_instances`. `airflow.sdk.DAG.test` is not used because it drops ``defer(kwargs=...)``, loses crashed
triggers, and sleeps for a second between the pokes of a sensor.

The environment (``AIRFLOW_HOME`` and so on) must be set before this module is imported; ``conftest.py`` does so.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import pkgutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import psutil
import structlog
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.sdk.api.datamodels._generated import TaskInstance as WireTaskInstance
from airflow.sdk.execution_time.supervisor import (
    InProcessSupervisorComms,
    InProcessTestSupervisor,
    run_task_in_process,
    set_supervisor_comms,
)
from airflow.serialization.decoders import smart_decode_trigger_kwargs
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from airflow.triggers.base import TriggerEvent
from airflow.utils import db
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

try:
    from airflow.models.task_coordinates import TaskCoordinateResolver  # type: ignore[import-not-found]
except ImportError:  # Airflow before 3.4 has no loops
    TaskCoordinateResolver = None

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from tests.harness.api_users import ApiUsers

HAS_LOOPS = TaskCoordinateResolver is not None
BUNDLE = "dags-folder"
TriggerFate = Literal["run", "crash", "timeout", "clear"]


@dataclass
class Task:
    """One task instance after its run; mapped tasks have one each `map_index`, tasks in a loop one each `iteration`.

    :param state: ``"success"``, ``"failed"``, ``"skipped"``, ``"upstream_failed"`` and so on.
    :param try_number: 1 after the first attempt. A resumed deferral or a rescheduled sensor is the same attempt.
    :param max_tries: Airflow's own value: it grows on Clear and never on a retry.
    :param value: the return value (XCom), ``None`` where there is none.
    :param error: the exception that left the last execution, ``None`` where none did.
    :param log: everything that was logged while this task or its triggers ran, all attempts together.
    :param executions: how often a worker ran it; every deferral and every reschedule adds one.
    :param triggers: the triggers that it deferred to, as (class path, arguments).
    :param events: the payloads of the events that resumed it.
    :param iteration: of its loop, from 0; ``None`` outside loops.
    :param id: of the row in the database.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    max_tries: int
    value: Any = None
    error: BaseException | None = None
    log: str = ""
    executions: int = 0
    triggers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    iteration: int | None = None
    id: UUID | None = None


@dataclass
class _Trace:
    """What a task instance left behind outside the database."""

    error: BaseException | None = None
    log: list[str] = field(default_factory=list)
    executions: int = 0
    triggers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)


class Run:
    """One DAG run, which `retry` and `clear` carry on. Made by `AirflowHarness.run_dag`.

    :param dag: the DAG as the test built it.
    :param run_id: its id.
    :param triggers: see `AirflowHarness.run_dag`.
    :param timeout: seconds after which a run that does not end fails the test.
    """

    def __init__(self, dag: DAG, run_id: str, *, triggers: Sequence[TriggerFate] = (), timeout: float = 60) -> None:
        self.dag = dag
        self.run_id = run_id
        self._fates: list[TriggerFate] = list(triggers)
        self._timeout = timeout
        self._traces: dict[tuple[Any, ...], _Trace] = {}

    @property
    def state(self) -> str:
        """``"success"`` or ``"failed"``; ``"running"`` while it waits for a person."""
        with create_session() as session:
            return str(self._dag_run(session).state)

    @property
    def log(self) -> str:
        """Everything that all tasks of the run logged."""
        return "".join(line for trace in self._traces.values() for line in trace.log)

    def task(self, task_id: str, map_index: int = -1, iteration: int | None = None) -> Task:
        """One task instance. `map_index` is -1 for a task that is not mapped, `iteration` ``None`` outside loops.

        :raises KeyError: where the run has no such task instance.
        """
        for task in self.tasks(task_id):
            if (task.map_index, task.iteration) == (map_index, iteration):
                return task
        raise KeyError(f"{task_id} with map_index {map_index} in iteration {iteration}")

    def tasks(self, task_id: str | None = None) -> list[Task]:
        """All task instances, of one task where `task_id` is given, by task id, iteration and map index."""
        with create_session() as session:
            tis = [ti for ti in self._task_instances(session) if task_id in (None, ti.task_id)]
            tasks = [self._task(ti, session) for ti in tis]
        return sorted(tasks, key=lambda task: (task.task_id, task.iteration or 0, task.map_index))

    def xcom(self, task_id: str, key: str, map_index: int = -1, iteration: int | None = None) -> Any:
        """The value of an XCom, ``None`` where there is none."""
        with create_session() as session:
            [ti] = [
                ti
                for ti in self._task_instances(session)
                if ti.task_id == task_id and place_of(ti, session) == (map_index, iteration)
            ]
            return self._xcom(session, ti, key)

    def go_on(self) -> Run:
        """Carry on after a person has answered.

        :returns: this run, after its end, or when it waits for a person again.
        """
        return self._finish()

    def retry(self, *task_ids: str, dag: DAG | None = None, triggers: Sequence[TriggerFate] = ()) -> Run:
        """Run tasks again as Airflow's retry does: next try number, same `max_tries`, waiting for no `retry_delay`.

        :param task_ids: which; default: every failed one. Tasks that had no chance because of them run too.
        :param dag: another DAG of the same id, as if its file had been edited in between.
        :param triggers: see `AirflowHarness.run_dag`.
        :returns: this run, after its end.
        """
        self._again(dag, triggers)
        with create_session() as session:
            for ti in self._chosen(session, task_ids):
                # This is what the execution API does when it answers a failure with "up for retry".
                # From Airflow 3.4 on, this ends the row and returns the row of the next try.
                ti = ti.prepare_db_for_next_try(session) or ti
                ti.clear_next_method_args()
                ti.state = TaskInstanceState.UP_FOR_RETRY
                ti.end_date = dt.datetime.fromtimestamp(0, dt.timezone.utc)  # so that any retry delay has passed
            self._dag_run(session).state = DagRunState.RUNNING
        return self._finish()

    def clear(self, *task_ids: str, dag: DAG | None = None, triggers: Sequence[TriggerFate] = ()) -> Run:
        """Clear tasks as the Clear button does (`max_tries` grows), then run them again in the same DAG run.

        :param task_ids: which; default: all of the run.
        :param dag: another DAG of the same id, as if its file had been edited in between.
        :param triggers: see `AirflowHarness.run_dag`.
        :returns: this run, after its end.
        """
        self._again(dag, triggers)
        with create_session() as session:
            chosen = self._chosen(session, task_ids or tuple(self.dag.task_ids))
            clear_task_instances(
                chosen, session, dag_run_state=DagRunState.RUNNING, run_on_latest_version=dag is not None
            )
        return self._finish()

    def clear_by_api(self, api_users: ApiUsers, *tasks: Task, **options: Any) -> Run:
        """Clear single task instances as Airflow's page does, then run them again.

        :param options: of the request, such as ``include_downstream``, ``keep_task_state``.
        :returns: this run, after its end.
        """
        self._again(None, ())
        which = {"dag_run_id": self.run_id, "task_instance_ids": [str(task.id) for task in tasks]}
        body = {"dry_run": False, "only_failed": False, **which, **options}
        said = api_users.call("admin", "POST", f"/api/v2/dags/{self.dag.dag_id}/clearTaskInstances", json=body)
        assert said.status_code == 200, said.text
        with create_session() as session:
            self._dag_run(session).state = DagRunState.RUNNING  # the scheduler starts a queued run
        return self._finish()

    def _start(self, logical_date: dt.datetime, conf: dict[str, Any] | None) -> Run:
        self.create(logical_date, conf)
        return self._finish()

    def create(self, logical_date: dt.datetime, conf: dict[str, Any] | None) -> None:
        """Write the run into the database, for `go_on` to begin it."""
        write_dag(self.dag)
        self._scheduler_dag().create_dagrun(
            run_id=self.run_id,
            logical_date=logical_date,
            data_interval=(logical_date, logical_date),
            run_after=logical_date,
            start_date=logical_date,
            conf=conf,
            run_type=DagRunType.MANUAL,
            state=DagRunState.RUNNING,
            triggered_by=DagRunTriggeredByType.TEST,
        )

    def _again(self, dag: DAG | None, triggers: Sequence[TriggerFate]) -> None:
        self._fates = list(triggers)
        if dag is not None:
            assert dag.dag_id == self.dag.dag_id, "the edited DAG must keep its id"
            self.dag = dag
            write_dag(dag)

    def _finish(self) -> Run:
        """Scheduler, worker and triggerer in one loop, until the run has ended, or only waits for a person."""
        deadline = time.monotonic() + self._timeout
        scheduler_dag = self._scheduler_dag()
        while True:
            with create_session() as session:
                dag_run = self._dag_run(session)
                dag_run.dag = scheduler_dag
                schedulable, _ = dag_run.update_state(session=session)
                if dag_run.state in (DagRunState.SUCCESS, DagRunState.FAILED):
                    return self
                dag_run.schedule_tis(schedulable, session=session)
                session.flush()
                session.expire_all()
                tis = self._task_instances(session)
                states = {f"{ti.task_id}[{ti.map_index}]": ti.state for ti in tis}
                ready = {ti.id for ti in tis if ti.state == TaskInstanceState.SCHEDULED}
                deferred = {ti.id for ti in tis if ti.state == TaskInstanceState.DEFERRED}
            if not ready and not deferred and "awaiting_input" in states.values():
                return self
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run did not end in {self._timeout} s: {states}\n{self.log}")
            if not ready and not deferred:
                time.sleep(0.02)  # a rescheduled sensor or a retry whose time has not come
            for ti_id in sorted(ready):
                self._work(ti_id)
            for ti_id in sorted(deferred):
                self._trigger(ti_id)

    def _work(self, ti_id: UUID) -> None:
        """What a worker does with a task instance that the scheduler has scheduled."""
        with create_session() as session:
            ti = session.get_one(TaskInstance, ti_id)
            ti.state = TaskInstanceState.QUEUED
            wire, trace = _wire(ti, session), self._trace(ti, session)
        trace.executions += 1
        trace.error = None
        with _captured(trace.log):
            trace.error = run_task_in_process(ti=wire, task=self.dag.task_dict[wire.task_id]).error

    def _trigger(self, ti_id: UUID) -> None:
        """What the triggerer does with a deferred task instance, and the scheduler where the trigger is too late."""
        with create_session() as session:
            ti = session.get_one(TaskInstance, ti_id)
            if ti.state != TaskInstanceState.DEFERRED:
                return  # the scheduler found it too late together with another one
            row = session.get_one(Trigger, ti.trigger_id)
            kwargs = {name: smart_decode_trigger_kwargs(value) for name, value in row.kwargs.items()}
            wire, trace = _wire(ti, session), self._trace(ti, session)
            timeout_at, trigger_id, classpath = ti.trigger_timeout, row.id, row.classpath
        trace.triggers.append((classpath, kwargs))
        fate = self._fates.pop(0) if self._fates else "run"
        if fate == "crash":
            Trigger.submit_failure(trigger_id, RuntimeError("the triggerer crashed (as the test asked)"))
            return
        if fate == "timeout":
            self._time_out(ti_id)
            return
        if fate == "clear":
            with create_session() as session:
                clear_task_instances([session.get_one(TaskInstance, ti_id)], session, dag_run_state=DagRunState.RUNNING)
        with _captured(trace.log):
            try:
                event = _run_trigger(classpath, kwargs, wire, timeout_at)
            except _TooLate:
                self._time_out(ti_id)
            except Exception as error:
                Trigger.submit_failure(trigger_id, error)
            else:
                trace.events.append(event.payload)
                Trigger.submit_event(trigger_id, event)

    def _time_out(self, ti_id: UUID) -> None:
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

        with create_session() as session:
            past = dt.datetime.now(dt.timezone.utc) - dt.timedelta(seconds=1)
            session.get_one(TaskInstance, ti_id).trigger_timeout = past
            session.flush()
            scheduler = SchedulerJobRunner.__new__(SchedulerJobRunner)  # its method, without a scheduler's start-up
            scheduler.check_trigger_timeouts(session=session)

    def _scheduler_dag(self) -> SerializedDAG:
        return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(self.dag))

    def _dag_run(self, session: Any) -> DagRun:
        run = session.query(DagRun).filter_by(dag_id=self.dag.dag_id, run_id=self.run_id).one()
        assert isinstance(run, DagRun)
        return run

    def _task_instances(self, session: Any) -> list[TaskInstance]:
        return list(session.query(TaskInstance).filter_by(dag_id=self.dag.dag_id, run_id=self.run_id))

    def _chosen(self, session: Any, task_ids: Sequence[str]) -> list[TaskInstance]:
        stuck = {TaskInstanceState.UPSTREAM_FAILED}
        failed = {TaskInstanceState.FAILED}
        tis = self._task_instances(session)
        chosen = [ti for ti in tis if (ti.task_id in task_ids if task_ids else ti.state in failed)]
        for ti in tis:
            if ti.state in stuck and ti not in chosen:
                ti.state = None
        return chosen

    def _trace(self, ti: TaskInstance, session: Any) -> _Trace:
        return self._traces.setdefault((ti.task_id, *place_of(ti, session)), _Trace())

    def _task(self, ti: TaskInstance, session: Any) -> Task:
        trace = self._trace(ti, session)
        map_index, iteration = place_of(ti, session)
        return Task(
            task_id=ti.task_id,
            map_index=map_index,
            state=None if ti.state is None else str(ti.state),
            try_number=ti.try_number,
            max_tries=ti.max_tries,
            value=self._xcom(session, ti, "return_value"),
            error=trace.error,
            log="".join(trace.log),
            executions=trace.executions,
            triggers=list(trace.triggers),
            events=list(trace.events),
            iteration=iteration,
            id=ti.id,
        )

    def _xcom(self, session: Any, ti: TaskInstance, key: str) -> Any:
        where = {"dag_id": self.dag.dag_id, "run_id": self.run_id, "task_id": ti.task_id, "map_index": ti.map_index}
        if HAS_LOOPS:
            where = {"task_instance_id": ti.id}
        row = session.query(XComModel).filter_by(key=key, **where).one_or_none()
        return None if row is None else XComModel.deserialize_value(row)


class AirflowHarness:
    """Runs DAGs; the fixture ``airflow`` gives one a test, and empties the database of runs after it."""

    def run_dag(
        self,
        dag: DAG,
        *,
        run_id: str = "run",
        conf: dict[str, Any] | None = None,
        logical_date: dt.datetime | None = None,
        triggers: Sequence[TriggerFate] = (),
        timeout: float = 60,
    ) -> Run:
        """Run `dag` to its end, retries and deferrals included, and say what became of it.

        A task's failure is not raised: see `Run.task` for its state, error and log. A task with ``retries`` is tried
        again by itself, as in any Airflow; to change something between two attempts give it none and use `Run.retry`.

        :param dag: built in the test. Trigger classes must be importable, operator classes need not be.
        :param run_id: id of the run; unique for a DAG within one test.
        :param conf: the run's ``dag_run.conf``.
        :param logical_date: default: now.
        :param triggers: what becomes of the triggers of this run in the order in which they start: ``"run"``,
            ``"crash"`` (the triggerer lost it), ``"timeout"`` (the deferral's timeout has passed) or ``"clear"``
            (the deferred task is cleared, and the trigger's event comes too late). Those after the last one run. A
            real ``defer(timeout=...)`` that passes while a trigger runs is kept as well.
        :param timeout: seconds after which a run that does not end is a `TimeoutError`.
        """
        moment = logical_date or dt.datetime.now(dt.timezone.utc)
        return Run(dag, run_id, triggers=triggers, timeout=timeout)._start(moment, conf)

    def run_task(self, operator: Any, **kwargs: Any) -> Task:
        """Run the DAG around `operator`, and return that one task. Other arguments: see `run_dag`."""
        return self.run_dag(operator.dag, **kwargs).task(operator.task_id)

    def close(self) -> None:
        """Forget every run; DAGs stay."""
        with create_session() as session:
            for model in (DagRun, Trigger):
                session.query(model).delete(synchronize_session=False)


def start_airflow() -> None:
    """Make the database of ``AIRFLOW_HOME``. Once a session, about two seconds."""
    db.initdb()
    DagBundlesManager().sync_bundles_to_db()


def write_dag(dag: DAG) -> None:
    """Store `dag` as the DAG processor would."""
    dag.validate()
    lazy = LazyDeserializedDAG.from_dag(dag)
    with create_session() as session:
        SerializedDAG.bulk_write_to_db(BUNDLE, None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name=BUNDLE, session=session)


class _TooLate(Exception):
    """The deferral's own timeout passed before the trigger's event came."""


class _TriggerComms(InProcessSupervisorComms):
    """The triggerer's channel has an async twin of `send`, which Airflow's in-process one lacks."""

    async def asend(self, msg: Any) -> Any:
        return self.send(msg)


def place_of(ti: TaskInstance, session: Any) -> tuple[int, int | None]:
    """The map index and the loop iteration of a task instance. Airflow 3.4 stores either of them in one column."""
    if not HAS_LOOPS:
        return ti.map_index, None
    resolver = TaskCoordinateResolver(DBDagBag(), session)
    loop = resolver.get_loop_iteration(ti)
    return resolver.public_map_index(ti), None if loop is None else loop[1]


def _wire(ti: TaskInstance, session: Any) -> WireTaskInstance:
    assert ti.dag_version_id is not None
    region = {"region_id": ti.region_id, "region_index": ti.region_index} if HAS_LOOPS else {}
    return WireTaskInstance(
        id=ti.id,
        task_id=ti.task_id,
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        try_number=ti.try_number,
        map_index=place_of(ti, session)[0],
        dag_version_id=ti.dag_version_id,
        **region,
    )


def _run_trigger(
    classpath: str, kwargs: dict[str, Any], ti: WireTaskInstance, timeout_at: dt.datetime | None
) -> TriggerEvent:
    trigger = pkgutil.resolve_name(classpath)(**kwargs)
    trigger.task_instance = ti
    supervisor = InProcessTestSupervisor(
        id=ti.id,
        pid=os.getpid(),
        process=psutil.Process(),
        process_log=structlog.get_logger(logger_name="task").bind(),
        client=InProcessTestSupervisor._api_client(),
    )
    supervisor.comms = _TriggerComms(supervisor=supervisor)

    async def first_event() -> TriggerEvent:
        left = None if timeout_at is None else timeout_at.timestamp() - time.time()
        events = trigger.run()
        try:
            event = await asyncio.wait_for(anext(events), left)
        except (asyncio.TimeoutError, TimeoutError):
            if timeout_at is not None and time.time() >= timeout_at.timestamp() - 0.01:
                raise _TooLate from None
            raise
        except StopAsyncIteration:
            raise RuntimeError("Trigger exited without sending an event. Dependent tasks will be failed.") from None
        finally:
            await events.aclose()
            await trigger.cleanup()
        assert isinstance(event, TriggerEvent)
        return event

    with set_supervisor_comms(supervisor.comms):
        return asyncio.run(first_event())


@contextlib.contextmanager
def _captured(lines: list[str]) -> Iterator[None]:
    """Append everything that is logged, through structlog or through `logging`, to `lines`."""
    processors = structlog.get_config()["processors"]  # changed in place: loggers that exist already share this list
    renderer = processors[-1]

    def tee(logger: Any, name: str, event: Any) -> Any:
        rendered = renderer(logger, name, event)
        text = rendered.decode(errors="replace") if isinstance(rendered, bytes) else str(rendered)
        lines.append(text + "\n")
        return rendered

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record) + "\n")

    handler = Handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    targets = [logger for logger in (logging.getLogger(), logging.getLogger("airflow.task")) if logger.handlers]
    processors[-1] = tee
    for target in targets:
        if target.name == "root" or not target.propagate:
            target.addHandler(handler)
    try:
        yield
    finally:
        processors[-1] = renderer
        for target in targets:
            target.removeHandler(handler)
