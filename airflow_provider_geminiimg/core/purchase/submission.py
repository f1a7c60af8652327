"""One paid request: claimed, sent, and its answer written down.

What must stay true: the record is there before the request that may cost money; nobody but the winner of the record
sends it; it is sent once; whatever its answer is, it is written down before anything else happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from airflow_provider_geminiimg.core.execution.boundary import as_outcome, closed
from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.http.exchange import OVERHEAD
from airflow_provider_geminiimg.core.ledger.job_index import answered_with_anothers, has, own, owner, take_back
from airflow_provider_geminiimg.core.ledger.layout import spool_key
from airflow_provider_geminiimg.core.ledger.records import Record, StoredRecord, with_error
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
from airflow_provider_geminiimg.core.purchase.results import Answered, LookAgain
from airflow_provider_geminiimg.core.purchase.reuse_decision import Buy
from airflow_provider_geminiimg.core.purchase.task_state import remember
from airflow_provider_geminiimg.core.storage import create_or_read
from airflow_provider_geminiimg.exceptions import GeminiImageError, NotSentError, OutcomeUnknownError, StorageError

ANSWER_MARGIN = 60.0  # seconds after the read timeout: time to write the answer down
CLAIM_SECONDS = ANSWER_MARGIN - OVERHEAD  # that a claim may take, or others give it up too early
LOOKING_SECONDS = 0.2  # that a look at whose job it is may keep the answer from being recorded
OWNING_SECONDS = 2.0  # that noting whose job it is may take, once the answer is recorded
RECORDING_SECONDS = 30.0  # that a job may go unrecorded before it is waited for all the same
RECORD_AGAIN = 2.0  # seconds between tries to write an answer down


class Submission:
    """What one attempt at one image pays with.

    :param order: what is asked for.
    :param purchase_context: what it needs from outside.
    :param guard: whether this process may still pay.
    :param marker: the task state store's memory, where there is one.
    """

    def __init__(
        self, order: Order, purchase_context: PurchaseContext, guard: SubmitGuard, marker: Marker | None
    ) -> None:
        self.order = order
        self.guard = guard
        self.marker = marker
        self.ledger = purchase_context.ledger
        self.claims = purchase_context.claims
        self.room = purchase_context.room
        self.log = purchase_context.log
        self._recording: asyncio.Task[None] | None = None

    async def submit(
        self, wanted: Record, send: Callable[[], Awaitable[JobStatus]], buy: Buy | None = None
    ) -> Answered | LookAgain:
        """Claim the record, send the request, record the answer.

        :param wanted: the record to claim.
        :param send: sends the paid request.
        :param buy: claims the index entry of the image first; given with ``reuse="dag"``.
        :returns: `LookAgain` if another attempt or another task claimed first; then nothing was sent.
        :raises GeminiImageError: why there is no answer; it is on the record.
        """
        async with contextlib.AsyncExitStack() as claiming:
            await claiming.enter_async_context(self.claims)
            self.guard.check()
            with self.guard.paying():
                since = time.monotonic()
                if buy is not None and not await asyncio.to_thread(buy.claim, self.ledger.store, wanted):
                    self.log.info("Another task claimed the image of record %s first; reading again.", wanted.key)
                    return LookAgain()
                claimed = await asyncio.to_thread(self._claim, wanted)
                if claimed is None:
                    self.log.warning("Another attempt claimed record %s first; reading again.", wanted.key)
                    return LookAgain()
                status = await self._send(claimed.record, since, send, claiming)
                with self.room.held(sum(len(image.data or b"") for image in status.images)):
                    return Answered(await self._write_answer(claimed.record, status), status)

    def _claim(self, wanted: Record) -> StoredRecord | None:
        """Create the record. Whoever was told to stop meanwhile sends nothing, and says so, even if nobody waits."""
        claimed = self.ledger.create(wanted)
        if claimed is not None and self.guard.stopped:
            self._note_failure(wanted, NotSentError("The task was told to stop before the request was sent."))
        return claimed

    async def wait_until_recorded(self) -> None:
        """Wait for an answer that could not be written down at once, `RECORDING_SECONDS` at most."""
        if self._recording is not None:
            await asyncio.wait([self._recording], timeout=RECORDING_SECONDS)

    async def _send(
        self,
        record: Record,
        since: float,
        send: Callable[[], Awaitable[JobStatus]],
        claiming: contextlib.AsyncExitStack,
    ) -> JobStatus:
        """Send the paid request; whatever keeps it from an answer is on the record before it goes further up.

        :param since: when the claim was begun, by the monotonic clock: whoever sends much later may not be alone.
        :param claiming: is closed as soon as the request is on its way, so that others may claim.
        """
        async with self._noting_failure(record, _unsent):
            await remember(self.marker, record)
            self.guard.check()
            if time.monotonic() - since > CLAIM_SECONDS:
                raise NotSentError("Claiming the record took so long that another attempt may have given it up.")
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
        """Write onto the record what is raised within.

        :param meaning: what to write where that is no outcome.
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
            self.log.error("Record %s could not be written (%s); it stays an intent.", record.key, kind)

    async def _write_answer(self, record: Record, status: JobStatus) -> Record:
        """Record the answer at once; where that fails, keep trying in the background and go on landing.

        :raises OutcomeUnknownError: its job is another record's, so it says nothing about this request.
        """
        # Before it is recorded, which may take longer than this process lives.
        self.log.info("Submitted as job %s (record %s).", status.job_id, record.key)
        await self._refuse_owned(record, status.job_id)
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
            await asyncio.to_thread(self._record_answer, answer, inline)
        except Exception as failure:  # whatever it is, there is a job
            error = as_outcome(failure)
            self.log.error(
                "Job %s was paid for, but its record %s could not be written yet (%s: %s). Trying on; the image is "
                "landed all the same.",
                status.job_id, record.key, error.kind, error.message,
            )  # fmt: skip
            with contextlib.suppress(Exception):  # whatever Airflow's API raises: landing goes on
                await remember(self.marker, answer)
            self._recording = asyncio.create_task(self._keep_recording(answer, inline))
        await self.own(answer)
        return answer

    async def _refuse_owned(self, record: Record, job_id: str | None) -> None:
        """Look whose a job is, as far as that is known at once: until the answer is recorded, a kill loses it.

        :raises OutcomeUnknownError: it is another record's.
        """
        if job_id is None:
            return
        looking = asyncio.ensure_future(asyncio.to_thread(owner, self.ledger, record.gateway, job_id))
        done, _ = await asyncio.wait([looking], timeout=LOOKING_SECONDS)
        other = None if not done or looking.exception() else looking.result()
        if other not in (None, record.key):
            unknown = answered_with_anothers(record, job_id, str(other))
            await self._write_failure(record, unknown)
            raise unknown

    async def own(self, record: Record) -> None:
        """Note that the recorded job is the record's. A store that fails, or is slow, keeps no image from landing.

        :raises OutcomeUnknownError: it is another record's. The record is that of an unknown outcome from then on.
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
                "Could not note that job %s is record %s's (%s: %s).", job_id, record.key, other.kind, other.message
            )
        elif other is not None:
            if self._recording is not None:
                self._recording.cancel()
            raise await asyncio.to_thread(take_back, self.ledger, record, other, self.log)

    def _record_answer(self, answer: Record, inline: Sequence[bytes]) -> None:
        for key, data in zip(answer.spooled, inline, strict=True):
            create_or_read(self.ledger.store, key, data)

        def answered(stored: Record) -> Record | None:
            # A failure without a job is a person's word, who took the answer for lost. Here it is.
            if stored.claim == answer.claim and stored.job_id is None and stored.state in ("intent", "failed"):
                return replace(answer, generation=stored.generation)
            if answer.job_id in (None, stored.job_id, *stored.extra_jobs):
                return None
            self.log.error(
                "Perhaps paid twice: record %s was settled while its request was under way; job %s is kept on it.",
                answer.key, answer.job_id,
            )  # fmt: skip
            return replace(stored, extra_jobs=[*stored.extra_jobs, str(answer.job_id)])

        self.ledger.change(answer.key, answered)
        later = [n for n in self.ledger.numbers(self.order.item) if n > answer.n]
        if later:
            self.log.error(
                "Perhaps paid twice: while the request of record %s was under way, submission %s was claimed.",
                answer.key, later[-1],
            )  # fmt: skip

    async def _keep_recording(self, answer: Record, inline: Sequence[bytes]) -> None:
        give_up = time.monotonic() + self.order.timeout
        while time.monotonic() < give_up:
            await asyncio.sleep(RECORD_AGAIN)
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self._record_answer, answer, inline)
                return


def _unsent(_: Record, error: BaseException) -> GeminiImageError:
    """What an exception means before the request is sent."""
    if isinstance(error, asyncio.CancelledError):
        return NotSentError("Interrupted before sending.")
    return NotSentError(f"Nothing was sent ({type(error).__name__}).")


def _broken_off(record: Record, error: BaseException) -> GeminiImageError:
    """What an exception means while the request is under way."""
    if isinstance(error, asyncio.CancelledError):
        return OutcomeUnknownError(f"The task was interrupted while the request was under way. Record {record.key}.")
    return OutcomeUnknownError(f"Sending broke off ({type(error).__name__}). Record {record.key}.")
