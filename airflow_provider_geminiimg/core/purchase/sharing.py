"""Pictures that the tasks of one DAG have in common (``reuse="dag"``): what another one has made is copied, what
another one is making is waited for, and of several that want the same one buys.

What must stay true:

- Nothing is decided here but what becomes of a `Submit`: what a task's own records say comes first.
- Who buys has put its record's key into the index before the record is there, and sends only within `CLAIM_SECONDS`
  (`paying`) of doing so. An entry whose record is not there after `ENTRY_SECONDS` is therefore nobody's.
- Another task's record is followed like one's own: what may have been paid for is not bought beside it.
- A copy is the task's own: its picture, its sidecar and its record stay when those that it was made from go.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_geminiimg.core.ledger.fingerprint_index import Entry, point_to, read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import folder_of, index_key, task_key
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, StoredRecord, with_error
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.copying import Intact, land_copy, read_back
from airflow_provider_geminiimg.core.purchase.decision import (
    Policy,
    Refuse,
    Submit,
    WaitForRecord,
    is_out_of_reach,
)
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
from airflow_provider_geminiimg.core.purchase.order import Marker, Order, differences
from airflow_provider_geminiimg.core.purchase.task_state import remember
from airflow_provider_geminiimg.core.storage import Store
from airflow_provider_geminiimg.exceptions import (
    Billed,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    StorageError,
    TimedOutError,
    from_dict,
)

ENTRY_SECONDS = 60.0
"""How long an entry may be there without its record, by the store's clock, before another task takes it over."""

_ANCESTORS = 20  # of a copy, that its record names


@dataclass(frozen=True)
class Buy:
    """Buy it, once the index says so.

    :param step: the submission, and why.
    :param over: the entry that the buyer's own replaces; ``None``: there is none yet.
    """

    step: Submit
    over: Entry | None

    def claim(self, store: Store, wanted: Record) -> bool:
        """Let the index name `wanted`; ``False`` where another task was first.

        :raises LedgerError: what the other one wrote can't be read.
        :raises StorageError: the store failed.
        """
        return write_entry(store, index_key(wanted.key, wanted.fingerprint), wanted, self.over)


@dataclass(frozen=True)
class Take:
    """Copy what another task has landed.

    :param source: its record.
    :param pictures: the bytes of its pictures, which are those that landed.
    """

    source: Record
    pictures: Sequence[bytes] = field(default=(), repr=False)

    @property
    def sha256(self) -> str:
        """Hex digest of the first picture."""
        return str((self.source.manifest or {})["images"][0]["sha256"])


ReuseDecision = Buy | Take | WaitForRecord | Refuse


def share(
    step: Submit,
    entry: Entry | None,
    found: StoredRecord | None,
    policy: Policy,
    *,
    own: bool,
    timeout: float,
    waited: float = 0.0,
    picture: Intact = "unknown",
) -> ReuseDecision:
    """What becomes of a picture that this task would buy.

    :param step: what the task's own records say.
    :param entry: the index's word on who has the picture.
    :param found: the record that `entry` names, if it is there and asks for this picture.
    :param policy: how this attempt may act.
    :param own: `entry` names a record of this very task instance.
    :param timeout: seconds that a job may take from its submit.
    :param waited: seconds since the job of `found` was submitted.
    :param picture: for a landed record, whether its picture is still the one that landed.
    """
    if entry is None or own or step.regenerate:
        return Buy(step, entry)
    if found is None:
        left = ENTRY_SECONDS - entry.age
        why = f"record {entry.record}, which should have had it, was never written"
        return WaitForRecord(left) if left > 0 else _buy(step, entry, why)
    record = found.record
    if record.state == "landed":
        return _landed(step, entry, record, picture)
    if record.state == "failed":
        return _failed(step, entry, record)
    if record.state == "intent" and record.outcome is None and found.age < record.answer_within:
        return WaitForRecord(record.answer_within - found.age)
    if record.state == "intent" or isinstance(record.error, OutcomeUnknownError):
        return _unknown(step, entry, record, policy)
    if is_out_of_reach(record.error) or waited >= timeout:
        return Refuse(_left_behind(record))
    return WaitForRecord(timeout - waited)


def _buy(step: Submit, entry: Entry, why: str) -> Buy:
    return Buy(replace(step, why=why), entry)


def _landed(step: Submit, entry: Entry, record: Record, picture: Intact) -> ReuseDecision:
    if picture == "there":
        return Take(record)
    if picture != "unknown":
        what = "is gone from storage" if picture == "gone" else "is not the one that landed any more"
        return _buy(step, entry, f"the picture of record {record.key} {what}")
    return Refuse(
        StorageError(
            f"Can't tell whether the picture of record {record.key}, which is the same, is still where it landed.",
            hint="Nothing was sent. Give the worker access to it, then retry.",
        )
    )


