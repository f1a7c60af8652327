"""The limits of one account over all processes: their documents, with time as a value."""

from __future__ import annotations

import heapq
import random
import threading
from pathlib import Path

import pytest

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.ledger.account_limits import (
    LATE,
    AccountLimits,
    Block,
    Holders,
    Pace,
    StoreClock,
    Timeline,
    account_limits,
)
from airflow_provider_geminiimg.core.storage import LocalStore
from airflow_provider_geminiimg.exceptions import Billed, LedgerError
from tests.harness.limit_worker import most_in

HELD = Pace(1).held
START = 1_700_000_000.0
RATES = [1, 2, 10, 60, 180, 1000]


def connection(**extra: object) -> GatewayConnection:
    return parse_connection(conn_id="account", password="key", extra={"gateway": "apimaster", **extra})


def account(root: Path, **extra: object) -> AccountLimits:
    return AccountLimits(LocalStore(str(root)), "default", connection(**extra))


# The rate


def arrivals(pace: Pace, processes: int, seconds: float, seed: int) -> list[float]:
    """When the calls of busy processes reach the gateway, whose clocks are half a second wrong, which use some slots
    as late as they may, and whose calls take up to 1.5 s to arrive."""
    rng = random.Random(seed)
    wrong = [rng.uniform(-0.5, 0.5) for _ in range(processes)]
    timeline, arrived = Timeline(), list[float]()
    wakes = [(START + rng.random(), process) for process in range(processes)]
    while wakes:
        now, process = heapq.heappop(wakes)
        if now > START + seconds:
            continue
        here, most = now + wrong[process], rng.choice([1, 8, 14])
        left, block = timeline.reserve(here, pace, most, by=str(rng.random()))
        if block.count:
            used = [
                max(block.first + number * pace.interval, here) + rng.choice([0.0, rng.random() / 2])
                for number in range(block.count)
            ]
            assert all(at <= block.first + n * pace.interval + LATE for n, at in enumerate(used))
            arrived += [at - wrong[process] + rng.uniform(0.0, 0.5) for at in used]
            heapq.heappush(wakes, (max(now + 0.05, used[-1] - wrong[process] - 2), process))
        else:
            heapq.heappush(wakes, (now + left.retry_after(here, pace, most), process))
        timeline = left
    return sorted(arrived)


@pytest.mark.parametrize("per_minute", RATES)
@pytest.mark.parametrize("processes", [1, 4, 12])
def test_no_sixty_seconds_see_more_calls_of_all_processes_than_allowed_and_nine_tenths_are_used(
    per_minute: int, processes: int
) -> None:
    times = arrivals(Pace(per_minute), processes, 600 if per_minute < 180 else 200, per_minute + processes)
    assert most_in(times, 60) <= per_minute
    lasted = times[-1] - times[0] + Pace(per_minute).interval
    assert len(times) / lasted * 60 >= 0.9 * per_minute


def test_an_idle_account_lets_a_few_calls_start_at_once() -> None:
    pace = Pace(180)
    _, block = Timeline(next=START - 3600).reserve(START, pace, 20, by="a")
    assert sum(block.first + number * pace.interval <= START for number in range(block.count)) == 3


def test_polls_leave_half_of_the_time_ahead_to_submits() -> None:
    pace, timeline, polls, submits = Pace(180), Timeline(), 0, 0
    while (reserved := timeline.reserve(START, pace, 50, by="p", low_priority=True))[1].count:
        timeline, polls = reserved[0], polls + reserved[1].count
    while (reserved := timeline.reserve(START, pace, 50, by="s"))[1].count:
        timeline, submits = reserved[0], submits + reserved[1].count
    assert (polls, submits) == (17, 14)  # three of them for the last second


def test_what_a_killed_process_had_reserved_delays_the_others_by_ten_seconds_at_most() -> None:
    pace, timeline = Pace(180), Timeline()
    while (reserved := timeline.reserve(START, pace, 500, by="killed"))[1].count:
        timeline = reserved[0]
    assert timeline.next <= START + 10 + pace.interval
    _, block = timeline.reserve(START + 10, pace, 1, by="alive")
    assert block == Block(max(timeline.next, START + 9), 1)


@pytest.mark.parametrize("per_minute", RATES)
def test_who_waits_as_long_as_told_gets_a_slot(per_minute: int) -> None:
    pace, timeline = Pace(per_minute), Timeline()
    while (reserved := timeline.reserve(START, pace, 8, by="others"))[1].count:
        timeline = reserved[0]
    now = START
    for _ in range(10):
        if (wait := timeline.retry_after(now, pace, 8)) and timeline.reserve(now, pace, 8, by="me")[1].count == 0:
            now += wait
    assert timeline.reserve(now, pace, 8, by="me")[1].count
    assert now - START <= 60


@pytest.mark.parametrize("wrong", [Timeline(next=START + 86_400), Timeline(paused_until=START + 86_400)])
def test_a_store_whose_clock_was_set_back_by_a_day_stops_nobody(wrong: Timeline) -> None:
    left, block = wrong.reserve(START, Pace(60), 1, by="a")
    assert block.count == 1
    assert left.next < START + 2


def test_a_pause_moves_every_later_slot() -> None:
    pace, timeline = Pace(180), Timeline().pause(START + 5)
    assert timeline.pause(START + 3) == timeline
    assert timeline.reserve(START, pace, 1, by="a")[1].first == START + 5
    paused = Timeline().pause(START + 100)
    assert paused.reserve(START, pace, 1, by="a") == (paused, Block(START + 100, 0))
    assert paused.retry_after(START, pace, 1) == pytest.approx(90, abs=0.1)


