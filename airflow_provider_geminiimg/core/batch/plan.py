"""The plan of a batch: the images that one generation of a task makes, as the store keeps it.

What must stay true: an image belongs to its fingerprint, so that no order of rows and no retry buys it twice; a plan
holds no prompt and no address of an image once all of it has landed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.records import Destination
from airflow_provider_geminiimg.core.purchase.saved_requests import Saved
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError

READS_AT_ONCE = 16
"""What a batch reads at once from its storage before it buys: input images, and records."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image of a plan, as the store keeps it.

    :param row: number of its row, from 0.
    :param operation: ``generate`` or ``edit``.
    :param values: the request's neutral fields, the prompt and the input images' addresses among them; empty when
        the plan has been carried out.
    :param labels: the row's other columns.
    :param fingerprint: of the request and its input images; the ledger knows the image by it.
    :param input_sha256: of the input images, when the plan was made.
    :param stem: name of its file, without an extension.
    :param line: where its row begins in the file of rows, as an editor shows it; ``None``: it is from no file.
    :param host: of the API, in `fingerprint`, where a record from before the connection got another one is meant.
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
        """What the ledger calls it, among the images of its task."""
        return self.fingerprint[:16]

    def request(self, connection: GatewayConnection) -> CheckedRequest | GeminiImageError:
        """What to send; or why nothing can be: it was made before, or the connection has changed since the plan."""
        if not self.values:
            return LedgerError(
                "This was made before, and what was asked for is not kept that long.",
                billed=Billed.YES,
                hint="Clear the task, which plans anew.",
            )
        try:
            built = ImageRequest.build(operation=self.operation, **self.values)
            request = built.check(connection.gateway, connection.model)
        except BadRequestError as error:
            return error
        if len(self.input_sha256) != len(request.input_images):
            return LedgerError(
                f"The plan contradicts itself: it has hashes of {len(self.input_sha256)} input images "
                f"for a request with {len(request.input_images)}.",
                hint="Nothing was sent. Clear the task, which plans anew.",
            )
        if self.fingerprint not in fingerprints_of(request, self.input_sha256, connection, self.host):
            return BadRequestError(
                f"Since the batch was planned, connection {connection.conn_id!r} changed.",
                hint="Change it back and let the task retry; or clear the task, which plans anew.",
            )
        return request


class Plan(Saved):
    """What one generation of a task makes. Its first attempt writes the plan, and retries keep to it.

    :param generation: ``ti.max_tries`` of the attempt that made it.
    :param directory: where the images land.
    :param items: in the order of the rows.
    """

    generation: int
    directory: str
    items: tuple[PlannedImage, ...]

    def carried_out(self) -> Plan:
        """What remains of the plan when all has landed: no prompt, and no image's address."""
        return self.model_copy(update={"items": tuple(replace(each, values={}) for each in self.items)})

    def destination(self, item: PlannedImage) -> Destination:
        """Where one of its images lands."""
        return Destination(self.directory.rstrip("/"), item.stem)

    def keys(self) -> set[str]:
        """What the ledger calls its images, each once."""
        return {item.key for item in self.items}


def fingerprints_of(
    request: CheckedRequest, digests: Sequence[str], connection: GatewayConnection, host: str | None = None
) -> tuple[str, ...]:
    """The fingerprints by which an image may be known, today's first: see `CheckedRequest.fingerprints`.

    :param host: of the API; ``None``: the connection's.
    """
    host = host_of(connection) if host is None else host
    return request.fingerprints(input_sha256=digests, base_url_host=host, conn_id=connection.conn_id)


def host_of(connection: GatewayConnection) -> str:
    """The API's host."""
    return urlsplit(connection.base_url).hostname or ""


def places_of(items: Sequence[PlannedImage]) -> str:
    """Where rows stand, for a message."""
    by_line = all(item.line is not None for item in items)
    numbers = [str(item.line if by_line else item.row) for item in items]
    return f"{'lines' if by_line else 'rows'} {', '.join(numbers[:-1])} and {numbers[-1]}"
