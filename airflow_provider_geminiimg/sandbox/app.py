"""The sandbox's web application: access checks, call list and faults, in front of the two gateways.

Invariants: the call list contains every call of a gateway, without key and query. A dropped call gets no byte of an
answer. Requests with a host name that is not allowed, or from web pages of another origin, are refused.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_provider_geminiimg.sandbox import apimaster, onemin
from airflow_provider_geminiimg.sandbox.faults import Fault, Frame
from airflow_provider_geminiimg.sandbox.images import Studio
from airflow_provider_geminiimg.sandbox.routes import route_of
from airflow_provider_geminiimg.sandbox.state import Box, Refused

# The documented body for a fault that has a status only.
DEFAULT_BODIES: dict[str, Callable[[int], Any]] = {
    "onemin": onemin.default_body,
    "apimaster": apimaster.error_body,
}

_OWN_SITES = ("same-origin", "none")  # "none": the user typed the address
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::[0-9]*)?")


@dataclass
class Answer:
    """A complete response, which faults may change before it is sent."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


class Front:
    """The middleware in front of both gateways.

    :param hosts: permitted host names in ``Host``.
    """

    def __init__(self, app: ASGIApp, box: Box, hosts: Collection[str]) -> None:
        self.app, self.box, self.hosts = app, box, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        route = route_of(scope["method"], scope["path"])
        refusal = self._refusal(scope["method"], headers, route)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if route is None:
            await self.app(scope, receive, send)
            return
        call = self._note(scope, headers, route)
        body = await _read(receive)
        fault = self.box.faults.take(route, body)
        answer = await self._answer(scope, body, route, fault)
        call["seconds"] = round(time.time() - call["time"], 4)
        if answer is None:
            call["dropped"] = True
            self.box.touch()
            await _abort(scope, receive)
            return
        call["status"] = answer.status
        self.box.touch()
        if fault is not None and fault.frame is not None:
            await _reply_misframed(scope, receive, send, answer, fault.frame)
        else:
            await _reply(scope, receive, send, answer, None if fault is None else fault.cut_after)

    def _refusal(self, method: str, headers: Headers, route: str | None) -> Response | None:
        """Return the refusal of a request that may come from a web page of another origin; ``None`` for any other
        request.
        """
        host = headers.get("host", "")
        if _hostname(host) not in self.hosts:
            return _refused("This host name is not served here (--allow-host).", 400)
        # A browser sends the origin of the page. Another port of this machine is another origin, and "same-site".
        origins = headers.getlist("origin")
        sites = headers.getlist("sec-fetch-site")
        if any(not _is_own(origin, host) for origin in origins) or any(site not in _OWN_SITES for site in sites):
            return _refused("Pages of another origin may not ask here. Open the address itself.", 403)
        is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
        if route is None and method not in ("GET", "HEAD") and not is_json:  # what a form or a script sends unasked
            return _refused("Send it as JSON, with the header Content-Type: application/json.", 415)
        return None

    def _note(self, scope: Scope, headers: Headers, route: str) -> dict[str, Any]:
        call = {
            "method": scope["method"],
            "route": route,
            "path": scope["path"],
            "client_port": (scope.get("client") or ("", 0))[1],
            "user_agent": headers.get("user-agent", ""),
            "with_key": "api-key" in headers or "authorization" in headers,
            "time": time.time(),
            "seconds": None,
            "status": None,
            "dropped": False,
        }
        self.box.calls.append(call)
        self.box.touch()
        return call

    async def _answer(self, scope: Scope, body: bytes, route: str, fault: Fault | None) -> Answer | None:
        """Return the answer; ``None`` to close the connection."""
        if fault is None:
            return await self._ask(scope, body)
        scope["state"]["outcome"] = fault.outcome
        answer = await self._ask(scope, body) if fault.charge == "after" else None
        if fault.hold and not await self.box.faults.hold(route):
            return None
        await asyncio.sleep(fault.delay)
        if fault.drop:
            return None
        if fault.answers:
            answer = _own_answer(fault)
        elif answer is None:
            answer = await self._ask(scope, body)
        answer.headers += [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
        return answer

    async def _ask(self, scope: Scope, body: bytes) -> Answer:
        """Return the gateway's own answer."""
        answer = Answer()
        chunks: list[bytes] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], list(message["headers"])
            elif message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))

        await self.app(scope, receive, send)
        answer.body = b"".join(chunks)
        return answer


def _hostname(host: str) -> str:
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _is_own(origin: str, host: str) -> bool:
    """Return whether a page of `origin` was served under this host and port, by this server or by a proxy in front of
    it.
    """
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(parts.scheme)  # one that is said and one that is left out are the same
    return port is not None and parts.netloc.lower().removesuffix(port) == host.lower().removesuffix(port)


def _refused(text: str, status: int) -> Response:
    return Response(f"{text}\n", status, media_type="text/plain")


def _own_answer(fault: Fault) -> Answer:
    status = 200 if fault.status is None else fault.status
    body = fault.body
    if body is None and status >= 400:
        default = DEFAULT_BODIES.get(fault.route.partition(".")[0])
        body = default(status) if default else None
    if isinstance(body, str) or body is None:
        data, kind = (body or "").encode(), "text/html; charset=utf-8"
    else:
        data, kind = json.dumps(body).encode(), "application/json"
    named = {name.lower() for name in fault.headers}
    headers = [(b"content-length", str(len(data)).encode())]
    if "content-type" not in named:
        headers.append((b"content-type", kind.encode()))
    return Answer(status, headers, data)


async def _read(receive: Receive) -> bytes:
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return b"".join(chunks)


