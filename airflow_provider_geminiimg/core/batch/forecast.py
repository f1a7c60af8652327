"""Before a batch starts: which images would be bought, and their estimated total cost.

Invariants: a forecast changes nothing and decides in the same way as a purchase. It refuses only what is certainly over
the cap; `Budgets` enforces the cap during the batch.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from decimal import Decimal

from airflow_provider_geminiimg.core.batch.executor import BatchContext
from airflow_provider_geminiimg.core.batch.plan import READS_AT_ONCE, PlannedImage
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.caps import caps_set, price_of, price_of_all, refuse_over
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.purchase.decision import Asked, ImageState, Policy, Poll, Step, Submit, decide
from airflow_provider_geminiimg.core.purchase.history import ImageHistory
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.task_state import look
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, OverBudgetError

_MAY_BE_RECALLED = ("intent", "failed")  # the task state store may have the job id of such a record
_THERE: ImageState = "there"  # assumed for every landed image, because a missing image is not bought again


class _UnchangedHistory(ImageHistory):
    """An `ImageHistory` that writes nothing and does not check whether landed images still exist."""

    async def _step(self, found: StoredRecord, policy: Policy, asked: Asked | None, vanished: str | None) -> Step:
        return decide(found, policy, asked, image=_THERE, vanished=found.record.key == vanished)

    async def record_decision(self, record: Record, *, plain: bool = False) -> None:
        """Write nothing."""


class Forecast(Purchase):
    """A purchase that only determines whether it would buy."""

    knows = _UnchangedHistory

    async def would_buy(self) -> bool:
        """Whether a paid request would be sent, according to the ledger and the gateway now.

        ``False`` if that can't be determined: the purchase of this image fails with the same error later.
        """
        return await closed(self._would_buy()) is True

    async def _would_buy(self) -> bool:
        latest = await asyncio.to_thread(self.ledger.latest, self.order.item)
        if latest is not None and latest.record.state in _MAY_BE_RECALLED:
            latest = await look(self.ledger, self.order.item, self.marker)
        decision = await self.history.decided(latest)
        if isinstance(decision.step, Poll) and await self._is_still_unknown(decision.record):
            decision = await self.history.decided(latest, decision.record.key)
        return isinstance(decision.step, Submit) and not await self._may_be_copied(decision.step)

    async def _may_be_copied(self, step: Submit) -> bool:
        """Whether another task of the DAG has the image, or is making it."""
        if self.order.policy.reuse == "task" or step.regenerate:
            return False
        return await self.sharing.is_anothers(await self.history.fingerprint())


async def refusals(
    batch: BatchContext, items: Sequence[PlannedImage], max_cost: Decimal | None
) -> dict[str, GeminiImageError]:
    """The errors of all images that would be bought, if their total estimate is over `max_cost`, or if there is a cap
    and a price is unknown. Images that have landed or are in flight cost nothing and are not included.

    :param items: of the plan.
    :returns: errors by fingerprint; empty if the batch may start.
    """
    if not caps_set(batch.connection, max_cost):
        return {}
    wanted = [item async for item in to_buy(batch, items)]
    try:
        prices_of(wanted, batch.connection, max_cost)
    except (BadRequestError, OverBudgetError) as error:
        return dict.fromkeys((item.fingerprint for item in wanted), error)
    return {}


async def to_buy(batch: BatchContext, items: Iterable[PlannedImage]) -> AsyncIterator[PlannedImage]:
    """The images that would be bought, each once.

    :param items: of the plan.
    """
    seen: set[str] = set()
    distinct = (item for item in items if not (item.key in seen or seen.add(item.key)))  # type: ignore[func-returns-value]
    while some := list(itertools.islice(distinct, READS_AT_ONCE)):
        bought = await asyncio.gather(*(_forecast(batch, item).would_buy() for item in some))
        for item in itertools.compress(some, bought):
            yield item


def prices_of(
    wanted: Iterable[PlannedImage], connection: GatewayConnection, max_cost: Decimal | None
) -> dict[str, int]:
    """The estimated price of each image in millionths of the connection's currency, by fingerprint.

    :param wanted: from `to_buy`.
    :raises BadRequestError: a price is unknown, and there is a cap.
    :raises OverBudgetError: the total is over `max_cost`.
    """
    prices: dict[str, int] = {}
    unpriced: dict[tuple[str, str | None], CheckedRequest] = {}
    for item in wanted:
        request = item.request(connection)
        if isinstance(request, CheckedRequest):
            try:
                prices[item.fingerprint] = price_of(request, connection, max_cost)
            except BadRequestError:
                unpriced.setdefault((request.model, request.resolution), request)
    price_of_all(unpriced.values(), connection, max_cost)  # one error for all
    refuse_over(max_cost, sum(prices.values()), connection, f"Buying {len(prices)} images")
    return prices


def _forecast(batch: BatchContext, item: PlannedImage) -> Forecast:
    return Forecast(batch.order(item), batch.purchase_context, batch.guard, batch.marker(item.key))
