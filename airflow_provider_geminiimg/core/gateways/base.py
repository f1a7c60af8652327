"""The interface of gateway adapters: plain values in and out, no I/O and no API key.

An adapter turns a checked request into `Call`s, and a response into values or an error of
`airflow_provider_geminiimg.exceptions`. What must stay true: for any status, body and JSON, `Call.parse` returns a
value or raises one of those errors, never another exception; a call that may cost money has `billable` set.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from airflow_provider_geminiimg.core.request import CheckedRequest
from airflow_provider_geminiimg.exceptions import GeminiImageError

T = TypeVar("T")

_PIECE = 256 * 1024  # bytes of a request body per write


@dataclass(frozen=True)
class Reply:
    """An HTTP response with its complete, decompressed body.

    :param status: the HTTP status.
    :param headers: the headers; names in any case.
    :param content: the body.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


class Body(httpx.AsyncByteStream, httpx.SyncByteStream):
    """The body of a request that is sent once. It is released while it is sent, to free its memory early.

    :param content: the complete body.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        content, self._content = self._content, b""
        for at in range(0, len(content), _PIECE):
            yield content[at : at + _PIECE]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP call, ready to be sent.

    :param request: the request without the API key, which the transport adds. A free GET is given as its URL alone,
        because building the request takes longer than parsing the response.
    :param parse: turns the reply into a value, or raises a `GeminiImageError`.
    :param billable: whether sending it may cost money; if so, it is sent once, over a new connection.
    :param read_timeout: seconds to wait for the response.
    :param prompt: the prompt in the request, so that the transport can remove it from the gateway's texts; ``None`` if
        the call contains no prompt.
    :param keyless: whether the call is public and is sent without the API key.
    """

    request: httpx.Request | str
    parse: Callable[[Reply], T]
    billable: bool = False
    read_timeout: float = 30.0
    prompt: str | None = field(default=None, repr=False)
    keyless: bool = False


@dataclass(frozen=True)
class ResultImage:
    """One result image: a link that expires, or the bytes.

    :param url: download URL; often signed, so it is never logged.
    :param data: the bytes, if the gateway sent them inline.
    """

    url: str | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)


class JobState(str, enum.Enum):
    """State of a job at the gateway. `VANISHED`: the gateway does not know the job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    VANISHED = "vanished"


@dataclass(frozen=True)
class JobStatus:
    """The result of a poll or a submit.

    :param state: see `JobState`. `DONE` always comes with at least one image.
    :param images: the results of a finished job.
    :param error: the error of a failed job; set exactly if `state` is `FAILED`.
    :param job_id: the gateway's job id: the polled one, or the one in the response to a submit.
    :param cost: the price that the gateway reports, in its own currency; ``None`` if it reports no plausible price.
    :param progress: per cent, 0 to 100; ``None`` if the gateway does not report it.
    :param expires_at: Unix time at which the links expire; ``None`` if the gateway does not report it.
    """

    state: JobState
    images: tuple[ResultImage, ...] = ()
    error: GeminiImageError | None = None
    job_id: str | None = None
    cost: float | None = None
    progress: float | None = None
    expires_at: float | None = None


@dataclass(frozen=True)
class CheckResult:
    """Result of the free key check.

    :param models: the model ids that the key can use; empty if the gateway does not list them.
    """

    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputImage:
    """An input image, read and checked.

    :param data: the bytes.
    :param media_type: ``image/png``, ``image/jpeg`` or ``image/webp``, detected from the bytes.
    :param sha256: hex digest of the bytes.
    :param url: the public https URL of the image, if it was read from one.
    """

    data: bytes = field(repr=False)
    media_type: str
    sha256: str
    url: str | None = field(default=None, repr=False)


class Gateway(abc.ABC):
    """Base class of the adapters.

    `name` is the gateway's name in connections, `label` its name in messages.

    :param base_url: base URL of the API; default: `default_base_url`.
    """

    name: str
    label: str
    default_base_url: str

    def __init__(self, base_url: str | None = None) -> None:
        # Encoded once here, so that paths can be appended as text.
        self.base_url = str(httpx.URL(base_url or self.default_base_url)).rstrip("/")

    @abc.abstractmethod
    def auth_headers(self, api_key: str) -> Mapping[str, str]:
        """The headers with the API key. Only the transport calls this; the adapter does not store the key."""

    @abc.abstractmethod
    def reference(self, image: InputImage) -> Call[str] | str:
        """The handle that a submit uses for an input image, or a free call (an upload) that returns it."""

    @abc.abstractmethod
    def submit(self, request: CheckedRequest, handles: Sequence[str], *, synchronous: bool = False) -> Call[JobStatus]:
        """The call that requests an image. It costs money.

        :param request: the request.
        :param handles: one handle for each input image, in the order of `CheckedRequest.input_images`.
        :param synchronous: wait for the finished image in the response, instead of a job id.
        """

    @abc.abstractmethod
    def status(self, job_id: str, *, model: str, inputs: Collection[str] = ()) -> Call[JobStatus]:
        """The call that polls a job. Free.

        :param job_id: the gateway's job id.
        :param model: the model id of the submit.
        :param inputs: URLs of the job's input images; a response may repeat them, and they are not results.
        :raises BadRequestError: `job_id` cannot be a job id.
        """

    @abc.abstractmethod
    def check(self) -> Call[CheckResult]:
        """The call that checks the API key. Free, without side effects."""

    @abc.abstractmethod
    def models(self, operation: str = "generate") -> Call[CheckResult]:
        """The call that lists the models. Free, without side effects.

        :param operation: ``generate`` or ``edit``; ignored by a gateway with one list for both.
        """


def paid_request(url: str, body: Mapping[str, Any]) -> httpx.Request:
    """A POST request with a JSON body that can be sent once."""
    encoded = httpx.Request("POST", url, json=body)
    return httpx.Request("POST", url, headers=encoded.headers, stream=Body(encoded.content))


def as_mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}
