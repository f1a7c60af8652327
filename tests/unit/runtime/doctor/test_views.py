"""The root as the API server and the triggerer see it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_geminiimg import __version__
from airflow_provider_geminiimg.core.ledger.root_token import RootView
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.doctor import exchange, views
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, Level
from tests.harness.api_server import api_server, over_http, token_of

CHECK = Check("API server")


@pytest.fixture(scope="module")
def address(_airflow_home: Path) -> Iterator[str]:
    """Airflow's API server, with a login, over HTTP."""
    with api_server() as client, over_http(client) as url:
        yield url


def asked(conn_id: str | None) -> Finding:
    try:
        [finding] = views.api_server(CHECK, conn_id)
    except GeminiImageError as error:
        return CHECK.failed(error)
    return finding


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], object]) -> Iterator[tuple[str, list[str]]]:
    """A server that is none of Airflow: its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            with contextlib.suppress(OSError):  # the doctor has hung up
                answer(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def says(body: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", "http://canary.invalid/")
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_the_api_server_sees_the_same_root_and_the_token_is_removed(
    address: str, connect: Callable[..., str], root: str
) -> None:
    connect("airflow_api", conn_type="http", host=address, password=token_of("norole"))
    assert asked("airflow_api") == CHECK.ok("The API server sees the same root.")
    assert [*open_store(root, AIRFLOW_OPENERS).keys("")] == []


def test_a_connection_may_give_host_and_port_apart(address: str, connect: Callable[..., str], local_root: str) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    connect("airflow_api", conn_type="http", host=host, port=int(port), password=token_of("vera"))
    assert asked("airflow_api").level is Level.OK


@pytest.mark.parametrize(
    ("fields", "says", "remedy"),
    [
        ({"password": "no-token"}, "refused the login", "access token"),
        ({"login": "vera", "password": "canary-password"}, "refused the login", "user and password"),
        ({}, "HTTP", ""),
        ({"host": "http://127.0.0.1:9"}, "not reached", "Correct the host"),
        ({"host": ""}, "is not an address", "Set it to the address"),
        ({"host": "http://user:canary@127.0.0.1"}, "is not an address", "to their own fields"),
        ({"host": "http://127.0.0.1/?canary"}, "is not an address", "Set it to the address"),
        ({"host": "http://[::1"}, "is not an address", "Set it to the address"),
        ({"login": "vera"}, "refused the login (HTTP 422)", "user and password"),
        ({"password": "canary\nö"}, "refused the login", "access token"),
        ({"conn_type": "postgres", "password": "canary"}, "has type 'postgres'", "another connection"),
    ],
)
def test_a_login_or_an_address_that_is_wrong_is_an_error_of_its_own(
    address: str, connect: Callable[..., str], local_root: str, fields: dict[str, str], says: str, remedy: str
) -> None:
    connect("airflow_api", **{"conn_type": "http", "host": address, **fields})
    finding = asked("airflow_api")
    assert finding.level is Level.ERROR
    assert says in finding.message
    assert remedy in finding.remedy
    assert "canary" not in f"{finding}"


def test_an_api_server_without_the_gallery_is_an_error(
    address: str, connect: Callable[..., str], local_root: str
) -> None:
    connect("airflow_api", conn_type="http", host=f"{address}/elsewhere", password=token_of("vera"))
    finding = asked("airflow_api")
    assert (finding.level, finding.message[:36]) == (Level.ERROR, "The API server does not have the gal")


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "airflow.test"}, "https://airflow.test"),
        ({"host": "airflow.test", "port": 443}, "https://airflow.test"),
        ({"conn_type": "https", "host": "airflow.test"}, "https://airflow.test"),
        ({"host": "airflow.test", "schema": "https", "port": 8443}, "https://airflow.test:8443"),
        ({"host": "airflow.test", "schema": "http"}, "http://airflow.test"),
        ({"host": "http://airflow.test/base", "port": 8080}, "http://airflow.test:8080/base"),
        ({"host": "https://airflow.test/base/"}, "https://airflow.test/base"),
        ({"host": "localhost", "port": 8080}, "http://localhost:8080"),
        ({"host": "::1", "port": 8080}, "http://[::1]:8080"),
    ],
)
def test_an_address_without_a_scheme_is_https_unless_it_is_this_machine(
    connect: Callable[..., str], fields: dict[str, Any], url: str
) -> None:
    connect("airflow_api", **{"conn_type": "http", **fields})
    assert str(views.address("airflow_api", BaseHook.get_connection("airflow_api"))) == url


def test_a_password_that_would_be_sent_without_encryption_is_a_warning(
    connect: Callable[..., str], local_root: str
) -> None:
    connect("airflow_api", conn_type="http", host="http://airflow.invalid", login="vera", password="canary")
    findings = list(views.api_server(CHECK, "airflow_api"))
    assert [finding.level for finding in findings] == [Level.WARNING, Level.ERROR]
    assert "without encryption" in findings[0].message


@pytest.mark.parametrize(
    "body",
    [
        b"<html>canary</html>",
        b"[" * 100_000,
        b'{"found": "yes", "same_namespace": 1, "version": "0.1.0"}',
        b'{"found": true, "same_namespace": true, "version": "pw canary"}',
        b'{"found": true, "same_namespace": true, "version": "0.1.0", "problem": "' + b"canary " * 100_000 + b'"}',
        b"\xff" * 50_000_000,
    ],
)
def test_an_answer_that_is_not_airflows_is_no_view_and_is_not_repeated(
    connect: Callable[..., str], local_root: str, body: bytes
) -> None:
    with answering(says(body)) as (url, _):
        connect("airflow_api", conn_type="http", host=url, password="token")
        finding = asked("airflow_api")
    assert finding.level is Level.ERROR
    assert "canary" not in f"{finding}"


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_not_followed_with_a_password(connect: Callable[..., str], local_root: str, status: int) -> None:
    with answering(says(b"", status)) as (url, requests):
        connect("airflow_api", conn_type="http", host=url, login="vera", password="canary")
        finding = asked("airflow_api")
    assert finding.level is Level.ERROR
    assert requests == ["POST /auth/token"]
    assert "canary" not in f"{finding}"


def test_an_answer_that_never_ends_ends_the_check_after_its_deadline(
    connect: Callable[..., str], local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SECONDS", 1.0)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        for _ in range(600):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " if not _ else b"x")
            time.sleep(0.1)

    with answering(drip) as (url, _):
        connect("airflow_api", conn_type="http", host=url, password="token")
        finding = asked("airflow_api")
    assert "no answer in time" in finding.message


def test_without_a_connection_the_api_server_is_not_asked(local_root: str) -> None:
    assert asked(None).level is Level.SKIPPED


SAME = RootView(True, True, __version__)


@pytest.mark.parametrize(
    ("view", "level", "remedy"),
    [
        (SAME, Level.OK, ""),
        (RootView(False, False, __version__), Level.ERROR, "the same [geminiimg] root"),
        (RootView(True, False, __version__), Level.ERROR, "the same [geminiimg] namespace"),
        (RootView(True, True, "0.0.1"), Level.WARNING, "one version everywhere"),
        (RootView(False, False, __version__, "bad_request"), Level.ERROR, "extra for the kind of store"),
    ],
)
def test_each_view_has_its_finding(view: RootView, level: Level, remedy: str) -> None:
    finding = views.seen(CHECK, view, "triggerer")
    assert finding.level is level
    assert remedy in finding.remedy


def test_a_triggerer_that_does_not_answer_is_an_error() -> None:
    [finding] = views.triggerer(CHECK, None)
    assert finding.level is Level.ERROR
    assert "airflow triggerer" in finding.remedy
