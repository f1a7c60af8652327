"""The limits of one account over all processes that use the same connection and root.

`<root>/limits/<namespace>/<connection id>/rate.json` is a timeline: the time of the next free slot, by the store's
clock. Slots are one interval apart. A process reserves a block of them with a conditional write, and uses them one by
one. `submit.json` and `poll.json` beside it list who holds how many of the connection's `max_concurrency`.

Invariants: a slot belongs to one process, so any number of processes, including killed ones, never exceed the rate. A
slot is used within `LATE` after its time or not at all. The interval is longer than a minute divided by the limit, by
`MARGIN`: this covers late use, the error of the clock, and differences in how long a call is on its way. A process that
is killed loses its block, at most `Pace.ahead` ahead, and its share of the concurrency after `Pace.held`. No lease
costs or saves money, so a document that cannot be read is an error before anything is sent.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import pydantic

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import limit_key
from airflow_provider_geminiimg.core.storage import Blob, Store, update
from airflow_provider_geminiimg.exceptions import Billed, LedgerError

UNSHARED_RATE = 5_000  # requests per minute; a higher limit holds per process, because no lease could keep pace
CLOCK_ERROR = 2.0  # seconds by which a holder ends its lease earlier than others see it end
CLOCK_SECONDS = 60.0  # time between two requests for the store's clock
MAX_AHEAD = 80.0  # seconds; at one call a minute the next slot is as far ahead
MAX_PAUSE = 120.0  # seconds; the longest pause after a 429
LATE = 1.5  # seconds after its time in which a slot may be used
MARGIN = 4.0  # seconds: LATE, 1 for the clock, whose seconds S3 cuts off, and 1.5 for calls that take longer to send
_DRIFT = 1e-3  # how fast the clocks of a host and of the store may diverge

_Seconds = Annotated[float, pydantic.Field(ge=0, le=1e11, allow_inf_nan=False)]
_Count = Annotated[int, pydantic.Field(ge=0, le=10**6)]


@dataclass(frozen=True)
class Pace:
    """The pace of one account's calls.

    :param per_minute: maximum number of calls in any `minute`.
    :param minute: 60 seconds; tests use shorter ones.
    """

    per_minute: int
    minute: float = 60.0

    @property
    def interval(self) -> float:
        """Seconds between two slots."""
        return (self.minute + MARGIN) / self.per_minute

    @property
    def held(self) -> float:
        """Seconds from the last renewal of a share of the concurrency until it is free for others: 45 s."""
        return self.minute * 0.75

    def ahead(self, *, low_priority: bool) -> float:
        """How far ahead slots may be reserved: 10 s, and 5 s for polls, which leaves room for submits."""
        return self.minute / (12 if low_priority else 6)


class _Document(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1


@dataclass(frozen=True)
class Block:
    """Consecutive slots of one process.

    :param first: time of the first slot, by the store's clock.
    :param count: number of slots.
    """

    first: float
    count: int


class Timeline(_Document):
    """The reserved part of an account's time, by the store's clock.

    :param next: time of the first free slot.
    :param paused_until: no slot is before this time, because the gateway limits the rate.
    :param by: random; of the last reservation. Two processes never write the same bytes, which `update` relies on.
    """

    next: _Seconds = 0.0
    paused_until: _Seconds = 0.0
    by: str = ""

    def reserve(
        self, now: float, pace: Pace, most: int, *, by: str, low_priority: bool = False
    ) -> tuple[Timeline, Block]:
        """Reserve up to `most` slots, for at most half of the time ahead; none if only few of them are free.

        Of an idle account the slots of the last seconds are free, too, so that several calls can start at once.
        """
        ahead, interval = pace.ahead(low_priority=low_priority), pace.interval
        first = max(self._free_at(now), now - LATE * 2 / 3)
        most = max(1, min(most, int(ahead / 2 / interval)))
        free = int((now + ahead - first) / interval) + 1 if first <= now + ahead else 0
        if free < min(most, max(1, int(ahead / 4 / interval))):
            return self, Block(first, 0)
        count = min(most, free)
        return self.model_copy(update={"next": first + count * interval, "by": by}), Block(first, count)

    def retry_after(self, now: float, pace: Pace, most: int, *, low_priority: bool = False) -> float:
        """Seconds until a reservation that got no slot can succeed."""
        ahead, interval = pace.ahead(low_priority=low_priority), pace.interval
        least = min(most, max(1, int(ahead / 4 / interval)))
        return max(self._free_at(now) + (least - 1) * interval - now - ahead, 0.0) + 0.01

    def _free_at(self, now: float) -> float:
        """When the next slot is. A time that no process can have written says that the store's clock was set back."""
        times = ((self.next, MAX_AHEAD), (self.paused_until, MAX_PAUSE))
        return max(at if at <= now + most + CLOCK_ERROR else 0.0 for at, most in times)

    def pause(self, until: float) -> Timeline:
        """Give no slot before `until`. Slots that are reserved already stay."""
        return self if self.paused_until >= until else self.model_copy(update={"paused_until": until})


