"""A loop: a draft is judged and revised until the judge accepts it or the money is spent; then a person approves it.

Needs Airflow 3.4, which has loops: on an older Airflow this file defines no DAG, and the log says so. The judge needs
Pillow: ``pip install 'airflow-provider-geminiimg[thumbnails]'``.

Each iteration pays for one image. A retry or a Clear of an iteration finds its image again and pays nothing. The budget
below ends the loop in time. To limit what a run pays whatever a DAG does, set ``run_budget`` in the connection.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import ObjectStoragePath, Param, dag, task, task_group

from airflow_provider_geminiimg.operators.review import GeminiImageReviewOperator

try:
    from airflow.sdk import LoopDecision
except ImportError:
    LoopDecision = None

RESOLUTIONS = ("512", "1K", "2K", "4K")  # of the iterations: drafts are cheap
NEXT = 0.16  # USD, the most that one more image costs


@dag(
    "geminiimg_refine",
    tags=["geminiimg"],
    params={
        "idea": Param("A lighthouse keeper drinking coffee at dawn", type="string"),
        "width": Param(2000, type="integer", description="pixels that the image needs"),
        "budget": Param(0.5, type="number", description="USD for all iterations"),
        "poll_interval": Param(None, type=["null", "number"], description="null: the catalogue's schedule"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5)},
)
def billboard():
    @task_group
    def refine():
        @task.gemini_image(
            aspect_ratio="16:9",
            max_cost=NEXT,
            poll_interval="{{ params.poll_interval or 'unset' }}",
            deferrable=True,
        )
        def draw(*, loop, params):
            """Return the request: first for a new image, then for an edit of the image before."""
            resolution = RESOLUTIONS[loop.index]
            if loop.index == 0:
                return {"prompt": f"{params['idea']}, photographed for a billboard", "resolution": resolution}
            before = loop.previous  # what the last task of the group returned
            return {"prompt": before["advice"], "image": before["image"], "resolution": resolution}

        @task
        def judge(image, *, loop, params):
            """Measure the image. Here a model could look at it, and say what to change."""
            from PIL import Image

            with ObjectStoragePath(image["images"][0]["uri"]).open("rb") as file, Image.open(file) as pixels:
                width = pixels.width
            return {
                "image": image,
                "accepted": width >= params["width"],
                "finding": f"{width} pixels wide, {params['width']} needed",
                "advice": f"The same image in finer detail, {params['width']} pixels wide",
                "spent": (loop.previous["spent"] if loop.index else 0.0) + (image["cost"]["amount"] or 0.0),
            }

        judge(draw())

    def accepted(*, loop, params):
        """Stop if the judge accepts the image, or if one more could exceed the budget."""
        verdict = loop.result
        if verdict["accepted"]:
            return LoopDecision(True, f"Accepted: {verdict['finding']}.")
        if verdict["spent"] + NEXT > params["budget"]:
            return LoopDecision(True, f"Not accepted, but the money is spent: {verdict['finding']}.")
        return LoopDecision(False, f"Revise: {verdict['finding']}.")

    # After the last iteration a "Revise" fails the loop, and nobody is asked.
    loop = refine.loop(max_iterations=len(RESOLUTIONS), until=accepted)

    @task(multiple_outputs=True)
    def last(verdicts):
        """Return the verdict of the last iteration."""
        return verdicts[-1]

    final = last(loop.children["refine.judge"].output)
    GeminiImageReviewOperator(
        task_id="review",
        subject="For the billboard? {{ ti.xcom_pull(task_ids='last', key='finding') }}",
        images=final["image"],
    )


if LoopDecision is None:
    logging.getLogger(__name__).warning("geminiimg_refine needs Airflow 3.4 or later: this file defines no DAG.")
else:
    billboard()
