"""The root as the API server and the triggerer see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_geminiimg import __version__
from airflow_provider_geminiimg.core.ledger.root_token import RootView
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.doctor import views
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, Level
from tests.harness.api_server import api_server, over_http, token_of

CHECK = Check("API server")


@pytest.fixture(scope="module")
def address(_airflow_home: Path) -> Iterator[str]:
    """Airflow's API server, with a login, over HTTP."""
    with api_server() as client, over_http(client) as url:
        yield url


def asked(conn_id: str | None) -> Finding:
    [finding] = views.api_server(CHECK, conn_id)
    return finding


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
        ({"host": ""}, "not reached", "Correct the host"),
    ],
)
def test_a_login_or_an_address_that_is_wrong_is_an_error_of_its_own(
    address: str, connect: Callable[..., str], local_root: str, fields: dict[str, str], says: str, remedy: str
) -> None:
    connect("airflow_api", conn_type="http", **{"host": address, **fields})
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
