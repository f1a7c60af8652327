"""Airflow's API server with a login, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

USERS = {"admin": "ADMIN", "ursula": "USER", "vera": "VIEWER", "norole": None}


@contextmanager
def api_server() -> Iterator[TestClient]:
    """The server; its client's base is the gallery."""
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from starlette.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        users = ",".join(f"{name}:{role or ''}" for name, role in USERS.items())
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "False")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", users)
        patch.setenv("AIRFLOW__API__SECRET_KEY", "s" * 32)
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "j" * 64)
        purge_cached_app()
        yield TestClient(create_app("core"), base_url="http://testserver/geminiimg/")
    purge_cached_app()


def gallery_app() -> Any:
    """The gallery alone, asked by a user who may see everything; needs `api_server`, whose login decides that."""
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user

    from airflow_provider_geminiimg.gallery.app import make_app

    app = make_app()
    app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="admin", role="ADMIN")
    return app


async def ask_raw(app: Any, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes]:
    """What an application answers to a GET whose address is not made fit by any client: status and body."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", b"testserver"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    status, body = 0, b""
    events = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(events, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    await app(scope, receive, send)
    return status, body


@contextmanager
def over_http(client: TestClient) -> Iterator[str]:
    """The address of the server of `api_server`, on a free port."""
    import threading

    import uvicorn

    server = uvicorn.Server(uvicorn.Config(client.app, port=0, lifespan="off", log_level="warning"))
    listening = server.config.bind_socket()
    listening.listen()  # so that nobody is refused until the server is ready
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def token_of(user: str) -> str:
    """An access token of one of `USERS`; needs `api_server`."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return str(get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=USERS[user])))
