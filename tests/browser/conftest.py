"""One Airflow, its sandboxes and one Chromium for all browser tests: together they take a minute to get ready.

What must stay true: tests only look at the runs that are shared; whatever changes something brings a run of its own,
so that they pass in any order, and each alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Frame, Page, expect, sync_playwright

from airflow_provider_geminiimg.sandbox import Sandbox, SandboxClient
from tests.browser.seeds import seed
from tests.harness import REPOSITORY
from tests.harness.live_airflow import LiveAirflow, free_port

HERE = Path(__file__).parent
IMAGES = REPOSITORY / "docs" / "images"
USERS = {"ada": "ADMIN", "vera": "VIEWER", "nora": ""}
RUN = "spring"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE_MESSAGE = "<svg/onload=stolen()> __loud__ [tap here](data:text/html;x)"
VIEWPORT = {"width": 1360, "height": 900}
expect.set_options(timeout=30_000)  # a page looks every 3 s, and a busy machine is slow


@dataclass
class World:
    """What the tests look at.

    :param airflow: with the DAGs of ``dags.py``.
    :param root: URI of the ledger and the images.
    :param held: the gateway of the DAG ``arriving``.
    """

    airflow: LiveAirflow
    root: str
    held: SandboxClient

    def waits_for_a_person(self, dag_id: str, task_id: str, *, timeout: float = 90) -> None:
        """Wait until a task asks for an answer."""
        self._until(dag_id, task_id, lambda state: state in ("awaiting_input", "deferred"), timeout)

    def ends(self, dag_id: str, task_id: str) -> None:
        """Wait for a task's success."""
        self._until(dag_id, task_id, lambda state: state == "success")

    def _until(self, dag_id: str, task_id: str, met: Callable[[str], bool], timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not met(state := self._state(dag_id, task_id)):
            assert state not in ("failed", "upstream_failed", "skipped"), f"{task_id} is {state}"
            assert time.monotonic() < deadline, f"{task_id} is {state}"
            time.sleep(0.3)

    def _state(self, dag_id: str, task_id: str) -> str:
        path = f"/dags/{dag_id}/dagRuns/{RUN}/taskInstances/{task_id}"
        return str(self.airflow.api("GET", path)["state"])


@contextlib.contextmanager
def open_world(home: Path) -> Iterator[World]:
    """An Airflow in which ``campaign`` has run, and in which ``hostile`` and ``review`` wait for people.

    :param home: an empty folder for all of it.
    """
    (home / "dags").mkdir()
    shutil.copy(HERE / "dags.py", home / "dags")
    root = (home / "root").as_uri()
    with contextlib.ExitStack() as stack:
        boxes = {name: stack.enter_context(Sandbox(latency=0.3)) for name in ("fine", "refusing", "hostile", "held")}
        boxes["refusing"].faults(route="apimaster.submit", outcome="refused")
        boxes["hostile"].faults(
            {"route": "apimaster.submit"},  # the first passes
            {"route": "apimaster.submit", "status": 400, "body": {"error": {"message": HOSTILE_MESSAGE}}},
        )
        airflow = LiveAirflow(home / "airflow", home / "dags", _environment(boxes, root), users=USERS)
        stack.callback(airflow.stop)
        airflow.start(("api-server", "scheduler", "dag-processor"))
        for dag_id in ("campaign", "hostile", "nothing", "thousand", "review"):
            airflow.trigger(dag_id, RUN)
        ended = {dag_id: airflow.wait(dag_id, RUN) for dag_id in ("campaign", "nothing")}
        assert ended == {"campaign": "failed", "nothing": "success"}
        seed(root, "thousand", RUN, "tiles", 1000)  # after the ledger of a new root was found complete
        yield World(airflow, root, boxes["held"])


def _environment(boxes: Mapping[str, Sandbox], root: str) -> dict[str, str]:
    gateways = {
        "onemin": ("fine", "1min"),
        "apimaster": ("fine", "apimaster"),
        "refusing": ("refusing", "apimaster"),
        "hostile": ("hostile", "apimaster"),
        "held": ("held", "1min"),
    }
    connections = {
        f"AIRFLOW_CONN_{name.upper()}": boxes[box].connection_json(gateway, requests_per_minute=6000)
        for name, (box, gateway) in gateways.items()
    }
    settings = {"AIRFLOW__GEMINIIMG__ROOT": root, "AIRFLOW__GEMINIIMG__RECORD_PROMPTS": "True"}
    return {**connections, **settings, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """See `open_world`."""
    with open_world(tmp_path_factory.mktemp("browser")) as world:
        yield world


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's own Chromium; none is ever downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def _signed_in() -> dict[tuple[str, str], Any]:
    return {}


@pytest.fixture
def sign_in(world: World, chromium: Browser, _signed_in: dict[tuple[str, str], Any]) -> Iterator[Callable[..., Page]]:
    """Sign in by the form, ``sign_in("ada")``, and get the page. In the end no page may have complained of anything."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def make(
        user: str, scheme: str = "light", *, airflow_url: str | None = None, quiet: bool = True, **options: Any
    ) -> Page:
        url = airflow_url or world.airflow.url
        context = chromium.new_context(
            viewport=VIEWPORT, color_scheme=scheme, locale="en-GB", storage_state=_signed_in.get((url, user)), **options
        )
        contexts.append(context)
        context.set_default_timeout(30_000)
        context.add_init_script(f"localStorage.setItem('theme', '{scheme}')")
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if quiet and _is_ours(said) else None)
        if (url, user) not in _signed_in:
            page.goto(url)
            page.get_by_label("Username").fill(user)
            page.get_by_label("Password").fill(user)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(lambda there: "/login" not in there)
            _signed_in[(url, user)] = context.storage_state()
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


def _is_ours(said: ConsoleMessage) -> bool:
    return said.type == "error" and "/geminiimg/" in said.location["url"]


@pytest.fixture(scope="session")
def under_path(world: World) -> str:
    """Address of one more API server of the same Airflow, which lives under a path."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/air"
    env = {"AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": url}
    world.airflow.spawn("api-server", "under-path", env)
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/api/v2/version").is_success:
                return url
        assert time.monotonic() < deadline, world.airflow.log_file("under-path").read_text()[-2000:]
        time.sleep(0.3)


def gallery(page: Page) -> Frame:
    """The gallery's frame inside Airflow's page."""
    element = page.locator("iframe[title=Images]").element_handle()
    assert element is not None
    frame = element.content_frame()
    assert frame is not None
    frame.wait_for_selector(".card, .run-card, .empty, .notice")
    return frame


def shot(page: Page, name: str) -> None:
    """Take a screenshot for the docs, where screenshots are asked for."""
    if not os.environ.get("SCREENSHOTS"):
        return
    from PIL import Image

    IMAGES.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(page.screenshot(animations="disabled"))) as image:
        image = image.convert("RGB")
    palette = image.quantize(256)  # a quarter of the bytes; skies stay smooth, because it is dithered
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(IMAGES / f"{name}.png", optimize=True)
