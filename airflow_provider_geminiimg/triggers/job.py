"""The trigger that waits for a job in the triggerer, where one event loop serves all waiting tasks.

What must stay true:

- nothing here costs money, or writes to storage except the leases of the connection's limits: the event has the job's
  status, and the worker does the rest;
- the arguments and the event, which Airflow stores and logs unencrypted, contain ids, numbers and one status word, no
  link and no message;
- all triggers of one connection in one event loop share one connection look-up, one client and one rate limit;
- a failed poll or look-up does not end the wait by itself: `PollSchedule` decides;
- no response blocks the event loop: the worker reads a response that is larger than `MAX_POLL`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anyio
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.execution.boundary import closed, error_and_place
from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.gateways.polling import PollSchedule, follow
from airflow_provider_geminiimg.core.http.exchange import TOO_LARGE
from airflow_provider_geminiimg.core.http.shared_limits import Account
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    GeminiImageError,
    LostContactError,
    NotSentError,
)
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook

LINGER = 30.0  # seconds until an unused client is closed, because mapped tasks start one after another
LOOK_UP_AGAIN = 5.0  # seconds until a failed look-up, or one whose key was refused, is repeated
LAST_POLL = 30.0  # seconds after the deadline that the last poll may take
MIN_SECONDS = 6.0  # a trigger does not fire earlier after its start; see `GeminiImageJobTrigger.run`
MAX_POLL = 1_000_000  # bytes; a typical response has a few thousand, unless it contains an image
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# Errors that may disappear when the connection is corrected, so it is looked up again.
_CONNECTION_ERRORS = (AuthenticationError, BadRequestError, NotSentError)

log = logging.getLogger(__name__)


class Poller:
    """The client that all triggers of one connection share in one event loop.

    :param conn_id: id of the Airflow connection.
    """

    def __init__(self, conn_id: str) -> None:
        self._hook = GeminiImageHook(conn_id)
        self._lock = asyncio.Lock()
        self._connection: GatewayConnection | None = None
        self._transports: list[Transport] = []
        self._looked_up_at = float("-inf")
        self._stale = True
        self._failure: GeminiImageError | None = None
        self._users = 0
        self._joined = 0
        self._left = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(), name=f"geminiimg-poller-{conn_id}")

    @classmethod
    def join(cls, conn_id: str) -> Poller:
        """The poller of a connection in the running event loop. Each `join` needs a `leave`."""
        pollers = _POLLERS.setdefault(asyncio.get_running_loop(), {})
        poller = pollers.get(conn_id)
        if poller is None:
            poller = pollers[conn_id] = cls(conn_id)
        poller._users += 1
        poller._joined += 1
        return poller

    def leave(self) -> None:
        """Release the poller. Its client is closed `LINGER` seconds after the last `leave`, or with the event loop."""
        self._users -= 1
        if not self._users:
            self._left.set()

    async def spread(self) -> tuple[float, float]:
        """Shortest and longest pause between polls, in seconds. While the connection cannot be looked up: the longest
        of any gateway."""
        with contextlib.suppress(GeminiImageError):
            await self._transport()
        if self._connection is None:
            return max(limits.poll_interval for limits in LIMITS.values())
        return LIMITS[self._connection.gateway].poll_interval

    async def poll(self, job_id: str, model: str) -> JobStatus:
        """Poll once.

        :raises GeminiImageError: the poll or the look-up of the connection failed.
        """
        try:
            transport = await self._transport()
            return await transport.send(transport.gateway.status(job_id, model=model))
        except _CONNECTION_ERRORS:
            self._stale = True
            raise

    async def _transport(self) -> Transport:
        async with self._lock:
            if self._stale and time.monotonic() - self._looked_up_at >= LOOK_UP_AGAIN:
                await self._look_up()
            if self._failure is not None and not self._transports:
                raise self._failure.scrubbed(prompt="")  # a copy, because each raise extends the traceback
            return self._transports[-1]

    async def _look_up(self) -> None:
        self._looked_up_at = time.monotonic()
        # Any exception of a secrets backend counts as a lost contact, because the backend may soon work again.
        failure = await closed(self._open(), lambda error: _lost("The connection could not be looked up", error))
        if failure is not None:
            self._failure = failure

    async def _open(self) -> None:
        connection = await self._hook.aconnection()
        if connection != self._connection:
            # The previous client may still receive a response; all are closed together.
            account = await _shared_account(connection)
            self._transports.append(Transport(connection, max_poll=MAX_POLL, account=account))
            self._connection = connection
            log.info("Opened one client for connection %s", connection.conn_id)
        self._failure, self._stale = None, False

    async def _keep(self) -> None:
        try:
            joined = -1
            while self._users or joined != self._joined:
                await self._left.wait()
                self._left.clear()
                joined = self._joined
                await asyncio.sleep(LINGER)
        finally:
            pollers = _POLLERS.get(asyncio.get_running_loop(), {})
            for conn_id in [name for name, poller in pollers.items() if poller is self]:
                del pollers[conn_id]
            for transport in self._transports:
                await transport.aclose()


_POLLERS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = weakref.WeakKeyDictionary()


class GeminiImageJobTrigger(BaseTrigger):
    """Polls a job, and fires once when the job or the wait has ended.

    The event is ``{"status", "job_id", "code"}``. The status is ``done``, ``failed`` or ``vanished`` as reported by the
    gateway, or ``timeout``, ``lost`` (too many failed polls) or ``too_large`` (the worker must read the response) if
    polling stopped while the job may still be running. The code is the gateway's error code, or null.

    :param geminiimg_conn_id: id of the Airflow connection.
    :param job_id: the gateway's job id.
    :param model: the model of the submit.
    :param submitted_at: Unix time of the submit.
    :param deadline: Unix time of the last poll.
    :param expected_seconds: typical duration of such a job; the first poll comes that many seconds after the submit.
    :param poll_interval: seconds before the first poll and between polls; default: the catalogue's schedule.
    """

    def __init__(
        self,
        geminiimg_conn_id: str,
        job_id: str,
        model: str,
        submitted_at: float,
        deadline: float,
        expected_seconds: float,
        poll_interval: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.geminiimg_conn_id = geminiimg_conn_id
        self.job_id = job_id
        self.model = model
        self.submitted_at = submitted_at
        self.deadline = deadline
        self.expected_seconds = expected_seconds
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path of the class, and its arguments as JSON values."""
        return (
            "airflow_provider_geminiimg.triggers.job.GeminiImageJobTrigger",
            {
                "geminiimg_conn_id": self.geminiimg_conn_id,
                "job_id": self.job_id,
                "model": self.model,
                "submitted_at": self.submitted_at,
                "deadline": self.deadline,
                "expected_seconds": self.expected_seconds,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then fire once. No code runs after the event, because Airflow may not resume the generator.

        It fires `MIN_SECONDS` after its start at the earliest: the process that deferred can take 5 s to end, and if
        its end is reported after the task has resumed, Airflow up to 3.4.0b2 may fail the task
        (https://github.com/apache/airflow/issues/72716).
        """
        earliest = time.monotonic() + MIN_SECONDS
        event = await closed(self._watch())
        if isinstance(event, GeminiImageError):  # the worker continues to poll
            log.error("Waiting for job %s ended early; the worker continues to poll. %s", self.job_id, event)
            event = {"status": "lost", "job_id": self.job_id, "code": None}
        await asyncio.sleep(earliest - time.monotonic())
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Do nothing: gateways cannot cancel a job, it is paid for, and the next attempt collects it.

        Airflow also calls this for a trigger that moved to another triggerer, and after the next attempt began.
        """

    async def _watch(self) -> dict[str, Any]:
        poller = Poller.join(self.geminiimg_conn_id)
        try:
            plan = PollSchedule(
                submitted_at=self.submitted_at,
                deadline=self.deadline,
                expected_seconds=self.expected_seconds,
                poll_interval=self.poll_interval,
                spread=await poller.spread(),
            )
            status, code = "timeout", None
            # One timeout for the complete wait, because a timeout for each poll takes a tenth of a poll's CPU.
            with anyio.move_on_after(max(0.0, self.deadline - time.time()) + LAST_POLL):
                try:
                    end, result = await follow(plan, lambda: self._poll(poller))
                    status, code = end.status, _code(result)
                except _TooLargeError:
                    status = "too_large"
            return {"status": status, "job_id": self.job_id, "code": code}
        finally:
            poller.leave()

    async def _poll(self, poller: Poller) -> JobStatus:
        # A bug in this package must not end the wait for a paid image.
        found = await closed(poller.poll(self.job_id, self.model), lambda error: _lost("The poll failed", error))
        if not isinstance(found, GeminiImageError):
            return found
        log.warning(
            "Polling job %s failed (%s, HTTP %s). The job may still be running; polling continues.",
            self.job_id, found.kind, found.status_code,
        )  # fmt: skip
        if found.code == TOO_LARGE:
            raise _TooLargeError
        raise found


async def _shared_account(connection: GatewayConnection) -> Account | None:
    """The limits that the connection shares over all processes; ``None`` also if the root cannot be read from here."""
    if not connection.shared_limits:
        return None
    # In a thread of asgiref, from which Airflow's synchronous look-up of the root's connection works.
    account = await closed(sync_to_async(_opened, thread_sensitive=False)(connection))
    if not isinstance(account, GeminiImageError):
        return account
    log.warning(
        "The root could not be read in this triggerer (%s: %s): polls of connection %s keep to its limits in this "
        "process only.",
        account.kind, account.message, connection.conn_id,
    )  # fmt: skip
    return None


def _opened(connection: GatewayConnection) -> Account | None:
    # Imported late: a triggerer imports this module in its event loop.
    from airflow_provider_geminiimg.core.ledger.account_limits import account_limits
    from airflow_provider_geminiimg.core.storage import open_store
    from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

    store = open_store(settings.root(), AIRFLOW_OPENERS)
    account = account_limits(store, settings.namespace(), connection)
    if account is not None:
        store.now()
    return account


def _lost(what: str, error: Exception) -> LostContactError:
    return LostContactError(f"{what} ({error_and_place(error)}).")


class _TooLargeError(Exception):
    """The response to a poll is larger than `MAX_POLL`."""


def _code(result: JobStatus | GeminiImageError) -> str | None:
    """The gateway's error code if it is a single word, because it is stored in Airflow's log and database."""
    error = result.error if isinstance(result, JobStatus) else result
    code = error.code if error is not None else None
    return code if code and _CODE.fullmatch(code) else None
