"""Imitation of APIMaster.ai, by its documentation and public clients, including its irregularities.

Invariants: an invalid ratio is a 500. A poll with another model, or without one, finds nothing. Failed jobs are
refunded. A synchronous call that the gateway stops waiting for leaves a job that is charged when it ends.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from airflow_provider_geminiimg.sandbox.faults import outcome_of
from airflow_provider_geminiimg.sandbox.images import PIXELS, Input, Sketch, Studio, read_input, shape
from airflow_provider_geminiimg.sandbox.state import Box, Job, Order, Refused, account_of, json_object

FIELDS = frozenset({"model", "prompt", "size", "resolution", "n", "image_urls", "google_search", "google_image_search"})
MODELS = (
    "gemini-3.1-flash-image-preview",
    "gemini-3.1-flash-image",
    "gemini-3-pro-image-preview",
    "gemini-3-pro-image",
    "gemini-3.1-flash-lite-image",
    "gemini-nano-banana-2.1",
)
POLLED_WITHOUT_MODEL = "another-model"
MAX_REFERENCES = 14
RESOLUTIONS = {"0.5K": "512", "1K": "1K", "2K": "2K", "4K": "4K"}
SIZES = {"gemini-3.1-flash-lite-image": ("1K",), "gemini-nano-banana-2.1": ("1K", "2K", "4K")}
# The documented multipliers on the recorded base of about 0.0672 USD.
BASE = Decimal("0.0672")
MULTIPLIERS = {"512": Decimal(1), "1K": Decimal(1), "2K": Decimal(4) / Decimal(3), "4K": Decimal(2)}

# status -> (type, code, message): the answer of a queued fault without a body.
ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "invalid_parameter", "Invalid parameter"),
    401: ("authentication_error", "invalid_api_key", "Invalid token"),
    402: ("insufficient_quota", "insufficient_balance", "Insufficient balance"),
    403: ("new_api_error", "insufficient_user_quota", "User quota is not enough"),
    404: ("invalid_request_error", "model_not_found", "The model is not enabled"),
    408: ("upstream_timeout", "poll_timeout", "Timed out waiting for the image, use the async endpoint"),
    429: ("rate_limit_error", "rate_limit_exceeded", "Too many requests"),
    500: ("upstream_error", "bad_response_status_code", "Upstream error"),
    502: ("upstream_error", "image_generation_failed", "Image generation failed"),
    503: ("new_api_error", "model_not_available", "No available channel for this model"),
}


def error_body(status: int, message: str | None = None, *, code: str | None = None, param: str = "") -> dict[str, Any]:
    kind, default_code, default_message = ERRORS.get(status, ERRORS[500])
    said = f"{message or default_message} (request id: {_request_id()})"
    return {"error": {"message": said, "type": kind, "param": param, "code": code or default_code}}


def refused(status: int, message: str | None = None, *, code: str | None = None, param: str = "") -> Refused:
    return Refused(status, error_body(status, message, code=code, param=param))


def _request_id() -> str:
    return time.strftime("%Y%m%d%H%M%S") + secrets.token_hex(6)


def router(box: Box, studio: Studio) -> APIRouter:
    """Return the routes under ``/v1``."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/images/generations/async")
    async def submit(request: Request) -> Response:
        order = await _read_order(box, studio, request, "apimaster.submit")
        if not box.settings.honour_async:
            job = await _made(box, order)
            return JSONResponse(_maybe_code(box, job, {"data": _finished(box, job, _base(request))}))
        job = _buy(box, replace(order, mode="async"))
        return JSONResponse(_maybe_code(box, job, {"data": [{"status": "submitted", "task_id": job.job_id}]}))

    @routes.post("/images/generations")
    async def submit_sync(request: Request) -> Response:
        job = await _made(box, await _read_order(box, studio, request, "apimaster.submit_sync"))
        images = _finished(box, job, _base(request))
        if _alternate(box.settings.sync_shape, job, "data", "task") == "task":
            return JSONResponse(poll_body(box, job, _base(request)))
        return JSONResponse({"created": int(job.ready_at), "data": images})

    @routes.get("/tasks/{task_id}")
    async def status(task_id: str, request: Request) -> Response:
        account = _account(request)
        job = box.jobs.get(task_id)
        model = request.query_params.get("model", POLLED_WITHOUT_MODEL)
        if job is None or job.order.account != account or job.order.model != model or job.hidden:
            raise refused(404, "task_not_exist", code="task_not_exist", param="task_id")
        return JSONResponse(poll_body(box, job, _base(request)))

    @routes.get("/models")
    async def models(request: Request) -> Response:
        _account(request)
        served = [name for name in MODELS if box.settings.serves(name)]
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in served]})

    @routes.post("/chat/completions")
    async def chat() -> Response:
        return JSONResponse(error_body(400, "Use the Images API for this model"), 400)

    return routes


