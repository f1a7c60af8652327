"""Order an image, do something else, then wait for it.

The submit task ends as soon as the gateway has the job. The sensor knows where the image belongs; either may be
retried or cleared without buying again.
"""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor

with DAG("geminiimg_submit_and_wait", tags=["geminiimg"]):
    order = GeminiImageSubmitOperator(task_id="order", prompt="A paper boat on a puddle, seen from above")

    @task
    def write_caption() -> str:
        """Whatever takes its time while the image is being made."""
        return "Set sail."

    image = GeminiImageJobSensor(task_id="image", job=order.output, mode="reschedule", timeout=1800)

    @task
    def publish(manifest: dict, caption: str) -> str:
        return f"{caption} {manifest['images'][0]['uri']}"

    publish(image.output, write_caption())
