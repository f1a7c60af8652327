"""The operator that edits an image."""

from __future__ import annotations

from airflow_provider_geminiimg.operators.optional_image import OptionalImageOperator


class GeminiImageEditOperator(OptionalImageOperator):
    """Edit an image by a prompt, with optional reference images, and store the result. Returns its manifest.

    Takes the arguments of `OptionalImageOperator`, and:

    :param reference_images: further images for the model to follow: URIs or manifests. Default: none.
    """

    operation = "edit"
