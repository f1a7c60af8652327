"""The error classes of this package: one closed tree, and what each error means for the money.

Invariants: every failure that leaves this package is one of these classes. Each error says whether money was spent,
whether a retry can help and who has to act. No error holds a key, a signed link, a prompt or image bytes; `scrubbed`
removes them from a gateway's texts. This module knows nothing of Airflow, HTTP or a gateway.

    GeminiImageError
    ├── BadRequestError            the request is wrong; nothing was sent
    ├── AuthenticationError        the key is missing, wrong or inactive
    ├── InsufficientBalanceError   the account has no money left
    ├── OverBudgetError            the image costs more than the user's own cap; nothing was sent
    ├── RateLimitedError           too many requests; wait, then send again
    ├── ContentRefusedError        the model or the gateway refused the content
    ├── NoImageError               the job succeeded and returned no image
    ├── UpstreamFailedError        the gateway or the model behind it failed
    │   └── NotSentError           no byte of the request was written (DNS, connect, TLS)
    ├── LostContactError           polling failed too often; the job may still succeed
    ├── TimedOutError              the job was still running at the deadline
    ├── OutcomeUnknownError        a paid request was sent and its outcome is unknown
    ├── LinkExpiredError           the image is paid for, and its link has expired
    ├── InvalidImageError          the downloaded bytes are not an image
    ├── MismatchError              the image is stored and does not match the request
    ├── IncompleteError            fewer images of a batch landed than required
    ├── StorageError               the bucket or the disk failed
    ├── LedgerError                a record can't be read or trusted
    └── UnexpectedError            an exception that is none of these
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.redaction.ranges import HTTP_STATUS, waiting
from airflow_provider_geminiimg.core.redaction.scrubbing import scrub as scrub

_Error = TypeVar("_Error", bound="GeminiImageError")

_WORD = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class Billed(str, enum.Enum):
    """Whether money was spent."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class Fault(str, enum.Enum):
    """The party that has to act: DAG author, account owner, gateway, or operators of storage and workers."""

    AUTHOR = "author"
    ACCOUNT = "account"
    GATEWAY = "gateway"
    OPERATIONS = "operations"


# Fields of an error in the ledger besides its kind, in the order of the constructor.
_WRITTEN = (
    *("message", "billed", "retryable", "hint", "code", "gateway_message", "details", "request_id"),
    *("status_code", "retry_after"),
)
_MONEY = {
    Billed.NO: "No money was spent.",
    Billed.YES: "The image was paid for.",
    Billed.UNKNOWN: "Money may have been spent.",
}
_MONEY_OF_MANY = {
    **_MONEY,
    Billed.YES: "The images that landed were paid for; the manifest says what each of the others cost.",
}


