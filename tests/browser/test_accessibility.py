"""What axe-core finds wrong with the gallery. ``make test-a11y`` fetches axe-core into ``build/``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import RUN, World
from tests.harness import REPOSITORY

AXE = REPOSITORY / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")


def findings(page: Page) -> list[str]:
    """What is wrong with the page as it is now, each with where."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"], "axe-core has checked nothing"
    return [
        f"{each['impact']}: {each['help']} ({node['target']}: {node['failureSummary']})"
        for each in found["violations"]
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(sign_in: Callable[..., Page], world: World, scheme: str) -> None:
    page = sign_in("ada", scheme)
    base = f"{world.airflow.url}/geminiimg/"
    page.goto(base)
    expect(page.locator(".run-card img.loaded").first).to_be_visible()
    assert not findings(page)

    page.goto(f"{base}?spend=dag")
    expect(page.get_by_role("rowheader", name="thousand")).to_be_visible()
    assert not findings(page)

    page.goto(f"{base}?dag_id=thousand&run_id={RUN}")
    expect(page.get_by_role("spinbutton", name="Go to image")).to_be_visible()
    assert not findings(page)

    page.goto(f"{base}?dag_id=nothing&run_id={RUN}")
    expect(page.locator(".empty")).to_be_visible()
    assert not findings(page)

    page.goto(f"{base}?dag_id=campaign")
    expect(page.locator(".card img.loaded").first).to_be_visible()
    assert not findings(page)

    page.goto(f"{base}?dag_id=campaign&run_id={RUN}")
    expect(page.locator(".card .chip", has_text="New").first).to_be_visible()
    for name in ("hero.png", "story.png"):
        page.get_by_label(f"Compare {name}").check()
    assert not findings(page)

    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator(".pane")).to_have_count(2)
    assert not findings(page)
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Open evening.jpg").click()
    expect(page.locator(".sources li")).to_have_count(2)
    assert not findings(page)
