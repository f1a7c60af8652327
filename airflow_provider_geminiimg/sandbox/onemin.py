"""Imitation of 1min.ai, by its documentation and public clients, including its irregularities.

Invariants: fields that a model does not support are accepted, ignored, and listed as ignored. A result is a storage key
and one signed link. Every error has the documented body.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from airflow_provider_geminiimg.sandbox.faults import outcome_of
from airflow_provider_geminiimg.sandbox.images import PIXELS, Input, read_input, shape
from airflow_provider_geminiimg.sandbox.state import Box, Job, Order, Refused, account_of, json_object

GENERATE, EDIT = "IMAGE_GENERATOR", "IMAGE_EDITOR"
OPERATIONS = {GENERATE: "generate", EDIT: "edit"}
_COMMON = frozenset({"prompt", "imageSize", "temperature", "topP"})
_IMAGES = ("imageUrl", "referenceImage1", "referenceImage2")

# (model family, operation) -> the promptObject fields that have an effect.
FIELDS: dict[tuple[str, str], frozenset[str]] = {
    ("3.1", GENERATE): _COMMON | {"aspectRatio"},
    ("3.1", EDIT): _COMMON | {"aspectRatio", *_IMAGES},
    ("3-pro", GENERATE): _COMMON,
    ("3-pro", EDIT): _COMMON | set(_IMAGES),
    **{(new, GENERATE): _COMMON | {"aspectRatio"} for new in ("lite", "2.1")},
    **{(new, EDIT): _COMMON | {"aspectRatio", *_IMAGES} for new in ("lite", "2.1")},
    ("2.5", GENERATE): frozenset({"prompt"}),
    ("2.5", EDIT): frozenset({"prompt", *_IMAGES}),
}
# (model id, operation) -> family. The editor of 2.5 has its own id.
MODELS: dict[tuple[str, str], str] = {
    **{(f"gemini-3.1-flash-image{tail}", kind): "3.1" for tail in ("", "-preview") for kind in OPERATIONS},
    **{(f"gemini-3-pro-image{tail}", kind): "3-pro" for tail in ("", "-preview") for kind in OPERATIONS},
    **{("gemini-3.1-flash-lite-image", kind): "lite" for kind in OPERATIONS},
    **{("gemini-nano-banana-2.1", kind): "2.1" for kind in OPERATIONS},
    ("gemini-2.5-flash-image", GENERATE): "2.5",
    ("gemini-2.5-flash-image-preview", EDIT): "2.5",
}
SIZES = {
    "3.1": ("512", "1K", "2K", "4K"),
    **dict.fromkeys(("3-pro", "2.1"), ("1K", "2K", "4K")),
    **dict.fromkeys(("2.5", "lite"), ("1K",)),
}
# Invented, because 1min publishes no prices: Google's list price in credits of 0.00001 USD.
CREDITS = {
    "3.1": {"512": 4480, "1K": 6720, "2K": 10080, "4K": 15120},
    "lite": {"1K": 3360},
    "2.1": {"1K": 3360, "2K": 5040, "4K": 11340},
    "3-pro": {"1K": 13400, "2K": 13400, "4K": 24000},
    "2.5": {"1K": 3900},
}
TEAM_CREDITS = 100_000_000

# status -> (errorCode, message): the answer of a queued fault without a body.
ERRORS: dict[int, tuple[str, str]] = {
    400: ("UNKNOWN_ERROR", "Unsupported feature type"),
    401: ("HTTP_EXCEPTION", "Api Key is not active"),
    406: ("INSUFFICIENT_CREDITS", "The feature requires more credits than the team has"),
    429: ("HTTP_EXCEPTION", "ThrottlerException: Too Many Requests"),
    500: ("INTERNAL_SERVER_ERROR", "Internal server error"),
}
CLOUDFLARE = "<!DOCTYPE html><html><head><title>api.1min.ai | {status}: A timeout occurred</title></head></html>"


def error_body(code: str, message: str, details: Any = None) -> dict[str, Any]:
    return {
        "errorCode": code,
        "message": message,
        "details": None if details is None else json.dumps(details),
        "context": None,
    }


def refused(status: int, code: str, message: str, details: Any = None) -> Refused:
    return Refused(status, error_body(code, message, details))


def default_body(status: int) -> Any:
    """Return the error body of a status, for a queued fault without a body."""
    if status > 500:
        return CLOUDFLARE.format(status=status)
    return error_body(*ERRORS.get(status, ERRORS[400]))


def upstream(message: str, truth: str) -> Refused:
    """Return an error of the model behind the gateway. The message says "busy" even for a permanent error; the details
    have the real reason.
    """
    return refused(400, "EXTERNAL_API_RESPONSE_WITH_ERROR", message, {"error": {"code": 400, "message": truth}})


def router(box: Box) -> APIRouter:
    """Return the routes under ``/api``."""
    routes = APIRouter(prefix="/api")

    @routes.post("/features")
    async def submit(request: Request) -> Response:
        account = _account(request)
        order, wants_async = await _read_order(box, request, account)
        if not box.can_pay(order):
            return _no_credits(box)
        honoured = wants_async and box.settings.honour_async
        job = box.accept(replace(order, mode="async" if honoured else "sync"), job_id=_new_uuid())
        if not honoured:
            await job.finish(box.settings.sync_gives_up)
            if not job.done:
                job.order = replace(job.order, mode="async")
            elif job.failed:
                raise _failure(job)
        return JSONResponse(record(box, job, _base(request)))

    @routes.get("/results/{uuid}")
    async def result(uuid: str, request: Request) -> Response:
        account = _account(request)
        job = box.jobs.get(uuid)
        if job is None or job.order.gateway != "1min" or job.order.account != account:
            return JSONResponse({"aiRecord": None})
        return JSONResponse(record(box, job, _base(request)))

    @routes.post("/assets")
    async def upload(request: Request) -> Response:
        _account(request)
        return JSONResponse(await _store_upload(box, request))

    return routes


def public_router(box: Box) -> APIRouter:
    """Return the list of models. It needs no key, and is empty without a feature."""
    routes = APIRouter()

    @routes.get("/models")
    async def models(feature: str = "") -> Response:
        ids = [model for model, kind in MODELS if kind == feature and box.settings.serves(model)]
        listed = [
            {"modelId": model, "name": model, "provider": "google", "status": "ACTIVE", "features": [feature]}
            for model in ids
        ]
        return JSONResponse({"models": listed, "total": len(listed)})

    return routes


async def _store_upload(box: Box, request: Request) -> dict[str, Any]:
    """Store the uploaded file and return the body that 1min answers with."""
    async with request.form() as form:
        part = form.get("asset")
        if not isinstance(part, UploadFile):
            raise refused(400, "MISSING_REQUIRED_FIELDS", "No file in the field asset", ["asset"])
        key = box.store_asset(part.filename or "asset", await part.read())
    return {
        "asset": {"key": key, "location": f"https://s3.us-east-1.amazonaws.com/asset.1min.ai/{key}"},
        "fileContent": {"uuid": _new_uuid(), "path": key},
    }


def _account(request: Request) -> str:
    key = request.headers.get("api-key", "")
    if not key or key.startswith("bad"):
        raise refused(401, *ERRORS[401])
    return account_of(key)


def _base(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers['host']}"


def _new_uuid() -> str:
    """Return an id like the vendor's samples, which are not hexadecimal UUIDs."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "-".join("".join(secrets.choice(letters) for _ in range(n)) for n in (8, 4, 4, 4, 12))


