"""The gallery as people use it: in Airflow's own pages, signed in, by mouse and by keyboard."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Frame, Locator, Page, Request, Route, expect

from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.browser.conftest import HOSTILE_MESSAGE, RUN, VIEWPORT, World, gallery, shot
from tests.browser.dags import HOSTILE_NAME, HOSTILE_PROMPT, IDEA
from tests.browser.seeds import seed, seed_loop
from tests.harness.records import plan_of

SignIn = Callable[..., Page]
TALL = {"width": 1360, "height": 1180}
BESIDE = ["Show", "it", "beside", "the", "result"]
LANDED = [
    "evening.jpg",
    "hero.png",
    "story.png",
    "variants-0-vcalm.png",
    "variants-1-vbold.png",
    "variants-2-vplayful.png",
]


def run_page(page: Page, world: World, dag_id: str = "campaign", run_id: str = RUN) -> Frame:
    """Open the images of a run from its page in Airflow."""
    page.goto(f"{world.airflow.url}/dags/{dag_id}/runs/{run_id}")
    page.get_by_role("link", name="Images").click()
    return gallery(page)


def card(frame: Frame, name: str) -> Locator:
    return frame.locator(".card").filter(has=frame.get_by_role("button", name=f"Open {name}", exact=True))


def names(frame: Frame) -> list[str]:
    return frame.locator(".card .name").all_text_contents()


def test_a_finished_run_shows_its_images_in_a_tab_of_its_page(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    frame = run_page(page, world)
    assert names(frame) == LANDED
    expect(frame.locator(".totals")).to_contain_text(re.compile(r"6 images.*\$0.*1 failed.*Run failed"))

    hero = card(frame, "hero.png")
    expect(hero.locator("img.loaded")).to_be_visible()
    expect(hero).to_contain_text(f"{IDEA}, photographed for a billboard")
    for fact in ("gemini-3.1-flash-image-preview", "1K", "16:9", "1376 × 768", "≈ $0.067", " s", "New"):
        expect(hero).to_contain_text(fact)

    refused = frame.get_by_role("listitem").filter(has_text="Something that no gateway draws")
    for text in ("Refused", "No money was spent.", "Change the prompt or the input images, then clear the task."):
        expect(refused).to_contain_text(text)
    page.set_viewport_size(TALL)
    expect(frame.locator(".card img.loaded")).to_have_count(6)
    shot(page, "gallery-run")


def test_images_in_flight_are_there_at_once_and_arrive_as_they_land(sign_in: SignIn, world: World) -> None:
    world.held.reset()
    world.held.faults(route="onemin.status", hold=True, times=2)
    world.airflow.trigger("arriving", "spring")
    page = sign_in("ada")
    frame = run_page(page, world, "arriving")
    assert len(world.held.held(2, timeout=90)) == 2
    waiting = frame.locator(".card.busy")
    expect(waiting).to_have_count(2)
    expect(waiting.first).to_contain_text("In flight")
    expect(waiting.first).to_contain_text(f"{IDEA}, as a poster")
    expect(frame.locator(".totals")).to_contain_text("0 images")
    shot(page, "gallery-in-flight")

    world.held.release()
    expect(frame.locator(".card img.loaded")).to_have_count(2)
    expect(frame.get_by_role("status")).to_contain_text("arrived: poster")
    expect(waiting).to_have_count(0)
    expect(frame.locator(".totals")).to_contain_text(re.compile("2 images.*Run success"), timeout=60_000)


def test_a_settled_run_and_a_hidden_page_are_not_asked_about_again(sign_in: SignIn, world: World) -> None:
    world.held.reset()
    world.held.faults(route="onemin.status", hold=True, times=2)
    world.airflow.trigger("arriving", "hidden")
    page = sign_in("ada")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/summary" in request.url else None)
    page.clock.install()
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=arriving&run_id=hidden")
    assert len(world.held.held(2, timeout=90)) == 2
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); "
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"

    expect(page.locator(".card.busy")).to_have_count(2)
    # It looks by itself. The page is hidden between two looks: the clock's leaps would count as the length of one.
    with (
        page.expect_event("requestfinished", lambda request: "/summary" in request.url),
        page.expect_event("requestfinished", lambda request: "/dagRuns/hidden" in request.url),
    ):
        pass
    page.evaluate(hide, True)
    asked.clear()
    for _ in range(5):
        page.clock.fast_forward(61_000)
    assert not asked
    with page.expect_request("**/summary**"):
        page.evaluate(hide, False)

    world.held.release()
    assert world.airflow.wait("arriving", "hidden") == "success"
    expect(page.locator(".totals")).to_contain_text(re.compile("2 images.*Run success"), timeout=60_000)
    asked.clear()
    for _ in range(5):
        page.clock.fast_forward(61_000)
    assert not asked


def test_the_lightbox_goes_from_image_to_image_by_the_arrow_keys(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    frame = run_page(page, world)
    card(frame, "hero.png").get_by_role("button").focus()
    page.keyboard.press("Enter")
    box = frame.get_by_role("dialog")
    expect(box.get_by_role("heading", name="hero.png")).to_be_visible()
    for text in ("2 of 6", "photographed for a billboard", "aspect ratio 16:9", "1376 × 768", "estimated by Google's"):
        expect(box).to_contain_text(text)
    assert box.locator(".stage img").get_attribute("alt") == f"{IDEA}, photographed for a billboard"

    zoom = box.locator("#lightbox-zoom")
    fit = zoom.text_content()
    page.keyboard.press("1")
    expect(zoom).to_have_text("100 %")
    page.keyboard.press("+")
    expect(zoom).to_have_text("150 %")
    page.keyboard.press("0")
    expect(zoom).to_have_text(str(fit))

    page.keyboard.press("ArrowRight")
    expect(box.get_by_role("heading", name="story.png")).to_be_visible()
    expect(frame.get_by_role("status")).to_have_text("story.png, 3 of 6")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(box.get_by_role("heading", name="evening.jpg")).to_be_visible()
    expect(box.get_by_role("button", name="Previous image")).to_be_disabled()
    expect(box.locator(".stage.waits")).to_have_count(0)
    expect(box.locator(".sources img")).to_have_count(2)
    shot(page, "gallery-lightbox")

    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    expect(card(frame, "evening.jpg").get_by_role("button")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(card(frame, "hero.png").get_by_role("button")).to_be_focused()


def test_the_lightbox_asks_once_for_images_that_can_not_be_read(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada", quiet=False)
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=500, json={"detail": "The store is down."})

    def reading(act: Callable[[], object]) -> None:
        """Do what reads the next page, and wait until the gallery shows that it can't."""
        page.locator(".below").evaluate("below => below.replaceChildren()")
        with page.expect_response(re.compile("after=")):
            act()
        expect(page.locator(".below > *")).to_have_count(1)

    page.route(re.compile(r"/images\?.*after="), refuse)
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=thousand&run_id={RUN}")
    last = page.locator(".card").last
    reading(last.scroll_into_view_if_needed)  # the end of the page is near
    last.get_by_role("button").click()
    box = page.get_by_role("dialog")
    heading = box.get_by_role("heading", level=2).text_content()
    for _ in range(3):
        reading(lambda: page.keyboard.press("ArrowRight"))
        page.keyboard.press("ArrowLeft")
        expect(box.get_by_role("heading", level=2)).not_to_have_text(str(heading))
        page.keyboard.press("ArrowRight")
        expect(box.get_by_role("heading", level=2)).to_have_text(str(heading))
    page.wait_for_load_state("networkidle")
    assert len(asked) == 1 + 3


