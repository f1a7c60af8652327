"""The hook alone, in a worker and in an event loop, against the sandbox."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from airflow_provider_geminiimg.core.catalog.lookup import default_model
from airflow_provider_geminiimg.core.gateways.base import JobState, ResultImage
from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    GeminiImageError,
    InvalidImageError,
    LinkExpiredError,
    LostContactError,
    NotSentError,
    OutcomeUnknownError,
    TimedOutError,
)
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

MODEL, GA = "gemini-3.1-flash-image-preview", "gemini-3.1-flash-image"


def png(width: int = 64, height: int = 36) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_submitted_waited_for_and_downloaded(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="a lighthouse", aspect_ratio="16:9", resolution="1K")
    assert job.state is JobState.RUNNING
    assert job.job_id
    done = hook.wait(job.job_id, poll_interval=0.05)
    assert hook.status(job.job_id).state is JobState.DONE
    info = inspect_image(hook.download(done.images[0]))
    assert info.width / info.height == pytest.approx(16 / 9, rel=0.03)
    assert len(sandbox.ledger()) == 1


async def test_the_asynchronous_twins_do_the_same(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    hook = GeminiImageHook(geminiimg_conn_id)
    await hook.acheck()
    assert await hook.amodels() == await asyncio.to_thread(hook.models)
    handle = await hook.aupload(png())
    assert isinstance(handle, str)
    job = await hook.asubmit(ImageRequest.build(operation="generate", prompt="a lighthouse"))
    assert job.job_id is not None
    done = await hook.await_job(job.job_id, poll_interval=0.05)
    assert (await hook.astatus(job.job_id)).state is JobState.DONE
    assert inspect_image(await hook.adownload(done.images[0])).width > 0
    assert await hook.aconnection() == hook.connection()


def test_the_models_are_those_of_the_key_or_of_the_gateways_public_list(
    sandbox: Sandbox, geminiimg_conn_id: str, connect: Callable[..., str]
) -> None:
    hook = GeminiImageHook(geminiimg_conn_id)
    model = default_model(hook.connection().gateway)
    assert model in hook.models()
    assert sandbox.ledger() == []
    refused = connect("refused", **sandbox.connection(hook.connection().gateway, key="bad-key"))
    with pytest.raises(AuthenticationError):
        GeminiImageHook(refused).models()


def test_a_synchronous_submit_brings_the_finished_image(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="a lighthouse", synchronous=True)
    assert job.state is JobState.DONE
    assert inspect_image(hook.download(job.images[0])).width > 0
    [call] = [call["route"] for call in sandbox.calls() if "submit" in call["route"]]
    assert call in ("onemin.submit", "apimaster.submit_sync")


def test_a_synchronous_submit_that_the_gateway_gives_up_is_outcome_unknown_and_sent_once(
    sandbox: Sandbox, apimaster: str
) -> None:
    sandbox.settings(latency=0.5, sync_gives_up=0.05)
    with pytest.raises(OutcomeUnknownError) as caught:
        GeminiImageHook(apimaster).submit(prompt="a lighthouse", synchronous=True)
    assert caught.value.status_code == 408
    assert len(sandbox.calls("apimaster.submit_sync")) == 1


def test_an_edit_uploads_its_images_first(sandbox: Sandbox, geminiimg_conn_id: str, tmp_path: Path) -> None:
    image = tmp_path / "in.png"
    image.write_bytes(png())
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="make it night", image=image.as_uri(), reference_images=[str(image)])
    assert job.job_id is not None
    assert hook.wait(job.job_id, poll_interval=0.05).images
    routes = [call["route"] for call in sandbox.calls() if call["route"].endswith(("upload", "submit"))]
    assert routes in (["onemin.upload", "onemin.submit"], ["apimaster.submit"])


def test_the_key_goes_to_the_api_and_not_to_the_result_link(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="a lighthouse")
    hook.download(hook.wait(str(job.job_id), poll_interval=0.05).images[0])
    assert {call["with_key"] for call in sandbox.calls() if call["route"] != "download"} == {True}
    assert [call["with_key"] for call in sandbox.calls("download")] == [False]


def test_an_upload_takes_bytes_or_a_uri_and_refuses_what_is_no_image(
    sandbox: Sandbox, geminiimg_conn_id: str, tmp_path: Path
) -> None:
    image = tmp_path / "in.png"
    image.write_bytes(png())
    hook = GeminiImageHook(geminiimg_conn_id)
    assert hook.upload(png())
    assert hook.upload(image.as_uri())
    before = len(sandbox.calls())
    for wrong in (b"<html>", b"", (tmp_path / "absent.png").as_uri()):
        with pytest.raises(BadRequestError):
            hook.upload(wrong)
    assert len(sandbox.calls()) == before


def test_an_upload_from_outside_the_allowed_roots_is_refused(
    sandbox: Sandbox, onemin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ALLOWED_ROOTS", (tmp_path / "allowed").as_uri())
    (tmp_path / "in.png").write_bytes(png())
    with pytest.raises(BadRequestError, match="image"):
        GeminiImageHook(onemin).upload((tmp_path / "in.png").as_uri())
    assert sandbox.calls() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": "x", "resolution": "9K"},
        {"prompt": "x", "aspect_ratio": "17:9"},
        {"prompt": "x", "colour": "red"},
        {"prompt": "x", "image": "file:///does/not/exist.png"},
    ],
    ids=lambda fields: next(reversed(fields)),
)
def test_bad_input_is_refused_and_nothing_is_sent(
    sandbox: Sandbox, geminiimg_conn_id: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError):
        GeminiImageHook(geminiimg_conn_id).submit(**fields)
    assert sandbox.calls() == []
    assert sandbox.ledger() == []


def test_a_request_and_fields_together_are_refused(onemin: str) -> None:
    with pytest.raises(BadRequestError, match="not both"):
        GeminiImageHook(onemin).submit(ImageRequest.build(operation="generate", prompt="x"), prompt="y")


def test_the_connections_model_is_the_one_that_is_used(sandbox: Sandbox, connect: Callable[..., str]) -> None:
    model = "gemini-2.5-flash-image"
    connect("mine", host=sandbox.onemin_url, password="key", extra={"gateway": "1min", "model": model})
    GeminiImageHook("mine").submit(prompt="a lighthouse")
    assert model in str(sandbox.ledger())


def test_a_dropped_submit_is_outcome_unknown_and_sent_once(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    route = f"{geminiimg_conn_id}.submit"
    sandbox.faults(route=route, drop=True, charge="after")
    with pytest.raises(OutcomeUnknownError):
        GeminiImageHook(geminiimg_conn_id).submit(prompt="a lighthouse")
    assert len(sandbox.calls(route)) == len(sandbox.ledger()) == 1


def test_waiting_for_a_job_that_fails_raises_its_own_outcome(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", outcome="failed")
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="a lighthouse")
    with pytest.raises(GeminiImageError) as caught:
        hook.wait(str(job.job_id), poll_interval=0.05)
    assert not isinstance(caught.value, (LostContactError, TimedOutError, OutcomeUnknownError))


def test_waiting_stops_at_its_timeout_and_leaves_the_job_alone(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    sandbox.settings(latency=60)
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="a lighthouse")
    with pytest.raises(TimedOutError, match=str(job.job_id)):
        hook.wait(str(job.job_id), timeout=0.3, poll_interval=0.1)


def test_five_failed_polls_are_lost_contact_and_four_are_not(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    hook = GeminiImageHook(geminiimg_conn_id)
    job = hook.submit(prompt="a lighthouse")
    sandbox.faults(route=f"{geminiimg_conn_id}.status", drop=True, times=4)
    assert hook.wait(str(job.job_id), poll_interval=0.02).images
    sandbox.faults(route=f"{geminiimg_conn_id}.status", status=503, times=5)
    with pytest.raises(LostContactError, match=str(job.job_id)):
        hook.wait(str(job.job_id), poll_interval=0.02)


def test_a_link_that_no_longer_answers_and_a_page_instead_of_an_image_are_told_apart(
    sandbox: Sandbox, onemin: str
) -> None:
    hook = GeminiImageHook(onemin)
    image = hook.wait(str(hook.submit(prompt="a lighthouse").job_id), poll_interval=0.05).images[0]
    sandbox.faults(route="download", status=403)
    with pytest.raises(LinkExpiredError):
        hook.download(image)
    sandbox.faults(route="download", body="<html>maintenance</html>")
    with pytest.raises(InvalidImageError):
        hook.download(image)
    with pytest.raises(InvalidImageError):
        hook.download(ResultImage(data=b"inline, and no image"))


def test_the_connection_test_says_who_answered_where_how_fast_and_what_the_key_sees(
    sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    works, message = GeminiImageHook(geminiimg_conn_id).test_connection()
    label, url, sees = {
        "onemin": (
            "1min.ai",
            sandbox.onemin_url,
            "Its public list has 7 image models, among them these of the catalogue: ",
        ),
        "apimaster": (
            "APIMaster.ai",
            sandbox.apimaster_url,
            "The key can use 6 models, among them these of the catalogue: ",
        ),
    }[geminiimg_conn_id]
    assert works is True
    assert re.match(rf"{label} at {re.escape(url)} accepts the key \(\d+ ms\)\. {re.escape(sees)}", message)
    assert MODEL in message
    assert "default model" not in message
    assert sandbox.ledger() == []


def test_the_connection_test_says_that_the_key_does_not_see_the_default_model(
    sandbox: Sandbox, connect: Callable[..., str]
) -> None:
    connect("mine", **sandbox.connection("apimaster", model="gemini-2.5-flash-image"))
    works, message = GeminiImageHook("mine").test_connection()
    assert works is True
    assert "The default model gemini-2.5-flash-image is not among them" in message


def test_the_connection_test_tells_our_models_from_the_gateways_others(
    sandbox: Sandbox, connect: Callable[..., str]
) -> None:
    sandbox.faults(route="apimaster.check", body=json.dumps({"data": [{"id": "gpt-image-1"}, {"id": GA}]}))
    _, message = GeminiImageHook(connect("mine", **sandbox.connection("apimaster"))).test_connection()
    assert f"can use 2 models, among them these of the catalogue: {GA}." in message
    sandbox.faults(route="apimaster.check", body=json.dumps({"data": [{"id": "gpt-image-1"}]}))
    _, message = GeminiImageHook("mine").test_connection()
    assert "these of the catalogue: none." in message


def test_the_connection_test_says_what_is_wrong_and_what_to_do_without_the_key(
    sandbox: Sandbox, connect: Callable[..., str], unused_tcp_port: int
) -> None:
    key, good = "bad-canary-key", {"gateway": "1min"}
    deaf = f"http://127.0.0.1:{unused_tcp_port}"
    asked, wrong_place = f"Asked: 1min.ai at {sandbox.onemin_url}", "Check the connection's gateway and base URL."
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"password": key}, ("does not accept the API key", "Put a valid API key into", asked)),
        ({}, ("This connection has no API key", "Put a valid API key into")),
        ({"password": key, "extra": {}}, ("`gateway` is required", "1min, apimaster", "Correct the connection.")),
        ({"password": key, "host": deaf}, ("could not be reached", "Check the connection's host", deaf)),
        ({"password": key, "host": f"{sandbox.onemin_url}/nowhere"}, ("HTTP 404", wrong_place, "/nowhere")),
    ]
    for fields, said in cases:
        connect("made_up", **{"host": sandbox.onemin_url, "extra": good, **fields})
        works, message = GeminiImageHook("made_up").test_connection()
        assert works is False
        for part in said:
            assert part in message
        for unwanted in (key, "made_up", "task"):
            assert unwanted not in message
    sandbox.faults(route="onemin.check", status=200, body="<html>a captive portal</html>", times=3)
    works, message = GeminiImageHook(connect("portal", **sandbox.connection("1min"))).test_connection()
    assert (works, wrong_place in message) == (False, True)
    assert GeminiImageHook("absent").test_connection()[0] is False


@pytest.mark.filterwarnings("ignore:Connection:UserWarning")
@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_the_connection_test_names_misspelt_extras_and_what_was_meant(
    sandbox: Sandbox, connect: Callable[..., str], gateway: str
) -> None:
    extras = {"daily_budgt": 5, "Price-Base": 0.05, "maxconcurrency": 3, "colour": "red"}
    connect("mine", **sandbox.connection(gateway, **extras))
    works, message = GeminiImageHook("mine").test_connection()
    assert works is True
    for said in (
        "daily_budgt (did you mean daily_budget?)",
        "did you mean price_base?",
        "did you mean max_concurrency?",
    ):
        assert said in message
    assert "colour" in message
    assert "'mine'" not in message
    connect("gateless", host=sandbox.onemin_url, password="key", extra={"gatway": gateway})
    works, message = GeminiImageHook("gateless").test_connection()
    assert works is False
    assert "the extra `gateway` is required" in message
    assert "gatway (did you mean gateway?)" in message


def test_a_misspelt_extra_is_a_warning_where_the_test_prints_no_message(
    sandbox: Sandbox, connect: Callable[..., str]
) -> None:
    connect("mine", **sandbox.connection("1min", modl="x"))
    with pytest.warns(UserWarning, match="modl"):
        GeminiImageHook("mine").test_connection()


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        (None, BadRequestError, "no Airflow connection 'my_conn'"),
        ({"password": "k"}, BadRequestError, "gateway"),
        ({"extra": {"gateway": "1min"}}, AuthenticationError, "password"),
        ({"password": "k", "extra": {"gateway": "2min"}}, BadRequestError, "1min, apimaster"),
        ({"password": "k", "extra": {"gateway": "1min"}, "conn_type": "http"}, BadRequestError, "geminiimg"),
    ],
    ids=["missing", "no gateway", "no key", "unknown gateway", "another type"],
)
async def test_a_wrong_connection_is_one_clear_error_in_both_worlds(
    sandbox: Sandbox, connect: Callable[..., str], fields: dict[str, Any] | None, kind: type, said: str
) -> None:
    if fields is not None:
        connect("my_conn", **{"host": sandbox.onemin_url, **fields})
    hook = GeminiImageHook("my_conn")
    with pytest.raises(kind, match=said):
        hook.submit(prompt="a lighthouse")
    with pytest.raises(kind, match=said):
        await hook.asubmit(prompt="a lighthouse")
    assert sandbox.calls() == []


def test_a_connection_may_be_a_uri(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for gateway in ("1min", "apimaster"):
        monkeypatch.setenv("AIRFLOW_CONN_BY_URI", sandbox.connection_uri(gateway))
        assert GeminiImageHook("by_uri").connection().base_url == sandbox.base_url(gateway)
        GeminiImageHook("by_uri").check()


def test_a_gateway_that_can_not_be_reached_is_known_to_be_unpaid(
    connect: Callable[..., str], unused_tcp_port: int
) -> None:
    connect("deaf", host=f"http://127.0.0.1:{unused_tcp_port}", password="k", extra={"gateway": "1min"})
    with pytest.raises(NotSentError):
        GeminiImageHook("deaf").submit(prompt="a lighthouse")


def test_a_hook_keeps_neither_key_nor_client_nor_thread(sandbox: Sandbox, onemin: str) -> None:
    hook = GeminiImageHook(onemin)
    hook.check()
    assert b"test-key-onemin" not in pickle.dumps(hook.__dict__.copy() | {"_log": None, "_logger": None})
    assert not [thread for thread in threading.enumerate() if thread.name == "geminiimg"]


def test_a_hook_works_inside_a_running_event_loop_too(sandbox: Sandbox, onemin: str) -> None:
    import asyncio

    async def inside() -> None:
        GeminiImageHook(onemin).check()

    asyncio.run(inside())
    assert len(sandbox.calls("onemin.check")) == 1
