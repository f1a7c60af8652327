"""The adapter of 1min.ai: one endpoint for all models; results are storage keys, with one signed link beside them.

What must stay true: a submit requests an asynchronous job but accepts a finished image (the gateway may ignore
`async`); an image whose storage key has no link exists and was paid for, so it is polled again and never treated as
lost; unset fields are omitted, because this gateway ignores or misreads unexpected fields.

Sources: the model pages of 1min.ai's API documentation, its pages "asset-api" and "get-result", and errors in the
tests of public clients.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import httpx

from airflow_provider_geminiimg.core.gateways import model_refusals, reasons, responses, results, rules
from airflow_provider_geminiimg.core.gateways.base import (
    Call,
    CheckResult,
    Gateway,
    InputImage,
    JobState,
    JobStatus,
    Reply,
    as_mapping,
    paid_request,
)
from airflow_provider_geminiimg.core.gateways.reasons import Reason
from airflow_provider_geminiimg.core.gateways.responses import GatewayResponse
from airflow_provider_geminiimg.core.gateways.results import Known
from airflow_provider_geminiimg.core.gateways.rules import Purpose, Rule, Rules
from airflow_provider_geminiimg.core.gateways.states import state_of, status_word, without_image
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import UpstreamFailedError

UPLOAD_TIMEOUT = 120.0  # seconds; an asset may have up to 50 MB
LIST_TIMEOUT = 10.0  # seconds; the list is only used in messages
NO_SUCH_JOB = "00000000-0000-0000-0000-000000000000"

_TYPES = {"generate": "IMAGE_GENERATOR", "edit": "IMAGE_EDITOR"}
_FIELDS = {"resolution": "imageSize", "aspect_ratio": "aspectRatio", "temperature": "temperature", "top_p": "topP"}
_NOT_SERVED = ("INACTIVE", "DISABLED", "DEPRECATED")
_FILE_NAMES = {"image/png": "input.png", "image/jpeg": "input.jpg", "image/webp": "input.webp"}
_MAX_INPUTS, _MAX_INPUT_LENGTH = 64, 4_000  # storage keys, and characters of each; a model takes 14 input images
_INPUT_FIELD = re.compile("image|reference|mask", re.IGNORECASE)
_LINKS = ("temporaryUrl", "temporaryUrls")

_RULES: Rules = {
    **rules.COMMON_RULES,
    (406, None): rules.BALANCE,
    (None, "INSUFFICIENT_CREDITS"): rules.BALANCE,
    (400, "EXTERNAL_API_RESPONSE_WITH_ERROR"): Rule(
        UpstreamFailedError,
        "forwarded the request, and the model's provider refused it.",
        hint="If message and details differ, details has the provider's error.",
    ),
}


class OneMin(Gateway):
    """The adapter of 1min.ai. See `Gateway` for the operations."""

    name = "1min"
    label = "1min.ai"
    default_base_url = "https://api.1min.ai"

    def auth_headers(self, api_key: str) -> Mapping[str, str]:
        return {"API-KEY": api_key}

    def reference(self, image: InputImage) -> Call[str]:
        """An upload to the Asset API. The file name does not reveal the source of the image."""
        part = (_FILE_NAMES.get(image.media_type, "input.bin"), image.data, image.media_type)
        request = httpx.Request("POST", f"{self.base_url}/api/assets", files={"asset": part})
        request.read()  # so that it can be sent more than once
        return Call(request, self._uploaded, read_timeout=UPLOAD_TIMEOUT)

    def submit(self, request: CheckedRequest, handles: Sequence[str], *, synchronous: bool = False) -> Call[JobStatus]:
        names = [f"referenceImage{number}" for number in range(1, len(handles) + 1)]
        if request.image is not None:
            names.insert(0, "imageUrl")
        fields = {wire: getattr(request, neutral) for neutral, wire in _FIELDS.items()}
        content = {"prompt": request.prompt, **dict(zip(names, handles, strict=False)), **fields}
        body = {
            "type": _TYPES[request.operation],
            "model": request.row.wire_model,
            "promptObject": {name: value for name, value in content.items() if value is not None},
        }
        return Call(
            paid_request(f"{self.base_url}/api/features", body if synchronous else {**body, "async": True}),
            model_refusals.explained(functools.partial(self._submitted, request), self.name, request.row.wire_model),
            billable=True,
            read_timeout=request.row.read_timeout(request.resolution),
            prompt=request.prompt,
        )

    def status(self, job_id: str, *, model: str, inputs: Collection[str] = ()) -> Call[JobStatus]:
        parse = model_refusals.explained(functools.partial(self._polled, job_id, inputs), self.name, model)
        return Call(self._result_url(responses.segment(job_id)), parse)

    def check(self) -> Call[CheckResult]:
        return Call(self._result_url(NO_SUCH_JOB), self._checked)

    def models(self, operation: str = "generate") -> Call[CheckResult]:
        """The gateway's public list of models, which its documentation pages also use."""
        url = f"{self.base_url}/models?feature={_TYPES[operation]}"
        return Call(url, self._listed, read_timeout=LIST_TIMEOUT, keyless=True)

    def _result_url(self, segment: str) -> str:
        return f"{self.base_url}/api/results/{segment}"

    def _uploaded(self, reply: Reply) -> str:
        answer = GatewayResponse(reply)
        places = (("fileContent", "path"), ("asset", "key"))
        paths = [as_mapping(answer.body.get(part)).get(name) for part, name in places]
        if answer.ok and (path := next((path for path in paths if isinstance(path, str) and path.strip()), None)):
            return path.strip()
        raise answer.rejected(self.label, Purpose.FREE, _RULES)

    def _checked(self, reply: Reply) -> CheckResult:
        answer = GatewayResponse(reply)
        if answer.ok and "aiRecord" in answer.body:
            return CheckResult()
        raise answer.rejected(self.label, Purpose.FREE, _RULES)

    def _listed(self, reply: Reply) -> CheckResult:
        answer = GatewayResponse(reply)
        rows = answer.body.get("models")
        if not (answer.ok and isinstance(rows, list)):
            raise answer.rejected(self.label, Purpose.FREE, _RULES)
        served = (row for row in map(as_mapping, rows) if str(row.get("status")).upper() not in _NOT_SERVED)
        ids = (reasons.clean(row.get("modelId")) for row in served)
        return CheckResult(models=tuple(name for name in ids if name))

    def _submitted(self, request: CheckedRequest, reply: Reply) -> JobStatus:
        answer = GatewayResponse(reply, prompt=request.prompt)
        record = as_mapping(answer.body.get("aiRecord"))
        job_id = responses.job_id_of(record.get("uuid"))
        status = self._read(answer, record, job_id, request.input_images)
        if status is None or not (answer.ok or status.images):
            return responses.accepted_all_the_same(answer.rejected(self.label, Purpose.PAID, _RULES), job_id)
        if status.state is JobState.RUNNING and job_id is None:
            rule = rules.NO_HANDLE if _state(record) is JobState.DONE else rules.UNKNOWN
            raise answer.error(self.label, rule, Reason())
        return status

    def _polled(self, job_id: str, inputs: Collection[str], reply: Reply) -> JobStatus:
        answer = GatewayResponse(reply)
        if answer.ok and _is_unknown(answer):
            return JobStatus(JobState.VANISHED, job_id=job_id)
        record = as_mapping(answer.body.get("aiRecord"))
        if responses.names_another_job(job_id, record.get("uuid")):
            raise answer.error(self.label, rules.ANOTHER_JOB, Reason())
        named = responses.job_id_of(record.get("uuid"))
        status = self._read(answer, record, named, inputs) if answer.ok else None
        if status is None:
            raise answer.rejected(self.label, Purpose.POLL, _RULES)
        if status.state is JobState.RUNNING and _state(record) is JobState.DONE:
            raise answer.error(self.label, rules.NO_LINK, Reason())
        return dataclasses.replace(status, job_id=job_id)

    def _read(
        self, answer: GatewayResponse, record: Mapping[str, Any], job_id: str | None, inputs: Collection[str]
    ) -> JobStatus | None:
        """The status of a record; ``None`` if it says nothing. An image without a link counts as still running."""
        known = Known(inputs, _echoed_inputs(record), _named_results(record))
        body, record = (known.without_inputs(each) for each in (answer.body, record))
        detail = as_mapping(record.get("aiRecordDetail"))
        found = results.results(detail.get("resultObject"), inside=True)
        places = [source.get(name) for source in (record, body, detail) for name in _LINKS]
        links = [link for place in places for link in results.results(place) if link.images][:1]
        no_image = without_image(status_word(record))
        if no_image and not any(map(results.names_a_file, found)):
            links = []  # without a result of the job, the link belongs to an input
        made = results.images([*links, *found[1:]] if links else found)
        if not made and not no_image:
            made = results.images(results.results(detail.get("responseObject"), inside=True))
        state = _state(record)
        if made:
            return JobStatus(JobState.DONE, made, job_id=job_id, expires_at=responses.link_expiry(made[0].url))
        if state is JobState.FAILED:
            return self._failed(answer, rules.ENDED, _reason(record, detail), job_id)
        if state is JobState.DONE and not any(map(results.names_a_file, found)):
            rule = rules.ENDED if reasons.reason_of(detail.get("resultObject")).code else rules.NO_IMAGE
            return self._failed(answer, rule, _reason(record, detail), job_id)
        return None if state is None and job_id is None else JobStatus(JobState.RUNNING, job_id=job_id)

    def _failed(self, answer: GatewayResponse, rule: Rule, reason: Reason, job_id: str | None) -> JobStatus:
        rule = rules.find_rule(_RULES, None, reason.outer_code, rule)
        return JobStatus(JobState.FAILED, error=answer.error(self.label, rule, reason), job_id=job_id)