def test_a_download_is_the_stored_file_byte_by_byte(sign_in: SignIn, world: World) -> None:
    page = sign_in("vera")
    frame = run_page(page, world)
    card(frame, "hero.png").get_by_role("button").click()
    with page.expect_download() as started:
        frame.get_by_role("link", name="Download").click()
    assert started.value.suggested_filename == "hero.png"
    data = started.value.path().read_bytes()
    uri = frame.locator("dd", has_text="file://").locator(".uri").text_content()
    stored = Path(unquote(urlsplit(str(uri)).path)).read_bytes()
    assert hashlib.sha256(data).hexdigest() == hashlib.sha256(stored).hexdigest()
    expect(frame.get_by_text(hashlib.sha256(stored).hexdigest())).to_be_visible()


def test_the_address_of_an_image_can_be_copied_also_where_the_browser_guards_the_clipboard(
    sign_in: SignIn, world: World
) -> None:
    page = sign_in("ada", permissions=["clipboard-read", "clipboard-write"])
    frame = run_page(page, world)
    for shown in ("hero.png", "story.png"):
        card(frame, shown).get_by_role("button").click()
        frame.get_by_role("button", name="Copy the URI").click()
        expect(frame.get_by_role("status")).to_have_text("Copied.")
        uri = frame.locator("dd .uri").first.text_content()
        assert str(uri).endswith(shown)
        assert page.evaluate("navigator.clipboard.readText()") == uri
        page.keyboard.press("Escape")
        frame.evaluate("() => { Clipboard.prototype.writeText = () => Promise.reject(new Error('not here')) }")


