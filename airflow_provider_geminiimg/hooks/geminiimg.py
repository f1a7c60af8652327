"""The gateways from inside Airflow: connections by id, and every call of a gateway, sync and async.

What must stay true: the hook keeps no key and no client between two calls; the synchronous methods run the very same
code as the asynchronous ones; nothing here is recorded, so whoever buys through the hook alone keeps the books.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.catalog import DEFAULT_MODEL, LIMITS, lookup
from airflow_provider_geminiimg.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.download import download
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    InvalidImageError,
    LostContactError,
    OutcomeUnknownError,
    TimedOutError,
)
from airflow_provider_geminiimg.gateways.base import CheckResult, InputImage, JobStatus, Picture
from airflow_provider_geminiimg.images import inspect_image
from airflow_provider_geminiimg.inputs import read_inputs
from airflow_provider_geminiimg.landing import DOWNLOAD_SECONDS, MAX_PICTURE_BYTES
from airflow_provider_geminiimg.polling import End, PollPlan
from airflow_provider_geminiimg.request import ImageRequest
from airflow_provider_geminiimg.runner import run
from airflow_provider_geminiimg.storage import Files, default_s3_client
from airflow_provider_geminiimg.transport import Transport

T = TypeVar("T")
WAIT_SECONDS = 1800.0


class GeminiImageHook(BaseHook):
    """Talks to 1min.ai or APIMaster.ai through an Airflow connection of type ``geminiimg``.

    For use inside a ``@task``, where the operators are too much::

        hook = GeminiImageHook()
        job = hook.submit(operation="generate", prompt="a lighthouse at dusk", aspect_ratio="16:9")
        done = job if job.pictures else hook.wait(job.job_id)
        data = hook.download(done.pictures[0])

    The hook alone keeps no ledger and so does not protect from paying twice: a task that is retried submits, and pays,
    again. The operators keep one. `submit` is the only method that costs money.

    Each method has an asynchronous twin: ``acheck``, ``aupload``, ``asubmit``, ``astatus``, ``await_job``,
    ``adownload``, ``aconnection``.

    :param geminiimg_conn_id: id of the Airflow connection.
    """

    conn_name_attr = "geminiimg_conn_id"
    default_conn_name = "geminiimg_default"
    conn_type = "geminiimg"
    hook_name = "Gemini Images"

    def __init__(self, geminiimg_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geminiimg_conn_id = geminiimg_conn_id

    def connection(self) -> GatewayConnection:
        """What the Airflow connection says, checked.

        :raises BadRequestError: it does not exist, or a part of it is wrong.
        :raises AuthenticationError: it has no API key.
        """
        try:
            found = self.get_connection(self.geminiimg_conn_id)
        except AirflowNotFoundException:
            raise self._missing() from None
        return self._parsed(found, found.extra_dejson)

    async def aconnection(self) -> GatewayConnection:
        """As `connection`, through Airflow's asynchronous getters."""
        try:
            found = await get_async_connection(self.geminiimg_conn_id, hook=self)
        except AirflowNotFoundException:
            raise self._missing() from None
        return self._parsed(found, await _async_extra(found))

    def check(self) -> CheckResult:
        """Ask the gateway whether it accepts the key. Free and without effect.

        :raises AuthenticationError: it does not.
        :raises GeminiImageError: it could not be asked.
        """
        return self._run(_Session.check)

    async def acheck(self) -> CheckResult:
        """As `check`."""
        return await self._arun(_Session.check)

    def upload(self, image: str | bytes) -> str:
        """Hand an input picture to the gateway. Free.

        :param image: its bytes, or a URI to read it from (within ``[geminiimg] allowed_roots``, where set).
        :returns: the gateway's own handle of it: a storage path, a URL or a data URI.
        :raises BadRequestError: it can't be read, or is no picture, or too large.
        """
        return self._run(lambda session: session.upload(image))

    async def aupload(self, image: str | bytes) -> str:
        """As `upload`."""
        return await self._arun(lambda session: session.upload(image))

    def submit(self, request: ImageRequest | None = None, **fields: Any) -> JobStatus:
        """Ask for a picture. **This costs money**, and is sent once.

        :param request: what to make; or give its fields by keyword. Input pictures are read and uploaded first.
        :param fields: see `ImageRequest`; ``operation`` is ``edit`` where there is an ``image`` or a reference, else
            ``generate``.
        :returns: a job that runs (`JobStatus.job_id`), or the pictures at once.
        :raises BadRequestError: a field or value that the model does not take; nothing was sent.
        :raises OutcomeUnknownError: it was sent, and nobody knows what became of it.
        :raises GeminiImageError: the gateway refused it.
        """
        return self._run(lambda session: session.submit(_request(request, fields)))

    async def asubmit(self, request: ImageRequest | None = None, **fields: Any) -> JobStatus:
        """As `submit`."""
        return await self._arun(lambda session: session.submit(_request(request, fields)))

    def status(self, job_id: str, model: str | None = None) -> JobStatus:
        """Ask once what became of a job. Free.

        :param job_id: the gateway's id of it.
        :param model: the model it was submitted for; default: the connection's, else the catalogue's default.
        :raises GeminiImageError: it could not be asked; that says nothing about the job.
        """
        return self._run(lambda session: session.status(job_id, model))

    async def astatus(self, job_id: str, model: str | None = None) -> JobStatus:
        """As `status`."""
        return await self._arun(lambda session: session.status(job_id, model))

    def wait(
        self,
        job_id: str,
        model: str | None = None,
        timeout: float = WAIT_SECONDS,
        poll_interval: float | None = None,
    ) -> JobStatus:
        """Poll until a job is done. Free.

        :param job_id: the gateway's id of it.
        :param model: see `status`.
        :param timeout: seconds to wait at most.
        :param poll_interval: seconds between polls; default: at once, then the catalogue's 3 to 5 s.
        :returns: the job, with its pictures.
        :raises GeminiImageError: the job's own failure; or `TimedOutError`, `LostContactError`, or
            `OutcomeUnknownError` where the gateway does not know the job.
        """
        return self._run(lambda session: session.wait(job_id, model, timeout, poll_interval))

    async def await_job(
        self,
        job_id: str,
        model: str | None = None,
        timeout: float = WAIT_SECONDS,
        poll_interval: float | None = None,
    ) -> JobStatus:
        """As `wait`."""
        return await self._arun(lambda session: session.wait(job_id, model, timeout, poll_interval))

    def download(self, picture: Picture) -> bytes:
        """The bytes of a result, exactly as they came, checked to be a picture. The key is not sent there.

        :param picture: one of `JobStatus.pictures`.
        :raises LinkExpiredError: the link no longer answers.
        :raises InvalidImageError: what it brought is no PNG, JPEG or WebP, or over 64 MiB.
        """
        return self._run(lambda session: session.download(picture))

    async def adownload(self, picture: Picture) -> bytes:
        """As `download`."""
        return await self._arun(lambda session: session.download(picture))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the connection works, by the free check: for Airflow's "Test" button and ``connections test``."""
        started = time.monotonic()
        try:
            connection = self.connection()
            found = run(lambda: _with_session(connection, _Session.check))
        except GeminiImageError as error:
            return False, str(error)
        milliseconds = (time.monotonic() - started) * 1000
        parts = [f"{connection.gateway} accepts the key ({milliseconds:.0f} ms)"]
        parts += [f"it sees {len(found.models)} models"] if found.models else []
        return True, f"{'; '.join(parts)}."

    def _missing(self) -> BadRequestError:
        return BadRequestError(
            f"There is no Airflow connection {self.geminiimg_conn_id!r}.",
            hint="Create it with type geminiimg, the API key as password and the extra `gateway`, then clear the task.",
        )

    def _parsed(self, found: Any, extra: Any) -> GatewayConnection:
        if found.conn_type and found.conn_type != self.conn_type:
            raise BadRequestError(
                f"Connection {self.geminiimg_conn_id!r} has type {found.conn_type!r}. Allowed: {self.conn_type}.",
                hint="Correct the connection, then clear the task.",
            )
        return parse_connection(
            conn_id=self.geminiimg_conn_id,
            password=found.password,
            host=found.host,
            schema=found.schema,
            port=found.port,
            extra=extra,
        )

    def _run(self, step: Callable[[_Session], Awaitable[T]]) -> T:
        # Looked up here and not in the helper thread: Airflow's channel to its supervisor belongs to this one.
        connection = self.connection()
        return run(lambda: _with_session(connection, step))

    async def _arun(self, step: Callable[[_Session], Awaitable[T]]) -> T:
        return await _with_session(await self.aconnection(), step)


