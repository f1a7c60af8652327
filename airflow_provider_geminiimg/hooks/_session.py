"""The implementation of the hook's methods, asynchronous.

What must stay true: only `Session.submit` costs money, and it sends once; an input is read and checked before anything
is sent; only the transport has the API key.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.catalog.lookup import LIMITS, default_model, knows, lookup, other_id
from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore
from airflow_provider_geminiimg.core.gateways.base import CheckResult, InputImage, JobStatus, ResultImage
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.gateways.model_refusals import is_image_model, shown
from airflow_provider_geminiimg.core.gateways.polling import End, PollSchedule, follow
from airflow_provider_geminiimg.core.http.download import DOWNLOAD_SECONDS, download
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES, inspect_image
from airflow_provider_geminiimg.core.purchase.inputs import handles_of, inspect_input, read_inputs, warn_if_turned
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    InvalidImageError,
    LostContactError,
    OutcomeUnknownError,
    TimedOutError,
)
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS


class Session:
    """The calls through one open connection. For the methods see `GeminiImageHook`.

    :param connection: the account.
    :param transport: the transport of that account.
    """

    def __init__(self, connection: GatewayConnection, transport: Transport) -> None:
        self.connection = connection
        self.transport = transport
        self.gateway = transport.gateway

    async def check(self) -> CheckResult:
        return await self.transport.send_free(self.gateway.check(), prompt="")

    async def models(self) -> tuple[str, ...]:
        seen = (await self.check()).models
        return seen or (await self.transport.send(self.gateway.models(), prompt="")).models

    async def test(self) -> str:
        """The result of the free check, as a message."""
        began = time.monotonic()
        models = (await self.check()).models
        milliseconds = (time.monotonic() - began) * 1000
        asked, label = self.connection.base_url, self.gateway.label
        where = label if asked == self.gateway.default_base_url else f"{label} at {asked}"
        accepted = f"{where} accepts the key ({milliseconds:.0f} ms)."
        return f"{accepted} {await self._models_in_words(models)}"

    async def _models_in_words(self, seen: tuple[str, ...]) -> str:
        """The available image models, and whether the default model is among them, as a message.

        :param seen: the models from the check; empty if the check does not list them. Then the public list counts.
        """
        gateway, message = self.connection.gateway, f"The key can use {len(seen)} models"
        if not seen:
            try:
                seen = (await self.transport.send(self.gateway.models(), prompt="")).models
            except GeminiImageError as error:
                return f"The list of models could not be read ({error.kind})."
            if not seen:
                return "It does not list the models that the key can use."
            message = f"Its public list has {len(seen)} image models"
        known = [model for model in seen if knows(gateway, model)]
        others = [
            model for model in seen if is_image_model(gateway, model) and "gemini" in model and model not in known
        ]
        message += f", among them these of the catalogue: {', '.join(known) or 'none'}."
        if others:
            message += f" Not in the catalogue: {shown(others)}."
        model = default_model(gateway, self.connection.model)
        if model in seen:
            return message
        other = other_id(model)
        instead = (
            f"it is listed as {other}; set that as the connection's model"
            if other in seen
            else ("change it, or enable it at the gateway")
        )
        return f"{message} The default model {model} is not among them: {instead}."

    async def upload(self, image: str | bytes) -> str:
        if isinstance(image, str):
            image = await asyncio.to_thread(self._read, image)
        try:
            info = await asyncio.to_thread(inspect_input, image)
            warn_if_turned("image", info)
        except InvalidImageError as error:
            raise BadRequestError(f"image cannot be used: {error.message}") from None
        digest = await asyncio.to_thread(lambda: hashlib.sha256(image).hexdigest())
        async with ByteSemaphore().acquire(empty=True) as allocation:
            images = [InputImage(image, info.media_type, digest)]
            [handle] = await handles_of(images, self.transport, allocation, prompt="")
        return handle

    async def submit(self, request: ImageRequest, *, synchronous: bool) -> JobStatus:
        checked = request.check(self.connection.gateway, self.connection.model)
        async with ByteSemaphore().acquire(empty=True) as allocation:
            images = await read_inputs(checked, _files(), allocation)
            handles = await handles_of(images, self.transport, allocation, prompt=checked.prompt)
        try:
            call = await asyncio.to_thread(lambda: self.gateway.submit(checked, handles, synchronous=synchronous))
            return await self.transport.send(call)
        except GeminiImageError as error:
            raise await self.transport.explain(error, checked.operation) from error.__cause__

    async def status(self, job_id: str, model: str | None) -> JobStatus:
        model = model or default_model(self.connection.gateway, self.connection.model)
        return await self.transport.send(self.gateway.status(job_id, model=model))

    async def wait(self, job_id: str, model: str | None, timeout: float, poll_interval: float | None) -> JobStatus:
        now = time.time()
        plan = PollSchedule(
            submitted_at=now,
            deadline=now + timeout,
            expected_seconds=0.0,
            poll_interval=poll_interval,
            spread=LIMITS[self.connection.gateway].poll_interval,
        )
        end, result = await follow(plan, lambda: self.status(job_id, model))
        return _ended(job_id, end, result)

    async def download(self, image: ResultImage) -> bytes:
        data = image.data
        if data is None:
            data = await download(
                image.url or "",
                max_bytes=MAX_IMAGE_BYTES,
                timeout=DOWNLOAD_SECONDS,
                exempt=self.connection.base_url,
            )
        await asyncio.to_thread(inspect_image, data)
        return data

    def _read(self, uri: str) -> bytes:
        files = _files()
        files.check(uri, "image")
        row = lookup(self.connection.gateway, default_model(self.connection.gateway), "edit")
        return files.read(uri, max_bytes=row.max_input_bytes)


def _files() -> Files:
    return Files(AIRFLOW_OPENERS, allowed_roots=settings.allowed_roots())


def _ended(job_id: str, end: End, result: JobStatus | GeminiImageError) -> JobStatus:
    if isinstance(result, JobStatus) and end.status == "done":
        return result
    if isinstance(result, JobStatus) and result.error is not None:
        raise result.error
    if end.status == "vanished":
        raise OutcomeUnknownError(f"The gateway does not know job {job_id}.")
    if end.status == "timeout":
        raise TimedOutError(f"Job {job_id} was still running at the deadline. The job is not affected.")
    cause = result if isinstance(result, GeminiImageError) else None
    raise LostContactError(f"Several polls of job {job_id} in a row failed. The job is not affected.") from cause
