"""One attempt at one image: read the records, decide, then submit, wait, and store the image.

Invariants: the ledger is read first. An image that is paid for is collected and not bought again. If the ledger can't
be read, no error says that no money was spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.base import Call, JobState, JobStatus
from airflow_provider_geminiimg.core.http.transport import NoTurnError, Transport
from airflow_provider_geminiimg.core.ledger.caps import price_of
from airflow_provider_geminiimg.core.ledger.file_names import IMAGE_BYTES, reserve_name
from airflow_provider_geminiimg.core.ledger.job_index import another_records_job, owner
from airflow_provider_geminiimg.core.ledger.layout import folder_of, record_key
from airflow_provider_geminiimg.core.ledger.manifest import estimate
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import new_claim, process_identity
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.copying import copy_to, moved_to, reused_manifest
from airflow_provider_geminiimg.core.purchase.decision import (
    Copy,
    Fetch,
    Poll,
    Refetch,
    Refuse,
    Reuse,
    Submit,
    WaitForRecord,
)
from airflow_provider_geminiimg.core.purchase.history import ImageHistory
from airflow_provider_geminiimg.core.purchase.inputs import handles_of, public_uri, read_inputs
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter, paid
from airflow_provider_geminiimg.core.purchase.order import Marker, Order
from airflow_provider_geminiimg.core.purchase.results import JobInFlight, LandedImage, LookAgain
from airflow_provider_geminiimg.core.purchase.reuse_decision import Claim, CopyFrom, copy_of
from airflow_provider_geminiimg.core.purchase.sharing import DagReuse
from airflow_provider_geminiimg.core.purchase.submission import ANSWER_MARGIN, Submission
from airflow_provider_geminiimg.core.purchase.waiting import JobCollector, VanishedError
from airflow_provider_geminiimg.core.request import CheckedRequest, prompt_sha256
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
)

RESEND_SECONDS = 120.0  # how long one attempt resends a request that is known to be unpaid
LOOK_AGAIN = 2.0  # seconds between reads of a record that another attempt is working on

Turn = Callable[[], contextlib.AbstractAsyncContextManager[Callable[[], None] | Refuse]]


@contextlib.asynccontextmanager
async def _no_turn() -> AsyncIterator[Callable[[], None]]:
    yield lambda: None


class Purchase:
    """One attempt at one image.

    :param order: the request of the attempt.
    :param purchase_context: what a purchase needs from outside.
    :param guard: the stop flag for paid requests.
    :param marker: the marker in Airflow's task state store, if there is one.
    :param turn: makes a context manager that is held from reading the inputs until the answer is recorded; a batch
        limits its requests by it. It yields a function, which is called just before the record is claimed; or a
        `Refuse`, which ends the attempt before anything is claimed or sent. Default: no limit.
    """

    knows: type[ImageHistory] = ImageHistory  # a forecast uses another class

    def __init__(
        self,
        order: Order,
        purchase_context: PurchaseContext,
        guard: SubmitGuard,
        marker: Marker | None,
        turn: Turn = _no_turn,
    ) -> None:
        self.order = order
        self.purchase_context = purchase_context
        self.guard = guard
        self.marker = marker
        self.turn = turn
        self.ledger = purchase_context.ledger
        self.log = purchase_context.log
        self.history = self.knows(order, purchase_context, marker)
        self.writer = ImageWriter(purchase_context, generation=order.policy.generation, guard=guard)
        self.sharing = DagReuse(order, purchase_context, marker)
        self.submission = Submission(order, purchase_context, guard, marker)

    async def start(self, vanished: str | None = None) -> LandedImage | JobInFlight:
        """Decide and act until the image has landed or a job is running.

        :param vanished: key of a submitted record whose job the gateway does not know any more.
        :raises GeminiImageError: why there is no image.
        """
        async with self.history.reading():
            if not self.ledger.store.is_probed:
                await asyncio.to_thread(self.ledger.store.probe)
        give_up, self._until = time.monotonic() + RESEND_SECONDS, time.monotonic() + self.order.timeout
        self._wait_logged = False
        result: LandedImage | JobInFlight | LookAgain | Refuse = LookAgain()
        while isinstance(result, LookAgain):
            decision = await self.history.decide(vanished)
            match decision.step:
                case Submit() as step:
                    result = await self._obtain_or_pause(step, give_up)
                case WaitForRecord() as step:
                    self._log_wait(decision.record, step)
                    await asyncio.sleep(min(step.seconds + 0.1, LOOK_AGAIN))
                case Poll() if await self._is_still_unknown(decision.record):
                    vanished = decision.record.key
                case step:
                    result = await self._collect(decision.record, step)
        if isinstance(result, Refuse):
            raise result.error
        return result

    async def finish(self, record: Record, *, poll_immediately: bool = False) -> LandedImage:
        """Wait for the job of the record in this process, and store its image.

        :param poll_immediately: poll before the first wait, because the job has probably ended.
        """
        while True:
            try:
                return LandedImage.of(
                    await self.collector(record).wait(
                        record,
                        timeout=self.order.timeout,
                        poll_interval=self.order.poll_interval,
                        poll_immediately=poll_immediately,
                    )
                )
            except VanishedError as error:
                # Noted on the record, so that `jobs list` shows the unknown outcome too.
                await self.collector(record).note(record, error)
                result = await self.start(vanished=record.key)
            if isinstance(result, LandedImage):
                return result
            record, poll_immediately = result.record, False

    def collector(self, record: Record) -> JobCollector:
        """The collector for `record`. It gets the prompt only if the record has the same prompt."""
        request = self.order.request
        known = isinstance(request, CheckedRequest) and prompt_sha256(request.prompt) == record.prompt_sha256
        return JobCollector(
            self.writer, prompt=request.prompt if known and isinstance(request, CheckedRequest) else None
        )

    async def resume(self, job_id: str) -> LandedImage:
        """Collect the job that a trigger waited for, even if its record is missing.

        :param job_id: from the event of the trigger.
        """
        async with self.history.reading(Billed.YES):
            found = await asyncio.to_thread(self.ledger.latest, self.order.item)
            known = await asyncio.to_thread(self.history.record_of, job_id)
        if known is not None and known.state == "submitted":
            return await self.finish(known, poll_immediately=True)
        if found is not None and (known is not None or found.record.state != "intent"):
            result = await self.start()
            return result if isinstance(result, LandedImage) else await self.finish(result.record)
        other = await asyncio.to_thread(owner, self.ledger, self.order.connection.gateway, job_id)
        if other is not None and folder_of(other) != self.order.item.path:
            raise another_records_job(job_id, other, found.record.key if found else self.order.item.path)
        self.log.error(
            "Job %s is not in the ledger under %s (%s); storing its image by the event of the trigger.",
            job_id, self.ledger.store.uri, "its record is an intent" if found else "there is no record",
        )  # fmt: skip
        record = found.record if found is not None else await self._record(Submit(1, ""), "", 0.0)
        submitted = replace(record, state="submitted", job_id=job_id, submitted_at=time.time())
        if found is None:
            await asyncio.to_thread(self.ledger.create, submitted)
        return await self.finish(submitted, poll_immediately=True)

    def _log_wait(self, record: Record, step: WaitForRecord) -> None:
        if self._wait_logged:
            return
        self._wait_logged = True
        self.log.warning(
            "Another attempt (host %s, process %s) may still be sending the request of record %s; waiting up to %.0f s "
            "for its answer.",
            record.host, record.pid, record.key, step.seconds,
        )  # fmt: skip

    async def _is_still_unknown(self, record: Record) -> bool:
        """Whether a sensor noted that the gateway does not know the job, and the gateway still does not know it."""
        if isinstance(record.error, OutcomeUnknownError):
            with contextlib.suppress(GeminiImageError):
                return (await self.collector(record).poll(record)).state is JobState.VANISHED
        return False

    # Paid earlier

    async def _collect(
        self, record: Record, step: Poll | Fetch | Reuse | Copy | Refetch | Refuse
    ) -> LandedImage | JobInFlight | Refuse:
        collector = self.collector(record)
        match step:
            case Refuse():
                return step
            case Poll(destination):
                record = await self._moved(record, destination)
                self.log.info("Job %s was submitted earlier (record %s); collecting it.", record.job_id, record.key)
                await collector.check_account(record)
                await self.submission.own(record)  # the submitting attempt may have died before it noted this
                return JobInFlight(record)
            case Fetch(destination):
                await self.submission.own(record)
                return LandedImage.of(await collector.fetch(await self._moved(record, destination)))
            case Copy():
                self.log.info("The image of record %s has landed earlier; copying it, at no cost.", record.key)
                manifest = await copy_to(self.writer, record, self.order.destination, self.order.avoid)
                await self.history.record_decision(record)
                return LandedImage(record, {**manifest, "reused": True})
            case Reuse():
                await self.history.record_decision(record, plain=True)
                self.log.info("The image of record %s has landed earlier; returning it, at no cost.", record.key)
                manifest = await reused_manifest(self.writer, record, self.order.destination)
                return LandedImage(record, {**manifest, "reused": True})
            case Refetch(destination):
                if destination is not None:
                    record = await moved_to(self.writer, record, destination, self.order.avoid)
                await self.history.record_decision(record)
                return LandedImage.of(
                    await self.sharing.restore(record, self.writer) or await collector.refetch(record)
                )

    async def _moved(self, record: Record, destination: Destination | None) -> Record:
        """The record of a paid image that has not landed, moved to the destination of a Clear, if any."""
        if destination is not None:
            with paid():
                suffix = await self._reserve(record.n, moves=True)
                record = await self.collector(record).move(record, destination, suffix)
        await self.history.record_decision(record)
        return record

    # Submitting

    async def _obtain_or_pause(self, step: Submit, give_up: float) -> LandedImage | JobInFlight | LookAgain | Refuse:
        """Obtain the image; after a temporary failure without cost, pause and decide again."""
        try:
            return await self._obtain(step)
        except (NotSentError, RateLimitedError) as error:
            await self._pause_before_resending(error, give_up)
            return LookAgain()

    async def _obtain(self, step: Submit) -> LandedImage | JobInFlight | LookAgain | Refuse:
        """Buy the image, unless another task of the DAG has it or is making it."""
        if self.order.policy.reuse == "task":
            return await self._submit(step)
        self.guard.check()
        fingerprint, memory = await self.history.fingerprint(), self.purchase_context.memory
        async with memory.acquire(empty=True) as allocation:
            decision = await self.sharing.look(step, fingerprint, allocation)
            if isinstance(decision, CopyFrom):
                return await self._copy_from(step, decision)
        if isinstance(decision, Claim):
            return await self._submit(decision.step, decision)
        if isinstance(decision, WaitForRecord):
            await asyncio.sleep(min(decision.seconds + 0.1, LOOK_AGAIN))
            return LookAgain()
        return decision

    async def _copy_from(self, step: Submit, copy: CopyFrom) -> LandedImage | LookAgain:
        """Copy what another task has, unless another attempt is first."""
        wanted = copy_of(await self._record(step, await self._reserve(step.n, copy.sha256), 0.0), copy.source)
        landed = await self.sharing.copy(wanted, copy, self.writer)
        return LookAgain() if landed is None else LandedImage.of(landed)

    async def _reserve(self, n: int, digest: str | None = None, *, moves: bool = False) -> str:
        order = self.order
        fields = order.request.fields() if isinstance(order.request, CheckedRequest) else {}
        size = IMAGE_BYTES.get(str(fields.get("resolution")), IMAGE_BYTES["1K"])
        item, to, files, avoid = order.item.path, order.destination, self.purchase_context.files, order.avoid
        return await asyncio.to_thread(
            lambda: reserve_name(self.ledger, files, item, to, n, digest, size, moves=moves, avoid=avoid)
        )

    async def _submit(self, step: Submit, claim: Claim | None = None) -> LandedImage | JobInFlight | LookAgain | Refuse:
        """Claim and send, unless another attempt is first.

        :param claim: claims the index entry of the image too; given with ``reuse="dag"``.
        """
        self.guard.check()
        request, connection = self.order.checked(), self.order.connection
        price = price_of(request, connection, self.order.max_cost)
        self.purchase_context.budgets.refuse_over(self.order.max_cost, price, connection)
        await self.purchase_context.check_root(step.n)
        self.log.info("Sending paid request %s (record %s): %s.", step.n, record_key(self.order.item, step.n), step.why)
        transport = await self.purchase_context.connect(connection.conn_id)
        reserved = self.purchase_context.budgets.reserved(connection, self.order.item, price, self.order.max_cost)
        # All waiting comes before the claim: a process that dies with a claim leaves an unknown outcome.
        async with self.turn() as starting:
            if isinstance(starting, Refuse):
                return starting
            async with self._sending(transport, step, shared=claim is not None) as (call, release):
                wanted = await self._record(step, await self._reserve(step.n), call.read_timeout)
                if claim is not None:
                    await self.sharing.log_changes(step, wanted)
                try:
                    async with reserved as reservation, transport.turn(call):
                        starting()
                        result = await self.submission.submit(
                            wanted, lambda: reservation.spend(transport.send(call, has_turn=True, sent=release)), claim
                        )
                except GeminiImageError as error:
                    transport.uploads.forget(self.history.inputs or (), error)
                    # After the failure is on record, so that an attempt that dies here leaves no intent.
                    explained = await transport.explain(error, request.operation)
                    if explained is not error:
                        await self.collector(wanted).note(replace(wanted, state="failed"), explained)
                    raise explained from error.__cause__
        return result if isinstance(result, LookAgain) else await self._after_answer(result.record, result.status)

    @contextlib.asynccontextmanager
    async def _sending(
        self, transport: Transport, step: Submit, *, shared: bool
    ) -> AsyncIterator[tuple[Call[JobStatus], Callable[[], None]]]:
        """The paid call with its input images, and a function that releases their memory once they are sent.

        :param shared: the index of the DAG was read with the hashes of the input images, so they must be unchanged.
        """
        request, memory = self.order.checked(), self.purchase_context.memory
        await memory.wait_below_limit()
        async with memory.acquire(empty=True) as allocation:
            images = await read_inputs(request, self.purchase_context.files, allocation)
            self.history.know(tuple(image.sha256 for image in images), unchanged=shared)
            if step.replaces is not None:
                self.history.log_differences(step.replaces, "the new request is sent", self.history.inputs)
            handles = await handles_of(images, transport, allocation, prompt=request.prompt)
            await allocation.hold(2 * allocation.taken)  # the JSON text, and its bytes
            submit = transport.gateway.submit  # without images, the call is a small text
            call = await asyncio.to_thread(submit, request, handles) if handles else submit(request, handles)
            del handles
            allocation.resize(allocation.taken // 2)
            if not allocation.taken:
                allocation.release()
            yield call, allocation.release

    async def _after_answer(self, record: Record, status: JobStatus) -> LandedImage | JobInFlight:
        try:
            if status.state is not JobState.DONE:
                return JobInFlight(record)
            return LandedImage.of(await self.collector(record).land_answer(record, status))
        finally:  # what could not be stored is stored by the next attempt, if it is on record
            await self.submission.wait_until_recorded()

    async def _record(self, step: Submit, suffix: str, read_timeout: float) -> Record:
        order, request, connection = self.order, self.order.checked(), self.order.connection
        digests = self.history.inputs or order.input_sha256 or await self.history.input_digests_now()
        return Record(
            key=record_key(order.item, step.n),
            n=step.n,
            state="intent",
            claim=new_claim(),
            generation=order.policy.generation,
            **process_identity(),
            answer_within=read_timeout + ANSWER_MARGIN,
            conn_id=connection.conn_id,
            api_host=connection.api_host,
            key_digest=connection.key_digest,
            gateway=request.gateway,
            model=request.model,
            wire_model=request.row.wire_model,
            operation=request.operation,
            fingerprint=await self.history.fingerprint(),
            request_fields=request.fields(),
            prompt_sha256=prompt_sha256(request.prompt),
            prompt=request.prompt if order.record_prompts else None,
            inputs=[
                {"uri": public_uri(uri), "sha256": digest}
                for uri, digest in zip(request.input_images, digests, strict=True)
            ],
            destination=order.destination,
            suffix=suffix,
            cost=asdict(estimate(request, connection)),
            expected_seconds=request.row.expected(request.resolution),
            resubmission=step.resubmission,
            regenerate=step.regenerate,
            told=await self.history.token(),
        )

    async def _pause_before_resending(self, error: GeminiImageError, give_up: float) -> None:
        seconds = error.retry_after if error.retry_after is not None else random.uniform(2.0, 6.0)
        give_up = self._until if isinstance(error, NoTurnError) else give_up  # other tasks use the account
        if self.guard.stopped or error.billed is not Billed.NO or time.monotonic() + seconds > give_up:
            raise error
        self.log.warning("%s Sending it again in %.0f s. It is known to be unpaid.", error.message, seconds)
        await asyncio.sleep(seconds)
