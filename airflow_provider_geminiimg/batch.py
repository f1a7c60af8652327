"""Many pictures in one task: the plan of what is wanted, and the window in which the pictures are made.

What must stay true: the plan is in the store before the first picture is paid for, and what an attempt planned a retry
makes; a picture belongs to its fingerprint, so that no order of rows and no retry buys it twice; a failure stops new
pictures at most, what is under way is landed; every row ends as one word, and the words add up to the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import urlsplit

import pydantic

from airflow_provider_geminiimg.budget import price_of, refuse_over
from airflow_provider_geminiimg.connection import GatewayConnection
from airflow_provider_geminiimg.decision import Asked, may_buy
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
    OverBudgetError,
)
from airflow_provider_geminiimg.inputs import read_inputs
from airflow_provider_geminiimg.landing import Workshop, in_thread, mismatch_error
from airflow_provider_geminiimg.ledger import Destination, Ledger
from airflow_provider_geminiimg.lifecycle import Purchase
from airflow_provider_geminiimg.order import Order
from airflow_provider_geminiimg.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.rows import Wish
from airflow_provider_geminiimg.runner import Guard
from airflow_provider_geminiimg.storage import Files
from airflow_provider_geminiimg.transport import BILLABLE_WAIT, DEFAULT_CONCURRENCY

Status = Literal["landed", "reused", "refused", "failed", "unknown", "skipped"]
STATUSES: tuple[Status, ...] = ("landed", "reused", "refused", "failed", "unknown", "skipped")

UNKNOWNS = 3  # in a row; then the gateway or the network is broken, and every further picture would be a bet
READERS = 16  # input pictures that are read at once, while planning
PROGRESS_SECONDS = 10.0
_ACCOUNT = (InsufficientBalanceError, OverBudgetError, AuthenticationError)  # no further picture can be bought either


class Planned(pydantic.BaseModel):
    """One picture of a plan, as the store keeps it.

    :param row: number of its row, from 0.
    :param operation: ``generate`` or ``edit``.
    :param values: the request's neutral fields, the prompt and the input pictures' addresses among them; empty when
        the plan has been carried out.
    :param labels: the row's other columns.
    :param fingerprint: what it will be known by.
    :param input_sha256: of the input pictures, when the plan was made.
    :param stem: name of its file, without an extension.
    """

    model_config = pydantic.ConfigDict(frozen=True, hide_input_in_errors=True)

    row: int
    operation: Literal["generate", "edit"]
    values: dict[str, Any] = pydantic.Field(repr=False)
    labels: dict[str, str] = pydantic.Field(repr=False)
    fingerprint: str
    input_sha256: tuple[str, ...]
    stem: str

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
        if fingerprint_of(request, self.input_sha256, connection) != self.fingerprint:
            return BadRequestError(
                f"Since the batch was planned, connection {connection.conn_id!r} changed.",
                hint="Change it back and let the task retry; or clear the task, which plans anew.",
            )
        return request


class Plan(pydantic.BaseModel):
    """What one generation of a task makes: the first attempt's word, which retries keep to.

    :param generation: ``ti.max_tries`` of the attempt that made it.
    :param directory: where the pictures land.
    :param items: in the order of the rows.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    version: Literal[1] = 1
    generation: int
    directory: str
    items: tuple[Planned, ...]

    def carried_out(self) -> Plan:
        """What remains of it when all has landed: no prompt, and no picture's address."""
        return self.model_copy(update={"items": tuple(each.model_copy(update={"values": {}}) for each in self.items)})


def fingerprint_of(request: CheckedRequest, digests: Sequence[str], connection: GatewayConnection) -> str:
    """What a picture is known by, see `CheckedRequest.fingerprint`."""
    host = urlsplit(connection.base_url).hostname or ""
    return request.fingerprint(input_sha256=digests, base_url_host=host, conn_id=connection.conn_id)


async def plan(
    wishes: Sequence[Wish],
    connection: GatewayConnection,
    files: Files,
    *,
    generation: int,
    directory: str,
    stems: Sequence[str | None],
    prefix: str,
) -> Plan:
    """Read and check the input pictures, and give every picture its name.

    :param stems: a file name for each wish; ``None``: `prefix` and the fingerprint.
    :raises BadRequestError: inputs can't be used, or two pictures would have one name.
    :raises StorageError: an input could not be read now.
    """
    turn = asyncio.Semaphore(READERS)

    async def digests(wish: Wish) -> tuple[str, ...]:
        if not wish.request.input_images:
            return ()
        async with turn:
            try:
                return tuple(image.sha256 for image in await read_inputs(wish.request, files))
            except GeminiImageError as error:
                error.message = f"Row {wish.row}: {error.message}"
                raise

    found = await asyncio.gather(*map(digests, wishes))
    items = []
    for wish, sha256, stem in zip(wishes, found, stems, strict=True):
        fingerprint = fingerprint_of(wish.request, sha256, connection)
        items.append(_planned(wish, sha256, fingerprint, stem or f"{prefix}-{fingerprint[:12]}"))
    _refuse_clashes(items)
    return Plan(generation=generation, directory=directory, items=tuple(items))


