"""Many images in one task."""

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

    Each image has a record of its own, named by its fingerprint: a retry, a Clear or a change of the rows' order
    makes only what is missing, and what stands twice among the rows is made once. What the first attempt planned is
    kept in the ledger until all of it has landed, and a retry keeps to it, whatever `requests` gives then.

    Returns ``items``, ``counts`` by status, ``cost`` of what this attempt landed, and ``manifest``, the URI of a file
    with a JSON line for each image. Statuses: ``landed``, ``reused``, ``refused``, ``failed``, ``unknown`` (perhaps
    paid), ``skipped`` (not started).

    :param requests: a list of prompts and of mappings, a data frame, or the URI of a ``.csv``, ``.tsv``, ``.jsonl`` or
        ``.json`` file. A mapping has the fields of a request (``prompt``, ``image``, ``aspect_ratio``, ...), ``n``, and
        other columns for `file_name` and `prompt`. A row with an ``image`` is an edit.
    :param prompt: and the other fields of a request: what holds for every row that says nothing else. The prompt may
        name columns in braces, such as ``Photo of {product}``.
    :param n: images a row. The first is what the row alone would ask for, the others are variants. Default: 1.
    :param encoding: of a file without a byte order mark, such as ``cp1252``. Default: UTF-8.
    :param delimiter: what tells the cells of a CSV file apart. Default: what its header shows.
    :param output_path: directory URI in which the images land; default: under ``[geminiimg] root``.
    :param file_name: name without extension, with columns in braces, such as ``{sku}-{aspect_ratio}``; also
        ``{row}``, ``{variant}``, ``{model}`` and ``{resolution}``. Other characters than letters and digits of any
        script and ``_.~+-`` become ``-``. Default: as for one image, and the beginning of the fingerprint.
    :param geminiimg_conn_id: the Airflow connection.
    :param max_concurrency: images under way at once, 1 to 1000. Default: 50. How many requests are sent at once and
        a minute, the connection says.
    :param requests_per_minute: instead of the connection's own, in this task's process.
    :param on_item_failure: ``"collect"`` (default) goes on with the others, ``"fail_fast"`` starts no further one.
        Either way a lack of balance, a wrong key, or three unknown outcomes in a row start no further one, and what is
        under way is landed.
    :param min_success: how many images must land for the task to succeed: a count, or a ratio. Default: 1.0, all.
    :param poll_interval: seconds between polls; default: the catalogue's schedule.
    :param timeout: seconds from its submit that a job may take, over all attempts. Default: 1800.
    :param on_unknown: as for the operators of one image, for each of them.
    :param on_clear: likewise.
    :param reuse: likewise.
    :param on_mismatch: likewise; ``"fail"`` counts such an image as failed.
    :param max_cost: what the images that an attempt has to buy may cost together by the estimate, above 0, in the
        connection's price currency. If that is not enough, none of them is bought; what turns out only later to
        have to be bought, is as far as this reaches. What was paid for before is collected. Default: no cap.
    :raises IncompleteError: fewer than `min_success` landed; as ``AirflowFailException`` where no retry can help. The
        XCom is what it would have returned.
    :raises OverBudgetError: `max_cost` does not cover what would be bought.
    :raises GeminiImageError: nothing was started: wrong rows, a wrong connection, a ledger that can't be read.
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
        if not is_mapped(self):  # made when it runs: `execute` refuses then, in the way that no retry touches
            self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, or read what was planned; make what is missing; say what became of each."""
        from airflow_provider_geminiimg.runtime.batch_task import BatchTask, run_task

        pushes, several = self.do_xcom_push, self.multiple_outputs
        task = BatchTask(self._arguments(), self._rows, self._new_guard(), self.log, pushes, several)
        return run_task(task, context)

    def _rows(self, context: Mapping[str, Any]) -> Any:
        """The rows of this task's first attempt."""
        return self.requests
