"""Bodies that have no end, that claim to be larger than they are, or that are no images.

Each attack goes through an operator. What must stay true of each: time and memory have an end, nothing but the bytes of
an image is stored, and an image that was paid for is still there for the next attempt.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.catalog.lookup import default_model, lookup
from airflow_provider_geminiimg.core.gateways.apimaster import ASYNC_READ_TIMEOUT
from airflow_provider_geminiimg.core.gateways.results import MAX_IMAGES
from airflow_provider_geminiimg.core.http import exchange
from airflow_provider_geminiimg.core.purchase import fetching, inputs
from airflow_provider_geminiimg.exceptions import BadRequestError, OutcomeUnknownError, StorageError
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import Target, answers, image_bytes, outcome, returned
from tests.harness.forbidden import Host, Route, answer, as_json, done

target, api, internet, forbidden, host = attacks.target, attacks.api, web.internet, web.forbidden, web.host

# What follows a poll is the same for both gateways.
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)
MUCH = 40_000_000  # bytes that sockets may hold beyond what was asked for; a body without an end has more


def never(piece: bytes) -> Route:
    """A route whose headers have no end."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(piece)

    return route


def result(target: Target, route: Route) -> Any:
    """A run whose result is what the hostile host answers; only the next attempt gets the true one."""
    target.images.routes["/p.png"] = route
    target.polls_answer(target.link())
    return target.generate()


# Results and inputs without an end