def _planned(wish: Wish, sha256: tuple[str, ...], fingerprint: str, stem: str) -> Planned:
    request = wish.request
    values = {**request.fields(), "prompt": request.prompt, "model": request.model}
    pictures = {"image": request.image, "reference_images": list(request.reference_images)}
    return Planned(
        row=wish.row,
        operation="edit" if request.operation == "edit" else "generate",
        values={**values, **{name: value for name, value in pictures.items() if value}},
        labels=dict(wish.labels),
        fingerprint=fingerprint,
        input_sha256=sha256,
        stem=stem,
    )


def _refuse_clashes(items: Sequence[Planned]) -> None:
    owners: dict[str, Planned] = {}
    for item in items:
        owner = owners.setdefault(item.stem.casefold(), item)
        if owner.fingerprint != item.fingerprint:
            raise BadRequestError(
                f"file_name: rows {owner.row} and {item.row} would both be called {item.stem!r}.",
                hint="Give file_name a column that differs, such as {row} or {variant}.",
            )


async def refusals(
    orders: Mapping[str, Order], ledger: Ledger, connection: GatewayConnection, max_cost: Decimal | None
) -> dict[str, GeminiImageError]:
    """Why nothing is bought, for each of the pictures that would be: all of them together cost more than `max_cost`, or
    there is a cap and a price is not known. What has landed or is under way costs nothing now, and is not among them.

    :param orders: by fingerprint.
    :raises LedgerError: a record can't be read.
    :raises StorageError: the store failed.
    """
    if max_cost is None and connection.daily_budget is None:
        return {}
    turn = asyncio.Semaphore(READERS)

    async def would_buy(fingerprint: str, order: Order) -> bool:
        async with turn:
            found = await in_thread(ledger.latest, order.item)
        return may_buy(found, order.policy, Asked(fingerprint, order.destination))

    bought = await asyncio.gather(*(would_buy(*each) for each in orders.items()))
    wanted = dict(itertools.compress(orders.items(), bought))
    requests = [order.request for order in wanted.values() if isinstance(order.request, CheckedRequest)]
    try:
        total = sum(price_of(request, connection, max_cost) for request in requests)
        refuse_over(max_cost, total, connection, f"Buying {len(requests)} pictures")
    except (BadRequestError, OverBudgetError) as error:
        return dict.fromkeys(wanted, error)
    return {}


@dataclass(frozen=True)
class Result:
    """What became of one picture of a plan.

    :param manifest: of what landed.
    :param error: why nothing did, or what is wrong with it.
    """

    item: Planned
    status: Status
    manifest: Mapping[str, Any] | None = None
    error: GeminiImageError | None = None

    def line(self) -> dict[str, Any]:
        """The manifest's row of it."""
        known = {"row": self.item.row, "status": self.status, "labels": self.item.labels}
        error = self.error
        said = {} if error is None else {"error": error.kind, "billed": error.billed.value, "message": str(error)}
        return {**known, "fingerprint": self.item.fingerprint, **(self.manifest or {}), **said}


@dataclass
class _Progress:
    since: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    ended: Counter[Status] = field(default_factory=Counter)


class _Skip(Exception):
    """No further picture is started, and this one was not."""


