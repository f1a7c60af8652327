"""The plan of a wide batch, divided into shards: the part that each mapped task makes.

Invariants: each image belongs to exactly one shard. No image gets the file name that a row of any shard requests. The
shards' parts of `max_cost` together never exceed it. All shards write the records of one task instance, so that an
image keeps its record when its row moves to another shard.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from itertools import accumulate
from typing import ClassVar

from airflow_provider_geminiimg.core.batch.plan import Plan, PlannedImage
from airflow_provider_geminiimg.core.batch.planner import DraftPlan
from airflow_provider_geminiimg.core.batch.row_file_names import numbers_after
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.caps import MICRO, micro
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, LedgerError

CLEARS = 1_000_000
"""Generations of the shards between two Clears of their plan; more than a task ever has tries."""


class Shard(Plan):
    """One part of the plan of a wide batch.

    :param elsewhere: fingerprints in `items` whose images an earlier shard makes.
    :param requested: images that all shards request together.
    :param max_cost: the shard's part of the cap, in the currency of the connection; ``None``: no cap.
    :param first_attempt: whether no earlier attempt can have left a record of the batch.
    :param numbered: see `numbers_after`, of the names of all shards; only for the images of this shard. ``None``: an
        earlier version of this package made the plan.
    :param repeated: fingerprints in `items` that several rows of the batch have. ``None``: it is not known which.
    """

    origin: ClassVar[str] = "a part of the saved plan"

    elsewhere: frozenset[str] = frozenset()
    requested: int
    max_cost: Decimal | None = None
    first_attempt: bool = False
    numbered: dict[str, tuple[int, ...]] | None = None
    repeated: frozenset[str] | None = None

    def part_of(self, count: int) -> int:
        """The shard's part of a number of images of the batch, rounded up."""
        return -(-min(count, self.requested) * len(self.own) // self.requested)

    def request(self, item: PlannedImage, connection: GatewayConnection) -> CheckedRequest | GeminiImageError:
        found = super().request(item, connection)
        if not item.values and isinstance(found, LedgerError):
            return found.evolve(hint="Clear the plan task and the tasks after it: the batch gets a new plan.")
        return found

    def numbers(self) -> Mapping[str, tuple[int, ...]]:
        return super().numbers() if self.numbered is None else self.numbered

    @property
    def own(self) -> tuple[PlannedImage, ...]:
        return tuple(item for item in self.items if item.fingerprint not in self.elsewhere)


@dataclass(frozen=True, slots=True)
class ShardSize:
    """How a batch is divided. One of the first two is given.

    :param shards: number of shards; a smaller batch has fewer.
    :param images_per_shard: images of each shard, except that the last ones may have fewer.
    :param most: limit of Airflow on the number of shards.
    """

    shards: int | None
    images_per_shard: int | None
    most: int

    def shards_for(self, images: int) -> int:
        """The number of shards.

        :raises BadRequestError: there are more than Airflow can map.
        """
        count = min(self.shards, images) if self.shards else -(-images // (self.images_per_shard or images))
        if count > self.most:
            raise BadRequestError(
                f"images_per_shard: {images} images would be {count} shards; Airflow's [core] max_map_length is "
                f"{self.most}.",
                hint=f"Set images_per_shard to at least {-(-images // self.most)}.",
            )
        return count


class Shards:
    """The shards of a plan: consecutive parts of almost equal size. Each is made when it is needed.

    A shard's part of `max_cost` is the price of its images, and a part of the rest in proportion to its rows.

    :param planned: the plan that is divided.
    :param count: number of shards.
    :param prices: in millionths, by fingerprint, of the images that would be bought; their sum is within `max_cost`.
    :param first_attempt: see `Shard`.
    :param told: see `Saved`.
    """

    def __init__(
        self,
        planned: DraftPlan,
        count: int,
        prices: Mapping[str, int],
        max_cost: Decimal | None,
        *,
        first_attempt: bool,
        told: str | None,
    ) -> None:
        self._planned = planned
        self._prices = prices
        self._max_cost = max_cost
        self._rest = 0 if max_cost is None else micro(max_cost, ROUND_FLOOR) - sum(prices.values())
        self._first_attempt = first_attempt
        self._told = told
        size, more = divmod(len(planned.drafts), count)
        self._ends = list(accumulate([size + 1] * more + [size] * (count - more), initial=0))
        self._owners: dict[str, int] = {}
        """The shard that makes an image, for images that several rows request."""
        for index, item in enumerate(planned.drafts.items() if planned.repeated else ()):
            if item.fingerprint in planned.repeated:
                self._owners.setdefault(item.fingerprint, bisect_right(self._ends, index) - 1)
        self._numbers = numbers_after(planned.drafts.names.keys())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def size(self, number: int) -> int:
        """The number of images of a shard."""
        return self._ends[number + 1] - self._ends[number]

    def shard(self, number: int) -> Shard:
        """The plan of a shard."""
        total = len(self._planned.drafts)
        part = self._planned.drafts.part(self._ends[number], self._ends[number + 1])
        items = tuple(draft.item for draft in part)
        fingerprints = {each.fingerprint for each in items}
        elsewhere = {each for each in fingerprints if self._owners.get(each, number) != number}
        price = sum(self._prices.get(each, 0) for each in fingerprints - elsewhere)
        price += self._rest * len(items) // total
        stems = (each.stem.casefold() for each in items)
        return Shard(
            told=self._told,
            generation=self._planned.header.generation,
            directory=self._planned.header.directory,
            items=items,
            elsewhere=frozenset(elsewhere),
            requested=total,
            max_cost=None if self._max_cost is None else Decimal(price) / MICRO,
            first_attempt=self._first_attempt,
            numbered={name: self._numbers[name] for name in stems if name in self._numbers},
            repeated=self._planned.repeated & fingerprints,
        )
