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
        return found[1] if found else first(clean(self._headers.get(name)) for name in names)

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
    """Why a model ended without an image, from its raw answer, wherever in it that stands."""
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
        return json.JSONDecoder(strict=False, parse_int=whole_number).raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


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
