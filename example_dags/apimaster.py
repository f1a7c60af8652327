"""One image from APIMaster.ai, with the settings that this gateway supports.

Connection ``apimaster``: type ``geminiimg``, password = API key, extra ``{"gateway": "apimaster"}``.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

with DAG("geminiimg_apimaster", tags=["geminiimg"]):
    GeminiImageGenerateOperator(
        task_id="poster",
        geminiimg_conn_id="apimaster",
        model="gemini-3.1-flash-image",
        prompt="A travel poster of the tallest bridge that is open to traffic today",
        resolution="1K",
        aspect_ratio="3:2",
        google_search=True,
        google_image_search=True,
        deferrable=True,
    )
