"""What the life of an image needs from outside; and whether a connection still leads to the account that was paid.

What must stay true: a changed connection is never taken for a lost job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore
from airflow_provider_geminiimg.core.execution.task_log import Logs, SteadyLogs
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.budget import Budgets
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError, Billed

CLAIMS_AT_ONCE = 4
"""What a process may leave unknown that the gateway never saw, where its store is slow and it is killed."""

_OR_SETTLE = (
    "until what was paid for has landed, then clear the task: it picks the same job up, and buys nothing. If that "
    "can't be done, settle the record: `jobs resolve` with --lost, --unpaid or --resubmit."
)
_POINT_BACK = f"Point the connection back {_OR_SETTLE}"
PUT_BACK = f"Put the connection back under this id (also where it was renamed), with the key of then, {_OR_SETTLE}"


class ConnectionChangedError(BadRequestError):
    """A record's connection is gone, or does not lead to the account that was paid. The job itself may be fine.

    It is a `BadRequestError` to whoever reads the record later.
    """


@dataclass(frozen=True)
class PurchaseContext:
    """What the life of an image needs from outside.

    :param ledger: the records under the root.
    :param files: images, anywhere.
    :param connect: gives the transport of a connection id, opened once.
    :param log: where to say what happens; a line that can't be written is lost, and stops nothing.
    :param room: memory for the images that are being landed.
    :param claims: held from the claim of a record until its paid request is on its way.
    :param budgets: what may be spent. Whoever makes a context closes them.
    """

    ledger: Ledger
    files: Files
    connect: Callable[[str], Awaitable[Transport]]
    log: Logs
    room: ByteSemaphore = field(default_factory=ByteSemaphore)
    claims: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CLAIMS_AT_ONCE))
    budgets: Budgets = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log", SteadyLogs(self.log))
        object.__setattr__(self, "budgets", Budgets(self.ledger.store, self.log))

    async def transport(self, record: Record) -> Transport:
        """The way to the gateway that `record` was submitted through.

        :raises ConnectionChangedError: its connection is gone, can't be used, or leads to another gateway now.
        """
        try:
            transport = await self.connect(record.conn_id)
        except (BadRequestError, AuthenticationError) as error:
            raise ConnectionChangedError(
                f"{error.message} Record {record.key} was submitted through this connection.",
                billed=Billed.YES,
                hint=PUT_BACK,
            ) from None
        if transport.gateway.name != record.gateway:
            raise ConnectionChangedError(
                f"Connection {record.conn_id!r} now leads to {transport.gateway.name}, but record {record.key} was "
                f"submitted through {record.gateway}.",
                billed=Billed.YES,
                hint=_POINT_BACK,
            )
        return transport


def changed_since(record: Record, transport: Transport) -> list[str]:
    """What differs between the account that `record` was submitted to and the one that its connection leads to now.

    A new key of the same account differs, too: nothing tells the two apart but the gateway, which knows the job then.
    """
    pairs = (
        (f"the host was {record.api_host} and is {transport.api_host}", record.api_host, transport.api_host),
        ("the API key is another one", record.key_digest, transport.key_digest),
    )
    return [said for said, then, now in pairs if then is not None and then != now]


def connection_changed(record: Record, changed: Sequence[str], answer: str) -> ConnectionChangedError:
    """What to raise where a changed connection brings no word on the job.

    :param changed: see `changed_since`.
    :param answer: what came instead.
    """
    return ConnectionChangedError(
        f"{answer} Since record {record.key} was submitted, connection {record.conn_id!r} was changed: "
        f"{', '.join(changed)}. Another account does not know the job; a new key of the same account would.",
        billed=Billed.YES,
        hint=_POINT_BACK,
    )
