"""Recognizes URLs whose host cannot be resolved or encoded, before any request is sent.

HTTP clients parse parts of a URL only while they send it, and then raise in the middle of a call (for example for
invalid Punycode or a label that is too long). What must stay true: a URL that passes here causes no error in a parser,
resolver or TLS handshake.
"""

from __future__ import annotations

import ipaddress
import re

import httpx

_LONGEST_NAME = 253  # characters of a host name (RFC 1035)
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # an encoded host name; parsers differ about other characters


def is_usable(url: str | httpx.URL) -> bool:
    """Whether every part of `url` can be sent and its host can be resolved."""
    try:
        parsed = httpx.URL(url)
        name = parsed.raw_host.decode("ascii").strip("[]")
        if len(name) > _LONGEST_NAME:  # checked first, because a longer name may have thousands of labels
            return False
        _ = parsed.netloc, name.encode("idna")  # raises for a label that is too long
        if ":" not in name:
            _ = [httpx.URL(scheme="https", host=label).host for label in name.split(".") if label]  # decodes Punycode
        known = _NAME.fullmatch(name) is not None or ipaddress.IPv6Address(name).scope_id is None
    except Exception:  # whatever the parsers raise
        return False
    return known
