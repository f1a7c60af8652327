"""Finds the error in a gateway's response, whatever its format, and recognizes refusals of the content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.gateways.base import as_mapping
from airflow_provider_geminiimg.core.redaction.scrubbing import scrub

MAX_TEXT = 2_000  # characters of a gateway's text that are kept here; errors scrub and shorten it further
_DEPTH = 6  # no known error body nests deeper
_MAX_SEARCHED = 10 * MAX_TEXT  # characters that are searched for words about moderation

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

# Gateways repeat prompts in their errors, so these phrases must not occur in a prompt about, for example, work safety.
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
    """The error that a gateway reports.

    :param code: the error code; it may come from an error body inside the message.
    :param message: the error message.
    :param details: further details.
    :param searched: the text that is searched for words about moderation.
    :param outer_code: the code of the response itself, never one from inside a text.
    """

    code: str | None = None
    message: str | None = None
    details: str | None = None
    searched: str = ""
    outer_code: str | None = None

    def refused(self, prompt: str = "") -> bool:
        """Whether the content was refused (safety, moderation, recitation). Echoes of `prompt` do not count."""
        if (self.code or "").lower() in _REFUSAL_CODES:
            return True
        searched = self.searched
        if prompt and _REFUSAL_WORDS.search(searched):
            searched = scrub(searched, prompt=prompt, limit=len(searched) * 2)
        return bool(_REFUSAL_WORDS.search(searched))


_CODE_KEYS = ("code", "errorCode", "error_code", "type", "finishReason", "blockReason")

_MESSAGE_KEYS = (
    *("message", "errorMessage", "error_message", "error", "errors", "msg", "reason"),
    *("fail_reason", "failReason", "failure_reason", "failureReason", "failed_reason", "fail_msg", "failMsg"),
    *("status_message", "statusMessage", "status_msg", "task_status_msg", "detail", "title"),
)

_MAX_REASONS = 10
_NO_ERROR = frozenset(("0", "200", "ok", "success", "succeeded", "none", "null"))


def reason_of(value: Any, depth: int = 0) -> Reason:
    """The error in a response body of any known format, in its text, or in an error body inside that text."""
    if isinstance(value, list):
        return _reason_of_list(value, depth)
    if not isinstance(value, Mapping):
        value = {"message": value}
    inner = as_mapping(value.get("error"))
    # A top-level `type` is the type of the request, not of the error.
    codes = [clean(inner.get(key)) for key in _CODE_KEYS]
    codes += [clean(value.get(key)) for key in _CODE_KEYS if key != "type"]
    message = first(_message_text(source.get(key), depth) for source in (inner, value) for key in _MESSAGE_KEYS)
    details = value.get("details") or inner.get("details") or inner.get("param")
    code = first(code for code in codes if code and code.lower() not in _NO_ERROR)
    searched = " ".join(part for part in (message, clean(details)) if part)
    outer_code = code
    if depth < _DEPTH and (nested := _embedded(message)):
        inner_reason = reason_of(nested, depth + 1)
        code = inner_reason.code or code
        if parse_json(message or ""):
            message = inner_reason.message or message
    return Reason(code, message, _inner_text(details, depth), searched, outer_code)


def _reason_of_list(values: list[Any], depth: int) -> Reason:
    """The errors of a list, joined to one."""
    found = [reason_of(item, depth + 1) for item in values[:_MAX_REASONS] if item] if depth < _DEPTH else []
    code = first(reason.code for reason in found)
    message, details = (
        clean("; ".join(dict.fromkeys(part for part in parts if part)))
        for parts in ([reason.message for reason in found], [reason.details for reason in found])
    )
    searched = " ".join(reason.searched for reason in found)[:_MAX_SEARCHED]
    return Reason(code, message, details, searched, first(reason.outer_code for reason in found))


def _message_text(value: Any, depth: int) -> str | None:
    """A message as text; ``None`` if it says that there is no error."""
    text = reason_of(value, depth + 1).message if isinstance(value, list) else clean(value)
    return None if text is None or text.lower() in _NO_ERROR else text


def _inner_text(details: Any, depth: int) -> str | None:
    """The error inside a `details` field that contains an error body or its JSON text; else `details` itself."""
    parsed = parse_json(details) if isinstance(details, str) else details
    if depth >= _DEPTH or not isinstance(parsed, (Mapping, list)):
        return clean(details)
    inner = reason_of(parsed, depth + 1)
    parts = dict.fromkeys(part for part in (inner.code, inner.message, inner.details) if part)
    return clean(": ".join(parts)) if inner.message else clean(details)


def _embedded(message: str | None) -> Mapping[str, Any] | None:
    """The error body inside a message."""
    for match in list(re.finditer(r"\{", message or ""))[:5]:
        try:
            found, _ = json.JSONDecoder(parse_int=whole_number).raw_decode(message or "", match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, Mapping) and found:
            return found
    return None


def parse_json(content: bytes | str) -> Any:
    """The parsed JSON, or ``None`` if `content` is not JSON. A number of any length is accepted."""
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeError, RecursionError):
        return None
    except ValueError:  # a whole number of more than 4,300 digits
        return json.loads(content, parse_int=whole_number)


def whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)


def clean(value: Any) -> str | None:
    """A JSON value as text of up to `MAX_TEXT` characters without lone surrogates; ``None`` for an empty value."""
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


def first(texts: Iterable[str | None]) -> str | None:
    return next((text for text in texts if text), None)
