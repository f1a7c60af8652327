"""The sandbox, asked by a browser that shows somebody else's page: what such a page sends, and what a form may send.

What must stay true: it changes nothing, reads nothing, and no answer of the sandbox runs as a page; whoever is no
browser, and a page of the sandbox's own origin, is served as before.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from airflow_provider_geminiimg.sandbox import Sandbox

KEYS = {"API-KEY": "k", "Authorization": "Bearer k"}
SUBMIT = {
    "type": "IMAGE_GENERATOR",
    "model": "gemini-3.1-flash-image-preview",
    "promptObject": {"prompt": "a secret fox"},
}  # fmt: skip
FAULT = {"route": "onemin.status", "body": "<script>fetch('/_sandbox/ledger')</script>", "times": 1}
VIEWS = ("ledger", "calls", "links", "held", "faults", "settings")


@pytest.fixture
def ask(sandbox: Sandbox) -> Iterator[Callable[..., httpx.Response]]:
    """``ask("GET", "/_sandbox/ledger", {"Origin": ...})``: what the sandbox answers."""
    with httpx.Client(base_url=sandbox.url, trust_env=False) as client:

        def asked(method: str, path: str, headers: Any = None, **more: Any) -> httpx.Response:
            return client.request(method, path, headers=headers, **more)

        yield asked


def submit(ask: Callable[..., httpx.Response], **headers: str) -> httpx.Response:
    return ask("POST", "/api/features", {**KEYS, **headers}, json=SUBMIT)


def foreign(url: str) -> list[dict[str, str]]:
    """What browsers send for a page of another origin."""
    port = urlsplit(url).port
    origins = [
        *("https://evil.example", "http://evil.example", "null", "file://", "", "http://localhost:8080"),
        *(f"http://localhost:{port}", f"http://127.0.0.1.evil.example:{port}", f"http://127.0.0.1:{port}1"),
        *(
            f"http://evil.example@127.0.0.1:{port}",
            f"chrome-extension://127.0.0.1:{port}",
            "http://127.0.0.1",
            "http://[",
        ),
    ]
    sites = [{"Sec-Fetch-Site": site} for site in ("cross-site", "same-site", "anything")]
    own = {"Origin": url, "Sec-Fetch-Site": "cross-site"}
    return [*({"Origin": origin} for origin in origins), *sites, own]


def test_a_page_of_another_origin_changes_nothing_and_reads_nothing(
    sandbox: Sandbox, ask: Callable[..., httpx.Response]
) -> None:
    assert submit(ask).status_code == 200
    before = {view: ask("GET", f"/_sandbox/{view}").json() for view in VIEWS}
    for headers in foreign(sandbox.url):
        asked = [
            *(ask("GET", f"/_sandbox/{view}", headers) for view in VIEWS),
            *(ask("POST", f"/_sandbox/{action}", headers, json={}) for action in ("reset", "release")),
            ask("POST", "/_sandbox/faults", headers, json=FAULT),
            ask("POST", "/_sandbox/settings", headers, json={"latency": 9}),
            ask("OPTIONS", "/_sandbox/faults", headers),
            ask("GET", "/api/results/x", {**headers, **KEYS}),
            submit(ask, **headers),
        ]
        assert {answer.status_code for answer in asked} == {403}, headers
        assert not any("secret fox" in answer.text for answer in asked)
        assert not any(name.startswith("access-control-") for answer in asked for name in answer.headers)
    assert {view: ask("GET", f"/_sandbox/{view}").json() for view in VIEWS} == before


def test_two_origins_are_not_one_of_its_own(sandbox: Sandbox, ask: Callable[..., httpx.Response]) -> None:
    headers = [("Origin", sandbox.url), ("Origin", "https://evil.example")]
    assert ask("GET", "/_sandbox/ledger", headers).status_code == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", None]
)
def test_what_changes_the_sandbox_is_json_which_no_form_sends(
    sandbox: Sandbox, ask: Callable[..., httpx.Response], kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for action in ("faults", "settings", "reset", "release", "nothing"):
        for body in (b'{"route": "onemin.status", "latency": 9}', b""):
            assert ask("POST", f"/_sandbox/{action}", headers, content=body).status_code == 415
    assert (sandbox.faults(), sandbox.settings()["latency"]) == ([], 0.05)


def test_a_name_that_was_led_here_by_a_name_server_is_refused(
    sandbox: Sandbox, ask: Callable[..., httpx.Response]
) -> None:
    port = urlsplit(sandbox.url).port
    for name in (
        "evil.example",
        "localhost.evil.example",
        "localhost.",
        "127.1",
        "2130706433",
        "[::1]x",
        "[::2]",
        "a@localhost",
    ):
        headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}", "Sec-Fetch-Site": "same-origin"}
        assert ask("GET", "/_sandbox/ledger", headers).status_code == 400
        assert ask("POST", "/_sandbox/reset", headers, json={}).status_code == 400


def test_its_own_pages_and_who_is_no_browser_are_served(sandbox: Sandbox, ask: Callable[..., httpx.Response]) -> None:
    port = urlsplit(sandbox.url).port
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "localhost"):
        own = {"Host": name, "Origin": f"http://{name}", "Sec-Fetch-Site": "same-origin"}
        for headers in ({}, {"Host": name}, own, {"Host": name, "Sec-Fetch-Site": "none"}):
            assert ask("GET", "/_sandbox/ledger", headers).status_code == 200
            kind = {**headers, "Content-Type": "Application/JSON; charset=utf-8"}
            assert ask("POST", "/_sandbox/release", kind, content=b"").status_code == 200
            assert submit(ask, **headers).status_code == 200
    sandbox.faults(FAULT)
    sandbox.settings(latency=0.05)
    assert sandbox.release() == 0
    sandbox.reset()


def test_a_default_port_that_is_said_is_the_one_that_is_left_out(
    sandbox: Sandbox, ask: Callable[..., httpx.Response]
) -> None:
    same = [("localhost:80", "http://localhost"), ("localhost", "http://localhost:80"), ("[::1]:80", "http://[::1]")]
    same += [("localhost:443", "https://localhost"), ("localhost", "https://localhost:443")]
    for host, origin in same:
        assert ask("GET", "/_sandbox/ledger", {"Host": host, "Origin": origin}).status_code == 200, (host, origin)
    other = [
        ("localhost:443", "http://localhost"),
        ("localhost:80", "https://localhost"),
        ("localhost:8080", "http://localhost"),
    ]
    other += [("localhost:80", "http://evil.example"), ("localhost:80", "http://localhost:8080")]
    for host, origin in other:
        assert ask("GET", "/_sandbox/ledger", {"Host": host, "Origin": origin}).status_code == 403, (host, origin)


def raw(sandbox: Sandbox, request: bytes) -> bytes:
    address = urlsplit(sandbox.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_no_answer_runs_as_a_page_or_is_guessed_to_be_one(sandbox: Sandbox, ask: Callable[..., httpx.Response]) -> None:
    sandbox.settings(latency=0)
    page = {"route": "onemin.status", "body": "<script>1</script>"}
    link = submit(ask).json()["aiRecord"]["temporaryUrl"]
    sandbox.faults(
        {**page, "headers": {"Content-Security-Policy": "default-src *", "X-Content-Type-Options": "none"}},
        page,
        {**page, "status": 500},
        {**page, "frame": "gzip"},
    )
    asked = [
        *(ask("GET", "/api/results/x", KEYS) for _ in range(3)),
        *(ask("GET", f"/_sandbox/{view}") for view in (*VIEWS, "nothing")),
        *(ask("GET", path) for path in (link, "/imgs/nothing", "/asset.1min.ai/nothing", "/nothing")),
        ask("POST", "/_sandbox/faults", json={"route": "nowhere"}),
        ask("POST", "/_sandbox/faults", content=b"x"),
        ask("DELETE", "/_sandbox/faults", json={}),
        ask("GET", "/", {"Host": "evil.example"}),
        ask("GET", "/", {"Origin": "https://evil.example"}),
    ]
    for answer in asked:
        assert "nosniff" in answer.headers["x-content-type-options"], answer.url
        assert "default-src 'none'; frame-ancestors 'none'; sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    for request in (b"GET /api/results/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"no HTTP\r\n\r\n"):
        head = raw(sandbox, request).partition(b"\r\n\r\n")[0].lower()
        assert b"\r\nx-content-type-options: nosniff" in head
        assert b"\r\ncontent-security-policy: default-src 'none'" in head
