"""``@task.gemini_image`` and ``@task.gemini_image_batch``: a function returns the request, the task makes the image.

Invariants: the return value of the function is never rendered, so that no text of a user can read a connection. The
function is called once per Clear, before money is spent. Its return value is saved until the image has landed; a retry
uses the saved value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_geminiimg.core.request import REQUEST_FIELDS, ImageRequest, check_literals
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.image import ImageOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.runtime.image_task import ImageTask

_RETURN_NONE = "To leave the field unset, return None for it, or omit it."


class GeminiImageDecoratedOperator(DecoratedOperator, ImageOperator):
    """The operator of ``@task.gemini_image``: make the image that a function requests. Returns its manifest.

    The function returns a prompt, a mapping of request fields, or an `ImageRequest`. The arguments of the decorator are
    defaults for fields that the function omits or leaves empty. With an `image` the request is an edit.

    Takes the arguments of `ImageOperator`, and:

    :param python_callable: the function.
    :param op_args: its positional arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    :raises GeminiImageError: as `ImageOperator`.
    """

    custom_operator_name = "@task.gemini_image"
    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *ImageOperator.template_fields)

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        prompt: Any = None,
        image: Any = None,
        **kwargs: Any,
    ) -> None:
        # The value in the DAG decides. An `image` that renders to nothing is an error; it must not become a generation.
        self._is_edit = image is not None
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, prompt=prompt, image=image, **kwargs
        )

    def _check_asked(self) -> None:
        names = [name for name in REQUEST_FIELDS if name != "model" and getattr(self, name) is not None]
        said = {name: getattr(self, name) for name in names}
        try:
            check_literals("edit", self.model, **said)
        except BadRequestError:
            if self._is_edit:
                raise
            check_literals("generate", self.model, **said)

    def _task(self) -> ImageTask:
        task = super()._task()
        return replace(task, function=lambda context: self._built(_fields(_call(self, context))))

    @property
    def operation(self) -> str:  # type: ignore[override]
        """``edit`` if `image` is given, else ``generate``; the return value of the function may change this."""
        return "edit" if self._is_edit else "generate"

    def _built(self, returned: Mapping[str, Any]) -> ImageRequest:
        values = {name: getattr(self, name) for name in REQUEST_FIELDS}
        for name, value in returned.items():
            if name not in values or not _is_blank(value):
                values[name] = value
            elif value is not None and values[name] is None:
                raise BadRequestError(f"{name}{given(value)}: the function returned an empty value.", hint=_RETURN_NONE)
        return ImageRequest.build(**{**({"operation": "edit"} if self._is_edit else {}), **values})


class GeminiImageBatchDecoratedOperator(DecoratedOperator, GeminiImageBatchOperator):
    """The operator of ``@task.gemini_image_batch``: make the images that a function requests.

    The function returns or yields prompts and mappings: the rows of `GeminiImageBatchOperator`.

    Takes the arguments of `GeminiImageBatchOperator` except `requests`, and:

    :param python_callable: the function.
    :param op_args: its positional arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    :raises GeminiImageError: as `GeminiImageBatchOperator`.
    """

    custom_operator_name = "@task.gemini_image_batch"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in GeminiImageBatchOperator.template_fields if name != "requests"),
    )

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, requests=None, **kwargs)

    def _rows(self, context: Mapping[str, Any]) -> list[Any]:
        from airflow_provider_geminiimg.core.batch.rows import records_of
        from airflow_provider_geminiimg.settings import max_batch_images

        returned = _call(self, context)
        is_table = isinstance(returned, Iterable) or hasattr(returned, "to_pylist")
        if isinstance(returned, (str, bytes, Mapping, ImageRequest)) or not is_table:
            raise BadRequestError(
                f"The function returned {_kind(returned)}: @task.gemini_image_batch takes a list or a generator of "
                "prompts and mappings, or a data frame.",
                hint="For one image use @task.gemini_image.",
            )
        return records_of(
            returned, max_batch_images() + 1
        )  # one more than allowed, so that the check of the limit sees it


def gemini_image_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool = False, **kwargs: Any
) -> TaskDecorator:
    """``@task.gemini_image``: make the image that the function requests.

    :param python_callable: the function; see `GeminiImageDecoratedOperator` for what it returns.
    :param multiple_outputs: also push each field of the manifest as its own XCom. Default: ``False``, regardless of the
        annotation of the function, because the task returns something else.
    :param kwargs: arguments of `GeminiImageDecoratedOperator`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=GeminiImageDecoratedOperator,
        **kwargs,
    )


def gemini_image_batch_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool = False, **kwargs: Any
) -> TaskDecorator:
    """``@task.gemini_image_batch``: make the images that the function requests.

    :param python_callable: the function; see `GeminiImageBatchDecoratedOperator` for what it returns.
    :param multiple_outputs: also push each field of the summary as its own XCom. Default: ``False``.
    :param kwargs: arguments of `GeminiImageBatchDecoratedOperator`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=GeminiImageBatchDecoratedOperator,
        **kwargs,
    )


def _call(operator: DecoratedOperator, context: Mapping[str, Any]) -> Any:
    """The return value of the function. Called in the main thread, where a timeout can interrupt it."""
    context_merge(cast(Any, context), operator.op_kwargs)
    kwargs = determine_kwargs(operator.python_callable, operator.op_args, context)
    return operator.python_callable(*operator.op_args, **kwargs)


def _fields(returned: Any) -> Mapping[str, Any]:
    """The return value as request fields.

    :raises BadRequestError: the value has another type. The message names the type and not the text.
    """
    if isinstance(returned, ImageRequest):
        given = {"operation": returned.operation} if "operation" in returned.model_fields_set else {}
        return {**given, **returned.model_dump(exclude_defaults=True, exclude={"operation"})}
    if isinstance(returned, str) and not _is_blank(returned):
        return {"prompt": returned}
    if isinstance(returned, Mapping) and returned and all(isinstance(name, str) for name in returned):
        return returned
    raise BadRequestError(
        f"The function returned {_kind(returned)}: @task.gemini_image takes a prompt, a dict with the fields of a "
        "request, or an ImageRequest.",
        hint="For many images use @task.gemini_image_batch.",
    )


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"an empty {kind}" if isinstance(value, (str, Mapping)) and not value else kind


def _is_blank(value: Any) -> bool:
    """Whether the value counts as unset."""
    return value is None or (isinstance(value, str) and not value.strip())
