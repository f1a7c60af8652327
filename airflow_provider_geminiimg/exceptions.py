"""The closed tree of outcomes: everything that can go wrong with one image, and what it means for the money.

What must stay true: every failure that leaves this package is one of these; each knows whether money was spent,
whether a retry can help and whose fault it is; none carries a key, a signed link, a prompt or image bytes
(`scrubbed` takes them out of what a gateway said). Nothing here knows Airflow, HTTP or a gateway.

    GeminiImageError
    ├── BadRequestError            what was asked is wrong; nothing was sent
    ├── AuthenticationError        the key is missing, wrong or inactive
    ├── InsufficientBalanceError   the account has no money left
    ├── OverBudgetError            a cap of the user's own does not cover it; nothing was sent
    ├── RateLimitedError           too many requests; wait and ask again
    ├── ContentRefusedError        the model or the gateway refused the content
    ├── NoImageError               the job ended well and brought no image
    ├── UpstreamFailedError        the gateway or the model behind it failed
    │   └── NotSentError           no byte of the request was written (DNS, connect, TLS)
    ├── LostContactError           polling failed too often; the job itself may be fine
    ├── TimedOutError              the job was still running at the deadline
    ├── OutcomeUnknownError        a paid request went out and nobody knows what became of it
    ├── LinkExpiredError           paid for, and the result link no longer answers
    ├── InvalidImageError          what was downloaded is not an image
    ├── MismatchError              the image is stored, but is not what was asked for
    ├── IncompleteError            of many images, fewer landed than must
    ├── StorageError               the bucket or the disk failed
    ├── LedgerError                the record of what was paid for can't be read or trusted
    └── UnexpectedError            something was raised that is none of these
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
    """Who has to act: the DAG's author, the account's owner, the gateway, or whoever runs storage and workers."""

    AUTHOR = "author"
    ACCOUNT = "account"
    GATEWAY = "gateway"
    OPERATIONS = "operations"


# What the ledger keeps of an outcome beside its kind, in the order of the constructor.
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
    Billed.YES: "What landed was paid for; what each of the others cost, the manifest says.",
}


class GeminiImageError(Exception):
    """Base of every outcome that is not an image.

    :param message: what happened, in one or two sentences, free of secrets.
    :param billed: whether money was spent; default: the class's own answer.
    :param retryable: whether trying the same again can help; default: the class's own answer.
    :param hint: what to do next; default: the class's own answer.
    :param code: the gateway's own error code.
    :param gateway_message: the gateway's own message.
    :param details: the gateway's own details, where it tells more than the message.
    :param request_id: the gateway's id of the request, for its support.
    :param status_code: the HTTP status, where there was one.
    :param retry_after: seconds to wait before asking again, where the gateway told them.
    """

    kind: ClassVar[str] = "error"
    default_billed: ClassVar[Billed] = Billed.UNKNOWN
    default_retryable: ClassVar[bool] = False
    fault: ClassVar[Fault] = Fault.GATEWAY
    default_hint: ClassVar[str] = ""
    of_many = False  # whether it is about many images

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
        said = [
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
        gateway = f" (the gateway said: {'; '.join(said)})" if said else ""
        money = (_MONEY_OF_MANY if self.of_many else _MONEY)[self.billed]
        return printable(" ".join(part for part in (f"{self.message}{gateway}", money, self.hint) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_dict, (self.to_dict(),))

    def to_dict(self) -> dict[str, Any]:
        """What the ledger keeps of this outcome: plain JSON values, unset ones left out."""
        values = {"kind": self.kind, **{name: getattr(self, name) for name in _WRITTEN}, "billed": self.billed.value}
        return {name: value for name, value in values.items() if value is not None}

    def evolve(self: _Error, **changes: Any) -> _Error:
        """A copy of this outcome with other values, of the same class, with the same cause and traceback.

        An outcome is never changed itself: others may hold it. In a handler: ``raise error.evolve(hint=…) from
        error.__cause__``.

        :param changes: the constructor's parameters, and `of_many`.
        :raises TypeError: there is no such value.
        """
        if unknown := changes.keys() - {*_WRITTEN, "of_many"}:
            raise TypeError(f"An outcome has no {', '.join(sorted(unknown))}.")
        evolved = type(self).__new__(type(self), changes.get("message", self.message))
        vars(evolved).update(vars(self) | changes)
        evolved.__cause__, evolved.__traceback__ = self.__cause__, self.__traceback__
        return evolved

    def scrubbed(self, *, secrets: Iterable[str] = (), prompt: str | None = None) -> GeminiImageError:
        """This outcome without secrets, URL queries and the prompt's text in what the gateway said.

        :param secrets: texts to take out wherever they stand (the API key).
        :param prompt: the prompt that was sent. ``None`` means that it is not known here: then the gateway's free
            text, and a code that is no single word, is withheld, because a refusal may repeat the prompt.
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
    """What was asked is wrong: a field, a value, an input image, a connection, a path."""

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
    """The user's own cap, `max_cost` or the connection's `daily_budget`, does not cover the image."""

    kind = "over_budget"
    default_billed = Billed.NO
    fault = Fault.ACCOUNT
    default_hint = "Raise max_cost or the connection's daily_budget, then clear the task."


