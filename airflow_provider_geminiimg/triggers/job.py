"""Waits for a job in the triggerer, where one event loop serves every waiting task of the deployment.

What must stay true:

- nothing here costs money, and nothing here writes: the event says how a job stands, the worker does the rest;
- kwargs and event, which Airflow stores and logs in clear, hold ids, numbers and one word; no link, no message;
- all triggers of one connection in one loop share one look-up, one client and one limiter;
- a failure, of a poll or of the look-up, never ends the wait by itself: `PollSchedule` decides;
- no answer holds up the loop: one that is larger than `MAX_POLL` is the worker's to read.
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

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.execution.boundary import closed, error_and_place
from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.gateways.polling import PollSchedule, follow
from airflow_provider_geminiimg.core.http.exchange import TOO_LARGE
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    GeminiImageError,
    LostContactError,
    NotSentError,
)
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook

LINGER = 30.0  # seconds that a client outlives its last trigger: mapped tasks come one by one
LOOK_UP_AGAIN = 5.0  # seconds; a look-up that failed, or whose key was refused, is not repeated sooner
LAST_POLL = 30.0  # seconds past the deadline that the last poll may take
SETTLE = 6.0  # seconds after its start in which a trigger does not fire; see `GeminiImageJobTrigger.run`
MAX_POLL = 1_000_000  # bytes; a real answer has a few thousand, unless an image is in it
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DOUBTS = (AuthenticationError, BadRequestError, NotSentError)  # failures that a corrected connection would end

log = logging.getLogger(__name__)


class Poller:
    """What the triggers of one connection share in one event loop.

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
        """The poller of this connection in the running loop. Every `join` needs a `leave`."""
        pollers = _POLLERS.setdefault(asyncio.get_running_loop(), {})
        poller = pollers.get(conn_id)
        if poller is None:
            poller = pollers[conn_id] = cls(conn_id)
        poller._users += 1
        poller._joined += 1
        return poller

    def leave(self) -> None:
        """The client is closed `LINGER` seconds after the last trigger has left, or with the loop."""
        self._users -= 1
        if not self._users:
            self._left.set()

    async def spread(self) -> tuple[float, float]:
        """The gateway's pauses between polls; the longest of any gateway while the connection can't be looked up."""
        with contextlib.suppress(GeminiImageError):
            await self._transport()
        if self._connection is None:
            return max(limits.poll_interval for limits in LIMITS.values())
        return LIMITS[self._connection.gateway].poll_interval

    async def poll(self, job_id: str, model: str) -> JobStatus:
        """Ask once.

        :raises GeminiImageError: the gateway, or Airflow's connection, could not be asked.
        """
        try:
            transport = await self._transport()
            return await transport.send(transport.gateway.status(job_id, model=model))
        except _DOUBTS:
            self._stale = True
            raise

    async def _transport(self) -> Transport:
        async with self._lock:
            if self._stale and time.monotonic() - self._looked_up_at >= LOOK_UP_AGAIN:
                await self._look_up()
            if self._failure is not None and not self._transports:
                raise self._failure.scrubbed(prompt="")  # a copy, because a traceback grows with every raise
            return self._transports[-1]

    async def _look_up(self) -> None:
        self._looked_up_at = time.monotonic()
        # Whatever a secrets backend raises: it may be back in a minute.
        failure = await closed(self._open(), lambda error: _lost("The connection could not be looked up", error))
        if failure is not None:
            self._failure = failure

    async def _open(self) -> None:
        connection = await self._hook.aconnection()
        if connection != self._connection:
            # The one before may still be answering; all are closed together.
            self._transports.append(Transport(connection, max_poll=MAX_POLL))
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
    """Fires once, when a job has ended or is not worth waiting for any longer.

    The event is ``{"status", "job_id", "code"}``: the status is ``done``, ``failed`` or ``vanished`` (the gateway's
    word), ``timeout``, ``lost`` or ``too_large`` (we stopped asking, the job is left alone; what is too large for here
    is the worker's to read); the code is the gateway's own, or null.

    :param geminiimg_conn_id: id of the Airflow connection.
    :param job_id: the gateway's id of the job.
    :param model: the model that it was submitted for.
    :param submitted_at: when, in Unix seconds.
    :param deadline: when to stop, in Unix seconds.
    :param expected_seconds: when such a job may well be done; the first poll waits that long after the submit.
    :param poll_interval: seconds between polls and before the first; default: the catalogue's schedule.
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
        """The class's path, and its arguments as plain JSON values."""
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
        """Wait, then fire once. Nothing follows the event: Airflow may never come back for it.

        Not at once, even so: the process that deferred can take 5 s to end, and when its end is reported after the
        task has gone on, Airflow up to 3.3.2 fails it (https://github.com/apache/airflow/issues/72716).
        """
        settled = time.monotonic() + SETTLE
        event = await closed(self._watch())
        if isinstance(event, GeminiImageError):  # the worker asks on
            log.error("Waiting for job %s ended early. %s", self.job_id, event)
            event = {"status": "lost", "job_id": self.job_id, "code": None}
        await asyncio.sleep(settled - time.monotonic())
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Leave the job alone: no gateway can cancel, it is paid for, and the next attempt collects it.

        Airflow also calls this for a trigger that another triggerer took over, and after the next attempt began.
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
            # One limit for the whole wait, because one for each poll is a tenth of a poll's CPU.
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
        # A mistake of ours must not end the wait for an image that is paid for.
        found = await closed(poller.poll(self.job_id, self.model), lambda error: _lost("The poll failed", error))
        if not isinstance(found, GeminiImageError):
            return found
        log.warning(
            "Polling job %s failed (%s, HTTP %s); that says nothing about the job.",
            self.job_id, found.kind, found.status_code,
        )  # fmt: skip
        if found.code == TOO_LARGE:
            raise _TooLargeError
        raise found


def _lost(said: str, error: Exception) -> LostContactError:
    return LostContactError(f"{said} ({error_and_place(error)}).")


class _TooLargeError(Exception):
    """The answer to a poll is more than is read here."""


def _code(result: JobStatus | GeminiImageError) -> str | None:
    """The gateway's code, if it looks like one: it goes into Airflow's log and database."""
    error = result.error if isinstance(result, JobStatus) else result
    code = error.code if error is not None else None
    return code if code and _CODE.fullmatch(code) else None
