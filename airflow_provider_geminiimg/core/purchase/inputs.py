"""Reads and checks input images before anything is sent.

Invariants: an input image that can't be used is an error before any upload. No error shows the query of an address.
Memory is acquired before an input image is read, and released as soon as its bytes are sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial

from airflow_provider_geminiimg.core.catalog.lookup import ModelSpec
from airflow_provider_geminiimg.core.execution.boundary import closed, error_and_place
from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation, ByteSemaphore
from airflow_provider_geminiimg.core.gateways.base import InputImage
from airflow_provider_geminiimg.core.http.download import DOWNLOAD_SECONDS, download
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.images.inspection import ImageInfo, inspect_image
from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.core.storage import WEB_SCHEMES, Files, locate
from airflow_provider_geminiimg.core.storage.base import sha256
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    InvalidImageError,
    StorageError,
)

_log = logging.getLogger(__name__)


def public_uri(uri: str) -> str:
    """`uri` for logs and records: a web address without user and query."""
    try:
        place = locate(uri)
    except BadRequestError:
        return uri.partition("?")[0]
    return uri if place.scheme in ("s3", "file") else place.shown


async def read_inputs(request: CheckedRequest, files: Files, allocation: Allocation) -> list[InputImage]:
    """The input images of a request, in the order of `CheckedRequest.input_images`.

    :param allocation: the allocation for the images; each is charged before it is read.
    :raises BadRequestError: an image is unreadable, too large, not an image or of an unsupported type; or all images
        together are too large.
    :raises StorageError: an image could not be read; a retry can help.
    """
    images: list[InputImage] = []
    async for image in _each(request, files, allocation):
        images.append(image)
        allocation.resize(sum(len(image.data) for image in images))
    return images


async def input_digests(request: CheckedRequest, files: Files, memory: ByteSemaphore) -> tuple[str, ...]:
    """The SHA-256 of each input image. Only one image is in memory at a time. Raises the errors of `read_inputs`."""
    digests: list[str] = []
    async with memory.acquire(empty=True) as allocation:
        async for image in _each(request, files, allocation):
            digests.append(image.sha256)
            allocation.restart(0)
    return tuple(digests)


async def handles_of(
    images: list[InputImage], transport: Transport, allocation: Allocation, *, prompt: str
) -> list[str]:
    """The references to input images in a paid request: ids of uploads, or base64 texts.

    An image that the transport has uploaded recently is not uploaded again.

    :param images: emptied, so that each image is released as soon as its handle exists.
    :param allocation: the allocation for the images.
    """
    handles = []
    images.reverse()
    while images:
        image = images.pop()
        size = len(image.data)
        await allocation.hold(allocation.taken + size)  # for the body of the upload, or the base64 text
        handle, digest = await asyncio.to_thread(transport.gateway.reference, image), image.sha256
        del image
        if not isinstance(handle, str):
            handle = await transport.uploads.handle(digest, partial(transport.send_free, handle, prompt=prompt))
            allocation.resize(allocation.taken - 2 * size)
        handles.append(handle)
    return handles


async def _each(request: CheckedRequest, files: Files, allocation: Allocation) -> AsyncIterator[InputImage]:
    names = ["image"] if request.image else []
    names += [f"reference_images[{index}]" for index in range(len(request.reference_images))]
    total = 0
    for name, uri in zip(names, request.input_images, strict=True):
        await allocation.hold(allocation.taken + request.row.max_input_bytes)
        found = await closed(_read(name, uri, request.row, files), partial(_broken, name))
        if isinstance(found, GeminiImageError):
            raise found
        total += len(found.data)
        yield found
        del found
    if total > request.row.max_total_input_bytes:
        raise BadRequestError(
            f"{', '.join(names)}: {total} bytes together. Allowed: {request.row.max_total_input_bytes} bytes."
        )


def warn_if_turned(shown: str, info: ImageInfo) -> None:
    """Log a warning if EXIF data rotates or mirrors an input image, because a model may ignore that.

    :param shown: name of the input for the log.
    """
    if info.orientation != 1:
        _log.warning(
            "%s has EXIF orientation %s and is sent unchanged. A model that ignores the tag sees it rotated or "
            "mirrored. If that matters, store the image upright.",
            shown, info.orientation,
        )  # fmt: skip


def inspect_input(data: bytes) -> ImageInfo:
    """Like `inspect_image`, but an image without a readable size is refused.

    :raises InvalidImageError: the image can't be sent.
    """
    info = inspect_image(data)
    if info.size is None:
        raise InvalidImageError("The size of the image can't be read, because its header is too long.")
    return info


async def _read(name: str, uri: str, row: ModelSpec, files: Files) -> InputImage:
    await asyncio.to_thread(files.check, uri, name)
    from_web = locate(uri, name).scheme in WEB_SCHEMES
    try:
        if from_web:
            data = await download(uri, max_bytes=row.max_input_bytes, timeout=DOWNLOAD_SECONDS)
        else:
            data = await asyncio.to_thread(lambda: files.read(uri, max_bytes=row.max_input_bytes))
    except GeminiImageError as error:
        raise _unusable(name, uri, row, error, passing=error.retryable) from None
    try:
        info = await asyncio.to_thread(inspect_input, data)
    except InvalidImageError as error:
        raise _unusable(name, uri, row, error, passing=False) from None
    if info.media_type not in row.input_media_types:
        raise _unusable(name, uri, row, BadRequestError(f"It is {info.media_type}."), passing=False)
    warn_if_turned(f"{name}={public_uri(uri)!r}", info)
    digest = await asyncio.to_thread(sha256, data)
    return InputImage(data, info.media_type, digest, uri if from_web else None)


def _broken(name: str, error: Exception) -> GeminiImageError:
    """The error for a foreign exception while reading an input image."""
    passing = isinstance(error, OSError | MemoryError)
    kind = StorageError if passing else BadRequestError
    return kind(f"{name}: can't be read ({error_and_place(error)}).", billed=Billed.NO, retryable=passing)


def _unusable(name: str, uri: str, row: ModelSpec, error: GeminiImageError, *, passing: bool) -> GeminiImageError:
    """The error about an input image: a `StorageError` if a retry can help (`passing`), else a `BadRequestError`."""
    types = ", ".join(row.input_media_types)
    allowed = f"Allowed: an image that the worker can read, {types}, of at most {row.max_input_bytes} bytes."
    hint = f"{allowed} {error.hint}" if isinstance(error, BadRequestError | StorageError) else allowed
    kind = StorageError if passing else BadRequestError
    problem = error.message.removeprefix(locate(uri).shown).lstrip(" :")
    return kind(f"{name}={public_uri(uri)!r}: {problem}", billed=Billed.NO, retryable=passing, hint=hint.strip())
