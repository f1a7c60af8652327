"""The sensor that waits for a submitted job and stores its image.

What must stay true: the sensor buys nothing and cancels nothing. A job that failed permanently fails the sensor even if
``soft_fail``, ``never_fail`` or ``silent_fail`` is set, because these options are about the wait and not about the job.
Therefore `poke` returns the failure as a value, and `execute` raises it after Airflow's poke loop has ended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, BaseSensorOperator, PokeReturnValue

from airflow_provider_geminiimg._compat import TaskDeferralError, TaskDeferralTimeout, is_mapped
from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.validation.arguments import is_literal, require_one_job
from airflow_provider_geminiimg.gallery.link import ImagesLink
from airflow_provider_geminiimg.operators.arguments import DEFAULT_DEFERRABLE, parsers
from airflow_provider_geminiimg.operators.base import CheckedArgumentsMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_geminiimg.runtime.sensor_task import SensorTask
    from airflow_provider_geminiimg.runtime.task_run import Pending

_TEMPLATED = parsers(
    *("job_id", "model", "geminiimg_conn_id", "output_path", "file_name", "on_mismatch", "poll_interval")
)


class GeminiImageJobSensor(CheckedArgumentsMixin, BaseSensorOperator):
    """Wait for a job and store its image. Returns the image's manifest.

    A failed poll does not say that the job failed, so the sensor continues. A timeout does not affect the job: clear
    the sensor with a longer `timeout` to store the image.

    :param job: the return value of `GeminiImageSubmitOperator`. The image is stored at that operator's destination.
        Give either `job` or `job_id`.
    :param job_id: the id of a job that was submitted outside of this package. Its image is stored under this task.
    :param model: the model of `job_id`; default: the connection's model, else the gateway's default model.
    :param geminiimg_conn_id: the connection of `job_id`; a `job` contains its own connection id.
    :param output_path: directory URI for the image of `job_id`; default: under ``[geminiimg] root``.
    :param file_name: file name without extension for the image of `job_id`; default: as for the operators.
    :param on_mismatch: as for the operators. It has no effect with `job_id`, because the requested size is not known.
    :param poll_interval: seconds before the first poll and between polls of the trigger; default: the schedule of the
        model catalogue.
    :param deferrable: wait in the triggerer; true or false, also as text. Default: ``[operators] default_deferrable``.
        If false, `mode` decides how the sensor waits.
    :param poke_interval: seconds between pokes in the modes ``poke`` and ``reschedule``. Default: 10.
    :param timeout: seconds until the sensor fails without a retry, counted from the start of its try (in the mode
        ``reschedule`` from the first poke). Default: ``[sensors] default_timeout``, 7 days.
    :raises GeminiImageError: there will be no image. Raised as ``AirflowFailException`` if a retry cannot help.
    :raises AirflowSensorTimeout: the job was still running after `timeout`.
    """

    checks = {**_TEMPLATED, **parsers("deferrable")}
    template_fields: Sequence[str] = ("job", *_TEMPLATED)
    native_fields = ("job",)
    ui_color = "#e8f0fe"
    operator_extra_links = (ImagesLink(),)

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
        deferrable: bool | str | None = DEFAULT_DEFERRABLE,
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
        if not is_mapped(self):  # a mapped sensor is created when it runs; `execute` then fails it without a retry
            self._check_literals()

    def execute(self, context: Context) -> Any:
        """Poke once, then wait in the triggerer or as `mode` says."""
        from airflow_provider_geminiimg.runtime import sensor_task

        task = self._task()
        if sensor_task.is_deferrable(task):
            return self._ended(sensor_task.start(task, context))
        return sensor_task.finish(task, super().execute(context))

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll the job once, and store the image if it is ready."""
        from airflow_provider_geminiimg.runtime import sensor_task

        seen = sensor_task.look(self._task(), context)
        return PokeReturnValue(is_done=not sensor_task.is_running(seen), xcom_value=seen)

    def execute_complete(self, context: Context, event: dict[str, Any], deadline: float | None = None) -> Any:
        """Store the image of the job that the trigger waited for.

        :param event: the trigger's event: ``status``, ``job_id``, ``code``.
        :param deadline: Unix time at which the sensor times out. Default: `timeout` seconds after the task started,
            because ``dag.test()`` passes the event alone.
        """
        from airflow_provider_geminiimg.runtime import sensor_task

        job_id, status = (printable(str(event.get(name))) for name in ("job_id", "status"))
        self.log.info("Trigger reported job %s as %s; resuming.", job_id, status)
        contact_lost = event.get("status") == "lost"
        return self._ended(sensor_task.resume(self._task(), context, deadline, again=contact_lost))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral; a trigger that crashed or never ran does not fail the task.

        After a crash the task defers again, at most twice; then it waits in the worker.
        """
        from airflow_provider_geminiimg.runtime import sensor_task

        try:
            # BaseSensorOperator.resume_execution would turn a failed job into a skip if soft_fail is set.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.warning("No trigger reported before the deadline. The worker polls the job itself.")
            deadline: float | None = time.time()
        except TaskDeferralError as error:
            self.log.error(
                "The trigger failed (%s). The job is not affected; waiting for it again.", printable(str(error))
            )
            deadline = None
        return self._ended(sensor_task.resume_crashed(self._task(), context, deadline))

    def _task(self) -> SensorTask:
        from airflow_provider_geminiimg.runtime.sensor_task import SensorTask

        is_soft = self.soft_fail or self.never_fail
        return SensorTask(self._arguments(), self.timeout, self.poke_interval, is_soft, self.log)

    def _ended(self, found: dict[str, Any] | Pending) -> Any:
        """Return the manifest, or defer while the job is running."""
        from airflow_provider_geminiimg.runtime.task_run import Pending

        if isinstance(found, Pending):
            deadline = {"deadline": found.deadline}
            self.defer(trigger=found.trigger, method_name="execute_complete", kwargs=deadline, timeout=found.timeout)
        return found

    def _check_literals(self) -> None:
        super()._check_literals()
        if self.job is not None and is_literal(self.job):
            from airflow_provider_geminiimg.core.ledger.job_index import key_of_job

            key_of_job(self.job)
        if is_literal(self.job) and is_literal(self.job_id):
            require_one_job(self.job, self.job_id)
