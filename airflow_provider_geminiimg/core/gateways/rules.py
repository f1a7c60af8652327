"""Which error a response means, and whether money was spent: the tables that all adapters share.

What must stay true: a response to a paid call means "not charged" only if a rule says so.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    GeminiImageError,
    InsufficientBalanceError,
    NoImageError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)


class Purpose(enum.Enum):
    """Purpose of a call; it decides whether an invalid response may mean that money was spent."""

    PAID = "paid"
    FREE = "free"
    POLL = "poll"


@dataclass(frozen=True)
class Rule:
    """The error for one kind of response.

    :param error: the class of the error.
    :param message: the message after the gateway's name.
    :param billed: whether money was spent.
    :param retryable: whether a retry can help; default: the class's default.
    :param hint: what to do next; default: the class's default.
    """

    error: type[GeminiImageError]
    message: str
    billed: Billed = Billed.NO
    retryable: bool | None = None
    hint: str | None = None


Rules = Mapping[tuple[int | None, str | None], Rule]
"""By HTTP status and the gateway's error code; ``None`` matches any."""

_FIX = "Correct the value that the gateway names, then clear the task."
_NEXT_POLL = "The job is not affected. The next poll asks again; nothing is bought twice."

WRONG = Rule(BadRequestError, "refused the request as invalid.", hint=_FIX)
BALANCE = Rule(InsufficientBalanceError, "refused the request: the account's balance does not cover it.")
SLOW_DOWN = Rule(RateLimitedError, "limits the request rate.")
REFUNDED = Rule(UpstreamFailedError, "could not generate the image and does not charge for it.")
UNKNOWN = Rule(
    OutcomeUnknownError,
    "gave no response that says whether it accepted the request.",
    billed=Billed.UNKNOWN,
    retryable=False,
)
FREE_FAILED = Rule(UpstreamFailedError, "gave no valid response to a free call.")
POLL_FAILED = Rule(UpstreamFailedError, "gave no valid response about the job.", Billed.YES, True, _NEXT_POLL)
ANOTHER_JOB = Rule(UpstreamFailedError, "responded about another job.", Billed.YES, True, _NEXT_POLL)
ENDED = Rule(
    UpstreamFailedError,
    "ended the job without an image.",
    Billed.UNKNOWN,
    retryable=False,
    hint='Check the account\'s usage. To buy again, clear the task with on_clear="regenerate".',
)
NO_IMAGE = Rule(NoImageError, "finished the job without an image.", Billed.UNKNOWN)
NO_LINK = Rule(
    UpstreamFailedError,
    "generated the image but has not returned a usable link to it yet.",
    Billed.YES,
    True,
    "The next poll asks for the link again; nothing is bought twice.",
)
NO_HANDLE = Rule(
    OutcomeUnknownError, "generated the image but returned neither a usable link to it nor a job id.", Billed.YES
)

COMMON_RULES: Rules = {
    **{(status, None): WRONG for status in (400, 404, 405, 413, 415, 422)},
    (401, None): Rule(AuthenticationError, "does not accept the API key."),
    (402, None): BALANCE,
    (403, None): Rule(
        AuthenticationError,
        "does not allow this key to make the request.",
        hint="Check the permissions of the key in the gateway's console, then clear the task.",
    ),
    (429, None): SLOW_DOWN,
}

POLL_RULES: Mapping[int, Rule] = {
    401: Rule(
        AuthenticationError,
        "no longer accepts the API key. The job is not affected.",
        Billed.YES,
        hint="Put a valid API key into the connection's password, then clear the task to continue with the same job.",
    ),
    429: Rule(RateLimitedError, "limits the rate of polls.", Billed.YES),
}


def find_rule(rules: Rules, status: int | None, code: str | None, default: Rule) -> Rule:
    """The rule for a status and a code: first for both, then for the code alone, then for the status alone."""
    for key in ((status, code), (None, code), (status, None)):
        if key != (None, None) and key in rules:
            return rules[key]
    return default
