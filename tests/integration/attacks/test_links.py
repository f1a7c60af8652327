"""Links that lead where they must not: named by a gateway, a redirect, a name server, or an upstream task.

Each attack goes through an operator. What must stay true of each: nobody inside is connected to, the key leaves for
nobody but the API's own host, and an image that was paid for is still there for the next attempt.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    LostContactError,
    OutcomeUnknownError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import IMAGES, OTHER, FromTask, Target, outcome
from tests.harness.forbidden import PUBLIC, answer

target, internet, forbidden = attacks.target, web.internet, web.forbidden

# Where the gateways share all of the code, one of them is enough.
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)

# Hosts that no link may lead to, in every spelling. At the port stands the forbidden server.
INWARDS = {
    "loopback": "127.0.0.1",
    "loopback by name": "localhost",
    "loopback by name with a dot": "localhost.",
    "decimal": "2130706433",
    "hexadecimal": "0x7f000001",
    "octal": "017700000001",
    "short": "127.1",
    "unspecified": "0.0.0.0",
    "IPv6": "[::1]",
    "IPv6 written out": "[0:0:0:0:0:0:0:1]",
    "IPv6 unspecified": "[::]",
    "IPv4-mapped": "[::ffff:127.0.0.1]",
    "IPv4-mapped hexadecimal": "[::ffff:7f00:1]",
    "IPv4-compatible": "[::127.0.0.1]",
    "NAT64": "[64:ff9b::7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "link-local": "169.254.1.1",
    "IPv6 link-local": "[fe80::1]",
    "private 10": "10.0.0.1",
    "private 172": "172.16.0.1",
    "private 192": "192.168.0.1",
    "shared": "100.64.0.1",
    "IPv6 private": "[fd00::1]",
    "metadata": "169.254.169.254",
    "metadata decimal": "2852039166",
    "metadata IPv4-mapped": "[::ffff:169.254.169.254]",
    "metadata IPv6": "[fd00:ec2::254]",
    "metadata of Azure": "168.63.129.16",
    "multicast": "224.0.0.1",
}
SOME = ("loopback", "decimal", "IPv6", "IPv4-mapped", "link-local", "private 10", "metadata", "metadata IPv6")
NOT_FOLLOWED = "not a public address. It was not opened."


def inwards(target: Target, name: str) -> str:
    return f"https://{INWARDS[name]}:{target.forbidden.port}/latest/meta-data?sig=SECRET"


# What a gateway names as the result


@ONE_GATEWAY
@pytest.mark.parametrize("name", INWARDS)
def test_a_result_link_that_leads_inwards_is_not_followed_and_the_image_not_lost(target: Target, name: str) -> None:
    target.polls_answer(inwards(target, name))
    run = target.generate()
    error = target.kept(run, NOT_FOLLOWED)
    assert 'on_clear="regenerate"' in error.hint
    assert "SECRET" not in run.log
    target.lands(run.retry())


@pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)
@pytest.mark.parametrize("name", SOME)
def test_a_result_link_of_the_other_gateway_is_not_followed_inwards_either(target: Target, name: str) -> None:
    target.polls_answer(inwards(target, name))
    run = target.generate()
    target.kept(run, NOT_FOLLOWED)
    target.lands(run.retry())


def test_a_result_that_only_leads_inwards_is_bought_again_by_a_clear_that_says_so_and_by_nothing_else(
    target: Target,
) -> None:
    target.polls_answer(inwards(target, "metadata"), times=3)
    run = target.generate()
    for again in (lambda: run, run.retry, lambda: run.clear("made")):
        target.kept(again(), NOT_FOLLOWED)
    target.lands(run.clear("made", dag=target.dag(on_clear="regenerate")), 2)


# What a URL parser may take for an address, or for another one than the next parser does.
ODD = {
    "octal parts": "https://0177.0.0.01:{port}/p.png",
    "other digits": "https://①②⑦.⓪.⓪.①:{port}/p.png",
    "a zone": "https://[fe80::1%25lo]:{port}/p.png",
    "a percent-encoded address": "https://%31%32%37.0.0.1:{port}/p.png",
    "a user": "https://pictures.test@127.0.0.1:{port}/p.png",
    "a user and a password": "https://pictures.test:443@127.0.0.1:{port}/p.png",
    "a backslash": "https://127.0.0.1:{port}\\@pictures.test/p.png",
    "a fragment": "https://127.0.0.1:{port}#@pictures.test/p.png",
    "a query": "https://127.0.0.1:{port}?@pictures.test/p.png",
    "plain http": "http://pictures.test:{port}/p.png",
    "plain http to another port of the API's host": "http://127.0.0.1:{port}/p.png",
    "plain http to metadata": "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
}


ODD_RESULTS = {
    **ODD,
    "no scheme": "//127.0.0.1:{port}/p.png",
    "Markdown": "![a fox](https://127.0.0.1:{port}/p.png)",
}


@ONE_GATEWAY
@pytest.mark.parametrize("name", ODD_RESULTS)
def test_an_odd_result_link_is_not_followed_and_the_image_not_lost(target: Target, name: str) -> None:
    target.polls_answer(ODD_RESULTS[name].format(port=target.forbidden.port))
    run = target.generate()
    target.kept(run, "The link")
    assert target.images.connections == 0
    target.lands(run.retry())


NO_LINKS = {
    "file": "file:///etc/passwd",
    "ftp": "ftp://127.0.0.1:{port}/p.png",
    "gopher": "gopher://127.0.0.1:{port}/_GET",
    "s3": "s3://bucket/p.png",
    "s3 by a connection": "s3://aws_default@bucket/p.png",
    "javascript": "javascript:alert(1)",
    "a path": "/etc/passwd",
    "no host": "https:///etc/passwd",
}


@pytest.mark.parametrize("name", NO_LINKS)
def test_a_result_with_another_scheme_is_no_link_and_is_asked_for_again(target: Target, name: str) -> None:
    target.polls_answer(NO_LINKS[name].format(port=target.forbidden.port), times=5)
    run = target.generate()
    assert isinstance(target.kept(run, "could not be polled", noted=False), LostContactError)
    target.lands(run.retry())


@pytest.mark.parametrize("body", [b"<html><script>alert(1)</script>", b"<svg onload='alert(1)'/>"], ids=["html", "svg"])
@pytest.mark.parametrize("media_type", ["image/png", "text/html"])
def test_a_data_uri_that_holds_no_image_does_not_land(target: Target, body: bytes, media_type: str) -> None:
    target.polls_answer(f"data:{media_type};base64,{base64.b64encode(body).decode()}")
    run = target.generate()
    target.kept(run, "not a PNG, JPEG or WebP image")
    target.lands(run.retry())


def test_a_link_inwards_that_came_instead_of_a_job_id_is_not_followed_and_bought_again_only_when_told(
    target: Target,
) -> None:
    link = inwards(target, "loopback")
    body = {"aiRecord": {"status": "SUCCESS", "temporaryUrl": link}, "data": [{"url": link}]}
    target.sandbox.faults(route=f"{target.conn_id}.submit", body=body, charge="after")
    run = target.generate()
    for again in (lambda: run, run.retry):
        error = outcome(again())
        assert NOT_FOLLOWED in str(error)
        assert error.billed is Billed.YES
        [record] = target.records()
        assert (record.state, record.links) == ("answered", [link])
    target.lands(run.clear("made", dag=target.dag(on_clear="regenerate")), 2)


def test_a_sensor_follows_no_link_inwards_either(target: Target) -> None:
    target.polls_answer(inwards(target, "metadata"))
    wait = {"job_id": "job-1", "geminiimg_conn_id": target.conn_id, "poke_interval": 0.02, "timeout": 20}
    error = outcome(target.run_as_is(GeminiImageJobSensor, **wait))
    assert NOT_FOLLOWED in str(error)
    assert error.billed is Billed.YES


# Redirects


@ONE_GATEWAY
@pytest.mark.parametrize("name", SOME)
def test_a_download_that_is_redirected_inwards_is_not_followed_and_the_image_not_lost(
    target: Target, name: str
) -> None:
    target.sandbox.faults(route="download", status=302, headers={"Location": inwards(target, name)})
    run = target.generate()
    target.kept(run, NOT_FOLLOWED)
    target.lands(run.retry())


@ONE_GATEWAY
@pytest.mark.parametrize("name", ["plain http", "plain http to another port of the API's host", "a user"])
def test_a_download_that_is_redirected_to_an_odd_link_is_not_followed(target: Target, name: str) -> None:
    location = ODD[name].format(port=target.forbidden.port)
    target.sandbox.faults(route="download", status=307, headers={"Location": location})
    run = target.generate()
    target.kept(run, "The link")
    target.lands(run.retry())


@ONE_GATEWAY
@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/p.png", "gopher://127.0.0.1/", "data:,x"])
def test_a_download_that_is_redirected_to_another_scheme_is_not_followed(target: Target, location: str) -> None:
    target.images.routes["/p.png"] = answer(302, b"", Location=location)
    target.polls_answer(target.link())
    run = target.generate()
    target.kept(run, "The link is not an https address")
    target.lands(run.retry())


def test_redirects_that_go_round_in_circles_end(target: Target) -> None:
    target.images.routes["/p.png"] = answer(302, b"", Location=target.link(name=OTHER))
    target.polls_answer(target.link())
    run = target.generate()
    target.kept(run, "The link redirects more than")
    assert len(target.images.requests) == 6
    target.lands(run.retry())


PLAIN = {"host", "accept", "accept-encoding", "user-agent"}


def test_neither_key_nor_cookie_follows_a_download_to_another_host(target: Target, tmp_path: Path) -> None:
    first = {"Location": target.link("/a"), "Set-Cookie": "session=SECRET; Domain=pictures.test; Path=/"}
    target.sandbox.faults(route="download", status=302, headers=first)
    target.sandbox.faults(route=f"{target.conn_id}.status", headers={"Set-Cookie": "session=SECRET"}, times=2)
    target.images.routes["/a"] = answer(302, b"", Location=target.link("/p.png", OTHER), Set_Cookie="session=SECRET")
    target.images.routes["/p.png"] = answer(body=attacks.image_bytes())
    assert target.generate().state == "success"
    assert [path for path, _ in target.images.requests] == ["/a", "/p.png"]
    assert all(set(headers) == PLAIN for _, headers in target.images.requests)
    assert [call["with_key"] for call in target.sandbox.calls("download")] == [False]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["inside", "outside", "nowhere"])
def test_a_submit_that_is_redirected_takes_the_key_nowhere_and_is_never_sent_again(
    target: Target, status: int, to: str
) -> None:
    location = {"inside": target.forbidden.url, "outside": target.link(), "nowhere": "https:x"}[to]
    fault = {"status": status, "headers": {"Location": location}}
    target.sandbox.faults(route=f"{target.conn_id}.submit", charge="after", times=2, **fault)
    kind = OutcomeUnknownError if status == 303 or to == "nowhere" else BadRequestError
    run = target.generate()
    for again in (lambda: run, lambda: run.retry("made")):
        assert type(outcome(again())) is kind
    assert target.images.connections == 0
    assert len(target.sandbox.ledger()) == 1


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("to", ["inside", "outside"])
def test_a_poll_that_is_redirected_takes_the_key_nowhere_and_the_image_is_not_lost(
    target: Target, status: int, to: str
) -> None:
    location = target.forbidden.url if to == "inside" else target.link()
    fault = {"route": f"{target.conn_id}.status", "status": status, "headers": {"Location": location}}
    target.sandbox.faults(times=5, **fault)
    run = target.generate()
    target.kept(run, "could not be polled", noted=False)
    assert target.images.connections == 0
    target.lands(run.retry())


@ONE_GATEWAY
def test_an_upload_that_is_redirected_takes_neither_key_nor_image_anywhere(target: Target, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(attacks.image_bytes())
    target.sandbox.faults(route="onemin.upload", status=307, headers={"Location": target.link()}, times=3)
    run = target.edit(str(tmp_path / "in.png"))
    error = outcome(run)
    assert isinstance(error, UpstreamFailedError)
    assert error.billed is Billed.NO
    assert target.images.connections == 0
    assert target.records() == []


# Names that change their minds


def test_a_name_that_is_public_first_and_loopback_second_is_looked_up_once(target: Target) -> None:
    target.internet.names[IMAGES] = [[PUBLIC], ["127.0.0.1"]]
    target.images.routes["/p.png"] = answer(body=attacks.image_bytes())
    target.polls_answer(target.link())
    assert target.generate().state == "success"
    assert target.internet.asked == [IMAGES]


@ONE_GATEWAY
@pytest.mark.parametrize("inside", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"])
def test_a_name_that_is_public_first_and_inside_at_the_redirect_is_not_followed(target: Target, inside: str) -> None:
    target.internet.names[IMAGES] = [[PUBLIC], [inside]]
    target.images.routes["/p.png"] = answer(302, b"", Location="/next.png")
    target.polls_answer(target.link())
    run = target.generate()
    target.kept(run, f"{IMAGES}, which is {NOT_FOLLOWED}")
    assert target.internet.asked == [IMAGES, IMAGES]
    target.lands(run.retry())


def test_a_name_that_is_public_first_and_inside_at_the_next_try_is_not_followed(target: Target) -> None:
    target.internet.names[IMAGES] = [[PUBLIC], ["127.0.0.1"]]
    target.images.routes["/p.png"] = answer(503, b"")
    target.polls_answer(target.link())
    run = target.generate()
    target.kept(run, f"{IMAGES}, which is {NOT_FOLLOWED}")
    target.lands(run.retry())


@ONE_GATEWAY
@pytest.mark.parametrize("inside", ["127.0.0.1", "::1", "::ffff:169.254.169.254", "fd00:ec2::254"])
def test_a_name_with_a_public_address_and_one_inside_is_not_followed(target: Target, inside: str) -> None:
    target.internet.names[IMAGES] = [[PUBLIC, inside]]
    target.polls_answer(target.link())
    run = target.generate()
    target.kept(run, f"{IMAGES}, which is {NOT_FOLLOWED}")
    target.lands(run.retry())


# What goes in


@ONE_GATEWAY
@pytest.mark.parametrize("name", INWARDS)
def test_an_input_address_that_leads_inwards_is_refused_before_anything_is_sent(target: Target, name: str) -> None:
    target.refused_unsent(target.edit(inwards(target, name)), NOT_FOLLOWED)


@pytest.mark.parametrize("name", SOME)
def test_a_reference_that_leads_inwards_is_refused_before_anything_is_sent(
    target: Target, name: str, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(attacks.image_bytes())
    run = target.edit(str(tmp_path / "in.png"), reference_images=[inwards(target, name)])
    target.refused_unsent(run, NOT_FOLLOWED)
    assert "SECRET" not in run.task("made").log.partition("Updating RenderedTaskInstanceFields")[2]


@ONE_GATEWAY
@pytest.mark.parametrize("name", SOME)
def test_an_input_address_that_is_redirected_inwards_is_refused_before_anything_is_sent(
    target: Target, name: str
) -> None:
    target.images.routes["/p.png"] = answer(302, b"", Location=inwards(target, name))
    target.refused_unsent(target.edit(target.link()), NOT_FOLLOWED)
    assert [set(headers) for _, headers in target.images.requests] == [PLAIN]


def test_an_input_address_that_is_public_first_and_loopback_second_is_looked_up_once(target: Target) -> None:
    target.internet.names[IMAGES] = [[PUBLIC], ["127.0.0.1"]]
    target.images.routes["/p.png"] = answer(body=attacks.image_bytes())
    target.lands(target.edit(target.link()))
    assert target.internet.asked == [IMAGES]


@ONE_GATEWAY
@pytest.mark.parametrize("name", ODD)
def test_an_odd_input_address_is_refused_before_anything_is_sent(target: Target, name: str) -> None:
    target.refused_unsent(target.edit(ODD[name].format(port=target.forbidden.port)), "image=")
    assert target.images.connections == 0


def test_the_apis_own_host_is_no_input_either(target: Target) -> None:
    target.refused_unsent(target.edit(f"{target.sandbox.url}/_sandbox/ledger"), "plain http")


SCHEMES = (
    "ftp://{host}",
    "gopher://{host}",
    "sftp://{host}",
    "smb://{host}",
    "webhdfs://{host}",
    "hdfs://{host}",
    "http+unix://{host}",
    "simplecache::https://{host}",
    "zip://p.png::https://{host}",
    "https:{host}",
    "memory://{host}",
)


@ONE_GATEWAY
def test_an_input_of_a_scheme_that_airflow_does_not_serve_connects_to_nobody(target: Target) -> None:
    for scheme in SCHEMES:
        uri = scheme.format(host=f"127.0.0.1:{target.forbidden.port}/p.png")
        assert isinstance(target.refused_unsent(target.edit(uri), "image"), BadRequestError)


def test_an_input_that_is_a_data_uri_is_refused(target: Target) -> None:
    inline = f"data:image/png;base64,{base64.b64encode(attacks.image_bytes()).decode()}"
    target.refused_unsent(target.edit(inline), "image")


def test_a_manifest_of_an_upstream_task_opens_no_way_inwards(target: Target) -> None:
    run = target.edit(FromTask({"images": [{"uri": inwards(target, "metadata")}]}))
    target.refused_unsent(run, NOT_FOLLOWED)
