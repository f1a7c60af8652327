"""Downloads the result of a paid job into memory, within limits, and checks that it is an image.

Invariants: nothing here costs money. Bytes that are not an image are never returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation
from airflow_provider_geminiimg.core.gateways.base import ResultImage
from airflow_provider_geminiimg.core.http.download import DOWNLOAD_SECONDS, download
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES, ImageInfo, inspect_image
from airflow_provider_geminiimg.core.ledger.records import Record
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.exceptions import GeminiImageError

T = TypeVar("T")


async def fetch(
    context: PurchaseContext, record: Record, image: ResultImage, allocation: Allocation, before: int
) -> tuple[bytes, ImageInfo]:
    """The bytes of a result, and their image type and size.

    :param allocation: allocation that is charged during the download.
    :param before: bytes that `allocation` already holds.
    :raises GeminiImageError: the download failed, or the bytes are not an image.
    """
    if image.data is not None:
        return image.data, await asyncio.to_thread(inspect_image, image.data)
    transport = await context.transport(record)

    async def fetched() -> tuple[bytes, ImageInfo]:
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
        return data, await asyncio.to_thread(inspect_image, data)

    return await with_retries(fetched)


async def with_retries(step: Callable[[], Awaitable[T]]) -> T:
    """The result of `step`; after a retryable error up to three tries, and no new try after `DOWNLOAD_SECONDS`."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(3) | stop_after_delay(DOWNLOAD_SECONDS),
        wait=wait_random_exponential(multiplier=0.5, max=5),
        retry=retry_if_exception(lambda e: isinstance(e, GeminiImageError) and e.retryable),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            result = await step()
    return result
