"""Input images, read and checked before anything is sent.

What must stay true: an input that can't be used is one clear error, before any upload, and no error shows the query of
an address; memory is taken before an input is read, and given back as soon as its bytes are on their way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial

from airflow_provider_geminiimg.core.catalog.lookup import ModelSpec
from airflow_provider_geminiimg.core.execution.boundary import closed, error_and_place
from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore, Share
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
    """`uri` as it may be written down: without the user of a web address, and without a query that signs it."""
    try:
        place = locate(uri)
    except BadRequestError:
        return uri.partition("?")[0]
    return uri if place.scheme in ("s3", "file") else place.shown


async def read_inputs(request: CheckedRequest, files: Files, share: Share) -> list[InputImage]:
    """The input images of a request, in the order of `CheckedRequest.input_images`.

    :param share: what they are charged to, each before it is read.
    :raises BadRequestError: one is unreadable, too large, no image, or of a type that the model does not take; or
        all together are too large.
    :raises StorageError: one could not be read now; trying again can help.
    """
    images: list[InputImage] = []
    async for image in _each(request, files, share):
        images.append(image)
        share.only(sum(len(image.data) for image in images))
    return images


async def input_digests(request: CheckedRequest, files: Files, room: ByteSemaphore) -> tuple[str, ...]:
    """The SHA-256 of each input image; none is held for longer than that takes. Raises what `read_inputs` does."""
    digests: list[str] = []
    async with room.share(empty=True) as share:
        async for image in _each(request, files, share):
            digests.append(image.sha256)
            share.begin_again(0)
    return tuple(digests)


async def handles_of(images: list[InputImage], transport: Transport, share: Share, *, prompt: str) -> list[str]:
    """By what a submit names its input images: uploads them, or makes texts of them.

    :param images: emptied, so that none is held once its handle is there.
    :param share: what they are charged to.
    """
    handles = []
    images.reverse()
    while images:
        image = images.pop()
        size = len(image.data)
        await share.hold(share.taken + size)  # for the body of an upload, or base64
        handle = await asyncio.to_thread(transport.gateway.reference, image)
        del image
        if not isinstance(handle, str):
            handle = await transport.send_free(handle, prompt=prompt)
            share.only(share.taken - 2 * size)
        handles.append(handle)
    return handles


async def _each(request: CheckedRequest, files: Files, share: Share) -> AsyncIterator[InputImage]:
    names = ["image"] if request.image else []
    names += [f"reference_images[{index}]" for index in range(len(request.reference_images))]
    total = 0
    for name, uri in zip(names, request.input_images, strict=True):
        await share.hold(share.taken + request.row.max_input_bytes)
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
    """Say that an input is displayed in another way than its pixels are stored, which a model may not respect.

    :param shown: the input's name, for the log.
    """
    if info.orientation != 1:
        _log.warning(
            "%s has EXIF orientation %s and is sent as it is. A model that ignores the tag sees it turned or mirrored; "
            "where that matters, store the pixels upright.",
            shown, info.orientation,
        )  # fmt: skip


def inspect_input(data: bytes) -> ImageInfo:
    """As `inspect_image`; a header that is too long to be followed is no input, though it may be a result.

    :raises InvalidImageError: it can't be sent.
    """
    info = inspect_image(data)
    if info.size is None:
        raise InvalidImageError("How large the image is can't be told: its header is too long.")
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
    """What is to be said where reading an input raised what is no outcome."""
    passing = isinstance(error, OSError | MemoryError)
    kind = StorageError if passing else BadRequestError
    return kind(f"{name}: it can't be read ({error_and_place(error)}).", billed=Billed.NO, retryable=passing)


def _unusable(name: str, uri: str, row: ModelSpec, error: GeminiImageError, *, passing: bool) -> GeminiImageError:
    """What went wrong, as an error about the input: a storage error where trying again can help (`passing`)."""
    types = ", ".join(row.input_media_types)
    allowed = f"Allowed: an image that the worker can read, {types}, of at most {row.max_input_bytes} bytes."
    hint = f"{allowed} {error.hint}" if isinstance(error, BadRequestError | StorageError) else allowed
    kind = StorageError if passing else BadRequestError
    problem = error.message.removeprefix(locate(uri).shown).lstrip(" :")
    return kind(f"{name}={public_uri(uri)!r}: {problem}", billed=Billed.NO, retryable=passing, hint=hint.strip())
