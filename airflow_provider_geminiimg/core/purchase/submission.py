"""One paid request: claim its record, send it once, record the answer.

Invariants: the record exists before the paid request is sent. Only the process that created the record sends the
request, once. The answer is recorded before anything else happens.

Whose job the answer names is noted after that, by an exclusive create and without a look before it. A process that dies
in between leaves a record whose job may be another record's. Whoever collects it (the next attempt, or `jobs collect`)
first notes whose job it is, and so takes the job out of the record again. A look before would cost a request for each
image, and the answer itself if the process died meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from airflow_provider_geminiimg.core.execution.boundary import as_outcome, closed
from airflow_provider_geminiimg.core.execution.runner import CancelledUnsentError, SubmitGuard, to_its_end
from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.http.exchange import OVERHEAD
from airflow_provider_geminiimg.core.ledger.job_index import has, own, take_back
from airflow_provider_geminiimg.core.ledger.layout import spool_key
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
from airflow_provider_geminiimg.core.purchase.results import Answered, LookAgain
from airflow_provider_geminiimg.core.purchase.reuse_decision import Claim
from airflow_provider_geminiimg.core.purchase.task_state import save_marker
from airflow_provider_geminiimg.core.storage import create_or_read
from airflow_provider_geminiimg.exceptions import GeminiImageError, NotSentError, OutcomeUnknownError, StorageError

ANSWER_MARGIN = 60.0  # seconds after the read timeout, to record the answer
CLAIM_SECONDS = ANSWER_MARGIN - OVERHEAD  # abort if claiming took longer: other attempts may consider it abandoned
OWNING_SECONDS = 2.0  # how long writing the owner of the job may take after the answer is recorded
RECORDING_SECONDS = 30.0  # how long to wait for a delayed record before the wait for the job starts
RECORD_AGAIN = 2.0  # seconds between tries to record an answer


class Submission:
    """Sends the paid requests of one attempt at one image.

    :param order: the request of the attempt.
    :param purchase_context: what a purchase needs from outside.
    :param guard: the stop flag for paid requests.
    :param marker: the marker in Airflow's task state store, if there is one.
    """

    def __init__(
        self, order: Order, purchase_context: PurchaseContext, guard: SubmitGuard, marker: Marker | None
    ) -> None:
        self.order = order
        self.guard = guard
        self.marker = marker
        self.ledger = purchase_context.ledger
        self.claims = purchase_context.claims
        self.memory = purchase_context.memory
        self.log = purchase_context.log
        self._claimed_at = 0.0, 0.0  # when the claim began, by the monotonic and by the wall clock
        self._recording: asyncio.Task[None] | None = None

    async def submit(
        self, wanted: Record, send: Callable[[], Awaitable[JobStatus]], claim: Claim | None = None
    ) -> Answered | LookAgain:
        """Claim the record, send the request, record the answer.

        :param wanted: the record to claim.
        :param send: sends the paid request.
        :param claim: claims the index entry of the image first; given with ``reuse="dag"``.
        :returns: `LookAgain` if another attempt or another task claimed first; then nothing was sent.
        :raises GeminiImageError: why there is no answer; it is on the record.
        """
        async with contextlib.AsyncExitStack() as claiming:
            await claiming.enter_async_context(self.claims)
            self.guard.check()
            with self.guard.submitting():
                self._claimed_at = time.monotonic(), time.time()
                if claim is not None and not await asyncio.to_thread(claim.write, self.ledger.store, wanted):
                    self.log.info("Another task claimed the image of record %s first; reading again.", wanted.key)
                    return LookAgain()
                claimed = await asyncio.to_thread(self._claim, wanted)
                if claimed is None:
                    self.log.warning("Another attempt claimed record %s first; reading again.", wanted.key)
                    return LookAgain()
                status = await self._send(claimed.record, send, claiming)
                with self.memory.held(sum(len(image.data or b"") for image in status.images)):
                    return Answered(await to_its_end(self._write_answer(claimed.record, status)), status)

    def _claim(self, wanted: Record) -> StoredRecord | None:
        """Create the record. If the task was killed in the meantime, record that nothing was sent."""
        claimed = self.ledger.create(wanted)
        if claimed is not None and self.guard.stopped:
            self._note_failure(wanted, NotSentError("The task was killed before the request was sent."))
        return claimed

    def _since_claim(self) -> float:
        """Seconds since the claim began, by the clock that says more: one may stand still in a suspended machine."""
        monotonic, wall = self._claimed_at
        return max(time.monotonic() - monotonic, time.time() - wall)

    async def wait_until_recorded(self) -> None:
        """Wait for an answer whose recording was delayed, at most `RECORDING_SECONDS`."""
        if self._recording is not None:
            await asyncio.wait([self._recording], timeout=RECORDING_SECONDS)

    async def _send(
        self,
        record: Record,
        send: Callable[[], Awaitable[JobStatus]],
        claiming: contextlib.AsyncExitStack,
    ) -> JobStatus:
        """Send the paid request. An error is recorded before it is raised.

        :param claiming: closed just before sending, so that other purchases may claim.
        """
        async with self._noting_failure(record, _unsent):
            await save_marker(self.marker, record)
            self.guard.check()
            if self._since_claim() > CLAIM_SECONDS:
                raise NotSentError("Claiming the record took so long that another attempt may consider it abandoned.")
            await claiming.aclose()
        async with self._noting_failure(record, _broken_off):
            status = await send()
        if status.error is not None:
            await self._write_failure(record, status.error)
            raise status.error
        return status

    @contextlib.asynccontextmanager
    async def _noting_failure(
        self, record: Record, meaning: Callable[[Record, BaseException], GeminiImageError]
    ) -> AsyncIterator[None]:
        """Record an exception that is raised in the block.

        :param meaning: converts a foreign exception.
        """
        try:
            yield
        except GeminiImageError as error:
            noted = error.evolve(message=f"{error.message} Record {record.key}.")
            await self._write_failure(record, noted)
            raise noted from error.__cause__
        except (asyncio.CancelledError, Exception) as error:
            outcome = meaning(record, error)
            await self._write_failure(record, outcome)
            if isinstance(error, Exception) and isinstance(outcome, OutcomeUnknownError):
                raise outcome from None
            raise

    async def _write_failure(self, record: Record, error: GeminiImageError) -> None:
        await asyncio.to_thread(self._note_failure, record, error)

    def _note_failure(self, record: Record, error: GeminiImageError) -> None:
        state = None if isinstance(error, OutcomeUnknownError) else "failed"

        def failed(stored: Record) -> Record | None:
            return with_error(stored, error, state) if stored.state == "intent" else None  # type: ignore[arg-type]

        try:
            self.ledger.change(record.key, failed)
        except Exception as failure:  # `error` counts
            kind = as_outcome(failure).kind
            self.log.error("The failure could not be written to record %s (%s); it stays an intent.", record.key, kind)

    async def _write_answer(self, record: Record, status: JobStatus) -> Record:
        """Record the answer, then whose job it is. If recording fails, continue and retry in the background.

        :raises OutcomeUnknownError: the job belongs to another record, so the answer says nothing about this request.
        """
        # Log before recording: the process may be killed while it records.
        self.log.info("Submitted as job %s (record %s).", status.job_id, record.key)
        inline = [image.data for image in status.images if image.data is not None]
        keys = [spool_key(record.key, record.claim, index) for index in range(len(inline))]
        by_link = status.job_id is None or bool(inline)
        answer = replace(
            record,
            state="answered" if by_link else "submitted",
            job_id=status.job_id,
            submitted_at=time.time(),
            links=[image.url for image in status.images if image.url] if by_link else [],
            spooled=keys,
        )
        try:
            await asyncio.to_thread(self._record_answer, record, answer, inline)
        except Exception as failure:  # the job is paid in any case
            error = as_outcome(failure)
            self.log.error(
                "Job %s is paid, but record %s was not updated (%s: %s). Retrying every %.0f s. If this task dies: "
                "`jobs resolve %s --job %s`.",
                status.job_id, record.key, error.kind, error.message, RECORD_AGAIN, record.key, status.job_id,
            )  # fmt: skip
            with contextlib.suppress(Exception):  # an error of Airflow's API must not stop the landing
                await save_marker(self.marker, answer)
            self._recording = asyncio.create_task(self._keep_recording(record, answer, inline))
        await self.own(answer)
        return answer

    async def own(self, record: Record) -> None:
        """Note that the job belongs to the record. If the store fails or is slow, the image lands anyway.

        :raises OutcomeUnknownError: the job belongs to another record. The record now has an unknown outcome.
        """
        job_id = record.job_id
        if job_id is None or not has(record, job_id):
            return
        owning = asyncio.ensure_future(closed(asyncio.to_thread(own, self.ledger, record, job_id)))
        done, _ = await asyncio.wait([owning], timeout=OWNING_SECONDS)
        other = owning.result() if done else StorageError(f"The store took over {OWNING_SECONDS:.0f} s.")
        if isinstance(other, GeminiImageError):
            owning.cancel()
            self.log.warning(
                "Could not note that job %s belongs to record %s (%s: %s). The image lands anyway.",
                job_id,
                record.key,
                other.kind,
                other.message,
            )
        elif other is not None:
            if self._recording is not None:
                self._recording.cancel()
            raise await asyncio.to_thread(take_back, self.ledger, record, other, self.log)

    def _record_answer(self, record: Record, answer: Record, inline: Sequence[bytes]) -> None:
        """Write the answer to the record, and report a later record of the item.

        Another attempt claims the next record only after the answer deadline of this one, or after a change of it. If
        neither has happened, the later records need not be listed.

        :param record: as it was claimed.
        """
        unchanged = False
        for key, data in zip(answer.spooled, inline, strict=True):
            create_or_read(self.ledger.store, key, data)

        def answered(stored: Record) -> Record | None:
            nonlocal unchanged
            unchanged = stored == record
            # A failed record without a job id was resolved by hand before this answer arrived.
            if stored.claim == answer.claim and stored.job_id is None and stored.state in ("intent", "failed"):
                return replace(answer, generation=stored.generation)
            if answer.job_id in (None, stored.job_id, *stored.extra_jobs):
                return None
            self.log.error(
                "Possible double charge: record %s was resolved while its request was in flight; job %s is kept. "
                "Run `jobs collect`.",
                answer.key, answer.job_id,
            )  # fmt: skip
            return replace(stored, extra_jobs=[*stored.extra_jobs, str(answer.job_id)])

        stored = self.ledger.change(answer.key, answered)
        if stored.state == "landed" and stored.claim == answer.claim:  # before this could be written
            for key in answer.spooled:
                self.ledger.store.delete(key)
        if unchanged and self._since_claim() < record.answer_within:
            return
        later = [n for n in self.ledger.numbers(self.order.item) if n > answer.n]
        if later:
            self.log.error(
                "Possible double charge: record number %s was claimed while the request of record %s was in flight.",
                later[-1], answer.key,
            )  # fmt: skip

    async def _keep_recording(self, record: Record, answer: Record, inline: Sequence[bytes]) -> None:
        give_up = time.monotonic() + self.order.timeout
        while time.monotonic() < give_up:
            await asyncio.sleep(RECORD_AGAIN)
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self._record_answer, record, answer, inline)
                return


def _unsent(_: Record, error: BaseException) -> GeminiImageError:
    """The error for a foreign exception before the request is sent."""
    if isinstance(error, asyncio.CancelledError):
        return NotSentError("Interrupted before sending.")
    return NotSentError(f"Nothing was sent ({type(error).__name__}).")


def _broken_off(record: Record, error: BaseException) -> GeminiImageError:
    """The error for a foreign exception while the request is in flight."""
    if isinstance(error, CancelledUnsentError):
        return _unsent(record, error)
    if isinstance(error, asyncio.CancelledError):
        return OutcomeUnknownError(
            f"The task was interrupted while the paid request was in flight. Record {record.key}."
        )
    return OutcomeUnknownError(f"Sending the paid request failed ({type(error).__name__}). Record {record.key}.")
