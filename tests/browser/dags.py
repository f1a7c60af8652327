"""The DAGs whose images the browser tests look at. Copied into the DAG folder of their Airflow."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task

from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.review import GeminiImageReviewOperator

PATIENT = {"poll_interval": 0.5, "deferrable": False}
IDEA = "A lighthouse keeper drinking coffee at dawn"
HOSTILE_PROMPT = (
    "<img src=x onerror=window.owned=1><script>window.owned=1</script> **bold** [link](javascript:window.owned=1) "
    "{{ 7*7 }}"
)
HOSTILE_NAME = (
    "&lt;img src=x onerror=owned=1&gt; __bold__ [link](x)"  # Windows takes no < and * in a name, so no image has any
)

with DAG("campaign", default_args={**PATIENT, "geminiimg_conn_id": "onemin"}):
    hero = GeminiImageGenerateOperator(
        task_id="hero", prompt=f"{IDEA}, photographed for a billboard", aspect_ratio="16:9"
    )
    variants = GeminiImageGenerateOperator.partial(
        task_id="variants", prompt=f"{IDEA}, painted in oil", aspect_ratio="16:9", resolution="512"
    ).expand(variant=["calm", "bold", "playful"])

    @task(multiple_outputs=False)
    def first(images: list[dict[str, Any]]) -> dict[str, Any]:
        return images[0]

    GeminiImageEditOperator(
        task_id="evening",
        prompt="Make it evening, in the colours of the second image",
        image=hero.output,
        reference_images=first(variants.output),
    )
    GeminiImageGenerateOperator(
        task_id="story", prompt=f"{IDEA}, for a phone", aspect_ratio="9:16", geminiimg_conn_id="apimaster"
    )
    GeminiImageGenerateOperator(
        task_id="refused", prompt="Something that no gateway draws", geminiimg_conn_id="refusing", retries=0
    )

with DAG("hostile", default_args={**PATIENT, "geminiimg_conn_id": "hostile", "retries": 0}):
    said = "{% raw %}" + HOSTILE_PROMPT + "{% endraw %}"
    drawn = GeminiImageGenerateOperator(task_id="drawn", prompt=said, file_name=HOSTILE_NAME)
    drawn >> GeminiImageGenerateOperator(task_id="failed", prompt=said)
    GeminiImageReviewOperator(task_id="judged", subject="Shown as text?", images=drawn.output)

with DAG("arriving", default_args={**PATIENT, "geminiimg_conn_id": "held"}):
    GeminiImageGenerateOperator.partial(task_id="poster", prompt=f"{IDEA}, as a poster", resolution="512").expand(
        variant=["calm", "bold"]
    )

with DAG("review", default_args={**PATIENT, "geminiimg_conn_id": "onemin"}):
    posters = GeminiImageGenerateOperator.partial(
        task_id="posters", prompt=f"{IDEA}, as a poster", aspect_ratio="16:9", resolution="512"
    ).expand(variant=["calm", "bold", "playful"])
    for task_id, choose in {"approved": "all", "rejected": "all", "picked": "several"}.items():
        GeminiImageReviewOperator(
            task_id=task_id, subject="Which posters go on?", images=posters.output, choose=choose, on_reject="continue"
        )

with DAG("thousand"):
    EmptyOperator(task_id="tiles")

with DAG("nothing"):
    EmptyOperator(task_id="idle")