def _account(request: Request) -> str:
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip() or key.strip().startswith("bad"):
        raise refused(401)
    return account_of(key.strip())


def _base(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers['host']}"


def _buy(box: Box, order: Order, *, hidden: bool = False) -> Job:
    if not box.can_pay(order):
        raise refused(402 if box.settings.balance_error == "plain" else 403)
    return box.accept(order, job_id=f"task_{secrets.token_hex(13).upper()}", hidden=hidden)


async def _made(box: Box, order: Order) -> Job:
    """Return the finished job of a synchronous call. After too long, the job becomes hidden and the answer is a 408."""
    patience = box.settings.sync_gives_up
    job = _buy(box, replace(order, mode="sync"), hidden=box.settings.latency > patience)
    await job.finish(patience)
    if job.hidden:
        raise refused(408)
    return job


def _alternate(setting: str, job: Job, odd: str, even: str) -> str:
    if setting != "alternate":
        return setting
    return odd if job.number % 2 else even


def _maybe_code(box: Box, job: Job, body: dict[str, Any]) -> dict[str, Any]:
    if _alternate(box.settings.submit_code, job, "always", "never") == "always":
        return {"code": 200, **body}
    return body


async def _read_order(box: Box, studio: Studio, request: Request, route: str) -> Order:
    account = _account(request)
    body = await json_object(request)
    if body is None:
        raise refused(400, "The body is not a JSON object")
    model, prompt = body.get("model"), body.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise refused(400, "prompt is required", param="prompt")
    if not isinstance(model, str) or not (model in MODELS or _looks_newer(model)):
        raise refused(404, param="model")
    if not box.settings.serves(model):
        raise refused(404, param="model")
    resolution = _check_values(body)
    if resolution not in SIZES.get(model, RESOLUTIONS.values()):
        raise refused(400, f"resolution is not supported by {model}", param="resolution")
    inputs = await _inputs(box, studio, body.get("image_urls"))
    size = str(body.get("size") or (inputs[0].ratio if inputs else None) or "1:1")
    if size not in PIXELS:
        raise refused(500)
    outcome = outcome_of(request.state)
    price = (BASE * MULTIPLIERS[resolution]).quantize(Decimal("0.0001"))
    if outcome == "wrong_size":
        resolution, size = "512", "1:1" if size != "1:1" else "16:9"
    fields = {name: value for name, value in body.items() if name in FIELDS - {"prompt", "model", "image_urls"}}
    return Order(
        gateway="apimaster",
        route=route,
        account=account,
        operation="edit" if inputs else "generate",
        model=model,
        prompt=prompt,
        fields=fields,
        ignored=sorted(set(body) - FIELDS),
        shape=shape(resolution, size, "png", printed=box.settings.printed_sizes),
        inputs=inputs,
        price=price,
        currency="USD",
        outcome=outcome,
    )


def _looks_newer(model: str) -> bool:
    """Return whether an unknown id is accepted. Ids newer than this package are; 2.5 is not enabled here."""
    return model.startswith("gemini-") and "image" in model and not model.startswith("gemini-2")


def _check_values(body: Mapping[str, Any]) -> str:
    """Check the values of a request, and return its resolution in the package's notation."""
    if "n" in body and (isinstance(body["n"], bool) or body["n"] != 1 or not isinstance(body["n"], int)):
        raise refused(400, "n must be the number 1", param="n")
    resolution = RESOLUTIONS.get(str(body.get("resolution", "1K")).upper())
    if resolution is None:
        raise refused(400, "resolution must be one of 0.5K, 1K, 2K, 4K", param="resolution")
    for name in ("google_search", "google_image_search"):
        if not isinstance(body.get(name, False), bool):
            raise refused(400, f"{name} must be a boolean", param=name)
    if body.get("google_image_search") and not body.get("google_search"):
        raise refused(400, "google_image_search requires google_search", param="google_image_search")
    return resolution


async def _inputs(box: Box, studio: Studio, urls: Any) -> tuple[Input, ...]:
    if urls is None:
        return ()
    if not isinstance(urls, Sequence) or isinstance(urls, str) or len(urls) > MAX_REFERENCES:
        raise refused(400, f"image_urls must be a list of at most {MAX_REFERENCES}", param="image_urls")
    return tuple([await _input(box, studio, str(url)) for url in urls])


