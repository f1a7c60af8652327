"""Which images of a batch would be bought, and what they would cost together, before the first one is.

What must stay true: a forecast changes nothing, and decides as a purchase does. It refuses early what is certain;
`Budgets` keeps to the cap whatever comes of the rest.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from decimal import Decimal

from airflow_provider_geminiimg.core.batch.executor import BatchContext
from airflow_provider_geminiimg.core.batch.plan import READS_AT_ONCE, PlannedImage
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.ledger.budget import price_of_all, refuse_over
from airflow_provider_geminiimg.core.ledger.records import Record, StoredRecord
from airflow_provider_geminiimg.core.purchase.decision import Asked, ImageState, Policy, Poll, Step, Submit, decide
from airflow_provider_geminiimg.core.purchase.history import ImageHistory
from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
from airflow_provider_geminiimg.core.purchase.task_state import look
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, OverBudgetError

_MAY_BE_RECALLED = ("intent", "failed")  # Airflow may know more of these
_THERE: ImageState = "there"  # whether it still is makes nobody buy


class _UnchangedHistory(ImageHistory):
    """What is known of an image, where nothing may be written, and nobody looks whether what has landed is there."""

    async def _step(self, found: StoredRecord, policy: Policy, asked: Asked | None, vanished: str | None) -> Step:
        return decide(found, policy, asked, image=_THERE, vanished=found.record.key == vanished)

    async def settle(self, record: Record, *, plain: bool = False) -> None:
        """Leave the records as they are."""


class Forecast(Purchase):
    """A purchase that only says whether it would buy."""

    knows = _UnchangedHistory

    async def would_buy(self) -> bool:
        """Whether a paid request would be sent, as far as the ledger and the gateway know now.

        Where that can't be told, it is not: its turn raises the same, and the others have theirs.
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
        """Whether another task of the DAG has the image or is making it."""
        if self.order.policy.reuse == "task" or step.regenerate:
            return False
        return await self.sharing.is_anothers(await self.history.fingerprint())


async def refusals(
    batch: BatchContext, items: Sequence[PlannedImage], max_cost: Decimal | None
) -> dict[str, GeminiImageError]:
    """Why nothing is bought, for each of the images that would be: all of them together cost more than `max_cost`, or
    there is a cap and a price is not known. What has landed or is under way costs nothing now, and is not among them.

    :param items: the plan's.
    :returns: by fingerprint.
    """
    connection = batch.connection
    if max_cost is None and connection.daily_budget is None:
        return {}
    distinct = list({item.fingerprint: item for item in items}.values())
    wanted: list[PlannedImage] = []
    for start in range(0, len(distinct), READS_AT_ONCE):
        some = distinct[start : start + READS_AT_ONCE]
        wanted += itertools.compress(some, await asyncio.gather(*(_forecast(batch, item).would_buy() for item in some)))
    requests = [request for item in wanted if isinstance(request := item.request(connection), CheckedRequest)]
    try:
        total = price_of_all(requests, connection, max_cost)
        refuse_over(max_cost, total, connection, f"Buying {len(requests)} images")
    except (BadRequestError, OverBudgetError) as error:
        return dict.fromkeys((item.fingerprint for item in wanted), error)
    return {}


def _forecast(batch: BatchContext, item: PlannedImage) -> Forecast:
    return Forecast(batch.order(item), batch.purchase_context, batch.guard, batch.marker(item.key))