class Holder(_Document):
    """What one process holds of a concurrency limit.

    :param units: number of simultaneous calls that it may have.
    :param wanted: number that it can use now.
    :param until: end of the lease, by the store's clock.
    """

    units: _Count
    wanted: _Count
    until: _Seconds


class Holders(_Document):
    """All processes that hold or want a part of a concurrency limit, by a random name."""

    holders: Mapping[str, Holder] = {}

    def share(self, name: str, now: float, until: float, limit: int, *, wanted: int, in_use: int) -> Holders:
        """Give the process `name` what is free of what it wants; while others wait, not more than its fair share.

        :param until: when they are free again if the process does not renew them.
        :param wanted: number of units it can use; 0: it gives all back.
        :param in_use: number of calls in flight. They keep their units.
        """
        # A later end is from before the store's clock was set back.
        live = {other: holder for other, holder in self.holders.items() if now < holder.until <= until + CLOCK_ERROR}
        others = {other: holder for other, holder in live.items() if other != name}
        free = max(0, limit - sum(holder.units for holder in others.values()))
        if any(holder.wanted > holder.units for holder in others.values()):
            free = min(free, self._fair(limit, len(others), self.holders.get(name)))
        units = max(in_use, min(wanted, free))
        if not wanted and not units:
            return self.model_copy(update={"holders": others})
        mine = Holder(units=units, wanted=max(wanted, units), until=until)
        return self.model_copy(update={"holders": {**others, name: mine}})

    @staticmethod
    def _fair(limit: int, others: int, mine: Holder | None) -> int:
        """The share of a process while others wait. With more processes than units they take turns."""
        if limit > others:
            return limit // (others + 1)
        return 0 if mine is not None and mine.units else 1


class StoreClock:
    """The store's clock, read once in `CLOCK_SECONDS`. It does not depend on the clock of the host.

    :param store: the root's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bounds: tuple[float, float] | None = None  # of the store's clock minus the monotonic clock
        self._read_at = 0.0

    def now(self) -> float:
        """Seconds by the store's clock; wrong by half a second at most if the store tells whole seconds."""
        before = time.monotonic()
        if self._bounds is None or before - self._read_at > CLOCK_SECONDS:
            told = self._store.now()
            after = time.monotonic()
            rounded = 1.0 if told == int(told) else 0.0
            self._bounds = self._narrowed(told - after, told + rounded - before, before)
            self._read_at = before
        return self.offset + time.monotonic()

    @property
    def offset(self) -> float:
        """The store's clock minus the monotonic clock, as of the last `now`."""
        assert self._bounds is not None
        return sum(self._bounds) / 2

    def _narrowed(self, low: float, high: float, now: float) -> tuple[float, float]:
        """The bounds of all readings together; those of the last one if the clock was set."""
        if self._bounds is None:
            return low, high
        drift = (now - self._read_at) * _DRIFT
        both = max(low, self._bounds[0] - drift), min(high, self._bounds[1] + drift)
        return both if both[0] <= both[1] else (low, high)


_Parsed = TypeVar("_Parsed", bound=_Document)