def _failed(step: Submit, entry: Entry, record: Record) -> ReuseDecision:
    known = record.error
    if record.buy_again:
        return _buy(step, entry, f"a person said to buy that of record {record.key} again")
    if known is not None and known.billed is Billed.NO:
        return _buy(step, entry, f"record {record.key}, which asked for it before, failed without cost")
    error = from_dict((known or OutcomeUnknownError("It does not say why.")).to_dict())
    error.message = f"Record {record.key} asked for the same picture, and failed: {error.message}"
    error.hint = (
        'Clear its task with on_clear="regenerate" to buy the picture again; or this one with reuse="task", which '
        "looks at its own records alone."
    )
    return Refuse(error)


def _unknown(step: Submit, entry: Entry, record: Record, policy: Policy) -> ReuseDecision:
    spent = step.resubmission and step.replaces is not None and step.replaces.state == "failed"
    if policy.on_unknown == "resubmit" and not spent:
        why = f'the outcome of record {record.key} is unknown and on_unknown is "resubmit"'
        return _buy(replace(step, resubmission=True), entry, why)
    return Refuse(
        OutcomeUnknownError(
            f"Record {record.key} is for the same picture, and nobody knows whether it was paid for. Nothing was sent."
        )
    )


def _left_behind(record: Record) -> GeminiImageError:
    job = f"its job {record.job_id}" if record.job_id else "its result"
    return TimedOutError(
        f"Record {record.key} asked for the same picture and paid for it, but {job} has not landed.",
        hint=f"`jobs collect` lands it, or a retry of its task ({record.key}); a retry of this task then copies it.",
    )


class DagReuse:
    """One attempt's dealings with the other tasks of its DAG.

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
        self._followed: str | None = None

    async def look(self, step: Submit, fingerprint: str) -> Buy | Take | WaitForRecord:
        """What the index says about a picture that this task would buy.

        :param step: what the task's own records say.
        :param fingerprint: what the picture is known by.
        :raises LedgerError: the entry, or the record that it names, can't be read.
        :raises StorageError: the store failed, or does not say whether a picture is still there.
        :raises GeminiImageError: what another task paid for keeps this one from buying.
        """
        order = self.order
        entry = await asyncio.to_thread(read_entry, self.ledger.store, index_key(order.item.path, fingerprint))
        own = entry is not None and folder_of(entry.record) == order.item.path
        found: StoredRecord | None = None
        intact: Intact = "unknown"
        pictures: list[bytes] = []
        waited = 0.0
        if entry is not None and not own and not step.regenerate:
            found = await asyncio.to_thread(_asking_for, self.ledger, entry.record, fingerprint)
        if found is not None and found.record.state == "landed":
            intact, pictures = await read_back(self.purchase_context.files, found.record)
        elif found is not None:
            waited = time.time() - (found.record.submitted_at or found.record.claimed_at)
        if entry is not None and found is not None and _is_to_be_bought(found.record, intact):
            found, intact, pictures = await self._earlier(entry, found, intact)
        lot = share(step, entry, found, order.policy, own=own, timeout=order.timeout, waited=waited, picture=intact)
        if isinstance(lot, Refuse):
            raise lot.error
        if isinstance(lot, WaitForRecord) and entry is not None:
            self._tell_wait(entry.record, lot)
        return replace(lot, pictures=pictures) if isinstance(lot, Take) else lot

    async def is_anothers(self, fingerprint: str) -> bool:
        """Whether the index knows the picture as another task's or run's.

        :raises LedgerError: the entry can't be read.
        :raises StorageError: the store failed.
        """
        item = self.order.item
        entry = await asyncio.to_thread(read_entry, self.ledger.store, index_key(item.path, fingerprint))
        return entry is not None and folder_of(entry.record) != item.path

    async def _earlier(
        self, entry: Entry, found: StoredRecord, intact: Intact
    ) -> tuple[StoredRecord, Intact, list[bytes]]:
        """Who had the picture before the record that the index names, where that has none.

        It is named from now on, lest the copy that is made of it is known to nobody. The entry of a purchase that
        failed stays: its task goes on by it.

        :raises LedgerError: a record can't be read.
        """
        unknown: Record | None = None
        for record in await asyncio.to_thread(lambda: list(earlier_holders(self.ledger, found.record))):
            state, pictures = await read_back(self.purchase_context.files, record)
            if state == "there":
                if found.record.state == "landed":
                    index = index_key(self.order.item.path, record.fingerprint)
                    await asyncio.to_thread(write_entry, self.ledger.store, index, record, entry)
                return replace(found, record=record), state, pictures
            unknown = record if state == "unknown" and unknown is None else unknown
        return (found, intact, []) if unknown is None else (replace(found, record=unknown), "unknown", [])

    async def take(self, wanted: Record, lot: Take, writer: ImageWriter) -> Record | None:
        """Land a copy as `wanted`; ``None`` where another attempt was first.

        :raises StorageError: the bucket or the disk failed.
        """
        if await asyncio.to_thread(self.ledger.create, wanted) is None:
            return None
        self.log.info("Record %s has landed the same picture; copying it, at no cost.", lot.source.key)
        await remember(self.marker, wanted)
        await self._asked_before(wanted)
        return await land_copy(writer, wanted, lot.source, lot.pictures)

    async def restore(self, record: Record, writer: ImageWriter) -> Record | None:
        """Land anew what is gone from all its places, from where another task of the DAG has the very same picture.

        :param record: ``landed``.
        :returns: the record as it is stored now; ``None``: no other task has it.
        """
        starts = [record]
        with contextlib.suppress(GeminiImageError):  # what can't be read here is asked of the gateway
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
                intact, pictures = await read_back(self.purchase_context.files, source)
                if intact == "there":
                    self.log.info("Record %s still has the same picture; copying it, at no cost.", source.key)
                    return await land_copy(writer, record, source, pictures)
        return None

    async def tell_changes(self, step: Submit, wanted: Record) -> None:
        """Say what is not as it was when this task asked last, in another run.

        :param wanted: what is asked for now.
        """
        earlier = await self._asked_before(wanted)
        if earlier is not None and step.replaces is None:
            changed = differences(earlier, self.order, [known["sha256"] for known in wanted.inputs])
            self.log.info("Nothing is there to reuse. Since record %s changed: %s.", earlier.key, ", ".join(changed))

    async def _asked_before(self, wanted: Record) -> Record | None:
        """What this task asked for last, and was something else. For the log alone, so it fails nothing."""
        if self.order.item.item != "0":  # in a batch, what asks for something else is another picture
            return None
        key, store = task_key(self.order.item), self.ledger.store
        try:
            entry = await asyncio.to_thread(read_entry, store, key)
            await asyncio.to_thread(lambda: point_to(store, key, wanted))
            found = None if entry is None else await asyncio.to_thread(self.ledger.read, entry.record)
        except GeminiImageError:
            return None
        return found.record if found is not None and found.record.fingerprint != wanted.fingerprint else None

    def _tell_wait(self, key: str, step: WaitForRecord) -> None:
        if key != self._followed:
            self._followed = key
            self.log.info("Record %s is for the same picture; waiting up to %.0f s for it.", key, step.seconds)


def _asking_for(ledger: Ledger, key: str, fingerprint: str) -> StoredRecord | None:
    """The record, unless it is another picture's: its task was given other words before it came to writing it."""
    found = ledger.read(key)
    return found if found is not None and found.record.fingerprint == fingerprint else None


