"""Which addresses can be asked at all: found out before anybody is.

Clients take a URL apart piece by piece while they send it, and what breaks then (Punycode that means nothing, a label
that no resolver takes) is raised in the middle of a call. What must stay true: whatever passes here breaks no parser,
resolver or TLS handshake later.
"""

from __future__ import annotations

import ipaddress
import re

import httpx

_LONGEST_NAME = 253  # of a host, RFC 1035
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # once encoded; parsers don't agree on what else may stand in a host


def is_usable(url: str | httpx.URL) -> bool:
    """Whether every part of `url` can be sent, and its host looked up."""
    try:
        parsed = httpx.URL(url)
        name = parsed.raw_host.decode("ascii").strip("[]")
        if len(name) > _LONGEST_NAME:  # before its parts are looked at, of which it may have thousands
            return False
        _ = parsed.netloc, name.encode("idna")  # which measures labels
        if ":" not in name:
            _ = [httpx.URL(scheme="https", host=label).host for label in name.split(".") if label]  # reads Punycode
        known = _NAME.fullmatch(name) is not None or ipaddress.IPv6Address(name).scope_id is None
    except Exception:  # whatever the parsers raise
        return False
    return known
