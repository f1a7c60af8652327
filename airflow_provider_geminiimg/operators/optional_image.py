"""Base class of the operators that edit an image, or generate one if there is none.

Invariant: an `image` that is given in the DAG and is empty when the task runs becomes a generation only if the DAG
allows it by `if_no_image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_geminiimg.core.request import REQUEST_FIELDS, VALID_WITHOUT_IMAGE, check_literals
from airflow_provider_geminiimg.core.validation.arguments import is_literal
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.operators.arguments import parsers
from airflow_provider_geminiimg.operators.image import ImageOperator


class OptionalImageOperator(ImageOperator):
    """Base class of the operators that edit an image, or generate one if there is none.

    Takes the arguments of `ImageOperator`, and:

    :param image: the image to edit: a URI, or a manifest that holds exactly one image.
    :param if_no_image: what to do if `image` is empty after rendering (``None``, empty text, an empty list):
        ``"fail"`` (default) or ``"generate"``: make an image from the prompt. A name that does not exist is always an
        error.
    """

    checks = {**ImageOperator.checks, **parsers("if_no_image")}
    template_fields: Sequence[str] = (*ImageOperator.template_fields, "if_no_image")

    def __init__(self, *, image: Any = None, if_no_image: str = "fail", **kwargs: Any) -> None:
        self.if_no_image = if_no_image
        super().__init__(image=image, **kwargs)

    def _check_asked(self) -> None:
        if self.operation == "generate" or self.if_no_image != "generate":
            super()._check_asked()
            return
        asked = {name: getattr(self, name) for name in REQUEST_FIELDS}
        is_known = is_literal(self.image)
        if not is_known or self.image:
            check_literals("edit", **asked)
        if not is_known or not self.image:
            try:
                check_literals("generate", **{**asked, "image": None})
            except BadRequestError as error:
                raise error.evolve(hint=VALID_WITHOUT_IMAGE) from None
