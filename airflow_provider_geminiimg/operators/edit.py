"""The operator that edits an image."""

from __future__ import annotations

from typing import Any

from airflow_provider_geminiimg.operators.image import ImageOperator


class GeminiImageEditOperator(ImageOperator):
    """Edit an image by a prompt, with optional reference images, and store the result. Returns its manifest.

    Takes the arguments of `ImageOperator`, and:

    :param image: the image to edit: a URI, or a manifest that holds exactly one image.
    :param reference_images: further images for the model to follow: URIs or manifests. Default: none.
    """

    operation = "edit"

    def __init__(self, *, image: Any, reference_images: Any = None, **kwargs: Any) -> None:
        super().__init__(image=image, reference_images=reference_images, **kwargs)
