"""The gallery's addresses, asked over HTTP in Airflow's own API server, by users of every role."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import re
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from airflow.sdk import DAG as Dag
from fastapi.routing import APIRoute

import airflow_provider_geminiimg
from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.core.ledger.layout import Item, record_key, thumbnail_key
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.root_token import leave_token
from airflow_provider_geminiimg.core.purchase.copying import image_places
from airflow_provider_geminiimg.core.storage import Files, LocalStore, encode_segment
from airflow_provider_geminiimg.gallery import app
from airflow_provider_geminiimg.gallery.addresses import address_of
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.api_server import USERS, api_server, gallery_app
from tests.harness.odd_records import put_all
from tests.harness.orphaned_records import OrphanedRecords
from tests.harness.records import ITEM, landed, make_record, plan_of, submitted

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

DAG, RUN = ITEM.dag_id, ITEM.run_id
STATIC = Path(airflow_provider_geminiimg.__file__).parent / "gallery" / "static"
LISTING = f"api/dags/{DAG}/runs/{quote(RUN)}/images"
SUMMARY = f"api/dags/{DAG}/runs/{quote(RUN)}/summary"
SPEND = f"api/dags/{DAG}/spend"


@pytest.fixture(scope="module")
def server(_airflow_home: Path) -> Iterator[TestClient]:
    """Airflow's API server, with a login."""
    with api_server() as client:
        yield client


@pytest.fixture(params=["cookie", "token"])
def ask(request: pytest.FixtureRequest, server: TestClient) -> Callable[..., Any]:
    """``ask("f/...", user="vera")``: an address of the gallery, asked with a browser's cookie or with a token."""
    return _asker(server, request.param)


@pytest.fixture
def get(server: TestClient) -> Callable[..., Any]:
    """As `ask`, with a token only."""
    return _asker(server, "token")


def _asker(server: TestClient, how: str) -> Callable[..., Any]:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    def asked(path: str, user: str | None = "vera", method: str = "GET", json: Any = None, **headers: str) -> Any:
        server.cookies.clear()
        if user is not None:
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=USERS[user]))
            if how == "cookie":
                server.cookies.set("_token", token)
            else:
                headers["Authorization"] = f"Bearer {token}"
        return server.request(method, path, headers=headers, json=json)

    return asked


@pytest.fixture
def left(root: str, sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch) -> OrphanedRecords:
    """On disk and on S3; the images lie where the gallery may read."""
    left = OrphanedRecords(sandbox, onemin)
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__GALLERY_ROOTS", f"s3://elsewhere/x, {left.folder}")
    return left


def image_of(record: Record, index: int = 0) -> str:
    return address_of(record.key).image(index)


def files_of(page: str) -> list[str]:
    """The addresses of what the page loads."""
    return sorted(set(re.findall(r'(?:href|src)="(static/[^"]+)"', page)))


# --- who may look -----------------------------------------------------------------------------------------------------


def addresses(record: Record) -> list[str]:
    path = address_of(record.key).image(0).removeprefix("f/")
    sources = f"api/dags/{DAG}/runs/{quote(RUN)}/sources?task_id=hero&map_index=-1&item=0&n=1"
    return [LISTING, SUMMARY, SPEND, sources, f"f/{path}", f"thumbs/{path}"]


async def test_only_who_may_read_the_dag_sees_anything(left: OrphanedRecords, ask: Callable[..., Any]) -> None:
    record = await left.attempt()
    for path in addresses(record):
        said = {user: ask(path, user=user) for user in (None, "norole", "vera", "ursula", "admin")}
        assert {user: answer.status_code for user, answer in said.items()} == {
            None: 401, "norole": 403, "vera": 200, "ursula": 200, "admin": 200,
        }, path  # fmt: skip
        for nobody in (None, "norole"):
            assert set(said[nobody].json()) == {"detail"}
    assert ask("api/dags", user=None).status_code == 401
    assert ask("api/dags", user="norole").json() == {"dags": [], "next": None}
    assert ask("api/dags").json() == {"dags": [DAG], "next": None}


def test_the_page_itself_is_open_and_holds_nothing(get: Callable[..., Any], local_root: str) -> None:
    answer = get("", user=None)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["content-type"].startswith("text/html")
    loaded = files_of(answer.text)
    assert {path.rpartition("/")[2] for path in loaded} == {path.name for path in STATIC.iterdir()} - {"index.html"}
    for path in loaded:
        file = get(path, user=None)
        assert file.status_code == 200
        kind = "text/css" if path.endswith(".css") else "text/javascript"
        assert file.headers["content-type"].partition(";")[0] == kind
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.content == (STATIC / path.rpartition("/")[2]).read_bytes()
    folder = loaded[0].rpartition("/")[0]
    for name in ("index.html", "%2e%2e%2fapp.py", "..%2fapp.py", "%2e%2e"):
        assert get(f"static/{name}").status_code == get(f"{folder}/{name}").status_code == 404


def test_a_browser_keeps_the_files_of_one_version_and_never_gets_those_of_another(
    get: Callable[..., Any], local_root: str
) -> None:
    page = get("", user=None)
    assert page.headers["cache-control"] == "private, no-store"
    loaded = files_of(page.text)
    [folder] = {path.rpartition("/")[0] for path in loaded}
    for path in loaded:
        assert "immutable" in get(path, user=None).headers["cache-control"]
        other = get(path.replace(folder, "static/0123456789abcdef"), user=None)
        assert (other.status_code, other.headers["cache-control"]) == (404, "private, no-store")
    for module in STATIC.glob("*.js"):  # so that what a module imports has the address of the same version
        assert set(re.findall(r'^import .* from "(.*/)', module.read_text(), re.MULTILINE)) <= {"./"}, module


