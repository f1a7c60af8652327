"""One try of one task instance, from Airflow's context. Operators and the sensor use it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from airflow_provider_geminiimg._compat import has_supervisor, iteration_of
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.root_identity import RootCheck, RunStart
from airflow_provider_geminiimg.core.purchase.context import PUT_BACK
from airflow_provider_geminiimg.core.purchase.landing import mismatch_error
from airflow_provider_geminiimg.core.purchase.order import Marker
from airflow_provider_geminiimg.core.storage import encode_segment, join_uri
from airflow_provider_geminiimg.core.validation.arguments import OnMismatch, portable_stem, stem, text
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError, Billed, GeminiImageError
from airflow_provider_geminiimg.runtime.environment import Environment
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.root_variable import RootVariable
from airflow_provider_geminiimg.runtime.task_state import TaskState
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

MAX_DEFERRALS = 2  # after a trigger crashed; then the task waits in the worker
BACKSTOP = 120.0  # seconds after the trigger's own deadline; then Airflow ends a trigger that never ran


@dataclass(frozen=True, slots=True)
class Landed:
    """The image is in storage.

    :param manifest: the return value of the task.
    """

    record: Record
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pending:
    """The job is running; the task may defer.

    :param trigger: waits for the job.
    :param timeout: after this time Airflow ends the trigger.
    :param deadline: end of the wait for the job, in Unix seconds.
    """

    record: Record
    trigger: GeminiImageJobTrigger
    timeout: timedelta
    deadline: float


class TaskRun(Environment):
    """One try of a task instance: its ledger item, its marker in Airflow, its connections.

    :param context: Airflow's context of the running task.
    :param log: the logger of the task.
    """

    def __init__(self, context: Mapping[str, Any], log: Logs) -> None:
        super().__init__(log)
        ti = context["ti"]
        self._state = TaskState.of(context)
        self.marker = None if self._state is None else self._state.image()
        self.plan_marker = None if self._state is None else self._state.plan()
        self.generation = int(ti.max_tries or 0)
        at = (self.namespace, ti.dag_id, ti.run_id, ti.task_id, int(ti.map_index))
        self.item = Item(*at, iteration=iteration_of(context))
        self._ti, dag_run = ti, context.get("dag_run")
        since = 0.0 if dag_run is None else dag_run.run_after.timestamp()
        self._run = RunStart(f"{ti.dag_id}\n{ti.run_id}", since)

    def connection(self, conn_id: Any) -> GatewayConnection:
        """The connection that the rendered argument `geminiimg_conn_id` names.

        :raises BadRequestError: the argument is not a text, or the connection is missing or wrong.
        :raises AuthenticationError: the connection has no API key.
        """
        name = text("geminiimg_conn_id", conn_id)
        if name is None:
            raise BadRequestError(f"geminiimg_conn_id{given(conn_id)}: takes the id of an Airflow connection.")
        try:
            return super().connection(name)
        except (BadRequestError, AuthenticationError) as error:
            if self._has_records():  # this attempt spent nothing, but an earlier one may have
                raise error.evolve(billed=Billed.UNKNOWN, hint=PUT_BACK) from error.__cause__
            raise

    def _has_records(self) -> bool:
        """Whether earlier attempts of this task instance left records; true if the store can't be read."""
        try:
            return any(self.ledger.store.keys(f"{self.item.path.rpartition('/')[0]}/"))
        except GeminiImageError:
            return True

    def prefetch(self, items: Iterable[str]) -> None:
        """Read ahead which of these items of this task instance have records."""
        self.ledger.prefetch(self.item, items)

    def item_marker(self, item: str) -> Marker | None:
        """Marker for one image of a batch in the task state store; ``None`` before Airflow 3.3."""
        return None if self._state is None else self._state.item(item)

    def root_check(self) -> RootCheck | None:
        """The check of the root before a purchase; ``None`` where no Airflow runs the task, which keeps the identity.

        A later iteration of a loop counts as a later attempt, because Airflow creates it again after a Clear.
        """
        if not has_supervisor():
            return None
        known = RootVariable(self.root)
        return RootCheck(
            self.ledger.store,
            known,
            self.log,
            first_attempt=self.is_first_attempt,
            run=self._run,
            namespace=self.namespace,
        )

    @property
    def is_first_attempt(self) -> bool:
        """Whether no earlier attempt can have left a record."""
        return self._ti.try_number <= 1 and not self.item.iteration

    @property
    def folder(self) -> str:
        """Directory for the images of this task instance, under the root."""
        return join_uri(self.root, self.item.images)

    @property
    def manifest(self) -> str:
        """URI of the manifest of a batch."""
        return join_uri(self.folder, "manifest.jsonl")

    def destination(self, output_path: str | None, file_name: str | None, variant: str | None = None) -> Destination:
        """The directory and the file name for the image.

        :param output_path: directory URI. Default: the directory of this task instance under the root.
        :param file_name: name without extension. Default: the task id, with suffixes for the iteration of a loop, the
            map index and the variant, and for the run if `output_path` is given.
        :raises BadRequestError: the file name is a path, hidden, too long, or has the extension of an image.
        """
        item = self.item
        within = "" if item.iteration is None else f"-iteration{item.iteration}"
        within += "" if item.map_index < 0 else f"-{item.map_index}"
        run = "" if not output_path else "-" + hashlib.sha256(f"{item.dag_id}\n{item.run_id}".encode()).hexdigest()[:8]
        usual = portable_stem(encode_segment(f"{item.task_id}{run}{within}{f'-v{variant}' if variant else ''}"))
        directory = text("output_path", output_path) or self.folder
        return Destination(directory.rstrip("/"), stem("file_name", file_name) or usual)

    def count_deferral(self, record: Record) -> Record:
        """Count on the record that its trigger was started again."""
        return self.ledger.change(record.key, lambda stored: replace(stored, deferrals=stored.deferrals + 1))

    def pending(self, record: Record, deadline: float, poll_interval: float | None) -> Pending:
        """The deferral that waits for the job of `record`.

        :param deadline: end of the wait, in Unix seconds.
        :param poll_interval: seconds between polls; ``None``: the schedule of the model.
        """
        trigger = GeminiImageJobTrigger(
            geminiimg_conn_id=record.conn_id,
            job_id=str(record.job_id),
            model=record.wire_model,
            submitted_at=record.submitted_at or record.claimed_at,
            deadline=deadline,
            expected_seconds=record.expected_seconds,
            poll_interval=poll_interval,
        )
        return Pending(record, trigger, timedelta(seconds=max(0.0, deadline - time.time()) + BACKSTOP), deadline)


def finished(manifest: dict[str, Any], on_mismatch: OnMismatch) -> dict[str, Any]:
    """The return value of a task that landed its image.

    :raises AirflowFailException: the image does not match the request and `on_mismatch` is ``"fail"``.
    """
    error = mismatch_error(manifest)
    if error is not None and on_mismatch == "fail":
        raise_outcome(error)
    return manifest
