"""Cost limits: `max_cost` for one attempt, and a daily budget that all workers of a connection share.

Invariants: the price of every paid request is reserved from both limits before its ``intent`` is recorded. Of the daily
budget, a process spends only what the day's document has leased to it. Therefore any number of workers, including
killed ones, never exceed the budget by the package's prices, and a killed worker loses at most its lease. Money that
may have been charged stays spent. A document that cannot be read is an error, never "nothing spent".

`<root>/budgets/<namespace>/<connection id>/<day>.json` contains only integers, in millionths of the currency: the sum
that ended attempts spent, and a lease for each attempt that runs or was killed. Every write sets the writer's own lease
to an absolute value, so repeating a write whose answer was lost changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Annotated, Any, Literal

import pydantic

from airflow_provider_geminiimg.core.execution.runner import CancelledUnsentError
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import budget_key
from airflow_provider_geminiimg.core.ledger.manifest import estimate
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.core.storage import Blob, Store, update
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LedgerError,
    OverBudgetError,
)

MICRO = 1_000_000
PARTS = 100  # a lease takes at most this fraction of the budget at a time; a killed worker loses no more
LEFT_PARTS = 8  # and at most this fraction of the remaining budget, so that other workers can use the rest
CLOCK_SECONDS = 60.0  # time between two requests for the store's clock


class DailyBudgetSpentError(OverBudgetError):
    """The remaining daily budget of the connection does not cover the image, or any image of at least this price.

    A record that contains this error returns it as a plain `OverBudgetError`.
    """


def price_of(request: CheckedRequest, connection: GatewayConnection, max_cost: Decimal | None = None) -> int:
    """Return the expected cost of one image in millionths of the connection's currency; 0 without any cap.

    :param max_cost: the user's cap, for `refuse_over`.
    :raises BadRequestError: there is a cap, and the price is not known in its currency.
    """
    return price_of_all([request], connection, max_cost)


def price_of_all(
    requests: Iterable[CheckedRequest], connection: GatewayConnection, max_cost: Decimal | None = None
) -> int:
    """Return the expected cost of all these images together; see `price_of`.

    :raises BadRequestError: there is a cap, and some prices are not known in its currency; the message lists them.
    """
    if max_cost is None and connection.daily_budget is None:
        return 0
    total, missing = 0, dict[tuple[str, str | None], None]()
    for request in requests:
        cost = estimate(request, connection)
        if cost.amount is None or cost.currency != currency_of(connection):
            missing[request.model, request.resolution] = None
        else:
            total += _micro(Decimal(str(cost.amount)), ROUND_CEILING)
    if missing:
        raise _no_price(list(missing), connection, max_cost)
    return total


def _no_price(
    missing: Sequence[tuple[str, str | None]], connection: GatewayConnection, max_cost: Decimal | None
) -> BadRequestError:
    caps = [
        name for name, cap in (("max_cost", max_cost), ("daily_budget", connection.daily_budget)) if cap is not None
    ]
    wanted = ", ".join(model if size is None else f"{model} at {size}" for model, size in missing)
    entries: dict[str, Any] = {}
    for model, size in missing:
        entries.setdefault(model, {})[size or "1K"] = "..."
    shown = json.dumps({"prices": entries}).replace('"..."', "<price>")
    currency = currency_of(connection)
    return BadRequestError(
        f"The price of an image of {wanted} in {currency} is not known, but a cap is set ({' and '.join(caps)}).",
        hint=f"Add your price of one image, in {currency}, to the extra field `prices` of connection "
        f"{connection.conn_id!r}, then clear the task: {shown}.",
    )


def refuse_over(max_cost: Decimal | None, price: int, connection: GatewayConnection, what: str = "The image") -> None:
    """Raise if a price exceeds `max_cost`.

    :param price: total for `what`, in millionths.
    :raises OverBudgetError: the price is larger.
    """
    if max_cost is not None and price > _micro(max_cost, ROUND_FLOOR):
        currency = currency_of(connection)
        raise OverBudgetError(
            f"{what} would cost {_shown(price)} {currency}; max_cost is {max_cost:f} {currency}.",
            hint="Raise max_cost, or request a smaller image; then clear the task.",
        )


def currency_of(connection: GatewayConnection) -> str:
    """Return the currency of the connection's caps."""
    return connection.price_currency or "USD"


def _micro(amount: Decimal, rounding: str) -> int:
    return int((amount * MICRO).to_integral_value(rounding=rounding))


def _shown(micro: int) -> str:
    return f"{(Decimal(micro) / MICRO).normalize():f}"


_Micros = Annotated[int, pydantic.Field(ge=0, le=10**24)]


