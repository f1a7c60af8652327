"""Storage faults: a bucket that refuses, is gone, is slow or falls silent, and a disk that is full.

What must stay true: faults are made outside of the package, in front of the S3 server or in the operating system's
answer to `os.fsync`; it begins with the first write that the test names, and lasts until the test ends it.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from tests.harness.moto import WsgiApp

Writes = Callable[[str, bytes], bool]
"""Whether a write, by its path and content, is one that the trouble is about."""
Kind = Literal["denied", "missing", "slow", "silent", "plain"]

_CHECKSUMS = ("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_SDK_CHECKSUM")
_ANSWERS = {
    "denied": ("403 Forbidden", "AccessDenied"),
    "missing": ("404 Not Found", "NoSuchBucket"),
    "silent": ("503 Service Unavailable", "SlowDown"),
    "plain": ("400 Bad Request", "InvalidArgument"),
}


class BucketFaults:
    """The middleware; give it to `start_moto`.

    ``denied``: those writes are refused. ``missing``: from the first of them on the bucket is gone. ``slow``: the first
    of them is done, and its answer comes only after the client has given up and asked again. ``silent``: the first of
    them is done, and from then on nothing is answered. ``plain``: those writes are refused with a checksum header.
    """

    _kind: Kind | None
    _writes: Writes

    def __init__(self) -> None:
        self.end()

    def begin(self, kind: Kind, writes: Writes) -> None:
        self._kind, self._writes = kind, writes

    def end(self) -> None:
        """All is well again."""
        self._kind = None
        self._writes = lambda path, body: False
        self._begun = False
        self._asked_again = threading.Event()

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def troubled(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            hit = environ["REQUEST_METHOD"] == "PUT" and self._writes(environ["PATH_INFO"], body)
            if self._kind == "plain":
                hit = hit and any(name.startswith(_CHECKSUMS) for name in environ)
            first, self._begun = hit and not self._begun, self._begun or hit
            if self._kind == "slow" and hit:
                return self._slow(app, first)(environ, start_response)
            if self._kind == "silent" and first:
                app(environ, lambda *_: None)
            if hit or (self._begun and self._kind in ("missing", "silent")):
                return _failure(self._kind, start_response)
            return app(environ, start_response)

        return troubled

    def _slow(self, app: WsgiApp, first: bool) -> WsgiApp:
        def late(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            answered: list[tuple[Any, ...]] = []
            content = list(app(environ, lambda *args: answered.append(args)))
            if first:
                assert self._asked_again.wait(30)
            self._asked_again.set()
            start_response(*answered[0])
            return content

        return late


class DiskFaults:
    """An `os.open` and an `os.fsync`, for the module `os`, with which the disk has no space for some writes."""

    def __init__(self) -> None:
        self._open, self._fsync = os.open, os.fsync
        self._paths: dict[int, str] = {}
        self._writes: Writes
        self.end()

    def begin(self, writes: Writes) -> None:
        self._writes = writes

    def end(self) -> None:
        """There is space again."""
        self._writes = lambda path, body: False

    def open(self, path: Any, flags: int, *args: Any, **more: Any) -> int:
        handle = self._open(path, flags, *args, **more)
        self._paths[handle] = os.fspath(path)
        return handle

    def fsync(self, handle: int) -> None:
        path = Path(self._paths[handle])
        if path.is_file() and self._writes(str(path), path.read_bytes()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(handle)


def _failure(kind: Kind | None, start_response: Any) -> Iterable[bytes]:
    status, code = _ANSWERS[str(kind)]
    body = f"<Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
