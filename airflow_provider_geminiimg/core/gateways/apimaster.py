"""The adapter of APIMaster.ai: an OpenAI-style images endpoint over several channels with different response formats.

What must stay true: the asynchronous endpoint is used unless a caller asks for a synchronous response; every poll names
the model, because the gateway assumes another one by default; a 5xx counts as "not charged" only if the gateway's own
JSON says so; an invalid response to a poll does not change the job's state.

How a response becomes a `JobStatus`, in the order of the functions below: `_task` finds the task in the body, `_word`
its status word, `_find_images` its images, and `ApiMaster._read` decides.

Sources: APIMaster.ai's model guide and getting-started page, and responses in the tests of public clients.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from airflow_provider_geminiimg.core.gateways import model_refusals, reasons, responses, results, rules, states
from airflow_provider_geminiimg.core.gateways.base import (
    Call,
    CheckResult,
    Gateway,
    InputImage,
    JobState,
    JobStatus,
    Reply,
    ResultImage,
    as_mapping,
    paid_request,
)
from airflow_provider_geminiimg.core.gateways.reasons import Reason
from airflow_provider_geminiimg.core.gateways.responses import GatewayResponse
from airflow_provider_geminiimg.core.gateways.results import Known, Result
from airflow_provider_geminiimg.core.gateways.rules import Purpose, Rule, Rules
from airflow_provider_geminiimg.core.redaction.ranges import PROGRESS, REPORTED_COST, UNIX_SECONDS, number
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    OutcomeUnknownError,
    UpstreamFailedError,
)

ASYNC_READ_TIMEOUT = 180.0  # seconds; the gateway's guide asks for at least this much

_FIELDS = {
    "aspect_ratio": "size",
    "resolution": "resolution",
    "google_search": "google_search",
    "google_image_search": "google_image_search",
}
_RESOLUTIONS = {"512": "0.5K"}
_NO_SUCH_TASK = re.compile(r"task_not_exist\b", re.IGNORECASE)
_TASK_IDS = ("task_id", "taskId", "job_id")
_IDS = (*_TASK_IDS, "id")
# Fields of a task that the envelope around it never has.
_TASK_ONLY_FIELDS = (
    *("result", "results", "output", "outputs", "result_url", "progress", "cost", "expires_at", "task_status"),
    *("fail_reason", "failReason", "failure_reason", "submit_time", "start_time", "finish_time", "completed_at"),
)
_REASONS = ("fail_reason", "failReason", "failure_reason")
_CALL_FAILED = frozenset(("error", "fail"))  # words that an envelope also uses for the call itself

_RULES: Rules = {
    **rules.COMMON_RULES,
    (None, "insufficient_user_quota"): rules.BALANCE,
    (404, None): Rule(
        BadRequestError,
        "does not offer this model with this key or at this address.",
        hint="Choose a model that the account has enabled, and check the connection's host.",
    ),
    (408, None): Rule(
        OutcomeUnknownError,
        "stopped waiting for the image. It runs the job for up to 20 more minutes and charges for it if it finishes.",
        Billed.UNKNOWN,
    ),
    (502, None): rules.REFUNDED,
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
        """The image's public URL, else its bytes as a data URI."""
        return image.url or f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"

    def submit(self, request: CheckedRequest, handles: Sequence[str], *, synchronous: bool = False) -> Call[JobStatus]:
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
            paid_request(f"{self.base_url}/images/generations{'' if synchronous else '/async'}", body),
            model_refusals.explained(functools.partial(self._submitted, request), self.name, request.row.wire_model),
            billable=True,
            read_timeout=request.row.read_timeout(request.resolution) if synchronous else ASYNC_READ_TIMEOUT,
            prompt=request.prompt,
        )

    def status(self, job_id: str, *, model: str, inputs: Collection[str] = ()) -> Call[JobStatus]:
        url = f"{self.base_url}/tasks/{responses.segment(job_id)}?model={quote(model, safe='')}"
        return Call(url, model_refusals.explained(functools.partial(self._polled, job_id, inputs), self.name, model))

    def check(self) -> Call[CheckResult]:
        return Call(f"{self.base_url}/models", self._checked)

    def models(self, operation: str = "generate") -> Call[CheckResult]:
        return self.check()

    def _checked(self, reply: Reply) -> CheckResult:
        answer = GatewayResponse(reply)
        rows = answer.body.get("data")
        if not (answer.ok and isinstance(rows, list)):
            raise answer.rejected(self.label, Purpose.FREE, _RULES)
        ids = (reasons.clean(row.get("id") if isinstance(row, Mapping) else row) for row in rows)
        return CheckResult(models=tuple(name for name in ids if name))

    def _submitted(self, request: CheckedRequest, reply: Reply) -> JobStatus:
        answer = GatewayResponse(reply, prompt=request.prompt)
        status = self._read(answer, Known(request.input_images).without_inputs(answer.body))
        if status is None or not (answer.ok or status.images):
            return responses.accepted_all_the_same(
                answer.rejected(self.label, Purpose.PAID, _RULES), *_named_jobs(answer.body)
            )
        if status.state is not JobState.RUNNING or status.job_id is not None:
            return status
        rule = rules.NO_HANDLE if _state(answer.body) is JobState.DONE else rules.UNKNOWN
        raise answer.error(self.label, rule, answer.reason)

    def _polled(self, job_id: str, inputs: Collection[str], reply: Reply) -> JobStatus:
        answer = GatewayResponse(reply)
        body = Known(inputs).without_inputs(_about(job_id, answer.body))
        if responses.names_another_job(job_id, *map(_task(body).get, _IDS)):
            raise answer.error(self.label, rules.ANOTHER_JOB, Reason())
        if any(_NO_SUCH_TASK.match(text or "") for text in (answer.reason.code, answer.reason.message)):
            return JobStatus(JobState.VANISHED, job_id=job_id)
        status = self._read(answer, body) if answer.ok else None
        if status is None:
            raise answer.rejected(self.label, Purpose.POLL, _RULES)
        if status.state is JobState.RUNNING and _state(body) is JobState.DONE:
            raise answer.error(self.label, rules.NO_LINK, Reason())
        return dataclasses.replace(status, job_id=job_id)

    def _read(self, answer: GatewayResponse, body: Mapping[str, Any]) -> JobStatus | None:
        """The status of the task in a response; ``None`` if the response says nothing about a task."""
        task = _task(body)
        found, images = _find_images(answer, body)
        job_id = responses.job_id_of(*map(task.get, _IDS), *_named_jobs(body))
        error = None
        match _state(body):
            case _ if images:  # an image counts more than any status word
                state = JobState.DONE
            case None if job_id is None:
                return None
            case JobState.FAILED as state:
                error = self._failed(answer, body)
            case JobState.DONE if not any(map(results.names_a_file, found)):
                state, error = JobState.FAILED, answer.error(self.label, rules.NO_IMAGE, _text_answer(task, found))
            case _:  # running, a job id without a status word, or done but the link to the file is still missing
                state = JobState.RUNNING
        image = _first_image(task)
        return JobStatus(
            state,
            images,
            error,
            job_id,
            cost=REPORTED_COST.of(task.get("cost")),
            progress=PROGRESS.of(task.get("progress")),
            expires_at=UNIX_SECONDS.of(task.get("expires_at") or image.get("expires_at")),
        )

    def _failed(self, answer: GatewayResponse, body: Mapping[str, Any]) -> GeminiImageError:
        """The error of a failed task. Some status words mean that the gateway refunds the task."""
        reason = reasons.reason_of(_task(body))
        if not reason.code and not reason.message:
            reason = reasons.reason_of(body)
        rule = rules.REFUNDED if _word(body) in states.FAILED else rules.ENDED
        return answer.error(self.label, rules.find_rule(_RULES, None, reason.outer_code, rule), reason)


