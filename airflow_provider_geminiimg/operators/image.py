"""Base class of the operators that buy one image: their arguments, and Airflow's calls into `runtime.image_task`.

Invariant: an operator only checks arguments and defers. `runtime` and `core` decide about money.
"""

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
    """Base class of the operators that buy one image.

    :param prompt: what to make, or what to change.
    :param model: model id. Default: the model of the connection, or the default of the gateway.
    :param resolution: ``512``, ``1K``, ``2K`` or ``4K``. Default: the default of the model.
    :param aspect_ratio: such as ``16:9``. Default: the model chooses.
    :param temperature: 0.0 to 2.0, if the gateway supports it.
    :param top_p: 0.0 to 1.0, if the gateway supports it.
    :param google_search: ground the image in Google's text search, if the gateway supports it.
    :param google_image_search: ground the image in Google's image search too. Needs `google_search`.
    :param variant: any label. It is never sent; two tasks with one prompt and two variants buy two images.
    :param output_path: directory URI for the image. Default: a directory under ``[geminiimg] root``.
    :param file_name: file name without extension. Default: the task id; with an `output_path` also a short hash of DAG
        and run; then ``-<map_index>`` for a mapped task and ``-v<variant>`` for a variant.
    :param geminiimg_conn_id: id of the Airflow connection.
    :param deferrable: wait in the triggerer instead of a worker slot. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds between polls and before the first poll, above 0 and up to 30 days. Default: the
        schedule of the model.
    :param timeout: seconds that the job may take from the submit, over all attempts, above 0 and up to 30 days.
        Default: 1800.
    :param on_unknown: what to do if a paid request was sent and its outcome is unknown: ``"fail"`` (default) or
        ``"resubmit"``, at most once per Clear.
    :param on_clear: whether a Clear may buy the image again if it landed, or if it failed after payment: ``"reuse"``
        (default) or ``"regenerate"``.
    :param reuse: which images may be copied instead of bought: ``"task"`` (default): those of this task instance;
        ``"dag"``: also those of all tasks and runs of this DAG with exactly the same request. If another task is
        making the image at this moment, this task waits for it in the worker.
    :param on_mismatch: what to do if the image does not match the request. It is stored in any case; ``"accept"``
        (default) logs a warning, ``"fail"`` fails the task.
    :param max_cost: cap on the estimated cost of the image, above 0, in the price currency of the connection.
        Default: no cap. An image that is already paid for is collected in any case.
    :raises GeminiImageError: why there is no image. A bad request, an unknown outcome and a mismatch are raised as
        ``AirflowFailException`` from it, because no retry can help.
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
        if not is_mapped(self):  # a mapped operator is created at run time; then `execute` checks, without retries
            self._check_literals()

    def execute(self, context: Context) -> Any:
        """Buy the image, or collect what an earlier attempt paid for."""
        return self._run(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Store the image of the job that the trigger waited for.

        :param event: of the trigger, with ``status``, ``job_id`` and ``code``.
        """
        job_id, status = (printable(str(event.get(name))) for name in ("job_id", "status"))
        self.log.info("Trigger reported job %s as %s; resuming.", job_id, status)
        return self._run(context, wait=True, job_id=str(event.get("job_id")))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow does, and also after a trigger that crashed or never ran: the job is not lost.

        The task defers at most twice more. After that it waits in the worker.
        """
        from airflow_provider_geminiimg.runtime import image_task

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.warning("No trigger reported before the deadline; asking the gateway from the worker.")
        except TaskDeferralError as error:
            self.log.error(
                "The trigger failed (%s). The job is not affected; waiting for it again.", printable(str(error))
            )
            pending = image_task.wait_again(self._task(), context)
            if pending is not None:
                self._defer(pending)
        return self._run(context, wait=True, poll_immediately=True)

    def _run(
        self, context: Context, *, wait: bool | None = None, poll_immediately: bool = False, job_id: str | None = None
    ) -> Any:
        from airflow_provider_geminiimg.runtime import image_task

        return self._ended(
            image_task.run_task(self._task(), context, wait=wait, poll_immediately=poll_immediately, job_id=job_id)
        )

    def _task(self) -> ImageTask:
        """The task description for `runtime`."""
        from airflow_provider_geminiimg.runtime.image_task import ImageTask

        return ImageTask(self._arguments(), self.operation, self._new_guard(), self.log)

    def _ended(self, found: Landed | Pending) -> Any:
        """The return value of the task; defers if the job is still running."""
        from airflow_provider_geminiimg.runtime.task_run import Pending

        return self._defer(found) if isinstance(found, Pending) else found.manifest

    def _defer(self, pending: Pending) -> NoReturn:
        self.log.info("Waiting for job %s in the triggerer.", printable(str(pending.record.job_id)))
        self.defer(trigger=pending.trigger, method_name="execute_complete", timeout=pending.timeout)

    def _check_literals(self) -> None:
        self._check_asked()
        super()._check_literals()

    def _check_asked(self) -> None:
        """Check the request as far as its arguments are not templates.

        :raises BadRequestError: one is wrong for every gateway.
        """
        check_literals(self.operation, **{name: getattr(self, name) for name in REQUEST_FIELDS})
