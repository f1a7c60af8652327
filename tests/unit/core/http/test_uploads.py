"""Handles of input images: when they are used again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from airflow_provider_geminiimg.core.http import uploads
from airflow_provider_geminiimg.core.http.uploads import Uploads
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
)


def uploader(made: list[str], *, fails: int = 0) -> Callable[[], Awaitable[str]]:
    """An upload that returns ``asset 1``, ``asset 2`` and so on; the first `fails` attempts fail."""

    async def upload() -> str:
        made.append(f"asset {len(made) + 1}")
        await asyncio.sleep(0)
        if len(made) <= fails:
            raise RateLimitedError("Too many uploads.")
        return made[-1]

    return upload


def test_an_image_that_several_need_at_once_is_uploaded_once() -> None:
    made: list[str] = []

    async def all_at_once() -> list[str]:
        known = Uploads()
        return await asyncio.gather(*(known.handle("hash", uploader(made)) for _ in range(5)))

    assert asyncio.run(all_at_once()) == ["asset 1"] * 5
    assert made == ["asset 1"]


def test_after_a_failed_upload_the_next_image_uploads_and_the_others_use_that() -> None:
    made: list[str] = []

    async def all_at_once() -> list[str | BaseException]:
        known = Uploads()
        return await asyncio.gather(
            *(known.handle("hash", uploader(made, fails=1)) for _ in range(3)), return_exceptions=True
        )

    first, *others = asyncio.run(all_at_once())
    assert isinstance(first, RateLimitedError)
    assert others == ["asset 2", "asset 2"]


def test_a_handle_is_not_used_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    async def twice() -> list[str]:
        known = Uploads()
        first = await known.handle("hash", uploader(made))
        monkeypatch.setattr(uploads, "REUSE_SECONDS", -1.0)
        return [first, await known.handle("hash", uploader(made))]

    assert asyncio.run(twice()) == ["asset 1", "asset 2"]


def test_the_oldest_of_too_many_handles_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 2)
    made: list[str] = []

    async def some() -> list[str]:
        known = Uploads()
        return [await known.handle(digest, uploader(made)) for digest in ("a", "b", "c", "c", "a")]

    assert asyncio.run(some()) == ["asset 1", "asset 2", "asset 3", "asset 3", "asset 4"]


@pytest.mark.parametrize(
    ("error", "uploads_made"),
    [(BadRequestError, 2), (OutcomeUnknownError, 2), (NotSentError, 1), (RateLimitedError, 1)],
)
def test_a_handle_is_not_used_again_after_a_paid_request_that_the_gateway_has_seen_failed(
    error: type[GeminiImageError], uploads_made: int
) -> None:
    made: list[str] = []

    async def twice() -> None:
        known = Uploads()
        await known.handle("hash", uploader(made))
        known.forget(["hash", "unknown"], error("?"))
        await known.handle("hash", uploader(made))

    asyncio.run(twice())
    assert len(made) == uploads_made
