"""Making the images of a plan, some at a time.

What must stay true: an image is bought once, however many rows ask for it; a failure stops new images at most, what is
under way is landed; every row ends with one status, and the counts of the statuses add up to the rows.
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
from airflow_provider_geminiimg.core.ledger.budget import DailyBudgetSpentError
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

UNSTORED = 3  # in a row, each paid for; then the storage is broken
UNKNOWNS = 3  # in a row; then the gateway or the network is broken, and every further image would be a bet
PROGRESS_SECONDS = 10.0
_ACCOUNT = (InsufficientBalanceError, DailyBudgetSpentError, AuthenticationError)  # no further image can be bought


class NotStartedError(NotSentError):
    """The batch stopped before this image was started."""


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What each image of a batch is made with.

    :param order: gives what an image needs, when its turn comes.
    :param purchase_context: what a purchase needs from outside.
    :param guard: whether this process may still pay.
    :param connection: through which gateway; its limits say how many requests are sent at once.
    :param marker: gives what Airflow remembers of an image, by its key; ``None`` where it has no task state store.
    """

    order: Callable[[PlannedImage], Order]
    purchase_context: PurchaseContext
    guard: SubmitGuard
    connection: GatewayConnection
    marker: Callable[[str], Marker | None]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch is made.

    :param max_concurrency: images that are under way at once.
    :param fail_fast: the first failure stops new images.
    :param fail_on_mismatch: an image that is not what was asked for is a failure.
    """

    max_concurrency: int
    fail_fast: bool = False
    fail_on_mismatch: bool = False


class CircuitBreaker:
    """Stops new images where going on would be a waste or a bet.

    :param fail_fast: the first failure does.
    """

    def __init__(self, fail_fast: bool) -> None:
        self.fail_fast = fail_fast
        self.reason: str | None = None
        """Why no further image is started; ``None``: further ones are."""

        self._unknowns = 0
        self._unstored = 0

    def add(self, result: Result, sent: bool) -> bool:
        """Take in what became of an image.

        :param sent: whether this attempt may have sent its request; what an earlier one left unknown says nothing of
            the gateway now.
        :returns: whether it is this one that stops new images.
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
            return "What is paid for can't be stored."
        if self._unknowns >= UNKNOWNS:
            return f"{UNKNOWNS} outcomes in a row are unknown."
        return 'on_item_failure is "fail_fast".' if error is not None and self.fail_fast else None


class BatchExecutor:
    """Makes the images of a plan, some at a time.

    :param batch: what each is made with.
    :param options: how they are made.
    :param refused: why some are not bought, by fingerprint.
    """

    def __init__(self, batch: BatchContext, options: BatchOptions, refused: Mapping[str, GeminiImageError]) -> None:
        self.batch = batch
        self.options = options
        self.refused = refused
        self._log = batch.purchase_context.log
        self._turn = asyncio.Semaphore(_requests_at_once(batch.connection))
        self._breaker = CircuitBreaker(options.fail_fast)
        self._summary = BatchSummary()
        self._since = time.monotonic()
        self._in_flight = 0

    async def run(self, items: Sequence[PlannedImage]) -> BatchSummary:
        """Make them all.

        :param items: the plan's; those of one fingerprint are one image.
        :returns: what became of each fingerprint.
        """
        first = {item.fingerprint: item for item in reversed(items)}
        queue = (item for item in items if first[item.fingerprint] is item)
        self.batch.purchase_context.budgets.expect(len(first))
        reporter = asyncio.create_task(self._report(len(first)))
        try:
            await asyncio.gather(*(self._work(queue) for _ in range(min(self.options.max_concurrency, len(first)))))
        finally:
            reporter.cancel()
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

    def _add(self, item: PlannedImage, result: Result) -> None:
        try:
            self._summary.add(item.fingerprint, result)
        except Exception as error:  # what its record says can't be counted
            self._summary.add(item.fingerprint, Result("unknown", error=as_outcome(error)))

    async def _one(self, item: PlannedImage) -> Result:
        sent = asyncio.Event()  # once the request may have been sent by this attempt
        made = await closed(self._made(item, sent))  # what is under way elsewhere in the batch goes on
        result = Result(_status(made, self.batch.guard), error=made) if isinstance(made, GeminiImageError) else made
        if self._breaker.add(result, sent.is_set()):
            self._log.error("No further image is started: %s What is under way is landed.", self._breaker.reason)
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
        why = self._breaker.reason or "The task was told to stop."
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
            "%s of %s images (%s), %s under way, %.1f a second, cost: %s, time left: %s.",
            done, total, counts or "none yet", self._in_flight, rate, cost or "none yet", left,
        )  # fmt: skip


def _requests_at_once(connection: GatewayConnection) -> int:
    """So many paid requests that none waits for its turn until it is given up."""
    at_once = connection.max_concurrency or DEFAULT_CONCURRENCY
    rate = connection.requests_per_minute
    return at_once if rate is None else max(1, min(at_once, int(rate / 60 * BILLABLE_WAIT / 2)))


def _status(error: GeminiImageError, guard: SubmitGuard) -> Status:
    if isinstance(error, NotStartedError) or (isinstance(error, NotSentError) and guard.stopped):
        return "skipped"
    if isinstance(error, OutcomeUnknownError | UnexpectedError):
        return "unknown"
    return "refused" if isinstance(error, ContentRefusedError) else "failed"
