"""One image from 1min.ai, with the settings that this gateway supports.

Connection ``onemin``: type ``geminiimg``, password = API key, extra ``{"gateway": "1min"}``.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

with DAG("geminiimg_onemin", tags=["geminiimg"]):
    GeminiImageGenerateOperator(
        task_id="poster",
        geminiimg_conn_id="onemin",
        model="gemini-3.1-flash-image-preview",
        prompt="A poster for a jazz evening, in the style of a woodcut",
        resolution="2K",
        aspect_ratio="2:3",
        temperature=0.7,
        top_p=0.9,
    )
