"""Keeps links out of what the HTTP libraries log about our requests.

httpx logs every URL, its signature included, at INFO; httpcore logs response headers, a redirect's `Location`
included, at DEBUG. What must stay true: what these loggers say inside `quiet_http()` names no query and no header
value; what anybody else's requests say there is left alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
from collections.abc import Iterator

import httpx

_LOGGERS = ("httpx", *(f"httpcore.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))
_show_path: contextvars.ContextVar[bool | None] = contextvars.ContextVar("geminiimg_quiet_http", default=None)
# httpcore writes "<event> <name>=<repr> …"; of those only where it connects to is both useful and free of secrets.
_HARMLESS = re.compile(r"\b(?:host|port|timeout)=(?:'[^']*'|[\d.]+)")


@contextlib.contextmanager
def quiet_http(*, show_path: bool = True) -> Iterator[None]:
    """Take URL queries and header values out of what httpx and httpcore log within this block.

    :param show_path: whether a URL's path may stay; not where the path itself may be the secret.
    """
    token = _show_path.set(show_path)
    try:
        yield
    finally:
        _show_path.reset(token)


def _quieten(record: logging.LogRecord) -> bool:
    show_path = _show_path.get()
    if show_path is None:
        return True
    if record.name == "httpx":
        url = next((arg for arg in record.args or () if isinstance(arg, httpx.URL)), None)
        status = next((arg for arg in record.args or () if isinstance(arg, int)), "")
        record.msg, record.args = "HTTP request to %s: %s", (_bare(url, show_path) if url else "?", status)
    else:
        event = record.getMessage()
        record.msg, record.args = " ".join([event.partition(" ")[0], *_HARMLESS.findall(event)]), ()
    return True


def _bare(url: httpx.URL, show_path: bool) -> str:
    netloc = url.netloc.decode("ascii", "replace")
    return f"{url.scheme}://{netloc}{url.path if show_path else '/…'}"


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_quieten)
