"""One picture's life: what an attempt finds, and what it does about it.

What must stay true: what the ledger says comes first; what was paid for is collected, and not bought beside it; where
the ledger can't be read, no error says that nothing was paid.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
from airflow_provider_geminiimg.core.gateways.base import Call, JobState, JobStatus
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.budget import price_of
from airflow_provider_geminiimg.core.ledger.file_names import IMAGE_BYTES, reserve_name
from airflow_provider_geminiimg.core.ledger.job_index import another_records_job, owner
from airflow_provider_geminiimg.core.ledger.layout import folder_of, record_key
from airflow_provider_geminiimg.core.ledger.manifest import estimate
from airflow_provider_geminiimg.core.ledger.records import Record, StoredRecord, new_claim, process_identity
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.copying import copy_to, find_image, moved_to, reused_manifest
from airflow_provider_geminiimg.core.purchase.decision import (
    Asked,
    Copy,
    Fetch,
    PictureState,
    Policy,
    Poll,
    Refetch,
    Refuse,
    Reuse,
    Step,
    Submit,
    WaitForRecord,
    decide,
    is_cleared,
)
from airflow_provider_geminiimg.core.purchase.inputs import handles_of, input_digests, public_uri, read_inputs
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter, paid
from airflow_provider_geminiimg.core.purchase.order import Marker, Order, differences
from airflow_provider_geminiimg.core.purchase.sharing import Buy, DagReuse, copy_of
from airflow_provider_geminiimg.core.purchase.submission import ANSWER_MARGIN, Submission
from airflow_provider_geminiimg.core.purchase.task_state import is_of_earlier_run, look, refuse_if_lost, remember
from airflow_provider_geminiimg.core.purchase.waiting import JobCollector, VanishedError
from airflow_provider_geminiimg.core.request import CheckedRequest, prompt_sha256
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    StorageError,
)

RESEND_SECONDS = 120.0  # how long one attempt goes on resending what is known to be unpaid
LOOK_AGAIN = 2.0  # seconds between looks at a record that another attempt is working on


@contextlib.asynccontextmanager
async def _alone() -> AsyncIterator[Callable[[], None]]:
    yield lambda: None


class Purchase:
    """One attempt at one picture.

    :param order: what is asked for.
    :param purchase_context: what it needs from outside.
    :param guard: whether this process may still pay.
    :param marker: the task state store's memory, where there is one.
    :param turn: makes what is entered from the reading of the inputs to the answer, where many pictures share one
        account. It brings what is called once the request may be sent. What it raises on being entered ends the attempt
        before anything was claimed.
    """

    def __init__(
        self,
        order: Order,
        purchase_context: PurchaseContext,
        guard: SubmitGuard,
        marker: Marker | None,
        turn: Callable[[], contextlib.AbstractAsyncContextManager[Callable[[], None]]] = _alone,
    ) -> None:
        self.order = order
        self.purchase_context = purchase_context
        self.guard = guard
        self.marker = marker
        self.turn = turn
        self.ledger = purchase_context.ledger
        self.log = purchase_context.log
        self.writer = ImageWriter(purchase_context, generation=order.policy.generation, guard=guard)
        self.sharing = DagReuse(order, purchase_context, marker)
        self.payment = Submission(order, purchase_context, guard, marker)
        self._inputs: tuple[str, ...] | None = None  # SHA-256 of each
        self._told: set[tuple[str, str]] = set()
        self._recorded: set[str] = set()
        self._unsettled: StoredRecord | None = None  # the last record, where what a Clear has come to is not on it yet

    async def start(self, vanished: str | None = None) -> tuple[Record, dict[str, Any] | None]:
        """Do what the ledger says, until a picture has landed or a job has to be waited for.

        :param vanished: key of a submitted record whose job the gateway does not know any more.
        :returns: the record, and the manifest if the picture is there (``None``: wait for the record's job).
        """
        async with self._reading():
            await asyncio.to_thread(self.ledger.store.probe)
        give_up = time.monotonic() + RESEND_SECONDS
        told = False
        while True:
            async with self._reading():
                latest = await look(self.ledger, self.order.item, self.marker)
                found, step = await self._decide(latest, vanished)
            if isinstance(step, Submit):
                try:
                    done = await self._obtain(step)
                except (NotSentError, RateLimitedError) as error:
                    await self._pause_before_resending(error, give_up)
                    continue
                if done is not None:
                    return done
            elif isinstance(step, WaitForRecord):
                if not told and found is not None:
                    self._tell_wait(found, step)
                told = True
                await asyncio.sleep(min(step.seconds + 0.1, LOOK_AGAIN))
            else:
                assert found is not None
                if isinstance(step, Poll) and await self._is_still_unknown(found.record):
                    vanished = found.record.key
                    continue
                return await self._collect(found.record, step)

    async def finish(self, record: Record, *, at_once: bool = False) -> tuple[Record, dict[str, Any]]:
        """Wait for the record's job here, and land it.

        :param at_once: poll now, because something says that the job has ended.
        """
        while True:
            try:
                landed = await self.collector(record).wait(
                    record, timeout=self.order.timeout, poll_interval=self.order.poll_interval, at_once=at_once
                )
            except VanishedError as error:
                # Noted, so that whoever looks at the ledger alone sees an unknown outcome too.
                await self.collector(record).note(record, error)
                record, manifest = await self.start(vanished=record.key)
                if manifest is not None:
                    return record, manifest
                at_once = False
            else:
                return landed, dict(landed.manifest or {})

    def collector(self, record: Record) -> JobCollector:
        """What lands `record`. It knows the prompt only if it is the recorded one."""
        request = self.order.request
        known = isinstance(request, CheckedRequest) and prompt_sha256(request.prompt) == record.prompt_sha256
        return JobCollector(
            self.writer, prompt=request.prompt if known and isinstance(request, CheckedRequest) else None
        )

    async def resume(self, job_id: str) -> tuple[Record, dict[str, Any]]:
        """Collect a job that a trigger waited for, also where the ledger does not know it.

        :param job_id: what the trigger's event says.
        """
        async with self._reading(Billed.YES):
            found = await asyncio.to_thread(self.ledger.latest, self.order.item)
            known = await asyncio.to_thread(self._record_of, job_id)
        if known is not None and known.state == "submitted":
            return await self.finish(known, at_once=True)
        if found is not None and (known is not None or found.record.state != "intent"):
            record, manifest = await self.start()
            return (record, manifest) if manifest is not None else await self.finish(record)
        other = await asyncio.to_thread(owner, self.ledger, self.order.connection.gateway, job_id)
        if other is not None and folder_of(other) != self.order.item.path:
            raise another_records_job(job_id, other, found.record.key if found else self.order.item.path)
        self.log.error(
            "Job %s is not in the ledger under %s (%s); landing it all the same, from the trigger's event.",
            job_id, self.ledger.store.uri, "its record is an intent" if found else "there is no record",
        )  # fmt: skip
        record = found.record if found is not None else await self._record(Submit(1, ""), "", 0.0)
        submitted = replace(record, state="submitted", job_id=job_id, submitted_at=time.time())
        if found is None:
            await asyncio.to_thread(self.ledger.create, submitted)
        return await self.finish(submitted, at_once=True)

    # What is known

    @contextlib.asynccontextmanager
    async def _reading(self, billed: Billed = Billed.UNKNOWN) -> AsyncIterator[None]:
        """A ledger that can't be read does not say what earlier attempts paid; so neither does the error."""
        try:
            yield
        except StorageError as error:
            if billed is Billed.YES or self.marker is None or await asyncio.to_thread(self.marker.get) is not None:
                error.billed = billed
            raise

    def _record_of(self, job_id: str) -> Record | None:
        """The record of a job; after a Clear it may not be the latest."""
        item = self.order.item
        records = (self.ledger.read(record_key(item, n)) for n in reversed(self.ledger.numbers(item)))
        return next((found.record for found in records if found is not None and found.record.job_id == job_id), None)

    async def _decide(self, latest: StoredRecord | None, vanished: str | None) -> tuple[StoredRecord | None, Step]:
        """What to do, and the record that says so: an older one, where only that asks for what would be bought."""
        if latest is None:
            return None, decide(None, self.order.policy)
        record, asked = latest.record, None
        await self._learn(record)
        policy = replace(self.order.policy, anew=await is_of_earlier_run(record, self.marker))
        cleared = is_cleared(record, policy)
        if cleared:
            asked = Asked(await self._fingerprint(record), self.order.destination)
        else:
            self._tell_differences(record, "the recorded request is used all the same")
        found = latest if cleared else await self._decided_by(latest)
        step = await self._step(found, _as_of(found, record, policy), asked, vanished)
        if isinstance(step, Submit):
            await refuse_if_lost(self.ledger, self.order.item, record, self.marker)
            found, step = await self._ask_older(latest, replace(step, n=record.n + 1), cleared, vanished)
        self._unsettled = latest if cleared and not isinstance(step, Submit) else None
        if policy.anew:
            self.log.info("Record %s is of an earlier DAG run with this id.", record.key)
            if isinstance(step, Refuse | WaitForRecord):
                await self._settle(found.record)
        return found, step

    async def _decided_by(self, latest: StoredRecord) -> StoredRecord:
        """The record that a Clear of this generation came back to."""
        number = latest.record.decided_by
        if number is None:
            return latest
        return await asyncio.to_thread(self.ledger.read, record_key(self.order.item, number)) or latest

    async def _step(self, found: StoredRecord, policy: Policy, asked: Asked | None, vanished: str | None) -> Step:
        record = found.record
        picture: PictureState | None = None
        if record.state == "landed":
            picture, _ = await find_image(self.purchase_context.files, record, self.order.destination)
        return decide(found, policy, asked, picture=picture, vanished=record.key == vanished)

    async def _ask_older(
        self, latest: StoredRecord, step: Submit, cleared: bool, vanished: str | None
    ) -> tuple[StoredRecord, Step]:
        """Ask the older records for what would be bought: the newest one of the same fingerprint decides as if it were
        the last one."""
        record = latest.record
        if record.n == 1 or (self.order.fingerprint is None and isinstance(self.order.request, GeminiImageError)):
            return latest, step
        older = await self._older(record.n)
        if older is None or (record.fingerprint == older.record.fingerprint and _settles(record, older.record)):
            return latest, step
        policy = replace(self.order.policy, on_clear="regenerate" if step.regenerate else "reuse")
        policy = replace(policy, anew=True) if cleared or step.regenerate else _as_of(older, record, policy)
        asked = Asked(older.record.fingerprint, self.order.destination)
        said = await self._step(older, policy, asked, vanished)
        if isinstance(said, Submit):
            again = step.resubmission or said.resubmission
            return latest, replace(step, why=f"{step.why}; {said.why}", resubmission=again)
        self.log.info("Record %s asked for what this attempt asks for.", older.record.key)
        return older, said

    async def _older(self, below: int) -> StoredRecord | None:
        """The newest record of this item below a number that asked for what is asked for now."""
        numbers = await asyncio.to_thread(self.ledger.numbers, self.order.item)
        for n in reversed([n for n in numbers if n < below]):
            found = await asyncio.to_thread(self.ledger.read, record_key(self.order.item, n))
            if found is not None and found.record.fingerprint == await self._fingerprint(found.record):
                return found
        return None

    async def _settle(self, record: Record, *, plain: bool = False) -> None:
        """Write down on the last record what a Clear has come to: a retry of it does the same, the next Clear is seen.

        :param record: the one that decided.
        :param plain: nothing was done that a retry could do otherwise.
        """
        latest, self._unsettled = self._unsettled, None
        if latest is None:
            return
        older = record.key != latest.record.key
        if plain and not older and latest.record.told == await self._token() and self.order.fingerprint is not None:
            return  # in a batch a retry asks for the same, and so need not be told
        changed: dict[str, Any] = {
            "generation": self.order.policy.generation,
            "told": await self._token(),
            "decided_by": record.n if older else None,
        }
        await asyncio.to_thread(self.ledger.change, latest.record.key, lambda stored: replace(stored, **changed))
        await remember(self.marker, latest.record)

    async def _input_digests(self) -> tuple[str, ...]:
        if self._inputs is None:
            self._know(
                await input_digests(self.order.checked(), self.purchase_context.files, self.purchase_context.room)
            )
        assert self._inputs is not None
        return self._inputs

    def _know(self, digests: tuple[str, ...], *, settled: bool = False) -> None:
        """Keep what the inputs are now.

        :param settled: they must be what they were when they were read before.
        """
        if any(known not in (None, digests) for known in (self.order.input_sha256, self._inputs if settled else None)):
            raise BadRequestError(
                "An input picture is another one than when this was planned.",
                hint="Put it back and let the task retry; or clear the task, which plans anew.",
            )
        self._inputs = digests

    async def _fingerprint(self, paid: Record | None = None) -> str:
        """The fingerprint of what is asked for now.

        :param paid: what it is compared with, has landed or may still have to be collected. Its inputs may be gone for
            good, which must not keep its picture from the task: under the same address they are taken to be what they
            were.
            Another host of the connection alone does not ask for another picture.
        """
        if self.order.fingerprint is not None:
            return self.order.fingerprint
        request = self.order.checked()
        digests: Sequence[str]
        try:
            digests = self.order.input_sha256 or await self._input_digests()
        except BadRequestError as error:
            same = paid and [known["uri"] for known in paid.inputs] == [public_uri(uri) for uri in request.input_images]
            if paid is None or not same:  # what is submitted in the end reads them again
                raise
            self.log.warning("An input can't be read any more, and is taken to be as it was: %s", error.message)
            digests = [known["sha256"] for known in paid.inputs]
        host = paid and paid.api_host and urlsplit(f"//{paid.api_host}").hostname
        known = request.fingerprints(
            input_sha256=digests,
            base_url_host=host or urlsplit(self.order.connection.base_url).hostname or "",
            conn_id=self.order.connection.conn_id,
        )
        return next((each for each in known if each in self._recorded), known[0])

    async def _learn(self, latest: Record) -> None:
        """By which fingerprints this item's pictures are known: earlier versions told the ids of one model apart."""
        if latest.fingerprint in self._recorded:
            return
        numbers = [n for n in await asyncio.to_thread(self.ledger.numbers, self.order.item) if n < latest.n]
        older = [await asyncio.to_thread(self.ledger.read, record_key(self.order.item, n)) for n in numbers]
        self._recorded = {latest.fingerprint, *(found.record.fingerprint for found in older if found is not None)}

    def _tell_differences(self, record: Record, consequence: str, input_sha256: Sequence[str] | None = None) -> None:
        changed = differences(record, self.order, input_sha256)
        if changed and (record.key, consequence) not in self._told:
            self._told.add((record.key, consequence))
            self.log.warning("Since record %s changed: %s; %s.", record.key, ", ".join(changed), consequence)

    def _tell_wait(self, found: StoredRecord, step: WaitForRecord) -> None:
        self.log.warning(
            "Another attempt (host %s, process %s) may still be sending the request of record %s; waiting up to %.0f s "
            "for its answer.",
            found.record.host, found.record.pid, found.record.key, step.seconds,
        )  # fmt: skip

    async def _is_still_unknown(self, record: Record) -> bool:
        """Whether a sensor noted that the gateway does not know the job, and the gateway still says so."""
        if not isinstance(record.error, OutcomeUnknownError):
            return False
        try:
            return (await self.collector(record).poll(record)).state is JobState.VANISHED
        except GeminiImageError:
            return False

    # What was paid for before

    async def _collect(self, record: Record, step: Step) -> tuple[Record, dict[str, Any] | None]:
        collector = self.collector(record)
        if isinstance(step, Refuse):
            raise step.error
        if isinstance(step, Poll | Fetch) and step.destination is not None:
            with paid():
                record = await collector.move(record, step.destination, await self._reserve(record.n, moves=True))
        if isinstance(step, Poll | Fetch):
            await self._settle(record)
        if isinstance(step, Poll):
            self.log.info("Job %s was submitted before (record %s); collecting it.", record.job_id, record.key)
            await collector.check_account(record)
            await self.payment.own(record)  # whoever submitted it may have died before that was noted
            return record, None
        if isinstance(step, Copy):
            self.log.info("The picture of record %s has landed before; copying it, at no cost.", record.key)
            manifest = await copy_to(self.writer, record, self.order.destination)
            await self._settle(record)
            return record, {**manifest, "reused": True}
        if isinstance(step, Reuse):
            await self._settle(record, plain=True)
            self.log.info("The picture of record %s has landed before; returning it, at no cost.", record.key)
            return record, {**await reused_manifest(self.writer, record, self.order.destination), "reused": True}
        if isinstance(step, Refetch) and step.destination is not None:
            record = await moved_to(self.writer, record, step.destination)
        if isinstance(step, Refetch):
            await self._settle(record)
            landed = await self.sharing.restore(record, self.writer) or await collector.refetch(record)
        else:
            landed = await collector.fetch(record)
        return landed, dict(landed.manifest or {})

    # What costs money

    async def _obtain(self, step: Submit) -> tuple[Record, dict[str, Any] | None] | None:
        """Buy, unless another task of the DAG has the picture or is making it; ``None``: look again."""
        if self.order.policy.reuse == "task":
            return await self._submit(step)
        self.guard.check()
        lot = await self.sharing.look(step, await self._fingerprint())
        if isinstance(lot, Buy):
            return await self._submit(lot.step, lot)
        if isinstance(lot, WaitForRecord):
            await asyncio.sleep(min(lot.seconds + 0.1, LOOK_AGAIN))
            return None
        suffix = await self._reserve(step.n, lot.sha256)
        wanted = copy_of(await self._record(step, suffix, 0.0), lot.source)
        landed = await self.sharing.take(wanted, lot, self.writer)
        return None if landed is None else (landed, dict(landed.manifest or {}))

    async def _reserve(self, n: int, digest: str | None = None, *, moves: bool = False) -> str:
        order = self.order
        fields = order.request.fields() if isinstance(order.request, CheckedRequest) else {}
        size = IMAGE_BYTES.get(str(fields.get("resolution")), IMAGE_BYTES["1K"])
        item, to = order.item.path, order.destination
        return await asyncio.to_thread(
            lambda: reserve_name(self.ledger, self.purchase_context.files, item, to, n, digest, size, moves=moves)
        )

    async def _submit(self, step: Submit, lot: Buy | None = None) -> tuple[Record, dict[str, Any] | None] | None:
        """Claim and send; ``None`` where another attempt was first.

        :param lot: what of the index has to be claimed too, where the picture is one that the DAG has in common.
        """
        self.guard.check()
        request, connection = self.order.checked(), self.order.connection
        price = price_of(request, connection, self.order.max_cost)
        self.purchase_context.budgets.refuse_over(self.order.max_cost, price, connection)
        self.log.info("Submitting number %s of this task's picture: %s.", step.n, step.why)
        transport = await self.purchase_context.connect(connection.conn_id)
        reserved = self.purchase_context.budgets.reserved(
            connection, self.order.item.namespace, price, self.order.max_cost
        )
        # All waiting comes before the claim: a process that dies with a claim leaves an unknown outcome.
        async with self.turn() as asks, self._sending(transport, step, shared=lot is not None) as (call, leave):
            wanted = await self._record(step, await self._reserve(step.n), call.read_timeout)
            if lot is not None:
                await self.sharing.tell_changes(step, wanted)
            try:
                async with reserved as reservation, transport.turn(call):
                    asks()
                    answered = await self.payment.make(
                        wanted, lambda: reservation.spend(transport.send(call, has_turn=True, sent=leave)), lot
                    )
            except GeminiImageError as error:
                # After the failure is on record, so that an attempt that dies here leaves no intent.
                explained = await transport.explain(error, request.operation)
                if explained is not error:
                    await self.collector(wanted).note(replace(wanted, state="failed"), explained)
                raise explained from error.__cause__
        return None if answered is None else await self._after_answer(*answered)

    @contextlib.asynccontextmanager
    async def _sending(
        self, transport: Transport, step: Submit, *, shared: bool
    ) -> AsyncIterator[tuple[Call[JobStatus], Callable[[], None]]]:
        """The paid call, with its inputs in it, and what is called once they are on their way: then their memory is
        others'.

        :param shared: the picture is one that the DAG has in common, which was looked for by its inputs.
        """
        request, room = self.order.checked(), self.purchase_context.room
        await room.relief()
        async with room.share(empty=True) as share:
            images = await read_inputs(request, self.purchase_context.files, share)
            self._know(tuple(image.sha256 for image in images), settled=shared)
            if step.replaces is not None:
                self._tell_differences(step.replaces, "submitting what is asked for now", self._inputs)
            handles = await handles_of(images, transport, share, prompt=request.prompt)
            await share.hold(2 * share.taken)  # the JSON of them, and its bytes
            call = await asyncio.to_thread(transport.gateway.submit, request, handles)
            del handles
            share.only(share.taken // 2)
            if not share.taken:
                share.leave()
            yield call, share.leave

    async def _after_answer(self, record: Record, status: JobStatus) -> tuple[Record, dict[str, Any] | None]:
        if status.state is not JobState.DONE:
            await self.payment.wait_until_recorded()
            return record, None
        landed = await self.collector(record).land_answer(record, status)
        return landed, dict(landed.manifest or {})

    async def _record(self, step: Submit, suffix: str, read_timeout: float) -> Record:
        order, request = self.order, self.order.checked()
        connection = order.connection
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
            fingerprint=await self._fingerprint(),
            request_fields=request.fields(),
            prompt_sha256=prompt_sha256(request.prompt),
            prompt=request.prompt if order.record_prompts else None,
            inputs=[
                {"uri": public_uri(uri), "sha256": digest}
                for uri, digest in zip(request.input_images, await self._input_digests(), strict=True)
            ],
            destination=order.destination,
            suffix=suffix,
            cost=dataclasses.asdict(estimate(request, connection)),
            expected_seconds=request.row.expected(request.resolution),
            resubmission=step.resubmission,
            regenerate=step.regenerate,
            told=await self._token(),
        )

    async def _token(self) -> str | None:
        return None if self.marker is None else await asyncio.to_thread(self.marker.token)

    async def _pause_before_resending(self, error: GeminiImageError, give_up: float) -> None:
        seconds = error.retry_after if error.retry_after is not None else random.uniform(2.0, 6.0)
        if self.guard.stopped or error.billed is not Billed.NO or time.monotonic() + seconds > give_up:
            raise error
        self.log.warning("%s Sending it again in %.0f s: it is known to be unpaid.", error.message, seconds)
        await asyncio.sleep(seconds)


def _as_of(found: StoredRecord, latest: Record, policy: Policy) -> Policy:
    """How a retry looks at an older record: as at the last one."""
    return policy if found.record.key == latest.key else replace(policy, generation=found.record.generation)


def _settles(latest: Record, older: Record) -> bool:
    """Whether a later record of the same request has settled what an older one left open, or a person's word about the
    later one is still to be done."""
    unknown = latest.state == "intent" or latest.buy_again or isinstance(latest.error, OutcomeUnknownError)
    return unknown or older.state in ("intent", "failed")