class _Session:
    """The hook's methods, written once."""

    def __init__(self, connection: GatewayConnection, transport: Transport) -> None:
        self.connection = connection
        self.transport = transport
        self.gateway = transport.gateway

    async def check(self) -> CheckResult:
        return await self.transport.send_free(self.gateway.check(), prompt="")

    async def upload(self, image: str | bytes) -> str:
        if isinstance(image, str):
            image = await asyncio.to_thread(self._read, image)
        try:
            info = inspect_image(image)
        except InvalidImageError as error:
            raise BadRequestError(f"image can't be used: {error.message}") from None
        return await self._handle(InputImage(image, info.media_type, hashlib.sha256(image).hexdigest()), prompt="")

    async def submit(self, request: ImageRequest) -> JobStatus:
        checked = request.check(self.connection.gateway, self.connection.model)
        images = await read_inputs(checked, _files())
        handles = [await self._handle(image, prompt=checked.prompt) for image in images]
        return await self.transport.send(self.gateway.submit(checked, handles))

    async def status(self, job_id: str, model: str | None) -> JobStatus:
        model = model or self.connection.model or DEFAULT_MODEL
        return await self.transport.send(self.gateway.status(job_id, model=model))

    async def wait(self, job_id: str, model: str | None, timeout: float, poll_interval: float | None) -> JobStatus:
        now = time.time()
        plan = PollPlan(
            submitted_at=now,
            deadline=now + timeout,
            expected_seconds=0.0,
            poll_interval=poll_interval,
            spread=LIMITS[self.connection.gateway].poll_interval,
        )
        step = plan.first(now)
        while True:
            await asyncio.sleep(step.seconds)
            result: JobStatus | GeminiImageError
            try:
                result = await self.status(job_id, model)
            except GeminiImageError as error:
                result = error
            after = plan.after(time.time(), result)
            if isinstance(after, End):
                return _ended(job_id, after, result)
            step = after

    async def download(self, picture: Picture) -> bytes:
        data = picture.data
        if data is None:
            data = await download(
                picture.url or "",
                max_bytes=MAX_PICTURE_BYTES,
                timeout=DOWNLOAD_SECONDS,
                exempt=self.connection.base_url,
            )
        inspect_image(data)
        return data

    async def _handle(self, image: InputImage, *, prompt: str) -> str:
        reference = self.gateway.reference(image)
        return reference if isinstance(reference, str) else await self.transport.send_free(reference, prompt=prompt)

    def _read(self, uri: str) -> bytes:
        files = _files()
        files.check(uri, "image")
        row = lookup(self.connection.gateway, DEFAULT_MODEL, "edit")
        return files.read(uri, max_bytes=row.max_input_bytes)


