"""An image from an image."""

from __future__ import annotations

from typing import Any

from airflow_provider_geminiimg.operators.image import ImageOperator


class GeminiImageEditOperator(ImageOperator):
    """Edit an image by a prompt, with reference images if wanted, and land the result. Returns its manifest.

    Takes the arguments of `ImageOperator`, and:

    :param image: the image to edit: a URI, or a manifest that holds exactly one image.
    :param reference_images: further images to go by: URIs or manifests.
    """

    operation = "edit"

    def __init__(self, *, image: Any, reference_images: Any = None, **kwargs: Any) -> None:
        super().__init__(image=image, reference_images=reference_images, **kwargs)
