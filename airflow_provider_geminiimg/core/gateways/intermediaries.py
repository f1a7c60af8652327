"""Recognises answers that were written in front of the gateway, about a request that never reached it.

What must stay true: only what the answer itself shows counts. A page that may as well have been written after the
gateway did its work (a bare 408, 429, 500, 502, 503 or 504, Cloudflare's 520 to 524, a Worker's 11xx) is none of these.
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

_BEFORE = "was not reached: what stands in front of it"
_HOST = "Check the host of the Airflow connection, then clear the task."

CHALLENGE = Rule(
    UpstreamFailedError,
    f"{_BEFORE} asks for a browser (a challenge page).",
    hint="A retry may pass. If it stays so, ask the gateway's support to let the workers' addresses through.",
)
CDN_RATE = Rule(RateLimitedError, f"{_BEFORE} limits the rate.")
CDN = Rule(
    UpstreamFailedError,
    f"{_BEFORE} did not pass the request on.",
    hint="A retry may pass. If it stays so, ask the gateway's support, with the code or page of the answer.",
)
FIREWALL = Rule(
    UpstreamFailedError,
    f"{_BEFORE} (a firewall or a proxy) refused to pass the request on.",
    retryable=False,
    hint="See whether the workers' addresses may use the gateway, and whether a firewall objects to the prompt; then "
    "clear the task.",
)
TOO_LARGE = Rule(
    BadRequestError,
    f"{_BEFORE} does not pass on a request of this size.",
    hint="Send smaller or fewer input images or a shorter prompt, then clear the task.",
)
WRONG_PLACE = Rule(BadRequestError, f"{_BEFORE} does not take this request at this address.", hint=_HOST)
PROXY_LOGIN = Rule(
    AuthenticationError,
    "was not reached: the network's own proxy asks for a login.",
    hint="Give the workers' proxy its user and password, then clear the task.",
)
REDIRECT = Rule(BadRequestError, "was not reached: its address redirects elsewhere.", hint=_HOST)

# What proxies answer before they pass a request on, by status; only where it is not the gateway's own JSON.
_PAGES: Mapping[int, Rule] = {
    **dict.fromkeys((403, 451), FIREWALL),
    **dict.fromkeys((413, 414, 431, 494), TOO_LARGE),
    **dict.fromkeys((405, 411, 417, 421, 426, 495, 496, 497), WRONG_PLACE),
    **dict.fromkeys((407, 511), PROXY_LOGIN),
    530: CDN,  # Cloudflare's: the gateway's own server could not be found
}
# The same where a web server's own page shows that it wrote the answer itself.
_SERVER_PAGES: Mapping[int, Rule] = {**dict.fromkeys((400, 404), WRONG_PLACE), 429: CDN_RATE}
_SERVER_PAGE = re.compile(rb"<center>\s{0,20}(nginx|openresty|tengine|angie)\b", re.IGNORECASE)
_NO_TLS = (525, 526)  # Cloudflare's: no TLS with the gateway's own server could be agreed on

# Headers that no gateway sends: the answer is a challenge, whatever its status.
_CHALLENGES = {
    "cf-mitigated": ("challenge",),
    "x-amzn-waf-action": ("challenge", "captcha"),
    "x-vercel-mitigated": ("challenge",),
}
# Only of the challenge itself: Cloudflare puts a script of its own into every page that passes.
_CHALLENGE_PAGE = re.compile(rb"_cf_chl_opt|\bcf-chl-|id=.challenge-form", re.IGNORECASE)
# Cloudflare's codes for requests that it did not pass on. 1019 and 11xx may come after a Worker did.
_CLOUDFLARE_CODES = frozenset(range(1000, 1100)) - {1019}
_RATE_CODE = 1015
_PLAIN_CODE = re.compile(rb"\s{0,20}error code:? (\d{4})\s{0,20}", re.IGNORECASE)
_PAGE_CODE = re.compile(r"\berror\s{0,20}(?:code)?:?\s{0,20}(\d{4})\b", re.IGNORECASE)
_SEARCHED = 50_000  # bytes of a page


def turned_away(
    status: int, headers: Mapping[str, str], content: bytes, body: Mapping[str, Any] | None, *, markup: bool
) -> Rule | None:
    """What an answer means that shows that the request did not reach the gateway; ``None`` for any other.

    :param headers: by name, in lower case.
    :param body: the JSON object in it, if it is one.
    :param markup: whether it is a web page.
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
    """Whether the headers say that the answer is a challenge to a browser, whatever its status."""
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
