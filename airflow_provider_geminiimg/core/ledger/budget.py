"""What may be spent: a cap on what one attempt buys, and a daily budget that all workers of a connection share.

What must stay true: whatever leads to a purchase, its money is put aside from both before the intent is on record, and
of the daily budget only what the day's document gave to this process; so of any number of workers that buy and die, all
together never pass the budget by the package's prices, and each that dies loses at most its lease. What may have been
paid for stays spent. A document that can't be read is an error, never "nothing spent".

`<root>/budgets/<namespace>/<connection id>/<day>.json` holds integers alone, in millionths of the currency: what
attempts spent that ended, and a lease for each that runs or was killed. Every write sets what the writer's own lease is
from then on, so that repeating one whose answer got lost changes nothing.
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
PARTS = 100  # of the budget: what a lease takes at once at most, and so what a kill loses
LEFT_PARTS = 8  # of what is left: so that near the end of the budget no worker holds what another one could spend
CLOCK_SECONDS = 60.0  # after which the store is asked again what time it is


class DailyBudgetSpentError(OverBudgetError):
    """The connection's daily budget does not cover the image, nor others that are not cheaper.

    It is an `OverBudgetError` to whoever reads the record later.
    """


def price_of(request: CheckedRequest, connection: GatewayConnection, max_cost: Decimal | None = None) -> int:
    """What one image is expected to cost, in millionths of the connection's currency; 0 where nothing caps it.

    :param max_cost: the user's cap, for `refuse_over`.
    :raises BadRequestError: there is a cap, and the price is not known in its currency.
    """
    return price_of_all([request], connection, max_cost)


def price_of_all(
    requests: Iterable[CheckedRequest], connection: GatewayConnection, max_cost: Decimal | None = None
) -> int:
    """What all these images are expected to cost together; see `price_of`.

    :raises BadRequestError: there is a cap, and some price is not known in its currency; it names each of them.
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
        f"What an image of {wanted} costs in {currency} is not known, and there is a cap ({' and '.join(caps)}).",
        hint=f"Put what one image costs you, in {currency}, into the extra `prices` of connection "
        f"{connection.conn_id!r}, then clear the task: {shown}.",
    )


def refuse_over(max_cost: Decimal | None, price: int, connection: GatewayConnection, what: str = "The image") -> None:
    """Keep to `max_cost`.

    :param price: in millionths, of `what` in all.
    :raises OverBudgetError: it is more.
    """
    if max_cost is not None and price > _micro(max_cost, ROUND_FLOOR):
        currency = currency_of(connection)
        raise OverBudgetError(
            f"{what} would cost {_shown(price)} {currency}; max_cost is {max_cost:f} {currency}.",
            hint="Raise max_cost, or ask for less; then clear the task.",
        )


def currency_of(connection: GatewayConnection) -> str:
    """What the connection's caps are in."""
    return connection.price_currency or "USD"


def _micro(amount: Decimal, rounding: str) -> int:
    return int((amount * MICRO).to_integral_value(rounding=rounding))


def _shown(micro: int) -> str:
    return f"{(Decimal(micro) / MICRO).normalize():f}"


_Micros = Annotated[int, pydantic.Field(ge=0, le=10**24)]