def _no_credits(box: Box) -> Response:
    code, message = ERRORS[406]
    if box.settings.balance_error == "plain":
        return JSONResponse(error_body(code, message), 406)
    refusal = {"code": code, "message": message}
    return JSONResponse({"aiRecord": {"status": "FAILURE", "aiRecordDetail": {"resultObject": refusal}}})


async def _read_order(box: Box, request: Request, account: str) -> tuple[Order, bool]:
    body = await json_object(request)
    if body is None:
        raise refused(400, "MISSING_REQUIRED_FIELDS", "The body is not a JSON object", ["type", "model"])
    wanted = body.get("promptObject")
    wanted = wanted if isinstance(wanted, dict) else {}
    kind, model = str(body.get("type")), str(body.get("model"))
    if kind not in OPERATIONS:
        raise refused(400, *ERRORS[400])
    if not box.settings.serves(model):
        raise refused(400, "UNSUPPORTED_MODEL", "The model is not supported", {"model": model, "type": kind})
    family = MODELS.get((model, kind)) or _guess_family(model, kind)
    _require(wanted, ("prompt", "imageUrl") if kind == EDIT else ("prompt",))
    known = FIELDS[family, kind]
    fields = {name: value for name, value in wanted.items() if name in known and name != "prompt"}
    ignored = sorted([*(set(wanted) - known), *(set(body) - {"type", "model", "promptObject", "async"})])
    size = _check_values(family, fields)
    inputs = await _inputs(box, fields)
    ratio = str(fields.get("aspectRatio") or (inputs[0].ratio if inputs else None) or "1:1")
    outcome = outcome_of(request.state)
    if outcome == "wrong_size":
        size, ratio = "512", "1:1" if ratio != "1:1" else "16:9"
    extension = "webp" if family == "2.5" else "jpg" if kind == EDIT else "png"
    return Order(
        gateway="1min",
        route="onemin.submit",
        account=account,
        operation=OPERATIONS[kind],
        model=model,
        prompt=str(wanted["prompt"]),
        fields=fields,
        ignored=ignored,
        shape=shape(size, ratio, extension, printed=box.settings.printed_sizes),
        inputs=inputs,
        price=Decimal(CREDITS[family][str(fields.get("imageSize") or "1K")]),
        currency="credits",
        outcome=outcome,
    ), body.get("async") is True


