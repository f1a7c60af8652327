"""Results are fetched over real sockets: nothing secret goes out, nothing inside is reached, nothing cut is taken."""

from __future__ import annotations

import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from airflow_provider_geminiimg.core.http.download import MAX_REDIRECTS, download
from airflow_provider_geminiimg.core.http.log_filter import quiet_http
from airflow_provider_geminiimg.core.http.public_addresses import is_public
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    InvalidImageError,
    LinkExpiredError,
    UpstreamFailedError,
)
from tests.harness import forbidden as web
from tests.harness.forbidden import Forbidden, Host, Internet, answer

host, forbidden, internet, tls_host = web.host, web.forbidden, web.internet, web.tls_host


async def fetch(host: Host, path: str = "/p.png", *, max_bytes: int = 1_000, timeout: float = 20.0) -> bytes:
    return await download(f"{host.url}{path}", max_bytes=max_bytes, timeout=timeout, exempt=f"{host.url}/v1")


# --- what comes back --------------------------------------------------------------------------------------------------


async def test_the_bytes_come_exactly_as_they_were_sent(host: Host) -> None:
    host.routes["/p.png"] = answer(body=bytes(range(256)))
    assert await fetch(host) == bytes(range(256))


async def test_nothing_but_a_plain_request_goes_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    host.routes["/p.png"] = answer()
    await fetch(host, "/p.png?X-Signature=abc%2Fdef%3D&x=%20")
    ((path, headers),) = host.requests
    assert path == "/p.png?X-Signature=abc%2Fdef%3D&x=%20"
    assert headers == {
        "host": f"127.0.0.1:{host.port}",
        "accept": "image/*",
        "accept-encoding": "identity",
        "user-agent": "airflow-provider-geminiimg",
    }


async def test_redirects_are_followed_without_cookies_and_credentials(host: Host) -> None:
    host.routes["/a"] = answer(302, b"", Location="/b?sig=1", Set_Cookie="a=1")
    host.routes["/b"] = answer(307, b"", Location=f"{host.url}/p.png")
    host.routes["/p.png"] = answer()
    assert await fetch(host, "/a") == b"picture"
    assert [path for path, _ in host.requests] == ["/a", "/b?sig=1", "/p.png"]
    assert all("cookie" not in headers for _, headers in host.requests)


async def test_five_redirects_are_followed_and_no_more(host: Host) -> None:
    for number in range(MAX_REDIRECTS + 1):
        host.routes[f"/{number}"] = answer(302, b"", Location=f"/{number + 1}")
    host.routes[f"/{MAX_REDIRECTS + 1}"] = answer()
    assert await fetch(host, "/1") == b"picture"
    host.requests.clear()
    with pytest.raises(UpstreamFailedError, match="redirect"):
        await fetch(host, "/0")
    assert len(host.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_a_link_that_no_longer_answers_is_expired_and_was_paid_for(host: Host, status: int) -> None:
    host.routes["/p.png"] = answer(status, b"<Error/>")
    with pytest.raises(LinkExpiredError, match=f"127.0.0.1.*{status}") as caught:
        await fetch(host)
    assert caught.value.billed is Billed.YES


@pytest.mark.parametrize("status", [429, 500, 502, 503, 522])
async def test_a_host_that_fails_may_be_asked_again_and_the_image_was_paid_for(host: Host, status: int) -> None:
    host.routes["/p.png"] = answer(status, b"oops")
    with pytest.raises(UpstreamFailedError, match=str(status)) as caught:
        await fetch(host)
    assert caught.value.retryable
    assert caught.value.billed is Billed.YES


@pytest.mark.parametrize("status", [204, 206, 304])
async def test_an_answer_without_the_whole_body_is_no_image(host: Host, status: int) -> None:
    host.routes["/p.png"] = answer(status, b"")
    with pytest.raises(UpstreamFailedError, match=str(status)):
        await fetch(host)


async def test_an_empty_body_is_no_image(host: Host) -> None:
    host.routes["/p.png"] = answer(body=b"")
    with pytest.raises(InvalidImageError, match="empty"):
        await fetch(host)


async def test_a_body_that_breaks_off_is_noticed_and_may_be_fetched_again(host: Host) -> None:
    host.routes["/p.png"] = answer(body=b"half", Content_Length="8")
    with pytest.raises(InvalidImageError, match="ended early, after 4 bytes") as caught:
        await fetch(host)
    assert caught.value.retryable


async def test_a_chunked_body_that_breaks_off_is_noticed(host: Host) -> None:
    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"4\r\nhalf\r\n")
        handler.close_connection = True

    host.routes["/p.png"] = route
    with pytest.raises(InvalidImageError, match="ended early, after 4 bytes"):
        await fetch(host)


