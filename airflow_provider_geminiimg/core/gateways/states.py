"""The status words of gateways and of the channels behind them.

What must stay true: an unknown word means that the job is running, because an extra poll costs nothing; no word is in
two sets.
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
"""The job ended without an image, and the word does not say whether it was charged."""
DONE = frozenset(
    (
        *("success", "succeed", "succeeded", "successful", "complete", "completed", "done", "finish", "finished"),
        *("ready", "generated", "partially_succeeded"),
    )
)
"""The job succeeded."""
PENDING = frozenset(
    (
        *("queued", "in_queue", "queueing", "pending", "waiting", "submitted", "accepted", "created", "scheduled"),
        *("not_start", "not_started", "starting", "started", "running", "in_progress", "processing", "generating"),
    )
)
"""The job has not ended. A word in no set also counts as running, but may come with an image."""
STATES: Mapping[str, JobState] = {
    **dict.fromkeys(DONE, JobState.DONE),
    **dict.fromkeys(FAILED | ENDED, JobState.FAILED),
}


def status_word(record: Mapping[str, Any]) -> str | None:
    """The status word of a record, normalized; ``None`` if it has none (a number is an HTTP status)."""
    for key in _KEYS:
        value = record.get(key)
        if isinstance(value, str) and value.strip() and not value.strip().isdecimal():
            return _PREFIX.sub("", re.sub(r"[\s_-]+", "_", value.strip().lower()))
    return None


def without_image(word: str | None) -> bool:
    """Whether a job with this word has no image; then a URL beside the word is an input or a status URL."""
    return word in PENDING or state_of(word) is JobState.FAILED


def state_of(word: str | None) -> JobState | None:
    """The state of a word from `status_word`; ``None`` for ``None``."""
    return None if word is None else STATES.get(word, JobState.RUNNING)
