"""The request of one attempt, and its differences from a record."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from airflow_provider_geminiimg.core.catalog.lookup import row_name
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import Item, folder_of
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.inputs import public_uri
from airflow_provider_geminiimg.core.request import CheckedRequest, prompt_sha256
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError


class Marker(Protocol):
    """An entry in Airflow's task state store (Airflow 3.3) with the key and the claim of a record.

    `token` is the same for all markers of a task instance. Airflow deletes it with the DAG run.
    """

    def token(self) -> str: ...
    def get(self) -> Mapping[str, Any] | None: ...
    def set(self, value: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Order:
    """The request of one attempt, with everything that belongs to it.

    :param item: the image in the ledger.
    :param request: the checked request, or why it is wrong. The error is raised only if a purchase would follow; an
        image that is already paid for is collected, whatever the templates render to now.
    :param connection: the gateway connection.
    :param destination: of the image.
    :param policy: the options of the attempt.
    :param timeout: seconds that the job may take from the submit, over all attempts.
    :param poll_interval: seconds between polls; ``None``: the schedule of the model.
    :param record_prompts: write the prompt into the ledger and the sidecar file.
    :param max_cost: cap on the cost of this attempt, in the currency of the connection; ``None``: no cap.
    :param input_sha256: the planned hashes of the input images; ``None``: any.
    :param fingerprint: the planned fingerprint of the request; ``None``: computed when needed.
    :param avoid: see `reserve_name`.
    """

    item: Item
    request: CheckedRequest | GeminiImageError
    connection: GatewayConnection
    destination: Destination
    policy: Policy
    timeout: float = 1800.0
    poll_interval: float | None = None
    record_prompts: bool = False
    max_cost: Decimal | None = None
    input_sha256: tuple[str, ...] | None = None
    fingerprint: str | None = None
    avoid: Container[int] = ()

    def checked(self) -> CheckedRequest:
        """The request.

        :raises GeminiImageError: the request is wrong.
        """
        if isinstance(self.request, GeminiImageError):
            raise self.request
        return self.request


def differences(record: Record, order: Order, input_sha256: Sequence[str] | None = None) -> list[str]:
    """The names of the values that differ between the record and the order. The destination is compared only within one
    item, because it always differs between runs.

    :param input_sha256: hashes of the input images now; ``None``: only their addresses are compared.
    """
    request = order.request
    if isinstance(request, GeminiImageError):  # of other errors it is not known whether the request differs
        wrong = isinstance(request, BadRequestError)
        return [f"the request is wrong now ({request.message})"] if wrong else []
    pairs: list[tuple[str, Any, Any]] = [
        ("prompt", record.prompt_sha256, prompt_sha256(request.prompt)),
        ("gateway", record.gateway, request.gateway),
        ("geminiimg_conn_id", record.conn_id, order.connection.conn_id),
        ("model", row_name(record.model), row_name(request.model)),
        ("operation", record.operation, request.operation),
    ]
    if folder_of(record.key) == order.item.path:
        pairs.append(("destination", record.destination, order.destination))
    now = request.fields()
    names = sorted({*record.request_fields, *now})
    changed = [name for name, before, after in pairs if before != after]
    changed += [name for name in names if record.request_fields.get(name) != now.get(name)]
    return changed + _changed_inputs(record, [public_uri(uri) for uri in request.input_images], input_sha256)


def _changed_inputs(record: Record, addresses: Sequence[str], sha256: Sequence[str] | None) -> list[str]:
    """The input images that differ, numbered from 1 in the order in which they are sent."""
    if len(record.inputs) != len(addresses):
        return ["number of input images"]
    digests = sha256 or [known["sha256"] for known in record.inputs]
    return [
        f"input image {number}" + (" (other bytes under the same address)" if known["uri"] == address else "")
        for number, (known, address, digest) in enumerate(zip(record.inputs, addresses, digests, strict=True), 1)
        if (known["uri"], known["sha256"]) != (address, digest)
    ]
