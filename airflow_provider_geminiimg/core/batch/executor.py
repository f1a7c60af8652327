"""Makes the images of a plan with bounded concurrency.

Invariants: an image is bought once, even if several rows request it. A failure may stop new images; images in flight
still land. Every row ends with one status, and the counts of the statuses add up to the number of rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from airflow_provider_geminiimg.core.batch.plan import PlannedImage
from airflow_provider_geminiimg.core.batch.summary import STATUSES, BatchSummary, Result, Status
from airflow_provider_geminiimg.core.execution.boundary import as_outcome, closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.http.transport import BILLABLE_WAIT, DEFAULT_CONCURRENCY
from airflow_provider_geminiimg.core.ledger.caps import BudgetSpentError
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import Refuse
from airflow_provider_geminiimg.core.purchase.landing import mismatch_error
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
from airflow_provider_geminiimg.core.purchase.results import LandedImage
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InsufficientBalanceError,
    NotSentError,
    OutcomeUnknownError,
    StorageError,
    UnexpectedError,
)

UNSTORED = 3  # paid images in a row that could not be stored; then no new images
UNKNOWNS = 3  # unknown outcomes in a row; then no new images, because each may cost money without a result
PROGRESS_SECONDS = 10.0
ENDS_AT_ONCE = 16
_ACCOUNT = (
    InsufficientBalanceError,
    BudgetSpentError,
    AuthenticationError,
)  # every further image would fail in the same way


class NotStartedError(NotSentError):
    """The batch stopped before this image was started."""


@dataclass(frozen=True, slots=True)
class BatchContext:
    """Shared by all images of a batch.

    :param order: makes the order of an image.
    :param purchase_context: what a purchase needs from outside.
    :param guard: the stop flag for paid requests.
    :param connection: the gateway connection; its limits bound the number of simultaneous requests.
    :param marker: returns the marker of an image in Airflow's task state store, by its item name; ``None`` before
        Airflow 3.3.
    """

    order: Callable[[PlannedImage], Order]
    purchase_context: PurchaseContext
    guard: SubmitGuard
    connection: GatewayConnection
    marker: Callable[[str], Marker | None]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Options of a batch.

    :param max_concurrency: images in flight.
    :param fail_fast: start no new image after the first failure.
    :param fail_on_mismatch: an image that does not match its request counts as failed.
    """

    max_concurrency: int
    fail_fast: bool = False
    fail_on_mismatch: bool = False


class CircuitBreaker:
    """Stops new images when further requests would fail, or would risk money without a result.

    :param fail_fast: open after the first failure.
    """

    def __init__(self, fail_fast: bool) -> None:
        self.fail_fast = fail_fast
        self.reason: str | None = None
        """Why no new image is started; ``None`` while the breaker is closed."""

        self._unknowns = 0
        self._unstored = 0

    def add(self, result: Result, sent: bool) -> bool:
        """Count the result of an image.

        :param sent: whether this attempt may have sent the request. An unknown outcome of an earlier attempt does not
            count, because it says nothing about the gateway now.
        :returns: whether this result opened the breaker.
        """
        error = result.error
        if sent:
            self._unknowns = self._unknowns + 1 if result.status == "unknown" else 0
        if isinstance(error, StorageError) and error.billed is Billed.YES:
            self._unstored += 1 if error.retryable else UNSTORED
        elif result.status == "landed":
            self._unstored = 0
        if self.reason is None:
            self.reason = self._reason(error)
            return self.reason is not None
        return False

    def _reason(self, error: GeminiImageError | None) -> str | None:
        if isinstance(error, _ACCOUNT):
            return error.message
        if self._unstored >= UNSTORED:
            return "Paid images can't be stored."
        if self._unknowns >= UNKNOWNS:
            return f"{UNKNOWNS} outcomes in a row are unknown."
        return 'on_item_failure is "fail_fast".' if error is not None and self.fail_fast else None


