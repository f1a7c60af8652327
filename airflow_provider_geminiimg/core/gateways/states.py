"""The words by which gateways and the channels behind them say how a job stands.

What must stay true: a word that is not known means that the job is running, because a poll too many costs nothing; no
word is in two sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_geminiimg.core.gateways.base import JobState

_KEYS = ("status", "task_status", "taskStatus", "job_status", "jobStatus", "state")
_PREFIX = re.compile(r"^(job|batch|task|image)_(state|status)_")

FAILED = frozenset(("fail", "failed", "failure", "error", "errored", "cancelled", "canceled"))
"""The job ended without an image."""
ENDED = frozenset(
    (
        *("expired", "timeout", "timed_out", "timedout", "time_out", "rejected", "refused", "blocked", "moderated"),
        *("aborted", "terminated", "killed", "stopped", "incomplete", "budget_exceeded", "dead"),
    )
)
"""The job ended too, and the word does not tell whether it was charged."""
DONE = frozenset(
    (
        *("success", "succeed", "succeeded", "successful", "complete", "completed", "done", "finish", "finished"),
        *("ready", "generated", "partially_succeeded"),
    )
)
"""The job ended well."""
PENDING = frozenset(
    (
        *("queued", "in_queue", "queueing", "pending", "waiting", "submitted", "accepted", "created", "scheduled"),
        *("not_start", "not_started", "starting", "started", "running", "in_progress", "processing", "generating"),
    )
)
"""The job has not ended. A word that is in no set counts as running, too, and does not rule out an image."""
STATES: Mapping[str, JobState] = {
    **dict.fromkeys(DONE, JobState.DONE),
    **dict.fromkeys(FAILED | ENDED, JobState.FAILED),
}


def status_word(record: Mapping[str, Any]) -> str | None:
    """The record's own word, in one spelling; ``None`` where it says none (a number is an HTTP status)."""
    for key in _KEYS:
        said = record.get(key)
        if isinstance(said, str) and said.strip() and not said.strip().isdecimal():
            return _PREFIX.sub("", re.sub(r"[\s_-]+", "_", said.strip().lower()))
    return None


def without_image(word: str | None) -> bool:
    """Whether a job of this word has no image, so that an address beside it is an input or where to ask again."""
    return word in PENDING or state_of(word) is JobState.FAILED


def state_of(word: str | None) -> JobState | None:
    """The state that a word of `status_word` stands for; ``None`` for no word."""
    return None if word is None else STATES.get(word, JobState.RUNNING)
