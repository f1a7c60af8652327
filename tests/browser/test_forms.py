"""The other pages that people use: a review's question, and the connection form."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import RUN, World, shot
from tests.browser.dags import HOSTILE_NAME

SignIn = Callable[..., Page]


def question(page: Page, world: World, task_id: str, dag_id: str = "review") -> Locator:
    """Open what a review asks, as soon as it asks."""
    world.waits_for_a_person(dag_id, task_id)
    page.goto(f"{world.airflow.url}/dags/{dag_id}/runs/{RUN}/tasks/{task_id}/required_actions")
    body = page.get_by_role("main") if page.get_by_role("main").count() else page.locator("body")
    expect(body.locator("img[src*='geminiimg/']").first).to_be_visible()
    return body


def all_shown(body: Locator) -> bool:
    return all(image.evaluate("e => e.decode().then(() => e.naturalWidth > 0)") for image in images(body))


def images(body: Locator) -> list[Locator]:
    return body.locator("img[src*='geminiimg/']").all()


def test_a_person_approves_all_images_with_a_comment(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    body = question(page, world, "approved")
    assert len(images(body)) == 3
    assert all_shown(body)
    page.locator("[name=element_comment]").fill("Brighter, please.")
    page.get_by_role("button", name="Approve").click()
    world.ends("review", "approved")
    chosen = world.airflow.xcom("review", RUN, "approved")
    assert [image["uri"].rpartition("/")[2] for each in chosen for image in each["images"]] == [
        "posters-0-vcalm.png", "posters-1-vbold.png", "posters-2-vplayful.png"
    ]  # fmt: skip
    assert world.airflow.xcom("review", RUN, "approved", key="comment") == "Brighter, please."


def test_a_person_rejects(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    question(page, world, "rejected")
    page.get_by_role("button", name="Reject").click()
    world.ends("review", "rejected")
    assert world.airflow.xcom("review", RUN, "rejected") == []


def test_a_person_picks_two_of_three(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    body = question(page, world, "picked")
    options = body.get_by_role("combobox")
    for name in ("posters-2-vplayful.png", "posters-0-vcalm.png"):
        options.fill(name)
        page.get_by_role("option", name=re.compile(re.escape(name))).click()
    shot(page, "review-pick")
    page.get_by_role("button", name="Respond").click()
    world.ends("review", "picked")
    chosen = world.airflow.xcom("review", RUN, "picked")
    assert [image["uri"].rpartition("/")[2] for each in chosen for image in each["images"]] == [
        "posters-0-vcalm.png", "posters-2-vplayful.png"
    ]  # fmt: skip


def test_markup_in_a_file_name_is_text_in_a_review(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    body = question(page, world, "judged", "hostile")
    expect(body.get_by_text(HOSTILE_NAME)).to_be_visible()
    assert page.locator("img[src='x']").count() == 0
    assert page.evaluate("window.owned") is None


@pytest.mark.parametrize(
    ("gateway", "path", "label"), [("1min.ai", "", "1min.ai"), ("APIMaster.ai", "/v1", "APIMaster.ai")]
)
def test_a_connection_is_made_in_the_form_and_checked(
    sign_in: SignIn, world: World, gateway: str, path: str, label: str
) -> None:
    page = sign_in("ada")
    conn_id = f"form_{gateway.partition('.')[0].lower()}"
    page.goto(f"{world.airflow.url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.locator("[name=connection_id]").fill(conn_id)
    form.get_by_role("combobox").first.fill("Gemini Images")
    page.keyboard.press("Enter")
    box = urlsplit(world.held.url)
    form.locator("[name=host]").fill(f"http://{box.hostname}{path}")
    form.locator("[name=port]").fill(str(box.port))
    expect(form.locator("[name=password]")).to_have_attribute("type", "password")
    form.locator("[name=password]").fill("sandbox-key")
    form.get_by_role("button", name="Gateway, model, limits and price").click()
    form.get_by_role("combobox").nth(1).click()
    page.get_by_role("option", name=gateway).click()
    if gateway == "1min.ai":
        page.set_viewport_size({"width": 1280, "height": 2200})  # all of the form's fields
        shot(page, "connection")
    form.get_by_role("button", name="Save").click()
    row = page.get_by_role("row").filter(has_text=conn_id)
    expect(row).to_be_visible()

    row.get_by_role("button", name="Test Connection").click()
    expect(page.get_by_text(re.compile(rf"{re.escape(label)} .*\d+ ms", re.S))).to_be_visible()
