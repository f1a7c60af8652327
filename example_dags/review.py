"""Five variants of one image; a person picks two, says what to change, and the finished ones are published to S3.

Open the run's task ``review`` and its tab "Required Actions". What is picked is edited through the connection
``apimaster``, with the comment, and lands in ``folder``; the asset event says where. A rejection skips all of that.
"""

from __future__ import annotations

from datetime import timedelta

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
        "poll_interval": Param(None, type=["null", "number"], description="unset: as the model usually needs"),
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
        subject="Pick two for the billboard: {{ params.idea }}",
        images=variants.output,
        choose="several",
    )

    @task
    def wish(comment: str) -> str:
        """The comment is text of a person's: it goes into a prompt, and is rendered by nobody."""
        return f"Add the line 'Good morning.' in the sky. {comment}".strip()

    finished = GeminiImageEditOperator.partial(
        task_id="finished",
        geminiimg_conn_id="apimaster",
        prompt=wish(review.output["comment"]),
        # A folder for each run: a file name that is taken is an error, and nothing is ever replaced.
        output_path="{{ params.folder }}/{{ dag_run.run_after | ts_nodash }}",
    ).expand(image=review.output)

    @task(outlets=[published])
    def publish(manifests: list[dict]):
        """Tell whoever waits for the asset where the images are."""
        yield Metadata(published, {"images": [image["uri"] for each in manifests for image in each["images"]]})

    publish(finished.output)
