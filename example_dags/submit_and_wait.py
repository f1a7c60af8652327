"""Submit an image, do other work, then wait for the image.

The submit task ends when the gateway has the job. The sensor stores the image. Both can be retried or cleared without a
second payment.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor

with DAG("geminiimg_submit_and_wait", tags=["geminiimg"]):
    order = GeminiImageSubmitOperator(task_id="order", prompt="A paper boat on a puddle, seen from above")

    @task
    def write_caption() -> str:
        """Other work, while the gateway makes the image."""
        return "Set sail."

    image = GeminiImageJobSensor(task_id="image", job=order.output, mode="reschedule", timeout=1800)

    @task
    def publish(manifest: dict[str, Any], caption: str) -> str:
        return f"{caption} {manifest['images'][0]['uri']}"

    publish(image.output, write_caption())
