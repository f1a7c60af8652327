"""Reading what a gateway answers: what both adapters need, so that each of them is its contract and little else.

What must stay true: nothing here trusts an answer. Any status, any bytes and any JSON come out as plain values or as
one outcome of `airflow_provider_geminiimg.exceptions`; an answer to a paid call that does not clearly say "not
charged" is outcome unknown; an answer to a poll that is not about the job says nothing about the job.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import email.utils
import enum
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InsufficientBalanceError,
    NoPictureError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.gateways.base import Picture, Reply, as_mapping

MAX_TEXT = 2_000  # characters of a gateway's text that are kept; it is scrubbed and cut further on its way out
MAX_PICTURES = 16  # of one job, of which one is asked for: an answer must not fill the disk
_DEPTH = 6  # no shape of the contracts nests deeper


class Purpose(enum.Enum):
    """What a call is for, which decides what a bad answer means for the money."""

    PAID = "paid"
    FREE = "free"
    POLL = "poll"


@dataclass(frozen=True)
class Rule:
    """What one kind of bad answer means.

    :param outcome: the class that is raised.
    :param what: the message after the gateway's name.
    :param billed: whether money was spent.
    :param retryable: whether a retry can help; default: the class's own answer.
    :param hint: what to do next; default: the class's own answer.
    """

    outcome: type[GeminiImageError]
    what: str
    billed: Billed = Billed.NO
    retryable: bool | None = None
    hint: str | None = None


Rules = Mapping[tuple[int | None, str | None], Rule]
"""By HTTP status and the gateway's code; ``None`` stands for any."""

_FIX = "Correct what the gateway names, then clear the task."
_LEFT_ALONE = "The job is left alone; the next poll asks again, nothing is bought twice."

WRONG = Rule(BadRequestError, "refused the request as wrong.", hint=_FIX)
BALANCE = Rule(InsufficientBalanceError, "refused the request: the account's balance does not cover it.")
SLOW_DOWN = Rule(RateLimitedError, "asks to slow down.")
REFUNDED = Rule(UpstreamFailedError, "could not make the picture, and does not charge for that.")
UNKNOWN = Rule(
    OutcomeUnknownError, "gave no answer that tells what became of the request.", billed=Billed.UNKNOWN, retryable=False
)
FREE_FAILED = Rule(UpstreamFailedError, "did not answer a call that costs nothing as it should.")
POLL_FAILED = Rule(UpstreamFailedError, "gave no answer about the job.", Billed.YES, True, _LEFT_ALONE)
NO_PICTURE = Rule(NoPictureError, "ended the job well, without a picture.", Billed.UNKNOWN)
NO_LINK = Rule(
    UpstreamFailedError,
    "made the picture, and gave no usable link to it yet.",
    Billed.YES,
    True,
    "The next poll asks for the link again; nothing is bought twice.",
)
NO_HANDLE = Rule(
    OutcomeUnknownError, "made the picture, and gave neither a usable link to it nor a job id.", Billed.YES
)

COMMON_RULES: Rules = {
    **{(status, None): WRONG for status in (400, 404, 405, 413, 415, 422)},
    (401, None): Rule(AuthenticationError, "does not accept the API key."),
    (402, None): BALANCE,
    (403, None): Rule(
        AuthenticationError,
        "does not allow this key to make the request.",
        hint="Look at what the key may do in the gateway's console, then clear the task.",
    ),
    (429, None): SLOW_DOWN,
}

POLL_RULES: Mapping[int, Rule] = {
    401: Rule(
        AuthenticationError,
        "does not accept the API key any more. The job is left alone.",
        Billed.YES,
        hint="Put a valid API key into the connection's password, then clear the task: it picks the same job up again.",
    ),
    429: Rule(RateLimitedError, "asks to poll more slowly.", Billed.YES),
}

_MAY_BE_A_REFUSAL = (BadRequestError, UpstreamFailedError, NoPictureError, OutcomeUnknownError)

