"""Reuse of images between the tasks of one DAG (``reuse="dag"``): copy an image that another task landed, wait for an
image that another task is making, and let only one of several tasks buy.

Invariants:

- A task that buys writes its record's key to the index before it creates the record, and sends only within
  `CLAIM_SECONDS` (`submission`) after that. So an entry whose record does not exist after `ENTRY_SECONDS` is abandoned.
- A copy belongs to its task: its image, sidecar file and record stay when the originals are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from airflow_provider_geminiimg.core.execution.byte_semaphore import Allocation
from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, point_to, read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import folder_of, index_key, record_number, task_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.copying import Intact, land_copy, read_back
from airflow_provider_geminiimg.core.purchase.decision import (
    Submit,
    WaitForRecord,
)
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
from airflow_provider_geminiimg.core.purchase.order import Marker, Order, differences
from airflow_provider_geminiimg.core.purchase.results import LookAgain
from airflow_provider_geminiimg.core.purchase.reuse_decision import CopyFrom, IndexedImage, ReuseDecision, decide_reuse
from airflow_provider_geminiimg.core.purchase.task_state import save_marker
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
)


class DagReuse:
    """Reuse of images of other tasks, for one attempt.

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
        self._logged_wait: str | None = None

    async def look(self, step: Submit, fingerprint: str, allocation: Allocation) -> ReuseDecision | LookAgain:
        """Read the index and decide about an image that this task would buy.

        :param step: the step according to the task's own records.
        :param fingerprint: of the image.
        :param allocation: the memory for the images, where they are read.
        :raises LedgerError: the entry, or the record that it names, can't be read.
        :raises StorageError: the store failed.
        """
        known = await self._known(step, fingerprint, allocation)
        if await self._has_newer(known, step):
            return LookAgain()
        decision = decide_reuse(step, known, self.order.policy, self.order.timeout)
        if isinstance(decision, WaitForRecord) and known.entry is not None:
            self._log_wait(known.entry.record, decision)
        return decision

    async def _has_newer(self, known: IndexedImage, step: Submit) -> bool:
        """Whether the index names a record of this item that is newer than those that the step was decided by.

        They may have been listed a while ago. A claim in the index must not replace the newer record.
        """
        if known.entry is None or not known.own or (record_number(known.entry.record.rpartition("/")[2]) or 0) < step.n:
            return False
        return await asyncio.to_thread(self.ledger.read, known.entry.record) is not None

    async def _known(self, step: Submit, fingerprint: str, allocation: Allocation) -> IndexedImage:
        """What the index and the records of other tasks say about the image."""
        item = self.order.item
        entry = await asyncio.to_thread(read_entry, self.ledger.store, index_key(item.path, fingerprint))
        known = IndexedImage(entry, own=entry is not None and folder_of(entry.record) == item.path)
        if entry is None or known.own or step.regenerate:
            return known
        found = await asyncio.to_thread(_with_fingerprint, self.ledger, entry.record, fingerprint)
        if found is None:
            return known
        if found.record.state == "landed":
            intact, images = await read_back(self.purchase_context.files, found.record, allocation)
            known = replace(known, found=found, intact=intact, images=images)
        else:
            submitted = found.record.submitted_at or found.record.claimed_at
            known = replace(known, found=found, waited=time.time() - submitted)
        if not _is_to_be_bought(found.record, known.intact):
            return known
        return await self._earlier(known, entry, found, allocation)

    async def is_anothers(self, fingerprint: str) -> bool:
        """Whether the index names a record of another task or run for the image.

        :raises LedgerError: the entry can't be read.
        :raises StorageError: the store failed.
        """
        item = self.order.item
        entry = await asyncio.to_thread(read_entry, self.ledger.store, index_key(item.path, fingerprint))
        return entry is not None and folder_of(entry.record) != item.path

    async def _earlier(
        self, known: IndexedImage, entry: Entry, found: StoredRecord, allocation: Allocation
    ) -> IndexedImage:
        """Search earlier records of the image, if the record in the index has no image.

        The index then names the earlier record, so that the copy of it is found later. The entry of a failed purchase
        stays, because its task still uses it.

        :raises LedgerError: a record can't be read.
        """
        unknown: Record | None = None
        for record in await asyncio.to_thread(lambda: list(earlier_holders(self.ledger, found.record))):
            state, images = await read_back(self.purchase_context.files, record, allocation)
            if state == "there":
                if found.record.state == "landed":
                    index = index_key(self.order.item.path, record.fingerprint)
                    await asyncio.to_thread(write_entry, self.ledger.store, index, record, entry)
                return replace(known, found=replace(found, record=record), intact=state, images=images)
            unknown = record if state == "unknown" and unknown is None else unknown
        if unknown is None:
            return known
        return replace(known, found=replace(found, record=unknown), intact="unknown", images=())

    async def copy(self, wanted: Record, other: CopyFrom, writer: ImageWriter) -> Record | None:
        """Copy the image of another task to the destination of `wanted`; ``None`` if another attempt was first.

        :raises StorageError: the bucket or the disk failed.
        """
        if await asyncio.to_thread(self.ledger.create, wanted) is None:
            return None
        self.log.info("Record %s has landed the same image; copying it, at no cost.", other.source.key)
        await save_marker(self.marker, wanted)
        await self._last_request(wanted)
        return await land_copy(writer, wanted, other.source, other.images)

    async def restore(self, record: Record, writer: ImageWriter) -> Record | None:
        """Store an image again that is gone from all its places, from a copy of another task of the DAG.

        :param record: a ``landed`` record.
        :returns: the record as it is stored now; ``None`` if no other task has the image.
        """
        starts = [record]
        with contextlib.suppress(GeminiImageError):  # if a record can't be read, the gateway is polled instead
            if self.order.policy.reuse == "dag":
                index = index_key(record.key, record.fingerprint)
                entry = await asyncio.to_thread(read_entry, self.ledger.store, index)
                found = None if entry is None else await asyncio.to_thread(self.ledger.read, entry.record)
                starts += [] if found is None else [found.record]
            for source in await asyncio.to_thread(
                lambda: [each for start in starts for each in _lineage(self.ledger, start)]
            ):
                if source.key == record.key or _digests(source) != _digests(record):
                    continue
                async with self.purchase_context.memory.acquire(empty=True) as allocation:
                    intact, images = await read_back(self.purchase_context.files, source, allocation)
                    if intact == "there":
                        self.log.info("Record %s still has the same image; copying it, at no cost.", source.key)
                        return await land_copy(writer, record, source, images)
        return None

    async def log_changes(self, step: Submit, wanted: Record) -> None:
        """Log the differences from the last request of this task in another run.

        :param wanted: the record of this attempt.
        """
        earlier = await self._last_request(wanted)
        if earlier is not None and step.replaces is None:
            changed = differences(earlier, self.order, [known["sha256"] for known in wanted.inputs])
            self.log.info("There is no image to reuse. Changed since record %s: %s.", earlier.key, ", ".join(changed))

    async def _last_request(self, wanted: Record) -> Record | None:
        """The last record of this task with another request. Only for the log, so errors are ignored."""
        if self.order.item.item != "0":  # in a batch another request is another item
            return None
        key, store = task_key(self.order.item), self.ledger.store
        try:
            entry = await asyncio.to_thread(read_entry, store, key)
            await asyncio.to_thread(lambda: point_to(store, key, wanted))
            found = None if entry is None else await asyncio.to_thread(self.ledger.read, entry.record)
        except GeminiImageError:
            return None
        return found.record if found is not None and found.record.fingerprint != wanted.fingerprint else None

    def _log_wait(self, key: str, step: WaitForRecord) -> None:
        if key != self._logged_wait:
            self._logged_wait = key
            self.log.info("Record %s has the same request; waiting up to %.0f s for its image.", key, step.seconds)


