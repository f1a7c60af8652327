"""The sandbox itself: both gateways' answers and bad manners, its ledger, its faults, its images."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image

from airflow_provider_geminiimg.exceptions import OutcomeUnknownError
from airflow_provider_geminiimg.sandbox import Sandbox, SandboxClient, read_image, read_submission
from airflow_provider_geminiimg.sandbox import images as drawing

if TYPE_CHECKING:
    from pathlib import Path

FLASH = "gemini-3.1-flash-image-preview"
PRO = "gemini-3-pro-image-preview"
NOBODY = "/api/results/00000000-0000-0000-0000-000000000000"


class Caller:
    """A client that knows both gateways' headers and nothing else."""

    def __init__(self, box: SandboxClient, key: str = "some-key") -> None:
        self.box = box
        self.http = httpx.Client(trust_env=False, timeout=20)
        self.onemin_headers = {"API-KEY": key}
        self.apimaster_headers = {"Authorization": f"Bearer {key}"}

    def features(self, kind: str = "IMAGE_GENERATOR", *, model: str = FLASH, wait: bool = False, **prompt: Any) -> Any:
        body: dict[str, Any] = {"type": kind, "model": model, "promptObject": {"prompt": "a fox", **prompt}}
        if not wait:
            body["async"] = True
        return self.http.post(f"{self.box.onemin_url}/api/features", headers=self.onemin_headers, json=body)

    def result(self, uuid: str) -> Any:
        return self.http.get(f"{self.box.onemin_url}/api/results/{uuid}", headers=self.onemin_headers)

    def upload(self, data: bytes, name: str = "in.png") -> Any:
        url = f"{self.box.onemin_url}/api/assets"
        return self.http.post(url, headers=self.onemin_headers, files={"asset": (name, data)})

    def generations(self, *, wait: bool = False, **body: Any) -> Any:
        url = f"{self.box.apimaster_url}/images/generations{'' if wait else '/async'}"
        return self.http.post(url, headers=self.apimaster_headers, json={"model": FLASH, "prompt": "a fox", **body})

    def task(self, task_id: str, model: str | None = FLASH) -> Any:
        url = f"{self.box.apimaster_url}/tasks/{task_id}"
        return self.http.get(url, headers=self.apimaster_headers, params={"model": model} if model else {})


@pytest.fixture
def caller() -> Iterator[Callable[..., Caller]]:
    """Makes callers, for any sandbox and key."""
    with ExitStack() as stack:

        def make(box: SandboxClient, key: str = "some-key") -> Caller:
            made = Caller(box, key)
            stack.callback(made.http.close)
            return made

        yield make


