"""Downloads the result of a paid job into memory, within limits, and checks that it is an image.

Invariants: nothing here costs money. Bytes that are not an image are never returned.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation
from airflow_provider_geminiimg.core.gateways.base import ResultImage
from airflow_provider_geminiimg.core.http.download import DOWNLOAD_SECONDS, download
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES, ImageInfo, inspect_image
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.storage.base import sha256
from airflow_provider_geminiimg.exceptions import GeminiImageError

T = TypeVar("T")

_PAUSES = (0.5, 1.0)  # seconds at most before the second and the third try


async def fetch(
    context: PurchaseContext, record: Record, image: ResultImage, allocation: Allocation, before: int
) -> tuple[bytes, ImageInfo, str]:
    """The bytes of a result, their image type and size, and their SHA-256.

    :param allocation: allocation that is charged during the download.
    :param before: bytes that `allocation` already holds.
    :raises GeminiImageError: the download failed, or the bytes are not an image.
    """
    if image.data is not None:
        return image.data, *await asyncio.to_thread(inspected, image.data)
    transport = await context.transport(record)

    async def fetched() -> tuple[bytes, ImageInfo, str]:
        try:
            data = await download(
                str(image.url),
                max_bytes=MAX_IMAGE_BYTES,
                timeout=DOWNLOAD_SECONDS,
                exempt=transport.gateway.base_url,
                hold=lambda size: allocation.hold(before + size),
            )
        except GeminiImageError:
            allocation.restart(before)
            raise
        return data, *await asyncio.to_thread(inspected, data)

    return await with_retries(fetched)


def inspected(data: bytes) -> tuple[ImageInfo, str]:
    """The image type and size of some bytes, and their SHA-256, with one hand-over to a thread.

    :raises InvalidImageError: the bytes are not an image.
    """
    return inspect_image(data), sha256(data)


async def with_retries(step: Callable[[], Awaitable[T]]) -> T:
    """The result of `step`; after a retryable error up to three tries, and no new try after `DOWNLOAD_SECONDS`."""
    give_up = time.monotonic() + DOWNLOAD_SECONDS
    for pause in _PAUSES:
        try:
            return await step()
        except GeminiImageError as error:
            if not error.retryable or time.monotonic() > give_up:
                raise
        await asyncio.sleep(random.uniform(0, pause))
    return await step()