class Day(pydantic.BaseModel):
    """What a day's document holds; amounts in millionths of the currency.

    :param currency: what all of it is in.
    :param spent: by attempts that ended.
    :param leases: what attempts that run, or were killed, may spend or have spent, by their claims.
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
    """This process's part of one day.

    :param key: of the day's document.
    :param claim: random; names the lease in it.
    :param connection: whose budget it is.
    :param held: what the document gave.
    :param used: of that, what is reserved or spent.
    """

    key: str
    claim: str
    connection: GatewayConnection
    held: int = 0
    used: int = 0


class Reservation:
    """Money put aside for one paid request; given back unless it may have been spent."""

    def __init__(self) -> None:
        self.spent = False

    async def spend(self, sending: Awaitable[JobStatus]) -> JobStatus:
        """Send. From the first byte on it counts as spent, until an answer says that nothing was paid."""
        self.spent = True
        try:
            status = await sending
        except GeminiImageError as error:
            self.spent = error.billed is not Billed.NO
            raise
        if status.error is not None:
            self.spent = status.error.billed is not Billed.NO
        return status


class Budgets:
    """What one attempt may spend: its own cap, and its part of the daily budgets. Belongs to one event loop.

    :param store: the root's.
    :param log: where to say what could not be given back.
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
        """So many images may be bought: a lease is taken for several of them at once."""
        self._expected = images

    def refuse_over(self, max_cost: Decimal | None, price: int, connection: GatewayConnection) -> None:
        """Keep all that this attempt buys to `max_cost`.

        :param price: in millionths, of what would be bought next.
        :raises OverBudgetError: with what was bought or is being bought it is more.
        """
        what = "The image, with what this attempt has bought already," if self._bought else "The image"
        refuse_over(max_cost, self._bought + price, connection, what)

    @contextlib.asynccontextmanager
    async def reserved(
        self, connection: GatewayConnection, namespace: str, price: int, max_cost: Decimal | None = None
    ) -> AsyncIterator[Reservation]:
        """Put `price` aside while a request is sent: of `max_cost`, and of the day that the store's clock shows.

        :param price: in millionths, see `price_of`.
        :param max_cost: what this attempt may buy for in all; ``None``: no cap.
        :raises OverBudgetError: `max_cost` or the connection's daily budget does not cover it.
        :raises LedgerError: the day's document can't be read.
        :raises StorageError: the store failed.
        """
        self.refuse_over(max_cost, price, connection)
        self._bought += price  # nothing is awaited since the check
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
        """Give back what was not spent. What can't be given back stays unspent, and the log says so."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            try:
                await asyncio.to_thread(self._give_back, lease)
            except GeminiImageError as error:
                self.log.warning(
                    "%s %s of the daily budget of connection %s could not be given back (%s); nobody spends it today.",
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
        """Let the day's document give what is missing for `price`, and more where more is expected.

        :returns: what it gave in all.
        """
        budget = _micro(lease.connection.daily_budget or Decimal(), ROUND_FLOOR)

        def more(day: Day) -> Day:
            held = day.leases.get(lease.claim, 0)  # more than is known here where an answer got lost
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
                return day  # written before, and the answer got lost; or nothing was ever leased
            others = {claim: amount for claim, amount in day.leases.items() if claim != lease.claim}
            return day.model_copy(update={"spent": day.spent + lease.used, "leases": others})

        self._change(lease, ended)

    def _change(self, lease: _Lease, step: Callable[[Day], Day]) -> Day:
        """Move the day's document on; asked again where another worker was quicker."""
        last: list[Day] = []

        def stepped(blob: Blob | None) -> bytes | None:
            day = Day(currency=currency_of(lease.connection)) if blob is None else self._parse(lease, blob.data)
            last[:] = [step(day)]
            return None if last[0] == day else last[0].model_dump_json().encode()

        update(self.store, lease.key, stepped)
        return last[0]

    def _parse(self, lease: _Lease, data: bytes) -> Day:
        where = f"What was spent today, {lease.key} under {self.store.uri},"
        try:
            day = Day.model_validate_json(data)
        except pydantic.ValidationError:
            raise LedgerError(
                f"{where} can't be read.",
                billed=Billed.NO,
                hint="Restore it, or run the version that wrote it. Without it the whole budget counts anew.",
            ) from None
        if day.currency != currency_of(lease.connection):
            raise BadRequestError(
                f"{where} is in {day.currency}, and connection {lease.connection.conn_id!r} is in "
                f"{currency_of(lease.connection)} now.",
                hint="Change price_currency back until the next UTC day.",
            )
        return day


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d")


def _over_budget(lease: _Lease, day: Day, price: int, budget: int) -> DailyBudgetSpentError:
    today = lease.key.rpartition("/")[2].removesuffix(".json")
    tomorrow = datetime.strptime(today, "%Y-%m-%d") + timedelta(days=1)
    return DailyBudgetSpentError(
        f"The image would cost {_shown(price)} {day.currency}, and of the daily budget of connection "
        f"{lease.connection.conn_id!r}, {_shown(budget)} {day.currency}, {_shown(day.spent)} are spent and "
        f"{_shown(day.taken - day.spent)} are leased to tasks that run or were killed.",
        hint=f"From {tomorrow:%Y-%m-%d} 00:00 UTC on there is a new one; or raise daily_budget on the connection. Then "
        "retry or clear the task.",
    )
