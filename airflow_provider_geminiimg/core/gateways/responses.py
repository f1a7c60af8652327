"""Reading what a gateway answers: what both adapters need, so that each of them is its contract and little else.

What must stay true: nothing here trusts an answer. Any status, any bytes and any JSON come out as plain values or as
one outcome of `airflow_provider_geminiimg.exceptions`; an answer to a paid call that does not clearly say "not
charged" is outcome unknown; an answer to a poll that is not about the job says nothing about the job.
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, Reply, as_mapping
from airflow_provider_geminiimg.core.gateways.intermediaries import is_challenge, turned_away
from airflow_provider_geminiimg.core.gateways.rules import (
    FREE_FAILED,
    POLL_FAILED,
    POLL_RULES,
    UNKNOWN,
    Purpose,
    Rule,
    Rules,
    find_rule,
)
from airflow_provider_geminiimg.core.redaction.ranges import UNIX_SECONDS, number, waiting
from airflow_provider_geminiimg.core.redaction.scrubbing import scrub
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    NoPictureError,
    OutcomeUnknownError,
    UpstreamFailedError,
)

MAX_TEXT = 2_000  # characters of a gateway's text that are kept; it is scrubbed and cut further on its way out
_DEPTH = 6  # no reason of the contracts nests deeper
_MOST_HEARD = 10 * MAX_TEXT  # characters that are searched for words of moderation

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
    """What a gateway says went wrong, each part as text.

    :param outer_code: the code of the answer itself; `code` may be one that stands in a text of it.
    """

    code: str | None = None
    message: str | None = None
    details: str | None = None
    heard: str = ""
    outer_code: str | None = None

    def refused(self, prompt: str = "") -> bool:
        """Whether this is safety, moderation or recitation, and not a fault, leaving out echoes of `prompt`."""
        if (self.code or "").lower() in _REFUSAL_CODES:
            return True
        heard = self.heard
        if prompt and _REFUSAL_WORDS.search(heard):
            heard = scrub(heard, prompt=prompt, limit=len(heard) * 2)
        return bool(_REFUSAL_WORDS.search(heard))


_CODE_KEYS = ("code", "errorCode", "error_code", "type", "finishReason", "blockReason")
_MESSAGE_KEYS = (
    *("message", "errorMessage", "error_message", "error", "errors", "msg", "reason"),
    *("fail_reason", "failReason", "failure_reason", "failureReason", "failed_reason", "fail_msg", "failMsg"),
    *("status_message", "statusMessage", "status_msg", "task_status_msg", "detail", "title"),
)
_MOST_REASONS = 10
_NO_ERROR = frozenset(("0", "200", "ok", "success", "succeeded", "none", "null"))


def reason_of(value: Any, depth: int = 0) -> Reason:
    """What went wrong, from an error body of any of the shapes, its text, or a text that holds another error body."""
    if isinstance(value, list):
        return _reason_of_list(value, depth)
    if not isinstance(value, Mapping):
        value = {"message": value}
    inner = as_mapping(value.get("error"))
    # A top-level `type` says what was asked for, not what went wrong.
    codes = [clean(inner.get(key)) for key in _CODE_KEYS]
    codes += [clean(value.get(key)) for key in _CODE_KEYS if key != "type"]
    message = _first(_said(source.get(key), depth) for source in (inner, value) for key in _MESSAGE_KEYS)
    details = value.get("details") or inner.get("details") or inner.get("param")
    code = _first(code for code in codes if code and code.lower() not in _NO_ERROR)
    heard = " ".join(part for part in (message, clean(details)) if part)
    outer_code = code
    if depth < _DEPTH and (nested := _embedded(message)):
        told = reason_of(nested, depth + 1)
        code = told.code or code
        if parse_json(message or ""):
            message = told.message or message
    return Reason(code, message, _inner_text(details, depth), heard, outer_code)


def _reason_of_list(values: list[Any], depth: int) -> Reason:
    """The reasons of a list as one."""
    told = [reason_of(item, depth + 1) for item in values[:_MOST_REASONS] if item] if depth < _DEPTH else []
    code = _first(reason.code for reason in told)
    message, details = (
        clean("; ".join(dict.fromkeys(part for part in parts if part)))
        for parts in ([reason.message for reason in told], [reason.details for reason in told])
    )
    heard = " ".join(reason.heard for reason in told)[:_MOST_HEARD]
    return Reason(code, message, details, heard, _first(reason.outer_code for reason in told))


def _said(value: Any, depth: int) -> str | None:
    """A message as text; ``None`` where it says that there is nothing wrong."""
    text = reason_of(value, depth + 1).message if isinstance(value, list) else clean(value)
    return None if text is None or text.lower() in _NO_ERROR else text


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
            found, _ = json.JSONDecoder(parse_int=_whole).raw_decode(message or "", match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, Mapping) and found:
            return found
    return None


class Answer:
    """One reply, read without trusting any of it.

    :param reply: the reply.
    :param prompt: the prompt that was sent; its echo says nothing of a refusal.
    """

    def __init__(self, reply: Reply, *, prompt: str = "") -> None:
        self._prompt = prompt
        self.status = reply.status
        self.ok = 200 <= self.status < 300 and not is_challenge(reply.headers)
        self._headers = reply.headers
        self._content = reply.content
        self.json = parse_json(self._content)
        if self.ok and self.json is None:
            self.json = _salvaged_json(self._content)
        self.own_shape = isinstance(self.json, Mapping)
        self.body = {"data": self.json} if isinstance(self.json, list) else as_mapping(self.json)
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
        if number(value) is not None:
            return waiting(value)
        at, now = _http_date(value), _http_date(self._headers.get("date", ""))
        if at is not None:
            return waiting(at - (time.time() if now is None else now))
        return waiting(self.body.get("retry_after"))

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
        body = self.body if self.own_shape else None
        if away := turned_away(self.status, self._headers, self._content, body, markup=self.markup):
            return self.outcome(gateway, away, self.reason, refusals=False)
        rule = UNKNOWN
        if purpose is Purpose.FREE or self._from_the_gateway():
            rule = find_rule(rules, self.status, self._deciding_code(), UNKNOWN)
        if purpose is Purpose.FREE and rule.billed is not Billed.NO:
            rule = FREE_FAILED
        return self.outcome(gateway, rule, self.reason)

    def _deciding_code(self) -> str | None:
        """The code that decides on money: one within a text may be another channel's, or the prompt's."""
        refused = 400 <= self.status < 500 and self.status != 408
        return self.reason.code if refused else self.reason.outer_code

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
        if refusals and issubclass(rule.outcome, _MAY_BE_A_REFUSAL) and reason.refused(self._prompt):
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


_FINISH = re.compile(r"(?:finish|block)_?reason", re.IGNORECASE)
_FINISHED = re.compile(r"(?!(?:STOP|UNSPECIFIED)$)\w{2,60}", re.IGNORECASE)


def finish_reason(value: Any) -> Reason:
    """Why a model ended without a picture, from its raw answer, wherever in it that stands."""
    waiting = [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, Mapping):
            for key, said in held.items():
                if isinstance(said, str) and _FINISH.fullmatch(key) and _FINISHED.fullmatch(said):
                    return Reason(code=said)
        inner = list(held.values() if isinstance(held, Mapping) else held if isinstance(held, list) else ())
        waiting += reversed(inner)
    return Reason()


def link_expiry(link: str | None) -> float | None:
    """Unix seconds at which a link signed the S3 way stops working, read from its own query."""
    try:
        query = parse_qs(urlsplit(link or "").query)
        signed = datetime.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(
            tzinfo=datetime.timezone.utc
        )
        return UNIX_SECONDS.of(signed.timestamp() + float(query["X-Amz-Expires"][0]))
    except (KeyError, ValueError, OverflowError):
        return None


def parse_json(content: bytes | str) -> Any:
    """The JSON in `content`, or ``None`` where there is none. A number of any length spoils nothing else in it."""
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeError, RecursionError):
        return None
    except ValueError:  # a whole number of more than 4,300 digits
        return json.loads(content, parse_int=_whole)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)


_EMPTY_OBJECTS = re.compile(r"^(\{\s*\}\s*)+(?=\{)")
_MOST_EMPTY = 10_000  # characters of objects that only keep the line open


def _salvaged_json(content: bytes) -> Any:
    """The JSON object at the start of an answer that is not JSON as a whole: in another encoding, with raw control
    characters, or with something after it."""
    text = content.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if empty := _EMPTY_OBJECTS.match(text, 0, _MOST_EMPTY):
        text = text[empty.end() :]
    if not text.startswith("{"):
        return None
    try:
        return json.JSONDecoder(strict=False, parse_int=_whole).raw_decode(text)[0]
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
    text = text.lstrip()[: MAX_TEXT + 1].encode("utf-8", "replace").decode().strip()
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT].rsplit(None, 1)[0]
    return text or None


def accepted_all_the_same(error: GeminiImageError, *ids: Any) -> JobStatus:
    """The job that an error after a paid call names: it is polled, whatever the error says, because it exists.

    :param error: what the answer means otherwise.
    :param ids: what may be the job's id.
    :raises GeminiImageError: `error`, where no job is named.
    """
    job_id = job_id_of(*ids)
    if job_id is None:
        raise error
    return JobStatus(JobState.RUNNING, job_id=job_id)


def names_another_job(job_id: str, *values: Any) -> bool:
    """Whether an answer that was asked about `job_id` names another job: one of `values` is an id, and none is this.

    A number is a row of some table, unless the job's own id is one.
    """
    ids = {text.casefold() for text in map(clean, values) if text and (not text.isdecimal() or job_id.isdecimal())}
    return bool(ids) and job_id.casefold() not in ids


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
