"""What every gateway adapter looks like: values in, values out, no I/O and no key.

An adapter turns a checked request into `Call`s and a response into plain objects or an outcome of
`airflow_provider_geminiimg.exceptions`. What must stay true: `Call.parse` answers any status, any body and any JSON
with a value or with one of those outcomes, never with another exception; a call that may cost money says so.
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

_PIECE = 256 * 1024  # bytes of a body that are written at once


@dataclass(frozen=True)
class Reply:
    """What came back, its body whole and unpacked.

    :param status: the HTTP status.
    :param headers: by name, in any case.
    :param content: the body.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


class Body(httpx.AsyncByteStream, httpx.SyncByteStream):
    """The body of a request that is sent once: it is forgotten as it goes, and not held until the answer has come.

    :param content: the whole of it.
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
    """One HTTP exchange, ready to be sent.

    :param request: the request, whole but for the key, which the transport adds. A question that is free and has no
        body is its URL alone: to make a request of it takes longer than to parse its answer.
    :param parse: turns the reply into a value, or raises an outcome.
    :param billable: whether sending it may cost money; then it is sent once, over a fresh connection.
    :param read_timeout: seconds to wait for the answer.
    :param prompt: the prompt in it, so that the transport can take its echo out of what the gateway says;
        ``None`` where the call holds none.
    :param keyless: it asks for something public, and is sent without the key.
    """

    request: httpx.Request | str
    parse: Callable[[Reply], T]
    billable: bool = False
    read_timeout: float = 30.0
    prompt: str | None = field(default=None, repr=False)
    keyless: bool = False


@dataclass(frozen=True)
class ResultImage:
    """One result: a link that expires, or the bytes themselves.

    :param url: where to download it; often signed, so it never goes into a log.
    :param data: the bytes, where the gateway sent them inline.
    """

    url: str | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)


class JobState(str, enum.Enum):
    """What a gateway says of a job; `VANISHED` is "no such job"."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    VANISHED = "vanished"


@dataclass(frozen=True)
class JobStatus:
    """What one poll, or the answer to a submit, says.

    :param state: see `JobState`. `DONE` always comes with at least one image.
    :param images: the results of a job that is done.
    :param error: why a job failed; set exactly when `state` is `FAILED`.
    :param job_id: the gateway's id of the job: the one that was polled, or the one that a submit's answer carries.
    :param cost: what the gateway says that it took, in the gateway's own currency, where it says what can be a price.
    :param progress: 0 to 100, where the gateway says so.
    :param expires_at: Unix seconds at which the links stop working, where the gateway says so.
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
    """What the free key check found.

    :param models: the model ids that the key can see, where the gateway tells.
    """

    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputImage:
    """An input image, read and checked.

    :param data: its bytes.
    :param media_type: ``image/png``, ``image/jpeg`` or ``image/webp``, from the bytes.
    :param sha256: hex digest of the bytes.
    :param url: the public https address it was read from, where it came from one.
    """

    data: bytes = field(repr=False)
    media_type: str
    sha256: str
    url: str | None = field(default=None, repr=False)


class Gateway(abc.ABC):
    """One gateway's contract.

    Each adapter names itself by `name` (what a connection writes) and `label` (what messages say).

    :param base_url: the API's base, without a trailing slash; default: `default_base_url`.
    """

    name: str
    label: str
    default_base_url: str

    def __init__(self, base_url: str | None = None) -> None:
        # As it goes over the wire, so that what is appended to it does too.
        self.base_url = str(httpx.URL(base_url or self.default_base_url)).rstrip("/")

    @abc.abstractmethod
    def auth_headers(self, api_key: str) -> Mapping[str, str]:
        """The headers that carry the key. Called by the transport alone, never kept here."""

    @abc.abstractmethod
    def reference(self, image: InputImage) -> Call[str] | str:
        """The handle by which a submit names an input image: at once, or from a free call (an upload)."""

    @abc.abstractmethod
    def submit(self, request: CheckedRequest, handles: Sequence[str], *, synchronous: bool = False) -> Call[JobStatus]:
        """The call that costs money.

        :param request: what to make.
        :param handles: one handle an input image, in the order of `CheckedRequest.input_images`.
        :param synchronous: ask the gateway to answer with the finished image instead of a job id.
        """

    @abc.abstractmethod
    def status(self, job_id: str, *, model: str, inputs: Collection[str] = ()) -> Call[JobStatus]:
        """Ask what became of a job. Free.

        :param inputs: addresses of the job's input images, which are no results where an answer repeats them.
        """

    @abc.abstractmethod
    def check(self) -> Call[CheckResult]:
        """Ask whether the key works. Free and without effect."""

    @abc.abstractmethod
    def models(self, operation: str = "generate") -> Call[CheckResult]:
        """Ask which models there are. Free and without effect.

        :param operation: ``generate`` or ``edit``, where the gateway has a list for each.
        """


def paid_request(url: str, body: Mapping[str, Any]) -> httpx.Request:
    """A request with JSON in it that is sent once."""
    whole = httpx.Request("POST", url, json=body)
    return httpx.Request("POST", url, headers=whole.headers, stream=Body(whole.content))


def as_mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one: answers are taken as they come."""
    return value if isinstance(value, Mapping) else {}
