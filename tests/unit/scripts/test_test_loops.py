"""``make test-loops``: which tests it runs."""

from __future__ import annotations

import pytest

from scripts.test_loops import BROWSER, LOOPS, selection
from tests.harness import REPOSITORY


@pytest.mark.parametrize("core", [True, False])
def test_it_names_tests_that_are_there(core: bool) -> None:
    given = selection(core=core, every=False)
    assert given[: len(LOOPS)] == LOOPS
    assert all((REPOSITORY / path).is_file() for path in (*LOOPS, *BROWSER))
    assert ("core" in given) is core


def test_it_runs_every_live_test_when_asked() -> None:
    assert selection(core=False, every=True) == ["tests/live"]
    assert selection(core=False, every=False, browser=True) == BROWSER
