"""The caps on spending: which of them apply to a paid request, its price, and what the errors say.

Invariant: if a cap is set and a price is not known in its currency, nothing is bought.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import Item, budget_key, run_budget_key
from airflow_provider_geminiimg.core.ledger.manifest import estimate
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, OverBudgetError

MICRO = 1_000_000


class BudgetSpentError(OverBudgetError):
    """The rest of a budget of the connection does not cover the image, or any image of at least this price.

    A record that contains this error returns it as a plain `OverBudgetError`.
    """


class DailyBudgetSpentError(BudgetSpentError):
    """The `daily_budget` of the connection is spent."""


class RunBudgetSpentError(BudgetSpentError):
    """The `run_budget` of the connection is spent for this DAG run."""


@dataclass(frozen=True)
class Cap:
    """A budget of a connection, which all workers share by one document.

    :param key: key of the document.
    :param connection: the connection that sets it.
    :param amount: the budget in millionths.
    :param name: its name in messages.
    :param unused: until when money stays unused that could not be returned, as in "stays unused today".
    :param currency_hint: what to do if the document has another currency.
    :param hint: what to do if it is spent.
    :param error: raised if it is spent.
    """

    key: str
    connection: GatewayConnection
    amount: int
    name: str
    unused: str
    currency_hint: str
    hint: str
    error: type[BudgetSpentError]

    @property
    def currency(self) -> str:
        return currency_of(self.connection)

    def spent_error(self, price: int, spent: int, leased: int) -> BudgetSpentError:
        """The error for an image that the rest of the budget does not cover; amounts in millionths."""
        return self.error(
            f"The image would cost {shown(price)} {self.currency}, which the {self.name} of connection "
            f"{self.connection.conn_id!r} does not cover: of {shown(self.amount)} {self.currency}, {shown(spent)} "
            f"are spent and {shown(leased)} are leased to tasks that run or were killed.",
            hint=self.hint,
        )


def daily_cap(connection: GatewayConnection, namespace: str, day: str) -> Cap:
    """Return the budget of one day."""
    tomorrow = datetime.strptime(day, "%Y-%m-%d") + timedelta(days=1)
    return Cap(
        key=budget_key(namespace, connection.conn_id, day),
        connection=connection,
        amount=micro(connection.daily_budget or Decimal(), ROUND_FLOOR),
        name="daily budget",
        unused="today",
        currency_hint="Change price_currency back until the next UTC day.",
        hint=f"Wait for the next budget at {tomorrow:%Y-%m-%d} 00:00 UTC, or raise daily_budget on the connection. "
        "Then retry or clear the task.",
        error=DailyBudgetSpentError,
    )


def run_cap(connection: GatewayConnection, item: Item) -> Cap:
    """Return the budget of one DAG run.

    :param item: any image of the run.
    """
    return Cap(
        key=run_budget_key(item, connection.conn_id),
        connection=connection,
        amount=micro(connection.run_budget or Decimal(), ROUND_FLOOR),
        name="run budget",
        unused="in this DAG run",
        currency_hint="Change price_currency back until this DAG run has ended.",
        hint="Raise run_budget on the connection, then clear the task.",
        error=RunBudgetSpentError,
    )


def caps_set(connection: GatewayConnection, max_cost: Decimal | None) -> list[str]:
    """Return the names of the caps that are set."""
    caps = {"max_cost": max_cost, "daily_budget": connection.daily_budget, "run_budget": connection.run_budget}
    return [name for name, cap in caps.items() if cap is not None]


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
    if not caps_set(connection, max_cost):
        return 0
    total, missing = 0, dict[tuple[str, str | None], None]()
    for request in requests:
        cost = estimate(request, connection)
        if cost.amount is None or cost.currency != currency_of(connection):
            missing[request.model, request.resolution] = None
        else:
            total += micro(Decimal(str(cost.amount)), ROUND_CEILING)
    if missing:
        raise _no_price(list(missing), connection, max_cost)
    return total


def _no_price(
    missing: Sequence[tuple[str, str | None]], connection: GatewayConnection, max_cost: Decimal | None
) -> BadRequestError:
    wanted = ", ".join(model if size is None else f"{model} at {size}" for model, size in missing)
    entries: dict[str, Any] = {}
    for model, size in missing:
        entries.setdefault(model, {})[size or "1K"] = "..."
    example = json.dumps({"prices": entries}).replace('"..."', "<price>")
    currency, caps = currency_of(connection), " and ".join(caps_set(connection, max_cost))
    return BadRequestError(
        f"The price of an image of {wanted} in {currency} is not known, but a cap is set ({caps}).",
        hint=f"Add your price of one image, in {currency}, to the extra field `prices` of connection "
        f"{connection.conn_id!r}, then clear the task: {example}.",
    )


def refuse_over(max_cost: Decimal | None, price: int, connection: GatewayConnection, what: str = "The image") -> None:
    """Raise if a price exceeds `max_cost`.

    :param price: total for `what`, in millionths.
    :raises OverBudgetError: the price is larger.
    """
    if max_cost is not None and price > micro(max_cost, ROUND_FLOOR):
        currency = currency_of(connection)
        raise OverBudgetError(
            f"{what} would cost {shown(price)} {currency}; max_cost is {max_cost:f} {currency}.",
            hint="Raise max_cost, or request a smaller image; then clear the task.",
        )


def currency_of(connection: GatewayConnection) -> str:
    """Return the currency of the connection's caps."""
    return connection.price_currency or "USD"


def micro(amount: Decimal, rounding: str) -> int:
    return int((amount * MICRO).to_integral_value(rounding=rounding))


def shown(amount: int) -> str:
    return f"{(Decimal(amount) / MICRO).normalize():f}"