class Window:
    """Makes the pictures of a plan, some at a time.

    :param orders: what each fingerprint's picture needs.
    :param workshop: the surroundings.
    :param guard: whether this process may still pay.
    :param connection: through which gateway; its limits say how many requests are sent at once.
    :param width: pictures that are under way at once.
    :param fail_fast: the first failure stops new pictures.
    :param fail_on_mismatch: a picture that is not what was asked for is a failure.
    :param refused: why some are not bought, by fingerprint, see `refusals`.
    """

    def __init__(
        self,
        orders: Mapping[str, Order],
        workshop: Workshop,
        guard: Guard,
        connection: GatewayConnection,
        *,
        width: int,
        fail_fast: bool,
        fail_on_mismatch: bool,
        refused: Mapping[str, GeminiImageError],
    ) -> None:
        self.orders = orders
        self.workshop = workshop
        self.guard = guard
        self.width = width
        self.fail_fast = fail_fast
        self.fail_on_mismatch = fail_on_mismatch
        self.refused = refused
        self._turn = asyncio.Semaphore(_requests_at_once(connection))
        self._progress = _Progress()
        self._unknowns = 0
        self._stopped: str | None = None
        self._crash: Exception | None = None

    async def run(self, items: Sequence[Planned]) -> list[Result]:
        """Make them all.

        :param items: the plan's; those of one fingerprint are one picture.
        :returns: a result for each of them, in their order.
        """
        first = {item.fingerprint: item for item in reversed(items)}
        queue = iter([item for item in items if first[item.fingerprint] is item])
        ended: dict[str, Result] = {}
        self.workshop.budgets.expect(len(first))
        reporter = asyncio.create_task(self._report(len(first)))
        try:
            await asyncio.gather(*(self._work(queue, ended) for _ in range(min(self.width, len(first)))))
        finally:
            reporter.cancel()
        self._say(len(first))
        if self._crash is not None:
            raise self._crash
        return [replace(ended[item.fingerprint], item=item) for item in items]

    async def _work(self, queue: Iterator[Planned], ended: dict[str, Result]) -> None:
        for item in queue:
            ended[item.fingerprint] = await self._one(item)

    async def _one(self, item: Planned) -> Result:
        if item.fingerprint in self.refused:
            result = Result(item, "failed", error=self.refused[item.fingerprint])
        elif self._stopped is not None or self.guard.stopped:
            result = self._skipped(item)
        else:
            self._progress.in_flight += 1
            result = await self._make(item)
            self._progress.in_flight -= 1
            self._heed(result)
        self._progress.ended[result.status] += 1
        return result

    async def _make(self, item: Planned) -> Result:
        try:
            purchase = Purchase(self.orders[item.fingerprint], self.workshop, self.guard, turn=self._paying)
            record, manifest = await purchase.start()
            if manifest is None:
                record, manifest = await purchase.finish(record)
        except _Skip:
            return self._skipped(item)
        except GeminiImageError as error:
            return Result(item, _status(error, self.guard), error=error)
        except Exception as error:  # what is under way elsewhere in the window must land all the same
            self._crash = self._crash or error
            return Result(item, "failed", error=OutcomeUnknownError(f"It broke off ({type(error).__name__})."))
        difference = mismatch_error(manifest)
        if difference is not None and self.fail_on_mismatch:
            return Result(item, "failed", manifest, difference)
        return Result(item, "reused" if manifest.get("reused") else "landed", manifest)

    def _skipped(self, item: Planned) -> Result:
        why = self._stopped or "The task was told to stop."
        return Result(item, "skipped", error=NotSentError(f"Not started: {why}", hint="A retry or a Clear makes it."))

    @contextlib.asynccontextmanager
    async def _paying(self) -> AsyncIterator[None]:
        """Who waits for its turn must hear of what happened meanwhile."""
        async with self._turn:
            if self._stopped is not None:
                raise _Skip
            yield

    def _heed(self, result: Result) -> None:
        """Stop new pictures where going on would be a waste or a bet."""
        error = result.error
        self._unknowns = self._unknowns + 1 if result.status == "unknown" else 0
        why = (
            "Something broke." if self._crash is not None
            else f"{error.message}" if isinstance(error, _ACCOUNT)
            else f"{UNKNOWNS} outcomes in a row are unknown." if self._unknowns >= UNKNOWNS
            else "on_item_failure is \"fail_fast\"." if error is not None and self.fail_fast
            else None
        )  # fmt: skip
        if why is not None and self._stopped is None:
            self._stopped = why
            self.workshop.log.error("No further picture is started: %s What is under way is landed.", why)

    async def _report(self, total: int) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self._say(total)

    def _say(self, total: int) -> None:
        seen, ended = self._progress, self._progress.ended
        done = sum(ended.values())
        seconds = time.monotonic() - seen.since
        rate = done / seconds if seconds > 0 else 0.0
        left = f"{(total - done) / rate:.0f} s" if rate and done < total else "none" if done >= total else "not known"
        counts = ", ".join(f"{ended[status]} {status}" for status in STATUSES if ended[status])
        self.workshop.log.info(
            "%s of %s pictures (%s), %s under way, %.1f a second, time left: %s.",
            done, total, counts or "none yet", seen.in_flight, rate, left,
        )  # fmt: skip


def _requests_at_once(connection: GatewayConnection) -> int:
    """So many paid requests that none waits for its turn until it is given up."""
    at_once = connection.max_concurrency or DEFAULT_CONCURRENCY
    rate = connection.requests_per_minute
    return at_once if rate is None else max(1, min(at_once, int(rate / 60 * BILLABLE_WAIT / 2)))


def _status(error: GeminiImageError, guard: Guard) -> Status:
    if isinstance(error, NotSentError) and guard.stopped:
        return "skipped"
    if isinstance(error, OutcomeUnknownError):
        return "unknown"
    return "refused" if isinstance(error, ContentRefusedError) else "failed"


def manifest_lines(results: Sequence[Result]) -> bytes:
    """``manifest.jsonl``: one line for each picture that was asked for, in order."""
    return "".join(f"{json.dumps(result.line(), sort_keys=True)}\n" for result in results).encode()


def totals(results: Sequence[Result]) -> dict[str, Any]:
    """How many ended how, and what was paid now, by currency and by where the price is from."""
    counts = Counter(result.status for result in results)
    paid: dict[str, float] = {}
    seen: set[str] = set()
    for result in results:
        cost = (result.manifest or {}).get("cost") or {}
        new = result.status != "reused" and result.item.fingerprint not in seen
        seen.add(result.item.fingerprint)
        if new and cost.get("amount") is not None:
            name = f"{cost['currency']} ({cost['basis']})"
            paid[name] = round(paid.get(name, 0.0) + cost["amount"], 6)
    return {"items": len(results), "counts": {status: counts[status] for status in STATUSES}, "cost": paid}


def destination_of(plan: Plan, item: Planned) -> Destination:
    """Where the picture lands."""
    return Destination(plan.directory.rstrip("/"), item.stem)
