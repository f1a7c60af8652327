"""The handles of uploaded input images, so that the images of a task with the same input share one upload.

Invariants: an upload that failed is never used. A handle is used only by the process that uploaded the image, for a
limited time, and not after a paid request with it has failed, because a request with a handle that the gateway has
forgotten may fail with an unknown outcome.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from airflow_provider_geminiimg.exceptions import GeminiImageError, NotSentError, RateLimitedError

REUSE_SECONDS = 3600.0
"""How long a handle is used again. The documentation of 1min.ai does not say how long an upload is available."""

MAX_UPLOADS = 1000
"""Handles that one connection keeps. Each takes a few hundred bytes; the oldest is dropped."""


@dataclass
class _Upload:
    """One image. While it is uploaded, others that need it wait.

    :param since: when its upload began, by the monotonic clock.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    since: float = -math.inf
    handle: str = ""


class Uploads:
    """The handles that one transport has received. Belongs to one event loop."""

    def __init__(self) -> None:
        self._uploads: dict[str, _Upload] = {}

    async def handle(self, image_sha256: str, upload: Callable[[], Awaitable[str]]) -> str:
        """Return the handle of an image, uploading it unless it was uploaded less than `REUSE_SECONDS` ago.

        :param image_sha256: hash of its bytes.
        :param upload: uploads it and returns the handle.
        :raises GeminiImageError: from `upload`. Whoever waits for the same image then calls its own `upload`.
        """
        known = self._uploads.setdefault(image_sha256, _Upload())
        if len(self._uploads) > MAX_UPLOADS:
            del self._uploads[next(iter(self._uploads))]
        async with known.turn:
            if time.monotonic() - known.since > REUSE_SECONDS:
                since = time.monotonic()
                known.handle = await upload()
                known.since = since
            return known.handle

    def forget(self, images: Iterable[str], error: GeminiImageError) -> None:
        """Upload these images again when they are needed next, unless the gateway has not looked at the request.

        It may have forgotten them.

        :param images: hashes of their bytes.
        :param error: of the paid request.
        """
        if isinstance(error, NotSentError | RateLimitedError):
            return
        for image_sha256 in images:
            self._uploads.pop(image_sha256, None)
