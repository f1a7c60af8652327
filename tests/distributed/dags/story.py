"""What many workers and triggerers make at once, and what comes after it when the budget is almost spent."""

from __future__ import annotations

import json
import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_geminiimg import (
    GeminiImageBatchOperator,
    GeminiImageEditOperator,
    GeminiImageGenerateOperator,
    image_batch,
)

SIZE = json.loads(os.environ["STORY"])
COMMON = {"geminiimg_conn_id": "account", "resolution": "512"}
KEEP_ON = {"retries": 8, "retry_delay": timedelta(seconds=1)}
DEFERRED = {**COMMON, "deferrable": True, "timeout": 3600}

with DAG("story", schedule=None, default_args=KEEP_ON):
    GeminiImageGenerateOperator.partial(task_id="mapped", **DEFERRED).expand(
        prompt=[f"mapped image {number}" for number in range(SIZE["mapped"])]
    )
    image_batch(
        "catalogue",
        requests=SIZE["rows"],
        prompt="{product}",
        file_name="{sku}",
        shards=4,
        max_concurrency=100,
        min_success=0.9,
        priority_weight=10,  # a shard that was killed goes on before the mapped images
        **COMMON,
    )
    room = GeminiImageGenerateOperator(task_id="room", prompt="an empty room", **DEFERRED)
    views = GeminiImageEditOperator.partial(task_id="views", image=room.output, **DEFERRED).expand(
        prompt=[f"the room, view {number}" for number in range(SIZE["views"])]
    )
    GeminiImageEditOperator(
        task_id="evening",
        prompt="the room in the evening",
        image=room.output,
        reference_images=views.output,
        **DEFERRED,
    )

with DAG("late", schedule=None):
    GeminiImageBatchOperator.partial(task_id="late", **COMMON).expand(
        requests=[[f"late image {batch} {number}" for number in range(SIZE["late"])] for batch in range(2)]
    )
