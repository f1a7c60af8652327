"""Hosts that a gateway's answer may name: one that no link may reach, hostile ones, and an internet in a box.

What must stay true: nothing of the package is replaced. Servers are real, with real TLS; what is played is the world
around them: which addresses a name has (`socket.getaddrinfo`), and where a public address leads (a loop's connect).
Whoever is connected to is noted before anything else happens.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.http.tls import tls_context

Route = Callable[[BaseHTTPRequestHandler], None]

PUBLIC = "8.8.8.8"  # a public address that the names of an `Internet` have


class Host:
    """An HTTP server in a thread that does what its routes say and remembers who came.

    `routes` are by path; `otherwise` answers every other path. `requests` are paths and headers, in their order;
    `connections` counts who connected, whether or not a request followed; `sent` counts the bytes that `pour` wrote.
    """

    def __init__(self, context: ssl.SSLContext | None = None, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.routes: dict[str, Route] = {}
        self.otherwise: Route | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self.sent = 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                host.connections += 1
                super().setup()

            def do_GET(self) -> None:
                host.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                left = int(self.headers.get("Content-Length", 0))
                while piece := self.rfile.read(min(left, 65_536)):  # which takes no memory
                    left -= len(piece)
                route = host.routes.get(self.path.partition("?")[0], host.otherwise)
                assert route is not None, f"no route for {self.path}"
                with contextlib.suppress(OSError):
                    route(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        self._server = Server((address, port), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def pour(self, piece: bytes, pause: float = 0.0) -> Route:
        """A route whose body has no end: `piece` over and over, until the client has gone."""

        def route(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            gone = threading.Event()
            while not gone.wait(pause):
                handler.wfile.write(piece)
                self.sent += len(piece)

        return route

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(status: int = 200, body: bytes = b"picture", **headers: str) -> Route:
    """A route with this status, body and headers; a header of value "" is left out."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return route


def as_json(value: Any, status: int = 200, **headers: str) -> Route:
    """A route that answers with this value."""
    return answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)


def done(link: str, *keys: str) -> dict[str, Any]:
    """The answer of either gateway to a poll: the job is done, and its image is behind `link`.

    :param keys: the storage keys beside it, where the gateway names them.
    """
    return {
        "aiRecord": {
            "status": "SUCCESS",
            "aiRecordDetail": {"resultObject": list(keys) or ["out/picture.png"]},
            "temporaryUrl": link,
        },
        "data": {"status": "succeeded", "result": {"images": [{"url": link}]}},
    }


class Forbidden:
    """What stands inside: a server on this machine's loopback addresses that no link may reach."""

    def __init__(self) -> None:
        self._hosts = [Host()]
        self.port, self.url = self._hosts[0].port, self._hosts[0].url
        with contextlib.suppress(OSError):  # a machine without IPv6 has nothing there to be reached
            self._hosts.append(Host(address="::1", port=self.port))
        for host in self._hosts:
            host.otherwise = answer(body=b"what stands inside")

    @property
    def hits(self) -> int:
        """Connections, on all of its addresses."""
        return sum(host.connections for host in self._hosts)

    def close(self) -> None:
        for host in self._hosts:
            host.close()


class Internet:
    """What a link's host name leads to, and every address that was connected to.

    `names` are host names with the answers to one look-up after the other; the last answer stays. `hosts` are public
    addresses and the port on 127.0.0.1 of the server that stands for each. A connection to any other address that is
    not this machine's is refused, so that no test leaves the machine.

    `asked` are the names that were looked up, `reached` the addresses that were connected to, both in their order.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.hosts: dict[str, int] = {}
        self.asked: list[str] = []
        self.reached: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        look_up, connect = socket.getaddrinfo, BaseSelectorEventLoop.sock_connect

        def getaddrinfo(name: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if name not in self.names:
                return look_up(name, port, *args, **kwargs)
            self.asked.append(name)
            answers = self.names[name]
            found = answers.pop(0) if len(answers) > 1 else answers[0]
            return [(_family(each), socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

        async def sock_connect(loop: Any, sock: socket.socket, address: Any) -> None:
            self.reached.append(address[0])
            if address[0] in self.hosts:
                address = ("127.0.0.1", self.hosts[address[0]])
            elif not ipaddress.ip_address(address[0]).is_loopback:
                raise ConnectionRefusedError(f"{address[0]} is not in this box")
            await connect(loop, sock, address)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def certificate(folder: Path, names: Sequence[str]) -> Path:
    """A certificate for `names` that signs itself, with its key, as one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{names[0]}.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextlib.contextmanager
def trusted(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[ssl.SSLContext]:
    """TLS for servers of these names, which this process trusts within this block."""
    pem = certificate(folder, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    tls_context.cache_clear()
    try:
        yield context
    finally:
        tls_context.cache_clear()


@pytest.fixture
def host() -> Iterator[Host]:
    """A host that a test may give routes to."""
    server = Host()
    yield server
    server.close()


@pytest.fixture
def forbidden() -> Iterator[Forbidden]:
    """A host inside that no link may reach."""
    server = Forbidden()
    yield server
    server.close()
    assert server.hits == 0


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    """An internet in a box, empty."""
    made = Internet()
    made.install(monkeypatch)
    return made


@pytest.fixture
def tls_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Host, list[str | None]]]:
    """An https server for ``pictures.test`` whose certificate is trusted, and the names that clients asked it for."""
    asked: list[str | None] = []
    with trusted(tmp_path, monkeypatch, "pictures.test") as context:
        context.sni_callback = lambda _socket, name, _context: asked.append(name)
        server = Host(context)
        yield server, asked
        server.close()