def earlier_holders(ledger: Ledger, record: Record) -> Iterator[Record]:
    """What has landed for the same request before `record`: what it was copied from, and so on back, and older records
    of each one's item.

    :raises LedgerError: a record can't be read.
    :raises StorageError: the store failed.
    """
    seen, waiting = {record.key}, [record]
    while waiting:
        each = waiting.pop()
        if each is not record and each.state == "landed":
            yield each
        folder = folder_of(each.key)
        older = [f"{folder}/{n}.json" for n in ledger.numbers_in(folder) if n < each.n]
        for key in (*older, *reversed(each.copied_from), each.reused_from):  # the last one is looked at first
            if key is not None and key not in seen:
                seen.add(key)
                found = _asking_for(ledger, key, record.fingerprint)
                waiting += [] if found is None else [found.record]


def _lineage(ledger: Ledger, record: Record) -> Iterator[Record]:
    yield record
    yield from earlier_holders(ledger, record)


def _is_to_be_bought(record: Record, picture: Intact) -> bool:
    """Whether nothing but an earlier record of the same picture keeps it from being bought."""
    if record.state == "landed":
        return picture in ("gone", "changed")
    unpaid = record.error is not None and record.error.billed is Billed.NO
    return record.state == "failed" and unpaid and not record.buy_again


def _digests(record: Record) -> list[str]:
    return [image["sha256"] for image in (record.manifest or {}).get("images", ())]


def copy_of(record: Record, source: Record) -> Record:
    """The record of a copy that is about to be made: until it has landed it says that nothing was sent.

    :param record: this task's, as for a submission.
    :param source: whose picture it is.
    """
    cost: dict[str, Any] = {"amount": 0.0, "currency": source.cost.get("currency"), "basis": "reused"}
    unfinished = NotSentError(f"Copying the picture of record {source.key} was not finished.", hint="A retry does it.")
    taken = replace(
        record,
        cost=cost,
        reused_from=source.key,
        copied_from=[*filter(None, [source.reused_from]), *source.copied_from][:_ANCESTORS],
        job_id=source.job_id,
        api_host=source.api_host,
        key_digest=source.key_digest,
    )
    return with_error(taken, unfinished, "failed")