async def _input(box: Box, studio: Studio, url: str) -> Input:
    data = None
    if url.startswith("data:"):
        head, _, body = url.partition(",")
        try:
            data = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
        except binascii.Error:
            raise refused(400, "image_urls: a data URI is broken", param="image_urls") from None
    elif not url.startswith(("http://", "https://")):
        raise refused(400, "image_urls: neither a URL nor a data URI", param="image_urls")
    elif job := box.job_of_key(unquote(urlsplit(url).path).lstrip("/").removeprefix("asset.1min.ai/")):
        data = await asyncio.to_thread(studio.image, sketch(job))
    if data is None:
        # The sandbox fetches nothing: the address itself represents the image.
        return Input(hashlib.sha256(url.encode()).hexdigest(), "text/uri-list")
    try:
        return await asyncio.to_thread(read_input, data)
    except ValueError:
        raise refused(400, "image_urls: not an image", param="image_urls") from None


def sketch(job: Job) -> Sketch:
    """Return the values for drawing the image of a job, of either gateway."""
    order = job.order
    return Sketch(job.number, order.model, order.prompt, order.shape, tuple(order.inputs))


def failure(job: Job) -> dict[str, Any] | None:
    """Return the error of a failed task; ``None`` for a failure without a reason."""
    moderation = "Your request was rejected by the safety system"
    if job.order.outcome == "refused_echo":
        moderation += f": {job.order.prompt}"
    # A moderation error is nested: a text that contains another error.
    nested = json.dumps({"error": {"code": "moderation_blocked", "message": moderation, "type": "image_error"}})
    refusal = {"code": "bad_response", "message": f"upstream answered: {nested}", "type": "upstream_error"}
    return {
        "refused": refusal,
        "refused_echo": refusal,
        "failed": {"code": "image_generation_failed", "message": "upstream task failed", "type": "upstream_error"},
    }.get(job.order.outcome)


def _finished(box: Box, job: Job, base_url: str) -> list[dict[str, Any]]:
    """Return the images of a synchronous call."""
    if job.failed:
        error = failure(job) or {}
        raise refused(502, error.get("message"), code=error.get("code"))
    return [] if job.order.outcome == "no_image" else [{"url": box.plain_link(base_url, job.key)}]


def poll_body(box: Box, job: Job, base_url: str) -> dict[str, Any]:
    """Return a task's envelope for the current state of the job, in one of its formats."""
    shape_name = _alternate(box.settings.poll_shape, job, "succeeded", "completed")
    if shape_name.startswith("new_api"):
        return _task_row(box, job, base_url, "result_url" if shape_name == "new_api" else "fail_reason")
    rich = shape_name == "completed"
    data: dict[str, Any] = {"id": job.job_id, "progress": job.progress()} if rich else {}
    if not job.done:
        return _envelope(rich, {**data, "status": "in_progress"})
    data = {"id": job.job_id, "progress": 100} if rich else {}
    if job.failed:
        error = failure(job)
        return _envelope(rich, {**data, "status": "failed", **({"error": error} if error else {})})
    expires = int(job.ready_at) + box.settings.link_seconds
    images: list[dict[str, Any]] = []
    if job.order.outcome != "no_image":
        url = box.plain_link(base_url, job.key)
        images = [{"url": [url], "expires_at": expires}] if rich else [{"url": url}]
    if rich:
        data |= {"cost": float(job.order.price), "expires_at": expires}
    return _envelope(rich, {**data, "status": shape_name, "result": {"images": images}})


def _task_row(box: Box, job: Job, base_url: str, link_field: str) -> dict[str, Any]:
    """Return a task as new-api writes it, with its own status words, a numeric ``id``, and reasons as JSON text."""
    row: dict[str, Any] = {"id": job.number, "task_id": job.job_id, "status": "QUEUED", "fail_reason": ""}
    if job.done:
        error = failure(job) if job.failed else None
        row |= {"status": "FAILURE" if job.failed else "SUCCESS", "progress": "100%"}
        row["fail_reason"] = json.dumps({"error": error}) if error else ""
    if job.done and not job.failed and job.order.outcome != "no_image":
        row[link_field] = box.plain_link(base_url, job.key)
    return {"code": "success", "message": "", "data": row}


def _envelope(rich: bool, data: dict[str, Any]) -> dict[str, Any]:
    return {"code": 200, "data": data} if rich else {"data": data}
