"""Waits for a job that was submitted elsewhere, and lands its picture.

What must stay true: the sensor buys nothing and cancels nothing. A job that failed for good fails the sensor, whatever
``soft_fail``, ``never_fail`` and ``silent_fail`` say: they are about waiting.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_geminiimg._compat import TaskDeferralError, TaskDeferralTimeout
from airflow_provider_geminiimg.attempt import (
    BACKSTOP,
    MAX_DEFERRALS,
    Attempt,
    OnMismatch,
    choice,
    finished,
    raise_outcome,
    seconds,
    text,
)
from airflow_provider_geminiimg.catalog import DEFAULT_MODEL
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.landing import Collector
from airflow_provider_geminiimg.ledger import Record, new_claim, process_identity, record_key
from airflow_provider_geminiimg.manifest import Cost
from airflow_provider_geminiimg.runner import run

if TYPE_CHECKING:
    from airflow.sdk import Context

LANDING_SECONDS = 300.0  # for polls that fail between a trigger's "done" and the landing


class GeminiImageJobSensor(BaseSensorOperator):
    """Wait for a job and land its picture. Returns the picture's manifest.

    :param job: what `GeminiImageSubmitOperator` returned. The picture lands where that operator said.
    :param job_id: instead of `job`: a job that was submitted outside of this package. It lands under this task.
    :param model: the model of `job_id`; default: the connection's, else ``gemini-3.1-flash-image-preview``.
    :param geminiimg_conn_id: the connection of `job_id`; a `job` knows its own.
    :param output_path: directory URI for the picture of `job_id`; default: under ``[geminiimg] root``.
    :param file_name: its name without extension.
    :param on_mismatch: as for the operators.
    :param poll_interval: seconds between the trigger's polls, and before the first one; default: the catalogue's.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``. Otherwise `mode` decides.
    :param poke_interval: seconds between pokes in the modes ``poke`` and ``reschedule``. Default: 10.
    :param timeout: seconds after which the sensor gives up; the job is left alone.
    """

    template_fields: Sequence[str] = (
        "job",
        "job_id",
        "model",
        "geminiimg_conn_id",
        "output_path",
        "file_name",
        "on_mismatch",
        "poll_interval",
    )
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        job: Any = None,
        job_id: str | None = None,
        model: str | None = None,
        geminiimg_conn_id: str = "geminiimg_default",
        output_path: str | None = None,
        file_name: str | None = None,
        on_mismatch: str = "accept",
        poll_interval: float | str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: float | timedelta = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.job = job
        self.job_id = job_id
        self.model = model
        self.geminiimg_conn_id = geminiimg_conn_id
        self.output_path = output_path
        self.file_name = file_name
        self.on_mismatch = on_mismatch
        self.poll_interval = poll_interval
        self.deferrable = deferrable
        self._failure: GeminiImageError | None = None

    def execute(self, context: Context) -> Any:
        """Poke once, then wait in the triggerer, or in the way that `mode` says."""
        if self.deferrable:
            manifest = self._look(context)
            if manifest is None:
                self._defer(context)
        else:
            manifest = super().execute(context)
        return self._finish(manifest)

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once; land the picture if it is ready."""
        manifest = self._look(context)
        return PokeReturnValue(is_done=manifest is not None or self._failure is not None, xcom_value=manifest)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Land what the trigger waited for.

        :param event: the trigger's: ``status``, ``job_id``, ``code``.
        """
        self.log.info("The trigger's word on job %s: %s.", event.get("job_id"), event.get("status"))
        if event.get("status") == "timeout":
            manifest = self._look(context)
            if manifest is None and self._failure is None:
                raise TaskDeferralTimeout(f"Job {event.get('job_id')} was still running; it is left alone.")
            return self._finish(manifest)
        return self._finish(self._look(context, wait=True))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's, but a trigger that crashed does not end the wait: two further deferrals, then pokes."""
        try:
            # Not the sensor's own: that one turns a job's failure into a skip where soft_fail is set.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise AirflowSensorTimeout(str(error)) from error
        except TaskDeferralError as error:
            self.log.error("The trigger failed (%s); the job is left alone and waited for again.", error)
        record = self._record(Attempt(context, self.log))
        if record.deferrals < MAX_DEFERRALS:
            self._defer(context, again=True)
        return self._finish(super().execute(context))

    def _look(self, context: Context, *, wait: bool = False) -> dict[str, Any] | None:
        """The manifest, if the picture is there or can be landed now. A job that failed for good is kept as `_failure`.

        :param wait: poll until the job has ended, because a trigger saw its end.
        """
        attempt = Attempt(context, self.log)
        record: Record | None = None
        try:
            record = self._record(attempt)
            landed = run(lambda: self._collect(attempt, record, wait), attempt.guard)
        except GeminiImageError as error:
            if error.retryable and not (record is not None and self._has_failed(attempt, record)):
                raise
            self._failure = error
            return None
        return None if landed is None else dict(landed.manifest or {})

    async def _collect(self, attempt: Attempt, record: Record, wait: bool) -> Record | None:
        async with attempt.workshop() as workshop:
            collector = Collector(workshop, generation=attempt.generation)
            if record.state == "failed" and record.error is not None:
                raise record.error
            if record.state == "landed":
                gone = await collector.picture_state(record) == "gone"
                return await collector.refetch(record) if gone else record
            if record.state == "answered":
                return await collector.fetch(record)
            if not wait:
                return await collector.peek(record)
            waited = time.time() - (record.submitted_at or record.claimed_at)
            return await collector.wait(record, timeout=waited + LANDING_SECONDS, poll_interval=None, at_once=True)

    def _record(self, attempt: Attempt) -> Record:
        job_id = text("job_id", self.job_id)
        if (self.job is None) == (job_id is None):
            raise BadRequestError("Exactly one of job and job_id is needed.")
        return self._own_record(attempt, job_id) if job_id is not None else _recorded(attempt, self.job)

    def _own_record(self, attempt: Attempt, job_id: str) -> Record:
        """The record of a job that was submitted outside of this package: made by the sensor's first try."""
        found = attempt.ledger.latest(attempt.item)
        if found is not None and found.record.job_id == job_id:
            return found.record
        connection = attempt.connection(self.geminiimg_conn_id)
        model = text("model", self.model) or connection.model or DEFAULT_MODEL
        n = found.record.n + 1 if found is not None else 1
        record = Record(
            key=record_key(attempt.item, n),
            n=n,
            state="submitted",
            claim=new_claim(),
            generation=attempt.generation,
            **process_identity(),
            answer_within=0.0,
            conn_id=connection.conn_id,
            gateway=connection.gateway,
            model=model,
            wire_model=model,
            operation="unknown",
            fingerprint="",
            request_fields={},
            prompt_sha256="",
            inputs=[],
            destination=attempt.destination(self.output_path, self.file_name),
            suffix=f"-{n}" if n > 1 else "",
            cost=asdict(Cost(None, "USD", "unknown")),
            expected_seconds=0.0,
            job_id=job_id,
            submitted_at=time.time(),
        )
        created = attempt.ledger.create(record)
        return created.record if created is not None else self._own_record(attempt, job_id)

    def _has_failed(self, attempt: Attempt, record: Record) -> bool:
        found = attempt.ledger.read(record.key)
        return found is not None and found.record.state == "failed"

    def _defer(self, context: Context, *, again: bool = False) -> None:
        attempt = Attempt(context, self.log)
        record = self._record(attempt)
        if again:
            record = attempt.count_deferral(record)
        deadline = time.time() + self.timeout
        self.defer(
            trigger=attempt.trigger(record, deadline, seconds("poll_interval", self.poll_interval)),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout + BACKSTOP),
        )

    def _finish(self, manifest: Any) -> Any:
        if self._failure is not None:
            raise_outcome(self._failure)
        return finished(manifest, choice("on_mismatch", self.on_mismatch, OnMismatch))


def _recorded(attempt: Attempt, job: Any) -> Record:
    """The record that a submit operator wrote."""
    key = job.get("record") if isinstance(job, Mapping) else None
    if not isinstance(key, str) or not key.startswith("ledger/") or ".." in key.split("/"):
        raise BadRequestError(
            f"job is {type(job).__name__}; allowed: what GeminiImageSubmitOperator returned (its .output)."
        )
    found = attempt.ledger.read(key)
    if found is None:
        raise LedgerError(
            f"Record {key} is not under {attempt.root}: the ledger is not shared between workers, or was removed.",
            billed=Billed.UNKNOWN,
            hint="Set [geminiimg] root to storage that all workers share.",
        )
    record = found.record
    if record.state == "intent" and job.get("job_id"):
        return replace(record, state="submitted", job_id=str(job["job_id"]), submitted_at=record.claimed_at)
    return record
