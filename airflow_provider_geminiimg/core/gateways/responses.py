"""Parses gateway responses: what both adapters share.

What must stay true: nothing here trusts a response. Any status, bytes and JSON become plain values or one error of
`airflow_provider_geminiimg.exceptions`; a response to a paid call that does not clearly say "not charged" is an
unknown outcome; a response to a poll that is not about the job does not change the job's state.
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import json
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, Reply, as_mapping
from airflow_provider_geminiimg.core.gateways.intermediaries import is_challenge, turned_away
from airflow_provider_geminiimg.core.gateways.reasons import Reason, clean, first, parse_json, reason_of, whole_number
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
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    NoImageError,
    OutcomeUnknownError,
    UpstreamFailedError,
)

_MAY_BE_A_REFUSAL = (BadRequestError, UpstreamFailedError, NoImageError, OutcomeUnknownError)


class GatewayResponse:
    """One parsed response.

    :param reply: the HTTP response.
    :param prompt: the prompt that was sent; words in an echo of it do not count as a refusal.
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
        """The error that the response reports; empty for a web page."""
        if self.markup or self.empty:
            return Reason()
        return reason_of(self.body if self.own_shape else self._content.decode("utf-8", "replace"))

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait: from the header ``Retry-After`` (seconds or an HTTP date), else from the body."""
        value = self._headers.get("retry-after", "").strip()
        if number(value) is not None:
            return waiting(value)
        at, now = _http_date(value), _http_date(self._headers.get("date", ""))
        if at is not None:
            return waiting(at - (time.time() if now is None else now))
        return waiting(self.body.get("retry_after"))

    def request_id(self, message: str | None) -> str | None:
        """The request id for the gateway's support: from the end of the message, else from the headers."""
        found = re.search(r"request[ _-]?id\W{1,3}([\w-]{6,128})\W*$", message or "", re.IGNORECASE)
        names = ("x-oneapi-request-id", "x-request-id")
        return found[1] if found else first(clean(self._headers.get(name)) for name in names)

    def rejected(self, gateway: str, purpose: Purpose, rules: Rules) -> GeminiImageError:
        """The error for a response that is not the expected one.

        :param gateway: the gateway's name in messages.
        :param purpose: the purpose of the call.
        :param rules: the gateway's table of rules.
        """
        if purpose is Purpose.POLL:
            return self.error(gateway, POLL_RULES.get(self.status, POLL_FAILED), self.reason, refusals=False)
        body = self.body if self.own_shape else None
        if rule_of_proxy := turned_away(self.status, self._headers, self._content, body, markup=self.markup):
            return self.error(gateway, rule_of_proxy, self.reason, refusals=False)
        rule = UNKNOWN
        if purpose is Purpose.FREE or self._from_the_gateway():
            rule = find_rule(rules, self.status, self._deciding_code(), UNKNOWN)
        if purpose is Purpose.FREE and rule.billed is not Billed.NO:
            rule = FREE_FAILED
        return self.error(gateway, rule, self.reason)

    def _deciding_code(self) -> str | None:
        """The code that decides whether money was spent. One inside a text may be another channel's or the prompt's."""
        refused = 400 <= self.status < 500 and self.status != 408
        return self.reason.code if refused else self.reason.outer_code

    def _from_the_gateway(self) -> bool:
        """Whether the gateway wrote the response, and not a proxy that may already have forwarded the request."""
        if self.status >= 500:
            return self.own_shape
        if self.status == 429:
            return self.own_shape or self.empty
        return self.status == 401 or not self.markup  # a request with a rejected key is never charged

    def error(self, gateway: str, rule: Rule, reason: Reason, *, refusals: bool = True) -> GeminiImageError:
        """The error of `rule`, with the gateway's code, message and details.

        :param gateway: the gateway's name in messages.
        :param rule: the rule that applies.
        :param reason: the error that the gateway reports.
        :param refusals: whether words about moderation in `reason` turn the error into a `ContentRefusedError`.
        """
        if refusals and issubclass(rule.error, _MAY_BE_A_REFUSAL) and reason.refused(self._prompt):
            rule = Rule(ContentRefusedError, "refused the content.", rule.billed)
        page = " The response was a web page." if self.markup else ""
        return rule.error(
            f"{gateway} {rule.message}{page}",
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
    """The finish reason of a model without an image, found anywhere in its raw response."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            for key, word in node.items():
                if isinstance(word, str) and _FINISH.fullmatch(key) and _FINISHED.fullmatch(word):
                    return Reason(code=word)
        children = list(node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ())
        stack += reversed(children)
    return Reason()


def link_expiry(link: str | None) -> float | None:
    """Unix time at which an S3 presigned URL expires, from its query; ``None`` for any other link."""
    try:
        query = parse_qs(urlsplit(link or "").query)
        signed = datetime.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(
            tzinfo=datetime.timezone.utc
        )
        return UNIX_SECONDS.of(signed.timestamp() + float(query["X-Amz-Expires"][0]))
    except (KeyError, ValueError, OverflowError):
        return None


_EMPTY_OBJECTS = re.compile(r"^(\{\s*\}\s*)+(?=\{)")
_MAX_EMPTY = 10_000  # characters of empty objects, which a gateway sends to keep the connection open


def _salvaged_json(content: bytes) -> Any:
    """The JSON object at the start of a response that is not valid JSON: in another encoding, with raw control
    characters, or followed by other text."""
    text = content.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if empty := _EMPTY_OBJECTS.match(text, 0, _MAX_EMPTY):
        text = text[empty.end() :]
    if not text.startswith("{"):
        return None
    try:
        return json.JSONDecoder(strict=False, parse_int=whole_number).raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def accepted_all_the_same(error: GeminiImageError, *ids: Any) -> JobStatus:
    """The running job that an error response to a paid call names. The job exists, so it is polled despite the error.

    :param error: the error of the response.
    :param ids: values that may be the job id.
    :raises GeminiImageError: `error`, if none of `ids` is a job id.
    """
    job_id = job_id_of(*ids)
    if job_id is None:
        raise error
    return JobStatus(JobState.RUNNING, job_id=job_id)


def names_another_job(job_id: str, *values: Any) -> bool:
    """Whether a response about `job_id` names another job: `values` contain an id, but not `job_id`.

    A number counts as an id only if `job_id` is a number; else it may be the number of a database row.
    """
    ids = {text.casefold() for text in map(clean, values) if text and (not text.isdecimal() or job_id.isdecimal())}
    return bool(ids) and job_id.casefold() not in ids


def job_id_of(*values: Any) -> str | None:
    """The first of `values` that can be a job id."""
    return next((text for text in map(clean, values) if text and _is_segment(text)), None)


def _is_segment(text: str) -> bool:
    return len(text) <= 512 and text.isprintable() and text not in (".", "..")


def segment(job_id: str) -> str:
    """A job id, encoded as one segment of a URL path.

    :raises BadRequestError: the value cannot be a job id.
    """
    if not isinstance(job_id, str) or not job_id.strip() or not _is_segment(job_id):
        raise BadRequestError(f"job_id: {str(job_id)[:80]!r} is not a gateway's job id.", hint="Pass the id unchanged.")
    return quote(job_id, safe="")


def _http_date(value: str) -> float | None:
    try:
        at = email.utils.parsedate_to_datetime(value)
        return (at if at.tzinfo else at.replace(tzinfo=datetime.timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
