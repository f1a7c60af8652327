"""The operator that generates an image from a prompt."""

from __future__ import annotations

from airflow_provider_geminiimg.operators.image import ImageOperator


class GeminiImageGenerateOperator(ImageOperator):
    """Generate an image from a prompt and store it. Returns its manifest.

    Takes the arguments of `ImageOperator`. For `image` and `reference_images` see `GeminiImageEditOperator`.
    """

    operation = "generate"
