"""The operator that submits a job and does not wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_geminiimg.operators.optional_image import OptionalImageOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.runtime.task_run import Landed, Pending


class GeminiImageSubmitOperator(OptionalImageOperator):
    """Submit a job and return; `GeminiImageJobSensor` waits for the job and stores its image. With `image`: an edit.

    Returns ``{record, gateway, model, job_id, conn_id}``. If the gateway answers with the finished image, this task
    stores it, and the sensor finds it; then `on_mismatch` applies here.

    Takes the arguments of `OptionalImageOperator` except `deferrable`: this task does not wait.
    """

    def __init__(self, *, image: Any = None, **kwargs: Any) -> None:
        # The value in the DAG decides. An `image` that renders to nothing becomes a generation only by `if_no_image`.
        self._is_edit = image is not None
        super().__init__(image=image, deferrable=False, **kwargs)

    @property
    def operation(self) -> str:  # type: ignore[override]
        """``edit`` if `image` is given, else ``generate``."""
        return "edit" if self._is_edit else "generate"

    def execute(self, context: Any) -> Any:
        """Submit the job, or find the job that an earlier attempt submitted."""
        return self._run(context, wait=False)

    def _ended(self, found: Landed | Pending) -> dict[str, Any]:
        record = found.record
        return {
            "record": record.key,
            "gateway": record.gateway,
            "model": record.model,
            "job_id": record.job_id,
            "conn_id": record.conn_id,
        }
