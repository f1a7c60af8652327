"""Gemini images in Airflow: paid for once, checked against what was asked, stored where you want them.

The public names live here and are loaded on first use, because Airflow imports this package in every process to find
the provider: importing it must stay free of Airflow, pydantic, httpx and boto3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_geminiimg import exceptions
    from airflow_provider_geminiimg.core.request import ImageRequest
    from airflow_provider_geminiimg.gallery.markdown import review_markdown
    from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
    from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
    from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
    from airflow_provider_geminiimg.operators.doctor import GeminiImageDoctorOperator
    from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
    from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
    from airflow_provider_geminiimg.operators.retry_policy import IMAGE_RETRY_POLICY
    from airflow_provider_geminiimg.operators.review import GeminiImageReviewOperator
    from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
    from airflow_provider_geminiimg.operators.wide_batch import image_batch
    from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
    from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

__version__ = "0.1.0"

__all__ = [
    "IMAGE_RETRY_POLICY",
    "GeminiImageBatchOperator",
    "GeminiImageCollectOperator",
    "GeminiImageDoctorOperator",
    "GeminiImageEditOperator",
    "GeminiImageGenerateOperator",
    "GeminiImageHook",
    "GeminiImageJobSensor",
    "GeminiImageJobTrigger",
    "GeminiImageReviewOperator",
    "GeminiImageSubmitOperator",
    "ImageRequest",
    "__version__",
    "exceptions",
    "image_batch",
    "review_markdown",
]

_HOMES = {
    "IMAGE_RETRY_POLICY": "operators.retry_policy",
    "GeminiImageBatchOperator": "operators.batch",
    "GeminiImageCollectOperator": "operators.collect",
    "GeminiImageDoctorOperator": "operators.doctor",
    "GeminiImageEditOperator": "operators.edit",
    "GeminiImageGenerateOperator": "operators.generate",
    "GeminiImageHook": "hooks.geminiimg",
    "GeminiImageJobSensor": "sensors.job",
    "GeminiImageJobTrigger": "triggers.job",
    "GeminiImageReviewOperator": "operators.review",
    "GeminiImageSubmitOperator": "operators.submit",
    "ImageRequest": "core.request",
    "image_batch": "operators.wide_batch",
    "review_markdown": "gallery.markdown",
}


def __getattr__(name: str) -> object:
    if name == "exceptions":
        return import_module(f"{__name__}.exceptions")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
