"""The gateways from inside Airflow: connections by id, and every call of a gateway, sync and async.

What must stay true: the hook keeps no key and no client between two calls; the synchronous methods run the very same
code as the asynchronous ones; nothing here is recorded, so whoever buys through the hook alone keeps the books.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.gateways.base import CheckResult, JobStatus, ResultImage
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    UpstreamFailedError,
    without_traceback,
)

if TYPE_CHECKING:
    from airflow_provider_geminiimg.hooks._session import Session

T = TypeVar("T")
WAIT_SECONDS = 1800.0


class GeminiImageHook(BaseHook):
    """Talks to 1min.ai or APIMaster.ai through an Airflow connection of type ``geminiimg``.

    For use inside a ``@task``, where the operators are too much::

        hook = GeminiImageHook()
        job = hook.submit(operation="generate", prompt="a lighthouse at dusk", aspect_ratio="16:9")
        done = job if job.images else hook.wait(job.job_id)
        data = hook.download(done.images[0])

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
            return self._look_up()
        except GeminiImageError as error:
            raise without_traceback(error) from error.__cause__

    async def aconnection(self) -> GatewayConnection:
        """As `connection`, through Airflow's asynchronous getters."""
        try:
            return await self._alook_up()
        except GeminiImageError as error:
            raise without_traceback(error) from error.__cause__

    def check(self) -> CheckResult:
        """Ask the gateway whether it accepts the key. Free and without effect.

        :raises AuthenticationError: it does not.
        :raises GeminiImageError: it could not be asked.
        """
        return self._run(lambda session: session.check())

    async def acheck(self) -> CheckResult:
        """As `check`."""
        return await self._arun(lambda session: session.check())

    def upload(self, image: str | bytes) -> str:
        """Hand an input image to the gateway. Free.

        :param image: its bytes, or the URI of a file to read, no web address (within ``[geminiimg] allowed_roots``,
            where set).
        :returns: the gateway's own handle of it: a storage path, a URL or a data URI.
        :raises BadRequestError: it can't be read, or is no image, or too large.
        """
        return self._run(lambda session: session.upload(image))

    async def aupload(self, image: str | bytes) -> str:
        """As `upload`."""
        return await self._arun(lambda session: session.upload(image))

    def submit(self, request: ImageRequest | None = None, *, synchronous: bool = False, **fields: Any) -> JobStatus:
        """Ask for an image. **This costs money**, and is sent once.

        :param request: what to make; or give its fields by keyword. Input images are read and uploaded first.
        :param fields: see `ImageRequest`; ``operation`` is ``edit`` where there is an ``image`` or a reference, else
            ``generate``.
        :param synchronous: ask for the finished image in the answer, which then takes as long as the image does.
            An answer that comes too late for the gateway is an unknown outcome, so the default is the safer one.
        :returns: a job that runs (`JobStatus.job_id`), or the images at once.
        :raises BadRequestError: a field or value that the model does not take; nothing was sent.
        :raises OutcomeUnknownError: it was sent, and nobody knows what became of it.
        :raises GeminiImageError: the gateway refused it.
        """
        return self._run(lambda session: session.submit(_request(request, fields), synchronous=synchronous))

    async def asubmit(
        self, request: ImageRequest | None = None, *, synchronous: bool = False, **fields: Any
    ) -> JobStatus:
        """As `submit`."""
        return await self._arun(lambda session: session.submit(_request(request, fields), synchronous=synchronous))

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
        :returns: the job, with its images.
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

    def download(self, image: ResultImage) -> bytes:
        """The bytes of a result, exactly as they came, checked to be an image. The key is not sent there.

        :param image: one of `JobStatus.images`.
        :raises LinkExpiredError: the link no longer answers.
        :raises InvalidImageError: what it brought is no PNG, JPEG or WebP, or over 64 MiB.
        """
        return self._run(lambda session: session.download(image))

    async def adownload(self, image: ResultImage) -> bytes:
        """As `download`."""
        return await self._arun(lambda session: session.download(image))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the connection works, by the free check: for Airflow's "Test" button and ``connections test``.

        :returns: whether it does; and which gateway answered, how fast, and which models the key sees, or what went
            wrong and what to do. Never the key.
        """
        asked, notes = "", []
        try:
            with _heard_warnings() as notes:
                connection = self.connection()
            asked = f" Asked: {connection.adapter().label} at {connection.base_url}."
            said = run(lambda: _with_session(connection, lambda session: session.test()))
            return True, self._for_the_test(" ".join([said, *notes]))
        except GeminiImageError as error:
            if error.status_code is not None and isinstance(error, (BadRequestError, UpstreamFailedError)):
                error.hint = "Check the connection's gateway and base URL. If both are right, test again later."
            # There is no task here, and Airflow's button tests a copy of the connection under a name that it made up.
            said = str(error).replace(", then clear the task.", ".")
            return False, self._for_the_test(" ".join([said + asked, *notes]))

    def _for_the_test(self, said: str) -> str:
        return said.replace(f"Connection {self.geminiimg_conn_id!r}", "This connection")

    def _look_up(self) -> GatewayConnection:
        try:
            found = self.get_connection(self.geminiimg_conn_id)
        except AirflowNotFoundException:
            raise self._missing() from None
        return self._parsed(found, found.extra_dejson)

    async def _alook_up(self) -> GatewayConnection:
        try:
            found = await get_async_connection(self.geminiimg_conn_id, hook=self)
        except AirflowNotFoundException:
            raise self._missing() from None
        return self._parsed(found, await _async_extra(found))

    def _missing(self) -> BadRequestError:
        return BadRequestError(
            f"geminiimg_conn_id: there is no Airflow connection {self.geminiimg_conn_id!r}.",
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

    def _run(self, step: Callable[[Session], Awaitable[T]]) -> T:
        # Looked up here and not in the helper thread: Airflow's channel to its supervisor belongs to this one.
        connection = self.connection()
        try:
            return run(lambda: _with_session(connection, step))
        except GeminiImageError as error:
            raise without_traceback(error) from error.__cause__

    async def _arun(self, step: Callable[[Session], Awaitable[T]]) -> T:
        connection = await self.aconnection()
        try:
            return await _with_session(connection, step)
        except GeminiImageError as error:
            raise without_traceback(error) from error.__cause__


@contextlib.contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    """The texts of our warnings about a connection, for its test's message; they are warnings all the same."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield heard
        finally:
            heard += [str(each.message) for each in caught if each.category is UserWarning]
    for each in caught:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


async def _with_session(connection: GatewayConnection, step: Callable[[Session], Awaitable[T]]) -> T:
    # Imported late, because the triggerer needs this module for its connections alone, and imports in its event loop.
    from airflow_provider_geminiimg.hooks._session import Session

    async with Transport(connection) as transport:
        return await step(Session(connection, transport))


def _request(request: ImageRequest | None, fields: dict[str, Any]) -> ImageRequest:
    if request is not None:
        if fields:
            raise BadRequestError("submit takes an ImageRequest or its fields, not both.")
        return request
    images = fields.get("image") or fields.get("reference_images")
    return ImageRequest.build(**{"operation": "edit" if images else "generate", **fields})


async def _async_extra(connection: Any) -> Any:
    try:
        from airflow.providers.common.compat.connection import get_async_extra_dejson
    except ImportError:  # common.compat before 1.21, the last for Python 3.10
        return await asyncio.to_thread(lambda: connection.extra_dejson)
    return await get_async_extra_dejson(connection)
