"""The gallery's FastAPI application.

Invariants:

- Every route except the page, its static files and the view of the root asks Airflow whether the user may read the
  XComs of the DAG in its path. Airflow takes the DAG from the path parameter ``dag_id``, and from the query only if
  there is no such parameter.
- Airflow allows everybody to read a DAG that it does not know. With teams, the gallery shows such a DAG to nobody.
- All routes are read-only: GET and HEAD.
- An image is read from the location in its record, if the gallery may read that location. It is served only if the
  bytes are an image and match the stored hash. The stored bytes were inspected before, so a request does not parse
  their header again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from airflow.providers.common.compat.sdk import conf
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.base import RequestResponseEndpoint

from airflow_provider_geminiimg import __version__, settings
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES, inspect_image, media_type_of
from airflow_provider_geminiimg.core.ledger.layout import TaskIndex, thumbnail_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.root_token import TOKEN, view_of
from airflow_provider_geminiimg.core.reconcile import RECORD_STATUSES, Scope
from airflow_provider_geminiimg.core.reconcile.spend import BY, spend
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    InvalidImageError,
    LedgerError,
    StorageError,
)
from airflow_provider_geminiimg.gallery import page, routes
from airflow_provider_geminiimg.gallery.addresses import Address, address_of, version_of
from airflow_provider_geminiimg.gallery.queries import GalleryQueries
from airflow_provider_geminiimg.gallery.run_records import RecordFilter
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

MAX_THUMBNAIL_BYTES = 4 << 20  # one of ours has less than 1 MB
MAX_DAGS = 200  # whose permissions are asked for at once
MAX_RUNS = 20  # whose spend is added up at once
_VIEWS = threading.BoundedSemaphore(2)  # a store that does not answer keeps two threads of the server at most
MAX_SOURCES = 32  # that are looked for at once; no model takes more than 14
READ = ["GET", "HEAD"]
_FOR_EVER = "max-age=31536000, immutable"  # what lies at this address never changes
_FOR_A_WHILE = "max-age=600"

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
_STATUS: tuple[tuple[type[GeminiImageError], int], ...] = (
    (BadRequestError, 404),
    (InvalidImageError, 415),
    (LedgerError, 409),
    (StorageError, 503),
    (GeminiImageError, 500),
)
_NOTHING = "There is nothing at this address."
_DAG = re.compile(r"(?!\.{1,2}$)[\w.-]{1,250}")  # without "~", which means any DAG
# Airflow's patterns for ids, without "." and "..", and with the ``=`` of names that were too long for the ledger.
_NAME = re.compile(r"(?!\.{1,2}$)[\w.~:+=-]{1,250}")
# Administrators ([scheduler] allowed_run_id_pattern) and timetables decide which characters a run's id may contain.
_RUN = re.compile(r"(?!\.{1,2}$)[^/\x00-\x1f\x7f-\x9f]{1,250}")
_TAG = re.compile('"[^"]*"')
_COUNT = re.compile(r"0|[1-9][0-9]{0,8}")
_MAP_INDEX = re.compile(rf"-1|{_COUNT.pattern}")
_PARTS: Mapping[str, re.Pattern[str]] = {
    "dag_id": _DAG,
    "run_id": _RUN,
    "task_id": _NAME,
    "index": re.compile(rf"(?:(?:{_COUNT.pattern})\.)?(?:{_MAP_INDEX.pattern})"),
    "item": _NAME,
    "n": _COUNT,
    "image": _COUNT,
    "token": TOKEN,
}


# Permitted values of query parameters, and their description in errors.
_ASKED: Mapping[str, tuple[re.Pattern[str], str]] = {
    "task_id": (_NAME, "a task's id"),
    "map_index": (_MAP_INDEX, "a whole number from -1"),
    "iteration": (_COUNT, "a whole number from 0"),
    "item": (_NAME, "an item's name"),
    "n": (_COUNT, "a whole number from 0"),
    "model": (re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,500}"), "a model's id"),
    "status": (re.compile("|".join(RECORD_STATUSES)), f"one of {', '.join(RECORD_STATUSES)}"),
    "after": (re.compile(r"|(?=.{1,2000}$)ledger/[\w.~+%:=/-]+\.json", re.ASCII), "what an earlier page gave as next"),
    "after_run": (re.compile(r"|[\w.~+%:=/-]{1,1000}", re.ASCII), "what an earlier part gave as next"),
    "by": (re.compile("|".join(BY)), f"one of {', '.join(BY)}"),
    "position": (_COUNT, "a whole number from 0"),
    "v": (re.compile("[0-9a-f]{1,64}"), "what a list of images gave"),
    "limit": (re.compile("[1-9][0-9]{0,2}"), f"a whole number from 1 to {page.MAX_PAGE_SIZE}"),
}


def _known(request: Request) -> None:
    """Refuse an address that no record can have, and invalid query parameters."""
    for name, value in request.path_params.items():
        if not _PARTS[name].fullmatch(value):
            raise HTTPException(404, _NOTHING)
    for name, (pattern, allowed) in _ASKED.items():
        given = request.query_params.getlist(name)
        if len(given) > 1:
            raise HTTPException(422, f"{name} occurs {len(given)} times. Allowed: once.")
        if given and not pattern.fullmatch(given[0]):
            raise HTTPException(422, f"{name} can't be {given[0][:80]!r}. Allowed: {allowed}.")


def _gallery_queries() -> GalleryQueries:
    root = settings.root()
    files = Files(AIRFLOW_OPENERS, allowed_roots=[root, *settings.gallery_roots()], setting="gallery_roots")
    return GalleryQueries(Ledger(open_store(root, AIRFLOW_OPENERS)), settings.namespace(), files)


def _reads(dag_id: str | None = None) -> Any:
    """Return Airflow's check whether a user may read a DAG's XComs; by default the DAG of the request's path."""
    return requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM, param_dag_id=dag_id)


