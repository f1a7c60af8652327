"""Input pictures, read and checked before anything is sent.

What must stay true: an input that can't be used is one clear error, before any upload, and no error shows the query of
an address.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from airflow_provider_geminiimg.catalog import Row
from airflow_provider_geminiimg.download import download
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, InvalidImageError
from airflow_provider_geminiimg.gateways.base import InputImage
from airflow_provider_geminiimg.images import inspect_image
from airflow_provider_geminiimg.landing import DOWNLOAD_SECONDS, in_thread
from airflow_provider_geminiimg.request import CheckedRequest
from airflow_provider_geminiimg.storage import Files


def public_uri(uri: str) -> str:
    """`uri` as it may be written down: without user info, query and fragment."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def read_inputs(request: CheckedRequest, files: Files) -> list[InputImage]:
    """The input pictures of a request, in the order of `CheckedRequest.input_images`.

    :raises BadRequestError: one is unreadable, too large, no picture, or of a type that the model does not take; or
        all together are too large.
    """
    names = ["image"] if request.image else []
    names += [f"reference_images[{index}]" for index in range(len(request.reference_images))]
    images = [
        await _read(name, uri, request.row, files)
        for name, uri in zip(names, request.input_images, strict=True)
    ]  # fmt: skip
    total = sum(len(image.data) for image in images)
    if total > request.row.max_total_input_bytes:
        raise BadRequestError(
            f"The input pictures have {total} bytes together. Allowed: {request.row.max_total_input_bytes}."
        )
    return images


async def _read(name: str, uri: str, row: Row, files: Files) -> InputImage:
    where = f"{name} {public_uri(uri)!r}"
    await in_thread(files.check, uri, name)
    is_web = urlsplit(uri).scheme in ("http", "https")
    try:
        if is_web:
            data = await download(uri, max_bytes=row.max_input_bytes, timeout=DOWNLOAD_SECONDS)
        else:
            data = await in_thread(lambda: files.read(uri, max_bytes=row.max_input_bytes))
        info = inspect_image(data)
    except BadRequestError:
        raise
    except InvalidImageError as error:
        raise BadRequestError(f"{where} can't be used: {error.message}") from None
    except GeminiImageError as error:
        raise type(error)(
            f"{where} could not be read: {error.message}",
            billed=BadRequestError.default_billed,
            retryable=error.retryable,
            hint="Nothing was sent. Check the address and the worker's access to it.",
        ) from None
    if info.media_type not in row.input_media_types:
        raise BadRequestError(f"{where} is {info.media_type}; allowed: {', '.join(row.input_media_types)}.")
    return InputImage(data, info.media_type, hashlib.sha256(data).hexdigest(), uri if is_web else None)
