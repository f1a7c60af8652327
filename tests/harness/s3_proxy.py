"""A proxy in front of the S3 server: holds a matching request before it is forwarded, or its answer after.

What must stay true: a request that is held keeps nobody else out; a test learns of it by an event, never after a time.

    s3_proxy = S3Proxy()
    with start_moto(s3_proxy) as url:
        held = s3_proxy.hold("PUT", "/ledger/", '"state":"submitted"')
        held.reached()      # waits for the request
        held.let_go()       # or held.drop(): as if it had never been sent
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

from tests.harness.moto import WsgiApp

PATIENCE = 120.0  # seconds that a test waits for a request


class Held:
    """One request that a test waits for. It is stopped once; later requests like it pass.

    :param method: HTTP method.
    :param path: text that the path must hold.
    :param body: text that the body must hold.
    :param when: stop it ``before`` it is forwarded, or stop its answer ``after``.
    """

    def __init__(self, method: str, path: str, body: str, when: Literal["before", "after"]) -> None:
        self.method, self.path, self.body, self.when = method, path, body.encode(), when
        self._reached = threading.Event()
        self._decided = threading.Event()
        self._dropped = False

    def matches(self, method: str, path: str, body: bytes) -> bool:
        return method == self.method and self.path in path and self.body in body

    def reached(self) -> Held:
        """Wait until the request is here."""
        assert self._reached.wait(PATIENCE), f"no {self.method} of {self.path!r} with {self.body!r} came"
        return self

    def let_go(self) -> None:
        """The request goes on, or its answer does; also one that has not come yet."""
        self._decided.set()

    def drop(self) -> None:
        """The request never arrives (or its answer does not): the caller gets a 503."""
        self._dropped = True
        self._decided.set()

    def stop_here(self) -> bool:
        """Wait for the test's word; whether to go on."""
        self._reached.set()
        self._decided.wait()
        return not self._dropped


class S3Proxy:
    """The middleware; give it to `start_moto`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Held] = []
        self._all: list[Held] = []

    def hold(self, method: str, path: str, body: str = "", *, when: Literal["before", "after"] = "before") -> Held:
        """Stop the next request like this."""
        held = Held(method, path, body, when)
        with self._lock:
            self._waiting.append(held)
            self._all.append(held)
        return held

    def open(self) -> None:
        """Let everything go on, for good."""
        with self._lock:
            self._waiting.clear()
        for held in self._all:
            held.let_go()

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def gated(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            held = self._take(environ["REQUEST_METHOD"], environ["PATH_INFO"], body)
            if held is None:
                return app(environ, start_response)
            if held.when == "before" and not held.stop_here():
                return _unavailable(start_response)
            answered: list[tuple[Any, ...]] = []
            content = list(app(environ, lambda *args: answered.append(args)))
            if held.when == "after" and not held.stop_here():
                return _unavailable(start_response)
            start_response(*answered[0])
            return content

        return gated

    def _take(self, method: str, path: str, body: bytes) -> Held | None:
        with self._lock:
            for held in self._waiting:
                if held.matches(method, path, body):
                    self._waiting.remove(held)
                    return held
        return None


def let_go_of_each(requests: Iterable[Held], then: Callable[[], object]) -> None:
    """Let each go on once it is here, one after the other, and then do what comes last, whatever happened."""
    try:
        for held in requests:
            held.reached().let_go()
    finally:
        then()


def _unavailable(start_response: Any) -> Iterable[bytes]:
    start_response("503 Service Unavailable", [("Content-Length", "0")])
    return [b""]
