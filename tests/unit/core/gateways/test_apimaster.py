"""The adapter of APIMaster.ai against every row of its contract, driven with plain requests and responses."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from airflow_provider_geminiimg.core.gateways import get_gateway
from airflow_provider_geminiimg.core.gateways.apimaster import ApiMaster
from airflow_provider_geminiimg.core.gateways.base import Call, InputImage, JobState, JobStatus, Reply, ResultImage
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    ContentRefusedError,
    GeminiImageError,
    InsufficientBalanceError,
    NoImageError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)

FLASH = "gemini-3.1-flash-image-preview"
LINK = "https://apimaster.ai/imgs/1782633695067198543.jpg"
TASK = "task_01K8SGYNNNVBQTXNR4MM964S7K"
GATEWAY = ApiMaster()


def asked(operation: str = "generate", **values: Any) -> CheckedRequest:
    return ImageRequest.build(operation=operation, **{"prompt": "a red fox", "model": FLASH, **values}).check(
        "apimaster"
    )


def submit(**options: Any) -> Call[JobStatus]:
    return GATEWAY.submit(asked(), (), **options)


def poll() -> Call[JobStatus]:
    return GATEWAY.status(TASK, model=FLASH)


BOTH_SUBMITS = pytest.mark.parametrize("call", [submit(), submit(synchronous=True)], ids=["async", "sync"])
EVERYWHERE = pytest.mark.parametrize(
    "call", [submit(), submit(synchronous=True), poll()], ids=["async", "sync", "poll"]
)


def read(call: Call[Any], status: int = 200, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return call.parse(Reply(status, httpx.Headers(headers), content))


def outcome(call: Call[Any], status: int, body: Any = None, headers: dict[str, str] | None = None) -> GeminiImageError:
    with pytest.raises(GeminiImageError) as caught:
        read(call, status, body, headers)
    return caught.value


def error_body(code: str | None = None, message: str = "No.", kind: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def sent(call: Call[Any]) -> Any:
    return json.loads(call.request.read())


# Requests


def test_the_key_travels_as_a_bearer_token() -> None:
    assert GATEWAY.auth_headers("k") == {"Authorization": "Bearer k"}


def test_a_submit_goes_to_the_async_endpoint() -> None:
    call = submit()
    assert (call.request.method, str(call.request.url)) == ("POST", "https://apimaster.ai/v1/images/generations/async")


def test_a_submit_that_waits_goes_to_the_sync_endpoint() -> None:
    assert str(submit(synchronous=True).request.url) == "https://apimaster.ai/v1/images/generations"


def test_another_address_keeps_its_path() -> None:
    call = get_gateway("apimaster", "http://127.0.0.1:8099/v1/").submit(asked(), ())
    assert str(call.request.url) == "http://127.0.0.1:8099/v1/images/generations/async"


def test_every_field_goes_out_under_the_gateways_own_name() -> None:
    request = asked(resolution="2K", aspect_ratio="16:9", google_search=True, google_image_search=True)
    assert sent(GATEWAY.submit(request, ())) == {
        "model": FLASH,
        "prompt": "a red fox",
        "n": 1,
        "size": "16:9",
        "resolution": "2K",
        "google_search": True,
        "google_image_search": True,
    }


def test_unset_fields_are_left_out() -> None:
    assert sent(submit()) == {"model": FLASH, "prompt": "a red fox", "n": 1, "resolution": "1K"}


def test_n_is_a_number() -> None:
    assert b'"n":1,' in submit().request.read().replace(b" ", b"")


def test_512_is_called_half_a_k() -> None:
    assert sent(GATEWAY.submit(asked(resolution="512"), ()))["resolution"] == "0.5K"


def test_an_edit_sends_its_images_as_image_urls_the_image_first() -> None:
    request = asked("edit", image="s3://b/a.png", reference_images=["s3://b/b.png"])
    call = GATEWAY.submit(request, ("https://example.com/a.png", "data:image/png;base64,AA=="))
    assert sent(call)["image_urls"] == ["https://example.com/a.png", "data:image/png;base64,AA=="]


def test_a_reference_with_a_public_address_is_named_by_it() -> None:
    image = InputImage(b"bytes", "image/png", "0" * 64, url="https://example.com/a.png")
    assert GATEWAY.reference(image) == "https://example.com/a.png"


def test_a_reference_without_a_public_address_is_a_data_uri() -> None:
    handle = GATEWAY.reference(InputImage(b"bytes", "image/webp", "0" * 64))
    assert handle == f"data:image/webp;base64,{base64.b64encode(b'bytes').decode()}"


def test_a_submit_is_billable_and_holds_its_prompt() -> None:
    for call in (submit(), submit(synchronous=True)):
        assert call.billable
        assert call.prompt == "a red fox"


def test_a_submit_waits_180_seconds_or_as_long_as_the_gateway_does() -> None:
    request = asked(resolution="4K")
    assert GATEWAY.submit(request, ()).read_timeout == 180
    assert GATEWAY.submit(request, (), synchronous=True).read_timeout == request.row.read_timeout("4K") > 900


def test_a_poll_always_names_the_model_and_is_free() -> None:
    call = poll()
    assert (call.request, call.billable) == (f"https://apimaster.ai/v1/tasks/{TASK}?model={FLASH}", False)


def test_a_task_id_is_one_segment_of_the_path() -> None:
    assert GATEWAY.status("a/b?x#y", model="m&n").request == "https://apimaster.ai/v1/tasks/a%2Fb%3Fx%23y?model=m%26n"


def test_what_can_not_be_a_task_id_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(BadRequestError, match="job_id"):
        GATEWAY.status("..", model=FLASH)


def test_the_key_check_lists_the_models() -> None:
    call = GATEWAY.check()
    assert (call.request, call.billable) == ("https://apimaster.ai/v1/models", False)
    assert read(call, 200, {"data": [{"id": "a"}, "b", {"id": 5}, {}, None]}).models == ("a", "b", "5")


@pytest.mark.parametrize("body", [b"<html>A web site</html>", b"", {"hello": "world"}, {"data": None}])
def test_a_host_that_is_not_the_gateway_fails_the_check(body: Any) -> None:
    error = outcome(GATEWAY.check(), 200, body)
    assert isinstance(error, UpstreamFailedError)
    assert error.billed is Billed.NO


# Answers to a submit


@BOTH_SUBMITS
@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"code": 200, "data": [{"status": "submitted", "task_id": TASK}]}, id="documented"),
        pytest.param({"data": [{"status": "submitted", "task_id": TASK}]}, id="code missing"),
        pytest.param({"data": [{"task_id": TASK}]}, id="status missing"),
        pytest.param({"data": {"status": "submitted", "task_id": TASK}}, id="object"),
        pytest.param({"task_id": TASK, "status": "queued"}, id="bare"),
        pytest.param({"data": [{"status": "submitted", "task_id": TASK, "url": ""}]}, id="empty url"),
    ],
)
def test_a_task_envelope_is_a_running_job(call: Call[JobStatus], body: Any) -> None:
    assert read(call, 200, body) == JobStatus(JobState.RUNNING, job_id=TASK)


@BOTH_SUBMITS
@pytest.mark.parametrize("data", [[{"url": LINK}], {"url": LINK}, {"url": [LINK]}, [{"url": [LINK]}], [LINK]], ids=repr)
def test_images_at_once_are_taken(call: Call[JobStatus], data: Any) -> None:
    assert read(call, 200, {"created": 1782633696, "data": data}) == JobStatus(JobState.DONE, (ResultImage(url=LINK),))


@BOTH_SUBMITS
def test_images_at_once_with_a_task_keep_the_task(call: Call[JobStatus]) -> None:
    status = read(call, 200, {"data": [{"status": "completed", "task_id": TASK, "url": LINK}]})
    assert (status.state, status.job_id, status.images) == (JobState.DONE, TASK, (ResultImage(url=LINK),))


@BOTH_SUBMITS
def test_images_without_a_task_are_taken_whatever_the_status_word(call: Call[JobStatus]) -> None:
    assert read(call, 200, {"data": [{"status": "submitted", "url": LINK}]}).state is JobState.DONE


@EVERYWHERE
@pytest.mark.parametrize(
    "image",
    [{"b64_json": "iVBORw=="}, {"url": "data:image/png;base64,iVBORw=="}, {"b64_json": "iVBORw==", "url": LINK}],
    ids=["b64_json", "data uri", "both"],
)
def test_inline_images_are_taken_as_bytes(call: Call[JobStatus], image: Any) -> None:
    assert read(call, 200, {"data": [image]}).images == (ResultImage(data=b"\x89PNG"),)


@EVERYWHERE
def test_a_task_that_failed_at_once_is_refunded(call: Call[JobStatus]) -> None:
    status = read(call, 200, {"data": [{"status": "failed", "task_id": TASK}]})
    assert (status.state, status.job_id) == (JobState.FAILED, TASK)
    assert isinstance(status.error, UpstreamFailedError)
    assert status.error.billed is Billed.NO


@BOTH_SUBMITS
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"<html></html>",
        b"[]",
        b"null",
        b"{}",
        b'{"data": []}',
        b'{"data": null}',
        b'{"code": 200}',
        b'{"data": [{"status": "submitted"}]}',
        b'{"data": [{"url": "ftp://host/x.png"}]}',
    ],
)
def test_a_200_that_names_neither_task_nor_image_is_outcome_unknown(call: Call[JobStatus], body: bytes) -> None:
    error = outcome(call, 200, body)
    assert isinstance(error, OutcomeUnknownError)
    assert "ftp" not in str(error)


@BOTH_SUBMITS
def test_a_finished_task_without_a_usable_link_is_polled(call: Call[JobStatus]) -> None:
    body = {"data": [{"status": "succeeded", "task_id": TASK, "url": "/imgs/1.jpg"}]}
    assert read(call, 200, body) == JobStatus(JobState.RUNNING, job_id=TASK)


@BOTH_SUBMITS
def test_a_finished_image_without_link_and_task_is_outcome_unknown_and_paid(call: Call[JobStatus]) -> None:
    error = outcome(call, 200, {"data": [{"status": "succeeded", "url": "/imgs/1.jpg"}]})
    assert isinstance(error, OutcomeUnknownError)
    assert error.billed is Billed.YES


# Answers to a poll


@pytest.mark.parametrize("word", ["in_progress", "submitted", "queued", "pending", "IN_PROGRESS", "paused", "unheard"])
def test_every_other_status_word_is_running(word: str) -> None:
    assert read(poll(), 200, {"data": {"status": word}}).state is JobState.RUNNING


@pytest.mark.parametrize("word", ["succeeded", "success", "completed", "Succeeded", "COMPLETED"])
def test_every_word_of_success_is_done(word: str) -> None:
    status = read(poll(), 200, {"data": {"status": word, "result": {"images": [{"url": LINK}]}}})
    assert (status.state, status.images) == (JobState.DONE, (ResultImage(url=LINK),))


@pytest.mark.parametrize("word", ["failed", "error", "cancelled", "FAILED"])
def test_every_word_of_failure_is_failed_and_refunded(word: str) -> None:
    status = read(poll(), 200, {"data": {"status": word, "error": {"code": "X", "message": "Broke.", "type": "t"}}})
    assert status.state is JobState.FAILED
    assert isinstance(status.error, UpstreamFailedError)
    assert (status.error.billed, status.error.retryable) == (Billed.NO, True)
    assert (status.error.code, status.error.gateway_message) == ("X", "Broke.")


def test_a_bare_failure_is_a_failure_without_a_reason() -> None:
    status = read(poll(), 200, {"data": {"status": "failed"}})
    assert isinstance(status.error, UpstreamFailedError)
    assert (status.error.code, status.error.gateway_message) == (None, None)


def test_a_poll_keeps_the_id_that_it_asked_for() -> None:
    assert read(poll(), 200, {"data": {"status": "in_progress"}}).job_id == TASK


def test_the_other_poll_shape_is_read_whole() -> None:
    task = {
        "id": TASK,
        "status": "completed",
        "progress": 100,
        "cost": 0.0672,
        "expires_at": 1782720096,
        "result": {"images": [{"url": [LINK]}]},
    }
    assert read(poll(), 200, {"code": 200, "data": task}) == JobStatus(
        JobState.DONE, (ResultImage(url=LINK),), job_id=TASK, cost=0.0672, progress=100.0, expires_at=1782720096.0
    )


def test_the_expiry_may_stand_beside_the_url() -> None:
    images = [{"url": [LINK], "expires_at": 1782720096}]
    assert read(poll(), 200, {"data": {"status": "completed", "result": {"images": images}}}).expires_at == 1782720096


@pytest.mark.parametrize(("said", "progress"), [(45, 45.0), ("45%", 45.0), ("45", 45.0), ("soon", None), (None, None)])
def test_progress_is_read_as_number_or_text(said: Any, progress: float | None) -> None:
    assert read(poll(), 200, {"data": {"status": "in_progress", "progress": said}}).progress == progress


@pytest.mark.parametrize(
    "task",
    [
        {"url": LINK},
        {"url": [LINK]},
        {"result": {"images": [LINK]}},
        {"result": {"images": {"url": LINK}}},
        {"result": {"url": LINK}},
        {"result": [LINK]},
        {"images": [{"url": LINK}]},
        {"data": [{"url": LINK}]},
    ],
    ids=repr,
)
def test_links_are_found_wherever_a_channel_puts_them(task: Any) -> None:
    assert read(poll(), 200, {"data": {"status": "completed", **task}}).images == (ResultImage(url=LINK),)
    assert read(poll(), 200, {"status": "completed", **task}).images == (ResultImage(url=LINK),)


def test_several_links_are_taken_each_once() -> None:
    images = [{"url": [LINK, LINK]}, {"url": "https://cdn.example/2.png"}]
    status = read(poll(), 200, {"data": {"status": "success", "result": {"images": images}}})
    assert status.images == (ResultImage(url=LINK), ResultImage(url="https://cdn.example/2.png"))


def test_a_poll_in_the_sync_shape_is_done() -> None:
    assert read(poll(), 200, {"data": [{"url": LINK}]}).state is JobState.DONE


@pytest.mark.parametrize("result", [None, {}, {"images": []}, {"images": [{"url": []}]}, {"images": [{"url": ""}]}])
def test_success_without_an_image_is_no_image(result: Any) -> None:
    status = read(poll(), 200, {"data": {"status": "completed", "result": result}})
    assert status.state is JobState.FAILED
    assert isinstance(status.error, NoImageError)


def test_success_with_words_instead_of_an_image_is_no_image() -> None:
    status = read(poll(), 200, {"data": {"status": "completed", "result": "I would rather describe a fox."}})
    assert isinstance(status.error, NoImageError)
    assert status.error.gateway_message == "I would rather describe a fox."


@pytest.mark.parametrize(
    "link", ["/imgs/1.jpg", "ftp://host/x.png", "javascript:alert(1)", "http://", "data:image/png"]
)
def test_success_without_a_usable_link_is_paid_for_and_asked_for_again(link: str) -> None:
    error = outcome(poll(), 200, {"data": {"status": "completed", "result": {"images": [{"url": link}]}}})
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)
    assert link not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "moderation_blocked", "message": "no", "type": "x"},
        {"message": 'upstream said {"error": {"code": "moderation_blocked", "message": "no"}}'},
        {"message": json.dumps({"error": {"message": json.dumps({"error": {"code": "moderation_blocked"}})}})},
        'Upstream: {"error": {"code": "moderation_blocked"}}',
    ],
    ids=["code", "nested", "nested twice", "text"],
)
def test_moderation_is_found_however_deep_it_is_nested(error: Any) -> None:
    status = read(poll(), 200, {"data": {"status": "failed", "error": error}})
    assert isinstance(status.error, ContentRefusedError)
    assert (status.error.code, status.error.billed, status.error.retryable) == ("moderation_blocked", Billed.NO, False)


@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize(
    "body",
    [
        error_body("task_not_exist"),
        error_body(None, "task_not_exist"),
        error_body("Task_Not_Exist", "No."),
        {"code": "task_not_exist", "message": "task_not_exist", "data": None},
        {"error": json.dumps({"error": {"code": "task_not_exist"}})},
    ],
)
def test_the_code_task_not_exist_means_vanished_under_any_status(status: int, body: Any) -> None:
    assert read(poll(), status, body) == JobStatus(JobState.VANISHED, job_id=TASK)


NOT_ABOUT_THE_TASK = [
    b"<html>404</html>",
    b"404 page not found",
    b"",
    {},
    error_body(),
    error_body("model_not_found"),
    error_body("not_found", "Invalid URL (GET /v2/tasks/1)"),
    error_body("task_not_found", "Task not found"),
]


@pytest.mark.parametrize("body", NOT_ABOUT_THE_TASK)
def test_any_other_404_on_a_poll_says_nothing_about_the_task(body: Any) -> None:
    error = outcome(poll(), 404, body)
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)


@pytest.mark.parametrize("status", [302, 400, 402, 403, 408, 500, 502, 503, 524])
@pytest.mark.parametrize("body", [b"<html></html>", error_body("moderation_blocked"), error_body("x"), None])
def test_a_poll_that_fails_says_nothing_about_the_task(status: int, body: Any) -> None:
    error = outcome(poll(), status, body)
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)


@pytest.mark.parametrize("body", [b"", b"OK", b"{}", {"data": None}, {"data": {}}, error_body("x"), {"code": 500}])
def test_a_poll_answered_without_a_status_says_nothing_about_the_task(body: Any) -> None:
    error = outcome(poll(), 200, body)
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)


@pytest.mark.parametrize("body", [b"<html></html>", error_body(), None])
def test_a_poll_that_comes_too_often_is_told_to_wait(body: Any) -> None:
    error = outcome(poll(), 429, body, {"Retry-After": "3"})
    assert isinstance(error, RateLimitedError)
    assert (error.billed, error.retry_after) == (Billed.YES, 3.0)


def test_a_poll_with_a_key_that_stopped_working_leaves_the_paid_job_alone() -> None:
    error = outcome(poll(), 401, error_body())
    assert isinstance(error, AuthenticationError)
    assert error.billed is Billed.YES


# Errors of a submit


@BOTH_SUBMITS
def test_400_says_that_our_request_is_wrong_and_unpaid(call: Call[JobStatus]) -> None:
    error = outcome(call, 400, error_body("invalid_size", "size is wrong", "invalid_request_error"))
    assert isinstance(error, BadRequestError)
    assert (error.billed, error.code, error.gateway_message) == (Billed.NO, "invalid_size", "size is wrong")


@BOTH_SUBMITS
def test_a_missing_code_is_replaced_by_the_type(call: Call[JobStatus]) -> None:
    assert outcome(call, 400, error_body(None, "x", "invalid_request_error")).code == "invalid_request_error"


@pytest.mark.parametrize("call", [submit(), submit(synchronous=True), GATEWAY.check()], ids=["async", "sync", "check"])
@pytest.mark.parametrize("body", [error_body(None, "Invalid token"), b"Unauthorized", b"<html></html>", None])
def test_401_is_a_bad_key_and_unpaid(call: Call[Any], body: Any) -> None:
    error = outcome(call, 401, body)
    assert isinstance(error, AuthenticationError)
    assert error.billed is Billed.NO


@BOTH_SUBMITS
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (402, error_body()),
        (403, error_body("insufficient_user_quota")),
        (403, error_body(None, "quota", "insufficient_user_quota")),
    ],
    ids=["402", "403 code", "403 type"],
)
def test_a_missing_balance_is_told_and_unpaid(call: Call[JobStatus], status: int, body: Any) -> None:
    error = outcome(call, status, body)
    assert isinstance(error, InsufficientBalanceError)
    assert error.billed is Billed.NO


@BOTH_SUBMITS
def test_another_403_is_about_the_key(call: Call[JobStatus]) -> None:
    assert isinstance(outcome(call, 403, error_body("group_not_allowed")), AuthenticationError)


@BOTH_SUBMITS
def test_404_says_that_the_model_is_not_enabled(call: Call[JobStatus]) -> None:
    error = outcome(call, 404, error_body("model_not_found"))
    assert isinstance(error, BadRequestError)
    assert error.billed is Billed.NO
    assert "model" in str(error)


@BOTH_SUBMITS
@pytest.mark.parametrize("body", [error_body("timeout"), b"<html></html>", None])
def test_408_is_outcome_unknown_because_the_job_may_still_finish(call: Call[JobStatus], body: Any) -> None:
    error = outcome(call, 408, body)
    assert isinstance(error, OutcomeUnknownError)
    assert (error.billed, error.retryable) == (Billed.UNKNOWN, False)


@BOTH_SUBMITS
@pytest.mark.parametrize("body", [error_body(), None], ids=["json", "empty"])
def test_429_in_the_gateways_own_shape_is_rate_limited_and_unpaid(call: Call[JobStatus], body: Any) -> None:
    error = outcome(call, 429, body, {"Retry-After": "12"})
    assert isinstance(error, RateLimitedError)
    assert (error.billed, error.retryable, error.retry_after) == (Billed.NO, True, 12.0)


@BOTH_SUBMITS
@pytest.mark.parametrize("body", [b"<html></html>", b"rate limited"], ids=["html", "plain"])
def test_429_in_another_shape_is_outcome_unknown(call: Call[JobStatus], body: bytes) -> None:
    assert isinstance(outcome(call, 429, body), OutcomeUnknownError)


@BOTH_SUBMITS
def test_500_is_outcome_unknown_and_says_why(call: Call[JobStatus]) -> None:
    error = outcome(call, 500, error_body("upstream_error", "aspect ratio not supported"))
    assert isinstance(error, OutcomeUnknownError)
    assert (error.billed, error.gateway_message) == (Billed.UNKNOWN, "aspect ratio not supported")


@BOTH_SUBMITS
def test_502_is_an_upstream_failure_and_refunded(call: Call[JobStatus]) -> None:
    error = outcome(call, 502, error_body("image_generation_failed"))
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable, error.code) == (Billed.NO, True, "image_generation_failed")


@BOTH_SUBMITS
@pytest.mark.parametrize(
    "body",
    [
        error_body("moderation_blocked"),
        error_body("upstream_error", 'status 400: {"error": {"code": "moderation_blocked"}}'),
    ],
    ids=["code", "nested"],
)
def test_502_for_moderation_is_a_refusal_and_refunded(call: Call[JobStatus], body: Any) -> None:
    error = outcome(call, 502, body)
    assert isinstance(error, ContentRefusedError)
    assert (error.billed, error.retryable, error.code) == (Billed.NO, False, "moderation_blocked")


@BOTH_SUBMITS
def test_503_says_that_there_is_no_channel_and_is_unpaid(call: Call[JobStatus]) -> None:
    error = outcome(call, 503, error_body("model_not_found", "no available channel"))
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.NO, True)


@BOTH_SUBMITS
@pytest.mark.parametrize("status", [500, 502, 503, 504, 522, 524])
@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"bad gateway", None, b"[]"])
def test_5xx_that_is_not_the_gateways_own_is_outcome_unknown(call: Call[JobStatus], status: int, body: Any) -> None:
    error = outcome(call, status, body)
    assert isinstance(error, OutcomeUnknownError)
    assert error.billed is Billed.UNKNOWN


@BOTH_SUBMITS
@pytest.mark.parametrize("status", [302, 400, 404])
def test_a_web_page_after_a_submit_is_outcome_unknown(call: Call[JobStatus], status: int) -> None:
    assert isinstance(outcome(call, status, b"<html></html>", {"Content-Type": "text/html"}), OutcomeUnknownError)


@BOTH_SUBMITS
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (error_body("insufficient_user_quota"), "insufficient_balance"),
        (error_body("moderation_blocked"), "content_refused"),
        ({"code": "odd", "message": "Hm."}, "outcome_unknown"),
    ],
)
def test_an_error_inside_a_200_is_read(call: Call[JobStatus], body: Any, kind: str) -> None:
    assert outcome(call, 200, body).kind == kind


@BOTH_SUBMITS
@pytest.mark.parametrize(
    ("message", "headers", "expected"),
    [
        ("no channel (request id: 20250115204512)", {"x-oneapi-request-id": "other"}, "20250115204512"),
        ("no channel", {"x-oneapi-request-id": "one-id"}, "one-id"),
        ("no channel", {"x-request-id": "header-id"}, "header-id"),
        ("no channel", {}, None),
    ],
)
def test_a_request_id_is_kept(
    call: Call[JobStatus], message: str, headers: dict[str, str], expected: str | None
) -> None:
    assert outcome(call, 503, error_body("x", message), headers).request_id == expected


@pytest.mark.parametrize("status", [408, 500, 502, 503, 524])
def test_a_check_that_fails_never_costs(status: int) -> None:
    error = outcome(GATEWAY.check(), status, error_body())
    assert isinstance(error, UpstreamFailedError)
    assert error.billed is Billed.NO


# What is no answer about the job, and what names one


@pytest.mark.parametrize(
    "body",
    [
        {"status": "failed", "message": "database timeout"},
        {"status": "cancelled", "message": "request context canceled"},
        {"status": "expired", "message": "session"},
        {"code": "fail", "data": {"status": "failed"}},
        {"code": 500, "state": "errored"},
        {"code": 500, "data": {"status": "failed"}},
        {"code": "get_channel_failed", "data": [], "status": "failed"},
        {"success": False, "state": "failed", "error": "redis: connection pool timeout"},
    ],
)
def test_a_word_of_failure_without_a_job_says_nothing_of_the_job(body: Any) -> None:
    error = outcome(poll(), 200, body)
    assert (type(error), error.billed, error.retryable) == (UpstreamFailedError, Billed.YES, True)
    assert isinstance(outcome(submit(), 200, body), OutcomeUnknownError)


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"status": "failed"}},
        {"code": 200, "data": {"status": "failed"}},
        {"code": "success", "data": {"status": "FAILURE"}},
        {"task_id": TASK, "status": "failed"},
        {"status": "failed", "fail_reason": "no channel"},
    ],
)
def test_a_word_of_failure_of_the_job_is_a_failed_job(body: Any) -> None:
    assert read(poll(), 200, body).state is JobState.FAILED


@BOTH_SUBMITS
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "message", ["no", "content policy violation", 'x {"error": {"code": "insufficient_user_quota"}}']
)
def test_an_error_that_names_a_job_is_polled(call: Call[JobStatus], status: int, message: str) -> None:
    for named in ({"task_id": TASK}, {"data": {"id": TASK, "status": "queued"}}, {"data": [{"task_id": TASK}]}):
        body = {"error": {"message": message}, **named}
        assert read(call, status, body) == JobStatus(JobState.RUNNING, job_id=TASK)


@BOTH_SUBMITS
@pytest.mark.parametrize("status", [400, 429, 502])
def test_an_error_that_holds_the_image_lands_it(call: Call[JobStatus], status: int) -> None:
    body = {"error": {"message": "late"}, "data": {"status": "succeeded", "result": {"images": [{"url": LINK}]}}}
    assert read(call, status, body).images == (ResultImage(url=LINK),)
    body = {"error": {"message": "bad input"}, "image_url": LINK}
    with pytest.raises(GeminiImageError):
        read(call, status, body)


@BOTH_SUBMITS
def test_only_the_outermost_code_of_a_server_error_decides_on_money(call: Call[JobStatus]) -> None:
    nested = 'channel 1: {"error": {"code": "insufficient_user_quota"}}; channel 2: timed out'
    assert outcome(call, 504, error_body("do_request_failed", nested)).billed is Billed.UNKNOWN
    assert outcome(call, 500, error_body(None, nested)).billed is Billed.UNKNOWN
    assert outcome(call, 500, error_body("insufficient_user_quota")).billed is Billed.NO
    assert outcome(call, 403, error_body(None, nested)).billed is Billed.NO
    moderated = outcome(call, 502, error_body(None, '{"error": {"code": "moderation_blocked"}}'))
    assert (type(moderated), moderated.billed) == (ContentRefusedError, Billed.NO)


def test_an_echoed_prompt_is_no_refusal() -> None:
    prompt = "A poster about our content policy, flagged by moderation"
    call = GATEWAY.submit(asked(prompt=prompt), ())
    assert type(outcome(call, 504, error_body(None, f"timed out, prompt: '{prompt}'"))) is OutcomeUnknownError
    assert type(outcome(call, 504, error_body(None, "flagged by our safety system"))) is ContentRefusedError


@EVERYWHERE
@pytest.mark.parametrize("word", ["queued", "IN_PROGRESS", "processing", "pending", "submitted", "NOT_START"])
@pytest.mark.parametrize(
    "beside", [{"url": LINK}, {"image": LINK}, {"images": [LINK]}, {"image_url": LINK}, {"data": {"images": [LINK]}}]
)
def test_an_address_beside_a_running_job_is_no_image(call: Call[JobStatus], word: str, beside: Any) -> None:
    for body in ({"task_id": TASK, "status": word, **beside}, {"data": {"task_id": TASK, "status": word, **beside}}):
        assert read(call, 200, body) == JobStatus(JobState.RUNNING, job_id=TASK)


def test_an_input_beside_a_failed_job_is_no_image_and_a_result_is() -> None:
    body = {"data": {"task_id": TASK, "status": "FAILURE", "images": ["https://shop.example/in.png"]}}
    assert read(poll(), 200, body).state is JobState.FAILED
    body["data"]["output"] = [LINK]
    assert read(poll(), 200, body).images == (ResultImage(url=LINK),)


@pytest.mark.parametrize("key", ["result", "results", "output", "outputs", "result_url"])
@pytest.mark.parametrize("beside", ["image", "images", "image_url", "url"])
def test_a_result_comes_before_an_input(key: str, beside: str) -> None:
    body = {"data": {"task_id": TASK, "status": "SUCCESS", beside: "https://shop.example/in.png", key: LINK}}
    assert read(poll(), 200, body).images == (ResultImage(url=LINK),)


INPUT = "https://shop.example/in.png"


def polled_with_input() -> Call[JobStatus]:
    return GATEWAY.status(TASK, model=FLASH, inputs=[INPUT])


def submitted_with_input() -> Call[JobStatus]:
    return GATEWAY.submit(asked("edit", image=INPUT), (INPUT,))


@pytest.mark.parametrize(
    "beside",
    [
        {"images": [INPUT]},
        {"images": [{"url": INPUT}]},
        {"image": INPUT},
        {"image_url": INPUT},
        {"url": INPUT},
        {"data": {"images": [INPUT]}},
    ],
)
@pytest.mark.parametrize("key", ["fail_reason", "failReason"])
def test_the_link_of_an_old_row_comes_before_what_may_be_an_input(beside: Any, key: str) -> None:
    for body in (
        {"code": "success", "data": {"task_id": TASK, "status": "SUCCESS", key: LINK, **beside}},
        {"task_id": TASK, "status": "SUCCESS", key: LINK, **beside},
    ):
        assert read(poll(), 200, body).images == (ResultImage(url=LINK),)


def test_a_reason_beside_a_result_is_no_result() -> None:
    detail = {"fail_reason": "see https://status.example/a.png", "result": {"images": [{"url": LINK}]}}
    body = {"data": {"task_id": TASK, "status": "SUCCESS", **detail}}
    assert read(poll(), 200, body).images == (ResultImage(url=LINK),)


@pytest.mark.parametrize("call", [polled_with_input, submitted_with_input], ids=["poll", "submit"])
@pytest.mark.parametrize(
    "said",
    [
        {"images": [INPUT], "image_url": LINK},
        {"images": [INPUT, LINK]},
        {"images": [{"url": f"{INPUT}?v=2"}, {"url": LINK}]},
        {"url": INPUT, "images": [LINK]},
        {"result": {"images": [{"url": "https://SHOP.example/in.png"}, {"url": LINK}]}, "url": INPUT},
        {"output": ["//shop.example/in.png", LINK]},
    ],
)
def test_an_input_that_an_answer_repeats_is_no_result(call: Callable[[], Call[JobStatus]], said: Any) -> None:
    body = {"data": {"task_id": TASK, "status": "SUCCESS", **said}}
    assert read(call(), 200, body).images == (ResultImage(url=LINK),)


def test_a_job_that_names_its_input_alone_is_asked_for_the_link_again() -> None:
    body = {"data": {"task_id": TASK, "status": "SUCCESS", "images": [INPUT]}}
    error = outcome(polled_with_input(), 200, body)
    assert (type(error), error.billed, error.retryable) == (UpstreamFailedError, Billed.YES, True)
    assert read(submitted_with_input(), 200, body) == JobStatus(JobState.RUNNING, job_id=TASK)


def test_another_file_of_one_address_is_a_result() -> None:
    known = "https://cdn.example/file?id=1"
    call = GATEWAY.status(TASK, model=FLASH, inputs=["https://cdn.example/file", known])
    body = {"data": {"task_id": TASK, "status": "SUCCESS", "images": ["https://cdn.example/file?id=2"]}}
    assert read(call, 200, body).state is JobState.DONE