def _is_unknown(answer: GatewayResponse) -> bool:
    """Whether the gateway does not know the job. A null record beside an error does not mean that."""
    if "aiRecord" not in answer.body or answer.body["aiRecord"] is not None:
        return False
    reason = answer.reason
    return not (reason.code or reason.message or reason.details or answer.body.get("success") is False)


def _echoed_inputs(record: Mapping[str, Any]) -> list[str]:
    """The storage keys of the inputs that a record repeats from the request."""
    sent = as_mapping(as_mapping(record.get("aiRecordDetail")).get("promptObject"))
    texts = _short_texts([value for name, value in sent.items() if _INPUT_FIELD.match(name)])
    return [text for text in texts if re.search(r"[/.]", text)][:_MAX_INPUTS]


def _named_results(record: Mapping[str, Any]) -> list[str]:
    """The storage keys and links in a record's results; inputs may be repeated among them."""
    listed = as_mapping(record.get("aiRecordDetail")).get("resultObject")
    return list(itertools.islice(_short_texts(listed), _MAX_INPUTS))


def _short_texts(value: Any) -> Iterator[str]:
    """The texts in nested lists and objects that are short enough for a storage key or a link."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, str) and len(node) <= _MAX_INPUT_LENGTH:
            yield node
        stack += reversed(node if isinstance(node, list) else list(node.values()) if isinstance(node, Mapping) else [])


def _state(record: Mapping[str, Any]) -> JobState | None:
    return state_of(status_word(record))


def _reason(record: Mapping[str, Any], detail: Mapping[str, Any]) -> Reason:
    """Why a job has no image, from the first place with a reason."""
    places = [
        reasons.reason_of(detail.get("resultObject")),
        reasons.reason_of(detail),
        reasons.reason_of(record),
        responses.finish_reason(detail.get("responseObject")),
    ]
    return next((reason for reason in places if reason.code or reason.message), Reason())
