"""Which server a connection leads to, and what proves that it is that server: for everything that opens a socket here.

What must stay true: two URLs have one origin only if scheme, host and port are the same as they go over the wire. A
decoded host is not compared: to decode one may raise, and what is decoded is not what is looked up.
"""

from __future__ import annotations

import functools
import ssl
from typing import TypeAlias

import httpx

DEFAULT_PORTS = {"https": 443, "http": 80}

Origin: TypeAlias = tuple[str, str, int | None]


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port of a URL; equal where they lead to the same server."""
    return url.scheme, url.raw_host.decode("ascii", "replace").lower(), url.port or DEFAULT_PORTS.get(url.scheme)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The process's one: it verifies certificates by ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` or else certifi's list.

    Making it takes about 20 ms, too much for an event loop that all triggers share: call it in a thread.
    """
    return httpx.create_ssl_context(trust_env=True)