def test_of_processes_that_reserve_at_the_same_moment_none_gets_the_slot_of_another(tmp_path: Path) -> None:
    accounts = [account(tmp_path, requests_per_minute=600) for _ in range(8)]
    together, got = threading.Barrier(8), list[float]()

    def reserve(own: AccountLimits) -> None:
        for _ in range(6):
            together.wait()
            reserved = own.reserve(1, low_priority=False)
            assert isinstance(reserved, tuple)
            got.append(round((reserved[0] + own._clock.offset) / own.pace.interval, 2))

    threads = [threading.Thread(target=reserve, args=(own,)) for own in accounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 48


def test_a_document_that_nobody_can_read_is_an_error_before_money(tmp_path: Path) -> None:
    own = account(tmp_path)
    own.store.create("limits/default/account/rate.json", b'{"version": 2}')
    with pytest.raises(LedgerError) as raised:
        own.reserve(1, low_priority=False)
    assert raised.value.billed is Billed.NO


# The concurrency


def shares(holders: Holders) -> dict[str, int]:
    return {name: holder.units for name, holder in holders.holders.items()}


def test_the_units_of_all_processes_are_never_more_than_the_limit_and_no_process_starves() -> None:
    rng, limit = random.Random(1), 8
    holders, now = Holders(), START
    flying = dict.fromkeys("abcd", 0)
    served = dict.fromkeys("abcd", 0)
    for _ in range(2000):
        name = rng.choice("abcd")
        holders = holders.share(name, now, now + HELD, limit, wanted=8, in_use=flying[name])
        units = holders.holders[name].units
        assert sum(shares(holders).values()) <= limit
        assert units >= flying[name]
        flying[name] = rng.randint(0, units)
        served[name] += units
        now += 0.5
    assert min(served.values()) > 0.2 * sum(served.values())


def test_more_processes_than_units_take_turns() -> None:
    rng, holders, served = random.Random(1), Holders(), dict.fromkeys("abcdef", 0)
    for step in range(600):
        name = rng.choice("abcdef")
        holders = holders.share(name, START + step, START + step + HELD, 2, wanted=3, in_use=0)
        assert sum(shares(holders).values()) <= 2
        served[name] += holders.holders[name].units
    assert min(served.values()) > 0


def test_the_share_of_a_killed_process_is_free_within_a_minute() -> None:
    holders = Holders().share("killed", START, START + HELD, 4, wanted=4, in_use=4)
    waiting = holders.share("other", START + HELD - 1, START + HELD - 1 + HELD, 4, wanted=3, in_use=0)
    assert shares(waiting) == {"killed": 4, "other": 0}
    assert HELD < 60
    assert shares(waiting.share("other", START + HELD, START + HELD + HELD, 4, wanted=3, in_use=0)) == {"other": 3}


def test_the_share_of_a_killed_process_is_free_after_the_clock_of_the_store_was_set_back() -> None:
    holders = Holders().share("killed", START, START + HELD, 4, wanted=4, in_use=4)
    now = START - 6 * 3600
    assert shares(holders.share("other", now, now + HELD, 4, wanted=3, in_use=0)) == {"other": 3}


def test_calls_in_flight_keep_their_units_while_others_wait() -> None:
    holders = (
        Holders()
        .share("a", START, START + HELD, 4, wanted=4, in_use=0)
        .share("b", START, START + HELD, 4, wanted=4, in_use=0)
    )
    assert shares(holders) == {"a": 4, "b": 0}
    assert shares(holders.share("a", START, START + HELD, 4, wanted=4, in_use=3)) == {"a": 3, "b": 0}
    assert shares(holders.share("a", START, START + HELD, 4, wanted=4, in_use=1)) == {"a": 2, "b": 0}


def test_who_wants_nothing_is_no_holder() -> None:
    holders = Holders().share("a", START, START + HELD, 4, wanted=4, in_use=0)
    assert holders.share("a", START, START + HELD, 4, wanted=0, in_use=0) == Holders()


# The store's clock


class Ticking(LocalStore):
    """A store whose clock is an hour ahead of this host's, and says whole seconds, as S3 does."""

    def __init__(self, root: str, clock: list[float]) -> None:
        super().__init__(root)
        self.clock = clock

    def now(self) -> float:
        return float(int(self.clock[0] + 3600.0))


def test_the_clock_of_a_store_that_says_whole_seconds_is_wrong_by_half_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic = [1000.7]
    monkeypatch.setattr("time.monotonic", lambda: monotonic[0])
    clock = StoreClock(Ticking(str(tmp_path), monotonic))
    for _ in range(30):
        assert clock.now() == pytest.approx(monotonic[0] + 3600, abs=0.51)
        monotonic[0] += 61.37
    assert clock.now() == pytest.approx(monotonic[0] + 3600, abs=0.2)


# Which connections share


@pytest.mark.parametrize(
    ("extra", "shared"),
    [
        ({}, True),
        ({"shared_limits": False}, False),
        ({"requests_per_minute": 5000}, True),
        ({"requests_per_minute": 5001}, False),
    ],
)
def test_limits_are_shared_unless_the_connection_says_no_or_is_faster_than_any_lease(
    tmp_path: Path, extra: dict[str, object], *, shared: bool
) -> None:
    found = account_limits(LocalStore(str(tmp_path)), "default", connection(**extra))
    assert (found is not None) is shared