class RateLimitedError(GeminiImageError):
    """The gateway asks to slow down."""

    kind = "rate_limited"
    default_billed = Billed.NO
    default_retryable = True
    fault = Fault.ACCOUNT
    default_hint = "Lower requests_per_minute on the connection or put the tasks into an Airflow pool."


class ContentRefusedError(GeminiImageError):
    """Safety, prohibited content, recitation or moderation: no image of this prompt will be made."""

    kind = "content_refused"
    fault = Fault.AUTHOR
    default_hint = "Change the prompt or the input images, then clear the task."


class NoImageError(GeminiImageError):
    """The job ended well, without an image in it (text only, an empty list)."""

    kind = "no_picture"  # the word that records have
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
    """Polling failed several times in a row. That says nothing about the job, which is left alone."""

    kind = "lost_contact"
    default_billed = Billed.YES
    default_retryable = True
    default_hint = "The next attempt picks the same job up again; nothing is bought twice."


class TimedOutError(GeminiImageError):
    """The job was still running at the deadline. It is left alone."""

    kind = "timed_out"
    default_billed = Billed.YES
    default_retryable = True
    fault = Fault.OPERATIONS
    default_hint = "Raise `timeout` and clear the task: it picks the same job up again, nothing is bought twice."


class OutcomeUnknownError(GeminiImageError):
    """A request that costs money went out and no answer says what became of it. Never sent again by itself."""

    kind = "outcome_unknown"
    fault = Fault.OPERATIONS
    default_hint = (
        "Look at the gateway's console whether the image was made and charged, then settle it: `jobs resolve`, or "
        "`resolve` of GeminiImageCollectOperator. To buy it again all the same, settle it as `resubmit`, or clear "
        'the task with on_unknown="resubmit".'
    )


class LinkExpiredError(GeminiImageError):
    """The image was made and paid for, but its link no longer answers, nor does the gateway give a fresh one."""

    kind = "link_expired"
    default_billed = Billed.YES
    default_hint = 'Download it from the gateway\'s console, or clear the task with on_clear="regenerate" to buy again.'


class InvalidImageError(GeminiImageError):
    """What the result link brought is empty, cut, too large, or not an image."""

    kind = "invalid_image"
    default_billed = Billed.YES
    default_retryable = True
    default_hint = "The next attempt downloads the same result again; nothing is bought twice."


class MismatchError(GeminiImageError):
    """The image is stored and recorded, but its shape or size is not what was asked for."""

    kind = "mismatch"
    default_billed = Billed.YES
    fault = Fault.GATEWAY
    default_hint = 'Use on_mismatch="accept" to take it, or clear with on_clear="regenerate" to buy another one.'


class IncompleteError(GeminiImageError):
    """Of the images of a batch, fewer landed than `min_success` asks for; its manifest says what became of each."""

    kind = "incomplete"
    of_many = True
    fault = Fault.OPERATIONS
    default_hint = "A retry or a Clear makes what is missing, and nothing twice."


class StorageError(GeminiImageError):
    """The bucket or the disk could not be read or written."""

    kind = "storage"
    default_billed = Billed.NO
    default_retryable = True
    fault = Fault.OPERATIONS


class LedgerError(GeminiImageError):
    """A record is unreadable, of a newer schema, or not where another attempt left it. Never taken for "no record"."""

    kind = "ledger"
    fault = Fault.OPERATIONS


class UnexpectedError(GeminiImageError):
    """Something was raised that is no outcome: a mistake of this package, or of what it stands on."""

    kind = "unexpected"
    default_retryable = True
    fault = Fault.OPERATIONS
    default_hint = (
        "The next attempt looks at the records first: what was paid for is collected, and nothing is bought twice. If "
        "it happens again, report this line."
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
    """The outcome that `GeminiImageError.to_dict` described; a kind that is not known is outcome unknown.

    :raises TypeError: a value has another type than it gave, or another name.
    :raises ValueError: `billed` is not one of its words.
    """
    rest = {name: value for name, value in values.items() if name not in ("kind", "billed")}
    for name, value in rest.items():
        if not isinstance(value, _TYPES.get(name, ())) or (name in _NUMBERS and isinstance(value, bool)):
            raise TypeError(f"{name} of an outcome can't be {type(value).__name__}.")
    rest["retry_after"] = waiting(rest.get("retry_after"))
    if HTTP_STATUS.of(rest.get("status_code")) is None:
        rest["status_code"] = None
    kind = KINDS.get(str(values.get("kind")), OutcomeUnknownError)
    return kind(rest.pop("message", ""), billed=Billed(values.get("billed", "unknown")), **rest)


def without_traceback(error: GeminiImageError) -> GeminiImageError:
    """`error` without stack frames, its own and those of what stands behind it.

    Their local variables hold prompts, links and keys, and error reporters send local variables away. What `error` was
    not raised ``from`` is let go for the same reason.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = each.__context__ = None
        each = each.__cause__
    return error
