"""APIMaster.ai: an images endpoint in OpenAI's manner, in front of several channels that answer each in its own shape.

What must stay true: the asynchronous endpoint is used unless a caller asks to wait; every poll names the model,
because the gateway assumes another one by default; a 5xx counts as "not charged" only where the gateway itself says
so in its own JSON; a bad answer to a poll says nothing about the job.

Sources: APIMaster.ai's guide of the model and its getting-started page, and what public clients show of its answers.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    OutcomeUnknownError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.gateways import _answers
from airflow_provider_geminiimg.gateways._answers import Answer, Purpose, Reason, Rule, Rules
from airflow_provider_geminiimg.gateways.base import (
    Call,
    CheckResult,
    Gateway,
    InputImage,
    JobState,
    JobStatus,
    Reply,
    as_mapping,
)
from airflow_provider_geminiimg.request import CheckedRequest

ASYNC_READ_TIMEOUT = 180.0  # seconds; the gateway's guide asks for at least this much

_FIELDS = {
    "aspect_ratio": "size",
    "resolution": "resolution",
    "google_search": "google_search",
    "google_image_search": "google_image_search",
}
_RESOLUTIONS = {"512": "0.5K"}
_STATES = {
    **dict.fromkeys(("succeeded", "success", "completed"), JobState.DONE),
    **dict.fromkeys(("failed", "error", "cancelled"), JobState.FAILED),
}
_NO_SUCH_TASK = "task_not_exist"

_RULES: Rules = {
    **_answers.COMMON_RULES,
    (None, "insufficient_user_quota"): _answers.BALANCE,
    (404, None): Rule(
        BadRequestError,
        "does not offer this model on this key or address.",
        hint="Choose a model that the account has enabled, and check the connection's host.",
    ),
    (408, None): Rule(
        OutcomeUnknownError,
        "stopped waiting for the picture. It watches the job for up to 20 more minutes and charges if it finishes.",
        Billed.UNKNOWN,
    ),
    (502, None): _answers.REFUNDED,
    (503, None): Rule(UpstreamFailedError, "has no channel for this model at the moment."),
}


class ApiMaster(Gateway):
    """The adapter of APIMaster.ai. See `Gateway` for the operations."""

    name = "apimaster"
    label = "APIMaster.ai"
    default_base_url = "https://apimaster.ai/v1"

    def auth_headers(self, api_key: str) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {api_key}"}

    def reference(self, image: InputImage) -> str:
        """The picture's own public address, else its bytes as a data URI."""
        return image.url or f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"

    def submit(self, request: CheckedRequest, handles: Sequence[str], *, wait: bool = False) -> Call[JobStatus]:
        fields = {wire: getattr(request, neutral) for neutral, wire in _FIELDS.items()}
        fields["resolution"] = _RESOLUTIONS.get(fields["resolution"], fields["resolution"])
        body = {
            "model": request.row.wire_model,
            "prompt": request.prompt,
            "n": 1,
            **{name: value for name, value in fields.items() if value is not None},
            **({"image_urls": list(handles)} if handles else {}),
        }
        return Call(
            httpx.Request("POST", f"{self.base_url}/images/generations{'' if wait else '/async'}", json=body),
            self._submitted,
            billable=True,
            read_timeout=request.row.read_timeout(request.resolution) if wait else ASYNC_READ_TIMEOUT,
            prompt=request.prompt,
        )

    def status(self, job_id: str, *, model: str) -> Call[JobStatus]:
        url = f"{self.base_url}/tasks/{_answers.segment(job_id)}?model={quote(model, safe='')}"
        return Call(url, functools.partial(self._polled, job_id))

    def check(self) -> Call[CheckResult]:
        return Call(f"{self.base_url}/models", self._checked)

    def _checked(self, reply: Reply) -> CheckResult:
        answer = Answer(reply)
        rows = answer.body.get("data")
        if not (answer.ok and isinstance(rows, list)):
            raise answer.rejected(self.label, Purpose.FREE, _RULES)
        ids = (_answers.clean(row.get("id") if isinstance(row, Mapping) else row) for row in rows)
        return CheckResult(models=tuple(name for name in ids if name))

    def _submitted(self, reply: Reply) -> JobStatus:
        answer = Answer(reply)
        status = self._read(answer) if answer.ok else None
        if status is None:
            raise answer.rejected(self.label, Purpose.PAID, _RULES)
        if status.state is not JobState.RUNNING or status.job_id is not None:
            return status
        if made := _answers.pictures(list(_answers.results(answer.body))):
            return dataclasses.replace(status, state=JobState.DONE, pictures=made)
        rule = _answers.NO_HANDLE if _state(_task(answer.body)) is JobState.DONE else _answers.UNKNOWN
        raise answer.outcome(self.label, rule, answer.reason)

    def _polled(self, job_id: str, reply: Reply) -> JobStatus:
        answer = Answer(reply)
        if answer.reason.code == _NO_SUCH_TASK or (answer.status == 404 and _says_no_task(answer)):
            return JobStatus(JobState.VANISHED, job_id=job_id)
        status = self._read(answer) if answer.ok else None
        if status is None:
            raise answer.rejected(self.label, Purpose.POLL, _RULES)
        if status.state is JobState.RUNNING and _state(_task(answer.body)) is JobState.DONE:
            raise answer.outcome(self.label, _answers.NO_LINK, Reason())
        return dataclasses.replace(status, job_id=job_id)

    def _read(self, answer: Answer) -> JobStatus | None:
        """What an answer says of its task; ``None`` where it says nothing. Done without a link counts as running."""
        task = _task(answer.body)
        found = list(_answers.results(answer.body))
        made = _answers.pictures(found)
        state, job_id = _state(task), _answers.job_id_of(task.get("task_id"), task.get("id"))
        error = None
        if state is None:
            state = JobState.DONE if made else JobState.RUNNING if job_id else None
        elif state is JobState.FAILED:
            reason = _answers.reason_of(task)
            error = answer.outcome(self.label, _answers.find_rule(_RULES, None, reason.code, _answers.REFUNDED), reason)
        elif state is JobState.DONE and not made:
            state = JobState.RUNNING
            if not any(map(_answers.names_a_file, found)):
                state = JobState.FAILED
                error = answer.outcome(self.label, _answers.NO_PICTURE, _text_answer(task, found))
        if state is None:
            return None
        image = _first_image(task)
        return JobStatus(
            state,
            made if state is JobState.DONE else (),
            error,
            job_id,
            cost=_answers.number(task.get("cost")),
            progress=_answers.number(task.get("progress")),
            expires_at=_answers.number(task.get("expires_at") or image.get("expires_at")),
        )


def _task(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task in an answer: `data`, the first object in `data`, or the answer itself."""
    data = body.get("data")
    if isinstance(data, list):
        data = next((item for item in data if isinstance(item, Mapping)), None)
    return data if isinstance(data, Mapping) else body


def _state(task: Mapping[str, Any]) -> JobState | None:
    """The state by the task's own word: a word that is not known is still running, none at all says nothing."""
    word = task.get("status")
    return _STATES.get(word.strip().lower(), JobState.RUNNING) if isinstance(word, str) and word.strip() else None


def _says_no_task(answer: Answer) -> bool:
    """Whether a 404 is about the task, and neither a proxy's page nor about the model."""
    return not answer.markup and "model" not in (answer.reason.code or "")


def _first_image(task: Mapping[str, Any]) -> Mapping[str, Any]:
    images = as_mapping(task.get("result")).get("images")
    return as_mapping(images[0]) if isinstance(images, list) and images else {}


def _text_answer(task: Mapping[str, Any], found: Sequence[str]) -> Reason:
    """Why a job that ended well has no picture: what it says of itself, else the words it brought instead."""
    reason = _answers.reason_of(task)
    return reason if reason.code or reason.message else _answers.reason_of(found[0] if found else None)
