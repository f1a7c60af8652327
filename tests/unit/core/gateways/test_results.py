"""Where a result stands in an answer and how it is written: whatever can be taken is taken, nothing else is.

And what is left of such a text where it could not be taken: no log, exception or record holds a signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_geminiimg.core.gateways import get_gateway
from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, Reply
from airflow_provider_geminiimg.exceptions import NoImageError, UpstreamFailedError, scrub
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, answers, image_bytes, outcome, returned
from tests.harness.forbidden import Host, answer, as_json, done
from tests.harness.hostile_images import png_chunk

target, api, internet, forbidden, host = attacks.target, attacks.api, web.internet, web.forbidden, web.host
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)
GATEWAYS = pytest.mark.parametrize("gateway", ["1min", "apimaster"])

LINK = "https://cdn.example/a/fox.png?X-Amz-Date=20260101T000000Z&X-Amz-Signature=cafe0123"
PNG = image_bytes((32, 32))
BASE64 = base64.b64encode(PNG).decode()


def poll(gateway: str, body: Any) -> JobStatus:
    call = get_gateway(gateway).status("job-1", model="m")
    return call.parse(Reply(200, httpx.Headers(), json.dumps(body).encode()))


def white(side: int) -> bytes:
    """An image that is not compressed, whose base64 is slashes."""
    pixels = zlib.compress((b"\0" + b"\xff" * 3 * side) * side, 0)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in parts)


# (how a link is written, how it is asked for); a link alone: as it is
LINKS: dict[str, tuple[str, str]] = {
    "as it is": (LINK, LINK),
    "white space around": (f" \n{LINK}\t ", LINK),
    "quotes around": (f'"{LINK}"', LINK),
    "angle brackets": (f"<{LINK}>", LINK),
    "backticks": (f"`{LINK}`", LINK),
    "Markdown image": (f"![a fox]({LINK})", LINK),
    "Markdown image with a title": (f'![a fox]({LINK} "A fox")', LINK),
    "Markdown link": (f"[a fox]({LINK})", LINK),
    "Markdown in words": (f"Here is your image:\n\n![fox]({LINK})\n\nEnjoy!", LINK),
    "HTML": (f'<img alt="a fox" src="{LINK}">', LINK),
    "HTML-escaped": (LINK.replace("&", "&amp;"), LINK),
    "JSON-escaped": (LINK.replace("/", "\\/").replace("&", "\\u0026"), LINK),
    "after words": (f"Image URL: {LINK}", LINK),
    "before words": ("https://cdn.example/fox.png (valid for an hour)", "https://cdn.example/fox.png"),
    "a full stop": (f"{LINK}.", LINK),
    "a bracket": (f"{LINK}),", LINK),
    "brackets of its own": ("https://cdn.example/fox(1).png", "https://cdn.example/fox(1).png"),
    "upper case": ("HTTPS://CDN.example/fox.png", "HTTPS://CDN.example/fox.png"),
    "no scheme": ("//cdn.example/fox.png", "https://cdn.example/fox.png"),
    "raw spaces": ("https://cdn.example/a fox.png?name=a fox&sig=x", "https://cdn.example/a%20fox.png?name=a%20fox&sig=x"),
    "a tab": ("https://cdn.example/a\tfox.png", "https://cdn.example/afox.png"),
    "line breaks": (LINK.replace("&", "\r\n  &"), LINK),
    "quotes inside": ('https://cdn.example/f.png?name="fox"&sig=x', "https://cdn.example/f.png?name=%22fox%22&sig=x"),
    "another script": ("https://cdn.example/лиса.png", "https://cdn.example/лиса.png"),
    "a space that looks like none": ("https://cdn.example/a\u00a0fox.png", "https://cdn.example/a%C2%A0fox.png"),
}  # fmt: skip
NO_RESULTS = [
    "I can't draw that. See https://ai.example/policies for why.",
    "See [our policy](https://ai.example/policies) for why.",
    "I would rather describe a fox.",
]


@GATEWAYS
@pytest.mark.parametrize(("written", "asked"), LINKS.values(), ids=LINKS)
def test_a_link_is_taken_however_it_is_written(gateway: str, written: str, asked: str) -> None:
    status = poll(gateway, done(written))
    assert (status.state, [image.url for image in status.images]) == (JobState.DONE, [asked])


@GATEWAYS
@pytest.mark.parametrize("text", NO_RESULTS)
def test_an_address_beside_words_is_no_image(gateway: str, text: str) -> None:
    body = {
        "aiRecord": {"status": "SUCCESS", "aiRecordDetail": {"resultObject": [text]}},
        "data": {"status": "success", "result": text},
    }
    assert isinstance(poll(gateway, body).error, NoImageError)


BYTES = {
    "a data URI": f"data:image/png;base64,{BASE64}",
    "in upper case": f"DATA:IMAGE/PNG;BASE64,{BASE64}",
    "with a character set": f"data:image/png;charset=utf-8;base64,{BASE64}",
    "after a space": f"data:image/png;base64, {BASE64}",
    "url-safe": f"data:image/png;base64,{BASE64.replace('+', '-').replace('/', '_')}",
    "without padding": f"data:image/png;base64,{BASE64.rstrip('=')}",
    "in lines": "data:image/png;base64," + "\r\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76)),
    "in lines that were escaped": "data:image/png;base64," + BASE64[:40] + "\\n" + BASE64[40:],
    "percent-encoded": f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('=', '%3D')}",
    "in Markdown": f"![fox](data:image/png;base64,{BASE64})",
    "bare": BASE64,
    "bare, url-safe, without padding": BASE64.replace("+", "-").replace("/", "_").rstrip("="),
    "bare, in lines": "\n".join(BASE64[at : at + 60] for at in range(0, len(BASE64), 60)),
}


@GATEWAYS
@pytest.mark.parametrize("written", BYTES.values(), ids=BYTES)
def test_inline_bytes_are_taken_however_they_are_written(gateway: str, written: str) -> None:
    status = poll(gateway, done(written, written))
    assert [image.data for image in status.images] == [PNG]


NESTED: dict[str, Any] = {
    "OpenAI's images": {"data": [{"b64_json": BASE64}]},
    "a chat's text": {
        "choices": [{"message": {"role": "assistant", "content": f"![x](data:image/png;base64,{BASE64})"}}]
    },
    "a chat's images": {
        "choices": [{"message": {"images": [{"image_url": {"url": f"data:image/png;base64,{BASE64}"}}]}}]
    },
    "Google's": {"candidates": [{"content": {"parts": [{"text": "A fox."}, {"inlineData": {"data": BASE64}}]}}]},
    "bytes that are none, beside some": {"data": [{"b64_json": "!", "url": f"data:image/png;base64,{BASE64}"}]},
    "an output": {"output": {"images": [{"src": f"data:image/png;base64,{BASE64}"}]}},
}


@pytest.mark.parametrize("found", NESTED.values(), ids=NESTED)
def test_inline_bytes_are_found_wherever_a_channel_puts_them(found: Any) -> None:
    status = poll("apimaster", {"data": {"status": "SUCCESS", "task_id": "job-1", "data": found}})
    assert [image.data for image in status.images] == [PNG]


def test_inline_bytes_in_the_raw_answer_that_1min_passes_on_are_taken() -> None:
    detail = {"resultObject": [], "responseObject": NESTED["Google's"]}
    status = poll("1min", {"aiRecord": {"status": "SUCCESS", "aiRecordDetail": detail}})
    assert [image.data for image in status.images] == [PNG]


@pytest.mark.parametrize("place", ["submit", "poll"])
def test_an_image_in_base64_of_escaped_slashes_lands_and_is_paid_once(target: Target, api: Host, place: str) -> None:
    data = white(300)
    inline = base64.b64encode(data).decode()
    assert inline.count("/") > 200_000
    body = done(f"data:image/png;base64,{inline}")
    body["aiRecord"]["uuid"] = body["data"]["task_id"] = "job-1"
    said = answer(body=json.dumps(body).replace("/", "\\/").encode(), Content_Type="application/json")
    answers(api, **{place: said})
    [image] = returned(target.generate())["images"]
    assert image["sha256"] == hashlib.sha256(data).hexdigest()
    assert len([path for path, _ in api.requests if "generations" in path or "features" in path]) == 1


def test_an_input_with_whose_path_the_results_link_ends_hides_no_result(target: Target, api: Host) -> None:
    given = target.folder / "in.png"
    given.write_bytes(image_bytes((64, 64)))
    api.routes |= {
        str(given): answer(body=image_bytes()),
        "/api/assets": as_json({"fileContent": {"path": "up/in.png"}}),
    }
    answers(api, poll=as_json(done(f"{api.url}{given}")))
    [image] = returned(target.edit(str(given)))["images"]
    assert image["sha256"] == hashlib.sha256(image_bytes()).hexdigest()


# Words and links


@GATEWAYS
@pytest.mark.parametrize("word", ["QUEUED", "in_progress", "NOT_START", "unheard of", "SUCCESS", "FAILURE", None])
def test_a_usable_link_means_done_whatever_the_word(gateway: str, word: str | None) -> None:
    body = done(LINK)
    body["aiRecord"]["status"] = body["data"]["status"] = word
    status = poll(gateway, body)
    assert (status.state, [image.url for image in status.images]) == (JobState.DONE, [LINK])


def test_the_inputs_that_an_answer_repeats_are_no_result() -> None:
    task = {"status": "queued", "image_urls": [LINK], "input": {"url": LINK}, "links": {"self": LINK}, "uri": LINK}
    assert poll("apimaster", {"data": task}) == JobStatus(JobState.RUNNING, job_id="job-1")


@GATEWAYS
@pytest.mark.parametrize("word", ["success", "SUCCEED", "Completed", "done", "finished", "JOB_STATE_SUCCEEDED"])
def test_a_word_of_success_without_an_image_ends_the_job_without_one(gateway: str, word: str) -> None:
    body = {
        "aiRecord": {"status": word, "aiRecordDetail": {"resultObject": []}},
        "data": {"status": word, "result": {"images": []}},
    }
    assert isinstance(poll(gateway, body).error, NoImageError)


@pytest.mark.parametrize("link", [LINK, f"![x]({LINK})"])
def test_an_old_row_keeps_its_link_where_reasons_stand_now(link: str) -> None:
    status = poll("apimaster", {"code": "success", "data": {"status": "SUCCESS", "fail_reason": link}})
    assert [image.url for image in status.images] == [LINK]


REASONS: dict[str, Any] = {
    "a text": "No capacity.",
    "JSON in a text": json.dumps({"error": {"code": 1, "message": "No capacity."}}),
    "twice": json.dumps({"error": json.dumps({"message": "No capacity."})}),
    "a list": ["No capacity."],
    "a list in a text": json.dumps([{"message": "No capacity."}]),
}


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
@pytest.mark.parametrize("key", ["fail_reason", "failReason", "error", "errors", "error_message", "reason"])
def test_the_gateways_reason_is_shown_wherever_it_stands(key: str, reason: Any) -> None:
    for task in ({key: reason}, {"message": "", key: reason}, {"message": "success", key: reason}):
        error = poll("apimaster", {"code": "success", "data": {"status": "FAILURE", **task}}).error
        assert error is not None
        assert error.gateway_message == "No capacity."


def test_all_reasons_of_a_list_are_shown() -> None:
    error = poll("apimaster", {"data": {"status": "failed", "errors": ["First.", {"message": "Second."}]}}).error
    assert error is not None
    assert error.gateway_message == "First.; Second."


def test_an_envelope_that_says_error_of_the_call_says_nothing_about_the_job() -> None:
    for body in ({"status": "error", "message": "Busy."}, {"status": "error", "message": "Busy.", "data": None}):
        with pytest.raises(UpstreamFailedError) as caught:
            poll("apimaster", body)
        assert caught.value.retryable


# Through a task


@ONE_GATEWAY
@pytest.mark.parametrize(
    "written",
    [
        lambda link: f"![a fox]({link}/a fox.png?sig=se cret&x=1)",
        lambda link: f"{link}/a fox.png?sig=se cret&amp;x=1",
        lambda link: f" <{link}/a fox.png?sig=se cret\n&x=1> ",
    ],
    ids=["Markdown", "escaped", "broken into lines"],
)
def test_a_signed_link_with_raw_spaces_lands_its_image(target: Target, written: Callable[[str], str]) -> None:
    target.images.routes["/p.png/a%20fox.png"] = answer(body=image_bytes())
    target.polls_answer(written(target.link()))
    run = target.generate()
    [image] = returned(run)["images"]
    assert Path(image["uri"].removeprefix("file://")).read_bytes() == image_bytes()
    assert [path.partition("?")[2] for path, _ in target.images.requests] == ["sig=se%20cret&x=1"]
    assert len(target.sandbox.ledger()) == 1
    assert "cret" not in run.log


PARTS = ("vixen", "4q7z", "quoll")  # none of which stands in an id or a time
UNUSABLE = [
    's3://bucket/a fox.png?X-Amz-Signature=vixen "4q7z" quoll',
    "gs://bucket/a fox.png?\nX-Goog-Signature=vixen 4q7z quoll",
    "It lies at ftp://host/my fox.png?sig=vixen 4q7z&more=quoll, have fun",
]


@pytest.mark.parametrize("text", UNUSABLE)
@pytest.mark.parametrize("word", ["SUCCESS", "FAILURE"])
def test_a_link_that_can_not_be_taken_leaves_no_signature_anywhere(target: Target, text: str, word: str) -> None:
    body = {
        "aiRecord": {"status": word, "aiRecordDetail": {"resultObject": [f"Here: {text}"], "errorMessage": text}},
        "data": {"status": word, "result": f"Here: {text}", "fail_reason": text},
    }
    target.sandbox.faults(route=f"{target.conn_id}.status", body=body)
    run = target.generate(retries=0)
    said = run.log + str(outcome(run)) + "".join(path.read_text() for path in target.root.rglob("*.json"))
    for part in PARTS:
        assert part not in said


@pytest.mark.parametrize(
    "text",
    [
        *UNUSABLE,
        f"see {LINK.replace('fox', 'a fox')} now",
        f"{LINK} {LINK}",
        f"_{LINK}",
        "//cdn.example/a.png?sig=cafe 0123",
        "cdn.example/a.png?sig=cafe0123",
        f"https://proxy.example/?to={LINK}",
        "https%3A%2F%2Fcdn.example and https://cdn.example/a.png%3FX-Amz-Signature%3Dcafe0123",
        "https://cdn.example/a.png&X-Amz-Signature=cafe0123",
        "s3://AKcafe:be0123ef@bucket/x",
        "b.s3/x?cafe0123beef",
        "Gone: /bucket/fox.png?cafe0123",
        "fox.png?cafe-0123",
        'see "b.s3\\/x?cafe0123"',
        "b.s3/x%3Fcafe0123",
        "bücket/füchse.webp?cafe0123beef",
    ],
)
def test_no_part_of_a_query_is_left_of_any_address(text: str) -> None:
    found = scrub(text)
    for part in ("cafe", "0123", "beef", *PARTS):
        assert part not in found


def test_what_follows_a_closed_address_stays() -> None:
    assert scrub(json.dumps({"url": LINK, "code": 7, "message": "Gone."})).endswith('"code": 7, "message": "Gone."}')


@pytest.mark.parametrize(
    "text", ["What is it?", "Red/blue? Or green?", "Is it red/blue?)", "really?yes", "GET /v1/models?", "7/8 of it?"]
)
def test_a_question_is_no_query(text: str) -> None:
    assert scrub(text) == text


KEY = "sk-0123456789abcdefghijCafeBeef42"


@pytest.mark.parametrize(
    "shown",
    [
        f"Invalid key: {KEY[:12]}…",
        f"Invalid key: {KEY[:16]}******{KEY[-4:]}.",
        f"Invalid key: {KEY[:10]}...{KEY[-8:]}",
        f"Invalid key: ******{KEY[-10:]}",
        f'{{"key": "{KEY[:-3].upper()}"}}',
    ],
)
def test_no_part_of_a_key_is_left_where_it_was_shortened(shown: str) -> None:
    found = scrub(shown, secrets=[KEY])
    assert not any(KEY[at : at + 4].casefold() in found.casefold() for at in range(len(KEY) - 3))
    assert "[secret]" in found


def test_a_short_key_hides_no_words_that_begin_like_it() -> None:
    assert scrub("a test, testing", secrets=["test-key"]) == "a test, testing"