def test_the_page_is_told_the_routes_as_they_are_served(get: Callable[..., Any], local_root: str) -> None:
    [said] = re.findall(r'<body data-gallery="([^"]*)">', get("", user=None).text)
    data = json.loads(html.unescape(said))
    served = {
        route.path: {param.name for param in route.dependant.query_params}
        for route in gallery_app().routes
        if isinstance(route, APIRoute)
    }
    assert data["routes"].keys() == {"dags", "images", "summary", "spend", "sources"}
    for route in data["routes"].values():
        assert served[f"/{route['path']}"] == set(route["query"])
    assert get(LISTING + f"?limit={data['max_page_size']}").status_code == 200
    assert get(LISTING + f"?limit={data['max_page_size'] + 1}").status_code == 422


def test_only_a_user_who_is_logged_in_learns_whether_a_token_is_in_the_root(
    ask: Callable[..., Any], local_root: str
) -> None:
    token = leave_token(LocalStore(urlsplit(local_root).path), "default")
    view = {"found": True, "same_namespace": True, "version": airflow_provider_geminiimg.__version__, "problem": None}
    assert ask(f"api/same-root/{token}", user=None).status_code == 401
    for user in USERS:
        assert ask(f"api/same-root/{token}", user=user).json() == view
    assert ask(f"api/same-root/{'0' * 32}").json() == {**view, "found": False, "same_namespace": False}
    for other in (token.upper(), token[:-1], "..%2Froot", "%2e%2e"):
        assert ask(f"api/same-root/{other}").status_code == 404


def test_a_store_that_does_not_answer_keeps_two_threads_busy_with_the_doctors_question_at_most(
    get: Callable[..., Any], local_root: str
) -> None:
    path = f"api/same-root/{'0' * 32}"
    taken = [app._VIEWS.acquire(blocking=False) for _ in range(2)]
    try:
        assert taken == [True, True]
        assert get(path).status_code == 503
    finally:
        for _ in taken:
            app._VIEWS.release()
    assert get(path).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed_from_here(get: Callable[..., Any], local_root: str, method: str) -> None:
    for path in ("", "api/dags", LISTING, SUMMARY, SPEND, image_of(landed())):
        assert get(path, user="admin", method=method).status_code == 405


