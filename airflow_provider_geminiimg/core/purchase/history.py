"""What is known of one image, and decided by it: its records, which of them decides, what a Clear came to, and what the
image is known by.

What must stay true: nothing is bought, landed or waited for here; where the ledger can't be read, no error says that
nothing was paid.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.records import Record, StoredRecord
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
from airflow_provider_geminiimg.core.purchase.task_state import is_of_earlier_run, look, refuse_if_lost, remember
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    OutcomeUnknownError,
    StorageError,
)


@dataclass(frozen=True)
class Decision:
    """What to do, and the record that says so: an older one, where only that asks for what would be bought.

    :param found: ``None`` where there is no record; then the step is a `Submit`.
    """

    step: Step
    found: StoredRecord | None

    @property
    def record(self) -> Record:
        """The record that decided."""
        assert self.found is not None
        return self.found.record


class ImageHistory:
    """What one attempt knows of its image.

    :param order: what is asked for.
    :param purchase_context: what it needs from outside.
    :param marker: the task state store's memory, where there is one.
    """

    def __init__(self, order: Order, purchase_context: PurchaseContext, marker: Marker | None) -> None:
        self.order = order
        self.purchase_context = purchase_context
        self.marker = marker
        self.ledger = purchase_context.ledger
        self.log = purchase_context.log
        self.inputs: tuple[str, ...] | None = None  # SHA-256 of each, once they were read
        self._told: set[tuple[str, str]] = set()
        self._recorded: set[str] = set()
        self._unsettled: StoredRecord | None = None  # the last record, where what a Clear has come to is not on it yet

    @contextlib.asynccontextmanager
    async def reading(self, billed: Billed = Billed.UNKNOWN) -> AsyncIterator[None]:
        """A ledger that can't be read does not say what earlier attempts paid; so neither does the error."""
        try:
            yield
        except StorageError as error:
            if billed is Billed.YES or self.marker is None or await asyncio.to_thread(self.marker.get) is not None:
                raise error.evolve(billed=billed) from error.__cause__
            raise

    def record_of(self, job_id: str) -> Record | None:
        """The record of a job; after a Clear it may not be the latest."""
        item = self.order.item
        records = (self.ledger.read(record_key(item, n)) for n in reversed(self.ledger.numbers(item)))
        return next((found.record for found in records if found is not None and found.record.job_id == job_id), None)

    async def decide(self, vanished: str | None = None) -> Decision:
        """What to do about the image.

        :param vanished: key of a submitted record whose job the gateway does not know any more.
        """
        async with self.reading():
            latest = await look(self.ledger, self.order.item, self.marker)
            return await self.decided(latest, vanished)

    async def decided(self, latest: StoredRecord | None, vanished: str | None = None) -> Decision:
        """What to do where `latest` is the last record."""
        if latest is None:
            return Decision(decide(None, self.order.policy), None)
        record, asked = latest.record, None
        await self._learn(record)
        policy = replace(self.order.policy, anew=await is_of_earlier_run(record, self.marker))
        cleared = is_cleared(record, policy)
        if cleared:
            asked = Asked(await self.fingerprint(record), self.order.destination)
        else:
            self.tell_differences(record, "the recorded request is used all the same")
        found = latest if cleared else await self._decided_by(latest)
        step = await self._step(found, _as_of(found, record, policy), asked, vanished)
        if isinstance(step, Submit):
            await refuse_if_lost(self.ledger, self.order.item, record, self.marker)
            found, step = await self._ask_older(latest, replace(step, n=record.n + 1), cleared, vanished)
        self._unsettled = latest if cleared and not isinstance(step, Submit) else None
        if policy.anew:
            self.log.info("Record %s is of an earlier DAG run with this id.", record.key)
            if isinstance(step, Refuse | WaitForRecord):
                await self.settle(found.record)
        return Decision(step, found)

    async def _decided_by(self, latest: StoredRecord) -> StoredRecord:
        """The record that a Clear of this generation came back to."""
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
            if found is not None and found.record.fingerprint == await self.fingerprint(found.record):
                return found
        return None

    async def settle(self, record: Record, *, plain: bool = False) -> None:
        """Write down on the last record what a Clear has come to: a retry of it does the same, the next Clear is seen.

        :param record: the one that decided.
        :param plain: nothing was done that a retry could do otherwise.
        """
        latest, self._unsettled = self._unsettled, None
        if latest is None:
            return
        older = record.key != latest.record.key
        if plain and not older and latest.record.told == await self.token() and self.order.fingerprint is not None:
            return  # in a batch a retry asks for the same, and so need not be told
        changed: dict[str, Any] = {
            "generation": self.order.policy.generation,
            "told": await self.token(),
            "decided_by": record.n if older else None,
        }
        await asyncio.to_thread(self.ledger.change, latest.record.key, lambda stored: replace(stored, **changed))
        await remember(self.marker, latest.record)

    async def input_digests_now(self) -> tuple[str, ...]:
        if self.inputs is None:
            self.know(
                await input_digests(self.order.checked(), self.purchase_context.files, self.purchase_context.room)
            )
        assert self.inputs is not None
        return self.inputs

    def know(self, digests: tuple[str, ...], *, settled: bool = False) -> None:
        """Keep what the inputs are now.

        :param settled: they must be what they were when they were read before.
        """
        if any(known not in (None, digests) for known in (self.order.input_sha256, self.inputs if settled else None)):
            raise BadRequestError(
                "An input image is another one than when this was planned.",
                hint="Put it back and let the task retry; or clear the task, which plans anew.",
            )
        self.inputs = digests

    async def fingerprint(self, paid: Record | None = None) -> str:
        """The fingerprint of what is asked for now.

        :param paid: what it is compared with, has landed or may still have to be collected. Its inputs may be gone for
            good, which must not keep its image from the task: under the same address they are taken to be what they
            were.
            Another host of the connection alone does not ask for another image.
        """
        if self.order.fingerprint is not None:
            return self.order.fingerprint
        request = self.order.checked()
        digests: Sequence[str]
        try:
            digests = self.order.input_sha256 or await self.input_digests_now()
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
        """By which fingerprints this item's images are known: earlier versions told the ids of one model apart."""
        if latest.fingerprint in self._recorded:
            return
        numbers = [n for n in await asyncio.to_thread(self.ledger.numbers, self.order.item) if n < latest.n]
        older = [await asyncio.to_thread(self.ledger.read, record_key(self.order.item, n)) for n in numbers]
        self._recorded = {latest.fingerprint, *(found.record.fingerprint for found in older if found is not None)}

    def tell_differences(self, record: Record, consequence: str, input_sha256: Sequence[str] | None = None) -> None:
        changed = differences(record, self.order, input_sha256)
        if changed and (record.key, consequence) not in self._told:
            self._told.add((record.key, consequence))
            self.log.warning("Since record %s changed: %s; %s.", record.key, ", ".join(changed), consequence)

    async def token(self) -> str | None:
        return None if self.marker is None else await asyncio.to_thread(self.marker.token)


def _as_of(found: StoredRecord, latest: Record, policy: Policy) -> Policy:
    """How a retry looks at an older record: as at the last one."""
    return policy if found.record.key == latest.key else replace(policy, generation=found.record.generation)


def _settles(latest: Record, older: Record) -> bool:
    """Whether a later record of the same request has settled what an older one left open, or a person's word about the
    later one is still to be done."""
    unknown = latest.state == "intent" or latest.buy_again or isinstance(latest.error, OutcomeUnknownError)
    return unknown or older.state in ("intent", "failed")
