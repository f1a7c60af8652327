"""The adapter of 1min.ai against every row of its contract, driven with plain requests and responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from airflow_provider_geminiimg.core.gateways import get_gateway
from airflow_provider_geminiimg.core.gateways.base import Call, InputImage, JobState, JobStatus, Reply, ResultImage
from airflow_provider_geminiimg.core.gateways.onemin import OneMin
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
PRO = "gemini-3-pro-image-preview"
KEY = "development/images/2025_01_15_city.png"
SIGNED = (
    "https://s3.us-east-1.amazonaws.com/asset.1min.ai/development/images/2025_01_15_city.png"
    "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20250115T105045Z&X-Amz-Expires=604800&X-Amz-Signature=abc"
)
UUID = "e4f5g6h7-i8j9-0123-4567-890123defghi"
GATEWAY = OneMin()


def asked(operation: str = "generate", **values: Any) -> CheckedRequest:
    return ImageRequest.build(operation=operation, **{"prompt": "a red fox", "model": FLASH, **values}).check("1min")


def submit(**options: Any) -> Call[JobStatus]:
    return GATEWAY.submit(asked(), (), **options)


def poll() -> Call[JobStatus]:
    return GATEWAY.status(UUID, model=FLASH)


def upload() -> Call[str]:
    call = GATEWAY.reference(InputImage(b"\x89PNG", "image/png", "0" * 64, url="https://example.com/secret-name.png"))
    assert isinstance(call, Call)
    return call


def read(call: Call[Any], status: int = 200, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return call.parse(Reply(status, httpx.Headers(headers), content))


def outcome(call: Call[Any], status: int, body: Any = None, headers: dict[str, str] | None = None) -> GeminiImageError:
    with pytest.raises(GeminiImageError) as caught:
        read(call, status, body, headers)
    return caught.value


def record(status: str | None = "SUCCESS", result: Any = (KEY,), link: str | None = SIGNED, **more: Any) -> Any:
    fields = {"uuid": UUID, "status": status, "temporaryUrl": link, "aiRecordDetail": {"resultObject": result}, **more}
    return {"aiRecord": {name: value for name, value in fields.items() if value is not None}}


def error_body(code: str, message: str = "No.", **more: Any) -> Any:
    return {"errorCode": code, "message": message, **more}


def sent(call: Call[Any]) -> Any:
    return json.loads(call.request.read())


# Requests


def test_the_key_travels_as_api_key_header() -> None:
    assert GATEWAY.auth_headers("k") == {"API-KEY": "k"}


def test_the_default_address_is_the_documented_one() -> None:
    assert str(submit().request.url) == "https://api.1min.ai/api/features"


def test_a_poll_of_another_address_is_written_as_it_goes_over_the_wire() -> None:
    call = get_gateway("1min", "https://Bücher.example:443/ä").status("u", model=FLASH)
    assert call.request == "https://xn--bcher-kva.example/%C3%A4/api/results/u"


def test_another_address_may_end_with_a_slash() -> None:
    call = get_gateway("1min", "http://127.0.0.1:8099/").status("u", model=FLASH)
    assert call.request == "http://127.0.0.1:8099/api/results/u"


def test_an_unknown_gateway_is_refused_and_the_allowed_ones_are_named() -> None:
    with pytest.raises(BadRequestError, match=r"'midjourney'.*1min, apimaster"):
        get_gateway("midjourney")


def test_generate_sends_every_field_under_the_gateways_own_name() -> None:
    request = asked(resolution="0.5K", aspect_ratio="16:9", temperature=0.5, top_p=0.9)
    call = GATEWAY.submit(request, ())
    assert call.request.method == "POST"
    assert sent(call) == {
        "type": "IMAGE_GENERATOR",
        "model": FLASH,
        "async": True,
        "promptObject": {
            "prompt": "a red fox",
            "imageSize": "512",
            "aspectRatio": "16:9",
            "temperature": 0.5,
            "topP": 0.9,
        },
    }


def test_unset_fields_are_left_out_and_the_default_size_is_sent() -> None:
    assert sent(submit())["promptObject"] == {"prompt": "a red fox", "imageSize": "1K"}


def test_a_model_without_sizes_gets_none() -> None:
    call = GATEWAY.submit(asked(model="gemini-2.5-flash-image"), ())
    assert sent(call)["promptObject"] == {"prompt": "a red fox"}


def test_edit_sends_the_image_first_and_the_references_by_number() -> None:
    request = asked("edit", image="s3://b/a.png", reference_images=["s3://b/b.png", "s3://b/c.png"], resolution="2K")
    assert sent(GATEWAY.submit(request, ("p/a", "p/b", "p/c"))) == {
        "type": "IMAGE_EDITOR",
        "model": FLASH,
        "async": True,
        "promptObject": {
            "prompt": "a red fox",
            "imageUrl": "p/a",
            "referenceImage1": "p/b",
            "referenceImage2": "p/c",
            "imageSize": "2K",
        },
    }


def test_edit_without_references_sends_none() -> None:
    body = sent(GATEWAY.submit(asked("edit", image="s3://b/a.png"), ("p/a",)))
    assert body["promptObject"] == {"prompt": "a red fox", "imageUrl": "p/a", "imageSize": "1K"}


def test_the_25_editor_goes_out_under_its_own_id() -> None:
    call = GATEWAY.submit(asked("edit", model="gemini-2.5-flash-image", image="s3://b/a.png"), ("p/a",))
    assert sent(call)["model"] == "gemini-2.5-flash-image-preview"


def test_waiting_leaves_async_out() -> None:
    assert "async" not in sent(submit(synchronous=True))


def test_a_variant_is_never_sent() -> None:
    assert b"second-look" not in GATEWAY.submit(asked(variant="second-look"), ()).request.read()


def test_a_submit_is_billable_and_waits_as_long_as_a_synchronous_answer_takes() -> None:
    for resolution in ("1K", "4K"):
        request = asked(resolution=resolution)
        call = GATEWAY.submit(request, ())
        assert call.billable
        assert call.read_timeout == request.row.read_timeout(resolution)
        assert call.prompt == "a red fox"


def test_a_poll_asks_for_the_uuid_as_one_segment_and_is_free() -> None:
    call = GATEWAY.status("a/../b?c d", model=FLASH)
    assert (call.request, call.billable) == ("https://api.1min.ai/api/results/a%2F..%2Fb%3Fc%20d", False)


@pytest.mark.parametrize("job_id", ["", "  ", ".", "..", "a\nb", "x" * 513])
def test_what_can_not_be_a_job_id_is_refused_before_anything_is_sent(job_id: str) -> None:
    with pytest.raises(BadRequestError, match="job_id"):
        GATEWAY.status(job_id, model=FLASH)


def test_the_key_check_asks_for_a_record_that_can_not_exist() -> None:
    call = GATEWAY.check()
    assert call.request == "https://api.1min.ai/api/results/00000000-0000-0000-0000-000000000000"
    assert not call.billable


@pytest.mark.parametrize(
    ("media_type", "name"), [("image/png", "input.png"), ("image/jpeg", "input.jpg"), ("image/webp", "input.webp")]
)
def test_an_upload_is_one_part_named_asset_with_a_neutral_file_name(media_type: str, name: str) -> None:
    call = GATEWAY.reference(InputImage(b"bytes", media_type, "0" * 64, url="https://example.com/secret-name.png"))
    assert isinstance(call, Call)
    assert str(call.request.url) == "https://api.1min.ai/api/assets"
    assert f'name="asset"; filename="{name}"'.encode() in call.request.read()
    assert call.request.read().count(b"Content-Disposition") == 1
    assert b"secret-name" not in call.request.read()
    assert not call.billable


# Answers that are about the job


def test_an_accepted_job_is_running_under_its_uuid() -> None:
    assert read(submit(), 200, record("PROCESSING", [], None)) == JobStatus(JobState.RUNNING, job_id=UUID)


def test_an_immediate_success_of_an_async_submit_is_taken() -> None:
    status = read(submit(), 200, record())
    assert (status.state, status.images, status.job_id) == (JobState.DONE, (ResultImage(url=SIGNED),), UUID)


def test_a_synchronous_answer_that_still_processes_is_polled() -> None:
    assert read(submit(synchronous=True), 200, record("PROCESSING", None, None)).state is JobState.RUNNING


def test_a_synchronous_answer_that_processes_without_a_uuid_is_outcome_unknown() -> None:
    error = outcome(submit(synchronous=True), 200, {"aiRecord": {"status": "PROCESSING"}})
    assert isinstance(error, OutcomeUnknownError)
    assert error.billed is Billed.UNKNOWN


def test_a_poll_of_a_processing_job_is_running() -> None:
    assert read(poll(), 200, record("PROCESSING", None, None)).state is JobState.RUNNING


def test_a_poll_keeps_the_id_that_it_asked_for() -> None:
    assert read(poll(), 200, {"aiRecord": {"status": "PROCESSING"}}).job_id == UUID


def test_a_status_word_that_is_not_known_is_running() -> None:
    assert read(poll(), 200, record("QUEUED", None, None)).state is JobState.RUNNING


def test_a_null_record_on_a_poll_means_vanished() -> None:
    assert read(poll(), 200, {"aiRecord": None}) == JobStatus(JobState.VANISHED, job_id=UUID)


def test_a_null_record_on_a_submit_is_outcome_unknown() -> None:
    assert isinstance(outcome(submit(), 200, {"aiRecord": None}), OutcomeUnknownError)


def test_the_expiry_is_read_from_the_link() -> None:
    assert read(poll(), 200, record()).expires_at == 1736938245 + 604800


def test_a_link_of_another_host_without_an_expiry_is_taken() -> None:
    status = read(poll(), 200, record(link="https://storage.1min.ai/x.png"))
    assert (status.images, status.expires_at) == ((ResultImage(url="https://storage.1min.ai/x.png"),), None)


def test_the_link_may_stand_at_the_top_level() -> None:
    assert read(poll(), 200, {**record(link=None), "temporaryUrl": SIGNED}).images == (ResultImage(url=SIGNED),)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param([KEY], id="list"),
        pytest.param(KEY, id="bare string"),
        pytest.param({"images": [KEY]}, id="images"),
        pytest.param({"output": [KEY]}, id="output"),
        pytest.param({"output": KEY}, id="output string"),
        pytest.param([{"key": KEY}, "other.png"], id="dicts and strings"),
        pytest.param(["other.png", {"url": KEY}], id="strings and dicts"),
        pytest.param([], id="empty list"),
        pytest.param(None, id="absent"),
    ],
)
def test_every_shape_of_the_result_gives_the_one_signed_link(result: Any) -> None:
    status = read(poll(), 200, record(result=result))
    assert (status.state, status.images) == (JobState.DONE, (ResultImage(url=SIGNED),))


def test_a_result_that_is_itself_a_link_is_taken() -> None:
    status = read(poll(), 200, record(result=["https://cdn.example/x.png"], link=None))
    assert status.images == (ResultImage(url="https://cdn.example/x.png"),)


def test_an_image_inline_as_data_uri_is_taken() -> None:
    status = read(poll(), 200, record(result=["data:image/png;base64,iVBORw=="], link=None))
    assert status.images == (ResultImage(data=b"\x89PNG"),)


def test_keys_without_a_link_on_a_submit_are_polled_for() -> None:
    assert read(submit(), 200, record(link=None)) == JobStatus(JobState.RUNNING, job_id=UUID)


@pytest.mark.parametrize("link", [None, "", "ftp://host/x.png", "javascript:alert(1)"])
def test_keys_without_a_usable_link_on_a_poll_are_paid_for_and_asked_for_again(link: str | None) -> None:
    error = outcome(poll(), 200, record(link=link))
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)
    assert "ftp" not in str(error)


def test_keys_without_a_link_and_without_a_uuid_are_outcome_unknown_and_paid() -> None:
    body = record(link=None)
    del body["aiRecord"]["uuid"]
    error = outcome(submit(), 200, body)
    assert isinstance(error, OutcomeUnknownError)
    assert error.billed is Billed.YES


@pytest.mark.parametrize("call", [submit(), poll()], ids=["submit", "poll"])
def test_success_without_keys_and_link_is_no_image(call: Call[JobStatus]) -> None:
    status = read(call, 200, record(result=[], link=None))
    assert status.state is JobState.FAILED
    assert isinstance(status.error, NoImageError)


def test_success_with_words_instead_of_an_image_is_no_image() -> None:
    status = read(poll(), 200, record(result=["Here is what a fox looks like."], link=None))
    assert isinstance(status.error, NoImageError)
    assert status.error.gateway_message == "Here is what a fox looks like."


@pytest.mark.parametrize("reason", ["IMAGE_SAFETY", "PROHIBITED_CONTENT", "RECITATION", "SAFETY"])
def test_success_that_the_model_ended_for_its_content_is_refused(reason: str) -> None:
    detail = {"resultObject": [], "responseObject": {"candidates": [{"finishReason": reason}]}}
    status = read(poll(), 200, record(link=None, aiRecordDetail=detail))
    assert isinstance(status.error, ContentRefusedError)
    assert status.error.code == reason


def test_success_that_the_model_ended_with_no_image_is_no_image() -> None:
    detail = {"resultObject": [], "responseObject": {"candidates": [{"finishReason": "NO_IMAGE"}]}}
    status = read(poll(), 200, record(link=None, aiRecordDetail=detail))
    assert isinstance(status.error, NoImageError)
    assert status.error.code == "NO_IMAGE"


@pytest.mark.parametrize(
    "fields",
    [
        {"result": ["Upstream broke."]},
        {"result": "Upstream broke."},
        {"result": [{"code": "X", "message": "Upstream broke."}]},
        {"aiRecordDetail": {"errorMessage": "Upstream broke."}},
    ],
    ids=["first result", "bare result", "error object", "errorMessage"],
)
@pytest.mark.parametrize("call", [submit(), poll()], ids=["submit", "poll"])
def test_a_failure_after_acceptance_is_perhaps_paid_and_says_why(call: Call[JobStatus], fields: Any) -> None:
    status = read(call, 200, record("FAILURE", link=None, **fields))
    assert (status.state, status.job_id) == (JobState.FAILED, UUID)
    assert isinstance(status.error, UpstreamFailedError)
    assert (status.error.billed, status.error.retryable) == (Billed.UNKNOWN, False)
    assert status.error.gateway_message == "Upstream broke."


def test_a_bare_failure_is_a_failure_too() -> None:
    status = read(poll(), 200, {"aiRecord": {"uuid": UUID, "status": "FAILURE"}})
    assert isinstance(status.error, UpstreamFailedError)
    assert status.error.gateway_message is None


@pytest.mark.parametrize(
    "reason",
    [
        "The prompt was blocked due to our safety policy",
        "Response blocked: IMAGE_SAFETY",
        "This request violates our usage policies.",
        {"code": "content_policy_violation", "message": "no"},
    ],
)
def test_a_failure_for_the_content_is_refused(reason: Any) -> None:
    status = read(poll(), 200, record("FAILURE", [reason], None))
    assert isinstance(status.error, ContentRefusedError)
    assert status.error.billed is Billed.UNKNOWN


def test_a_failure_that_repeats_a_prompt_about_safety_is_no_refusal() -> None:
    status = read(poll(), 200, record("FAILURE", ["Could not draw: a poster on workplace safety"], None))
    assert isinstance(status.error, UpstreamFailedError)


@pytest.mark.parametrize("call", [submit(), poll()], ids=["submit", "poll"])
@pytest.mark.parametrize("status_word", ["SUCCESS", "FAILURE"])
def test_missing_credits_as_a_result_inside_a_200_are_a_balance_error(call: Call[JobStatus], status_word: str) -> None:
    result = {"code": "INSUFFICIENT_CREDITS", "message": "Not enough."}
    status = read(call, 200, record(status_word, result, None))
    assert isinstance(status.error, InsufficientBalanceError)
    assert (status.error.billed, status.error.gateway_message) == (Billed.NO, "Not enough.")


def test_another_error_object_inside_a_success_is_a_failure() -> None:
    status = read(poll(), 200, record("SUCCESS", {"code": "BROKEN", "message": "No."}, None))
    assert isinstance(status.error, UpstreamFailedError)
    assert status.error.code == "BROKEN"


# Errors of a submit


@pytest.mark.parametrize(
    "body",
    [
        {"code": "INSUFFICIENT_CREDITS", "message": "Not enough."},
        {"success": False, "error": {"code": "INSUFFICIENT_CREDITS", "message": "Not enough."}},
    ],
    ids=["dict", "chat shape"],
)
def test_an_error_instead_of_a_record_inside_a_200_is_read(body: Any) -> None:
    error = outcome(submit(), 200, body)
    assert isinstance(error, InsufficientBalanceError)
    assert error.billed is Billed.NO


def test_an_unknown_error_instead_of_a_record_inside_a_200_is_outcome_unknown() -> None:
    error = outcome(submit(), 200, {"code": "ODD", "message": "Hm."})
    assert isinstance(error, OutcomeUnknownError)
    assert (error.code, error.gateway_message) == ("ODD", "Hm.")


@pytest.mark.parametrize("code", ["MISSING_REQUIRED_FIELDS", "UNSUPPORTED_MODEL", "UNKNOWN_ERROR"])
def test_400_says_that_our_request_is_wrong_and_unpaid(code: str) -> None:
    error = outcome(submit(), 400, error_body(code))
    assert isinstance(error, BadRequestError)
    assert (error.billed, error.retryable, error.code, error.status_code) == (Billed.NO, False, code, 400)


def test_details_that_are_json_text_show_their_inner_text() -> None:
    details = json.dumps({"error": {"code": 400, "message": "imageSize must be one of 1K, 2K"}})
    error = outcome(submit(), 400, error_body("MISSING_REQUIRED_FIELDS", "Bad input", details=details))
    assert (error.gateway_message, error.details) == ("Bad input", "400: imageSize must be one of 1K, 2K")


def test_details_of_another_shape_are_kept_as_they_are() -> None:
    assert outcome(submit(), 400, error_body("X", details="plain words")).details == "plain words"
    assert outcome(submit(), 400, error_body("X", details='["imageSize"]')).details == "imageSize"
    assert outcome(submit(), 400, error_body("X", details='{"field": "imageSize"}')).details == '{"field": "imageSize"}'


def test_an_upstream_refusal_shows_message_and_details_and_is_unpaid() -> None:
    details = json.dumps({"message": "Unsupported aspect ratio"})
    error = outcome(submit(), 400, error_body("EXTERNAL_API_RESPONSE_WITH_ERROR", "Busy, try again", details=details))
    assert isinstance(error, UpstreamFailedError)
    assert error.billed is Billed.NO
    assert "Busy, try again" in str(error)
    assert "Unsupported aspect ratio" in str(error)


def test_an_upstream_refusal_of_the_content_is_told_by_its_details() -> None:
    details = json.dumps({"error": {"message": "blocked by the safety system", "code": "moderation_blocked"}})
    error = outcome(submit(), 400, error_body("EXTERNAL_API_RESPONSE_WITH_ERROR", "Busy, try again", details=details))
    assert isinstance(error, ContentRefusedError)
    assert (error.billed, error.retryable) == (Billed.NO, False)


@pytest.mark.parametrize("call", [submit(), upload(), GATEWAY.check()], ids=["submit", "upload", "check"])
@pytest.mark.parametrize("body", [error_body("HTTP_EXCEPTION", "API key is inactive"), b"Unauthorized", None])
def test_401_is_a_bad_key_and_unpaid(call: Call[Any], body: Any) -> None:
    error = outcome(call, 401, body)
    assert isinstance(error, AuthenticationError)
    assert error.billed is Billed.NO


def test_a_bad_key_in_the_chat_shape_is_read() -> None:
    error = outcome(submit(), 401, {"success": False, "error": {"code": "INVALID_KEY", "message": "Nope"}})
    assert (error.kind, error.code, error.gateway_message) == ("authentication", "INVALID_KEY", "Nope")


@pytest.mark.parametrize("body", [error_body("INSUFFICIENT_CREDITS"), None])
def test_406_is_the_balance(body: Any) -> None:
    error = outcome(submit(), 406, body)
    assert isinstance(error, InsufficientBalanceError)
    assert error.billed is Billed.NO


@pytest.mark.parametrize("body", [error_body("TOO_MANY"), None], ids=["json", "empty"])
def test_429_in_the_gateways_own_shape_is_rate_limited_and_unpaid(body: Any) -> None:
    error = outcome(submit(), 429, body, {"Retry-After": "7"})
    assert isinstance(error, RateLimitedError)
    assert (error.billed, error.retryable, error.retry_after) == (Billed.NO, True, 7.0)


@pytest.mark.parametrize("body", [b"<html>slow down</html>", b"slow down"], ids=["html", "plain"])
def test_429_in_another_shape_after_a_submit_is_outcome_unknown(body: bytes) -> None:
    assert isinstance(outcome(submit(), 429, body), OutcomeUnknownError)


def test_retry_after_may_be_a_date() -> None:
    headers = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}
    assert outcome(submit(), 429, None, headers).retry_after == 30.0
    headers["Retry-After"] = "Wed, 21 Oct 2015 07:27:00 GMT"
    assert outcome(submit(), 429, None, headers).retry_after == 0.0


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "", "Wed, 99 Oct 2015 07:28:30 GMT"])
def test_a_retry_after_that_means_nothing_is_none(value: str) -> None:
    assert outcome(submit(), 429, None, {"Retry-After": value}).retry_after is None


@pytest.mark.parametrize("status", [500, 502, 503, 504, 522, 524])
@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><title>Timeout</title>", b"error code: 524", None, error_body("UNKNOWN_ERROR")]
)
def test_5xx_in_any_shape_after_a_submit_is_outcome_unknown(status: int, body: Any) -> None:
    error = outcome(submit(), status, body, {"Content-Type": "text/html"})
    assert isinstance(error, OutcomeUnknownError)
    assert (error.billed, error.retryable) == (Billed.UNKNOWN, False)
    assert "DOCTYPE" not in str(error)


@pytest.mark.parametrize("status", [200, 302, 400, 404, 408])
def test_a_web_page_after_a_submit_is_outcome_unknown(status: int) -> None:
    error = outcome(submit(), status, b"<html>Just a moment...</html>")
    assert isinstance(error, OutcomeUnknownError)
    assert "web page" in str(error)
    assert "Just a moment" not in str(error)


@pytest.mark.parametrize("body", [b"", b"OK", b"[]", b"null", b'{"aiRecord": {}}', b'{"aiRecord": "x"}', b"{}"])
def test_a_200_that_says_nothing_after_a_submit_is_outcome_unknown(body: bytes) -> None:
    assert isinstance(outcome(submit(), 200, body), OutcomeUnknownError)


def test_a_plain_text_400_is_our_mistake() -> None:
    error = outcome(submit(), 400, b"prompt is too long")
    assert isinstance(error, BadRequestError)
    assert error.gateway_message == "prompt is too long"


@pytest.mark.parametrize(
    ("message", "headers", "expected"),
    [
        ("Bad (request id: 20250115abc)", {"x-request-id": "other-id"}, "20250115abc"),
        ("Bad", {"x-request-id": "header-id"}, "header-id"),
        ("Bad", {"x-oneapi-request-id": "one-id", "x-request-id": "header-id"}, "one-id"),
        ("Bad", {}, None),
    ],
)
def test_a_request_id_is_kept(message: str, headers: dict[str, str], expected: str | None) -> None:
    assert outcome(submit(), 400, error_body("X", message), headers).request_id == expected


# Errors of polls, uploads and checks


@pytest.mark.parametrize("status", [302, 400, 402, 403, 404, 406, 408, 500, 502, 503, 522])
@pytest.mark.parametrize("body", [b"<html></html>", error_body("UNKNOWN_ERROR"), None])
def test_a_poll_that_fails_says_nothing_about_the_job(status: int, body: Any) -> None:
    error = outcome(poll(), status, body)
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)


@pytest.mark.parametrize("body", [b"", b"OK", b"{}", {"aiRecord": {}}, {"aiRecord": {"model": "m"}}, {"code": "X"}])
def test_a_poll_answered_without_a_record_says_nothing_about_the_job(body: Any) -> None:
    error = outcome(poll(), 200, body)
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.YES, True)


@pytest.mark.parametrize("body", [b"<html></html>", error_body("TOO_MANY"), None])
def test_a_poll_that_comes_too_often_is_told_to_wait(body: Any) -> None:
    error = outcome(poll(), 429, body, {"Retry-After": "3"})
    assert isinstance(error, RateLimitedError)
    assert (error.billed, error.retry_after) == (Billed.YES, 3.0)


def test_a_poll_with_a_key_that_stopped_working_leaves_the_paid_job_alone() -> None:
    error = outcome(poll(), 401, error_body("HTTP_EXCEPTION"))
    assert isinstance(error, AuthenticationError)
    assert error.billed is Billed.YES


@pytest.mark.parametrize(
    ("body", "handle"),
    [
        ({"asset": {"key": "k/1.png"}, "fileContent": {"path": "p/1.png"}}, "p/1.png"),
        ({"asset": {"key": "k/1.png", "location": "https://x/k"}}, "k/1.png"),
        ({"asset": {"key": "k/1.png"}, "fileContent": {"path": ""}}, "k/1.png"),
        ({"asset": {"key": "k/1.png"}, "fileContent": None}, "k/1.png"),
    ],
)
def test_an_upload_answers_with_the_path_else_the_key(body: Any, handle: str) -> None:
    assert read(upload(), 200, body) == handle


@pytest.mark.parametrize("body", [b"", b"<html></html>", {"asset": {}}, {"asset": {"key": 5}}, []])
def test_an_upload_answered_without_a_path_is_a_free_failure(body: Any) -> None:
    error = outcome(upload(), 200, body)
    assert isinstance(error, UpstreamFailedError)
    assert (error.billed, error.retryable) == (Billed.NO, True)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "bad_request"),
        (413, "bad_request"),
        (406, "insufficient_balance"),
        (429, "rate_limited"),
        *((status, "upstream_failed") for status in (408, 500, 503, 524)),
    ],
)
@pytest.mark.parametrize("call", [upload(), GATEWAY.check()], ids=["upload", "check"])
@pytest.mark.parametrize("body", [b"<html></html>", error_body("X")])
def test_a_free_call_that_fails_never_costs(call: Call[Any], status: int, kind: str, body: Any) -> None:
    error = outcome(call, status, body)
    assert (error.kind, error.billed) == (kind, Billed.NO)


def test_a_good_key_passes_the_check() -> None:
    assert read(GATEWAY.check(), 200, {"aiRecord": None}).models == ()


@pytest.mark.parametrize("body", [b"<html>A web site</html>", b"", {"hello": "world"}])
def test_a_host_that_is_not_the_gateway_fails_the_check(body: Any) -> None:
    assert isinstance(outcome(GATEWAY.check(), 200, body), UpstreamFailedError)


def test_json_that_nests_too_deep_is_an_answer_like_any_other() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert isinstance(outcome(submit(), 200, deep), OutcomeUnknownError)
    assert isinstance(outcome(submit(), 200, b'{"aiRecord":' * 50_000), OutcomeUnknownError)
    nested = "[" * 100_000
    assert isinstance(outcome(submit(), 400, error_body("X", details=nested)), BadRequestError)


# What names a job or holds an image in an error, and what is an input


@pytest.mark.parametrize("status", [400, 401, 406, 429, 500, 502])
@pytest.mark.parametrize("word", ["PENDING", "PROCESSING", "FAILURE", None])
def test_an_error_that_names_a_job_is_polled(status: int, word: str | None) -> None:
    body = {**record(word, [], None), "message": "content policy"}
    assert read(submit(), status, body) == JobStatus(JobState.RUNNING, job_id=UUID)


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_error_that_holds_the_image_lands_it(status: int) -> None:
    assert read(submit(), status, record()).images == (ResultImage(url=SIGNED),)


@pytest.mark.parametrize("word", ["QUEUED", "PROCESSING", "PENDING", "SUBMITTED"])
def test_a_link_beside_no_result_of_a_running_job_is_no_image(word: str) -> None:
    assert read(poll(), 200, record(word, None)) == JobStatus(JobState.RUNNING, job_id=UUID)


def test_a_link_in_the_providers_error_is_no_image() -> None:
    detail = {"responseObject": {"error": {"message": "m"}, "link": "https://ai.google.dev/docs"}}
    assert read(poll(), 200, record("FAILED", None, None, aiRecordDetail=detail)).state is JobState.FAILED


def test_a_code_within_a_text_does_not_make_a_failure_unpaid() -> None:
    nested = {"message": 'prompt {"code": "INSUFFICIENT_CREDITS"}'}
    assert read(poll(), 200, record("FAILED", nested, None)).error.billed is Billed.UNKNOWN
    assert outcome(submit(), 504, error_body("TIMEOUT", nested["message"])).billed is Billed.UNKNOWN
    assert outcome(submit(), 500, error_body("INSUFFICIENT_CREDITS")).billed is Billed.NO


INPUT_KEY = "images/2026_11_29_cat_input.png"
INPUT_LINK = f"https://storage.1min.ai/bucket/{INPUT_KEY}?X-Amz-Signature=abc"


@pytest.mark.parametrize("name", ["imageUrl", "referenceImage2", "imageList"])
@pytest.mark.parametrize(
    "detail",
    [{"temporaryUrl": SIGNED}, {"resultObject": [SIGNED]}, {"responseObject": {"images": [{"url": SIGNED}]}}],
)
def test_a_link_of_an_input_is_no_result_and_the_other_one_is_taken(name: str, detail: Any) -> None:
    given = [INPUT_KEY] if name == "imageList" else INPUT_KEY
    details = {"promptObject": {"prompt": "a cat", "imageSize": "1K", name: given}, "resultObject": [], **detail}
    body = record("SUCCESS", [], INPUT_LINK, aiRecordDetail=details)
    for call in (submit(), poll()):
        assert read(call, 200, body).images == (ResultImage(url=SIGNED),)


def test_a_job_with_the_link_of_its_input_alone_is_asked_for_the_link_again() -> None:
    details = {"promptObject": {"imageUrl": INPUT_KEY}, "resultObject": ["images/result.png"]}
    error = outcome(poll(), 200, record("SUCCESS", [], INPUT_LINK, aiRecordDetail=details))
    assert (type(error), error.billed, error.retryable) == (UpstreamFailedError, Billed.YES, True)


@pytest.mark.parametrize("key", ["in.png", "cat/in.png"])
@pytest.mark.parametrize(
    "there", ["images/cat/in.png", "https://storage.1min.ai/one/images/cat/in.png?X-Amz-Signature=a"]
)
@pytest.mark.parametrize("call", [submit, poll])
def test_an_input_with_whose_key_the_results_own_key_ends_hides_no_result(
    call: Callable[[], Call[JobStatus]], there: str, key: str
) -> None:
    link = "https://storage.1min.ai/one/images/cat/in.png?X-Amz-Signature=b"
    details = {"promptObject": {"imageUrl": key}, "resultObject": [there]}
    assert read(call(), 200, record("SUCCESS", [], link, aiRecordDetail=details)).images == (ResultImage(url=link),)


def test_the_link_of_an_input_with_whose_key_the_results_key_ends_is_no_result() -> None:
    details = {"promptObject": {"imageUrl": "cat/in.png"}, "resultObject": ["images/cat/in.png"]}
    link = "https://storage.1min.ai/one/cat/in.png?X-Amz-Signature=c"
    body = record("SUCCESS", [], link, aiRecordDetail=details)
    assert read(submit(), 200, body) == JobStatus(JobState.RUNNING, job_id=UUID)


@pytest.mark.parametrize(
    "beside",
    [
        {"error": {"code": "INTERNAL", "message": "database timeout"}},
        {"error": "database timeout"},
        {"message": "Try again later."},
        {"errorCode": "UNKNOWN_ERROR"},
        {"success": False},
        {"error": {"details": "no replica"}},
    ],
)
def test_no_record_beside_an_error_says_nothing_of_the_job(beside: Any) -> None:
    error = outcome(poll(), 200, {"aiRecord": None, **beside})
    assert (type(error), error.billed, error.retryable) == (UpstreamFailedError, Billed.YES, True)


@pytest.mark.parametrize("beside", [{}, {"success": True}, {"message": "success"}, {"error": None}, {"code": 200}])
def test_no_record_and_no_error_is_a_job_that_the_gateway_does_not_know(beside: Any) -> None:
    assert read(poll(), 200, {"aiRecord": None, **beside}).state is JobState.VANISHED
