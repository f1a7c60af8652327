"""An image ordered now and waited for elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_geminiimg.operators.image import ImageOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.runtime.task_run import Landed, Pending


class GeminiImageSubmitOperator(ImageOperator):
    """Submit a job and return at once; `GeminiImageJobSensor` waits for it and lands it. An edit, if `image` is given.

    Returns ``{record, gateway, model, job_id, conn_id}``. Where the gateway answers with the finished image, that has
    landed already, and the sensor finds it; `on_mismatch` counts for it, too.

    Takes the arguments of `ImageOperator`, `deferrable` excepted: there is nothing to wait for.
    """

    def __init__(self, *, image: Any = None, **kwargs: Any) -> None:
        # What the author wrote decides: an image that renders to nothing is an error, not another image to pay for.
        self._is_edit = image is not None
        super().__init__(image=image, deferrable=False, **kwargs)

    @property
    def operation(self) -> str:  # type: ignore[override]
        """``edit`` if there is an image to edit, else ``generate``."""
        return "edit" if self._is_edit else "generate"

    def execute(self, context: Any) -> Any:
        """Submit, or find what an earlier attempt submitted."""
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
