"""Making the images of a plan, some at a time.

What must stay true: an image is bought once, however many rows ask for it; a failure stops new images at most, what is
under way is landed; every row ends with one status, and the counts of the statuses add up to the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial

from airflow_provider_geminiimg.core.batch.plan import PlannedImage
from airflow_provider_geminiimg.core.batch.summary import STATUSES, BatchSummary, Result, Status
from airflow_provider_geminiimg.core.execution.boundary import as_outcome, closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.http.transport import BILLABLE_WAIT, DEFAULT_CONCURRENCY
from airflow_provider_geminiimg.core.ledger.budget import DailyBudgetSpentError
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.landing import mismatch_error
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
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


class _Skip(Exception):
    """No further picture is started, and this one was not."""


class BatchExecutor:
    """Makes the pictures of a plan, some at a time.

    :param order: gives what a picture needs, when its turn comes.
    :param workshop: the surroundings.
    :param guard: whether this process may still pay.
    :param connection: through which gateway; its limits say how many requests are sent at once.
    :param marker: gives what Airflow remembers of an image, by its key; ``None`` where it has no task state store.
    :param width: pictures that are under way at once.
    :param fail_fast: the first failure stops new pictures.
    :param fail_on_mismatch: a picture that is not what was asked for is a failure.
    :param refused: why some are not bought, by fingerprint.
    """

    def __init__(
        self,
        order: Callable[[PlannedImage], Order],
        purchase_context: PurchaseContext,
        guard: SubmitGuard,
        connection: GatewayConnection,
        marker: Callable[[str], Marker | None],
        *,
        width: int,
        fail_fast: bool,
        fail_on_mismatch: bool,
        refused: Mapping[str, GeminiImageError],
    ) -> None:
        self.order = order
        self.purchase_context = purchase_context
        self.guard = guard
        self.marker = marker
        self.width = width
        self.fail_fast = fail_fast
        self.fail_on_mismatch = fail_on_mismatch
        self.refused = refused
        self._turn = asyncio.Semaphore(_requests_at_once(connection))
        self._tally = BatchSummary()
        self._since = time.monotonic()
        self._in_flight = 0
        self._unknowns = 0
        self._unstored = 0
        self._stopped: str | None = None

    async def run(self, items: Sequence[PlannedImage]) -> BatchSummary:
        """Make them all.

        :param items: the plan's; those of one fingerprint are one picture.
        :returns: what became of each fingerprint.
        """
        first = {item.fingerprint: item for item in reversed(items)}
        queue = (item for item in items if first[item.fingerprint] is item)
        self.purchase_context.budgets.expect(len(first))
        reporter = asyncio.create_task(self._report(len(first)))
        try:
            await asyncio.gather(*(self._work(queue) for _ in range(min(self.width, len(first)))))
        finally:
            reporter.cancel()
        self._say(len(first))
        return self._tally

    async def _work(self, queue: Iterator[PlannedImage]) -> None:
        for item in queue:
            if item.fingerprint in self.refused:
                result = Result("failed", error=self.refused[item.fingerprint])
            elif self._stopped is not None or self.guard.stopped:
                result = self._skipped()
            else:
                self._in_flight += 1
                result = await self._one(item)
                self._in_flight -= 1
            self._add(item, result)

    def _add(self, item: PlannedImage, result: Result) -> None:
        try:
            self._tally.add(item.fingerprint, result)
        except Exception as error:  # what its record says can't be counted
            self._tally.add(item.fingerprint, Result("unknown", error=as_outcome(error)))

    async def _one(self, item: PlannedImage) -> Result:
        asked = asyncio.Event()
        result = await self._make(item, asked)
        self._heed(result, asked.is_set())
        return result

    async def _make(self, item: PlannedImage, asked: asyncio.Event) -> Result:
        """One picture; `asked` is set once its request may have been sent by this attempt."""
        made = await closed(self._made(item, asked))  # what is under way elsewhere in the window goes on
        return Result(_status(made, self.guard), error=made) if isinstance(made, GeminiImageError) else made

    async def _made(self, item: PlannedImage, asked: asyncio.Event) -> Result:
        try:
            turn = partial(self._paying, asked)
            purchase = Purchase(self.order(item), self.purchase_context, self.guard, self.marker(item.key), turn)
            record, manifest = await purchase.start()
            if manifest is None:
                record, manifest = await purchase.finish(record)
        except _Skip:
            return self._skipped()
        difference = mismatch_error(manifest)
        if difference is not None and self.fail_on_mismatch:
            return Result("failed", manifest, difference)
        return Result("reused" if manifest.get("reused") else "landed", manifest)

    def _skipped(self) -> Result:
        why = self._stopped or "The task was told to stop."
        return Result("skipped", error=NotSentError(f"Not started: {why}", hint="A retry or a Clear makes it."))

    @contextlib.asynccontextmanager
    async def _paying(self, asked: asyncio.Event) -> AsyncIterator[Callable[[], None]]:
        """Who waits for its turn must hear of what happened meanwhile."""
        async with self._turn:
            if self._stopped is not None:
                raise _Skip
            yield asked.set

    def _heed(self, result: Result, asked: bool) -> None:
        """Stop new pictures where going on would be a waste or a bet."""
        error = result.error
        if asked:  # what an earlier attempt left unknown says nothing of the gateway now
            self._unknowns = self._unknowns + 1 if result.status == "unknown" else 0
        if isinstance(error, StorageError) and error.billed is Billed.YES:
            self._unstored += 1 if error.retryable else UNSTORED
        elif result.status == "landed":
            self._unstored = 0
        why = (
            f"{error.message}" if isinstance(error, _ACCOUNT)
            else "What is paid for can't be stored." if self._unstored >= UNSTORED
            else f"{UNKNOWNS} outcomes in a row are unknown." if self._unknowns >= UNKNOWNS
            else "on_item_failure is \"fail_fast\"." if error is not None and self.fail_fast
            else None
        )  # fmt: skip
        if why is not None and self._stopped is None:
            self._stopped = why
            self.purchase_context.log.error("No further picture is started: %s What is under way is landed.", why)

    async def _report(self, total: int) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self._say(total)

    def _say(self, total: int) -> None:
        ended = self._tally.ended
        done = ended.total()
        seconds = time.monotonic() - self._since
        rate = done / seconds if seconds > 0 else 0.0
        left = f"{(total - done) / rate:.0f} s" if rate and done < total else "none" if done >= total else "not known"
        counts = ", ".join(f"{ended[status]} {status}" for status in STATUSES if ended[status])
        cost = ", ".join(f"{amount:.6g} {currency}" for currency, amount in self._tally.cost.items())
        self.purchase_context.log.info(
            "%s of %s pictures (%s), %s under way, %.1f a second, cost: %s, time left: %s.",
            done, total, counts or "none yet", self._in_flight, rate, cost or "none yet", left,
        )  # fmt: skip


def _requests_at_once(connection: GatewayConnection) -> int:
    """So many paid requests that none waits for its turn until it is given up."""
    at_once = connection.max_concurrency or DEFAULT_CONCURRENCY
    rate = connection.requests_per_minute
    return at_once if rate is None else max(1, min(at_once, int(rate / 60 * BILLABLE_WAIT / 2)))


def _status(error: GeminiImageError, guard: SubmitGuard) -> Status:
    if isinstance(error, NotSentError) and guard.stopped:
        return "skipped"
    if isinstance(error, OutcomeUnknownError | UnexpectedError):
        return "unknown"
    return "refused" if isinstance(error, ContentRefusedError) else "failed"