_REFUSAL_CODES = frozenset(
    (
        "safety",
        "image_safety",
        "prohibited_content",
        "image_prohibited_content",
        "recitation",
        "image_recitation",
        "blocklist",
        "spii",
        "moderation_blocked",
        "content_filter",
        "content_policy_violation",
        "sensitive_words_detected",
    )
)
# Only wording that a prompt about, say, workplace safety does not have: gateways repeat prompts in their errors.
_REFUSAL_WORDS = re.compile(
    r"\b(image_safety|(image_)?prohibited_content|image_recitation|moderation_blocked|content_filter(ed)?"
    r"|content_policy_violation|sensitive_words_detected)\b"
    r"|\bcontent (policy|policies|filter\w*|moderation|guidelines)\b"
    r"|\bsafety (system|filter|polic|guideline|setting|reason|violation)"
    r"|\b(blocked|rejected|refused|flagged|filtered)( out)? (by|for|due to|because of)\b.{0,40}"
    r"(safety|moderation|polic)"
    r"|\bviolat\w+\b.{0,40}\b(polic|guideline|terms)"
    r"|\bprohibited content\b"
    r"|\b(image|content|prompt|request|input|output) (was|is|has been|were) (blocked|flagged|moderated)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reason:
    """What a gateway says went wrong, each part as text."""

    code: str | None = None
    message: str | None = None
    details: str | None = None
    heard: str = ""

    def refused(self) -> bool:
        """Whether this is safety, moderation or recitation, and not a fault."""
        return (self.code or "").lower() in _REFUSAL_CODES or bool(_REFUSAL_WORDS.search(self.heard))


_CODE_KEYS = ("code", "errorCode", "type", "finishReason", "blockReason")
_MESSAGE_KEYS = ("message", "errorMessage", "error", "msg", "fail_reason", "reason")
_NO_ERROR = frozenset(("0", "200", "ok", "success"))


def reason_of(value: Any, depth: int = 0) -> Reason:
    """What went wrong, from an error body of any of the shapes, its text, or a text that holds another error body."""
    if isinstance(value, list):
        value = next((item for item in value if item), None)
    if not isinstance(value, Mapping):
        value = {"message": value}
    inner = as_mapping(value.get("error"))
    # A top-level `type` says what was asked for, not what went wrong.
    codes = [clean(inner.get(key)) for key in _CODE_KEYS]
    codes += [clean(value.get(key)) for key in _CODE_KEYS if key != "type"]
    message = _first(clean(source.get(key)) for source in (inner, value) for key in _MESSAGE_KEYS)
    details = value.get("details") or inner.get("details") or inner.get("param")
    code = _first(code for code in codes if code and code.lower() not in _NO_ERROR)
    heard = " ".join(part for part in (message, clean(details)) if part)
    if depth < _DEPTH and (nested := _embedded(message)):
        code = reason_of(nested, depth + 1).code or code
    return Reason(code, message, _inner_text(details, depth), heard)


def _inner_text(details: Any, depth: int) -> str | None:
    """What a `details` that is itself JSON text says, else `details` as it is."""
    parsed = parse_json(details) if isinstance(details, str) else details
    if depth >= _DEPTH or not isinstance(parsed, (Mapping, list)):
        return clean(details)
    inner = reason_of(parsed, depth + 1)
    said = dict.fromkeys(part for part in (inner.code, inner.message, inner.details) if part)
    return clean(": ".join(said)) if inner.message else clean(details)


def _embedded(message: str | None) -> Mapping[str, Any] | None:
    """The error body that stands inside a message."""
    for match in list(re.finditer(r"\{", message or ""))[:5]:
        try:
            found, _ = json.JSONDecoder().raw_decode(message or "", match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, Mapping) and found:
            return found
    return None


class Answer:
    """One reply, read without trusting any of it.

    :param reply: the reply.
    """

    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        self.ok = 200 <= self.status < 300
        self._headers = reply.headers
        self._content = reply.content
        self.json = parse_json(self._content)
        self.own_shape = isinstance(self.json, Mapping)
        self.body = as_mapping(self.json)
        self.empty = not self._content.strip()
        self.markup = not self.own_shape and (
            "html" in reply.headers.get("content-type", "").lower() or self._content.lstrip()[:1] == b"<"
        )

    @functools.cached_property
    def reason(self) -> Reason:
        """What it says went wrong; a web page says nothing."""
        if self.markup or self.empty:
            return Reason()
        return reason_of(self.body if self.own_shape else self._content.decode("utf-8", "replace"))

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, from ``Retry-After`` as seconds or as an HTTP date."""
        value = self._headers.get("retry-after", "").strip()
        if (seconds := number(value)) is not None:
            return max(0.0, seconds)
        at, now = _http_date(value), _http_date(self._headers.get("date", ""))
        return None if at is None else max(0.0, at - (time.time() if now is None else now))

    def request_id(self, message: str | None) -> str | None:
        """The id that the gateway's support asks for: from the message's end, else from the headers."""
        found = re.search(r"request[ _-]?id\W{1,3}([\w-]{6,128})\W*$", message or "", re.IGNORECASE)
        names = ("x-oneapi-request-id", "x-request-id")
        return found[1] if found else _first(clean(self._headers.get(name)) for name in names)

    def rejected(self, gateway: str, purpose: Purpose, rules: Rules) -> GeminiImageError:
        """The outcome that this answer means, when it is not what was asked for.

        :param gateway: the gateway's name in messages.
        :param purpose: what the call was for.
        :param rules: the gateway's own table.
        """
        if purpose is Purpose.POLL:
            return self.outcome(gateway, POLL_RULES.get(self.status, POLL_FAILED), self.reason, refusals=False)
        rule = UNKNOWN
        if purpose is Purpose.FREE or self._from_the_gateway():
            rule = find_rule(rules, self.status, self.reason.code, UNKNOWN)
        if purpose is Purpose.FREE and rule.billed is not Billed.NO:
            rule = FREE_FAILED
        return self.outcome(gateway, rule, self.reason)

    def _from_the_gateway(self) -> bool:
        """Whether the answer can be taken at its word, because no proxy wrote it about a request that went through."""
        if self.status >= 500:
            return self.own_shape
        if self.status == 429:
            return self.own_shape or self.empty
        return self.status == 401 or not self.markup  # nobody charges for a key that is not accepted

    def outcome(self, gateway: str, rule: Rule, reason: Reason, *, refusals: bool = True) -> GeminiImageError:
        """The outcome by `rule`, with all that the gateway said.

        :param gateway: the gateway's name in messages.
        :param rule: what it means.
        :param reason: what the gateway said.
        :param refusals: whether words of moderation in `reason` make it a refused content.
        """
        if refusals and issubclass(rule.outcome, _MAY_BE_A_REFUSAL) and reason.refused():
            rule = Rule(ContentRefusedError, "refused the content.", rule.billed)
        page = " It answered with a web page." if self.markup else ""
        return rule.outcome(
            f"{gateway} {rule.what}{page}",
            billed=rule.billed,
            retryable=rule.retryable,
            hint=rule.hint,
            code=reason.code,
            gateway_message=reason.message,
            details=reason.details,
            request_id=self.request_id(reason.message),
            status_code=self.status,
            retry_after=self.retry_after,
        )


def find_rule(rules: Rules, status: int | None, code: str | None, default: Rule) -> Rule:
    """The rule for a status and a code: the pair first, then the code, then the status."""
    for key in ((status, code), (None, code), (status, None)):
        if key != (None, None) and key in rules:
            return rules[key]
    return default


_RESULT_KEYS = ("b64_json", "url", "urls", "image_url", "key", "path", "images", "image", "output", "result", "data")


def results(value: Any, depth: int = 0) -> Iterator[str]:
    """Every text that stands where a gateway puts a result: links, data URIs, storage keys, or just words.

    In an object the first of the known keys that holds anything counts, bytes before links.
    """
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif depth < _DEPTH and isinstance(value, list):
        for item in value:
            yield from results(item, depth + 1)
    elif depth < _DEPTH and isinstance(value, Mapping):
        for key in _RESULT_KEYS:
            if found := list(results(value.get(key), depth + 1)):
                inline = "data:;base64," if key == "b64_json" else ""
                yield from (text if text.startswith("data:") else f"{inline}{text}" for text in found)
                return


def picture(text: str) -> Picture | None:
    """The picture that a result text stands for: an http(s) link or a data URI; anything else is none."""
    if text[:5].lower() == "data:":
        head, _, payload = text.partition(",")
        try:
            data = base64.b64decode("".join(payload.split()), validate=True) if head.endswith(";base64") else b""
        except (binascii.Error, ValueError):
            data = b""
        return Picture(data=data) if data else None
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and text.isprintable() and " " not in text
    except ValueError:
        usable = False
    return Picture(url=text) if usable else None


def pictures(texts: list[str]) -> tuple[Picture, ...]:
    """The pictures among result texts, each once, in their order, `MAX_PICTURES` at most."""
    found = (each for text in dict.fromkeys(texts) if (each := picture(text)))
    return tuple(itertools.islice(found, MAX_PICTURES))


_NAMES_A_FILE = re.compile(r"\S+|[^\n]*\.(png|jpe?g|webp)", re.IGNORECASE)


def names_a_file(text: str) -> bool:
    """Whether a result text is a storage key or a link, and not words of a model that answered in text."""
    return bool(_NAMES_A_FILE.fullmatch(text))


_FINISH = re.compile(r'"(?:finish|block)_?reason": ?"(?!STOP"|UNSPECIFIED")(\w{2,60})"', re.IGNORECASE)


def finish_reason(value: Any) -> Reason:
    """Why a model ended without a picture, from its raw answer, wherever in it that stands."""
    try:
        found = _FINISH.search(json.dumps(value))
    except (ValueError, RecursionError):
        found = None
    return Reason(code=found[1]) if found else Reason()


def link_expiry(link: str | None) -> float | None:
    """Unix seconds at which a link signed the S3 way stops working, read from its own query."""
    try:
        query = parse_qs(urlsplit(link or "").query)
        signed = datetime.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(
            tzinfo=datetime.timezone.utc
        )
        return number(signed.timestamp() + float(query["X-Amz-Expires"][0]))
    except (KeyError, ValueError, OverflowError):
        return None


def parse_json(content: bytes | str) -> Any:
    """The JSON in `content`, or ``None`` where there is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def clean(value: Any) -> str | None:
    """A JSON value as text that any log can hold, cut between words; ``None`` for nothing."""
    if value is None or isinstance(value, bool) or value in ({}, []):
        return None
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    text = text.encode("utf-8", "replace").decode().strip()
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT].rsplit(None, 1)[0]
    return text or None


def number(value: Any) -> float | None:
    """A finite number from a JSON number or its text (a per cent sign is ignored), else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value.strip().rstrip("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def job_id_of(*values: Any) -> str | None:
    """The first of `values` that can be a job's id."""
    return next((text for text in map(clean, values) if text and _is_segment(text)), None)


def _is_segment(text: str) -> bool:
    return len(text) <= 512 and text.isprintable() and text not in (".", "..")


def segment(job_id: str) -> str:
    """A job id as one segment of a path.

    :raises BadRequestError: it can't be one.
    """
    if not isinstance(job_id, str) or not job_id.strip() or not _is_segment(job_id):
        raise BadRequestError(
            f"job_id: {str(job_id)[:80]!r} is not a gateway's job id.", hint="Pass the id as it came."
        )
    return quote(job_id, safe="")


def _http_date(value: str) -> float | None:
    try:
        at = email.utils.parsedate_to_datetime(value)
        return (at if at.tzinfo else at.replace(tzinfo=datetime.timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _first(texts: Iterable[str | None]) -> str | None:
    return next((text for text in texts if text), None)
