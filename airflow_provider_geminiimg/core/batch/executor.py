"""Many pictures in one task: the plan of what is wanted, and the window in which the pictures are made.

What must stay true: the plan is in the store before the first picture is paid for, and what an attempt planned a retry
makes; a picture belongs to its fingerprint, so that no order of rows and no retry buys it twice; a failure stops new
pictures at most, what is under way is landed; every row ends as one word, and the words add up to the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.batch.rows import ImageSpec
from airflow_provider_geminiimg.core.batch.summary import STATUSES, BatchSummary, Result, Status
from airflow_provider_geminiimg.core.execution.boundary import as_outcome, closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.http.transport import BILLABLE_WAIT, DEFAULT_CONCURRENCY
from airflow_provider_geminiimg.core.ledger.budget import DailyBudgetSpentError
from airflow_provider_geminiimg.core.ledger.records import Destination
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.inputs import input_digests
from airflow_provider_geminiimg.core.purchase.landing import mismatch_error
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
from airflow_provider_geminiimg.core.purchase.saved_requests import Saved
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InsufficientBalanceError,
    LedgerError,
    NotSentError,
    OutcomeUnknownError,
    StorageError,
    UnexpectedError,
)

UNSTORED = 3  # in a row, each paid for; then the storage is broken
UNKNOWNS = 3  # in a row; then the gateway or the network is broken, and every further picture would be a bet
READERS = 16  # input pictures that are read at once, while planning
PROGRESS_SECONDS = 10.0
_ACCOUNT = (InsufficientBalanceError, DailyBudgetSpentError, AuthenticationError)  # no further picture can be bought


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One picture of a plan, as the store keeps it.

    :param row: number of its row, from 0.
    :param operation: ``generate`` or ``edit``.
    :param values: the request's neutral fields, the prompt and the input pictures' addresses among them; empty when
        the plan has been carried out.
    :param labels: the row's other columns.
    :param fingerprint: what it will be known by.
    :param input_sha256: of the input pictures, when the plan was made.
    :param stem: name of its file, without an extension.
    :param line: where its row begins in the file of rows, as an editor shows it; ``None``: it is from no file.
    :param host: of the API, in `fingerprint`, where a record from before the connection got another one is meant.
    """

    row: int
    operation: Literal["generate", "edit"]
    values: dict[str, Any] = field(repr=False)
    labels: dict[str, str] = field(repr=False)
    fingerprint: str
    input_sha256: tuple[str, ...]
    stem: str
    line: int | None = None
    host: str | None = None

    @property
    def key(self) -> str:
        """What the ledger calls it, among the pictures of its task."""
        return self.fingerprint[:16]

    def request(self, connection: GatewayConnection) -> CheckedRequest | GeminiImageError:
        """What to make; or why it can't be: it was made, or the connection is another one than it was planned for."""
        if not self.values:
            return LedgerError(
                "This was made before, and what was asked for is not kept that long.",
                billed=Billed.YES,
                hint="Clear the task, which plans anew.",
            )
        try:
            built = ImageRequest.build(operation=self.operation, **self.values)
            request = built.check(connection.gateway, connection.model)
        except BadRequestError as error:
            return error
        if len(self.input_sha256) != len(request.input_images):
            return LedgerError(
                f"The plan contradicts itself: it has hashes of {len(self.input_sha256)} input images "
                f"for a request with {len(request.input_images)}.",
                hint="Nothing was sent. Clear the task, which plans anew.",
            )
        if self.fingerprint not in fingerprints_of(request, self.input_sha256, connection, self.host):
            return BadRequestError(
                f"Since the batch was planned, connection {connection.conn_id!r} changed.",
                hint="Change it back and let the task retry; or clear the task, which plans anew.",
            )
        return request