class BatchExecutor:
    """Makes the images of a plan with bounded concurrency.

    :param batch: shared by all images.
    :param options: of the batch.
    :param refused: by fingerprint, the errors of images that must not be bought.
    """

    def __init__(self, batch: BatchContext, options: BatchOptions, refused: Mapping[str, GeminiImageError]) -> None:
        self.batch = batch
        self.options = options
        self.refused = refused
        self._log = batch.purchase_context.log
        self._index = batch.purchase_context.ledger.open_index
        self._turn = asyncio.Semaphore(_max_requests(batch.connection))
        self._breaker = CircuitBreaker(options.fail_fast)
        self._summary = BatchSummary()
        self._since = time.monotonic()
        self._in_flight = 0
        self._ended: list[str] = []  # items whose end is not noted yet

    async def run(self, items: Sequence[PlannedImage]) -> BatchSummary:
        """Make all images.

        :param items: of the plan; items with the same fingerprint are one image.
        :returns: the result of each fingerprint.
        """
        first = {item.fingerprint: item for item in reversed(items)}
        queue = (item for item in items if first[item.fingerprint] is item)
        self.batch.purchase_context.budgets.expect(len(first))
        self._index.cover([item.key for item in items if first[item.fingerprint] is item])
        reporter = asyncio.create_task(self._report(len(first)))
        try:
            await asyncio.gather(*(self._work(queue) for _ in range(min(self.options.max_concurrency, len(first)))))
        finally:
            reporter.cancel()
        await self._note_ends()
        self._say(len(first))
        return self._summary

    async def _work(self, queue: Iterator[PlannedImage]) -> None:
        for item in queue:
            if item.fingerprint in self.refused:
                result = Result("failed", error=self.refused[item.fingerprint])
            elif self._breaker.reason is not None or self.batch.guard.stopped:
                result = Result("skipped", error=self._not_started())
            else:
                self._in_flight += 1
                result = await self._one(item)
                self._in_flight -= 1
            self._add(item, result)
            self._ended.append(item.key)
            if len(self._ended) >= ENDS_AT_ONCE:
                await self._note_ends()

    async def _note_ends(self) -> None:
        """Note that nothing more of some items is claimed. Some at once: each hand-over to a thread takes CPU."""
        ended, self._ended = self._ended, []

        def end() -> None:
            for key in ended:
                self._index.end(key)

        await asyncio.to_thread(end)

    def _add(self, item: PlannedImage, result: Result) -> None:
        try:
            self._summary.add(item.fingerprint, result)
        except Exception as error:  # its manifest has values that can't be serialized or added
            self._summary.add(item.fingerprint, Result("unknown", error=as_outcome(error)))

    async def _one(self, item: PlannedImage) -> Result:
        sent = asyncio.Event()  # set when this attempt may have sent the request
        made = await closed(self._made(item, sent))  # an exception must not end the other images
        stopped = self.batch.guard.stopped
        result = Result(status_of(made, stopped), error=made) if isinstance(made, GeminiImageError) else made
        if self._breaker.add(result, sent.is_set()):
            self._log.error("No further image is started: %s Images in flight still land.", self._breaker.reason)
        return result

    async def _made(self, item: PlannedImage, sent: asyncio.Event) -> Result:
        batch = self.batch
        turn = partial(self._take_turn, sent)
        purchase = Purchase(batch.order(item), batch.purchase_context, batch.guard, batch.marker(item.key), turn)
        made = await purchase.start()
        manifest = (made if isinstance(made, LandedImage) else await purchase.finish(made.record)).manifest
        difference = mismatch_error(manifest)
        if difference is not None and self.options.fail_on_mismatch:
            return Result("failed", manifest, difference)
        return Result("reused" if manifest.get("reused") else "landed", manifest)

    def _not_started(self) -> NotStartedError:
        why = self._breaker.reason or "The task was killed."
        return NotStartedError(f"Not started: {why}", hint="A retry or a Clear makes it.")

    @contextlib.asynccontextmanager
    async def _take_turn(self, sent: asyncio.Event) -> AsyncIterator[Callable[[], None] | Refuse]:
        """Wait for one of the request slots, then check the breaker: it may have opened during the wait."""
        async with self._turn:
            yield sent.set if self._breaker.reason is None else Refuse(self._not_started())

    async def _report(self, total: int) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self._say(total)

    def _say(self, total: int) -> None:
        ended = self._summary.ended
        done = ended.total()
        seconds = time.monotonic() - self._since
        rate = done / seconds if seconds > 0 else 0.0
        left = f"{(total - done) / rate:.0f} s" if rate and done < total else "none" if done >= total else "not known"
        counts = ", ".join(f"{ended[status]} {status}" for status in STATUSES if ended[status])
        cost = ", ".join(f"{amount:.6g} {currency}" for currency, amount in self._summary.cost.items())
        self._log.info(
            "%s of %s images done (%s), %s in flight, %.1f per second, cost: %s, time left: %s.",
            done, total, counts or "none yet", self._in_flight, rate, cost or "none yet", left,
        )  # fmt: skip


def _max_requests(connection: GatewayConnection) -> int:
    """The limit on simultaneous paid requests, low enough that none waits longer than `BILLABLE_WAIT` for the rate."""
    concurrency = connection.max_concurrency or DEFAULT_CONCURRENCY
    rate = connection.requests_per_minute
    return concurrency if rate is None else max(1, min(concurrency, int(rate / 60 * BILLABLE_WAIT / 2)))


def status_of(error: GeminiImageError, stopped: bool = False) -> Status:
    """The status of an image that did not land.

    :param stopped: no paid request is sent any more, because the task was killed.
    """
    if isinstance(error, NotStartedError) or (isinstance(error, NotSentError) and stopped):
        return "skipped"
    if isinstance(error, OutcomeUnknownError | UnexpectedError):
        return "unknown"
    return "refused" if isinstance(error, ContentRefusedError) else "failed"