def test_where_there_are_teams_a_deleted_dag_is_shown_to_nobody(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    path = address_of(put(left, ITEM, prompt="a secret fox").key).image(0).removeprefix("f/")
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    for address in (LISTING, SUMMARY, SPEND, f"f/{path}", f"thumbs/{path}"):
        answer = get(address)
        assert (answer.status_code, "no such DAG" in answer.text, "fox" in answer.text) == (404, True, False)
    assert get("api/dags").json() == {"dags": [], "next": None}
    with create_session() as session:
        session.add(DagModel(dag_id=DAG, bundle_name="dags-folder"))
    try:
        assert get(LISTING).status_code == 200
    finally:
        with create_session() as session:
            session.query(DagModel).filter_by(dag_id=DAG).delete()


RUN_IDS = [
    "a b", "a@b", "date=2026-01-01", "größe", "a\\b", "a#b?c&d;e", "..x", "...", "x" * 200 + "=", "(1)", "a+b", " ",
    "a'b\"<script>", "~", "\u202e",
]  # fmt: skip


def test_a_run_of_any_name_that_an_administrator_allows_is_shown(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    for run_id in RUN_IDS:
        put(left, replace(ITEM, run_id=run_id))
        of_run = f"api/dags/{DAG}/runs/{quote(run_id, safe='')}"
        [item] = get(f"{of_run}/images").json()["items"]
        assert get(f"{of_run}/summary").json()["images"] == 1, run_id
        answer = get(item["images"][0]["thumb"])
        assert "outside" in answer.json()["detail"], run_id  # the record was found; its image lies nowhere


NOWHERE = [
    "f/~/{run}/hero/-1/0/1/0",
    "f//{run}/hero/-1/0/1/0",
    "f/{dag}//hero/-1/0/1/0",
    "f/../{run}/hero/-1/0/1/0",
    "f/%2e%2e/{run}/hero/-1/0/1/0",
    "f/%2E/{run}/hero/-1/0/1/0",
    "f/{dag}/%2e%2e/hero/-1/0/1/0",
    "f/{dag}/..%2f..%2fledger/hero/-1/0/1/0",
    "f/{dag}/%252e%252e/hero/-1/0/1/0",
    "f/{dag}/{run}/%2e%2e/-1/0/1/0",
    "f/{dag}/{run}/hero/%2e%2e/0/1/0",
    "f/{dag}/{run}/hero/-2/0/1/0",
    "f/{dag}/{run}/hero/01/0/1/0",
    "f/{dag}/{run}/hero/-1/%2e%2e/1/0",
    "f/{dag}/{run}/hero/-1/0/%2e%2e/0",
    "f/{dag}/{run}/hero/-1/0/0/0",
    "f/{dag}/{run}/hero/-1/0/2/0",
    "f/{dag}/{run}/hero/-1/0/1/1",
    "f/{dag}/{run}/hero/-1/0/1/-1",
    "f/{dag}/{run}/hero/-1/0/1/%2e%2e",
    "f/{dag}/{run}/hero/-1/0/1/0%00",
    "f/{dag}/{run}/hero%0a/-1/0/1/0",
    "f/{dag}%2fx/{run}/hero/-1/0/1/0",
    "f/other/{run}/hero/-1/0/1/0",
    "api/dags/~/runs/{run}/images",
    "api/dags//runs/{run}/images",
    "api/dags/%2e%2e/runs/{run}/images",
    "api/dags/{dag}/runs/~%2f~/summary",
]


async def test_an_address_that_no_record_has_is_not_found(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    record = await left.attempt()
    assert get(image_of(record), user="admin").status_code == 200
    for path in NOWHERE:
        for address in {path, path.replace("f/", "thumbs/", 1)}:
            assert get(address.format(dag=DAG, run=quote(RUN)), user="admin").status_code in (404, 307), address


async def test_a_run_by_that_name_of_any_dag_holds_nothing(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    await left.attempt()
    assert get(f"api/dags/{DAG}/runs/~/images").json() == {"items": [], "next": None}
    assert get(f"api/dags/other/runs/{quote(RUN)}/images").json() == {"items": [], "next": None}


def test_a_user_who_edits_what_a_task_returned_sees_nothing_new(
    airflow: AirflowHarness, server: TestClient, get: Callable[..., Any], local_root: str, onemin: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    with Dag(dag_id=f"edited_{uuid.uuid4().hex}") as dag:
        GeminiImageGenerateOperator(task_id="hero", prompt="a fox", resolution="512", geminiimg_conn_id=onemin)
    run = airflow.run_dag(dag)
    manifest = run.task("hero").value
    secret.write_bytes(Path(unquote(urlsplit(manifest["images"][0]["uri"]).path)).read_bytes() + b"canary")
    listing = f"api/dags/{dag.dag_id}/runs/{quote(run.run_id)}/images"
    before = get(listing).json()
    forged = {**manifest, "images": [{**manifest["images"][0], "uri": secret.as_uri()}], "record": landed().key}
    xcom = f"http://testserver/api/v2/dags/{dag.dag_id}/dagRuns/{quote(run.run_id)}/taskInstances/hero/xcomEntries"
    changed = get(f"{xcom}/return_value", user="ursula", method="PATCH", json={"value": forged, "map_index": -1})
    assert changed.status_code == 200
    assert get(f"{xcom}/return_value?deserialize=true", user="ursula").json()["value"]["images"] == forged["images"]
    assert get(listing).json() == before
    assert b"canary" not in get(before["items"][0]["images"][0]["href"]).content


# --- bytes ------------------------------------------------------------------------------------------------------------


async def test_an_image_comes_as_it_lies_in_storage(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    record = await left.attempt()
    image = (record.manifest or {})["images"][0]
    answer = get(image_of(record))
    assert hashlib.sha256(answer.content).hexdigest() == image["sha256"]
    assert answer.headers["content-type"] == image["media_type"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert get(image_of(record), method="HEAD").status_code == 200
    again = get(image_of(record), **{"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_browser_may_name_several_copies_that_it_has_or_weak_ones_or_any(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record = await left.attempt()
    for path in (image_of(record), image_of(record).replace("f/", "thumbs/", 1)):
        tag = get(path).headers["etag"]
        for known in (f"W/{tag}", f'"a", {tag}', f'W/"a",W/{tag} , "b"', "*", " * "):
            for method in ("GET", "HEAD"):
                answer = get(path, method=method, **{"If-None-Match": known})
                assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag), known
        for other in ('"a", W/"b"', '"*"', "W/*", tag.strip('"'), f'"{tag}"', '"', ""):
            assert get(path, **{"If-None-Match": other}).status_code == 200, other


async def test_no_other_site_embeds_what_is_here_and_no_other_user_gets_a_kept_copy(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record = await left.attempt()
    path = image_of(record)
    etag = {"If-None-Match": get(path).headers["etag"]}
    kept = [get(path), get(path, method="HEAD"), get(path, **etag), get(path.replace("f/", "thumbs/", 1))]
    for answer in kept:
        assert answer.headers["cache-control"].startswith("private")
        assert {"cookie", "authorization"} <= set(answer.headers["vary"].lower().replace(",", " ").split())
    pages = [get(""), get(files_of(get("").text)[0]), get(LISTING), get("api/dags", user=None), get("f/nowhere")]
    for answer in (*kept, *pages):
        assert answer.headers["cross-origin-resource-policy"] == "same-origin", answer.url
        assert answer.headers["x-content-type-options"] == "nosniff"
    for answer in pages[2:]:
        assert answer.headers["cache-control"] == "private, no-store"


async def test_a_thumbnail_is_small_and_where_there_is_none_the_image_comes(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record = await left.attempt()
    path = image_of(record).replace("f/", "thumbs/", 1)
    small = get(path)
    assert small.headers["content-type"] == "image/webp"
    assert max(inspect_image(small.content).width, inspect_image(small.content).height) <= 512
    left.store.delete(thumbnail_key(record.key, 0))
    whole = get(path)
    assert hashlib.sha256(whole.content).hexdigest() == (record.manifest or {})["images"][0]["sha256"]


async def test_a_browser_keeps_a_thumbnail_of_a_listing_for_ever_and_any_other_for_a_while(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record = await left.attempt()
    [item] = get(LISTING).json()["items"]
    listed = item["images"][0]["thumb"]
    for thumbnail in (True, False):
        answer = get(listed)
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert {"cookie", "authorization"} <= set(answer.headers["vary"].lower().replace(",", " ").split())
        for other in (listed.partition("?")[0], f"{listed}0", listed[:-1]):
            given = get(other)
            assert (given.status_code, given.headers["cache-control"]) == (200, "private, max-age=600"), other
        if thumbnail:
            left.store.delete(thumbnail_key(record.key, 0))
    image = (record.manifest or {})["images"][0]
    left.change(record, manifest={**(record.manifest or {}), "images": [{**image, "sha256": "0" * 64}]})
    assert get(listed).status_code == 415  # what lies there is another image by now
    assert "immutable" not in get(listed).headers["cache-control"]
    [item] = get(LISTING).json()["items"]
    assert item["images"][0]["thumb"] != listed


async def test_a_page_of_html_by_the_name_of_an_image_is_not_served(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record = await left.attempt()
    left.environment.files.put(
        (record.manifest or {})["images"][0]["uri"], b"<!doctype html><script>alert(1)</script>", media_type="image/png"
    )
    answer = get(image_of(record))
    assert answer.status_code == 415
    assert b"alert" not in answer.content
    left.store.delete(thumbnail_key(record.key, 0))
    assert get(image_of(record).replace("f/", "thumbs/", 1)).status_code == 415


async def test_an_image_outside_the_gallerys_folders_is_named_and_not_served(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await left.attempt()
    monkeypatch.delenv("AIRFLOW__GEMINIIMG__GALLERY_ROOTS")
    answer = get(image_of(record))
    assert answer.status_code == 404
    assert "is outside [geminiimg] gallery_roots. Allowed: " in answer.json()["detail"]
    assert "allowed_roots" not in answer.text
    [item] = get(LISTING).json()["items"]
    assert item["images"][0]["href"] is None
    assert "gallery_roots" in item["images"][0]["why"]
    assert item["images"][0]["uri"] == (record.manifest or {})["images"][0]["uri"]


async def test_an_image_that_is_gone_is_an_error_that_says_so(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    record = await left.attempt()
    uri = str((record.manifest or {})["images"][0]["uri"])
    left.change(record, manifest={**(record.manifest or {}), "images": [{"uri": f"{uri}x", "sha256": "0" * 64}]})
    answer = get(image_of(record))
    assert answer.status_code == 404
    assert "does not exist" in answer.json()["detail"]


async def test_an_image_of_which_only_a_copy_is_left_is_shown_all_the_same(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record = await left.attempt()
    [image] = (record.manifest or {})["images"]
    folder, _, name = image["uri"].rpartition("/")
    gone = {**(record.manifest or {}), "images": [{**image, "uri": f"{folder}/gone.png"}]}
    copy = {"destination": {"directory": folder, "stem": "hero"}, "manifest": record.manifest}
    for asked in ({"directory": folder, "stem": "hero"}, {"directory": record.destination.directory, "stem": "gone"}):
        destination = Destination(record.destination.directory, "gone")
        left.change(record, manifest=gone, destination=destination, copies=[copy], asked=Destination(**asked))
        [item] = get(LISTING).json()["items"]
        assert [each["name"] for each in item["images"]] == [{"hero": name}.get(asked["stem"], "gone.png")]
        assert hashlib.sha256(get(image_of(record)).content).hexdigest() == image["sha256"]


async def test_an_image_in_the_place_of_the_one_that_landed_is_not_shown_for_it(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    record, other = await left.attempt(), await left.attempt("other")
    [image], [evil] = ((each.manifest or {})["images"] for each in (record, other))
    files = left.environment.files
    good, bad = (files.read(each["uri"], max_bytes=1 << 24) for each in (image, evil))
    assert good != bad
    files.put(image["uri"], bad, media_type="image/png")
    answer = get(image_of(record))
    assert answer.status_code == 415
    assert "somebody replaced it" in answer.json()["detail"]

    folder = image["uri"].rpartition("/")[0]
    there = {**(record.manifest or {}), "images": [{**image, "uri": f"{folder}/copy.png"}]}
    files.put(f"{folder}/copy.png", good, media_type="image/png")
    left.change(record, copies=[{"destination": {"directory": folder, "stem": "copy"}, "manifest": there}])
    assert get(image_of(record)).content == good  # from where it still is what landed


# --- what is listed ---------------------------------------------------------------------------------------------------


async def test_an_image_is_listed_with_all_that_is_known_of_it(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    record = await left.attempt(prompt="a secret fox")
    [item] = get(LISTING).json()["items"]
    image = (record.manifest or {})["images"][0]
    assert {name: item[name] for name in ("task_id", "map_index", "item", "n", "status", "error", "mismatch")} == {
        "task_id": "hero", "map_index": -1, "item": "0", "n": 1, "status": "landed", "error": None, "mismatch": None,
    }  # fmt: skip
    assert item["requested"] == {"resolution": "512"}
    assert (item["gateway"], item["model"], item["job_id"]) == (record.gateway, record.model, record.job_id)
    assert item["cost"] == (record.manifest or {})["cost"]
    assert item["seconds"] >= 0
    [shown] = item["images"]
    assert {name: shown[name] for name in image} == image
    assert (shown["href"], shown["why"]) == (image_of(record), None)
    assert item["prompt"] is None
    assert "secret fox" not in json.dumps(get(LISTING).json())


async def test_a_prompt_is_listed_where_prompts_are_recorded(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    left.change(await left.attempt(), prompt="<b>fox</b>")
    assert get(LISTING).json()["items"][0]["prompt"] == "<b>fox</b>"


async def test_what_is_not_an_image_is_listed_with_its_reason(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    await left.attempt("a", land=False)
    await left.submitted("b")
    await left.unknown("c")
    left.sandbox.faults(route="onemin.submit", status=401)
    await left.failed("d")
    key = record_key(replace(ITEM, task_id="e"), 1)
    left.store.create(key, b"not JSON")
    items = get(LISTING).json()["items"]
    assert [item["status"] for item in items] == ["in-flight", "to-collect", "unknown", "failed", "unreadable"]
    assert all(item["next"] and not item["images"] for item in items)
    assert items[2]["error"]["billed"] == "unknown"
    assert items[3]["error"]["code"] == "authentication"
    assert "not JSON" in items[4]["error"]["message"]
    assert get(SUMMARY).json()["statuses"] == {item["status"]: 1 for item in items}
    assert [item["task_id"] for item in get(f"{LISTING}?status=unknown").json()["items"]] == ["c"]


async def test_no_listing_shows_the_link_of_an_answer(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    record = make_record(ITEM, state="answered", links=["https://cdn.example/x.png?sig=secret"])
    assert left.ledger.create(record)
    listed = get(LISTING)
    assert listed.json()["items"][0]["status"] in ("in-flight", "to-collect")
    assert "sig=secret" not in listed.text
    assert "cdn.example" not in listed.text


def put(left: OrphanedRecords, item: Item, n: int = 1, **values: Any) -> Record:
    record = landed(item, n, **values)
    assert left.ledger.create(record)
    return record


def test_pages_follow_one_another_in_the_order_in_which_people_count(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    for index in range(25):
        put(left, replace(ITEM, task_id="each", map_index=index))
    put(left, replace(ITEM, task_id="each", map_index=3), 2)
    put(left, replace(ITEM, task_id="alone"))
    seen, after, pages = [], "", 0
    while after is not None:
        page = get(f"{LISTING}?limit=10&after={quote(after, safe='')}").json()
        seen += [(item["task_id"], item["map_index"], item["n"]) for item in page["items"]]
        after, pages = page["next"], pages + 1
    wanted = [("each", index, 1) for index in range(25)]
    assert seen == [("alone", -1, 1), *wanted[:4], ("each", 3, 2), *wanted[4:]]
    assert pages == 3


def test_a_listing_is_narrowed_by_task_map_index_and_model(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    for index in range(12):
        put(left, replace(ITEM, task_id="each", map_index=index), model="fast" if index % 2 else "fine")
    put(left, replace(ITEM, task_id="each-one"), model="fine")

    def found(query: str) -> list[int]:
        return [item["map_index"] for item in get(f"{LISTING}?{query}").json()["items"]]

    assert found("task_id=each&map_index=1") == [1]
    assert found("task_id=each&model=fast") == [1, 3, 5, 7, 9, 11]
    assert found("task_id=each-one") == [-1]
    assert found("task_id=eac") == []
    assert len(found("model=fine")) == 7
    summary = get(f"{SUMMARY}?task_id=each").json()
    assert (summary["images"], summary["tasks"], summary["models"]) == (12, ["each"], ["fast", "fine"])


def test_a_listing_is_narrowed_by_iteration_and_shows_each_one_at_its_own_address(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    for iteration in (0, 1, 10, 2):
        put(left, replace(ITEM, task_id="draw", iteration=iteration))
        put(left, replace(ITEM, task_id="each", map_index=3, iteration=iteration))
    put(left, replace(ITEM, task_id="before"))

    def found(query: str) -> list[tuple[str, int, int | None]]:
        items = get(f"{LISTING}?{query}").json()["items"]
        return [(item["task_id"], item["map_index"], item["iteration"]) for item in items]

    assert found("task_id=draw") == [("draw", -1, iteration) for iteration in (0, 1, 2, 10)]
    assert found("task_id=draw&map_index=-1") == found("task_id=draw")
    assert found("iteration=1") == [("draw", -1, 1), ("each", 3, 1)]
    assert found("task_id=each&map_index=3&iteration=10") == [("each", 3, 10)]
    assert found("task_id=before") == [("before", -1, None)]
    assert get(f"{SUMMARY}?iteration=2").json()["images"] == 2
    assert get(SUMMARY).json()["iterations"] == [0, 1, 2, 10]
    assert get(f"{SUMMARY}?task_id=before").json()["iterations"] == []
    [item] = get(f"{LISTING}?task_id=each&iteration=2").json()["items"]
    assert "/each/2.3/0/1/0" in item["images"][0]["thumb"]
    answer = get(item["images"][0]["thumb"])
    assert "does not exist" in answer.json()["detail"] or "outside" in answer.json()["detail"]
    assert get(item["images"][0]["thumb"].replace("/2.3/", "/7.3/")).json()["detail"] == "There is no such image."


def test_a_summary_adds_up_what_was_paid_by_currency_and_says_what_has_no_price(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    for index, cost in enumerate([(0.1, "USD", "gateway"), (0.2, "USD", "gateway"), (5.0, "credits", "connection")]):
        amount, currency, basis = cost
        put(left, replace(ITEM, map_index=index), cost={"amount": amount, "currency": currency, "basis": basis})
    put(left, replace(ITEM, map_index=3))
    summary = get(SUMMARY).json()
    assert summary["costs"] == [
        {"amount": 0.3, "currency": "USD", "basis": "gateway"},
        {"amount": 5.0, "currency": "credits", "basis": "connection"},
    ]
    assert (summary["without_price"], summary["looked_at"], summary["more"]) == (1, 4, False)


def test_a_summary_says_how_many_images_of_a_batch_have_not_been_started(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    fingerprints = [f"{number:064x}"[::-1] for number in range(10)]
    batch = replace(ITEM, task_id="catalogue")
    for fingerprint in fingerprints[:3]:
        put(left, replace(batch, item=fingerprint[:16]), fingerprint=fingerprint)
    assert left.ledger.create(submitted(replace(batch, item=fingerprints[3][:16])))
    put(left, replace(ITEM, task_id="alone"))
    plan_of(left.store, batch, fingerprints[:2])  # of before a Clear
    plan = plan_of(left.store, batch, [*fingerprints, fingerprints[0]], generation=1)

    def seen(query: str = "") -> tuple[int, int, int]:
        summary = get(f"{SUMMARY}{query}").json()
        return summary["images"], summary["not_started"], summary["wanted"]

    assert seen() == (4, 6, 11)
    assert seen("?task_id=catalogue&map_index=-1") == (3, 6, 10)
    assert seen("?task_id=catalogue&map_index=0") == (0, 0, 0)
    assert seen("?task_id=alone") == (1, 0, 1)
    left.store.delete(plan)
    left.store.create(plan, b"{")
    assert get(SUMMARY).json()["statuses"]["unreadable"] == 1


def test_a_name_that_was_too_long_for_the_ledger_still_has_its_address(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    task_id = "g." * 80 + "hero"
    assert "=" in encode_segment(task_id)
    put(left, replace(ITEM, task_id=task_id))
    [item] = get(f"{LISTING}?task_id={task_id}").json()["items"]
    answer = get(item["images"][0]["thumb"])
    assert "does not exist" in answer.json()["detail"] or "outside" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "map_index=x"])
def test_a_query_that_makes_no_sense_is_refused_in_a_sentence(
    left: OrphanedRecords, get: Callable[..., Any], query: str
) -> None:
    answer = get(f"{LISTING}?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"]


def test_records_that_can_not_be_shown_are_shown_as_unreadable_beside_the_others(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    odd = put_all(left.store)
    fine = put(left, replace(ITEM, task_id="fine"), cost={"amount": 0.1, "currency": "USD", "basis": "gateway"})
    answer = get(f"{LISTING}?limit=200")
    assert answer.status_code == 200, answer.text
    items = {item["record"]: item for item in answer.json()["items"]}
    statuses = {what: items[key]["status"] for what, key in odd.items()}
    assert statuses == dict.fromkeys(odd, "unreadable")
    assert items[fine.key]["status"] == "landed"
    assert all(key in items[key]["error"]["message"] for key in odd.values())
    summary = get(SUMMARY).json()
    assert summary["statuses"] == {"landed": 1, "unreadable": len(odd)}
    assert summary["costs"] == [{"amount": 0.1, "currency": "USD", "basis": "gateway"}]
    for key in odd.values():
        at = address_of(key)
        sources = f"api/dags/{DAG}/runs/{quote(RUN)}/sources?task_id={at.task_id}&map_index=-1&item=0&n=1"
        for path in (at.image(0), at.thumbnail(0), sources):
            refused = get(path)
            assert (refused.status_code, key in refused.json()["detail"]) == (409, True), (path, refused.text)


def test_what_nobody_can_have_paid_is_in_no_sum(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    for index, amount in enumerate((1e308, 1e308, 0.5)):
        cost = {"amount": amount, "currency": "USD", "basis": "gateway"}
        put(left, replace(ITEM, map_index=index), cost=cost)
    assert get(SUMMARY).json()["costs"] == [{"amount": 0.5, "currency": "USD", "basis": "gateway"}]


def test_names_that_are_no_text_stand_for_themselves(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    fine = put(left, replace(ITEM, task_id="fine"))
    folder = fine.key.split("/hero")[0].rsplit("/fine/", 1)[0]
    for key in (
        f"{folder}/%ED%A0%80/-1/0/1.json",
        f"{folder}/{'9' * 200}/-1/0/1.json",
        f"{folder}/a/{'9' * 200}/0/1.json",
    ):
        assert left.store.create(key, b"{")
    assert left.store.create("ledger/default/%ED%A0%80/run/task/-1/0/1.json", b"{")
    assert [item["task_id"] for item in get(LISTING).json()["items"]] == ["%ED%A0%80", "9" * 200, "fine"]
    assert get("api/dags").json() == {"dags": [DAG], "next": None}


def test_a_filter_without_hits_reads_a_part_and_says_where_to_look_further(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_geminiimg.gallery.queries.MAX_READ", 16)
    read = _count_reads(monkeypatch)
    for index in range(40):
        put(left, replace(ITEM, task_id="each", map_index=index), model="fine" if index == 39 else "fast")
    pages, after, read[:] = [], "", []
    while after is not None:
        page = get(f"{LISTING}?model=fine&after={quote(after, safe='')}").json()
        pages.append([item["map_index"] for item in page["items"]])
        assert len(read) <= 16
        after, read[:] = page["next"], []
    assert pages == [[], [], [39]]


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    really = Ledger.read

    def counted(ledger: Ledger, key: str) -> Any:
        read.append(key)
        return really(ledger, key)

    monkeypatch.setattr(Ledger, "read", counted)
    return read


def test_a_page_ends_where_its_records_become_too_much_for_one_answer(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_geminiimg.gallery.queries.MAX_PAGE_BYTES", 100_000)
    for index in range(5):
        put(left, replace(ITEM, task_id="each", map_index=index), prompt="x" * 40_000)
    after, pages = "", []
    while after is not None:
        page = get(f"{LISTING}?after={quote(after, safe='')}").json()
        pages.append(len(page["items"]))
        after = page["next"]
    assert pages == [2, 2, 1]


def test_no_request_reads_more_bytes_of_records_than_it_may(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_geminiimg.gallery.queries.MAX_PAGE_BYTES", 100_000)
    monkeypatch.setattr("airflow_provider_geminiimg.gallery.queries.MAX_SUMMARY_BYTES", 100_000)
    monkeypatch.setattr("airflow_provider_geminiimg.gallery.queries.CONCURRENCY", 1)
    for index in range(5):
        put(left, replace(ITEM, task_id="each", map_index=index), prompt="x" * 40_000)
    read = _count_reads(monkeypatch)
    after, pages = "", []
    while after is not None:
        page = get(f"{LISTING}?model=none&after={quote(after, safe='')}").json()
        pages.append((len(page["items"]), len(read)))
        after, read[:] = page["next"], []
    assert pages == [(0, 3), (0, 3), (0, 1)]
    summary = get(SUMMARY).json()
    assert (summary["looked_at"], summary["more"], len(read)) == (2, True, 3)


def test_an_image_in_thousands_of_places_is_looked_for_in_some(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [{"uri": f"{left.folder}/{n}.png", "sha256": "0" * 64} for n in range(100)]
    copies = [
        {"destination": {"directory": left.folder, "stem": f"c{n}"}, "manifest": {"images": images[:1]}}
        for n in range(2_000)
    ]
    record = put(left, ITEM, manifest={"images": images}, copies=copies)
    module = "airflow_provider_geminiimg.gallery.queries"
    listed: list[Record] = []

    def places(*given: Any) -> Any:
        listed.append(given[0])
        return image_places(*given)

    monkeypatch.setattr(f"{module}.image_places", places)
    assert len(get(LISTING).json()["items"][0]["images"]) == 100
    assert len(listed) == 1
    looked: list[str] = []
    really = Files.read

    def read(files: Files, uri: str, **more: Any) -> bytes:
        looked.append(uri)
        return really(files, uri, **more)

    monkeypatch.setattr(Files, "read", read)
    assert get(image_of(record)).status_code == 404
    assert 1 < len(looked) < 20


def test_a_huge_file_in_the_place_of_a_record_or_a_thumbnail_is_not_loaded(
    local_root: str, get: Callable[..., Any], onemin: str, sandbox: Sandbox
) -> None:
    left = OrphanedRecords(sandbox, onemin)
    record = put(left, ITEM)
    other = put(left, replace(ITEM, task_id="other"))
    root = Path(unquote(urlsplit(left.store.uri).path))
    huge = [root / record.key, root / thumbnail_key(other.key, 0)]
    huge[1].parent.mkdir(parents=True)
    for path in huge:
        with path.open("ab") as file:
            file.truncate(1 << 30)
    tracemalloc.start()
    try:
        items = get(LISTING).json()["items"]
        assert [item["status"] for item in items] == ["unreadable", "landed"]
        assert get(items[1]["images"][0]["thumb"]).status_code == 404
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


BAD_QUESTIONS = {
    "after": ["9" * 5_000, "x", "ledger", "/", "ledger/a", "%00", "a%0ab", "ledger/%ff.json", "ledger/" + "9/" * 5_000],
    "limit": ["0", "-1", "201", "x", "1e2", "1.0", "", "9" * 5_000, "%00", "0x10", "\u0661", "limit", " 1"],
    "map_index": ["x", "-2", "1.5", "9" * 5_000, "", "%00", "-0", "007", "\u0661", "null"],
    "n": ["x", "-1", "9" * 5_000, "", "%00"],
    "item": ["", "..", "a/b", "%00", "x" * 300, "%ed%a0%80"],
    "task_id": ["", "..", "a/b", "a%00", "a%0a", "%ed%a0%80", "x" * 300],
    "status": ["", "good", "LANDED", "landed%00", "9" * 5_000, "__class__"],
    "position": ["-1", "x", "1.5", "", "9" * 5_000],
    "by": ["", "price", "DAG", "dag%00", "9" * 5_000],
    "after_run": ["%00", "a b", "\u0661", "9" * 5_000],
    "model": ["", "a%00b", "a%1b%5b2J", "%c2%9b", "x" * 5_000],
}


def test_no_question_that_makes_no_sense_is_an_error_of_the_server(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    put(left, ITEM)
    good = {"task_id": "hero", "map_index": "-1", "item": "0", "n": "1"}
    for name, values in BAD_QUESTIONS.items():
        asked = {**good, name: "%s"} if name in good else {name: "%s"}
        query = "&".join(f"{each}={value}" for each, value in asked.items())
        path = f"api/dags/{DAG}/runs/{quote(RUN)}/{'sources' if name in ('item', 'n') else 'images'}"
        path = SPEND if name in ("by", "after_run") else path
        for value in values:
            answer = get(f"{path}?{query.replace('%s', value)}")
            assert answer.status_code == 422, (name, value[:40], answer.text)
            assert name in answer.json()["detail"]
            assert answer.json()["detail"].isprintable()
            assert len(answer.json()["detail"]) < 500
        twice = get(f"{path}?{query.replace('%s', '1')}&{name}=1")
        assert (twice.status_code, "times" in twice.json()["detail"]) == (422, True), name


def test_a_root_that_can_not_be_read_is_an_error_that_says_what_to_do(
    get: Callable[..., Any], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", "s3://no-such-bucket-here/root")
    answer = get(LISTING)
    assert answer.status_code == 503
    assert "Create the bucket" in answer.json()["detail"]


# --- what is paid -----------------------------------------------------------------------------------------------------


def test_what_a_dag_cost_is_listed_in_parts_with_the_basis_of_each_amount(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_geminiimg.gallery.app.MAX_RUNS", 2)
    for number in range(5):
        cost = {"amount": 0.1, "currency": "USD", "basis": "gateway" if number else "google_list"}
        record = put(left, replace(ITEM, run_id=f"run{number}"), cost=cost, model=f"m{number % 2}")
        left.ledger.summaries.count([record])
    left.ledger.summaries.count([put(left, replace(ITEM, dag_id="other"), cost=cost)])
    parts, after = [], ""
    while after is not None:
        answer = get(f"{SPEND}?by=model&after_run={quote(after, safe='')}").json()
        parts += [{row["value"]: (row["paid"], [cost["basis"] for cost in row["costs"]]) for row in answer["rows"]}]
        after = answer["next"]
    assert parts == [
        {"m0": (1, ["google_list"]), "m1": (1, ["gateway"])},
        {"m0": (1, ["gateway"]), "m1": (1, ["gateway"])},
        {"m0": (1, ["gateway"])},
    ]


# --- where an image comes from ---------------------------------------------------------------------------------------


async def sources_of(get: Callable[..., Any], record: Record, user: str = "vera") -> list[dict[str, Any]]:
    at = address_of(record.key)
    query = f"task_id={at.task_id}&map_index={at.index.map_index}&item={at.item}&n={at.n}"
    answer = await asyncio.to_thread(get, f"api/dags/{at.dag_id}/runs/{quote(at.run_id)}/sources?{query}", user)
    return list(answer.json()["sources"])


def edited(left: OrphanedRecords, source: Record, **inputs: str) -> Record:
    image = (source.manifest or {})["images"][0]
    given = {"uri": image["uri"], "sha256": image["sha256"], **inputs}
    return put(left, replace(ITEM, task_id="edit"), operation="edit", inputs=[given])


async def test_the_source_of_an_edit_is_shown_beside_it(left: OrphanedRecords, get: Callable[..., Any]) -> None:
    source = await left.attempt()
    [shown] = await sources_of(get, edited(left, source))
    assert shown["role"] == "source"
    assert shown["image"]["href"] == image_of(source)
    assert shown["image"]["task_id"] == "hero"


async def test_a_sidecar_that_names_a_record_of_another_image_is_not_believed(
    left: OrphanedRecords, get: Callable[..., Any]
) -> None:
    source, other = await left.attempt(), await left.attempt("other")
    sidecar = f"{(source.manifest or {})['images'][0]['uri'].rpartition('.')[0]}.json"
    contents: tuple[Any, ...] = ({"record": other.key}, {"record": "ledger/../x"}, {"record": 7}, [], "x")
    for content in contents:
        left.environment.files.put(sidecar, json.dumps(content).encode(), media_type="application/json")
        task = replace(ITEM, task_id=f"edit-{hashlib.md5(repr(content).encode()).hexdigest()}")
        image = (source.manifest or {})["images"][0]
        record = put(left, task, operation="edit", inputs=[{"uri": image["uri"], "sha256": image["sha256"]}])
        [shown] = await sources_of(get, record)
        assert shown["image"] is None
        assert "not made by this package" in shown["why"]


async def test_a_source_outside_the_gallerys_folders_is_not_looked_at(
    left: OrphanedRecords, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await left.attempt()
    record = edited(left, source)
    monkeypatch.delenv("AIRFLOW__GEMINIIMG__GALLERY_ROOTS")
    assert [shown["image"] for shown in await sources_of(get, record)] == [None]


# --- Airflow's side ---------------------------------------------------------------------------------------------------


def test_airflow_lists_the_plugin_with_its_page_and_its_tabs(server: TestClient, get: Callable[..., Any]) -> None:
    answer = get("http://testserver/api/v2/plugins", user="admin").json()
    [plugin] = [each for each in answer["plugins"] if each["name"] == "geminiimg_gallery"]
    assert [view["destination"] for view in plugin["external_views"]] == [
        "nav", "dag", "dag_run", "task", "task_instance",
    ]  # fmt: skip
    assert all(not view["href"].startswith(("/", "http")) for view in plugin["external_views"])
    assert plugin["fastapi_apps"][0]["url_prefix"] == "/geminiimg"


def test_tabs_can_be_switched_off_and_the_page_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_geminiimg.gallery.plugin import views

    monkeypatch.setenv("AIRFLOW__GEMINIIMG__GALLERY_TABS", "False")
    assert [view["destination"] for view in views()] == ["nav"]