def test_an_edit_shows_what_it_was_made_from_beside_it(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    frame = run_page(page, world)
    card(frame, "evening.jpg").get_by_role("button").click()
    sources = frame.locator(".sources li")
    expect(sources).to_have_count(2)
    assert [text.split() for text in sources.all_inner_texts()] == [
        ["hero.png", "Source", *BESIDE],
        ["variants-0-vcalm.png", "Reference", *BESIDE],
    ]
    frame.get_by_role("button", name="hero.png Source Show it beside the result").click()
    panes = frame.locator(".pane")
    expect(panes).to_have_count(2)
    expect(panes.first).to_contain_text("hero.png")
    expect(panes.last).to_contain_text("evening.jpg")
    page.keyboard.press("Escape")
    expect(frame.get_by_role("button", name="hero.png Source Show it beside the result")).to_be_focused()


def test_two_to_four_images_are_compared_side_by_side(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    frame = run_page(page, world)
    compare = frame.get_by_role("button", name="Compare", exact=True)
    frame.get_by_label("Compare variants-0-vcalm.png").check()
    expect(compare).to_be_disabled()
    for name in ("variants-1-vbold.png", "hero.png", "story.png"):
        frame.get_by_label(f"Compare {name}").check()
    frame.get_by_label("Compare evening.jpg").click()
    expect(frame.get_by_label("Compare evening.jpg")).not_to_be_checked()
    expect(frame.get_by_role("status")).to_contain_text("4 images can be compared at once")
    frame.get_by_role("button", name="Take out variants-1-vbold.png").click()
    expect(frame.get_by_label("Compare variants-1-vbold.png")).not_to_be_checked()

    compare.click()
    panes = frame.locator(".pane")
    expect(panes).to_have_count(3)
    assert panes.locator("figcaption > .name").all_text_contents() == ["variants-0-vcalm.png", "hero.png", "story.png"]
    expect(panes.first.locator("dt.odd", has_text="Asked")).to_be_visible()
    expect(panes.first.locator("dt.odd", has_text="Model")).to_be_visible()
    expect(panes.first.locator("dt.odd", has_text="Run")).to_have_count(0)
    expect(frame.locator(".pane .stage.waits")).to_have_count(0)
    shot(page, "gallery-compare")

    widths = [stage.bounding_box() for stage in panes.locator(".stage img").all()]
    page.keyboard.press("+")
    page.keyboard.press("+")
    for before, stage in zip(widths, panes.locator(".stage img").all(), strict=True):
        after = stage.bounding_box()
        assert before is not None
        assert after is not None
        assert after["width"] > 2 * before["width"]
    panes.first.locator(".stage").evaluate("box => box.scrollTo(box.scrollWidth, 0)")
    frame.wait_for_function("""() => [...document.querySelectorAll('.pane .stage')].every(
        box => box.scrollLeft >= 0.9 * (box.scrollWidth - box.clientWidth))""")
    page.keyboard.press("Escape")
    expect(compare).to_be_focused()


def test_filters_narrow_a_run_and_stay_in_its_address(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=campaign&run_id={RUN}")
    page.get_by_label("Task").select_option("variants")
    expect(page.locator(".card")).to_have_count(3)
    expect(page.get_by_label("Task")).to_be_focused()
    page.get_by_label("Task").select_option("")
    page.get_by_label("State").select_option("Failed (1)")
    expect(page.locator(".trouble")).to_have_count(1)
    expect(page.locator(".card")).to_have_count(0)
    page.reload()
    expect(page.locator(".trouble")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)
    page.get_by_label("Task").select_option("hero")
    expect(page.get_by_text("No image here is like that.")).to_be_visible()
    page.get_by_label("State").select_option("")
    expect(page.locator(".card")).to_have_count(1)
    assert urlsplit(page.url).query == f"dag_id=campaign&run_id={RUN}&task=hero"


def test_iterations_of_a_loop_say_what_changed_and_what_they_cost_also_where_airflow_tells_nothing_of_the_loop(
    sign_in: SignIn, world: World
) -> None:
    changes = [
        {"prompt": "A mug", "cost": {"amount": 0.5, "currency": "USD", "basis": "gateway"}},
        {"prompt": "A red mug", "cost": {"amount": 20, "currency": "credits", "basis": "connection"}},
        {"prompt": "A red mug", "model": "gemini-3-pro-image", "cost": {"amount": None, "currency": "USD"}},
    ]
    seed_loop(world.root, "looped", RUN, "draw", changes)
    seed_loop(world.root, "looped", RUN, "once", changes[:1])
    page = sign_in("ada", quiet=False)  # its images are not there
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=looped&run_id={RUN}")
    expect(page.locator(".loops h2")).to_have_text(["draw: 3 iterations"])
    first, second, third = (page.locator(".loop li").nth(number) for number in range(3))
    expect(first).to_have_text(re.compile(r"^Iteration 0From the prompt\$0\.50 so far$"))
    for text in ("From iteration 0", "operation: generate → edit", "prompt: A red mug", "$0.50, ≈ 20 credits so far"):
        expect(second).to_contain_text(text)
    changed = "model: gemini-3.1-flash-image-preview → gemini-3-pro-image"
    expect(third).to_have_text(f"Iteration 2From iteration 1{changed}$0.50, ≈ 20 credits, 1 without a price so far")

    page.locator("select[name=iteration]").select_option("Iteration 1")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator(".loop li")).to_have_count(3)
    page.get_by_role("link", name="Open iteration 2 of draw").click()
    expect(page.locator("select[name=iteration]")).to_have_value("2")
    page.get_by_role("button", name="Open step-2.webp").click()
    expect(page.locator("dialog .loop [aria-current]")).to_contain_text("Iteration 2")


def test_a_task_without_images_says_how_to_get_some(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/dags/nothing/runs/{RUN}/tasks/idle")
    page.get_by_role("link", name="Images").click()
    frame = gallery(page)
    expect(frame.get_by_role("heading", name="This task has made no images")).to_be_visible()
    expect(frame.locator(".empty")).to_contain_text("GeminiImageGenerateOperator")
    expect(frame.locator(".empty")).to_contain_text("[geminiimg] gallery_tabs")


def test_a_plus_in_a_run_id_is_a_plus_also_where_airflow_does_not_encode_it(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada", quiet=False)  # there is no such run
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=campaign&run_id=10:00+01:00%20early")
    expect(page.get_by_role("heading", name="10:00+01:00 early")).to_be_visible()


def test_dark_follows_airflows_own_switch_at_once(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    frame = run_page(page, world)
    background = "getComputedStyle(document.body).backgroundColor"
    light = frame.evaluate(background)
    assert light == "rgb(255, 255, 255)"
    page.get_by_role("button", name="User").click()
    page.get_by_role("menuitem", name="Appearance").hover()
    page.get_by_role("menuitemradio", name="Dark").click()
    frame.wait_for_function(f"{background} !== '{light}'")
    assert frame.evaluate(background) == page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


def test_the_dark_pages_of_the_docs(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada", "dark")
    frame = run_page(page, world)
    assert frame.evaluate("document.documentElement.className") == "dark"
    page.set_viewport_size(TALL)
    expect(frame.locator(".card img.loaded")).to_have_count(6)
    shot(page, "gallery-run-dark")


def test_a_mapped_task_instance_shows_its_own_image(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    run = f"{world.airflow.url}/dags/campaign/runs/{RUN}/tasks"
    for place, expected in (("variants/mapped/1", LANDED[4:5]), ("hero", LANDED[1:2])):
        page.goto(f"{run}/{place}")
        page.get_by_role("link", name="Images").click()
        frame = gallery(page)
        assert names(frame) == expected


def test_a_task_shows_its_images_of_every_run(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/dags/campaign/tasks/hero")
    page.get_by_role("link", name="Images").click()
    frame = gallery(page)
    assert names(frame) == ["hero.png"]
    expect(frame.get_by_role("heading", name=RUN)).to_be_visible()


def test_browse_lists_runs_and_opens_one_in_the_same_frame(sign_in: SignIn, world: World) -> None:
    page = sign_in("vera")
    page.goto(world.airflow.url)
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Images").click()
    frame = gallery(page)
    run = frame.locator(".run-card").filter(has_text="campaign")
    for text in (RUN, "6 images", "1 failed"):
        expect(run).to_contain_text(text)
    # Every other job of the sandbox's APIMaster reports its cost; what is reported is not added to estimates.
    expect(run).to_contain_text(re.compile(r"\$0\.(0672|3372)"))
    expect(run.locator("img.loaded")).to_have_count(4)
    run.get_by_role("link").click()
    frame.wait_for_selector(".card")
    assert names(frame) == LANDED
    frame.get_by_role("link", name="Images").click()
    expect(frame.locator(".run-card").filter(has_text="campaign")).to_be_visible()


def test_the_link_on_a_task_instance_opens_its_images_inside_airflow(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/dags/campaign/runs/{RUN}/tasks/variants/mapped/2/details")
    page.locator("a[href*='plugin/images?']").click()
    frame = gallery(page)
    assert names(frame) == LANDED[5:]
    page.reload()
    assert names(gallery(page)) == LANDED[5:]


def test_a_thousand_images_load_as_they_come_onto_the_screen(
    sign_in: SignIn, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    page = sign_in("ada")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(_tile(request)) if "/thumbs/" in request.url else None)
    page.add_init_script("""window.longest = 0;
        const seen = list => { for (const each of list.getEntries()) longest = Math.max(longest, each.duration) };
        new PerformanceObserver(seen).observe({type: 'longtask', buffered: true});""")
    since = time.monotonic()
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=thousand&run_id={RUN}")
    expect(page.locator(".card img.loaded").first).to_be_visible()
    page.wait_for_function("""() => { const first = [...document.querySelectorAll('.card .frame')];
        const top = first[0].getBoundingClientRect().top;
        return first.filter(e => e.getBoundingClientRect().top === top).every(e => e.querySelector('img.loaded')) }""")
    first_row = time.monotonic() - since
    page.wait_for_load_state("networkidle")
    assert set(asked) == set(_on_screen(page))
    assert len(asked) == len(set(asked)) < 30

    asked.clear()
    bottom = "window.scrollTo(0, document.body.scrollHeight)"
    while page.locator(".card").count() < 1000:
        before = page.locator(".card").count()
        page.evaluate(bottom)
        page.wait_for_function("n => document.querySelectorAll('.card').length > n", arg=before)
    longest = page.evaluate("longest")  # before the selectors below walk over a thousand cards themselves
    with capsys.disabled():
        print(f"\nof 1,000 images the first row is there after {first_row:.2f} s; longest task {longest:.0f} ms")
    assert longest < 1000
    page.evaluate(bottom)
    expect(page.locator(".card").last.locator("img.loaded")).to_be_visible()
    assert "tile-999" in asked
    # Seventeen screens were stopped at; what lay between them was never on the screen.
    assert len(set(asked)) < 17 * 3 * len(_on_screen(page))
    assert page.locator(".card img[src]").count() < 600
    expect(page.locator(".totals")).to_contain_text("1,000 images")


def test_a_batch_says_how_many_of_its_images_are_there_and_how_many_are_not_started(
    sign_in: SignIn, world: World
) -> None:
    ledger = Ledger(open_store(world.root, AIRFLOW_OPENERS))
    batch, items = Item("default", "thousand", "planned", "catalogue", -1), [f"{n:064x}"[::-1] for n in range(12)]
    seed(world.root, "thousand", "planned", "tiles", 3)
    ledger.summaries.plan(batch.task_instance, [item[:16] for item in items])
    plan_of(ledger.store, batch, items)
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=thousand&run_id=planned")
    expect(page.locator(".totals")).to_contain_text(re.compile("3 of 15 images.*12 not started"))


def test_a_long_run_can_be_entered_at_any_place(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=thousand&run_id={RUN}")
    number = page.get_by_role("spinbutton", name="Go to image")
    number.fill("501")
    number.press("Enter")
    expect(page.locator(".card .name").first).to_have_text("tile-500.webp")
    expect(page.locator(".card").first.locator("img.loaded")).to_be_visible()
    page.get_by_role("button", name="To the first").click()
    expect(page.locator(".card .name").first).to_have_text("tile-0.webp")
    expect(page.get_by_role("button", name="To the first")).to_have_count(0)


def test_what_was_paid_is_a_page_with_the_basis_of_each_amount(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    page.goto(f"{world.airflow.url}/geminiimg/?browse")
    page.get_by_role("link", name="Spend").click()
    expect(page.get_by_role("table")).to_contain_text("Perhaps paid")
    page.get_by_role("combobox", name="By").select_option("DAG")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="thousand"))
    expect(row).to_contain_text(re.compile(r"\$20\.\d+.*reported by the gateway"))
    expect(page.get_by_role("row").filter(has_text="Total")).to_have_count(1)
    expect(page.locator(".quiet", has_text="Adding up")).to_have_count(0)

    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=thousand")
    page.get_by_role("link", name="Spend").click()
    page.get_by_role("combobox", name="By").select_option("Task")
    expect(page.get_by_role("rowheader", name="tiles")).to_be_visible()
    expect(page.get_by_role("rowheader", name="hero")).to_have_count(0)


def _tile(request: Request) -> str:
    return f"tile-{urlsplit(request.url).path.split('/')[-4]}"


def _on_screen(page: Page) -> list[str]:
    return list(
        page.evaluate(f"""() => [...document.querySelectorAll('.card')].filter(card => {{
        const box = card.querySelector('.frame').getBoundingClientRect();
        return box.bottom > 0 && box.top < {VIEWPORT["height"]} }})
        .map(card => card.querySelector('.name').textContent.replace('.webp', ''))""")
    )


def test_markup_in_a_prompt_a_file_name_and_a_gateways_message_is_text(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada")
    frame = run_page(page, world, "hostile")
    drawn = frame.locator(".card")
    expect(drawn.locator(".prompt")).to_have_text(HOSTILE_PROMPT)
    expect(drawn.locator(".name")).to_contain_text(HOSTILE_NAME)
    expect(frame.locator(".trouble")).to_contain_text(HOSTILE_MESSAGE)
    expect(frame.locator(".trouble .prompt")).to_have_text(HOSTILE_PROMPT)
    drawn.get_by_label("Compare").check()
    drawn.locator("button.frame").click()
    box = frame.get_by_role("dialog")
    expect(box.get_by_role("heading", level=2)).to_contain_text(HOSTILE_NAME)
    expect(box.locator(".whole")).to_have_text(HOSTILE_PROMPT)
    assert frame.locator("img[src='x'], script:not([src$='/main.js']), main a, main b, dialog b").count() == 0
    assert frame.evaluate("window.owned") is None


def test_under_a_path_everything_still_works(sign_in: SignIn, world: World, under_path: str) -> None:
    page = sign_in("ada", airflow_url=under_path)
    page.goto(f"{under_path}/dags/campaign/runs/{RUN}")
    page.get_by_role("link", name="Images").click()
    frame = gallery(page)
    expect(frame.locator(".card img.loaded").first).to_be_visible()
    expect(frame.locator(".totals")).to_contain_text(re.compile("6 images.*Run failed"))
    expect(card(frame, "hero.png")).to_contain_text("New")
    card(frame, "hero.png").get_by_role("button").click()
    expect(frame.locator(".stage:not(.waits) img")).to_be_visible()
    with page.expect_download() as started:
        frame.get_by_role("link", name="Download").click()
    assert started.value.failure() is None
    page.keyboard.press("Escape")
    frame.get_by_role("link", name="Images").click()
    expect(frame.locator(".run-card").filter(has_text="campaign").locator("img.loaded").first).to_be_visible()


def test_who_may_not_look_is_told_so_in_a_sentence(sign_in: SignIn, world: World) -> None:
    page = sign_in("nora", quiet=False)
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=campaign&run_id={RUN}")
    expect(page.get_by_role("alert")).to_contain_text("You have no right to see these images.")
    page.context.clear_cookies()
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("You are not signed in, or your session has expired.")


def test_an_airflow_that_does_not_answer_is_named_and_asked_again(sign_in: SignIn, world: World) -> None:
    page = sign_in("ada", quiet=False)
    page.route("**/geminiimg/api/**", lambda route: route.abort())
    page.goto(f"{world.airflow.url}/geminiimg/?dag_id=campaign&run_id={RUN}")
    expect(page.get_by_role("alert")).to_contain_text("Airflow does not answer.")
    page.unroute_all()
    expect(page.locator(".card")).to_have_count(6)
    expect(page.get_by_role("alert")).to_have_count(0)
