"""The gallery as an application: what is served at each of its routes, and to whom.

What must stay true:

- All but the page itself and its files ask Airflow, for the very DAG in their path, whether this user may read its
  XComs. Airflow takes the DAG from a path parameter called ``dag_id``, and from the query only where there is none.
- A DAG that Airflow knows no more is no team's, and so everybody's to Airflow: where there are teams, it is nobody's.
- Nothing is changed from here: GET and HEAD only.
- An image's bytes are read from where its record says that they lie, if that is a place the gallery may read, and
  served as what they are; a body that is no image, or not the one that landed, is not served. What has landed was
  inspected then: its header is not followed again for each who looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
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

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES, inspect_image, media_type_of
from airflow_provider_geminiimg.core.ledger.layout import thumbnail_key
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record
from airflow_provider_geminiimg.core.reconcile import RECORD_STATUSES
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    InvalidImageError,
    LedgerError,
    StorageError,
)
from airflow_provider_geminiimg.gallery import page, routes
from airflow_provider_geminiimg.gallery.addresses import Address, address_of
from airflow_provider_geminiimg.gallery.queries import GalleryQueries, RecordFilter
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

MAX_THUMBNAIL_BYTES = 4 << 20  # one of ours has less than 1 MB
MAX_SOURCES = 32  # that are looked for at once; no model takes more than 14
READ = ["GET", "HEAD"]
_FOR_EVER = "public, max-age=31536000, immutable"  # what lies at this address never changes

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
# As Airflow's own patterns of ids, but for dots alone, and for the ``=`` of a name that was too long for the ledger.
_NAME = re.compile(r"(?!\.{1,2}$)[\w.~:+=-]{1,250}")
# What a run's id may hold an administrator says ([scheduler] allowed_run_id_pattern), and a timetable.
_RUN = re.compile(r"(?!\.{1,2}$)[^/\x00-\x1f\x7f-\x9f]{1,250}")
_TAG = re.compile('"[^"]*"')
_COUNT = re.compile(r"0|[1-9][0-9]{0,8}")
_PARTS: Mapping[str, re.Pattern[str]] = {
    "dag_id": re.compile(r"(?!\.{1,2}$)[\w.-]{1,250}"),  # and so no "~", which means any DAG
    "run_id": _RUN,
    "task_id": _NAME,
    "map_index": re.compile(r"-1|0|[1-9][0-9]{0,8}"),
    "item": _NAME,
    "n": _COUNT,
    "index": _COUNT,
}


# What may be asked for, and how a refusal says so.
_ASKED: Mapping[str, tuple[re.Pattern[str], str]] = {
    "task_id": (_NAME, "a task's id"),
    "map_index": (_PARTS["map_index"], "a whole number from -1"),
    "item": (_NAME, "an item's name"),
    "n": (_COUNT, "a whole number from 0"),
    "model": (re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,500}"), "a model's id"),
    "standing": (re.compile("|".join(RECORD_STATUSES)), f"one of {', '.join(RECORD_STATUSES)}"),
    "after": (re.compile(r"|(?=.{1,2000}$)ledger/[\w.~+%:=/-]+\.json", re.ASCII), "what an earlier page gave as next"),
    "limit": (re.compile("[1-9][0-9]{0,2}"), f"a whole number from 1 to {page.MAX_PAGE_SIZE}"),
}


def _known(request: Request) -> None:
    """Refuse an address that no record can have, and a question that makes no sense."""
    for name, value in request.path_params.items():
        if not _PARTS[name].fullmatch(value):
            raise HTTPException(404, _NOTHING)
    for name, (pattern, allowed) in _ASKED.items():
        given = request.query_params.getlist(name)
        if len(given) > 1:
            raise HTTPException(422, f"{name} is given {len(given)} times. Allowed: once.")
        if given and not pattern.fullmatch(given[0]):
            raise HTTPException(422, f"{name} can't be {given[0][:80]!r}. Allowed: {allowed}.")


def _gallery_queries() -> GalleryQueries:
    root = settings.root()
    files = Files(AIRFLOW_OPENERS, allowed_roots=[root, *settings.gallery_roots()], setting="gallery_roots")
    return GalleryQueries(Ledger(open_store(root, AIRFLOW_OPENERS)), settings.namespace(), files)


def _reads(dag_id: str | None = None) -> Any:
    """Airflow's own check whether a user may read a DAG's XComs; by default the DAG of the request's path."""
    return requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM, param_dag_id=dag_id)


def _has_its_team(dag_id: str) -> None:
    """Refuse a DAG that was deleted, if teams decide who may read what."""
    if conf.getboolean("core", "multi_team", fallback=False) and DagModel.get_dagmodel(dag_id) is None:
        raise HTTPException(404, "Airflow has no such DAG any more, so nobody can say which team may see its images.")


def _may_read(request: Request, user: Any, dag_id: str) -> bool:
    if not _PARTS["dag_id"].fullmatch(dag_id):  # no DAG's id: one that was cut, or whoever made its folder
        return False
    try:
        _reads(dag_id)(request, user)
        _has_its_team(dag_id)
    except HTTPException:
        return False
    return True


QueriesDep = Annotated[GalleryQueries, Depends(_gallery_queries)]
per_dag = APIRouter(dependencies=[Depends(_reads()), Depends(_known), Depends(_has_its_team)])
pages = APIRouter()


@pages.api_route("/", methods=READ)
def index() -> Response:
    """The page."""
    return HTMLResponse(page.PAGE, headers={"Content-Security-Policy": _PAGE_POLICY})


