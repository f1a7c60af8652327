"""A thousand images in one task, killed at random moments and tried again: what was paid for, and what came of it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.attempts import Attempts

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

SEED = 5
ITEMS = int(os.environ.get("ITEMS", "1000"))
KILLS = 5
AT_ONCE = 8  # requests that a connection sends at once, where it says nothing else
MOST = ITEMS // KILLS - AT_ONCE  # submissions before a kill, so that there is always something left to kill

Kill = Callable[["Sandbox", Attempts, random.Random], None]


def unanswered(sandbox: Sandbox, attempts: Attempts, rng: random.Random) -> None:
    """From a random submission on, the gateway takes what it is sent, charges for it, and gives no answer."""
    sandbox.faults(
        {"route": "apimaster.submit", "times": rng.randrange(1, MOST)},
        {"route": "apimaster.submit", "hold": True, "charge": "after", "times": AT_ONCE},
    )
    assert len(sandbox.held(AT_ONCE, timeout=65)) == AT_ONCE, attempts.said()
    attempts.kill()
    sandbox.release()


def anywhere(sandbox: Sandbox, attempts: Attempts, rng: random.Random) -> None:
    """As soon as the gateway has seen so many submissions, polls or downloads more, whatever else is under way."""
    route = rng.choice(["apimaster.submit", "apimaster.status", "download"])
    count = len(sandbox.calls(route)) + rng.randrange(1, MOST)
    assert len(sandbox.calls(route, count=count, timeout=65)) >= count, attempts.said()
    attempts.kill()


@pytest.mark.parametrize("kill", [unanswered, anywhere])
def test_a_batch_that_is_killed_five_times_pays_for_each_image_once_and_lands_all_that_was_answered(
    sandbox: Sandbox, apimaster: str, tmp_path: Path, kill: Kill
) -> None:
    rng = random.Random(SEED)
    prompts = [f"image {number:04d}" for number in range(ITEMS)]
    open_at_a_kill: set[str] = set()
    with Attempts(tmp_path) as attempts:
        attempts.start("killed", prompts, geminiimg_conn_id=apimaster)
        for _ in range(KILLS):
            kill(sandbox, attempts, rng)
            open_at_a_kill |= attempts.unanswered()
            attempts.deadlines_pass()
            attempts.again()
        result = attempts.ended()

        paid = Counter(entry["prompt"] for entry in sandbox.ledger())
        assert max(paid.values()) == 1, "paid twice"
        became = attempts.by_status()
        landed = became.pop("landed") | became.pop("reused", set())
        unknown = became.pop("unknown", set())
        assert not became
        assert unknown == open_at_a_kill
        assert landed == set(prompts) - unknown
        # A claim whose request was not out yet when the process died is unknown as well: nobody is left who could tell.
        assert landed <= set(paid) <= landed | unknown
        if kill is unanswered:
            assert len(unknown) == KILLS * AT_ONCE
            assert set(paid) == landed | unknown
        numbers = {entry["prompt"]: entry["number"] for entry in sandbox.ledger()}
        assert attempts.submissions() == {prompt: numbers[prompt] for prompt in landed}
        assert f"{len(landed)} of {ITEMS} images landed" in str(result["error"]) if unknown else result["value"]
        assert not result["again"], "no retry can tell what is unknown"
        print(f"{len(paid)} paid = {len(landed)} landed + {len(unknown & set(paid))} unknown;", end=" ")
        print(f"{len(unknown - set(paid))} claimed, and killed before the request was out; none twice")
