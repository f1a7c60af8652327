"""A loop in the gallery, with the example that users copy: needs Airflow 3.4, ``make test-loops BROWSER=1``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from playwright.sync_api import Page, expect

from airflow_provider_geminiimg.sandbox import Sandbox
from tests.browser.conftest import RUN, USERS, World, gallery, shot
from tests.browser.test_accessibility import AXE, findings
from tests.harness import REPOSITORY
from tests.harness.inprocess import HAS_LOOPS
from tests.harness.live_airflow import LiveAirflow

pytestmark = pytest.mark.skipif(not HAS_LOOPS, reason=f"Airflow {airflow_version} has no loops; 3.4 has")

DAG = "geminiimg_refine"
TASK = "refine.draw"
TALL = {"width": 1360, "height": 1120}
SignIn = Callable[..., Page]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An Airflow in which ``refine`` has drawn three images, and waits for a person."""
    home = tmp_path_factory.mktemp("loops")
    (home / "dags").mkdir()
    shutil.copy(REPOSITORY / "example_dags" / "refine.py", home / "dags")
    root = (home / "root").as_uri()
    with Sandbox(latency=0.1) as box:
        env = {
            "AIRFLOW_CONN_GEMINIIMG_DEFAULT": box.connection_json("1min", requests_per_minute=6000),
            "AIRFLOW__GEMINIIMG__ROOT": root,
            "AIRFLOW__GEMINIIMG__RECORD_PROMPTS": "True",
            "PYTHONPATH": str(REPOSITORY),
        }
        airflow = LiveAirflow(home / "airflow", home / "dags", env, users=USERS)
        try:
            airflow.start()
            airflow.trigger(DAG, RUN, {"poll_interval": 0.5})
            world = World(airflow, root, box)
            world.waits_for_a_person(DAG, "review", timeout=300)
            yield world
        finally:
            airflow.stop()


def link_of(world: World, iteration: int) -> str:
    """The link of the task instance in an iteration, which Airflow shows in its details."""
    path = f"/dags/{DAG}/dagRuns/{RUN}/taskInstances"
    tis: list[dict[str, Any]] = world.airflow.api("GET", path)["task_instances"]
    [ti] = [ti for ti in tis if ti["task_id"] == TASK and ti["loop_iteration"]["iteration"] == iteration]
    where = {name: ti[name] for name in ("region_id", "region_index")}
    return str(world.airflow.api("GET", f"{path}/{TASK}/links", **where)["extra_links"]["Images"])


def test_a_loop_is_shown_as_a_chain_with_sources_changes_costs_and_decisions(sign_in: SignIn, world: World) -> None:
    page = sign_in("vera")
    page.goto(f"{world.airflow.url}/dags/{DAG}/runs/{RUN}")
    page.get_by_role("link", name="Images").click()
    frame = gallery(page)
    steps = frame.get_by_role("list", name=f"Iterations of {TASK}").get_by_role("listitem")
    expect(steps).to_have_count(3)
    expect(steps.nth(2)).to_contain_text("Accepted: 2752 pixels wide, 2000 needed.")
    for number, texts in enumerate(
        [
            ["Iteration 0", "Loop went on", "Revise: 688 pixels wide", "From the prompt", "≈ $0.0448 so far"],
            ["Iteration 1", "Loop went on", "From iteration 0", "operation: generate → edit", "resolution: 512 → 1K"],
            ["Iteration 2", "Loop stopped here", "From iteration 1", "resolution: 1K → 2K", "≈ $0.214 so far"],
        ]
    ):
        for text in texts:
            expect(steps.nth(number)).to_contain_text(text)
    expect(steps.nth(1)).to_contain_text("prompt: The same image in finer detail")
    expect(frame.locator("select[name=iteration] option")).to_have_count(4)
    page.set_viewport_size(TALL)
    shot(page, "gallery-loop")

    steps.nth(1).get_by_role("button").focus()
    page.keyboard.press("Enter")
    box = frame.get_by_role("dialog")
    expect(box.get_by_role("heading", name="refine.draw-iteration1")).to_be_visible()
    inside = box.get_by_role("list", name=f"Iterations of {TASK}").get_by_role("listitem")
    expect(inside.nth(1)).to_have_attribute("aria-current", "step")
    inside.nth(2).get_by_role("button").press("Enter")
    expect(box.get_by_role("heading", name="refine.draw-iteration2")).to_be_visible()
    expect(inside.nth(2).get_by_role("button")).to_be_focused()
    expect(inside.nth(2)).to_contain_text("Accepted: 2752 pixels wide")


def test_the_link_of_a_task_instance_opens_its_iteration_beside_the_others(sign_in: SignIn, world: World) -> None:
    page = sign_in("vera")
    page.goto(link_of(world, 1))
    frame = gallery(page)
    expect(frame.locator(".card .name")).to_have_text(["refine.draw-iteration1.jpg"])
    expect(frame.locator("select[name=iteration]")).to_have_value("1")
    chain = frame.get_by_role("list", name=f"Iterations of {TASK}")
    expect(chain.get_by_role("listitem")).to_have_count(3)
    expect(chain.get_by_role("button")).to_have_count(1)
    chain.get_by_role("link", name=f"Open iteration 2 of {TASK}").click()
    expect(frame.locator(".card .name")).to_have_text(["refine.draw-iteration2.jpg"])
    frame.locator("select[name=iteration]").select_option("All iterations")
    expect(frame.locator(".card")).to_have_count(3)


@pytest.mark.skipif(
    not AXE.exists() and os.environ.get("CI") != "true", reason="axe-core is not there: make test-a11y fetches it"
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_chain(sign_in: SignIn, world: World, scheme: str) -> None:
    page = sign_in("ada", scheme)
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id={DAG}&run_id={RUN}")
    expect(page.locator(".loop .said")).to_have_count(3)
    assert not findings(page)
    page.locator(".loop button.step").first.click()
    expect(page.locator("dialog .loop li")).to_have_count(3)
    assert not findings(page)