async def _reply(scope: Scope, receive: Receive, send: Send, answer: Answer, cut_after: int | None) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    if cut_after is None or cut_after >= len(answer.body):
        await send({"type": "http.response.body", "body": answer.body})
        return
    await send({"type": "http.response.body", "body": answer.body[:cut_after], "more_body": True})
    await _abort(scope, receive, flush=True)


async def _reply_misframed(scope: Scope, receive: Receive, send: Send, answer: Answer, frame: Frame) -> None:
    """Send the complete body in a broken frame."""
    body, headers = answer.body, [header for header in answer.headers if header[0] != b"content-length"]
    if frame == "gzip":
        body = gzip.compress(body)[:-8] + b"\0" * 8
        headers += [(b"content-encoding", b"gzip"), (b"content-length", str(len(body)).encode())]
    elif frame != "chunked":
        headers.append((b"content-length", str(len(body) + 100).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": frame != "gzip"})
    if frame == "reset":
        linger = struct.pack("ii", 1, 0)
        scope["state"]["transport"].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    if frame == "open":
        await receive()
    elif frame != "gzip":
        await _abort(scope, receive, flush=True)


async def _abort(scope: Scope, receive: Receive, *, flush: bool = False) -> None:
    """Close the connection. The server's protocol class puts its transport into the scope's state."""
    transport: asyncio.Transport = scope["state"]["transport"]
    if flush:
        transport.close()
    else:
        transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def make_app(box: Box, hosts: Collection[str]) -> Front:
    """Create the complete application."""
    studio = Studio()
    app = FastAPI(title="geminiimg sandbox", openapi_url=None)
    app.include_router(onemin.router(box))
    app.include_router(onemin.public_router(box))
    app.include_router(apimaster.router(box, studio))
    app.include_router(_downloads(box, studio))
    app.include_router(_views(box), prefix="/_sandbox")
    app.include_router(_actions(box), prefix="/_sandbox")

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse(error.body, error.status)

    return Front(app, box, hosts)


def _downloads(box: Box, studio: Studio) -> APIRouter:
    routes = APIRouter()

    async def image(key: str) -> Response:
        job = box.job_of_key(key)
        if job is None or not job.done or job.failed:
            return Response("<html><body><h1>404 Not Found</h1></body></html>", 404, media_type="text/html")
        data = await asyncio.to_thread(studio.image, apimaster.sketch(job))
        return Response(data, media_type=job.order.shape.media_type)

    @routes.get("/asset.1min.ai/{key:path}")
    async def signed(key: str, request: Request) -> Response:
        query = request.query_params
        date, expires = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        if query.get("X-Amz-Signature", "") != box.signature(key, date, expires):
            return _s3_error("SignatureDoesNotMatch", "The request signature we calculated does not match.")
        start = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
        if time.time() >= start + int(expires):
            return _s3_error("AccessDenied", "Request has expired")
        return await image(key)

    @routes.get("/imgs/{name}")
    async def plain(name: str) -> Response:
        job = box.job_of_key(f"imgs/{name}")
        if job is not None and time.time() >= job.ready_at + box.settings.link_seconds:
            return Response("<html><body><h1>404 Not Found</h1></body></html>", 404, media_type="text/html")
        return await image(f"imgs/{name}")

    return routes


def _s3_error(code: str, message: str) -> Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(body, 403, media_type="application/xml")


def _views(box: Box) -> APIRouter:
    """Routes that tests and demos read."""
    routes = APIRouter()

    @routes.get("/ledger")
    async def ledger() -> list[dict[str, Any]]:
        return [job.entry() for job in box.jobs.values()]

    @routes.get("/calls")
    async def calls(route: str | None = None, count: int = 0, wait: bool = False, timeout: float = 30) -> Any:
        def found() -> list[dict[str, Any]]:
            return [call for call in box.calls if route in (None, call["route"])]

        if wait:
            await box.until(lambda: len(found()) >= count, timeout)
        return found()

    @routes.get("/links")
    async def links() -> Any:
        return list(box.links)

    @routes.get("/held")
    async def held(count: int = 1, wait: bool = False, timeout: float = 30) -> Any:
        if wait:
            await box.until(lambda: len(box.faults.held()) >= count, timeout)
        return {"held": len(box.faults.held()), "routes": box.faults.held()}

    @routes.get("/faults")
    async def waiting() -> Any:
        return box.faults.waiting()

    @routes.get("/settings")
    async def settings() -> Any:
        return box.settings

    return routes


def _actions(box: Box) -> APIRouter:
    """Routes that tests and demos use to control the sandbox."""
    routes = APIRouter()

    @routes.post("/release")
    async def release() -> Any:
        return {"released": box.faults.release()}

    @routes.post("/faults")
    async def faults(request: Request) -> Response:
        try:
            given = json.loads(await request.body())
            for item in [Fault(**one) for one in (given if isinstance(given, list) else [given])]:
                box.faults.add(item)
        except (ValueError, TypeError) as error:
            return _unprocessable(error)
        return JSONResponse(box.faults.waiting())

    @routes.post("/settings")
    async def change(request: Request) -> Response:
        try:
            box.change(json.loads(await request.body()))
        except (ValueError, TypeError) as error:
            return _unprocessable(error)
        return JSONResponse(box.settings.model_dump(mode="json"))

    @routes.post("/reset")
    async def reset() -> Any:
        box.reset()
        return {"reset": True}

    return routes


def _unprocessable(error: Exception) -> Response:
    detail = (
        error.errors(include_url=False, include_context=False) if isinstance(error, ValidationError) else str(error)
    )
    return JSONResponse({"detail": detail}, 422)
