"""Recognizes responses of proxies, firewalls and CDNs about a request that never reached the gateway.

What must stay true: the response itself must prove it. A page that may have been written after the gateway processed
the request (a bare 408, 429, 500, 502, 503 or 504, Cloudflare's 520 to 524, a Worker's 11xx) does not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_geminiimg.core.gateways.rules import Rule
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    RateLimitedError,
    UpstreamFailedError,
)

_BEFORE = "was not reached: a proxy or CDN in front of it"
_HOST = "Check the host of the Airflow connection, then clear the task."

CHALLENGE = Rule(
    UpstreamFailedError,
    f"{_BEFORE} requires a browser (a challenge page).",
    hint="A retry may succeed. If it does not, ask the gateway's support to allow the workers' IP addresses.",
)
CDN_RATE = Rule(RateLimitedError, f"{_BEFORE} limits the request rate.")
CDN = Rule(
    UpstreamFailedError,
    f"{_BEFORE} did not forward the request.",
    hint="A retry may succeed. If it does not, ask the gateway's support, with the code or page of the response.",
)
FIREWALL = Rule(
    UpstreamFailedError,
    "was not reached: a firewall or proxy in front of it refused to forward the request.",
    retryable=False,
    hint="Check whether the workers' IP addresses may use the gateway and whether a firewall blocks the prompt, then "
    "clear the task.",
)
TOO_LARGE = Rule(
    BadRequestError,
    f"{_BEFORE} does not forward a request of this size.",
    hint="Send smaller or fewer input images or a shorter prompt, then clear the task.",
)
WRONG_PLACE = Rule(BadRequestError, f"{_BEFORE} does not accept this request at this address.", hint=_HOST)
PROXY_LOGIN = Rule(
    AuthenticationError,
    "was not reached: the proxy of the workers' network requires a login.",
    hint="Configure the user and password of the workers' proxy, then clear the task.",
)
REDIRECT = Rule(BadRequestError, "was not reached: its address redirects elsewhere.", hint=_HOST)

# Responses of proxies before they forward a request, by status; only if the body is not the gateway's own JSON.
_PAGES: Mapping[int, Rule] = {
    **dict.fromkeys((403, 451), FIREWALL),
    **dict.fromkeys((413, 414, 431, 494), TOO_LARGE),
    **dict.fromkeys((405, 411, 417, 421, 426, 495, 496, 497), WRONG_PLACE),
    **dict.fromkeys((407, 511), PROXY_LOGIN),
    530: CDN,  # Cloudflare: the gateway's origin server could not be resolved
}
# The same, if the page shows that a web server wrote the response itself.
_SERVER_PAGES: Mapping[int, Rule] = {**dict.fromkeys((400, 404), WRONG_PLACE), 429: CDN_RATE}
_SERVER_PAGE = re.compile(rb"<center>\s{0,20}(nginx|openresty|tengine|angie)\b", re.IGNORECASE)
_NO_TLS = (525, 526)  # Cloudflare: no TLS connection to the gateway's origin server

# Headers that no gateway sends: the response is a challenge, whatever its status.
_CHALLENGES = {
    "cf-mitigated": ("challenge",),
    "x-amzn-waf-action": ("challenge", "captcha"),
    "x-vercel-mitigated": ("challenge",),
}
# Marks of the challenge page alone: Cloudflare adds a script to every page.
_CHALLENGE_PAGE = re.compile(rb"_cf_chl_opt|\bcf-chl-|id=.challenge-form", re.IGNORECASE)
# Cloudflare's codes for requests that it did not forward. 1019 and 11xx may occur after a Worker forwarded it.
_CLOUDFLARE_CODES = frozenset(range(1000, 1100)) - {1019}
_RATE_CODE = 1015
_PLAIN_CODE = re.compile(rb"\s{0,20}error code:? (\d{4})\s{0,20}", re.IGNORECASE)
_PAGE_CODE = re.compile(r"\berror\s{0,20}(?:code)?:?\s{0,20}(\d{4})\b", re.IGNORECASE)
_SEARCHED = 50_000  # bytes of a page that are searched


def turned_away(
    status: int, headers: Mapping[str, str], content: bytes, body: Mapping[str, Any] | None, *, markup: bool
) -> Rule | None:
    """The rule for a response that proves that the request did not reach the gateway; ``None`` for any other response.

    :param status: the HTTP status.
    :param headers: the headers; names in lower case.
    :param content: the response body.
    :param body: the JSON object in the body; ``None`` if it is not one.
    :param markup: whether the body is a web page.
    """
    page = b"" if body is not None else content[:_SEARCHED]
    if is_challenge(headers) or (markup and status in (403, 429, 503) and _CHALLENGE_PAGE.search(page)):
        return CHALLENGE
    if not (400 <= status < 500 or status in (*_NO_TLS, 511, 530)):
        return None
    code = _cloudflare_code(headers, page, body)
    if code in _CLOUDFLARE_CODES:
        return CDN_RATE if code == _RATE_CODE else FIREWALL if status == 403 else CDN
    if body is not None:
        return None
    if status in _NO_TLS and _is_cloudflare(headers, page):
        return CDN
    if markup and status in _SERVER_PAGES and _SERVER_PAGE.search(page):
        return _SERVER_PAGES[status]
    return None if status == 403 and not markup else _PAGES.get(status)


def is_challenge(headers: Mapping[str, str]) -> bool:
    """Whether the headers mark the response as a browser challenge, whatever its status."""
    return any(headers.get(name, "").strip().lower() in values for name, values in _CHALLENGES.items())


def _cloudflare_code(headers: Mapping[str, str], page: bytes, body: Mapping[str, Any] | None) -> int | None:
    if body is not None:
        code = body.get("error_code") if body.get("cloudflare_error") is True else None
        return code if isinstance(code, int) else None
    if plain := _PLAIN_CODE.fullmatch(page):
        return int(plain[1])
    if not _is_cloudflare(headers, page):
        return None
    found = _PAGE_CODE.search(re.sub(r"<[^<>]*>", " ", page.decode("utf-8", "replace")))
    return int(found[1]) if found else None


def _is_cloudflare(headers: Mapping[str, str], page: bytes) -> bool:
    named = headers.get("server", "").strip().lower() == "cloudflare" or "cf-ray" in headers
    return named or b"cloudflare" in page.lower()
