"""A campaign: three variants of one idea, and one final image that is edited from them.

Image 0 is edited; image 1 is the reference for its colours. All tasks wait in the triggerer. If you clear the run, it
returns the images that were already paid for.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

with DAG(
    "geminiimg_campaign",
    tags=["geminiimg"],
    params={
        "idea": Param("A lighthouse keeper drinking coffee at dawn", type="string"),
        "folder": Param("file:///tmp/geminiimg/campaign", type="string", description="in production: s3://..."),
        "poll_interval": Param(None, type=["null", "number"], description="null: the catalogue's schedule"),
    },
    default_args={
        "geminiimg_conn_id": "geminiimg_default",
        "output_path": "{{ params.folder }}/{{ dag_run.run_after | ds }}",
        "poll_interval": "{{ params.poll_interval or 'unset' }}",
        "deferrable": True,
        # Safe: a retry continues with the job that was paid for.
        "retries": 2,
        "retry_delay": timedelta(seconds=5),
    },
):
    # `variant` is never sent. Without it, the three requests would be identical and be paid for once.
    variants = GeminiImageGenerateOperator.partial(
        task_id="variants",
        prompt="{{ params.idea }}, photographed for a billboard",
        aspect_ratio="16:9",
    ).expand(variant=["calm", "bold", "playful"])

    @task(multiple_outputs=False)
    def pick(images: list[dict[str, Any]], number: int) -> dict[str, Any]:
        """Return one manifest. In production, a person or a model selects it."""
        return images[number]

    GeminiImageEditOperator(
        task_id="final",
        prompt="Add the line 'Good morning.' in the sky, in the colours of the second image",
        image=pick.override(task_id="pick")(variants.output, 0),
        reference_images=pick.override(task_id="pick_colours")(variants.output, 1),
    )