def _about(job_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """`body` without the tasks of other jobs; unchanged if it names other jobs only."""
    rows = body.get("data")
    if not isinstance(rows, list):
        return body
    others = [isinstance(row, Mapping) and responses.names_another_job(job_id, *map(row.get, _IDS)) for row in rows]
    return (
        body if all(others) else {**body, "data": [row for row, other in zip(rows, others, strict=True) if not other]}
    )


def _task(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task in a response: `data`, the first object in `data`, or the response itself."""
    data = body.get("data")
    if isinstance(data, list):
        data = next((item for item in data if isinstance(item, Mapping)), None)
    return data if isinstance(data, Mapping) else body


def _word(body: Mapping[str, Any]) -> str | None:
    """The status word of the task; ``None`` if the only word is about the call.

    A response without a job id may be about the call alone. Then these rules apply in this order:

    - The word of an object in ``data`` is the task's, except a failure in a response that says that the call failed.
    - Another word for a failure is the task's if the object has fields of a task and the word is not used for calls.
    - Any other word is the task's if there is no object in ``data``.
    """
    task = _task(body)
    own_word = states.status_word(task)
    word = own_word or states.status_word(body)
    has_id = any(map(body.get, _IDS)) or any(map(task.get, _IDS))
    failed = states.state_of(word) is JobState.FAILED
    if has_id:
        is_of_task = True
    elif own_word and task is not body:
        is_of_task = not (failed and _call_failed(body))
    elif failed:
        is_of_task = word not in _CALL_FAILED and any(key in task for key in _TASK_ONLY_FIELDS)
    else:
        is_of_task = task is body
    return word if is_of_task else None


def _call_failed(body: Mapping[str, Any]) -> bool:
    """Whether the envelope says that the call failed, so that it says nothing about the task."""
    code = body.get("code")
    status = number(code)
    word = code.strip().lower() if isinstance(code, str) else None
    return body.get("success") is False or word in states.FAILED or (status is not None and status >= 400)


def _named_jobs(body: Mapping[str, Any]) -> list[Any]:
    """Values that may be the job id. `id` may be the id of the call, so it counts only beside a job's status word."""
    task = _task(body)
    ids = [source.get(key) for source in (task, body) for key in _TASK_IDS]
    if states.state_of(states.status_word(task)) is JobState.DONE:
        ids.append(task.get("id"))
    return ids + [source.get("id") for source in (task, body) if states.status_word(source) in states.PENDING]


def _find_images(answer: GatewayResponse, body: Mapping[str, Any]) -> tuple[list[Result], tuple[ResultImage, ...]]:
    """The texts in the places for results, and the images in them.

    If no image is in a field that only results use, a link in a failure-reason field is preferred to a link elsewhere,
    which may be an input image.
    """
    unambiguous = results.only_results(body)
    found = unambiguous if _has_no_image(answer, body) else results.results(body)
    images = results.images(found)
    if not results.images(unambiguous):
        images = _images_in_reason(body) or images
    return found, images


def _has_no_image(answer: GatewayResponse, body: Mapping[str, Any]) -> bool:
    """Whether the task has no image by its status, so that only a link in a field for results alone counts."""
    task = _task(body)
    word = states.status_word(task) or _word(body)
    if not answer.ok and (answer.reason.code or answer.reason.message):
        return states.state_of(word) is not JobState.DONE
    # A list of images without a job id is the response of the synchronous endpoint.
    has_job = not isinstance(body.get("data"), list) or any(source.get(key) for source in (task, body) for key in _IDS)
    return has_job and states.without_image(word)


def _state(body: Mapping[str, Any]) -> JobState | None:
    return states.state_of(_word(body))


def _images_in_reason(body: Mapping[str, Any]) -> tuple[ResultImage, ...]:
    """Images in a failure-reason field: before the gateway had a field for the link, it stored the link there."""
    task = _task(body)
    if states.state_of(states.status_word(task) or states.status_word(body)) is JobState.FAILED:
        return ()
    found = (results.images(results.results(source.get(key))) for source in (task, body) for key in _REASONS)
    return next(filter(None, found), ())


def _first_image(task: Mapping[str, Any]) -> Mapping[str, Any]:
    images = as_mapping(task.get("result")).get("images")
    return as_mapping(images[0]) if isinstance(images, list) and images else {}


def _text_answer(task: Mapping[str, Any], found: Sequence[Result]) -> Reason:
    """Why a finished job has no image: its own reason, else the text in the place of the image."""
    reason = reasons.reason_of(task)
    return reason if reason.code or reason.message else reasons.reason_of(found[0].text if found else None)