class Day(pydantic.BaseModel):
    """The document of one day; amounts in millionths of the currency.

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
    """This process's lease for one day.

    :param key: key of the day's document.
    :param claim: random; identifies the lease in the document.
    :param connection: the connection whose budget it is.
    :param held: amount that the document has leased.
    :param used: part of `held` that is reserved or spent.
    """

    key: str
    claim: str
    connection: GatewayConnection
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
    """The cost limits of one attempt: its own cap, and its leases of daily budgets. Belongs to one event loop.

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
        self, connection: GatewayConnection, namespace: str, price: int, max_cost: Decimal | None = None
    ) -> AsyncIterator[Reservation]:
        """Reserve `price` while a request is sent: from `max_cost`, and from the current day by the store's clock.

        :param price: in millionths, see `price_of`.
        :param max_cost: cap of this attempt in total; ``None``: no cap.
        :raises OverBudgetError: `max_cost` or the connection's daily budget does not cover it.
        :raises LedgerError: the day's document cannot be read.
        :raises StorageError: the store failed.
        """
        self.refuse_over(max_cost, price, connection)
        self._bought += price  # no await between the check and this line
        reservation = Reservation()
        lease: _Lease | None = None
        try:
            if connection.daily_budget is not None and price:
                lease = await self._take(connection, namespace, price)
            yield reservation
        finally:
            if not reservation.spent:
                self._bought -= price
                if lease is not None:
                    lease.used -= price

    async def close(self) -> None:
        """Return the unspent parts of all leases. If this fails, the money stays unspent for the day, and the log says
        so.
        """
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            try:
                await asyncio.to_thread(self._give_back, lease)
            except GeminiImageError as error:
                self.log.warning(
                    "%s %s of the daily budget of connection %s could not be returned (%s) and stays unused today.",
                    _shown(lease.held - lease.used), currency_of(lease.connection), lease.connection.conn_id,
                    error.kind,
                )  # fmt: skip

    async def _take(self, connection: GatewayConnection, namespace: str, price: int) -> _Lease:
        async with self._turn:
            day = await self._today()
            key = budget_key(namespace, connection.conn_id, day)
            lease = self._leases.setdefault(key, _Lease(key, secrets.token_hex(8), connection))
            if lease.used + price > lease.held:
                lease.held = await asyncio.to_thread(self._lease_more, lease, price)
            lease.used += price
            self._expected = max(1, self._expected - 1)
            return lease

    async def _today(self) -> str:
        now = time.monotonic()
        if self._clock is None or now - self._clock[0] > CLOCK_SECONDS:
            self._clock = (now, await asyncio.to_thread(self.store.now))
        return _day(self._clock[1] + now - self._clock[0])

    def _lease_more(self, lease: _Lease, price: int) -> int:
        """Increase the lease to cover `price`, and further images if more are expected.

        :returns: the new size of the lease.
        """
        budget = _micro(lease.connection.daily_budget or Decimal(), ROUND_FLOOR)

        def more(day: Day) -> Day:
            held = day.leases.get(lease.claim, 0)  # larger than `lease.held` if an answer was lost
            missing, left = lease.used + price - held, budget - day.taken
            if missing <= 0:
                return day
            if missing > left:
                raise _over_budget(lease, day, price, budget)
            images = max(1, min(budget // PARTS, left // LEFT_PARTS) // price)
            amount = min(left, missing + (min(images, self._expected) - 1) * price)
            return day.model_copy(update={"leases": {**day.leases, lease.claim: held + amount}})

        return self._change(lease, more).leases[lease.claim]

    def _give_back(self, lease: _Lease) -> None:
        def ended(day: Day) -> Day:
            if lease.claim not in day.leases:
                return day  # already written, and the answer was lost; or there was no lease
            others = {claim: amount for claim, amount in day.leases.items() if claim != lease.claim}
            return day.model_copy(update={"spent": day.spent + lease.used, "leases": others})

        self._change(lease, ended)

    def _change(self, lease: _Lease, step: Callable[[Day], Day]) -> Day:
        """Update the day's document; `step` is called again if another worker wrote first."""
        last: list[Day] = []

        def stepped(blob: Blob | None) -> bytes | None:
            day = Day(currency=currency_of(lease.connection)) if blob is None else self._parse(lease, blob.data)
            last[:] = [step(day)]
            return None if last[0] == day else last[0].model_dump_json().encode()

        update(self.store, lease.key, stepped)
        return last[0]

    def _parse(self, lease: _Lease, data: bytes) -> Day:
        where = f"The daily budget document {lease.key} under {self.store.uri}"
        try:
            day = Day.model_validate_json(data)
        except pydantic.ValidationError:
            raise LedgerError(
                f"{where} cannot be read.",
                billed=Billed.NO,
                hint="Restore it, or run the package version that wrote it. Removing it restarts the budget.",
            ) from None
        if day.currency != currency_of(lease.connection):
            raise BadRequestError(
                f"{where} is in {day.currency}, but connection {lease.connection.conn_id!r} now uses "
                f"{currency_of(lease.connection)}.",
                hint="Change price_currency back until the next UTC day.",
            )
        return day


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d")


def _over_budget(lease: _Lease, day: Day, price: int, budget: int) -> DailyBudgetSpentError:
    today = lease.key.rpartition("/")[2].removesuffix(".json")
    tomorrow = datetime.strptime(today, "%Y-%m-%d") + timedelta(days=1)
    return DailyBudgetSpentError(
        f"The image would cost {_shown(price)} {day.currency}, which the daily budget of connection "
        f"{lease.connection.conn_id!r} does not cover: of {_shown(budget)} {day.currency}, {_shown(day.spent)} "
        f"are spent and {_shown(day.taken - day.spent)} are leased to tasks that run or were killed.",
        hint=f"Wait for the next budget at {tomorrow:%Y-%m-%d} 00:00 UTC, or raise daily_budget on the connection. "
        "Then retry or clear the task.",
    )
