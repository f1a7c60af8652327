"""Copies inside one bucket: the server makes them, if it refuses to copy to a name that exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks import object_stores
from tests.harness.moto import WsgiApp, start_moto
from tests.harness.shop import Shop

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


class Copies:
    """A middleware: counts copies, and reads of images; moto ignores the condition of a copy, as some stores do."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.heeds = True  # the condition, as AWS does

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def checked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            bucket, _, key = unquote(environ["PATH_INFO"]).strip("/").partition("/")
            copies = "HTTP_X_AMZ_COPY_SOURCE" in environ
            kind = "copy" if copies else environ["REQUEST_METHOD"]
            self.counts[kind] += copies or (key.endswith(".png") and ".geminiimg-" not in key)
            heeded = copies and self.heeds and environ.get("HTTP_IF_NONE_MATCH") == "*"
            if heeded and key in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys:
                start_response("412 Precondition Failed", [("Content-Type", "application/xml")])
                return [b"<Error><Code>PreconditionFailed</Code></Error>"]
            return app(environ, start_response)

        return checked


@pytest.fixture(scope="module")
def server() -> Copies:
    return Copies()


@pytest.fixture(scope="module")
def _moto(server: Copies) -> Iterator[str]:
    with start_moto(server) as url:
        yield url


@pytest.fixture
def copying(
    server: Copies, s3_root: str, sandbox: Sandbox, quick: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """Images in the bucket of the root."""
    monkeypatch.setattr(object_stores, "_CLIENTS", {})  # another test's client leads to another server
    yield Shop(s3_root, sandbox)
    server.heeds = True


async def test_a_copy_inside_a_bucket_is_made_by_the_server(copying: Shop, server: Copies) -> None:
    shop = copying
    first = await shop.buy()
    server.counts.clear()
    there = Destination(f"{shop.folder}-2", "copy")
    copied = await shop.buy(generation=1, destination=there)
    assert copied["images"] == [{**first["images"][0], "uri": f"{shop.folder}-2/copy.png"}]
    assert server.counts["GET"] == 0
    assert server.counts["PUT"] == 0
    read = [shop.files.read(made["images"][0]["uri"], max_bytes=10_000_000) for made in (first, copied)]
    assert read[0] == read[1]
    assert shop.names(there.directory) == ["copy.json", "copy.png"]
    assert shop.paid() == 1


async def test_a_server_that_ignores_the_condition_of_a_copy_gets_the_bytes_instead(
    copying: Shop, server: Copies
) -> None:
    shop, server.heeds = copying, False
    await shop.buy()
    server.counts.clear()
    there = Destination(f"{shop.folder}-2", "copy")
    await shop.buy(generation=1, destination=there)
    assert server.counts["copy"] == 1, "of a test file onto itself"
    assert server.counts["PUT"] == 1
    assert shop.names(there.directory) == ["copy.json", "copy.png"]


async def test_a_source_with_other_bytes_is_not_copied(copying: Shop, server: Copies) -> None:
    shop = copying
    first = await shop.buy()
    shop.files.put(first["images"][0]["uri"], b"other", media_type="image/png")
    server.counts.clear()
    with pytest.raises(GeminiImageError):
        await shop.buy(generation=1, destination=Destination(f"{shop.folder}-2", "copy"))
    assert server.counts["copy"] == 0
    assert shop.paid() == 1


async def test_a_copy_of_the_server_replaces_no_file_of_anybody_else(copying: Shop, server: Copies) -> None:
    shop = copying
    await shop.buy()
    there = Destination(f"{shop.folder}-2", "copy")
    shop.files.put(f"{there.directory}/copy.png", b"mine", media_type="image/png")
    with pytest.raises(GeminiImageError):
        await shop.buy(generation=1, destination=there)
    assert shop.files.read(f"{there.directory}/copy.png", max_bytes=10) == b"mine"