class AccountLimits:
    """Leases of one account's limits. Its methods block, and may be called from any thread.

    :param store: the root's store.
    :param namespace: separates several Airflow deployments that share one root.
    :param connection: the account.
    :param minute: see `Pace`.
    """

    def __init__(self, store: Store, namespace: str, connection: GatewayConnection, *, minute: float = 60.0) -> None:
        self.store = store
        self.per_minute = connection.requests_per_minute or LIMITS[connection.gateway].requests_per_minute
        self.pace = Pace(self.per_minute, minute)
        self.max_concurrency = connection.max_concurrency
        self.identity = (store.uri, namespace, connection.conn_id, self.per_minute, self.max_concurrency)
        self._names = {name: limit_key(namespace, connection.conn_id, name) for name in ("rate", "submit", "poll")}
        self._holder = secrets.token_hex(8)
        self._clock, self._lock = StoreClock(store), threading.Lock()

    def reserve(self, most: int, *, low_priority: bool) -> tuple[float, float, int] | float:
        """Reserve slots.

        :param most: maximum number of slots.
        :param low_priority: for polls only.
        :returns: time of the first slot by `time.monotonic`, seconds between slots, and their number; if none is free,
            the seconds after which to try again.
        :raises StorageError: the store failed.
        :raises LedgerError: the document cannot be read.
        """
        block, left, by = Block(0.0, 0), Timeline(), secrets.token_hex(8)

        def step(timeline: Timeline) -> Timeline:
            nonlocal block, left
            left, block = timeline.reserve(self._now(), self.pace, most, by=by, low_priority=low_priority)
            return left

        self._change("rate", Timeline(), step)
        if not block.count:
            return left.retry_after(self._now(), self.pace, most, low_priority=low_priority)
        return block.first - self._clock.offset, self.pace.interval, block.count

    @property
    def late(self) -> float:
        """See `LATE`."""
        return LATE

    def pause(self, seconds: float) -> None:
        """Give no slot for `seconds`, in all processes; slots that are reserved already stay.

        :raises GeminiImageError: see `reserve`.
        """
        self._change("rate", Timeline(), lambda timeline: timeline.pause(self._now() + seconds))

    def hold(self, kind: str, *, wanted: int, in_use: int) -> tuple[int, float]:
        """Take, renew or return units of the concurrency limit.

        :param kind: ``submit`` or ``poll``.
        :param wanted: number of calls that this process could have in flight; 0: return all units.
        :param in_use: number of calls in flight.
        :returns: number of units, and the end of their lease by `time.monotonic`.
        :raises GeminiImageError: see `reserve`.
        """
        limit = self.max_concurrency or 1
        since = time.monotonic()

        def step(holders: Holders) -> Holders:
            now = self._now()
            return holders.share(self._holder, now, now + self.pace.held, limit, wanted=wanted, in_use=in_use)

        mine = self._change(kind, Holders(), step).holders.get(self._holder)
        return (0 if mine is None else mine.units), since + self.pace.held - CLOCK_ERROR

    def _now(self) -> float:
        with self._lock:
            return self._clock.now()

    def _change(self, name: str, empty: _Parsed, step: Callable[[_Parsed], _Parsed]) -> _Parsed:
        """Change a document; `step` is called again if another process wrote first."""
        key, last = self._names[name], [empty]

        def stepped(blob: Blob | None) -> bytes | None:
            document = empty if blob is None else self._parse(key, type(empty), blob.data)
            last[:] = [step(document)]
            return None if last[0] == document else last[0].model_dump_json().encode()

        update(self.store, key, stepped)
        return last[0]

    def _parse(self, key: str, kind: type[_Parsed], data: bytes) -> _Parsed:
        try:
            return kind.model_validate_json(data)
        except pydantic.ValidationError:
            raise LedgerError(
                f"The limits document {key} under {self.store.uri} cannot be read.",
                billed=Billed.NO,
                hint="Remove it: the limits start afresh. Or run the package version that wrote it.",
            ) from None


def account_limits(store: Store, namespace: str, connection: GatewayConnection) -> AccountLimits | None:
    """The limits that a connection shares over all processes; ``None`` if each process has its own limits."""
    limits = AccountLimits(store, namespace, connection)
    return limits if connection.shared_limits and limits.per_minute <= UNSHARED_RATE else None
