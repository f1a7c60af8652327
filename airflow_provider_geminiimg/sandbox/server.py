"""Runs the sandbox in a thread of this process (`Sandbox`), or in the foreground (`serve`).

Invariants: it listens before its port is announced. It stops within a second, even with held calls. It logs nothing
from requests. No browser treats an answer as a page that may run scripts, or shows it inside another page.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Collection
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_provider_geminiimg.sandbox.app import make_app
from airflow_provider_geminiimg.sandbox.client import SandboxClient
from airflow_provider_geminiimg.sandbox.images import require_pillow
from airflow_provider_geminiimg.sandbox.state import Box, Settings

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)
"""Headers of every answer, including those of faults, whose bodies are arbitrary."""


class _Protocol(H11Protocol):
    """Puts the connection's transport where the application finds it, so that it can cut the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `Config(access_log=False)` is undone by whoever configures logging later, and links hold signatures.
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}

    def send_400_response(self, msg: str) -> None:
        """As its own, with the headers of every answer."""
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        events = (
            h11.Response(status_code=400, headers=headers + self.server_state.default_headers, reason=b"Bad Request"),
            h11.Data(data=msg.encode("ascii")),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, box: Box, hosts: Collection[str]) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(box, hosts),
                http=_Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                headers=list(HEADERS),
                timeout_keep_alive=60,
                timeout_graceful_shutdown=1,
            )
        )
        self.box = box
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.box.faults.reset()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off; without it every answer takes 40 ms more.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(2048)
    return sock


def _url(host: str, sock: socket.socket) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{sock.getsockname()[1]}"


class Sandbox(SandboxClient):
    """A sandbox in a thread of this process, and a context manager.

    :param latency: duration of a job in seconds.
    :param port: 0 selects a free port.
    :param settings: further fields of `airflow_provider_geminiimg.sandbox.state.Settings`.
    :raises ImportError: Pillow is missing.
    """

    def __init__(self, *, latency: float = 0.2, port: int = 0, **settings: Any) -> None:
        require_pillow()
        self._server = _Server(Box(Settings(latency=latency, **settings)), LOCAL_HOSTS)
        self._socket = _listen("127.0.0.1", port)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="geminiimg-sandbox", daemon=True
        )
        super().__init__(_url("127.0.0.1", self._socket))

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()
        if not self._server.ready.wait(30):
            raise RuntimeError("The sandbox did not start within 30 seconds.")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self.close()


def serve(*, host: str, port: int, allow_hosts: Collection[str], settings: Settings) -> None:
    """Run in the foreground until interrupted. Prints one line with the address and an example connection.

    :param host: the address to listen on.
    :param port: 0 selects a free port.
    :param allow_hosts: permitted host names in addition to the local ones and `host`.
    :raises ImportError: Pillow is missing.
    """
    require_pillow()
    sock = _listen(host, port)
    client = SandboxClient(_url(host, sock))
    server = _Server(Box(settings), {*LOCAL_HOSTS, host.lower(), *(name.lower() for name in allow_hosts)})
    print(
        f"sandbox {client.url} 1min={client.onemin_url} apimaster={client.apimaster_url} "
        f"connect: airflow connections add geminiimg_default --conn-json '{client.connection_json('1min')}' "
        f"(or host {client.apimaster_url} and gateway apimaster)",
        flush=True,
    )
    client.close()
    with contextlib.suppress(KeyboardInterrupt):
        server.run([sock])