async def test_an_announced_size_above_the_limit_is_refused_unread(host: Host) -> None:
    host.routes["/p.png"] = answer(body=b"", Content_Length="1001")
    with pytest.raises(InvalidImageError, match="larger than the 1000 bytes") as caught:
        await fetch(host)
    assert not caught.value.retryable
    assert 'on_clear="regenerate"' in str(caught.value)


async def test_a_body_that_grows_above_the_limit_is_refused(host: Host) -> None:
    host.routes["/p.png"] = answer(body=b"x" * 1_001, Content_Length="")
    with pytest.raises(InvalidImageError, match="larger than the 1000 bytes"):
        await fetch(host)
    host.routes["/p.png"] = answer(body=b"x" * 1_000, Content_Length="")
    assert len(await fetch(host)) == 1_000


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_an_encoded_body_is_refused(host: Host, encoding: str) -> None:
    host.routes["/p.png"] = answer(Content_Encoding=encoding)
    with pytest.raises(InvalidImageError, match="content encoding"):
        await fetch(host)


async def test_a_body_that_says_that_it_is_not_encoded_is_taken(host: Host) -> None:
    host.routes["/p.png"] = answer(Content_Encoding="Identity")
    assert await fetch(host) == b"picture"


async def test_a_host_that_trickles_is_given_up_at_the_time_limit(host: Host) -> None:
    done = threading.Event()

    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not done.wait(0.02):
            handler.wfile.write(b"x")

    host.routes["/p.png"] = route
    with pytest.raises(UpstreamFailedError, match=r"longer than 0\.3 s") as caught:
        await fetch(host, timeout=0.3, max_bytes=10**9)
    done.set()
    assert caught.value.retryable


async def test_a_host_that_is_not_there_may_be_asked_again() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UpstreamFailedError, match=r"Connecting to 127\.0\.0\.1") as caught:
            await download(f"{url}/p.png", max_bytes=10, timeout=20, exempt=url)
    assert caught.value.retryable
    assert caught.value.billed is Billed.YES


# --- where links may lead ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "[fd00::1]",
        "[fe80::1]",
    ],
)
async def test_a_link_to_a_private_address_is_not_followed_in_any_spelling(forbidden: Forbidden, name: str) -> None:
    with pytest.raises(UpstreamFailedError, match="not a public address") as caught:
        await download(f"https://{name}:{forbidden.port}/p.png?sig=SECRET", max_bytes=10, timeout=20)
    assert not caught.value.retryable
    assert "SECRET" not in str(caught.value)
    assert "/p.png" not in str(caught.value)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["2001:4860:4860::8888", "::1"]]
)
async def test_a_name_is_refused_unless_all_its_addresses_are_public(
    forbidden: Forbidden, internet: Internet, addresses: list[str]
) -> None:
    internet.names["pictures.test"] = [addresses]
    with pytest.raises(UpstreamFailedError, match=r"pictures\.test, which is not a public address"):
        await download(f"https://pictures.test:{forbidden.port}/p.png", max_bytes=10, timeout=20)
    assert internet.asked == ["pictures.test"]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_redirect_inwards_is_not_followed(host: Host, forbidden: Forbidden, scheme: str) -> None:
    host.routes["/p.png"] = answer(302, b"", Location=f"{scheme}://127.0.0.1:{forbidden.port}/p.png")
    with pytest.raises(UpstreamFailedError, match=r"plain http|not a public address"):
        await fetch(host)


async def test_only_the_apis_own_scheme_host_and_port_are_exempt(host: Host, forbidden: Forbidden) -> None:
    for exempt in (host.url, f"https://127.0.0.1:{forbidden.port}", f"http://localhost:{forbidden.port}"):
        with pytest.raises(UpstreamFailedError):
            await download(f"{forbidden.url}/p.png", max_bytes=10, timeout=20, exempt=exempt)


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("http://example.com/p.png", "plain http"),
        ("https://user:password@example.com/p.png", "user name or password"),
        ("https://token@example.com/p.png", "user name or password"),
        ("ftp://example.com/p.png", "not an https address"),
        ("file:///etc/passwd", "not an https address"),
        ("data:image/png;base64,AAAA", "not an https address"),
        ("//example.com/p.png", "not an https address"),
        ("", "not an https address"),
        ("https://", "not an https address"),
        ("https://[fe80::1%25eth0]/p.png", "not an https address"),
        ("https://exa mple.com:x/p.png", "not a URL"),
    ],
)
async def test_a_link_that_is_not_a_plain_https_address_is_refused_unsent(link: str, said: str) -> None:
    with pytest.raises(UpstreamFailedError, match=said) as caught:
        await download(link, max_bytes=10, timeout=20)
    assert not caught.value.retryable
    assert "password@" not in str(caught.value)


