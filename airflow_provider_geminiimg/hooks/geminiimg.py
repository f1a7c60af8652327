"""The hook: every call of a gateway through an Airflow connection, synchronous and asynchronous.

What must stay true: the hook keeps no key and no client between two calls; a synchronous method runs the code of its
asynchronous counterpart; the hook writes no ledger records.
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
_CHECK_CONNECTION = "Check the connection's gateway and base URL. If both are right, test again later."


class GeminiImageHook(BaseHook):
    """Calls 1min.ai or APIMaster.ai through an Airflow connection of type ``geminiimg``.

    For use inside a ``@task`` that needs single calls instead of an operator::

        hook = GeminiImageHook()
        job = hook.submit(operation="generate", prompt="a lighthouse at dusk", aspect_ratio="16:9")
        done = job if job.images else hook.wait(job.job_id)
        data = hook.download(done.images[0])

    The hook writes no ledger and does not protect against paying twice: a task that is retried submits and pays again.
    The operators do protect. `submit` is the only method that costs money.

    Each method has an asynchronous counterpart: ``acheck``, ``amodels``, ``aupload``, ``asubmit``, ``astatus``,
    ``await_job``, ``adownload``, ``aconnection``.

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
        """The Airflow connection, checked.

        :raises BadRequestError: the connection does not exist, or one of its fields is wrong.
        :raises AuthenticationError: the connection has no API key.
        """
        try:
            return self._look_up()
        except GeminiImageError as error:
            raise without_traceback(error) from error.__cause__

    async def aconnection(self) -> GatewayConnection:
        """Same as `connection`, through Airflow's asynchronous API."""
        try:
            return await self._alook_up()
        except GeminiImageError as error:
            raise without_traceback(error) from error.__cause__

    def check(self) -> CheckResult:
        """Check whether the gateway accepts the API key. Free, without side effects.

        :returns: the model ids that the key can use, if the gateway lists them.
        :raises AuthenticationError: the gateway rejects the key.
        :raises GeminiImageError: the gateway could not be reached or gave no usable response.
        """
        return self._run(lambda session: session.check())

    async def acheck(self) -> CheckResult:
        """Same as `check`."""
        return await self._arun(lambda session: session.check())

    def models(self) -> tuple[str, ...]:
        """Check the API key, and list the models. Free, without side effects.

        :returns: the model ids that the key can use; if the gateway does not list them, its public list of image
            models; empty if there is none.
        :raises AuthenticationError: the gateway rejects the key.
        :raises GeminiImageError: the gateway could not be reached or gave no usable response.
        """
        return self._run(lambda session: session.models())

    async def amodels(self) -> tuple[str, ...]:
        """Same as `models`."""
        return await self._arun(lambda session: session.models())

    def upload(self, image: str | bytes) -> str:
        """Upload an input image to the gateway. Free.

        :param image: the bytes of the image, or the URI of a file (no http address; inside ``[geminiimg]
            allowed_roots`` if that is set).
        :returns: the gateway's handle of the image: a storage path, a URL or a data URI.
        :raises BadRequestError: the file cannot be read, is not an image, or is too large.
        """
        return self._run(lambda session: session.upload(image))

    async def aupload(self, image: str | bytes) -> str:
        """Same as `upload`."""
        return await self._arun(lambda session: session.upload(image))

    def submit(self, request: ImageRequest | None = None, *, synchronous: bool = False, **fields: Any) -> JobStatus:
        """Request an image. **This costs money.** The request is sent once.

        :param request: the request; or give its fields as keyword arguments. Input images are read and uploaded first.
        :param fields: the fields of `ImageRequest`.
        :param synchronous: wait for the finished image in the response. If the response times out, the outcome is
            unknown, so the default (``False``: the gateway returns a job id) is safer.
        :returns: a running job (`JobStatus.job_id`), or the finished images.
        :raises BadRequestError: the model does not accept a field or value; nothing was sent.
        :raises OutcomeUnknownError: the request was sent, and it is not known whether it was charged.
        :raises GeminiImageError: the gateway refused the request.
        """
        return self._run(lambda session: session.submit(_request(request, fields), synchronous=synchronous))

    async def asubmit(
        self, request: ImageRequest | None = None, *, synchronous: bool = False, **fields: Any
    ) -> JobStatus:
        """Same as `submit`."""
        return await self._arun(lambda session: session.submit(_request(request, fields), synchronous=synchronous))

    def status(self, job_id: str, model: str | None = None) -> JobStatus:
        """Poll a job once. Free.

        :param job_id: the gateway's job id.
        :param model: the model of the submit; default: the connection's model, else the catalogue's default.
        :raises GeminiImageError: the poll failed, which does not mean that the job failed.
        """
        return self._run(lambda session: session.status(job_id, model))

    async def astatus(self, job_id: str, model: str | None = None) -> JobStatus:
        """Same as `status`."""
        return await self._arun(lambda session: session.status(job_id, model))

    def wait(
        self,
        job_id: str,
        model: str | None = None,
        timeout: float = WAIT_SECONDS,
        poll_interval: float | None = None,
    ) -> JobStatus:
        """Poll until a job is done. Free.

        :param job_id: the gateway's job id.
        :param model: see `status`.
        :param timeout: maximum wait in seconds. Default: 1800.
        :param poll_interval: seconds before the first poll and between polls; default: the first poll at once, then
            the catalogue's interval of 3 to 5 s.
        :returns: the finished job with its images.
        :raises TimedOutError: the job was still running after `timeout`.
        :raises LostContactError: several polls in a row failed.
        :raises OutcomeUnknownError: the gateway does not know the job.
        :raises GeminiImageError: the job failed.
        """
        return self._run(lambda session: session.wait(job_id, model, timeout, poll_interval))

    async def await_job(
        self,
        job_id: str,
        model: str | None = None,
        timeout: float = WAIT_SECONDS,
        poll_interval: float | None = None,
    ) -> JobStatus:
        """Same as `wait`."""
        return await self._arun(lambda session: session.wait(job_id, model, timeout, poll_interval))

    def download(self, image: ResultImage) -> bytes:
        """Download a result. Its bytes are checked and returned unchanged. The API key is not sent.

        :param image: one of `JobStatus.images`.
        :returns: the bytes of a PNG, JPEG or WebP file.
        :raises LinkExpiredError: the link has expired.
        :raises InvalidImageError: the download is not a PNG, JPEG or WebP file, or is over 64 MiB.
        """
        return self._run(lambda session: session.download(image))

    async def adownload(self, image: ResultImage) -> bytes:
        """Same as `download`."""
        return await self._arun(lambda session: session.download(image))

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection with the free check; called by Airflow's "Test" button and ``connections test``.

        :returns: whether the connection works, and a message: the gateway, its response time and the available models,
            or the error and its remedy. The message never contains the API key.
        """
        target, notes = "", []
        try:
            with recorded_warnings() as notes:
                connection = self.connection()
            target = f" Asked: {connection.adapter().label} at {connection.base_url}."
            message = run(lambda: _with_session(connection, lambda session: session.test()))
            return True, self._without_conn_id(" ".join([message, *notes]))
        except GeminiImageError as error:
            if error.status_code is not None and isinstance(error, (BadRequestError, UpstreamFailedError)):
                error = error.evolve(hint=_CHECK_CONNECTION)
            message = str(error).replace(", then clear the task.", ".")  # there is no task
            return False, self._without_conn_id(" ".join([message + target, *notes]))

    def _without_conn_id(self, message: str) -> str:
        """`message` without the connection id: Airflow's "Test" button tests a copy under a generated id."""
        return message.replace(f"Connection {self.geminiimg_conn_id!r}", "This connection")

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
        # Airflow's channel to its supervisor belongs to this thread, so the helper thread must not use it.
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
def recorded_warnings() -> Iterator[list[str]]:
    """Context manager: collect the texts of this package's warnings, and warn as usual afterwards."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield messages
        finally:
            messages += [str(each.message) for each in caught if each.category is UserWarning]
    for each in caught:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


async def _with_session(connection: GatewayConnection, step: Callable[[Session], Awaitable[T]]) -> T:
    # Imported late: the triggerer imports this module in its event loop and only needs connections.
    from airflow_provider_geminiimg.hooks._session import Session

    async with Transport(connection) as transport:
        return await step(Session(connection, transport))


def _request(request: ImageRequest | None, fields: dict[str, Any]) -> ImageRequest:
    if request is not None:
        if fields:
            raise BadRequestError("submit takes an ImageRequest or its fields, not both.")
        return request
    return ImageRequest.build(**fields)


async def _async_extra(connection: Any) -> Any:
    try:
        from airflow.providers.common.compat.connection import get_async_extra_dejson
    except ImportError:  # common.compat before 1.21, the last for Python 3.10
        return await asyncio.to_thread(lambda: connection.extra_dejson)
    return await get_async_extra_dejson(connection)