@ONE_GATEWAY
@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"x"], ids=["png", "text"])
def test_a_result_without_an_end_is_cut_at_the_limit(
    target: Target, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(fetching, "MAX_IMAGE_BYTES", 1_000_000)
    run = result(target, target.images.pour(start * 1000))
    target.kept(run, "larger than the 1000000 bytes")
    assert len(target.images.requests) == 1
    assert target.images.sent < MUCH
    target.lands(run.retry())


@ONE_GATEWAY
def test_a_result_that_announces_too_much_is_not_read(target: Target) -> None:
    run = result(target, answer(body=b"", Content_Length=str(10**15)))
    target.kept(run, "larger than the 67108864 bytes")
    target.lands(run.retry())


@ONE_GATEWAY
def test_a_result_whose_headers_have_no_end_is_given_up(target: Target) -> None:
    run = result(target, never(b"X-More: more\r\n"))
    target.kept(run, "not valid HTTP")
    target.lands(run.retry())


@ONE_GATEWAY
def test_a_result_that_only_trickles_is_given_up_in_time(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        target.images.pour(b"x", 0.02)(handler)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "DOWNLOAD_SECONDS", 0.3)
        run = result(target, trickle)
    target.kept(run, "took longer than 0.3 s")
    assert asked == ["/p.png"], "others have waited for this host's memory long enough"
    target.lands(run.retry())


@ONE_GATEWAY
def test_a_result_that_breaks_off_does_not_land(target: Target) -> None:
    whole = image_bytes()
    run = result(target, answer(body=whole[:-100], Content_Length=str(len(whole))))
    target.kept(run, "ended early, after")
    target.lands(run.retry())


@ONE_GATEWAY
def test_a_result_that_is_a_gzip_bomb_is_not_unpacked(target: Target) -> None:
    run = result(target, answer(body=gzip.compress(bytes(100_000_000)), Content_Encoding="gzip"))
    target.kept(run, "content encoding, which was not requested")
    target.lands(run.retry())


@ONE_GATEWAY
def test_an_input_without_an_end_is_cut_at_the_limit(target: Target) -> None:
    target.images.routes["/p.png"] = target.images.pour(b"x" * 65_536)
    target.refused_unsent(target.edit(target.link()), "larger than the 7000000 bytes")
    assert target.images.sent < MUCH


@ONE_GATEWAY
def test_an_input_that_only_trickles_is_given_up_in_time(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "DOWNLOAD_SECONDS", 0.3)
    target.images.routes["/p.png"] = target.images.pour(b"x", 0.02)
    error = target.refused_unsent(target.edit(target.link()), "took longer than 0.3 s")
    assert isinstance(error, StorageError)
    assert error.retryable


@ONE_GATEWAY
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_an_input_that_is_a_device_is_not_read(target: Target, device: str) -> None:
    assert isinstance(target.refused_unsent(target.edit(device), "image="), BadRequestError)


@ONE_GATEWAY
def test_an_input_that_is_a_gzip_bomb_is_not_unpacked(target: Target) -> None:
    target.images.routes["/p.png"] = answer(body=gzip.compress(bytes(100_000_000)), Content_Encoding="gzip")
    target.refused_unsent(target.edit(target.link()), "content encoding, which was not requested")


# The API's own answers


def bomb(**headers: str) -> Route:
    body = json.dumps({"aiRecord": {"uuid": " " * 50_000_000}}).encode()
    return answer(body=gzip.compress(body), Content_Encoding="gzip", Content_Type="application/json")


def answer_bombs(api: Host) -> dict[str, Route]:
    return {
        "no end": api.pour(b'{"a": "' + b"x" * 10_000),
        "gzip": bomb(),
        "gzip in gzip": answer(body=gzip.compress(gzip.compress(bytes(10_000_000))), Content_Encoding="gzip, gzip"),
        "nested": answer(body=b'{"aiRecord":' * 100_000, Content_Type="application/json"),
        "long number": answer(
            body=b'{"aiRecord": {"status": ' + b"9" * 90_000 + b"}}", Content_Type="application/json"
        ),
        "headers": never(b"X-More: more\r\n"),
    }


BOMBS = ("no end", "gzip", "gzip in gzip", "nested", "long number", "headers")


@pytest.mark.parametrize("name", BOMBS)
def test_an_answer_to_a_submit_that_is_a_bomb_is_unknown_and_never_sent_again(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(exchange, "MAX_ANSWER", {True: 100_000, False: 100_000})
    answers(api, submit=answer_bombs(api)[name])
    run = target.generate()
    for again in (lambda: run, lambda: run.retry("made")):
        assert isinstance(outcome(again()), OutcomeUnknownError)
    assert len(api.requests) == 1
    assert api.sent < MUCH


@pytest.mark.parametrize("name", BOMBS)
def test_an_answer_to_a_poll_that_is_a_bomb_says_nothing_about_the_job(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "MAX_ANSWER", {True: 100_000, False: 100_000})
        answers(api, poll=answer_bombs(api)[name])
        run = target.generate()
    assert "could not be polled" in str(outcome(run))
    assert api.sent < MUCH
    assert [record.state for record in target.records()] == ["submitted"]
    answers(api)
    assert run.retry().state == "success"


OVER = {
    "size": ("x" * 90_000, "x" * 101_000),
    "depth": (json.loads("[" * 60 + "]" * 60), json.loads("[" * 70 + "]" * 70)),
}


@ONE_GATEWAY
@pytest.mark.parametrize("what", OVER)
def test_an_answer_is_read_up_to_its_limits_and_no_further(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(exchange, "MAX_ANSWER", {True: 100_000, False: 100_000})
    outcomes = []
    for job_id, beside in zip(("job-1", "job-2"), OVER[what], strict=True):
        said = json.dumps({"beside": beside, "aiRecord": {"uuid": job_id, "status": "PROCESSING"}}).encode()
        packed = answer(body=gzip.compress(said), Content_Type="application/json", Content_Encoding="gzip")
        answers(api, submit=packed)
        outcomes.append(target.generate(variant=job_id))
    assert outcomes[0].state == "success"
    assert isinstance(outcome(outcomes[1]), OutcomeUnknownError)


def test_an_api_that_only_trickles_is_given_up_in_time(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "OVERHEAD", -29.7)  # a poll's read timeout is 30 s
        answers(api, poll=api.pour(b" ", 0.02))
        run = target.generate()
    assert "could not be polled" in str(outcome(run))
    answers(api)
    assert run.retry().state == "success"


def test_a_submit_that_is_answered_in_a_trickle_is_given_up_in_time_and_never_sent_again(
    target: Target, api: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = lookup("1min", default_model("1min"), "generate")
    read_timeout = {"onemin": row.read_timeout("1K"), "apimaster": ASYNC_READ_TIMEOUT}[target.conn_id]
    monkeypatch.setattr(exchange, "OVERHEAD", 0.3 - read_timeout)
    answers(api, submit=api.pour(b" ", 0.02))
    run = target.generate()
    for again in (lambda: run, lambda: run.retry("made")):
        assert isinstance(outcome(again()), OutcomeUnknownError)
    assert len(api.requests) == 1


def test_an_answer_that_names_thousands_of_images_fills_no_disk(target: Target, api: Host) -> None:
    links = [f"{api.url}/p.png?{number}" for number in range(5_000)]
    both = done(links[0], *links)
    both["data"]["result"]["images"] = [{"url": link} for link in links]
    answers(api, poll=answer(body=json.dumps(both).encode(), Content_Type="application/json"))
    run = target.generate()
    assert len(returned(run)["images"]) == MAX_IMAGES
    assert len([path for path, _ in api.requests if path.startswith("/p.png")]) == MAX_IMAGES


@pytest.mark.parametrize("further", ["inwards", "gone", "HTML", "busy"])
def test_a_further_image_that_can_not_be_fetched_does_not_keep_the_first_from_landing(
    target: Target, api: Host, further: str
) -> None:
    api.routes |= {"/gone": answer(404), "/HTML": answer(body=b"<html>"), "/busy": answer(503)}
    link = f"{api.url}/{further}"
    if further == "inwards":
        link = f"https://127.0.0.1:{target.forbidden.port}/p.png"
    first = f"{api.url}/p.png"
    both = done(first, "out/picture.png", link)
    both["data"]["result"]["images"] = [{"url": first}, {"url": link}]
    answers(api, poll=as_json(both))
    run = target.generate()
    [image] = returned(run)["images"]
    assert Path(image["uri"].removeprefix("file://")).read_bytes() == image_bytes()
    assert "An additional image of record" in run.log
    assert [record.state for record in target.records()] == ["landed"]


# What is no image


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(image_bytes(kind="JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = {
    "png": png(100_000, 100_000),
    "png of one line": png(2**31 - 1, 1),
    "jpeg": jpeg(65_500, 65_500),
    "webp": webp(100_000, 100_000),
}
SCRIPT = b"<html><script>alert(1)</script></html>"
NO_IMAGES = {
    "nothing": (b"", "empty"),
    "HTML": (b"<!DOCTYPE html>" + SCRIPT, "an HTML page"),
    "HTML after a byte order mark": (b"\xef\xbb\xbf  " + SCRIPT, "an HTML page"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "an SVG drawing"),
    "SVG after a declaration": (b'<?xml version="1.0"?><svg onload="alert(1)"/>', "an XML document"),
    "SVG packed": (gzip.compress(b"<svg/>"), "unknown kind"),
    "XML bomb": (
        b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "&b;&b;"><!ENTITY b "&a;">]><l>&a;</l>',
        "XML document",
    ),
    "PNG magic and HTML": (b"\x89PNG\r\n\x1a\n" + SCRIPT, "incomplete or damaged"),
    "JPEG magic and HTML": (b"\xff\xd8\xff" + SCRIPT, "incomplete or damaged"),
    "WebP magic and HTML": (b"RIFF\x08\0\0\0WEBP" + SCRIPT, "incomplete or damaged"),
    "GIF and JavaScript": (b"GIF89a/*" + bytes(8) + b"*/=1;alert(1)", "a GIF"),
    "PDF": (b"%PDF-1.7 /JS (app.alert(1))", "a PDF"),
    "ZIP": (b"PK\x03\x04" + bytes(40), "unknown kind"),
    "PostScript": (b"%!PS\n(/etc/passwd) (r) file", "unknown kind"),
    "JSON": (b'{"error": "expired"}', "JSON"),
}


@ONE_GATEWAY
@pytest.mark.parametrize("name", HUGE)
def test_a_result_that_claims_to_be_huge_does_not_land(target: Target, name: str) -> None:
    run = result(target, answer(body=HUGE[name]))
    target.kept(run, "header declares an invalid size")
    target.lands(run.retry())


@ONE_GATEWAY
@pytest.mark.parametrize("name", HUGE)
def test_an_input_that_claims_to_be_huge_is_refused_before_anything_is_sent(target: Target, name: str) -> None:
    (target.folder / "in.png").write_bytes(HUGE[name])
    target.refused_unsent(target.edit(str(target.folder / "in.png")), "header declares an invalid size")


@ONE_GATEWAY
@pytest.mark.parametrize("name", NO_IMAGES)
def test_a_result_that_only_calls_itself_an_image_does_not_land(target: Target, name: str) -> None:
    body, said = NO_IMAGES[name]
    run = result(target, answer(body=body, Content_Type="image/png"))
    error = target.kept(run, said)
    assert "alert(1)" not in str(error)
    target.lands(run.retry())


@ONE_GATEWAY
@pytest.mark.parametrize("name", NO_IMAGES)
def test_an_input_that_only_calls_itself_an_image_is_refused_before_anything_is_sent(target: Target, name: str) -> None:
    body, said = NO_IMAGES[name]
    (target.folder / "in.png").write_bytes(body)
    target.refused_unsent(target.edit(str(target.folder / "in.png")), said)


COMMENT = b"\xff\xfe" + struct.pack(">H", 2 + len(SCRIPT)) + SCRIPT
TEXT = b"tEXtComment\0<?php system($_GET['c']); ?>"
POLYGLOTS = {
    "PNG and HTML": (image_bytes() + SCRIPT, "png", "image/png"),
    "PNG and ZIP": (image_bytes() + b"PK\x05\x06" + bytes(18), "png", "image/png"),
    "PNG and PHP": (
        image_bytes()[:33]
        + struct.pack(">I", len(TEXT) - 4)
        + TEXT
        + struct.pack(">I", zlib.crc32(TEXT))
        + image_bytes()[33:],
        *("png", "image/png"),
    ),
    "JPEG and HTML": (image_bytes(kind="JPEG")[:2] + COMMENT + image_bytes(kind="JPEG")[2:], "jpg", "image/jpeg"),
    "WebP and HTML": (image_bytes(kind="WEBP") + SCRIPT, "webp", "image/webp"),
}


@ONE_GATEWAY
@pytest.mark.parametrize("name", POLYGLOTS)
def test_an_image_that_is_something_else_too_lands_as_an_image_and_as_nothing_else(
    target: Target, s3: str, name: str
) -> None:
    import boto3

    body, extension, media_type = POLYGLOTS[name]
    target.images.routes["/page.html"] = answer(body=body, Content_Type="text/html")
    target.polls_answer(target.link("/page.html"))
    run = target.generate(output_path=f"{s3}/out", file_name="page.html")
    [image] = returned(run)["images"]
    assert (image["uri"], image["media_type"]) == (f"{s3}/out/page.html.{extension}", media_type)
    bucket = s3.removeprefix("s3://")
    stored = boto3.client("s3").get_object(Bucket=bucket, Key=f"out/page.html.{extension}")
    assert (stored["ContentType"], stored["Body"].read()) == (media_type, body)
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert {entry["Key"] for entry in listed} == {"out/page.html.json", f"out/page.html.{extension}"}