def _with_fingerprint(ledger: Ledger, key: str, fingerprint: str) -> StoredRecord | None:
    """The record, if it has this fingerprint: its task may have changed its request before it wrote the record."""
    found = ledger.read(key)
    return found if found is not None and found.record.fingerprint == fingerprint else None


def earlier_holders(ledger: Ledger, record: Record) -> Iterator[Record]:
    """Earlier landed records of the same request: the sources of a copy, their sources, and older records of each item.

    :raises LedgerError: a record can't be read.
    :raises StorageError: the store failed.
    """
    seen, waiting = {record.key}, [record]
    while waiting:
        each = waiting.pop()
        if each is not record and each.state == "landed":
            yield each
        folder = folder_of(each.key)
        older = [f"{folder}/{n}.json" for n in ledger.numbers_in(folder) if n < each.n] if each.n > 1 else []
        for key in (*older, *reversed(each.copied_from), each.reused_from):  # the last one is checked first
            if key is not None and key not in seen:
                seen.add(key)
                found = _with_fingerprint(ledger, key, record.fingerprint)
                waiting += [] if found is None else [found.record]


def may_have_earlier_holders(record: Record) -> bool:
    """Whether `earlier_holders` has to look for any."""
    return record.n > 1 or bool(record.copied_from) or record.reused_from is not None


def _lineage(ledger: Ledger, record: Record) -> Iterator[Record]:
    yield record
    yield from earlier_holders(ledger, record)


def _is_to_be_bought(record: Record, image: Intact) -> bool:
    """Whether the image would be bought if no earlier record has it."""
    if record.state == "landed":
        return image in ("gone", "changed")
    unpaid = record.error is not None and record.error.billed is Billed.NO
    return record.state == "failed" and unpaid and not record.buy_again


def _digests(record: Record) -> list[str]:
    return [image["sha256"] for image in (record.manifest or {}).get("images", ())]
