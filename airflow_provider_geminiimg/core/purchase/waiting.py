"""From a paid job to its image: poll the job until it ends, then store the image.

Invariants: nothing here costs money. A failed poll says nothing about the job. After any failure the record still has
everything that the next attempt needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, ResultImage
from airflow_provider_geminiimg.core.gateways.polling import VANISHED_GRACE, End, PollSchedule, follow
from airflow_provider_geminiimg.core.ledger.record import Destination, Record, with_error
from airflow_provider_geminiimg.core.purchase.context import ConnectionChangedError, changed_since, connection_changed
from airflow_provider_geminiimg.core.purchase.landing import UNFETCHED, ImageWriter, paid
from airflow_provider_geminiimg.core.storage import Blob
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    LinkExpiredError,
    LostContactError,
    OutcomeUnknownError,
    StorageError,
    TimedOutError,
    UpstreamFailedError,
)

_REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}  # permanent refusals


class VanishedError(OutcomeUnknownError):
    """The gateway does not know the job, and the grace period is over. `on_unknown` decides."""


class JobCollector:
    """Collects paid images.

    :param writer: stores the images.
    :param prompt: the prompt that was sent, if known. It is removed from messages of the gateway; without it these
        messages are withheld.
    """

    def __init__(self, writer: ImageWriter, *, prompt: str | None = None) -> None:
        self.writer = writer
        self.purchase_context = writer.purchase_context
        self.prompt = prompt
        self.log = writer.log

    async def poll(self, record: Record) -> JobStatus:
        """Poll the job of the record once.

        :raises ConnectionChangedError: the connection has changed, and its gateway does not know the job.
        :raises GeminiImageError: the poll failed.
        """
        async with self._noting_a_change(record):
            with paid():
                return await self._asked(record)

    @contextlib.asynccontextmanager
    async def _noting_a_change(self, record: Record) -> AsyncIterator[None]:
        """Note on the record that its connection has changed, so that a person may resolve it."""
        try:
            yield
        except ConnectionChangedError as error:
            if record.state == "submitted":
                await self.note(record, error)
            raise

    async def _asked(self, record: Record) -> JobStatus:
        transport = await self.purchase_context.transport(record)
        changed = changed_since(record, transport)
        inputs = [known["uri"] for known in record.inputs]
        call = transport.gateway.status(str(record.job_id), model=record.wire_model, inputs=inputs)
        try:
            memory = self.purchase_context.memory
            status = await transport.send(call, prompt=self.prompt or record.prompt, image_memory=memory)
        except GeminiImageError as error:
            if changed and error.status_code in _REFUSALS:
                raise connection_changed(record, changed, f"{error.message} (HTTP {error.status_code}).") from error
            raise
        if changed and status.state is JobState.VANISHED:
            raise connection_changed(record, changed, f"{transport.gateway.label} does not know job {record.job_id}.")
        return status

    async def check_account(self, record: Record) -> None:
        """Poll once if the connection of the record has changed, to fail before the wait.

        :raises ConnectionChangedError: see `poll`.
        """
        async with self._noting_a_change(record):
            changed = changed_since(record, await self.purchase_context.transport(record))
        if changed:
            try:
                await self.poll(record)
            except ConnectionChangedError:
                raise
            except GeminiImageError as error:
                self.log.warning("Polling job %s failed (%s). The job is not affected.", record.job_id, error.kind)

    async def peek(self, record: Record) -> Record | None:
        """Poll once, and store the image if it is ready.

        :returns: the record, ``landed`` or ``failed``; ``None`` if the job is running or the poll failed temporarily.
        :raises GeminiImageError: another poll can't help (connection, key), the gateway does not know the job, or the
            image could not be stored.
        """
        try:
            status = await self.poll(record)
        except GeminiImageError as error:
            if not error.retryable:
                raise
            self.log.warning("Polling job %s failed (%s). The job is not affected.", record.job_id, error.kind)
            return None
        return await self.conclude(record, status)

    async def conclude(self, record: Record, status: JobStatus) -> Record | None:
        """Act on the result of a poll.

        :param status: the status of the job.
        :returns: the record, ``landed`` or ``failed``; ``None`` if the job is running.
        :raises VanishedError: the gateway does not know the job, and the grace period is over.
        :raises GeminiImageError: the image could not be stored.
        """
        if status.state is JobState.VANISHED and _seconds_since_submit(record) < VANISHED_GRACE:
            return None
        if status.state is JobState.RUNNING:
            return None
        if status.state is JobState.FAILED:
            return await self._record_failure(record, status)
        return await self._end(record, End(status.state.value), status)

    async def wait(
        self, record: Record, *, timeout: float, poll_interval: float | None, poll_immediately: bool = False
    ) -> Record:
        """Poll until the job ends, then store its image.

        :param timeout: seconds from the submit, over all attempts.
        :param poll_interval: seconds between polls; ``None``: the schedule of the model.
        :param poll_immediately: poll before the first wait, because the job has probably ended.
        :raises GeminiImageError: why there is no image.
        """
        await self.check_account(record)
        plan = PollSchedule(
            submitted_at=record.submitted_at or record.claimed_at,
            deadline=(record.submitted_at or record.claimed_at) + timeout,
            expected_seconds=record.expected_seconds,
            poll_interval=poll_interval,
            spread=LIMITS[record.gateway].poll_interval,
        )
        end, result = await follow(plan, lambda: self.poll(record), poll_immediately=poll_immediately)
        return await self._end(record, end, result)

    async def fetch(self, record: Record) -> Record:
        """Store the results of an ``answered`` record, which has links or bytes instead of a job id."""
        with paid():
            spooled = await self._spooled(record)
        if any(blob is None for blob in spooled):
            raise StorageError(
                f"A result of record {record.key}, which was saved under spool/, is gone.", billed=Billed.YES
            )
        images = [ResultImage(data=blob.data) for blob in spooled if blob is not None]
        return await self._land_or_note(record, [*images, *(ResultImage(url=link) for link in record.links)])

    async def _spooled(self, record: Record) -> list[Blob | None]:
        """Results that came inside an answer, read from the store. Landing charges their memory again."""
        async with self.purchase_context.memory.acquire(empty=not record.spooled) as allocation:
            found: list[Blob | None] = []
            for key in record.spooled:
                found.append(await asyncio.to_thread(self.purchase_context.ledger.store.read, key))
                allocation.resize(sum(len(blob.data) for blob in found if blob is not None))
        return found

    async def land_answer(self, record: Record, status: JobStatus) -> Record:
        """Store the results that came with the answer to the paid request."""
        if record.job_id is not None:
            return await self._land_job(record, status)
        return await self._land_or_note(record, status.images, status.cost)

    async def refetch(self, record: Record) -> Record:
        """Poll once for a new link, and store the image again, because it is gone from storage."""
        self.log.warning("The image of record %s is gone from storage; polling the gateway for a new link.", record.key)
        status = await self.poll(record) if record.job_id else None
        if status is not None and status.state is JobState.DONE:
            return await self._land_or_note(record, status.images, status.cost)
        gone = LinkExpiredError(f"The image of record {record.key} is gone from storage and from the gateway.")
        await self.note(record, gone)
        raise gone

    async def move(self, record: Record, destination: Destination, suffix: str) -> Record:
        """Change the destination of a paid image that has not landed.

        :returns: the record as it is stored now.
        """

        def moved(stored: Record) -> Record | None:
            under_way = stored.state in ("submitted", "answered")
            return replace(stored, destination=destination, suffix=suffix) if under_way else None

        self.log.info("The paid image of record %s will land in %s.", record.key, destination.directory)
        return await asyncio.to_thread(self.purchase_context.ledger.change, record.key, moved)

    async def note(self, record: Record, error: GeminiImageError) -> None:
        """Write an error to the record without changing its state. A failure to write is logged, not raised."""

        def noted(stored: Record) -> Record | None:
            # Another attempt stored the image, or a person resolved the record.
            overtaken = stored.state in ("landed", "failed") and stored.state != record.state
            return None if overtaken else with_error(stored, error)

        try:
            await asyncio.to_thread(self.purchase_context.ledger.change, record.key, noted)
        except Exception as failure:  # `error` counts
            why = as_outcome(failure)
            self.log.warning("Could not note %r on record %s (%s).", error.kind, record.key, why.kind)

    async def _end(self, record: Record, end: End, result: JobStatus | GeminiImageError) -> Record:
        job = f"Job {record.job_id}"
        if end.status == "done" and isinstance(result, JobStatus):
            return await self._land_job(record, result)
        if end.status == "failed" and isinstance(result, JobStatus):
            await self._record_failure(record, result)
            raise _failure(record, result)
        if end.status == "vanished":
            raise VanishedError(f"{job} is not known to the gateway any more. Record {record.key}.")
        cause = result if isinstance(result, GeminiImageError) else None
        said = f" (last error: {cause.kind})" if cause else ""
        if cause is not None:
            await self._refuse_changed(record, cause, f"{job} could not be polled{said}.")
        if end.status == "timeout":
            raise TimedOutError(f"{job} was still running at its deadline. It keeps running. Record {record.key}.")
        raise LostContactError(
            f"{job} could not be polled{said}. The job is not affected. Record {record.key}."
        ) from cause

    async def _refuse_changed(self, record: Record, cause: GeminiImageError, said: str) -> None:
        """Raise a `ConnectionChangedError` if the connection has changed, which may be why polling failed."""
        if isinstance(cause, ConnectionChangedError):
            raise cause
        async with self._noting_a_change(record):
            if changed := changed_since(record, await self.purchase_context.transport(record)):
                raise connection_changed(record, changed, said) from cause

    async def _record_failure(self, record: Record, status: JobStatus) -> Record:
        error = _failure(record, status)
        return await asyncio.to_thread(
            self.purchase_context.ledger.change, record.key, lambda stored: _failed(stored, error)
        )

    async def _land_job(self, record: Record, status: JobStatus) -> Record:
        try:
            return await self.writer.land(record, status.images, status.cost)
        except LinkExpiredError:
            self.log.warning("The link of job %s has expired; polling for a new one.", record.job_id)
        except UNFETCHED as error:
            await self.note(record, error)
            raise
        fresh = await self.poll(record)
        return await self._land_or_note(record, fresh.images, fresh.cost)

    async def _land_or_note(self, record: Record, images: Sequence[ResultImage], cost: float | None = None) -> Record:
        try:
            return await self.writer.land(record, images, cost)
        except (LinkExpiredError, *UNFETCHED) as error:
            await self.note(record, error)
            raise


def _failure(record: Record, status: JobStatus) -> GeminiImageError:
    return status.error or UpstreamFailedError(f"Job {record.job_id} failed; the gateway gave no reason.")


def _failed(stored: Record, error: GeminiImageError) -> Record | None:
    return None if stored.state in ("landed", "failed") else with_error(stored, error, "failed")


def _seconds_since_submit(record: Record) -> float:
    return time.time() - (record.submitted_at or record.claimed_at)
