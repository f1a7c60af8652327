"""What the operators of one image share: their arguments, and Airflow's calls, which lead into `runtime.image_task`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_geminiimg._compat import TaskDeferralError, TaskDeferralTimeout, is_mapped
from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.request import REQUEST_FIELDS, check_literals
from airflow_provider_geminiimg.core.validation.arguments import DEFAULT_TIMEOUT
from airflow_provider_geminiimg.gallery.link import ImagesLink
from airflow_provider_geminiimg.operators.arguments import DEFAULT_DEFERRABLE, parsers
from airflow_provider_geminiimg.operators.base import PaidTaskMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_geminiimg.runtime.image_task import ImageTask
    from airflow_provider_geminiimg.runtime.task_run import Landed, Pending

_TEMPLATED = parsers(
    *("output_path", "file_name", "geminiimg_conn_id", "poll_interval", "timeout"),
    *("on_unknown", "on_clear", "reuse", "on_mismatch", "max_cost"),
)


class ImageOperator(PaidTaskMixin, BaseOperator):
    """Base of the operators that buy one image.

    :param prompt: what to make, or what to change.
    :param model: model id; default: the connection's, else the gateway's own.
    :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; default: the model's.
    :param aspect_ratio: such as ``16:9``; default: the model's choice.
    :param temperature: 0.0 to 2.0, where the gateway takes it.
    :param top_p: 0.0 to 1.0, where the gateway takes it.
    :param google_search: ground the image in Google's text search, where the gateway takes it.
    :param google_image_search: ground it in Google's image search too; needs `google_search`.
    :param variant: never sent; tells two wanted images of one prompt apart.
    :param output_path: directory URI in which the image lands; default: under ``[geminiimg] root``.
    :param file_name: its name without extension; default: the task's id, then a short hash of DAG and run where there
        is an `output_path`, then ``-<map_index>`` and ``-v<variant>`` where there are such.
    :param geminiimg_conn_id: the Airflow connection.
    :param deferrable: wait in the triggerer instead of a worker slot. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds between polls, and before the first one, above 0 and up to 30 days; default: the
        catalogue's schedule.
    :param timeout: seconds from the submit that the job may take, over all attempts, above 0 and up to 30 days.
        Default: 1800.
    :param on_unknown: what to do about a request that was sent and whose answer nobody knows: ``"fail"`` (default) or
        ``"resubmit"``, at most once for each Clear.
    :param on_clear: whether a Clear may buy again what has landed, or failed after payment: ``"reuse"`` (default) or
        ``"regenerate"``.
    :param reuse: whose images may be copied instead of buying one: ``"task"`` (default) this task instance's own,
        ``"dag"`` those of all tasks and runs of this DAG that asked for the very same. What another task is making at
        this moment is waited for, in this worker.
    :param on_mismatch: an image that is not what was asked for is stored, and ``"accept"`` (default) warns,
        ``"fail"`` fails the task.
    :param max_cost: what buying the image may cost by the estimate, above 0, in the connection's price currency;
        default: no cap. What was paid for before is collected all the same.
    :raises GeminiImageError: the outcome, if it is not an image. A bad request, an unknown outcome and a mismatch are
        raised as ``AirflowFailException`` from it, so that no retry touches them.
    """

    operation: ClassVar[str]
    checks = {**_TEMPLATED, **parsers("deferrable")}
    template_fields: Sequence[str] = (*REQUEST_FIELDS, *_TEMPLATED)
    ui_color = "#e8f0fe"
    operator_extra_links = (ImagesLink(),)

    def __init__(
        self,
        *,
        prompt: Any,
        model: str | None = None,
        resolution: str | int | None = None,
        aspect_ratio: str | None = None,
        temperature: float | str | None = None,
        top_p: float | str | None = None,
        google_search: bool | str | None = None,
        google_image_search: bool | str | None = None,
        variant: str | int | None = None,
        output_path: str | None = None,
        file_name: str | None = None,
        geminiimg_conn_id: str = "geminiimg_default",
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: float | str | None = None,
        timeout: float | str = DEFAULT_TIMEOUT,
        on_unknown: str = "fail",
        on_clear: str = "reuse",
        reuse: str = "task",
        on_mismatch: str = "accept",
        max_cost: float | str | None = None,
        image: Any = None,
        reference_images: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.model = model
        self.image = image
        self.reference_images = reference_images
        self.resolution = resolution
        self.aspect_ratio = aspect_ratio
        self.temperature = temperature
        self.top_p = top_p
        self.google_search = google_search
        self.google_image_search = google_image_search
        self.variant = variant
        self.output_path = output_path
        self.file_name = file_name
        self.geminiimg_conn_id = geminiimg_conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.on_unknown = on_unknown
        self.on_clear = on_clear
        self.reuse = reuse
        self.on_mismatch = on_mismatch
        self.max_cost = max_cost
        if not is_mapped(self):  # made when it runs: `execute` refuses then, in the way that no retry touches
            self._check_literals()

    def execute(self, context: Context) -> Any:
        """Buy the image, or collect what an earlier attempt paid for."""
        return self._run(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Land what the trigger waited for.

        :param event: the trigger's: ``status``, ``job_id``, ``code``.
        """
        job_id, status = (printable(str(event.get(name))) for name in ("job_id", "status"))
        self.log.info("The trigger's word on job %s: %s.", job_id, status)
        return self._run(context, wait=True, job_id=str(event.get("job_id")))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's, but a trigger that crashed or was never run does not lose the job.

        At most two further deferrals, then the wait goes on in the worker.
        """
        from airflow_provider_geminiimg.runtime import image_task

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.warning("No trigger reported before the deadline; asking the gateway from the worker.")
        except TaskDeferralError as error:
            self.log.error(
                "The trigger failed (%s); the job is left alone and waited for again.", printable(str(error))
            )
            pending = image_task.wait_again(self._task(), context)
            if pending is not None:
                self._defer(pending)
        return self._run(context, wait=True, at_once=True)

    def _run(
        self, context: Context, *, wait: bool | None = None, at_once: bool = False, job_id: str | None = None
    ) -> Any:
        from airflow_provider_geminiimg.runtime import image_task

        return self._ended(image_task.run_task(self._task(), context, wait=wait, at_once=at_once, job_id=job_id))

    def _task(self) -> ImageTask:
        """What this task instance asks for."""
        from airflow_provider_geminiimg.runtime.image_task import ImageTask

        return ImageTask(self._arguments(), self.operation, self._new_guard(), self.log)

    def _ended(self, found: Landed | Pending) -> Any:
        """What the task returns; a job that runs is deferred."""
        from airflow_provider_geminiimg.runtime.task_run import Pending

        return self._defer(found) if isinstance(found, Pending) else found.manifest

    def _defer(self, pending: Pending) -> NoReturn:
        self.log.info("Waiting for job %s in the triggerer.", printable(str(pending.record.job_id)))
        self.defer(trigger=pending.trigger, method_name="execute_complete", timeout=pending.timeout)

    def _check_literals(self) -> None:
        self._check_asked()
        super()._check_literals()

    def _check_asked(self) -> None:
        """What can be known of the image when the DAG is parsed."""
        check_literals(self.operation, **{name: getattr(self, name) for name in REQUEST_FIELDS})
