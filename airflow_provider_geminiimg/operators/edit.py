"""A picture from a picture."""

from __future__ import annotations

from typing import Any

from airflow_provider_geminiimg.operators.image import ImageOperator


class GeminiImageEditOperator(ImageOperator):
    """Edit a picture by a prompt, with reference pictures if wanted, and land the result. Returns its manifest.

    Takes the arguments of `ImageOperator`, and:

    :param image: the picture to edit: a URI, or a manifest that holds exactly one picture.
    :param reference_images: further pictures to go by: URIs or manifests.
    """

    operation = "edit"

    def __init__(self, *, image: Any, reference_images: Any = None, **kwargs: Any) -> None:
        super().__init__(image=image, reference_images=reference_images, **kwargs)
