"""What one attempt asks for, and how it differs from what is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from airflow_provider_geminiimg.core.catalog.lookup import row_name
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import Item, folder_of
from airflow_provider_geminiimg.core.ledger.records import Destination, Record
from airflow_provider_geminiimg.core.purchase.decision import Policy
from airflow_provider_geminiimg.core.purchase.inputs import public_uri
from airflow_provider_geminiimg.core.request import CheckedRequest, prompt_sha256
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError


class Marker(Protocol):
    """A second memory of the record's key, in Airflow's own database (task state store, Airflow 3.3).

    `token` is one word for all markers of a task instance; it stays until Airflow forgets them, with the DAG run.
    """

    def token(self) -> str: ...
    def get(self) -> Mapping[str, Any] | None: ...
    def set(self, value: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Order:
    """What one attempt asks for.

    :param item: whose image it is.
    :param request: what to make, checked; or why it can't be, which matters only where it would be bought: what was
        paid for before is collected whatever the templates render to now.
    :param connection: through which gateway, with whose money.
    :param destination: where it shall land.
    :param policy: what this attempt may do.
    :param timeout: seconds from the submit that the job may take, over all attempts.
    :param poll_interval: seconds between polls; ``None``: the catalogue's schedule.
    :param record_prompts: whether the prompt itself goes into ledger and sidecar.
    :param max_cost: what all that the attempt buys may cost, in the connection's currency; ``None``: no cap.
    :param input_sha256: what the input images must be, where that was settled before; ``None``: what they are now.
    :param fingerprint: what `request` is known by, where that was settled before.
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

    def checked(self) -> CheckedRequest:
        """The request.

        :raises GeminiImageError: it is wrong.
        """
        if isinstance(self.request, GeminiImageError):
            raise self.request
        return self.request


def differences(record: Record, order: Order, input_sha256: Sequence[str] | None = None) -> list[str]:
    """The names of what is asked for now and differs from what is recorded; the destination only within one item, as it
    always differs between runs.

    :param input_sha256: of the input images now; ``None``: only their addresses are compared.
    """
    request = order.request
    if isinstance(request, GeminiImageError):  # a wrong one differs; one that can't be read is not known to
        wrong = isinstance(request, BadRequestError)
        return [f"what is asked for is wrong now ({request.message})"] if wrong else []
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
    """Which input images are others, counted from 1 in the order in which the gateway gets them."""
    if len(record.inputs) != len(addresses):
        return ["number of input images"]
    digests = sha256 or [known["sha256"] for known in record.inputs]
    return [
        f"input image {number}" + (" (other bytes under the same address)" if known["uri"] == address else "")
        for number, (known, address, digest) in enumerate(zip(record.inputs, addresses, digests, strict=True), 1)
        if (known["uri"], known["sha256"]) != (address, digest)
    ]