@pytest.fixture
def call(sandbox: Sandbox, caller: Callable[..., Caller]) -> Caller:
    return caller(sandbox)


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread, for answers that are late on purpose."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def until(look: Callable[[], Any], done: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 10
    while not done(found := look()):
        assert time.monotonic() < deadline, found
    return found


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def png(colour: str = "red", size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


# 1min


def test_onemin_answers_processing_then_success_with_a_key_and_one_signed_link(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0.3)
    record = call.features(imageSize="1K", aspectRatio="16:9").json()["aiRecord"]
    assert record["status"] == "PROCESSING"
    assert record["aiRecordDetail"]["resultObject"] == []
    done = until(lambda: call.result(record["uuid"]).json()["aiRecord"], lambda found: found["status"] == "SUCCESS")
    [key] = done["aiRecordDetail"]["resultObject"]
    assert not key.startswith("http")
    assert {"X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature"} <= set(parse_qs(urlsplit(done["temporaryUrl"]).query))
    image = call.http.get(done["temporaryUrl"])
    assert image.headers["content-type"] == "image/png"
    assert size_of(image.content) == (1376, 768)
    assert read_submission(image.content) == 1


def test_onemin_without_async_answers_late_with_the_image(call: Caller, sandbox: Sandbox) -> None:
    assert call.features(wait=True, imageSize="512").json()["aiRecord"]["status"] == "SUCCESS"
    assert sandbox.ledger()[0]["mode"] == "sync"


def test_a_gateway_that_ignores_async_answers_late_with_the_image(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(honour_async=False)
    assert call.features().json()["aiRecord"]["status"] == "SUCCESS"
    assert call.generations().json()["data"][0]["url"].startswith(sandbox.url)


def test_an_async_job_without_latency_is_done_in_the_first_answer(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    assert call.features().json()["aiRecord"]["status"] == "SUCCESS"


def test_onemin_ignores_unknown_fields_and_writes_down_that_it_did(call: Caller, sandbox: Sandbox) -> None:
    assert call.features(aspect_ratio="16:9", num_images=4).status_code == 200
    [entry] = sandbox.ledger()
    assert entry["ignored"] == ["aspect_ratio", "num_images"]
    assert (entry["width"], entry["height"]) == (1024, 1024)


@pytest.mark.parametrize(("model", "field"), [(PRO, "aspectRatio"), ("gemini-2.5-flash-image", "imageSize")])
def test_onemin_ignores_a_field_that_this_model_does_not_take(
    call: Caller, sandbox: Sandbox, model: str, field: str
) -> None:
    assert call.features(model=model, **{field: {"aspectRatio": "16:9", "imageSize": "1K"}[field]}).status_code == 200
    assert sandbox.ledger()[0]["ignored"] == [field]


@pytest.mark.parametrize(
    ("kind", "more", "code"),
    [
        ("IMAGE_GENERATOR", {"prompt": ""}, "MISSING_REQUIRED_FIELDS"),
        ("IMAGE_EDITOR", {}, "MISSING_REQUIRED_FIELDS"),
        ("IMAGE_PAINTER", {}, "UNKNOWN_ERROR"),
        ("IMAGE_GENERATOR", {"model": "dall-e-3"}, "UNSUPPORTED_MODEL"),
        ("IMAGE_EDITOR", {"model": "gemini-2.5-flash-image", "imageUrl": "x"}, "UNSUPPORTED_MODEL"),
        ("IMAGE_EDITOR", {"imageUrl": "no/such/asset.png"}, "EXTERNAL_API_RESPONSE_WITH_ERROR"),
        ("IMAGE_GENERATOR", {"imageSize": "8K"}, "EXTERNAL_API_RESPONSE_WITH_ERROR"),
        ("IMAGE_GENERATOR", {"aspectRatio": ["16:9"]}, "EXTERNAL_API_RESPONSE_WITH_ERROR"),
        ("IMAGE_GENERATOR", {"temperature": 2.5}, "EXTERNAL_API_RESPONSE_WITH_ERROR"),
    ],
)
def test_onemin_refuses_a_wrong_request_for_free(
    call: Caller, sandbox: Sandbox, kind: str, more: dict[str, Any], code: str
) -> None:
    answer = call.features(kind, **more)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, code)
    assert sandbox.ledger() == []


def test_onemin_says_busy_and_keeps_the_truth_in_the_details(call: Caller) -> None:
    body = call.features(imageSize="8K").json()
    assert "busy" in body["message"]
    assert "image_size" in json.loads(body["details"])["error"]["message"]


def test_onemin_knows_no_such_job_with_a_200(call: Caller) -> None:
    answer = call.result("nobody-knows-it")
    assert (answer.status_code, answer.json()) == (200, {"aiRecord": None})


def test_a_job_is_unknown_to_another_account(call: Caller, sandbox: Sandbox, caller: Callable[..., Caller]) -> None:
    uuid = call.features().json()["aiRecord"]["uuid"]
    task = call.generations().json()["data"][0]["task_id"]
    stranger = caller(sandbox, "another-key")
    assert stranger.result(uuid).json() == {"aiRecord": None}
    assert stranger.task(task).status_code == 404


def test_an_edit_shows_its_inputs_and_is_a_jpeg_in_the_first_inputs_shape(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    red = call.upload(png("red", (160, 90))).json()["fileContent"]["path"]
    blue = call.upload(png("blue")).json()["asset"]["key"]
    answer = call.features("IMAGE_EDITOR", imageUrl=red, referenceImage1=blue, imageSize="1K").json()
    result = call.http.get(answer["aiRecord"]["temporaryUrl"])
    image = Image.open(io.BytesIO(result.content)).convert("RGB")
    assert (result.headers["content-type"], image.size) == ("image/jpeg", (1376, 768))
    seen = [
        image.getpixel(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)) for box in drawing.input_boxes(1376, 768, 2)
    ]
    assert [max(range(3), key=lambda n: pixel[n]) for pixel in seen] == [0, 2]
    [entry] = sandbox.ledger()
    assert len({item["sha256"] for item in entry["inputs"]}) == 2
    assert read_submission(result.content) == 1


def test_the_2_5_model_makes_webp(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    answer = call.features(model="gemini-2.5-flash-image").json()
    image = call.http.get(answer["aiRecord"]["temporaryUrl"])
    assert image.headers["content-type"] == "image/webp"
    assert read_image(image.content) == {"submission": 1, "model": "gemini-2.5-flash-image", "prompt": "a fox"}


@pytest.mark.parametrize("shape", ["string", "images", "output", "mixed"])
def test_onemin_can_speak_every_result_shape(call: Caller, sandbox: Sandbox, shape: str) -> None:
    sandbox.settings(latency=0, result_object=shape, link_place="top")
    answer = call.features().json()
    assert not isinstance(answer["aiRecord"]["aiRecordDetail"]["resultObject"], list) or shape == "mixed"
    assert call.http.get(answer["temporaryUrl"]).status_code == 200


def test_an_expired_or_altered_link_is_a_403_in_xml(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    link = call.features().json()["aiRecord"]["temporaryUrl"]
    altered = call.http.get(link.replace("Expires=604800", "Expires=604801"))
    assert (altered.status_code, "SignatureDoesNotMatch" in altered.text) == (403, True)
    sandbox.settings(link_seconds=0)
    expired = call.http.get(call.features().json()["aiRecord"]["temporaryUrl"])
    assert (expired.status_code, "Request has expired" in expired.text) == (403, True)
    assert expired.headers["content-type"].startswith("application/xml")


# APIMaster


@pytest.mark.parametrize(("shape", "word"), [("succeeded", "succeeded"), ("completed", "completed")])
def test_apimaster_polls_have_two_shapes(call: Caller, sandbox: Sandbox, shape: str, word: str) -> None:
    sandbox.settings(latency=0.3, poll_shape=shape)
    task = call.generations(size="16:9", resolution="0.5k").json()["data"][0]["task_id"]
    assert call.task(task).json()["data"]["status"] == "in_progress"
    data = until(lambda: call.task(task).json()["data"], lambda found: found["status"] != "in_progress")
    assert data["status"] == word
    [image] = data["result"]["images"]
    assert isinstance(image["url"], list) == (shape == "completed")
    assert ("cost" in data) == (shape == "completed")
    link = image["url"][0] if shape == "completed" else image["url"]
    image = call.http.get(link)
    assert size_of(image.content) == (688, 384)
    assert link.endswith(".jpg")
    assert image.headers["content-type"] == "image/png"


def test_apimaster_alternates_its_shapes_unless_told(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    answers = [call.generations().json() for _ in range(2)]
    assert ["code" in answer for answer in answers] == [True, False]
    polls = [call.task(answer["data"][0]["task_id"]).json()["data"]["status"] for answer in answers]
    assert polls == ["succeeded", "completed"]
    waited = [call.generations(wait=True).json() for _ in range(2)]
    assert [isinstance(answer["data"], list) for answer in waited] == [True, False]


def test_a_poll_without_the_model_finds_nothing(call: Caller, sandbox: Sandbox) -> None:
    task = call.generations().json()["data"][0]["task_id"]
    assert call.task(task, None).status_code == 404
    assert call.task(task, PRO).status_code == 404
    assert call.task(task).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"size": "16:10"}, 500),
        ({"size": "2048x1152"}, 500),
        ({"resolution": "8K"}, 400),
        ({"n": "1"}, 400),
        ({"n": 2}, 400),
        ({"prompt": " "}, 400),
        ({"google_image_search": True}, 400),
        ({"google_search": "yes"}, 400),
        ({"image_urls": "https://example.com/a.png"}, 400),
        ({"image_urls": ["data:image/png;base64,AAAA"]}, 400),
        ({"image_urls": ["ftp://example.com/a.png"]}, 400),
        ({"image_urls": ["https://example.com/a.png"] * 15}, 400),
        ({"model": "gemini-2.5-flash-image"}, 404),
    ],
)
def test_apimaster_refuses_a_wrong_request_for_free(
    call: Caller, sandbox: Sandbox, body: dict[str, Any], status: int
) -> None:
    answer = call.generations(**body)
    assert answer.status_code == status
    assert "request id:" in answer.json()["error"]["message"]
    assert sandbox.ledger() == []


def test_chat_completions_points_to_the_images_api(call: Caller, sandbox: Sandbox) -> None:
    answer = call.http.post(f"{sandbox.apimaster_url}/chat/completions", headers=call.apimaster_headers, json={})
    assert answer.status_code == 400
    assert "Images API" in answer.json()["error"]["message"]


def test_apimaster_takes_references_as_data_uris_own_links_and_addresses(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0, sync_shape="data")
    own = call.generations(wait=True).json()["data"][0]["url"]
    data = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    assert call.generations(image_urls=[data, own, "https://example.com/a.png"]).status_code == 200
    entry = sandbox.ledger()[1]
    assert [item["media_type"] for item in entry["inputs"]] == ["image/png", "image/png", "text/uri-list"]
    assert entry["operation"] == "edit"


def test_prices_follow_the_documented_multipliers(call: Caller, sandbox: Sandbox) -> None:
    for resolution in ("0.5K", "1k", "2K", "4K"):
        assert call.generations(resolution=resolution).status_code == 200
    assert [entry["price"] for entry in sandbox.ledger()] == [0.0672, 0.0672, 0.0896, 0.1344]
    assert {entry["currency"] for entry in sandbox.ledger()} == {"USD"}


def test_a_late_408_leaves_a_hidden_job_that_is_charged_when_it_ends(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=1.0, sync_gives_up=0.05)
    assert call.generations(wait=True).status_code == 408
    [entry] = sandbox.ledger()
    assert (entry["hidden"], entry["charged"], entry["outcome"]) == (True, False, "running")
    [entry] = until(sandbox.ledger, lambda found: found[0]["charged"])
    assert entry["outcome"] == "image"


# Keys and money


@pytest.mark.parametrize("key", ["", "bad-key"])
def test_a_bad_key_is_a_401_in_each_gateways_own_words(
    sandbox: Sandbox, caller: Callable[..., Caller], key: str
) -> None:
    call = caller(sandbox, key)
    if not key:
        call.apimaster_headers = {}
    for answer in (call.features(), call.result("x"), call.upload(png()), call.http.get(sandbox.onemin_url + NOBODY)):
        assert answer.status_code == 401
    assert call.features().json()["errorCode"] == "HTTP_EXCEPTION"
    for answer in (call.generations(), call.task("x"), call.http.get(f"{sandbox.apimaster_url}/models")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert sandbox.ledger() == []


def test_the_free_checks_answer_with_a_good_key(call: Caller, sandbox: Sandbox) -> None:
    assert call.http.get(sandbox.onemin_url + NOBODY, headers=call.onemin_headers).json() == {"aiRecord": None}
    models = call.http.get(f"{sandbox.apimaster_url}/models", headers=call.apimaster_headers).json()["data"]
    assert FLASH in {model["id"] for model in models}
    assert [found["route"] for found in sandbox.calls()] == ["onemin.check", "apimaster.check"]


def test_credits_run_out_in_both_manners(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(credits=7000, balance=0.1)
    assert call.features().json()["aiRecord"]["teamUser"]["creditLimit"] == 7000
    assert call.features().status_code == 406
    assert call.generations().status_code == 200
    assert call.generations().status_code == 402
    sandbox.settings(balance_error="odd")
    odd = call.features()
    assert odd.status_code == 200
    assert odd.json()["aiRecord"]["aiRecordDetail"]["resultObject"]["code"] == "INSUFFICIENT_CREDITS"
    refused = call.generations()
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_user_quota")
    assert len(sandbox.ledger()) == 2


def test_the_credits_used_lag_a_call(call: Caller) -> None:
    used = [call.features().json()["aiRecord"]["teamUser"]["usedCredit"] for _ in range(2)]
    assert used == [0, 6720]


def test_a_key_is_never_kept(sandbox: Sandbox, caller: Callable[..., Caller]) -> None:
    call = caller(sandbox, "canary-3b1f")
    call.features()
    call.generations()
    call.upload(png())
    assert "canary" not in json.dumps([sandbox.ledger(), sandbox.calls(), sandbox.settings()])
    assert len({entry["account"] for entry in sandbox.ledger()}) == 1
    assert all(found["with_key"] for found in sandbox.calls())


# Outcomes


@pytest.mark.parametrize("outcome", ["refused", "refused_echo", "failed", "bare_failed"])
def test_a_job_can_be_made_to_fail_on_either_gateway(call: Caller, sandbox: Sandbox, outcome: str) -> None:
    sandbox.settings(latency=0)
    for route in ("onemin.submit", "apimaster.submit"):
        sandbox.faults(route=route, outcome=outcome)
    uuid = call.features(prompt="a canary prompt").json()["aiRecord"]["uuid"]
    record = call.result(uuid).json()["aiRecord"]
    task = call.generations(prompt="a canary prompt").json()["data"][0]["task_id"]
    data = call.task(task).json()["data"]
    assert (record["status"], data["status"]) == ("FAILURE", "failed")
    assert ("error" in data) == (outcome != "bare_failed")
    assert ("canary" in json.dumps(data)) == (outcome == "refused_echo")
    assert [entry["refunded"] for entry in sandbox.ledger()] == [False, True]
    assert [entry["outcome"] for entry in sandbox.ledger()] == [outcome, outcome]


def test_a_synchronous_failure_is_an_error_and_refunded(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults({"route": "onemin.submit", "outcome": "refused"})
    sandbox.faults({"route": "apimaster.submit_sync", "outcome": "refused"})
    assert call.features(wait=True).json()["errorCode"] == "EXTERNAL_API_RESPONSE_WITH_ERROR"
    answer = call.generations(wait=True)
    assert answer.status_code == 502
    assert "moderation_blocked" in answer.json()["error"]["message"]
    assert [entry["charged"] for entry in sandbox.ledger()] == [False, False]


def test_a_job_can_end_well_without_an_image(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    sandbox.faults(
        {"route": "onemin.submit", "outcome": "no_image"}, {"route": "apimaster.submit", "outcome": "no_image"}
    )
    record = call.features().json()["aiRecord"]
    assert (record["status"], record["aiRecordDetail"]["resultObject"]) == ("SUCCESS", [])
    task = call.generations().json()["data"][0]["task_id"]
    assert call.task(task).json()["data"]["result"]["images"] == []
    assert all(entry["charged"] for entry in sandbox.ledger())


def test_an_image_can_come_in_the_wrong_size(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    sandbox.faults(route="onemin.submit", outcome="wrong_size")
    link = call.features(imageSize="1K", aspectRatio="16:9").json()["aiRecord"]["temporaryUrl"]
    assert size_of(call.http.get(link).content) == (512, 512)


# Faults


def test_a_fault_takes_the_next_calls_of_its_route_and_no_other(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults(route="apimaster.status", times=2, status=503)
    task = call.generations().json()["data"][0]["task_id"]
    assert [call.task(task).status_code for _ in range(3)] == [503, 503, 200]
    assert call.features().status_code == 200


def test_a_fault_without_anything_lets_calls_pass(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults({"route": "onemin.status", "times": 2}, {"route": "onemin.status", "status": 502})
    assert [call.result("x").status_code for _ in range(4)] == [200, 200, 502, 200]


def test_a_fault_without_a_body_has_the_gateways_own(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults({"route": "apimaster.submit", "status": 429, "headers": {"Retry-After": "2"}})
    sandbox.faults({"route": "onemin.submit", "status": 401}, {"route": "onemin.submit", "status": 524})
    limited = call.generations()
    assert (limited.json()["error"]["code"], limited.headers["retry-after"]) == ("rate_limit_exceeded", "2")
    assert call.features().json()["errorCode"] == "HTTP_EXCEPTION"
    assert call.features().text.startswith("<!DOCTYPE html>")
    assert sandbox.ledger() == []


def test_a_fault_can_answer_any_body(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults(route="onemin.status", body={"aiRecord": None})
    uuid = call.features().json()["aiRecord"]["uuid"]
    assert call.result(uuid).json() == {"aiRecord": None}
    assert call.result(uuid).json()["aiRecord"]["uuid"] == uuid


@pytest.mark.parametrize(("charge", "paid"), [("before", 0), ("after", 1)])
def test_a_dropped_submit_is_charged_or_not_as_told(call: Caller, sandbox: Sandbox, charge: str, paid: int) -> None:
    sandbox.faults(route="onemin.submit", drop=True, charge=charge)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        call.features()
    assert len(sandbox.ledger()) == paid
    assert [(found["status"], found["dropped"]) for found in sandbox.calls()] == [(None, True)]


def test_a_500_may_hide_a_charge(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults(route="apimaster.submit", status=500, charge="after")
    assert call.generations().status_code == 500
    assert [entry["charged"] for entry in sandbox.ledger()] == [True]


def test_a_download_can_be_cut_short(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    sandbox.faults(route="download", cut_after=1000)
    link = call.features().json()["aiRecord"]["temporaryUrl"]
    with call.http.stream("GET", link) as answer:
        received = answer.iter_raw()
        first = next(received)
        with pytest.raises(httpx.RemoteProtocolError):
            first += b"".join(received)
    assert len(first) == 1000 < int(answer.headers["content-length"])
    assert call.http.get(link).content.startswith(first)


@pytest.mark.parametrize(("charge", "paid"), [("before", 0), ("after", 1)])
def test_a_held_call_waits_for_the_release(
    call: Caller, sandbox: Sandbox, background: Callable[..., Future[Any]], charge: str, paid: int
) -> None:
    sandbox.faults(route="onemin.submit", hold=True, charge=charge)
    answer = background(call.features)
    assert sandbox.held() == ["onemin.submit"]
    assert (len(sandbox.ledger()), answer.done()) == (paid, False)
    assert sandbox.release() == 1
    assert answer.result(10).status_code == 200
    assert len(sandbox.ledger()) == 1


def test_a_held_call_goes_on_and_is_charged_though_its_caller_went_away(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults(route="apimaster.submit", hold=True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{sandbox.apimaster_url}/images/generations/async",
            headers=call.apimaster_headers,
            json={"model": FLASH, "prompt": "a fox"},
            timeout=httpx.Timeout(10, read=0.2),
            trust_env=False,
        )
    assert sandbox.ledger() == []
    sandbox.release()
    assert until(sandbox.ledger, bool)[0]["charged"]


def test_a_fault_can_delay(call: Caller, sandbox: Sandbox) -> None:
    sandbox.faults(route="onemin.check", delay=0.2)
    call.http.get(sandbox.onemin_url + NOBODY, headers=call.onemin_headers)
    assert sandbox.calls()[0]["seconds"] >= 0.2


def test_a_reset_forgets_everything_and_drops_what_is_held(
    call: Caller, sandbox: Sandbox, background: Callable[..., Future[Any]]
) -> None:
    sandbox.settings(latency=9)
    call.features()
    sandbox.faults({"route": "onemin.submit", "hold": True}, {"route": "onemin.submit", "status": 500})
    held = background(call.features)
    sandbox.held()
    sandbox.reset()
    assert isinstance(held.exception(10), httpx.TransportError)
    assert (sandbox.ledger(), sandbox.settings()["latency"]) == ([], 0.05)
    assert call.features().status_code == 200
    assert sandbox.ledger()[0]["number"] == 1


@pytest.mark.parametrize("fault", [{"route": "nowhere"}, {"route": "download", "statsu": 500}, {"status": 500}])
def test_a_fault_that_is_not_understood_is_refused(sandbox: Sandbox, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="refuses this request"):
        sandbox.faults(fault)


def test_a_setting_that_is_not_understood_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="latnecy"):
        sandbox.settings(latnecy=1)
    with pytest.raises(ValueError, match="latency"):
        sandbox.settings(latency=-1)


# Around it


def test_every_result_link_is_listed_until_a_reset(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(honour_async=False, latency=0)
    signed = call.features().json()["aiRecord"]["temporaryUrl"]
    plain = call.generations().json()["data"][0]["url"]
    assert sandbox.links() == [signed, plain]
    sandbox.reset()
    assert sandbox.links() == []


def test_calls_say_who_called_without_queries(call: Caller, sandbox: Sandbox) -> None:
    sandbox.settings(latency=0)
    call.http.get(call.features().json()["aiRecord"]["temporaryUrl"])
    submit, download = sandbox.calls()
    assert (submit["method"], submit["route"], submit["status"]) == ("POST", "onemin.submit", 200)
    assert submit["client_port"] == download["client_port"]
    assert submit["user_agent"].startswith("python-httpx/")
    assert "?" not in download["path"]
    assert (submit["with_key"], download["with_key"]) == (True, False)


def test_one_can_wait_for_calls(call: Caller, sandbox: Sandbox, background: Callable[..., Future[Any]]) -> None:
    seen = background(sandbox.calls, "onemin.status", count=2, timeout=10)
    for _ in range(2):
        assert not seen.done()
        call.result("x")
    assert len(seen.result(10)) == 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_foreign_host_header_is_refused(call: Caller, sandbox: Sandbox, host: str) -> None:
    for path in ("/_sandbox/ledger", "/api/features"):
        assert call.http.get(f"{sandbox.url}{path}", headers={"Host": host}).status_code == 400
    assert sandbox.calls() == []


@pytest.mark.parametrize("ratio", list(drawing.PIXELS))
def test_pixels_follow_ratio_and_resolution(ratio: str) -> None:
    width, height = (int(side) for side in ratio.split(":"))
    for resolution, side in {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}.items():
        made = drawing.shape(resolution, ratio, "png")
        assert made.width / made.height == pytest.approx(width / height, rel=0.03)
        assert (made.width * made.height) ** 0.5 == pytest.approx(side, rel=0.1)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_an_image_is_the_same_every_time_and_tells_its_number(extension: str) -> None:
    inputs = (drawing.read_input(png()), drawing.Input("0" * 64, "text/uri-list"))
    sketch = drawing.Sketch(42, FLASH, "ein Bär 🐻 im Wald\n" * 50, drawing.shape("512", "1:8", extension), inputs)
    data = drawing.draw(sketch)
    assert data == drawing.draw(sketch)
    assert read_submission(data) == 42
    assert size_of(data) == (192, 1536)


def test_bytes_of_another_origin_have_no_submission() -> None:
    for data in (b"", b"<html>", png()):
        with pytest.raises(ValueError, match="not an image of the sandbox"):
            read_submission(data)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"airflow-provider-geminiimg\[sandbox\]"):
        Sandbox()


def test_importing_the_sandbox_loads_nothing_heavy() -> None:
    code = (
        "import sys, airflow_provider_geminiimg.sandbox, airflow_provider_geminiimg.sandbox.pytest_plugin;"
        "print(sorted({'fastapi', 'uvicorn', 'PIL', 'httpx', 'pydantic', 'airflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_sandbox_stops_though_calls_are_held(
    caller: Callable[..., Caller], background: Callable[..., Future[Any]]
) -> None:
    with Sandbox(latency=0) as box:
        box.faults(route="onemin.submit", hold=True)
        held = background(caller(box).features)
        box.held()
        started = time.monotonic()
    assert time.monotonic() - started < 3
    assert isinstance(held.exception(10), httpx.TransportError)


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_the_connections_are_what_airflow_reads(sandbox: Sandbox, gateway: str) -> None:
    from airflow.sdk import Connection

    for found in (
        Connection.from_json(sandbox.connection_json(gateway, key="a/b c"), conn_id="x"),
        Connection.from_uri(sandbox.connection_uri(gateway, key="a/b c"), conn_id="x"),
    ):
        assert (found.conn_type, found.host, found.password) == ("geminiimg", sandbox.base_url(gateway), "a/b c")
        assert found.extra_dejson == {"gateway": gateway}


def test_the_command_prints_where_it_listens_and_stops_on_interrupt(caller: Callable[..., Caller]) -> None:
    command = [sys.executable, "-m", "airflow_provider_geminiimg", "sandbox", "--port", "0", "--latency", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        box = SandboxClient(line.split()[1])
        assert f"1min={box.onemin_url} apimaster={box.apimaster_url} " in line
        assert caller(box).features().status_code == 200
        assert len(box.ledger()) == 1
        box.close()
    finally:
        process.send_signal(2)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")


def test_the_pytest_fixture_gives_every_test_an_empty_sandbox(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["airflow_provider_geminiimg.sandbox.pytest_plugin"]\n')
    (tmp_path / "test_mine.py").write_text(
        "import httpx, pytest\n"
        "@pytest.mark.parametrize('turn', [1, 2])\n"
        "def test_it(geminiimg_sandbox, turn):\n"
        "    body = {'model': 'gemini-3.1-flash-image-preview', 'prompt': 'a fox'}\n"
        "    url = geminiimg_sandbox.apimaster_url + '/images/generations/async'\n"
        "    httpx.post(url, json=body, headers={'Authorization': 'Bearer k'}, trust_env=False).raise_for_status()\n"
        "    assert len(geminiimg_sandbox.ledger()) == 1\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize("charge", ["before", "after"])
@pytest.mark.parametrize("gateway", ["1min", "apimaster", "apimaster, synchronously"])
def test_a_fault_may_wait_for_a_prompt(
    sandbox: Sandbox, connect: Callable[..., str], gateway: str, charge: str
) -> None:
    from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook

    name, _, mode = gateway.partition(", ")
    route = {"1min": "onemin.submit", "apimaster": "apimaster.submit"}[name] + ("_sync" if mode else "")
    sandbox.faults(route=route, prompt_contains="Käse", drop=True, charge=charge)
    hook = GeminiImageHook(connect("mine", **sandbox.connection(name)))
    hook.submit(prompt="bread", synchronous=bool(mode))
    with pytest.raises(OutcomeUnknownError):
        hook.submit(prompt='a Käse with "holes"', synchronous=bool(mode))
    hook.submit(prompt="Käse again", synchronous=bool(mode))
    paid = [entry["prompt"] for entry in sandbox.ledger()]
    assert paid == ["bread", *(['a Käse with "holes"'] if charge == "after" else []), "Käse again"]


def test_a_fault_for_a_prompt_passes_by_what_has_none(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="prompt_contains"):
        sandbox.faults(route="onemin.status", prompt_contains="Käse")
    sandbox.faults(
        {"route": "onemin.submit", "prompt_contains": "x", "status": 500}, {"route": "onemin.submit", "status": 429}
    )
    answer = httpx.post(f"{sandbox.onemin_url}/api/features", content=b"no JSON", headers={"API-KEY": "k"})
    assert answer.status_code == 429


def boxes(text: str) -> set[str]:
    """The letters of a text that its font would draw as the box for a missing letter."""
    from airflow_provider_geminiimg.sandbox.fonts import font_for

    font, drawn = font_for(text, 30)
    missing = bytes(font.getmask("\uffff"))
    return {char for char in drawn if not char.isspace() and bytes(font.getmask(char)) == missing}


@pytest.mark.parametrize("fonts", ["of this machine", "of Pillow alone"])
def test_letters_are_drawn_as_letters(monkeypatch: pytest.MonkeyPatch, fonts: str) -> None:
    from airflow_provider_geminiimg.sandbox import fonts as module

    if fonts == "of Pillow alone":
        monkeypatch.setattr(module, "_NAMES", ())
    module._installed.cache_clear()
    assert not boxes("Käse größer ÄÖÜ ß ẞ Łódź smørrebrød Čeština İstanbul Đà Nẵng œuvre „façade“ niño")
    module._installed.cache_clear()
