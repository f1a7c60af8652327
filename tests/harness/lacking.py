"""An S3 server that lacks something under some paths: it refuses, or does not heed, what S3 takes.

What must stay true: what is lacking is lacking from the first request on, for every request like it; all else is
moto's.

    store = LackingStore()
    with start_moto(store) as url:
        store.lack(*LACKS["checksum headers (400)"], under="/bucket/out")
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

from tests.harness.moto import WsgiApp

Request = dict[str, Any]
Matches = Callable[[Request, int], bool]
"""Whether a request, by its WSGI environment and the length of its body, is one that is not done."""


def has_header(*starts: str) -> Matches:
    """Requests with a header that starts so, as WSGI spells it."""
    return lambda request, size: any(name.startswith(starts) for name in request)


def is_put(*, content_type: str = "", ends: str = "", larger: int = -1) -> Matches:
    """Uploads of one object, but not of parts of one."""
    return lambda request, size: (
        request["REQUEST_METHOD"] == "PUT"
        and "uploadId" not in request["QUERY_STRING"]
        and request.get("CONTENT_TYPE", "").startswith(content_type)
        and request["PATH_INFO"].endswith(ends)
        and size > larger
    )


def is_method(*methods: str) -> Matches:
    """Requests for one object with one of these methods."""
    return lambda request, size: request["REQUEST_METHOD"] in methods


class LackingStore:
    """The middleware; give it to `start_moto`."""

    def __init__(self) -> None:
        self.mend()

    def mend(self) -> None:
        """Nothing is lacking."""
        self.under = ""
        self._refused: list[tuple[Matches, int, str]] = []
        self._unheeded: list[str] = []
        self.puts: list[str] = []
        self.encrypts = False  # then an ETag is no MD5
        self.corrupts = False  # then what comes without a checksum is stored with other bytes
        self.unquoted = False  # then an ETag in quotes is none that it knows, as in Ceph

    def refuse(self, matches: Matches, status: int, code: str, *, under: str) -> None:
        """Answer such requests with an error, without doing them."""
        self.under = under
        self._refused.append((matches, status, code))

    def ignore(self, header: str, *, under: str) -> None:
        """Take a header, and do as if it were not there."""
        self.under = under
        self._unheeded.append(header)

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def lacking(environ: Request, start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if self.corrupts and "HTTP_X_AMZ_CHECKSUM_SHA256" not in environ:
                environ["HTTP_X_AMZ_CONTENT_SHA256"] = "UNSIGNED-PAYLOAD"
                body = b"x" * len(body)
            environ["wsgi.input"] = io.BytesIO(body)
            if self.under and environ["PATH_INFO"].startswith(self.under):
                for matches, status, code in self._refused:
                    if matches(environ, len(body)):
                        return _refusal(environ, start_response, status, code)
                for header in self._unheeded:
                    environ.pop(header, None)
            if self.unquoted and (version := environ.get("HTTP_IF_MATCH")):
                if version.startswith('"'):
                    self.puts.append(environ["PATH_INFO"])
                    return _refusal(environ, start_response, 412, "PreconditionFailed")
                environ["HTTP_IF_MATCH"] = f'"{version}"'
            if environ["REQUEST_METHOD"] == "PUT":
                self.puts.append(environ["PATH_INFO"])
            if self.encrypts:
                if "HTTP_IF_MATCH" in environ:
                    environ["HTTP_IF_MATCH"] = environ["HTTP_IF_MATCH"].replace("no-md5-", "")
                return app(environ, _with_another_etag(start_response))
            return app(environ, start_response)

        return lacking


def _with_another_etag(start_response: Any) -> Any:
    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        changed = [(name, f'"no-md5-{value[1:]}' if name.lower() == "etag" else value) for name, value in headers]
        return start_response(status, changed, *rest)

    return start


def _refusal(environ: Request, start_response: Any, status: int, code: str) -> Iterable[bytes]:
    body = f"<Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>".encode()
    if environ["REQUEST_METHOD"] == "HEAD":
        body = b""
    start_response(f"{status} Refused", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
