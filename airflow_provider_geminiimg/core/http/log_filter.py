"""Removes URLs' queries and header values from the log lines of httpx and httpcore.

httpx logs every URL with its signature at INFO; httpcore logs response headers, such as the `Location` of a redirect,
at DEBUG. What must stay true: inside `quiet_http()` these loggers write no query and no header value; outside of it
their log lines are unchanged.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
from collections.abc import Iterator

import httpx

_LOGGERS = ("httpx", *(f"httpcore.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))
_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("geminiimg_quiet_http", default=False)
# httpcore logs "<event> <name>=<repr> …"; only these values are useful and contain no secret.
_HARMLESS = re.compile(r"\b(?:host|port|timeout)=(?:'[^']*'|[\d.]+)")


@contextlib.contextmanager
def quiet_http() -> Iterator[None]:
    """Context manager: remove URL queries and header values from the log lines of httpx and httpcore."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _quieten(record: logging.LogRecord) -> bool:
    if not _quiet.get():
        return True
    if record.name == "httpx":
        url = next((arg for arg in record.args or () if isinstance(arg, httpx.URL)), None)
        status = next((arg for arg in record.args or () if isinstance(arg, int)), "")
        record.msg, record.args = "HTTP request to %s: %s", (_bare(url) if url else "?", status)
    else:
        event = record.getMessage()
        record.msg, record.args = " ".join([event.partition(" ")[0], *_HARMLESS.findall(event)]), ()
    return True


def _bare(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_quieten)
