"""A review: a person selects two of five variants and comments on them; the edited images are published to S3.

Open the task ``review`` of the run, and its tab "Required Actions". The selected images are edited through the
connection ``apimaster``, with the comment as a part of the prompt, and stored in ``folder``. The asset event contains
their locations. A rejection skips these tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, Metadata, Param, task

from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.review import GeminiImageReviewOperator

published = Asset("geminiimg_published")

with DAG(
    "geminiimg_review",
    tags=["geminiimg"],
    params={
        "idea": Param("A lighthouse keeper drinking coffee at dawn", type="string"),
        "folder": Param("s3://aws_default@my-bucket/published", type="string"),
        "poll_interval": Param(None, type=["null", "number"], description="null: the catalogue's schedule"),
    },
    default_args={
        "poll_interval": "{{ params.poll_interval or 'unset' }}",
        "retries": 2,
        "retry_delay": timedelta(seconds=5),
    },
):
    variants = GeminiImageGenerateOperator.partial(
        task_id="variants", prompt="{{ params.idea }}, photographed for a billboard", aspect_ratio="16:9"
    ).expand(variant=["1", "2", "3", "4", "5"])

    review = GeminiImageReviewOperator(
        task_id="review",
        subject="Select two for the billboard: {{ params.idea }}",
        images=variants.output,
        choose="several",
    )

    @task
    def edit_prompt(comment: str) -> str:
        """Build a prompt with the person's comment. The prompt is not rendered as a template."""
        return f"Add the line 'Good morning.' in the sky. {comment}".strip()

    finished = GeminiImageEditOperator.partial(
        task_id="finished",
        geminiimg_conn_id="apimaster",
        prompt=edit_prompt(review.output["comment"]),
        # A folder for each run: an existing file is never replaced, and its name is an error.
        output_path="{{ params.folder }}/{{ dag_run.run_after | ts_nodash }}",
    ).expand(image=review.output)

    @task(outlets=[published])
    def publish(manifests: list[dict[str, Any]]) -> Iterator[Metadata]:
        """Add the locations of the images to the asset event."""
        yield Metadata(published, {"images": [image["uri"] for each in manifests for image in each["images"]]})

    publish(finished.output)
