"""Cost limits: `max_cost` for one attempt, and the budgets of a day and of a DAG run, which all workers share.

Invariants: the price of every paid request is reserved from all limits before its ``intent`` is recorded. Of a budget,
a process spends only what the budget's document has leased to it. Therefore any number of workers, including killed
ones, never exceed the budget by the package's prices, and a killed worker loses at most its lease. Money that may have
been charged stays spent. A document that cannot be read is an error, never "nothing spent".

`<root>/budgets/<namespace>/<connection id>/<day>.json` and `.../runs/<dag>/<run>.json` contain only integers, in
millionths of the currency: the sum that ended attempts spent, and a lease for each attempt that runs or was killed.
Every write sets the writer's own lease to an absolute value, so repeating a write whose answer was lost changes
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Annotated, Literal

import pydantic

from airflow_provider_geminiimg.core.execution.runner import CancelledUnsentError
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.caps import Cap, daily_cap, refuse_over, run_cap, shown
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.storage import Blob, Store, update
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError

PARTS = 100  # a lease takes at most this fraction of the budget at a time; a killed worker loses no more
LEFT_PARTS = 8  # and at most this fraction of the remaining budget, so that other workers can use the rest
CLOCK_SECONDS = 60.0  # time between two requests for the store's clock


_Micros = Annotated[int, pydantic.Field(ge=0, le=10**24)]


class BudgetDocument(pydantic.BaseModel):
    """The document of a budget; amounts in millionths of the currency.

    :param currency: the currency of all amounts.
    :param spent: total of the attempts that ended.
    :param leases: for each attempt that runs or was killed, by its claim: the amount that it may spend.
    """

    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1
    currency: str
    spent: _Micros = 0
    leases: Mapping[str, _Micros] = {}

    @property
    def taken(self) -> int:
        return self.spent + sum(self.leases.values())


@dataclass
class _Lease:
    """This process's lease of one budget.

    :param cap: the budget.
    :param claim: random; identifies the lease in the document.
    :param held: amount that the document has leased.
    :param used: part of `held` that is reserved or spent.
    """

    cap: Cap
    claim: str
    held: int = 0
    used: int = 0


class Reservation:
    """Money that is reserved for one paid request, and returned unless it may have been spent."""

    def __init__(self) -> None:
        self.spent = False

    async def spend(self, sending: Awaitable[JobStatus]) -> JobStatus:
        """Send the request. It counts as spent from the start, until an answer shows that nothing was charged."""
        self.spent = True
        try:
            status = await sending
        except CancelledUnsentError:
            self.spent = False
            raise
        except GeminiImageError as error:
            self.spent = error.billed is not Billed.NO
            raise
        if status.error is not None:
            self.spent = status.error.billed is not Billed.NO
        return status


class Budgets:
    """The cost limits of one attempt: its own cap, and its leases of budgets. Belongs to one event loop.

    :param store: the root's store.
    :param log: receives a warning if a lease could not be returned.
    """

    def __init__(self, store: Store, log: Logs) -> None:
        self.store = store
        self.log = log
        self._expected = 1
        self._bought = 0
        self._leases: dict[str, _Lease] = {}
        self._clock: tuple[float, float] | None = None
        self._turn = asyncio.Lock()

    def expect(self, images: int) -> None:
        """Set the number of images that may be paid for, so that a lease covers several of them."""
        self._expected = images

    def refuse_over(self, max_cost: Decimal | None, price: int, connection: GatewayConnection) -> None:
        """Raise if the total of this attempt would exceed `max_cost`.

        :param price: price of the next request, in millionths.
        :raises OverBudgetError: the total of reserved and spent money would be larger.
        """
        what = "The image, together with this attempt's earlier images," if self._bought else "The image"
        refuse_over(max_cost, self._bought + price, connection, what)

    @contextlib.asynccontextmanager
    async def reserved(
        self, connection: GatewayConnection, item: Item, price: int, max_cost: Decimal | None = None
    ) -> AsyncIterator[Reservation]:
        """Reserve `price` while a request is sent: from `max_cost` and from the connection's budgets.

        :param item: the image.
        :param price: in millionths, see `price_of`.
        :param max_cost: cap of this attempt in total; ``None``: no cap.
        :raises OverBudgetError: `max_cost` or a budget of the connection does not cover it.
        :raises LedgerError: the document of a budget cannot be read.
        :raises StorageError: the store failed.
        """
        self.refuse_over(max_cost, price, connection)
        self._bought += price  # no await between the check and this line
        reservation = Reservation()
        leases: Sequence[_Lease] = ()
        try:
            if price:
                leases = await self._take(connection, item, price)
            yield reservation
        finally:
            if not reservation.spent:
                self._bought -= price
                for lease in leases:
                    lease.used -= price

    async def close(self) -> None:
        """Return the unspent parts of all leases. If this fails, the money stays unspent, and the log says so."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            try:
                await asyncio.to_thread(self._give_back, lease)
            except GeminiImageError as error:
                cap = lease.cap
                self.log.warning(
                    "%s %s of the %s of connection %s could not be returned (%s) and stays unused %s.",
                    shown(lease.held - lease.used), cap.currency, cap.name, cap.connection.conn_id, error.kind,
                    cap.unused,
                )  # fmt: skip

    async def _take(self, connection: GatewayConnection, item: Item, price: int) -> Sequence[_Lease]:
        """Reserve `price` from all budgets of the connection, or from none."""
        async with self._turn:
            caps = await self._caps(connection, item)
            leases = [self._leases.setdefault(cap.key, _Lease(cap, secrets.token_hex(8))) for cap in caps]
            for lease in leases:
                if lease.used + price > lease.held:
                    lease.held = await asyncio.to_thread(self._lease_more, lease, price)
            for lease in leases:
                lease.used += price
            self._expected = max(1, self._expected - 1)
            return leases

    async def _caps(self, connection: GatewayConnection, item: Item) -> list[Cap]:
        """The budgets of the connection. That of the run is first: if it is spent, the attempt leases nothing of the
        day, which other runs need.
        """
        caps = [] if connection.run_budget is None else [run_cap(connection, item)]
        if connection.daily_budget is not None:
            caps.append(daily_cap(connection, item.namespace, await self._today()))
        return caps

    async def _today(self) -> str:
        now = time.monotonic()
        if self._clock is None or now - self._clock[0] > CLOCK_SECONDS:
            self._clock = (now, await asyncio.to_thread(self.store.now))
        return _day(self._clock[1] + now - self._clock[0])

    def _lease_more(self, lease: _Lease, price: int) -> int:
        """Increase the lease to cover `price`, and further images if more are expected.

        :returns: the new size of the lease.
        """
        cap = lease.cap

        def more(budget: BudgetDocument) -> BudgetDocument:
            held = budget.leases.get(lease.claim, 0)  # larger than `lease.held` if an answer was lost
            missing, left = lease.used + price - held, cap.amount - budget.taken
            if missing <= 0:
                return budget
            if missing > left:
                raise cap.spent_error(price, budget.spent, budget.taken - budget.spent)
            images = max(1, min(cap.amount // PARTS, left // LEFT_PARTS) // price)
            amount = min(left, missing + (min(images, self._expected) - 1) * price)
            return budget.model_copy(update={"leases": {**budget.leases, lease.claim: held + amount}})

        return self._change(lease, more).leases[lease.claim]

    def _give_back(self, lease: _Lease) -> None:
        def ended(budget: BudgetDocument) -> BudgetDocument:
            if lease.claim not in budget.leases:
                return budget  # already written, and the answer was lost; or there was no lease
            others = {claim: amount for claim, amount in budget.leases.items() if claim != lease.claim}
            return budget.model_copy(update={"spent": budget.spent + lease.used, "leases": others})

        self._change(lease, ended)

    def _change(self, lease: _Lease, step: Callable[[BudgetDocument], BudgetDocument]) -> BudgetDocument:
        """Update the document of a budget; `step` is called again if another worker wrote first."""
        cap, last = lease.cap, list[BudgetDocument]()

        def stepped(blob: Blob | None) -> bytes | None:
            budget = BudgetDocument(currency=cap.currency) if blob is None else self._parse(cap, blob.data)
            last[:] = [step(budget)]
            return None if last[0] == budget else last[0].model_dump_json().encode()

        update(self.store, cap.key, stepped)
        return last[0]

    def _parse(self, cap: Cap, data: bytes) -> BudgetDocument:
        where = f"The {cap.name} document {cap.key} under {self.store.uri}"
        try:
            budget = BudgetDocument.model_validate_json(data)
        except pydantic.ValidationError:
            raise LedgerError(
                f"{where} cannot be read.",
                billed=Billed.NO,
                hint="Restore it, or run the package version that wrote it. Removing it restarts the budget.",
            ) from None
        if budget.currency != cap.currency:
            raise BadRequestError(
                f"{where} is in {budget.currency}, but connection {cap.connection.conn_id!r} now uses {cap.currency}.",
                hint=cap.currency_hint,
            )
        return budget


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d")