@pages.api_route(f"/{routes.STATIC.path}", methods=READ)
def static(version: str, name: str) -> Response:
    """A module of the page's script, or its style, of the version that is installed."""
    if version != page.VERSION or name not in page.FILES:
        raise HTTPException(404, _NOTHING)
    kind = page.MEDIA_TYPES[PurePath(name).suffix]
    return Response(page.FILES[name], media_type=kind, headers={"Cache-Control": _FOR_EVER})


@pages.api_route(f"/{routes.DAGS.path}", methods=READ)
def dags(request: Request, user: GetUserDep, queries: QueriesDep) -> dict[str, Any]:
    """The DAGs that have images, or will have, and that this user may read."""
    return {"dags": [dag_id for dag_id in queries.dags() if _may_read(request, user, dag_id)]}


@per_dag.api_route(f"/{routes.IMAGES.path}", methods=READ)
def images(
    dag_id: str,
    run_id: str,
    queries: QueriesDep,
    task_id: str | None = None,
    map_index: int | None = None,
    model: str | None = None,
    standing: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=page.MAX_PAGE_SIZE)] = page.PAGE_SIZE,
) -> dict[str, Any]:
    """A run's records, some at a time."""
    items, following = queries.page(RecordFilter(dag_id, run_id, task_id, map_index, model, standing), after, limit)
    return {"items": items, "next": following}


@per_dag.api_route(f"/{routes.SUMMARY.path}", methods=READ)
def summary(
    dag_id: str, run_id: str, queries: QueriesDep, task_id: str | None = None, map_index: int | None = None
) -> dict[str, Any]:
    """What a run's records come to."""
    return queries.summary(RecordFilter(dag_id, run_id, task_id, map_index))


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
) -> dict[str, Any]:
    """The images that one was made from; those of another DAG only where the user may read that DAG, too."""
    record = queries.record(Address(dag_id, run_id, task_id, map_index, item, n))

    def shown(place: int, source: Mapping[str, str]) -> dict[str, Any]:
        role = "source" if place == 0 and record.operation == "edit" else "reference"
        about = {"role": role, "name": source["uri"].rpartition("/")[2], "image": None, "why": None}
        made = queries.made(source)
        if made is None:
            return {**about, "why": "It was not made here, or lies where the gallery may not read."}
        of = address_of(made[0].key)
        if of.dag_id != dag_id and not _may_read(request, user, of.dag_id):
            return {**about, "why": "It belongs to a DAG that you may not read."}
        names = {"dag_id": of.dag_id, "run_id": of.run_id, "task_id": of.task_id, "map_index": of.map_index}
        return {**about, "image": {**names, **queries.shown(*made)}}

    return {"sources": [shown(place, source) for place, source in enumerate(record.inputs[:MAX_SOURCES])]}


@per_dag.api_route(f"/{routes.IMAGE.path}", methods=READ)
def image(
    request: Request,
    queries: QueriesDep,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    item: str,
    n: int,
    index: int,
) -> Response:
    """An image's bytes, as they are in storage."""
    record = queries.record(Address(dag_id, run_id, task_id, map_index, item, n))
    return _image(request, queries, record, index)


@per_dag.api_route(f"/{routes.THUMBNAIL.path}", methods=READ)
def thumbnail(
    request: Request,
    queries: QueriesDep,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    item: str,
    n: int,
    index: int,
) -> Response:
    """An image's thumbnail; the image itself where there is none."""
    record = queries.record(Address(dag_id, run_id, task_id, map_index, item, n))
    queries.image(record, index)
    blob = queries.ledger.store.read(thumbnail_key(record.key, index), MAX_THUMBNAIL_BYTES)
    if blob is None or len(blob.data) > MAX_THUMBNAIL_BYTES:
        return _image(request, queries, record, index)
    return _answer(request, blob.data, blob.version)


def _image(request: Request, queries: GalleryQueries, record: Record, index: int) -> Response:
    *places, last = queries.places(record, index)
    for image in places:
        with contextlib.suppress(GeminiImageError):  # gone, or outside what the gallery may read: another place may do
            return _landed(request, queries, image)
    return _landed(request, queries, last)


def _landed(request: Request, queries: GalleryQueries, image: Mapping[str, Any]) -> Response:
    data = queries.files.read(str(image["uri"]), max_bytes=MAX_IMAGE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != image.get("sha256"):
        raise InvalidImageError("The file is not the image that landed there: somebody replaced it.")
    return _answer(request, data, digest)


def _answer(request: Request, data: bytes, version: str) -> Response:
    """The answer with these bytes, which were inspected before they were stored; or that the client has them."""
    # Whoever logs in next in the same browser asks anew.
    headers = {"Cache-Control": "private, max-age=600", "Vary": "Cookie, Authorization"}
    headers["ETag"] = f'"{version.strip(chr(34))}"'
    if _is_known(headers["ETag"], ",".join(request.headers.getlist("if-none-match"))):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type_of(data) or inspect_image(data).media_type, headers=headers)


def _is_known(tag: str, known: str) -> bool:
    """Whether `tag` is one of those that a client has: several, weak ones, or any (RFC 9110, 13.1.2)."""
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
    return JSONResponse({"detail": f"These can't be: {', '.join(names)}."}, 422)


def make_app() -> FastAPI:
    """The gallery as an application of its own, to be mounted in Airflow's API server."""
    app = FastAPI(title="Images", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(pages)
    app.include_router(per_dag)
    app.middleware("http")(_with_headers)
    app.add_exception_handler(GeminiImageError, _failed)
    app.add_exception_handler(RequestValidationError, _misspelt)
    return app
