"""What a purchase needs from outside, and the check that a connection still leads to the account that was paid.

Invariant: a changed connection is never treated as a lost job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from airflow_provider_geminiimg.core.execution.byte_semaphore import ByteSemaphore
from airflow_provider_geminiimg.core.execution.task_log import Logs, SteadyLogs
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.budget import Budgets
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.root_identity import RootCheck
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError, Billed

CLAIMS_AT_ONCE = 4
"""Records that a process claims concurrently. If it is killed, at most so many unknown outcomes were never sent."""

_OR_RESOLVE = (
    "until the paid image has landed, then clear the task: it collects the same job and buys nothing. If that is not "
    "possible, resolve the record: `jobs resolve` with --lost, --unpaid or --resubmit."
)
_POINT_BACK = f"Restore the connection's old host, gateway and API key {_OR_RESOLVE}"
PUT_BACK = f"Restore the connection under this id (also if it was renamed), with its old API key, {_OR_RESOLVE}"


class ConnectionChangedError(BadRequestError):
    """The connection of a record is missing, or leads to another account. The job itself is not affected.

    It is read back from a record as `BadRequestError`.
    """


@dataclass(frozen=True)
class PurchaseContext:
    """What a purchase needs from outside. Shared by all purchases of a task.

    :param ledger: the records under the root.
    :param files: reads and writes images at any supported URI.
    :param connect: opens the transport of a connection id, once per id.
    :param log: the log of the task; wrapped, so that an error while logging stops nothing.
    :param memory: memory limit for images that are being landed or sent.
    :param claims: limits concurrent claims; held from the claim of a record until its paid request is sent.
    :param root_check: checks that the root is the one that earlier attempts used; ``None``: it is not checked.
    :param budgets: limits the cost. The creator of the context closes them.
    """

    ledger: Ledger
    files: Files
    connect: Callable[[str], Awaitable[Transport]]
    log: Logs
    memory: ByteSemaphore = field(default_factory=ByteSemaphore)
    claims: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CLAIMS_AT_ONCE))
    root_check: RootCheck | None = None
    budgets: Budgets = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log", SteadyLogs(self.log))
        object.__setattr__(self, "budgets", Budgets(self.ledger.store, self.log))

    async def check_root(self, n: int) -> None:
        """Return if the root is the one that earlier attempts used.

        :param n: number of the submission; after 1 the root has a record of the image, so nothing is checked.
        :raises GeminiImageError: see `RootCheck.passed`.
        """
        if n == 1 and self.root_check is not None:
            await self.root_check.passed()

    async def transport(self, record: Record) -> Transport:
        """The transport to the gateway that `record` was submitted to.

        :raises ConnectionChangedError: the connection is missing, can't be used, or now leads to another gateway.
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
    """The differences between the account of `record` and the account of its connection now.

    A new key of the same account differs too. Only the gateway can tell the two cases apart: it knows the job or not.
    """
    pairs = (
        (f"the host was {record.api_host} and is {transport.api_host}", record.api_host, transport.api_host),
        ("the API key has changed", record.key_digest, transport.key_digest),
    )
    return [said for said, then, now in pairs if then is not None and then != now]


def connection_changed(record: Record, changed: Sequence[str], answer: str) -> ConnectionChangedError:
    """The error if the gateway of a changed connection gives no status of the job.

    :param changed: see `changed_since`.
    :param answer: the answer of the gateway, as a sentence.
    """
    return ConnectionChangedError(
        f"{answer} Connection {record.conn_id!r} has changed since record {record.key} was submitted: "
        f"{', '.join(changed)}. Another account does not know the job; a new key of the same account does.",
        billed=Billed.YES,
        hint=_POINT_BACK,
    )
