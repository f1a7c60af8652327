"""The records of one image: which of them decides, what a Clear decided, and the fingerprint of the image.

Invariants: nothing is bought, stored or waited for here. If the ledger can't be read, no error says that no money was
spent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import StoredRecord
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.copying import find_image
from airflow_provider_geminiimg.core.purchase.decision import (
    Asked,
    ImageState,
    Policy,
    Refuse,
    Step,
    Submit,
    WaitForRecord,
    decide,
    is_cleared,
)
from airflow_provider_geminiimg.core.purchase.inputs import input_digests, public_uri
from airflow_provider_geminiimg.core.purchase.order import Marker, Order, differences
from airflow_provider_geminiimg.core.purchase.task_state import is_task_state_lost, look, refuse_if_lost, save_marker
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    OutcomeUnknownError,
    StorageError,
)


@dataclass(frozen=True)
class Decision:
    """The next step, and the deciding record: the last one, or an older one with the same request.

    :param found: ``None`` if there is no record; then the step is a `Submit`.
    """

    step: Step
    found: StoredRecord | None

    @property
    def record(self) -> Record:
        """The deciding record."""
        assert self.found is not None
        return self.found.record


class ImageHistory:
    """What one attempt knows of its image.

    :param order: the request of the attempt.
    :param purchase_context: what a purchase needs from outside.
    :param marker: the marker in Airflow's task state store, if there is one.
    """

    def __init__(self, order: Order, purchase_context: PurchaseContext, marker: Marker | None) -> None:
        self.order = order
        self.purchase_context = purchase_context
        self.marker = marker
        self.ledger = purchase_context.ledger
        self.log = purchase_context.log
        self.inputs: tuple[str, ...] | None = None  # SHA-256 of each input image, after reading
        self._logged: set[tuple[str, str]] = set()
        self._recorded: set[str] = set()
        self._unrecorded_clear: StoredRecord | None = (
            None  # the last record, if the decision of a Clear is not yet written to it
        )

    @contextlib.asynccontextmanager
    async def reading(self, billed: Billed = Billed.UNKNOWN) -> AsyncIterator[None]:
        """Set `billed` of storage errors in the block: an unreadable ledger does not say what earlier attempts paid."""
        try:
            yield
        except StorageError as error:
            if billed is Billed.YES or self.marker is None or await asyncio.to_thread(self.marker.get) is not None:
                raise error.evolve(billed=billed) from error.__cause__
            raise

    def record_of(self, job_id: str) -> Record | None:
        """The record of a job, which after a Clear may not be the last one; ``None`` if there is none."""
        item = self.order.item
        records = (self.ledger.read(record_key(item, n)) for n in reversed(self.ledger.numbers(item)))
        return next((found.record for found in records if found is not None and found.record.job_id == job_id), None)

    async def decide(self, vanished: str | None = None) -> Decision:
        """Read the records and decide about the image.

        :param vanished: key of a submitted record whose job the gateway does not know any more.
        """
        async with self.reading():
            latest = await look(self.ledger, self.order.item, self.marker)
            return await self.decided(latest, vanished)

    async def decided(self, latest: StoredRecord | None, vanished: str | None = None) -> Decision:
        """Decide about the image, given its last record."""
        if latest is None:
            return Decision(decide(None, self.order.policy), None)
        record, asked = latest.record, None
        await self._learn(record)
        policy = replace(self.order.policy, task_state_lost=await is_task_state_lost(record, self.marker))
        cleared = is_cleared(record, policy)
        if cleared:
            asked = Asked(await self.fingerprint(record), self.order.destination)
        else:
            self.log_differences(record, "the recorded request is used")
        found = latest if cleared else await self._decided_by(latest)
        step = await self._step(found, _as_of(found, record, policy), asked, vanished)
        if isinstance(step, Submit):
            await refuse_if_lost(self.ledger, self.order.item, record, self.marker)
            found, step = await self._ask_older(latest, replace(step, n=record.n + 1), cleared, vanished)
        self._unrecorded_clear = latest if cleared and not isinstance(step, Submit) else None
        if policy.task_state_lost:
            if policy.generation <= record.generation:  # otherwise a Clear explains it
                self.log.info(
                    "Airflow no longer has the state of the task that wrote record %s: its DAG run was deleted and "
                    "created again, or its loop iteration was created again. This attempt counts as a Clear.",
                    record.key,
                )
            if isinstance(step, Refuse | WaitForRecord):
                await self.record_decision(found.record)
        return Decision(step, found)

    async def _decided_by(self, latest: StoredRecord) -> StoredRecord:
        """The record that decided at the last Clear of this generation."""
        number = latest.record.decided_by
        if number is None:
            return latest
        return await asyncio.to_thread(self.ledger.read, record_key(self.order.item, number)) or latest

    async def _step(self, found: StoredRecord, policy: Policy, asked: Asked | None, vanished: str | None) -> Step:
        record = found.record
        image: ImageState | None = None
        if record.state == "landed":
            image, _ = await find_image(self.purchase_context.files, record, self.order.destination)
        return decide(found, policy, asked, image=image, vanished=record.key == vanished)

    async def _ask_older(
        self, latest: StoredRecord, step: Submit, cleared: bool, vanished: str | None
    ) -> tuple[StoredRecord, Step]:
        """Before buying, decide by the newest older record with the same fingerprint, as if it were the last one."""
        record = latest.record
        if record.n == 1 or (self.order.fingerprint is None and isinstance(self.order.request, GeminiImageError)):
            return latest, step
        older = await self._older(record.n)
        if older is None or (record.fingerprint == older.record.fingerprint and _overrides(record, older.record)):
            return latest, step
        policy = replace(self.order.policy, on_clear="regenerate" if step.regenerate else "reuse")
        policy = replace(policy, task_state_lost=True) if cleared or step.regenerate else _as_of(older, record, policy)
        asked = Asked(older.record.fingerprint, self.order.destination)
        said = await self._step(older, policy, asked, vanished)
        if isinstance(said, Submit):
            again = step.resubmission or said.resubmission
            return latest, replace(step, why=f"{step.why}; {said.why}", resubmission=again)
        self.log.info("Record %s has the same request as this attempt.", older.record.key)
        return older, said

    async def _older(self, below: int) -> StoredRecord | None:
        """The newest record of this item with a number lower than `below` and the same request as now."""
        numbers = await asyncio.to_thread(self.ledger.numbers, self.order.item)
        for n in reversed([n for n in numbers if n < below]):
            found = await asyncio.to_thread(self.ledger.read, record_key(self.order.item, n))
            if found is not None and found.record.fingerprint == await self.fingerprint(found.record):
                return found
        return None

    async def record_decision(self, record: Record, *, plain: bool = False) -> None:
        """Write the decision of a Clear to the last record, so that a retry repeats it and the next Clear is noticed.

        :param record: the deciding record.
        :param plain: a retry would decide in the same way without this note.
        """
        latest, self._unrecorded_clear = self._unrecorded_clear, None
        if latest is None:
            return
        older = record.key != latest.record.key
        if plain and not older and latest.record.told == await self.token() and self.order.fingerprint is not None:
            return  # a retry of a batch has the same request, so it needs no note
        changed: dict[str, Any] = {
            "generation": self.order.policy.generation,
            "told": await self.token(),
            "decided_by": record.n if older else None,
        }
        if latest.record.state == "intent":  # this write must not postpone the deadline of its answer
            changed["answer_within"] = max(0.0, latest.record.answer_within - latest.age)
        await asyncio.to_thread(self.ledger.change, latest.record.key, lambda stored: replace(stored, **changed))
        await save_marker(self.marker, latest.record)

    async def input_digests_now(self) -> tuple[str, ...]:
        if self.inputs is None:
            self.know(
                await input_digests(self.order.checked(), self.purchase_context.files, self.purchase_context.memory)
            )
        assert self.inputs is not None
        return self.inputs

    def know(self, digests: tuple[str, ...], *, unchanged: bool = False) -> None:
        """Keep the hashes of the input images.

        :param unchanged: the images must be unchanged since they were last read.
        :raises BadRequestError: an image differs from the plan, or has changed.
        """
        if any(known not in (None, digests) for known in (self.order.input_sha256, self.inputs if unchanged else None)):
            raise BadRequestError(
                "An input image has changed since the request was planned.",
                hint="Restore the image and let the task retry; or clear the task, which makes a new plan.",
            )
        self.inputs = digests

    async def fingerprint(self, paid: Record | None = None) -> str:
        """The fingerprint of the request now.

        :param paid: a record to compare with. If an input image can't be read any more and its address is unchanged,
            its recorded hash is used, so that the paid image can still be collected. The recorded API host is used,
            because another host alone is not another request.
        :raises GeminiImageError: the request is wrong, or an input image can't be read.
        """
        if self.order.fingerprint is not None:
            return self.order.fingerprint
        request = self.order.checked()
        digests: Sequence[str]
        try:
            digests = self.order.input_sha256 or await self.input_digests_now()
        except BadRequestError as error:
            same = paid and [known["uri"] for known in paid.inputs] == [public_uri(uri) for uri in request.input_images]
            if paid is None or not same:  # a submission reads the input images again
                raise
            self.log.warning("An input image can't be read any more; using its recorded hash: %s", error.message)
            digests = [known["sha256"] for known in paid.inputs]
        host = paid and paid.api_host and urlsplit(f"//{paid.api_host}").hostname
        known = request.fingerprints(
            input_sha256=digests,
            base_url_host=host or urlsplit(self.order.connection.base_url).hostname or "",
            conn_id=self.order.connection.conn_id,
        )
        return next((each for each in known if each in self._recorded), known[0])

    async def _learn(self, latest: Record) -> None:
        """Read the fingerprints of all records of this item: earlier versions had one per id of the same model."""
        if latest.fingerprint in self._recorded:
            return
        numbers = [n for n in await asyncio.to_thread(self.ledger.numbers, self.order.item) if n < latest.n]
        older = [await asyncio.to_thread(self.ledger.read, record_key(self.order.item, n)) for n in numbers]
        self._recorded = {latest.fingerprint, *(found.record.fingerprint for found in older if found is not None)}

    def log_differences(self, record: Record, consequence: str, input_sha256: Sequence[str] | None = None) -> None:
        changed = differences(record, self.order, input_sha256)
        if changed and (record.key, consequence) not in self._logged:
            self._logged.add((record.key, consequence))
            self.log.warning("Changed since record %s: %s; %s.", record.key, ", ".join(changed), consequence)

    async def token(self) -> str | None:
        return None if self.marker is None else await asyncio.to_thread(self.marker.token)


def _as_of(found: StoredRecord, latest: Record, policy: Policy) -> Policy:
    """The options for an older record at a retry: with the generation of that record."""
    return policy if found.record.key == latest.key else replace(policy, generation=found.record.generation)


def _overrides(latest: Record, older: Record) -> bool:
    """Whether a later record of the same request takes precedence over an older one."""
    unknown = latest.state == "intent" or latest.buy_again or isinstance(latest.error, OutcomeUnknownError)
    return unknown or older.state in ("intent", "failed")
