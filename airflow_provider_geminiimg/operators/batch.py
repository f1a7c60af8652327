"""The operator that makes many images in one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_geminiimg._compat import is_mapped
from airflow_provider_geminiimg.core.request import SHARED
from airflow_provider_geminiimg.core.validation.arguments import (
    DEFAULT_TIMEOUT,
    DEFAULT_WIDTH,
    names_of,
    stem,
    text,
)
from airflow_provider_geminiimg.core.validation.task_arguments import Checks
from airflow_provider_geminiimg.gallery.link import ImagesLink
from airflow_provider_geminiimg.operators.arguments import parsers
from airflow_provider_geminiimg.operators.base import PaidTaskMixin

if TYPE_CHECKING:
    from airflow.sdk import Context


def _file_name_template(name: str, value: Any) -> str | None:
    """A file name with column names in braces."""
    template = text(name, value)
    if template is not None:
        stem(name, template.format_map(dict.fromkeys(names_of(template), "x")))
    return template


_CHECKS: Checks = {
    **parsers(
        *("geminiimg_conn_id", "output_path", "file_name", "n", "encoding", "delimiter", "max_concurrency"),
        *("requests_per_minute", "min_success", "timeout", "poll_interval", "on_item_failure", "on_unknown"),
        *("on_clear", "reuse", "on_mismatch", "max_cost"),
    ),
    "file_name": _file_name_template,
}


class GeminiImageBatchOperator(PaidTaskMixin, BaseOperator):
    """Make many images in one task, as fast as the gateway allows.

    Each image has its own record, named by its fingerprint. So a retry, a Clear or another order of the rows makes only
    the missing images, and identical rows share one image. The first attempt saves its plan in the ledger until every
    image has landed; a retry uses the saved plan, even if `requests` renders to other rows then.

    Returns ``items``, ``counts`` by status, ``cost`` of the images that this attempt landed, and ``manifest``, the URI
    of a file with one JSON line per image. Statuses: ``landed``, ``reused``, ``refused``, ``failed``, ``unknown`` (may
    have been paid for), ``skipped`` (not started).

    :param requests: a list of prompts and mappings, a data frame, or the URI of a ``.csv``, ``.tsv``, ``.jsonl`` or
        ``.json`` file. A mapping has the fields of a request (``prompt``, ``image``, ``aspect_ratio``, ...), ``n``, and
        other columns for `file_name` and `prompt`. A row with an ``image`` is an edit.
    :param prompt: default for every row that has none. It may name columns in braces: ``Photo of {product}``. The other
        request fields (`model`, `image`, `resolution`, ...) are defaults in the same way.
    :param n: images per row. The first is the image of the row itself, the others are variants of it. Default: 1.
    :param encoding: of a file without a byte order mark, such as ``cp1252``. Default: UTF-8.
    :param delimiter: of the cells of a CSV file. Default: detected from its header.
    :param output_path: directory URI for the images. Default: a directory under ``[geminiimg] root``.
    :param file_name: name without extension, with columns in braces, such as ``{sku}-{aspect_ratio}``; also
        ``{row}``, ``{variant}``, ``{model}`` and ``{resolution}``. Characters other than letters and digits of any
        script and ``_.~+-`` become ``-``. Default: the name of a single image, followed by the start of the
        fingerprint.
    :param geminiimg_conn_id: id of the Airflow connection.
    :param max_concurrency: images in flight, 1 to 1000. Default: 50. The connection limits the number of simultaneous
        requests and of requests per minute.
    :param requests_per_minute: a limit for the process of this task, below that of the connection.
    :param on_item_failure: ``"collect"`` (default) continues with the other images, ``"fail_fast"`` starts no further
        image. In both cases no further image is started after a lack of balance, a wrong key or three unknown outcomes
        in a row. Images in flight still land.
    :param min_success: how many images must land for the task to succeed: a count such as ``5``, or a ratio from
        ``0.0`` to ``1.0``. Default: 1.0, all of them.
    :param poll_interval: seconds between polls. Default: the schedule of the model.
    :param timeout: seconds that a job may take from its submit, over all attempts. Default: 1800.
    :param on_unknown: see `ImageOperator`; applies to each image.
    :param on_clear: see `ImageOperator`; applies to each image.
    :param reuse: see `ImageOperator`; applies to each image.
    :param on_mismatch: see `ImageOperator`; ``"fail"`` counts such an image as failed.
    :param max_cost: cap on the estimated cost of all images that this attempt would buy, above 0, in the price currency
        of the connection. If the estimate is higher, none of them is bought. If more images turn out to be missing
        later, they are bought only as far as the cap allows. Images that are already paid for are collected in any
        case. Default: no cap.
    :raises IncompleteError: fewer than `min_success` images landed; raised as ``AirflowFailException`` if no retry can
        help. The summary is pushed as XCom all the same.
    :raises OverBudgetError: `max_cost` is lower than the estimate.
    :raises GeminiImageError: nothing was started: wrong rows, a wrong connection, or a ledger that can't be read.
    """

    checks = _CHECKS
    template_fields: Sequence[str] = ("requests", *SHARED, *_CHECKS)
    ui_color = "#e8f0fe"
    operator_extra_links = (ImagesLink(),)

    def __init__(
        self,
        *,
        requests: Any,
        prompt: Any = None,
        model: str | None = None,
        image: Any = None,
        reference_images: Any = None,
        resolution: str | int | None = None,
        aspect_ratio: str | None = None,
        temperature: float | str | None = None,
        top_p: float | str | None = None,
        google_search: bool | str | None = None,
        google_image_search: bool | str | None = None,
        n: int | str = 1,
        encoding: str | None = None,
        delimiter: str | None = None,
        output_path: str | None = None,
        file_name: str | None = None,
        geminiimg_conn_id: str = "geminiimg_default",
        max_concurrency: int | str = DEFAULT_WIDTH,
        requests_per_minute: int | str | None = None,
        on_item_failure: str = "collect",
        min_success: float | str = 1.0,
        poll_interval: float | str | None = None,
        timeout: float | str = DEFAULT_TIMEOUT,
        on_unknown: str = "fail",
        on_clear: str = "reuse",
        reuse: str = "task",
        on_mismatch: str = "accept",
        max_cost: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.requests = requests
        self.prompt = prompt
        self.model = model
        self.image = image
        self.reference_images = reference_images
        self.resolution = resolution
        self.aspect_ratio = aspect_ratio
        self.temperature = temperature
        self.top_p = top_p
        self.google_search = google_search
        self.google_image_search = google_image_search
        self.n = n
        self.encoding = encoding
        self.delimiter = delimiter
        self.output_path = output_path
        self.file_name = file_name
        self.geminiimg_conn_id = geminiimg_conn_id
        self.max_concurrency = max_concurrency
        self.requests_per_minute = requests_per_minute
        self.on_item_failure = on_item_failure
        self.min_success = min_success
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.on_unknown = on_unknown
        self.on_clear = on_clear
        self.reuse = reuse
        self.on_mismatch = on_mismatch
        self.max_cost = max_cost
        if not is_mapped(self):  # a mapped operator is created at run time; then `execute` checks, without retries
            self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan the images, or read the saved plan; make the missing images; return the summary."""
        from airflow_provider_geminiimg.runtime.batch_task import BatchTask, run_task

        pushes, several = self.do_xcom_push, self.multiple_outputs
        task = BatchTask(self._arguments(), self._rows, self._new_guard(), self.log, pushes, several)
        return run_task(task, context)

    def _rows(self, context: Mapping[str, Any]) -> Any:
        """The rows. Called only if there is no saved plan."""
        return self.requests
