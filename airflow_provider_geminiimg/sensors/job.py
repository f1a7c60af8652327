"""Waits for a job that was submitted elsewhere, and lands its image.

What must stay true: the sensor buys nothing and cancels nothing. A job that failed for good fails the sensor, whatever
``soft_fail``, ``never_fail`` and ``silent_fail`` say: they are about waiting. So that outcome is looked at outside of
Airflow's poking, which only hears that the waiting is over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, BaseSensorOperator, PokeReturnValue

from airflow_provider_geminiimg._compat import TaskDeferralError, TaskDeferralTimeout, is_mapped
from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.validation.arguments import is_literal, refuse_other_than_one_job
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
    """Wait for a job and land its image. Returns the image's manifest.

    A poll that fails says nothing about the job, and the sensor goes on. When it gives up, the job is left alone: clear
    the sensor with a longer `timeout`, and it lands.

    :param job: what `GeminiImageSubmitOperator` returned. The image lands where that operator said.
    :param job_id: instead of `job`: a job that was submitted outside of this package. It lands under this task.
    :param model: the model of `job_id`; default: the connection's, else the gateway's own.
    :param geminiimg_conn_id: the connection of `job_id`; a `job` knows its own.
    :param output_path: directory URI for the image of `job_id`; default: under ``[geminiimg] root``.
    :param file_name: its name without extension; default: as for the operators.
    :param on_mismatch: as for the operators. What was asked for is not known of a `job_id`, so nothing mismatches.
    :param poll_interval: seconds between the trigger's polls, and before the first one; default: the catalogue's.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``. Otherwise `mode` decides.
    :param poke_interval: seconds between pokes in the modes ``poke`` and ``reschedule``. Default: 10.
    :param timeout: seconds after which the sensor gives up, without retries, from the start of its try (``reschedule``:
        from the first poke). Default: ``[sensors] default_timeout``, 7 days.
    :raises GeminiImageError: why there will be no image; as ``AirflowFailException`` where the job failed for good.
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
        deferrable: bool = DEFAULT_DEFERRABLE,
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
        if not is_mapped(self):  # made when it runs: `execute` refuses then, in the way that no retry touches
            self._check_literals()

    def execute(self, context: Context) -> Any:
        """Poke once, then wait in the triggerer, or in the way that `mode` says."""
        from airflow_provider_geminiimg.runtime import sensor_task

        task = self._task()
        if sensor_task.is_deferrable(task):
            return self._ended(sensor_task.start(task, context))
        return sensor_task.finish(task, super().execute(context))

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once; land the image if it is ready."""
        from airflow_provider_geminiimg.runtime import sensor_task

        seen = sensor_task.look(self._task(), context)
        return PokeReturnValue(is_done=not sensor_task.is_running(seen), xcom_value=seen)

    def execute_complete(self, context: Context, event: dict[str, Any], deadline: float | None = None) -> Any:
        """Land what the trigger waited for.

        :param event: the trigger's: ``status``, ``job_id``, ``code``.
        :param deadline: when the sensor gives up, in Unix seconds. Default, because ``dag.test()`` hands on nothing
            but the event: `timeout` after the task started.
        """
        from airflow_provider_geminiimg.runtime import sensor_task

        job_id, status = (printable(str(event.get(name))) for name in ("job_id", "status"))
        self.log.info("The trigger's word on job %s: %s.", job_id, status)
        again = event.get("status") == "lost"
        return self._ended(sensor_task.resume(self._task(), context, deadline, again=again))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's, but a trigger that crashed or was never run does not lose the job.

        At most two further deferrals, then the wait goes on in the worker.
        """
        from airflow_provider_geminiimg.runtime import sensor_task

        try:
            # Not the sensor's own: that one turns a job's failure into a skip where soft_fail is set.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.warning("No trigger reported before the deadline; asking the gateway from the worker.")
            deadline: float | None = time.time()
        except TaskDeferralError as error:
            self.log.error(
                "The trigger failed (%s); the job is left alone and waited for again.", printable(str(error))
            )
            deadline = None
        return self._ended(sensor_task.resume_crashed(self._task(), context, deadline))

    def _task(self) -> SensorTask:
        from airflow_provider_geminiimg.runtime.sensor_task import SensorTask

        is_soft = self.soft_fail or self.never_fail
        return SensorTask(self._arguments(), self.timeout, self.poke_interval, is_soft, self.log)

    def _ended(self, found: dict[str, Any] | Pending) -> Any:
        """What the task returns; a job that runs is deferred."""
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
            refuse_other_than_one_job(self.job, self.job_id)
