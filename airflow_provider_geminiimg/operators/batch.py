"""Many pictures in one task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg._compat import is_mapped
from airflow_provider_geminiimg.attempt import Attempt, OnMismatch, choice, money, raise_outcome, seconds, stem, text
from airflow_provider_geminiimg.batch import (
    PLANS,
    Plan,
    Planned,
    Window,
    destination_of,
    plan,
    refusals,
)
from airflow_provider_geminiimg.connection import GatewayConnection
from airflow_provider_geminiimg.decision import OnClear, OnUnknown, Policy, ReuseScope
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, IncompleteError
from airflow_provider_geminiimg.kept import Kept
from airflow_provider_geminiimg.landing import Workshop, in_thread
from airflow_provider_geminiimg.links import ImagesLink
from airflow_provider_geminiimg.operators._base import DEFAULT_TIMEOUT, REQUEST_FIELDS
from airflow_provider_geminiimg.operators._shared import BuysPictures
from airflow_provider_geminiimg.order import Order
from airflow_provider_geminiimg.request import given
from airflow_provider_geminiimg.rows import MAX_VARIANTS, file_name, names_of, read_rows, wishes
from airflow_provider_geminiimg.runner import run
from airflow_provider_geminiimg.storage import Files, join_uri
from airflow_provider_geminiimg.tally import GOOD, Tally

if TYPE_CHECKING:
    from airflow.sdk import Context

OnItemFailure = Literal["collect", "fail_fast"]

DEFAULT_WIDTH = 50
MAX_WIDTH = 1000
SHARED = tuple(name for name in REQUEST_FIELDS if name != "variant")
_NAMED_FAILURES = 3  # in the message of a task that fails


def _whole(name: str, value: Any, most: int) -> int | None:
    """A rendered whole number from 1 to `most`; ``None`` and empty mean unset."""
    if value is None or value == "":
        return None
    try:
        number = 0 if isinstance(value, bool) else int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise BadRequestError(f"{name}{given(value)}: takes a whole number from 1 to {most}.")
    return number


def _min_success(name: str, value: Any) -> int | float:
    """A count (a whole number) or a ratio (a number with a point, up to 1.0)."""
    shown = str(value).strip()
    try:
        number = float("nan") if isinstance(value, bool) else float(shown) if "." in shown else int(shown)
    except ValueError:
        number = float("nan")
    if not (0 <= number <= 1 if isinstance(number, float) else number >= 0):
        raise BadRequestError(f"{name}{given(value)}: takes a count such as 5, or a ratio from 0.0 to 1.0.")
    return number


def _template(name: str, value: Any) -> str | None:
    """A file name with columns in braces."""
    template = text(name, value)
    if template is not None:
        stem(name, template.format_map(dict.fromkeys(names_of(template), "x")))
    return template


def _write_manifest(files: Files, uri: str, tally: Tally, planned: Plan) -> None:
    files.put(uri, tally.manifest(planned.items), media_type="application/x-ndjson")


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "geminiimg_conn_id": text,
    "output_path": text,
    "file_name": _template,
    "n": partial(_whole, most=MAX_VARIANTS),
    "max_concurrency": partial(_whole, most=MAX_WIDTH),
    "requests_per_minute": partial(_whole, most=1_000_000),
    "min_success": _min_success,
    "timeout": seconds,
    "poll_interval": seconds,
    "on_item_failure": partial(choice, allowed=OnItemFailure),
    "on_unknown": partial(choice, allowed=OnUnknown),
    "on_clear": partial(choice, allowed=OnClear),
    "reuse": partial(choice, allowed=ReuseScope),
    "on_mismatch": partial(choice, allowed=OnMismatch),
    "max_cost": money,
}


class GeminiImageBatchOperator(BuysPictures, BaseOperator):
    """Make many pictures in one task, as fast as the gateway allows.

    Each picture has a record of its own, named by its fingerprint: a retry, a Clear or a change of the rows' order
    makes only what is missing, and what stands twice among the rows is made once. What the first attempt planned is
    kept in the ledger until all of it has landed, and a retry keeps to it, whatever `requests` gives then.

    Returns ``items``, ``counts`` by status, ``cost`` of what this attempt landed, and ``manifest``, the URI of a file
    with a JSON line for each picture. Statuses: ``landed``, ``reused``, ``refused``, ``failed``, ``unknown`` (perhaps
    paid), ``skipped`` (not started).

    :param requests: a list of prompts and of mappings, or the URI of a ``.csv``, ``.jsonl`` or ``.json`` file. A
        mapping has the fields of a request (``prompt``, ``image``, ``aspect_ratio``, ...), ``n``, and other columns
        for `file_name`. A row with an ``image`` is an edit.
    :param prompt: and the other fields of a request: what holds for every row that says nothing else.
    :param n: pictures a row, told apart by their variant. Default: 1.
    :param output_path: directory URI in which the pictures land; default: under ``[geminiimg] root``.
    :param file_name: name without extension, with columns in braces, such as ``{sku}-{aspect_ratio}``; also
        ``{row}``, ``{variant}``, ``{model}`` and ``{resolution}``. Other characters than letters, digits and
        ``_.~+-`` become ``-``. Default: as for one picture, and the beginning of the fingerprint.
    :param geminiimg_conn_id: the Airflow connection.
    :param max_concurrency: pictures under way at once, 1 to 1000. Default: 50. How many requests are sent at once and
        a minute, the connection says.
    :param requests_per_minute: instead of the connection's own, in this task's process.
    :param on_item_failure: ``"collect"`` (default) goes on with the others, ``"fail_fast"`` starts no further one.
        Either way a lack of balance, a wrong key, or three unknown outcomes in a row start no further one, and what is
        under way is landed.
    :param min_success: how many pictures must land for the task to succeed: a count, or a ratio. Default: 1.0, all.
    :param poll_interval: seconds between polls; default: the catalogue's schedule.
    :param timeout: seconds from its submit that a job may take, over all attempts. Default: 1800.
    :param on_unknown: as for the operators of one picture, for each of them.
    :param on_clear: likewise.
    :param reuse: likewise.
    :param on_mismatch: likewise; ``"fail"`` counts such a picture as failed.
    :param max_cost: what the pictures that an attempt has to buy may cost together by the estimate, above 0, in the
        connection's price currency. If that is not enough, none of them is bought; what was paid for before is
        collected. Default: no cap.
    :raises IncompleteError: fewer than `min_success` landed; as ``AirflowFailException`` where no retry can help.
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
        try:
            summary, failure = self._made(context)
        except GeminiImageError as error:
            raise_outcome(error)
        if failure is not None:
            raise_outcome(failure)
        return summary

    def _made(self, context: Context) -> tuple[dict[str, Any], IncompleteError | None]:
        """The summary, and why the task fails, if it does. Whoever raises that has no prompt among its variables."""
        attempt = self._attempt(context)
        plans = Kept(Plan, attempt.ledger.store, PLANS, attempt.item, attempt.plan_marker)
        known = plans.read(attempt.generation)
        requests = self._asked(attempt) if known is None else None
        planned, tally, manifest = run(lambda: self._live(attempt, plans, known, requests), attempt.guard)
        summary = {**tally.totals(planned.items), "manifest": manifest}
        self.log.info("%s", summary)
        return summary, self._failure(planned, tally, summary)

    def _asked(self, attempt: Attempt) -> Any:
        """The rows of this task's first attempt."""
        return self.requests

    async def _live(
        self, attempt: Attempt, plans: Kept[Plan], planned: Plan | None, requests: Any
    ) -> tuple[Plan, Tally, str]:
        connection = attempt.connection(self.geminiimg_conn_id)
        rate = self._checked("requests_per_minute")
        if rate is not None:
            connection = attempt.limited(connection.conn_id, rate)
        async with attempt.workshop() as workshop:
            await in_thread(attempt.ledger.store.probe)
            if planned is None:
                planned = await self._plan(attempt, connection, workshop, requests)
                await in_thread(plans.write, attempt.generation, planned)
            else:
                self.log.info("Keeping to what the first attempt planned: %s pictures.", len(planned.items))
            await in_thread(attempt.ledger.look_ahead, attempt.item)
            orders = self._orders(attempt, connection, planned)
            refused = await refusals(orders, planned.items, attempt.ledger, connection, self._checked("max_cost"))
            window = Window(
                orders,
                workshop,
                attempt.guard,
                connection,
                width=self._checked("max_concurrency") or DEFAULT_WIDTH,
                fail_fast=self._checked("on_item_failure") == "fail_fast",
                fail_on_mismatch=self._checked("on_mismatch") == "fail",
                refused=refused,
            )
            tally = await window.run(planned.items)
            manifest = join_uri(attempt.folder, "manifest.jsonl")
            await in_thread(_write_manifest, attempt.files, manifest, tally, planned)
            if tally.all_landed:
                await in_thread(lambda: plans.finish(attempt.generation, planned.carried_out()))
        refusal = next(iter(refused.values()), None)
        if refusal is not None:
            refusal.billed = tally.billed
            raise refusal
        return planned, tally, manifest

    async def _plan(self, attempt: Attempt, connection: GatewayConnection, workshop: Workshop, requests: Any) -> Plan:
        rows = await in_thread(read_rows, requests, workshop.files)
        wanted = wishes(
            rows,
            {name: getattr(self, name) for name in SHARED},
            self._checked("n") or 1,
            gateway=connection.gateway,
            default_model=connection.model,
        )
        template = self._checked("file_name")
        names = [None if template is None else stem("file_name", file_name(template, wish)) for wish in wanted]
        return await plan(
            wanted,
            connection,
            workshop.files,
            generation=attempt.generation,
            directory=self._checked("output_path") or attempt.folder,
            stems=names,
            prefix=attempt.destination(self._checked("output_path"), None).stem,
        )

    def _orders(self, attempt: Attempt, connection: GatewayConnection, planned: Plan) -> Callable[[Planned], Order]:
        """What gives the order of each picture. What all have in common is checked now, once."""
        usual: dict[str, Any] = {
            "connection": connection,
            "policy": Policy(
                generation=attempt.generation,
                on_unknown=self._checked("on_unknown"),
                on_clear=self._checked("on_clear"),
                reuse=self._checked("reuse"),
            ),
            "timeout": self._checked("timeout") or DEFAULT_TIMEOUT,
            "poll_interval": self._checked("poll_interval"),
            "record_prompts": settings.record_prompts(),
        }

        def order(item: Planned) -> Order:
            return Order(
                item=dataclasses.replace(attempt.item, item=item.key),
                request=item.request(connection),
                destination=destination_of(planned, item),
                input_sha256=item.input_sha256,
                **usual,
            )

        return order

    def _failure(self, planned: Plan, tally: Tally, summary: Mapping[str, Any]) -> IncompleteError | None:
        """Why the task fails, if it does."""
        wanted = self._checked("min_success")
        total = len(planned.items)
        good = sum(summary["counts"][status] for status in GOOD)
        needed = wanted * total if isinstance(wanted, float) else min(wanted, total)
        if good >= needed:
            return None
        named = " ".join(tally.bad(planned.items, _NAMED_FAILURES))
        return IncompleteError(
            f"{good} of {total} pictures landed, min_success={wanted}. All of them: {summary['manifest']}. {named}",
            billed=tally.billed,
            retryable=tally.retryable,
        )