async def _with_session(connection: GatewayConnection, step: Callable[[_Session], Awaitable[T]]) -> T:
    async with Transport(connection) as transport:
        return await step(_Session(connection, transport))


def _files() -> Files:
    return Files(s3_client=default_s3_client, allowed_roots=settings.allowed_roots())


def _request(request: ImageRequest | None, fields: dict[str, Any]) -> ImageRequest:
    if request is not None:
        if fields:
            raise BadRequestError("submit takes an ImageRequest or its fields, not both.")
        return request
    pictures = fields.get("image") or fields.get("reference_images")
    return ImageRequest.build(**{"operation": "edit" if pictures else "generate", **fields})


def _ended(job_id: str, end: End, result: JobStatus | GeminiImageError) -> JobStatus:
    if isinstance(result, JobStatus) and end.status == "done":
        return result
    if isinstance(result, JobStatus) and result.error is not None:
        raise result.error
    if end.status == "vanished":
        raise OutcomeUnknownError(f"The gateway does not know job {job_id}.")
    if end.status == "timeout":
        raise TimedOutError(f"Job {job_id} was still running at the deadline. It is left alone.")
    cause = result if isinstance(result, GeminiImageError) else None
    raise LostContactError(
        f"Job {job_id} could not be asked about several times in a row. It is left alone."
    ) from cause


async def _async_extra(connection: Any) -> Any:
    try:
        from airflow.providers.common.compat.connection import get_async_extra_dejson
    except ImportError:  # common.compat before 1.21, the last for Python 3.10
        return await asyncio.to_thread(lambda: connection.extra_dejson)
    return await get_async_extra_dejson(connection)
