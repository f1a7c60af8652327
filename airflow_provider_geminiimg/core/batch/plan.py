"""The plan of a batch: the images that one generation of a task makes, as it is stored.

Invariants: an image is identified by its fingerprint, so neither another order of rows nor a retry buys it twice. After
all images have landed, a stored plan holds no prompt and no address of an input image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.batch.row_file_names import numbers_after
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.purchase.saved_requests import Saved
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError

READS_AT_ONCE = 16
"""Input images or records that a batch reads concurrently before it starts."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image of a plan, as it is stored.

    :param row: index of its row, from 0.
    :param operation: ``generate`` or ``edit``.
    :param values: the request fields, with the prompt and the addresses of the input images; empty after all images of
        the plan have landed.
    :param labels: the other columns of the row.
    :param fingerprint: of the request and its input images; it names the image in the ledger.
    :param input_sha256: of the input images when the plan was made.
    :param stem: file name without extension.
    :param line: first line of its row in the file of rows, from 1; ``None`` if the rows are not from a file.
    :param host: an earlier API host that `fingerprint` contains; ``None``: the host of the connection.
    """

    row: int
    operation: Literal["generate", "edit"]
    values: dict[str, Any] = field(repr=False)
    labels: dict[str, str] = field(repr=False)
    fingerprint: str
    input_sha256: tuple[str, ...]
    stem: str
    line: int | None = None
    host: str | None = None

    @property
    def key(self) -> str:
        """Its item name in the ledger."""
        return key_of(self.fingerprint)

    def checked(self, connection: GatewayConnection) -> CheckedRequest:
        """The request, whatever its fingerprint.

        :raises BadRequestError: the gateway does not accept it.
        """
        built = ImageRequest.build(operation=self.operation, **self.values)
        return built.check(connection.gateway, connection.model)

    def request(self, connection: GatewayConnection) -> CheckedRequest | GeminiImageError:
        """The request, or the error: the plan is finished, or the connection has changed since the plan was made."""
        if not self.values:
            return LedgerError(
                "All images of this plan have landed, and the requests of a plan are deleted after landing.",
                billed=Billed.YES,
                hint="Clear the task: it makes a new plan.",
            )
        try:
            request = self.checked(connection)
        except BadRequestError as error:
            return error
        if len(self.input_sha256) != len(request.input_images):
            return LedgerError(
                f"The plan contradicts itself: it has hashes of {len(self.input_sha256)} input images "
                f"for a request with {len(request.input_images)}.",
                hint="Nothing was sent. Clear the task: it makes a new plan.",
            )
        if self.fingerprint not in fingerprints_of(request, self.input_sha256, connection, self.host):
            return BadRequestError(
                f"Connection {connection.conn_id!r} has changed since the batch was planned.",
                hint="Change it back and let the task retry; or clear the task, which makes a new plan.",
            )
        return request


class Plan(Saved):
    """The images of one generation of a task. The first attempt stores the plan; retries use it.

    :param generation: ``ti.max_tries`` of the attempt that made the plan.
    :param directory: directory URI for the images.
    :param items: the images, in the order of the rows.
    """

    origin: ClassVar[str] = "the plan of the first attempt"

    generation: int
    directory: str
    items: tuple[PlannedImage, ...]

    def request(self, item: PlannedImage, connection: GatewayConnection) -> CheckedRequest | GeminiImageError:
        """The request of an image; see `PlannedImage.request`."""
        return item.request(connection)

    @property
    def own(self) -> tuple[PlannedImage, ...]:
        """The rows whose images this task makes."""
        return self.items

    def carried_out(self) -> Plan:
        """The plan without prompts and without addresses of input images, to store after all images have landed."""
        return self.model_copy(update={"items": tuple(replace(each, values={}) for each in self.items)})

    def destination(self, item: PlannedImage) -> Destination:
        """The destination of an image."""
        return Destination(self.directory.rstrip("/"), item.stem)

    def numbers(self) -> Mapping[str, tuple[int, ...]]:
        """See `numbers_after`, of the names of all images."""
        return numbers_after({item.stem.casefold() for item in self.items})

    def keys(self) -> set[str]:
        """The item names of the images in the ledger."""
        return {item.key for item in self.items}


def fingerprints_of(
    request: CheckedRequest, digests: Sequence[str], connection: GatewayConnection, host: str | None = None
) -> tuple[str, ...]:
    """The possible fingerprints of an image, today's first: see `CheckedRequest.fingerprints`.

    :param host: API host; ``None``: the host of the connection.
    """
    host = host_of(connection) if host is None else host
    return request.fingerprints(input_sha256=digests, base_url_host=host, conn_id=connection.conn_id)


def key_of(fingerprint: str) -> str:
    """The item name of an image in the ledger."""
    return fingerprint[:16]


def host_of(connection: GatewayConnection) -> str:
    """The API host of a connection."""
    return urlsplit(connection.base_url).hostname or ""


class Place(NamedTuple):
    """The place of a row; see `PlannedImage`."""

    row: int
    line: int | None


def places_of(items: Sequence[Place | PlannedImage]) -> str:
    """The places of rows, for a message."""
    by_line = all(item.line is not None for item in items)
    numbers = [str(item.line if by_line else item.row) for item in items]
    return f"{'lines' if by_line else 'rows'} {', '.join(numbers[:-1])} and {numbers[-1]}"
