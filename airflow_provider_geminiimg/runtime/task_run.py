"""One try of one task instance: where the domain meets Airflow's context, for operators and the sensor alike."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from airflow_provider_geminiimg._compat import StateStoreMarker, TaskState
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.ledger.records import Destination, Record
from airflow_provider_geminiimg.core.purchase.context import PUT_BACK
from airflow_provider_geminiimg.core.purchase.landing import mismatch_error
from airflow_provider_geminiimg.core.storage import encode_segment, join_uri
from airflow_provider_geminiimg.core.validation.arguments import OnMismatch, portable_stem, stem, text
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError, Billed, GeminiImageError
from airflow_provider_geminiimg.runtime.environment import Environment
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

MAX_DEFERRALS = 2  # further ones, after a trigger crashed; then the wait goes on in the worker
BACKSTOP = 120.0  # seconds after the trigger's own deadline, for a trigger that nobody runs


@dataclass(frozen=True, slots=True)
class Landed:
    """An image is in storage.

    :param manifest: what the task returns about it.
    """

    record: Record
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pending:
    """A job runs, and the triggerer may wait for it.

    :param trigger: waits for it.
    :param timeout: after which Airflow shall give the trigger up.
    :param deadline: until when the job is waited for, in Unix seconds.
    """

    record: Record
    trigger: GeminiImageJobTrigger
    timeout: timedelta
    deadline: float


class TaskRun(Environment):
    """The surroundings of one try.

    :param context: Airflow's context of the running task.
    :param log: the task's logger.
    """

    def __init__(self, context: Mapping[str, Any], log: Logs) -> None:
        super().__init__(log)
        ti = context["ti"]
        self._state = TaskState.of(context)
        self.marker = None if self._state is None else self._state.image()
        self.plan_marker = None if self._state is None else self._state.plan()
        self.generation = int(ti.max_tries or 0)
        self.item = Item(self.namespace, ti.dag_id, ti.run_id, ti.task_id, int(ti.map_index))

    def connection(self, conn_id: Any) -> GatewayConnection:
        """As `Environment.connection`, for a rendered argument."""
        name = text("geminiimg_conn_id", conn_id)
        if name is None:
            raise BadRequestError(f"geminiimg_conn_id{given(conn_id)}: takes the id of an Airflow connection.")
        try:
            return super().connection(name)
        except (BadRequestError, AuthenticationError) as error:
            if self._has_records():  # this attempt spent nothing, an earlier one may have
                raise error.evolve(billed=Billed.UNKNOWN, hint=PUT_BACK) from error.__cause__
            raise

    def _has_records(self) -> bool:
        """Whether an earlier attempt of this task instance left records; also where that can't be told."""
        try:
            return any(self.ledger.store.keys(f"{self.item.path.rpartition('/')[0]}/"))
        except GeminiImageError:
            return True

    def item_marker(self, item: str) -> StateStoreMarker | None:
        """What Airflow remembers of one image of a batch; ``None`` where it has no task state store."""
        return None if self._state is None else self._state.item(item)

    @property
    def folder(self) -> str:
        """This task instance's own folder for images, under the root."""
        return join_uri(self.root, self.item.images)

    def destination(self, output_path: str | None, file_name: str | None, variant: str | None = None) -> Destination:
        """Where the image shall land.

        :param output_path: directory URI; default: a folder of this task instance under the root.
        :param file_name: name without extension; default: tells variants, mapped tasks and, in a folder of the
            author's, runs apart.
        :raises BadRequestError: for a file name that is a path, hidden, too long, or has an image's extension.
        """
        item = self.item
        mapped = "" if item.map_index < 0 else f"-{item.map_index}"
        run = "" if not output_path else "-" + hashlib.sha256(f"{item.dag_id}\n{item.run_id}".encode()).hexdigest()[:8]
        usual = portable_stem(encode_segment(f"{item.task_id}{run}{mapped}{f'-v{variant}' if variant else ''}"))
        directory = text("output_path", output_path) or self.folder
        return Destination(directory.rstrip("/"), stem("file_name", file_name) or usual)

    def count_deferral(self, record: Record) -> Record:
        """Note on the record that its trigger had to be started again."""
        return self.ledger.change(record.key, lambda stored: replace(stored, deferrals=stored.deferrals + 1))

    def pending(self, record: Record, deadline: float, poll_interval: float | None) -> Pending:
        """The wait for the record's job in the triggerer.

        :param deadline: Unix seconds.
        :param poll_interval: seconds; ``None``: the catalogue's.
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
    """What a task returns.

    :raises AirflowFailException: the image has landed, is not what was asked for, and `on_mismatch` is ``"fail"``.
    """
    error = mismatch_error(manifest)
    if error is not None and on_mismatch == "fail":
        raise_outcome(error)
    return manifest