class GeminiImageError(Exception):
    """Base class of all errors of this package.

    :param message: what happened, in one or two sentences, without secrets.
    :param billed: whether money was spent. Default: `default_billed` of the class.
    :param retryable: whether a retry can help. Default: `default_retryable` of the class.
    :param hint: what to do next. Default: `default_hint` of the class.
    :param code: error code of the gateway.
    :param gateway_message: error message of the gateway.
    :param details: details of the gateway, if they say more than its message.
    :param request_id: request id of the gateway, for its support.
    :param status_code: HTTP status, if there was a response.
    :param retry_after: seconds to wait before a retry, if the gateway gave them.
    """

    kind: ClassVar[str] = "error"
    default_billed: ClassVar[Billed] = Billed.UNKNOWN
    default_retryable: ClassVar[bool] = False
    fault: ClassVar[Fault] = Fault.GATEWAY
    default_hint: ClassVar[str] = ""
    of_many = False  # about many images

    def __init__(
        self,
        message: str,
        *,
        billed: Billed | None = None,
        retryable: bool | None = None,
        hint: str | None = None,
        code: str | None = None,
        gateway_message: str | None = None,
        details: str | None = None,
        request_id: str | None = None,
        status_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.billed = self.default_billed if billed is None else billed
        self.retryable = self.default_retryable if retryable is None else retryable
        self.hint = self.default_hint if hint is None else hint
        self.code = code
        self.gateway_message = gateway_message
        self.details = details
        self.request_id = request_id
        self.status_code = status_code
        self.retry_after = retry_after

    def __str__(self) -> str:
        parts = [
            f"{label} {value}"
            for label, value in (
                ("HTTP", self.status_code),
                ("code", self.code),
                ("message:", self.gateway_message),
                ("details:", self.details),
                ("request id", self.request_id),
            )
            if value not in (None, "")
        ]
        gateway = f" (the gateway said: {'; '.join(parts)})" if parts else ""
        money = (_MONEY_OF_MANY if self.of_many else _MONEY)[self.billed]
        return printable(" ".join(part for part in (f"{self.message}{gateway}", money, self.hint) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_dict, (self.to_dict(),))

    def to_dict(self) -> dict[str, Any]:
        """This error for the ledger: plain JSON values, without unset ones."""
        values = {"kind": self.kind, **{name: getattr(self, name) for name in _WRITTEN}, "billed": self.billed.value}
        return {name: value for name, value in values.items() if value is not None}

    def evolve(self: _Error, **changes: Any) -> _Error:
        """A copy of this error with other values: same class, cause and traceback.

        An error is never changed in place, because other code may hold it. In a handler: ``raise error.evolve(hint=…)
        from error.__cause__``.

        :param changes: parameters of the constructor, and `of_many`.
        :raises TypeError: there is no such parameter.
        """
        if unknown := changes.keys() - {*_WRITTEN, "of_many"}:
            raise TypeError(f"An error of this package has no {', '.join(sorted(unknown))}.")
        evolved = type(self).__new__(type(self), changes.get("message", self.message))
        vars(evolved).update(vars(self) | changes)
        evolved.__cause__, evolved.__traceback__ = self.__cause__, self.__traceback__
        return evolved

    def scrubbed(self, *, secrets: Iterable[str] = (), prompt: str | None = None) -> GeminiImageError:
        """A copy without secrets, URL queries and the prompt in the gateway's texts.

        :param secrets: texts to remove (the API key).
        :param prompt: the prompt that was sent. ``None``: the prompt is not known here; then the gateway's free texts,
            and a code of more than one word, are withheld, because a refusal may repeat the prompt.
        """
        values = self.to_dict()
        for name in ("message", "code", "gateway_message", "details", "request_id"):
            if name in values:
                values[name] = scrub(str(values[name]), secrets=secrets, prompt=prompt)
        if prompt is None:
            for name in ("gateway_message", "details", "code", "request_id"):
                is_word = name in ("code", "request_id") and _WORD.fullmatch(str(values.get(name)))
                if values.get(name) and not is_word:
                    values[name] = "[withheld: it may repeat the prompt]"
        return from_dict(values)


class BadRequestError(GeminiImageError):
    """The request is wrong: a field, a value, an input image, a connection or a path."""

    kind = "bad_request"
    default_billed = Billed.NO
    fault = Fault.AUTHOR


class AuthenticationError(GeminiImageError):
    """The gateway does not accept the API key."""

    kind = "authentication"
    default_billed = Billed.NO
    fault = Fault.ACCOUNT
    default_hint = "Put a valid API key into the connection's password, then clear the task."


class InsufficientBalanceError(GeminiImageError):
    """The account's balance or quota does not cover the image."""

    kind = "insufficient_balance"
    default_billed = Billed.NO
    fault = Fault.ACCOUNT
    default_hint = "Top up the account, then clear the task."


class OverBudgetError(GeminiImageError):
    """The user's own cap, `max_cost` or a budget of the connection, does not cover the image."""

    kind = "over_budget"
    default_billed = Billed.NO
    fault = Fault.ACCOUNT
    default_hint = "Raise max_cost or the connection's daily_budget, then clear the task."


class RateLimitedError(GeminiImageError):
    """The gateway limits the rate of requests."""

    kind = "rate_limited"
    default_billed = Billed.NO
    default_retryable = True
    fault = Fault.ACCOUNT
    default_hint = "Lower requests_per_minute on the connection or put the tasks into an Airflow pool."


class ContentRefusedError(GeminiImageError):
    """The model or the gateway refused the content: safety, prohibited content, recitation or moderation."""

    kind = "content_refused"
    fault = Fault.AUTHOR
    default_hint = "Change the prompt or the input images, then clear the task."


class NoImageError(GeminiImageError):
    """The job succeeded without an image: text only, or an empty list."""

    kind = "no_picture"  # stored in records, so it keeps its old name
    fault = Fault.GATEWAY
    default_hint = 'Ask for an image in the prompt, or clear the task with on_clear="regenerate" to buy again.'


class UpstreamFailedError(GeminiImageError):
    """The gateway, or the model behind it, failed."""

    kind = "upstream_failed"
    default_retryable = True


class NotSentError(UpstreamFailedError):
    """No byte of the request was written: name look-up, connecting or TLS failed. Safe to send again."""

    kind = "not_sent"
    default_billed = Billed.NO
    default_hint = "Check the connection's host and the worker's network."


class LostContactError(GeminiImageError):
    """Polling failed several times in a row. The job is not affected."""

    kind = "lost_contact"
    default_billed = Billed.YES
    default_retryable = True
    default_hint = "The next attempt collects the same job; nothing is bought twice."


class TimedOutError(GeminiImageError):
    """The job was still running at the deadline. It is not cancelled."""

    kind = "timed_out"
    default_billed = Billed.YES
    default_retryable = True
    fault = Fault.OPERATIONS
    default_hint = "Raise `timeout` and clear the task: it collects the same job; nothing is bought twice."


class OutcomeUnknownError(GeminiImageError):
    """A paid request was sent and its outcome is unknown. It is never sent again without a decision of the user."""

    kind = "outcome_unknown"
    fault = Fault.OPERATIONS
    default_hint = (
        "Check in the gateway's console whether the image was made and charged, then resolve the record: "
        "`jobs resolve`, or `resolve` of GeminiImageCollectOperator. To buy the image again in any case, resolve it "
        'as `resubmit`, or clear the task with on_unknown="resubmit".'
    )


class LinkExpiredError(GeminiImageError):
    """The image was made and paid for. Its link has expired, and the gateway gives no new link."""

    kind = "link_expired"
    default_billed = Billed.YES
    default_hint = 'Download it from the gateway\'s console, or clear the task with on_clear="regenerate" to buy again.'


class InvalidImageError(GeminiImageError):
    """The result link returned bytes that are empty, cut off, too large, or not an image."""

    kind = "invalid_image"
    default_billed = Billed.YES
    default_retryable = True
    default_hint = "The next attempt downloads the same result again; nothing is bought twice."


class MismatchError(GeminiImageError):
    """The image is stored and recorded, and its shape or size does not match the request."""

    kind = "mismatch"
    default_billed = Billed.YES
    fault = Fault.GATEWAY
    default_hint = 'Use on_mismatch="accept" to accept it, or clear with on_clear="regenerate" to buy another one.'


class IncompleteError(GeminiImageError):
    """Fewer images of a batch landed than `min_success` requires. The manifest has the status of each."""

    kind = "incomplete"
    of_many = True
    fault = Fault.OPERATIONS
    default_hint = "A retry or a Clear makes only the missing images; nothing is bought twice."


class StorageError(GeminiImageError):
    """The bucket or the disk could not be read or written."""

    kind = "storage"
    default_billed = Billed.NO
    default_retryable = True
    fault = Fault.OPERATIONS


class LedgerError(GeminiImageError):
    """A record is unreadable, of a newer schema, or missing. Never treated as "no record"."""

    kind = "ledger"
    fault = Fault.OPERATIONS


class UnexpectedError(GeminiImageError):
    """An exception that no code expected: a bug in this package or in a dependency."""

    kind = "unexpected"
    default_retryable = True
    fault = Fault.OPERATIONS
    default_hint = (
        "The next attempt reads the records first: it collects paid images, and nothing is bought twice. If this "
        "happens again, report this line."
    )


def _below(kind: type[GeminiImageError]) -> Iterator[type[GeminiImageError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


KINDS: dict[str, type[GeminiImageError]] = {each.kind: each for each in _below(GeminiImageError)}

_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("message", "hint", "code", "gateway_message", "details", "request_id"), (str,)),
    "retryable": (bool,),
    "status_code": (int,),
    "retry_after": (int, float),
}
_NUMBERS = ("status_code", "retry_after")


def from_dict(values: dict[str, Any]) -> GeminiImageError:
    """The error that `GeminiImageError.to_dict` wrote. An unknown kind becomes `OutcomeUnknownError`.

    :raises TypeError: a field has an unknown name or a wrong type.
    :raises ValueError: `billed` is not a value of `Billed`.
    """
    rest = {name: value for name, value in values.items() if name not in ("kind", "billed")}
    for name, value in rest.items():
        if not isinstance(value, _TYPES.get(name, ())) or (name in _NUMBERS and isinstance(value, bool)):
            raise TypeError(f"{name} of an error can't be {type(value).__name__}.")
    rest["retry_after"] = waiting(rest.get("retry_after"))
    if HTTP_STATUS.of(rest.get("status_code")) is None:
        rest["status_code"] = None
    kind = KINDS.get(str(values.get("kind")), OutcomeUnknownError)
    return kind(rest.pop("message", ""), billed=Billed(values.get("billed", "unknown")), **rest)


def without_traceback(error: GeminiImageError) -> GeminiImageError:
    """`error` without stack frames, also in its chain of causes.

    Local variables in stack frames hold prompts, links and keys, and error reporters send local variables to other
    hosts. The ``__context__`` of each error is removed for the same reason. This changes `error` itself.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = each.__context__ = None
        each = each.__cause__
    return error
