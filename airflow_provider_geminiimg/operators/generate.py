"""An image from a prompt."""

from __future__ import annotations

from airflow_provider_geminiimg.operators.image import ImageOperator


class GeminiImageGenerateOperator(ImageOperator):
    """Generate an image from a prompt and land it in storage. Returns its manifest.

    Takes the arguments of `ImageOperator`; `image` and `reference_images` belong to `GeminiImageEditOperator`.
    """

    operation = "generate"