def _guess_family(model: str, kind: str) -> str:
    """Return the family of an unknown model. Ids newer than this package are accepted; ids of other vendors are not."""
    known = {name for name, _ in MODELS}
    if model in known or not (model.startswith("gemini-") and "image" in model):
        raise refused(400, "UNSUPPORTED_MODEL", "The model is not supported", {"model": model, "type": kind})
    return "3.1"


def _require(wanted: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if not isinstance(wanted.get(name), str) or not wanted[name].strip()]
    if missing:
        raise refused(400, "MISSING_REQUIRED_FIELDS", "Required fields are missing", {"missingFields": missing})


def _check_values(family: str, fields: Mapping[str, Any]) -> str:
    """Return the image size. Values that the model refuses are an error without a charge."""
    size = fields.get("imageSize", "1K")
    if size not in SIZES[family]:
        raise upstream("The model is busy, please try again", f"image_size must be one of {SIZES[family]}")
    if str(fields.get("aspectRatio", "1:1")) not in PIXELS:
        raise upstream("The model is busy, please try again", "aspect_ratio is not supported")
    for name, top in (("temperature", 2), ("topP", 1)):
        value = fields.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= top:
            raise upstream("The model is busy, please try again", f"{name} must be between 0 and {top}")
    return str(size)


async def _inputs(box: Box, fields: Mapping[str, Any]) -> tuple[Input, ...]:
    found = []
    for name in _IMAGES:
        if name not in fields:
            continue
        data = box.assets.get(str(fields[name]))
        if data is None:
            raise upstream("Something went wrong, please try again", f"{name}: no such asset")
        try:
            found.append(await asyncio.to_thread(read_input, data))
        except ValueError:
            raise upstream("Something went wrong, please try again", f"{name}: not an image") from None
    return tuple(found)


def reason(job: Job) -> str | None:
    """Return the model's reason for a failed job; ``None`` for a failure without a reason."""
    return {
        "refused": "The request was blocked: PROHIBITED_CONTENT",
        "refused_echo": f"The request was blocked: PROHIBITED_CONTENT. Your prompt: {job.order.prompt}",
        "failed": "Upstream model error: INTERNAL",
    }.get(job.order.outcome)


def _failure(job: Job) -> Refused:
    truth = reason(job)
    if truth is None:
        return refused(400, "EXTERNAL_API_RESPONSE_WITH_ERROR", "Something went wrong, please try again")
    return upstream("The model is busy, please try again", truth)


def record(box: Box, job: Job, base_url: str) -> dict[str, Any]:
    """Return the answer to a submit or a poll for the current state of the job."""
    order = job.order
    status = "PROCESSING" if not job.done else "FAILURE" if job.failed else "SUCCESS"
    detail: dict[str, Any] = {
        "promptObject": {"prompt": order.prompt, **order.fields},
        "resultObject": [],
        "responseObject": {},
    }
    link = None
    if status == "SUCCESS" and order.outcome != "no_image":
        detail["resultObject"] = _result_object(box, job.key)
        link = box.signed_link(base_url, job.key)
    elif status == "FAILURE" and (why := reason(job)):
        # Both places occur in practice.
        if job.number % 2:
            detail["resultObject"] = [why]
        else:
            detail["errorMessage"] = why
    answer = {
        "uuid": job.job_id,
        "userId": f"user-{order.account}",
        "teamId": f"team-{order.account}",
        "teamUser": _team(box, job),
        "model": order.model,
        "type": GENERATE if order.operation == "generate" else EDIT,
        "status": status,
        "createdAt": datetime.fromtimestamp(job.created, timezone.utc).isoformat().replace("+00:00", "Z"),
        "aiRecordDetail": detail,
        "additionalData": None,
    }
    top: dict[str, Any] = {"aiRecord": answer}
    if link:
        (top if box.settings.link_place == "top" else answer)["temporaryUrl"] = link
    return top


def _team(box: Box, job: Job) -> dict[str, Any]:
    return {
        "teamId": f"team-{job.order.account}",
        "status": "ACTIVE",
        "creditLimit": TEAM_CREDITS if box.settings.credits is None else box.settings.credits,
        # It is one call behind: this job is not included yet.
        "usedCredit": int(box.spent("1min") - (job.order.price if job.charged else 0)),
    }


def _result_object(box: Box, key: str) -> Any:
    shapes: dict[str, Any] = {
        "list": [key],
        "string": key,
        "images": {"images": [key]},
        "output": {"output": [key]},
        "mixed": [{"key": key}, key],
    }
    return shapes[box.settings.result_object]