PUBLIC = ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "2001::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "fc00::1",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize(("address", "public"), [(a, True) for a in PUBLIC] + [(a, False) for a in NOT_PUBLIC])
def test_an_address_is_public_only_if_what_is_wrapped_in_it_is_too(address: str, public: bool) -> None:
    assert is_public(address) is public


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_a_host_is_resolved_once_and_reached_at_that_address_under_its_name(
    tls_host: tuple[Host, list[str | None]], internet: Internet
) -> None:
    host, asked = tls_host
    host.routes["/p.png"] = answer()
    internet.names["pictures.test"] = [["127.0.0.1"]]
    url = f"https://pictures.test:{host.port}"
    assert await download(f"{url}/p.png", max_bytes=10, timeout=20, exempt=url) == b"picture"
    assert internet.asked == ["pictures.test"]
    assert asked == ["pictures.test"]
    assert host.requests[0][1]["host"] == f"pictures.test:{host.port}"


async def test_the_next_address_is_tried_where_the_first_does_not_answer(
    tls_host: tuple[Host, list[str | None]], internet: Internet
) -> None:
    host, _ = tls_host
    host.routes["/p.png"] = answer()
    internet.names["pictures.test"] = [["127.0.0.9", "127.0.0.1"]]
    url = f"https://pictures.test:{host.port}"
    assert await download(f"{url}/p.png", max_bytes=10, timeout=20, exempt=url) == b"picture"


async def test_a_certificate_of_another_name_is_refused(
    tls_host: tuple[Host, list[str | None]], internet: Internet
) -> None:
    host, _ = tls_host
    internet.names["other.test"] = [["127.0.0.1"]]
    url = f"https://other.test:{host.port}"
    with pytest.raises(UpstreamFailedError, match="CERTIFICATE_VERIFY_FAILED"):
        await download(f"{url}/p.png?sig=SECRET", max_bytes=10, timeout=20, exempt=url)
    assert host.requests == []


# --- logs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """An Airflow that an earlier test started has set httpx's own level."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "httpx")
    return caplog


async def test_no_part_of_a_link_but_its_host_is_logged(
    host: Host, everything_logged: pytest.LogCaptureFixture
) -> None:
    host.routes["/CANARY-path"] = answer(302, b"", Location="/CANARY-next?sig=CANARY", Set_Cookie="a=CANARY")
    host.routes["/CANARY-cookies"] = answer(Set_Cookie="a b[]=CANARY; CANARY")
    host.routes["/CANARY-next"] = answer(X_Amz_Meta="CANARY")
    host.routes["/CANARY-gone"] = answer(403, b"CANARY")
    await fetch(host, "/CANARY-path?sig=CANARY")
    await fetch(host, "/CANARY-cookies")
    with pytest.raises(GeminiImageError) as caught:
        await fetch(host, "/CANARY-gone?sig=CANARY")
    assert f"HTTP request to {host.url}/…: 302" in everything_logged.messages
    assert "CANARY" not in everything_logged.text
    assert "CANARY" not in str(caught.value)


async def test_other_peoples_requests_are_logged_as_before(
    host: Host, everything_logged: pytest.LogCaptureFixture
) -> None:
    host.routes["/theirs"] = answer(X_Theirs="value")
    host.routes["/p.png"] = answer()
    await fetch(host)
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{host.url}/theirs?a=1")
    assert f'HTTP Request: GET {host.url}/theirs?a=1 "HTTP/1.0 200 OK"' in everything_logged.messages
    assert "X-Theirs" in everything_logged.text


async def test_a_path_may_stay_in_the_log_and_its_query_never(
    host: Host, everything_logged: pytest.LogCaptureFixture
) -> None:
    host.routes["/v1/tasks"] = answer()
    with quiet_http():
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"{host.url}/v1/tasks?model=CANARY", headers={"Authorization": "Bearer CANARY"})
    assert f"HTTP request to {host.url}/v1/tasks: 200" in everything_logged.messages
    assert "CANARY" not in everything_logged.text