def _has_its_team(dag_id: str) -> None:
    """Refuse a deleted DAG if permissions depend on teams."""
    if conf.getboolean("core", "multi_team", fallback=False) and DagModel.get_dagmodel(dag_id) is None:
        raise HTTPException(404, "Airflow has no such DAG any more, so the team that may see its images is not known.")


def _may_read(request: Request, user: Any, dag_id: str) -> bool:
    if not _PARTS["dag_id"].fullmatch(dag_id):  # not the id of a DAG: cut, or a folder of another origin
        return False
    try:
        _reads(dag_id)(request, user)
        _has_its_team(dag_id)
    except HTTPException:
        return False
    return True


def _address(dag_id: str, run_id: str, task_id: str, index: str, item: str, n: int) -> Address:
    at = TaskIndex.parse(index)
    if at is None:
        raise HTTPException(404, _NOTHING)
    return Address(dag_id, run_id, task_id, at, item, n)


QueriesDep = Annotated[GalleryQueries, Depends(_gallery_queries)]
AddressDep = Annotated[Address, Depends(_address)]
per_dag = APIRouter(dependencies=[Depends(_reads()), Depends(_known), Depends(_has_its_team)])
pages = APIRouter()


@pages.api_route("/", methods=READ)
def index() -> Response:
    """Serve the page."""
    return HTMLResponse(page.PAGE, headers={"Content-Security-Policy": _PAGE_POLICY})


@pages.api_route(f"/{routes.STATIC.path}", methods=READ)
def static(version: str, name: str) -> Response:
    """Serve a script module or the style sheet of the installed version."""
    if version != page.VERSION or name not in page.FILES:
        raise HTTPException(404, _NOTHING)
    kind = page.MEDIA_TYPES[PurePath(name).suffix]
    return Response(page.FILES[name], media_type=kind, headers={"Cache-Control": f"public, {_FOR_EVER}"})


@pages.api_route(f"/{routes.DAGS.path}", methods=READ, dependencies=[Depends(_known)])
def dags(request: Request, user: GetUserDep, queries: QueriesDep, position: int = 0) -> dict[str, Any]:
    """List the DAGs with records that this user may read, in pages."""
    names, following = queries.dags(position, MAX_DAGS)
    return {"dags": [dag_id for dag_id in names if _may_read(request, user, dag_id)], "next": following}


@pages.api_route(f"/{routes.ROOT.path}", methods=READ, dependencies=[Depends(_known)])
def root(token: str, user: GetUserDep) -> dict[str, Any]:
    """Tell any user whether a token of the doctor lies in this server's root."""
    if not _VIEWS.acquire(blocking=False):
        raise HTTPException(503, "The root is being looked at. Try again.")
    try:
        open_root = partial(open_store, settings.root(), AIRFLOW_OPENERS)
        return asdict(view_of(open_root, settings.namespace(), __version__, token))
    finally:
        _VIEWS.release()


@per_dag.api_route(f"/{routes.IMAGES.path}", methods=READ)
def images(
    dag_id: str,
    run_id: str,
    queries: QueriesDep,
    task_id: str | None = None,
    map_index: int | None = None,
    iteration: int | None = None,
    model: str | None = None,
    status: str | None = None,
    after: str | None = None,
    position: int = 0,
    limit: Annotated[int, Query(ge=1, le=page.MAX_PAGE_SIZE)] = page.PAGE_SIZE,
) -> dict[str, Any]:
    """List the records of a run, in pages."""
    wanted = RecordFilter(dag_id, run_id, task_id, map_index, iteration, model, status)
    items, following = queries.page(wanted, after, limit, position)
    return {"items": items, "next": following}


@per_dag.api_route(f"/{routes.SUMMARY.path}", methods=READ)
def summary(
    dag_id: str,
    run_id: str,
    queries: QueriesDep,
    task_id: str | None = None,
    map_index: int | None = None,
    iteration: int | None = None,
) -> dict[str, Any]:
    """Return totals for the records of a run."""
    return queries.summary(RecordFilter(dag_id, run_id, task_id, map_index, iteration))


