"""What `make chaos` plans. That its sums can go wrong is seen with a protection taken out of the package."""

from __future__ import annotations

import random

from scripts.chaos import plan_delays, plan_kills


def test_a_seed_plans_the_same_round_every_time_and_another_seed_another_one() -> None:
    first, again, other = (random.Random(seed) for seed in (1001, 1001, 1002))
    planned = [(plan_kills(rng), plan_delays(rng, "1min")) for rng in (first, again, other)]
    assert planned[0] == planned[1] != planned[2]


def test_every_kind_of_process_dies_at_every_kind_of_moment_sooner_or_later() -> None:
    rounds = [plan_kills(random.Random(seed)) for seed in range(60)]
    assert {len(kills) for kills in rounds} == {3, 4, 5, 6}
    assert {(kill.half, kill.operation, kill.victim) for kills in rounds for kill in kills} == {
        (half, operation, victim)
        for half in (0, 1)
        for operation in ("submit", "status", "download")
        for victim in ("task", "supervisor", "triggerer")
    }