class Plan(Saved):
    """What one generation of a task makes: the first attempt's word, which retries keep to.

    :param generation: ``ti.max_tries`` of the attempt that made it.
    :param directory: where the pictures land.
    :param items: in the order of the rows.
    """

    generation: int
    directory: str
    items: tuple[PlannedImage, ...]

    def carried_out(self) -> Plan:
        """What remains of it when all has landed: no prompt, and no picture's address."""
        return self.model_copy(update={"items": tuple(replace(each, values={}) for each in self.items)})

    def keys(self) -> set[str]:
        """What the ledger calls its pictures, each once."""
        return {item.key for item in self.items}


def fingerprints_of(
    request: CheckedRequest, digests: Sequence[str], connection: GatewayConnection, host: str | None = None
) -> tuple[str, ...]:
    """What a picture is known by, see `CheckedRequest.fingerprints`.

    :param host: of the API; ``None``: the connection's.
    """
    host = host_of(connection) if host is None else host
    return request.fingerprints(input_sha256=digests, base_url_host=host, conn_id=connection.conn_id)


def host_of(connection: GatewayConnection) -> str:
    """The API's host."""
    return urlsplit(connection.base_url).hostname or ""


async def plan(
    wishes: Sequence[ImageSpec],
    connection: GatewayConnection,
    purchase_context: PurchaseContext,
    *,
    generation: int,
    directory: str,
    stems: Sequence[str | None],
    prefix: str,
) -> Plan:
    """Read and check the input pictures, and give every picture its name.

    :param workshop: the surroundings.
    :param stems: a file name for each wish; ``None``: `prefix` and the fingerprint.
    :raises BadRequestError: inputs can't be used, or two pictures would have one name.
    :raises StorageError: an input could not be read now.
    """
    turn = asyncio.Semaphore(READERS)

    async def digests(wish: ImageSpec) -> tuple[str, ...]:
        async with turn:
            try:
                return await input_digests(wish.request, purchase_context.files, purchase_context.room)
            except GeminiImageError as error:
                error.message = f"{wish.place[0].upper()}{wish.place[1:]}: {error.message}"
                raise

    found = iter(await asyncio.gather(*(digests(wish) for wish in wishes if wish.request.input_images)))
    items = []
    for wish, stem in zip(wishes, stems, strict=True):
        sha256 = next(found) if wish.request.input_images else ()
        fingerprint = fingerprints_of(wish.request, sha256, connection)[0]
        items.append(_planned(wish, sha256, fingerprint, stem or f"{prefix}-{fingerprint[:12]}"))
    _refuse_clashes(items)
    return Plan(generation=generation, directory=directory, items=tuple(items))


def places_of(items: Sequence[PlannedImage]) -> str:
    """Where rows stand, for a message."""
    by_line = all(item.line is not None for item in items)
    numbers = [str(item.line if by_line else item.row) for item in items]
    return f"{'lines' if by_line else 'rows'} {', '.join(numbers[:-1])} and {numbers[-1]}"


def _planned(wish: ImageSpec, sha256: tuple[str, ...], fingerprint: str, stem: str) -> PlannedImage:
    request = wish.request
    values = {**request.fields(), "prompt": request.prompt, "model": request.model}
    pictures = {"image": request.image, "reference_images": list(request.reference_images)}
    return PlannedImage(
        row=wish.row,
        operation="edit" if request.operation == "edit" else "generate",
        values={**values, **{name: value for name, value in pictures.items() if value}},
        labels=dict(wish.labels),
        fingerprint=fingerprint,
        input_sha256=sha256,
        stem=stem,
        line=wish.line,
    )


def _refuse_clashes(items: Sequence[PlannedImage]) -> None:
    owners: dict[str, PlannedImage] = {}
    for item in items:
        owner = owners.setdefault(item.stem.casefold(), item)
        if owner.fingerprint != item.fingerprint:
            raise BadRequestError(
                f"file_name: {places_of((owner, item))} would both be called {item.stem!r}.",
                hint="Give file_name a column that differs, such as {row} or {variant}.",
            )


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


def destination_of(plan: Plan, item: PlannedImage) -> Destination:
    """Where the picture lands."""
    return Destination(plan.directory.rstrip("/"), item.stem)