@per_dag.api_route(f"/{routes.SPEND.path}", methods=READ)
def spent(dag_id: str, queries: QueriesDep, by: str = "month", after_run: str = "") -> dict[str, Any]:
    """Return what the runs of a DAG cost, in parts of some runs, which the page adds up."""
    report = spend(queries.ledger, Scope(queries.namespace, dag_id), [by], after=after_run, max_runs=MAX_RUNS)
    return {
        "rows": [{"value": value, **paid.values()} for (value,), paid in report.rows.items()],
        "complete": report.complete,
        "unreadable": report.unreadable,
        "more": report.more,
        "next": report.following,
    }


@per_dag.api_route(f"/{routes.SOURCES.path}", methods=READ)
def sources(
    request: Request,
    user: GetUserDep,
    queries: QueriesDep,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    item: str,
    n: int,
    iteration: int | None = None,
) -> dict[str, Any]:
    """List the source images of an image. Those of another DAG are included only if the user may read that DAG."""
    record = queries.record(Address(dag_id, run_id, task_id, TaskIndex(map_index, iteration), item, n))

    def shown(place: int, source: Mapping[str, str]) -> dict[str, Any]:
        role = "source" if place == 0 and record.operation == "edit" else "reference"
        about = {"role": role, "name": source["uri"].rpartition("/")[2], "image": None, "why": None}
        made = queries.made(source)
        if made is None:
            return {
                **about,
                "why": "It was not made by this package, or is outside the folders that the gallery may read.",
            }
        of = address_of(made[0].key)
        if of.dag_id != dag_id and not _may_read(request, user, of.dag_id):
            return {**about, "why": "It belongs to a DAG that you may not read."}
        names = {"dag_id": of.dag_id, "run_id": of.run_id, "task_id": of.task_id, **vars(of.index)}
        return {**about, "image": {**names, **queries.shown(*made)}}

    return {"sources": [shown(place, source) for place, source in enumerate(record.inputs[:MAX_SOURCES])]}


@per_dag.api_route(f"/{routes.IMAGE.path}", methods=READ)
def image(
    request: Request,
    queries: QueriesDep,
    address: AddressDep,
    image: int,
) -> Response:
    """Serve an image's bytes unchanged."""
    record = queries.record(address)
    return _image(request, queries, record, image)


@per_dag.api_route(f"/{routes.THUMBNAIL.path}", methods=READ)
def thumbnail(
    request: Request,
    queries: QueriesDep,
    address: AddressDep,
    image: int,
    v: str | None = None,
) -> Response:
    """Serve an image's thumbnail, or the image itself if there is none."""
    record = queries.record(address)
    lifetime = _FOR_EVER if v is not None and v == version_of(queries.image(record, image)) else _FOR_A_WHILE
    blob = queries.ledger.store.read(thumbnail_key(record.key, image), MAX_THUMBNAIL_BYTES)
    if blob is None or len(blob.data) > MAX_THUMBNAIL_BYTES:
        return _image(request, queries, record, image, lifetime)
    return _answer(request, blob.data, blob.version, lifetime)


def _image(
    request: Request, queries: GalleryQueries, record: Record, index: int, lifetime: str = _FOR_A_WHILE
) -> Response:
    *places, last = queries.places(record, index)
    for image in places:
        with contextlib.suppress(GeminiImageError):  # deleted, or not permitted: try another copy
            return _landed(request, queries, image, lifetime)
    return _landed(request, queries, last, lifetime)


def _landed(request: Request, queries: GalleryQueries, image: Mapping[str, Any], lifetime: str) -> Response:
    data = queries.files.read(str(image["uri"]), max_bytes=MAX_IMAGE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != image.get("sha256"):
        raise InvalidImageError("The file is not the image that was stored there: somebody replaced it.")
    return _answer(request, data, digest, lifetime)


def _answer(request: Request, data: bytes, version: str, lifetime: str) -> Response:
    """Return a response with these bytes, or 304 if the client has them. The bytes were inspected before they were
    stored.
    """
    # Vary: after another login in the same browser, the image is requested again.
    headers = {"Cache-Control": f"private, {lifetime}", "Vary": "Cookie, Authorization"}
    headers["ETag"] = f'"{version.strip(chr(34))}"'
    if _is_known(headers["ETag"], ",".join(request.headers.getlist("if-none-match"))):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type_of(data) or inspect_image(data).media_type, headers=headers)


def _is_known(tag: str, known: str) -> bool:
    """Return whether `tag` is among the tags of If-None-Match: a list, weak tags, or ``*`` (RFC 9110, 13.1.2)."""
    return known.strip() == "*" or tag in _TAG.findall(known)


async def _with_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, GeminiImageError)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return JSONResponse({"detail": f"{error.message} {error.hint}".strip()}, status)


def _misspelt(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    names = sorted({str(each["loc"][-1]) for each in error.errors()})
    return JSONResponse({"detail": f"Invalid values: {', '.join(names)}."}, 422)


def make_app() -> FastAPI:
    """Create the application, which Airflow's API server mounts."""
    app = FastAPI(title="Images", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(pages)
    app.include_router(per_dag)
    app.middleware("http")(_with_headers)
    app.add_exception_handler(GeminiImageError, _failed)
    app.add_exception_handler(RequestValidationError, _misspelt)
    return app
