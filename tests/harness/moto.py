"""S3 in this process, over HTTP, whose conditional writes are atomic.

moto checks `If-None-Match` and stores the object in two steps; with its own threaded server 2 of 100 races of eight
claimants had two winners. So requests are let through to moto one at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


def one_at_a_time(app: WsgiApp) -> WsgiApp:
    """`app`, each of whose requests is over before the next begins."""
    lock = threading.Lock()

    def serialized(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length:  # a slow sender must not keep the others out
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with lock:
            return list(app(environ, start_response))

    return serialized


@contextlib.contextmanager
def start_moto(around: Callable[[WsgiApp], WsgiApp] | None = None) -> Iterator[str]:
    """An empty S3 on a free port of the loopback interface; gives its endpoint URL, for `AWS_ENDPOINT_URL`.

    Buckets live in moto's memory, which all servers of one process share: take a fresh bucket name for each test.

    :param around: a WSGI middleware in front of it, for a test that wants other answers.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, around(app) if around else app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="moto", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def age_object(bucket: str, key: str, seconds: float) -> None:
    """Make an object of the server in this process older: it says that it was written so many seconds earlier."""
    stored = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys[key]
    stored.last_modified -= timedelta(seconds=seconds)
