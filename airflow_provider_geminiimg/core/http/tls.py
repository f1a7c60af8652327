"""TLS settings and origins of URLs, for all connections of this package.

What must stay true: two URLs have the same origin only if scheme, host and port are equal as sent over the network.
Hosts are compared in encoded form, because decoding may raise and the encoded name is the one that is resolved.
"""

from __future__ import annotations

import functools
import ssl
from typing import TypeAlias

import httpx

DEFAULT_PORTS = {"https": 443, "http": 80}

Origin: TypeAlias = tuple[str, str, int | None]


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port of a URL."""
    return url.scheme, url.raw_host.decode("ascii", "replace").lower(), url.port or DEFAULT_PORTS.get(url.scheme)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The TLS context of the process. CA certificates: ``SSL_CERT_FILE``, ``SSL_CERT_DIR``, else certifi's list.

    The first call takes about 20 ms, so call it in a thread and not in the event loop.
    """
    return httpx.create_ssl_context(trust_env=True)
