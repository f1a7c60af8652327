"""Stores images that were paid for and have not landed, at their recorded destinations.

Only records that may be open are read, if their index is complete (`open_records`).

Invariants: nothing is submitted, and no running job is waited for. Each job is polled once. An error in one record is
reported, and the others continue. Two simultaneous collects, or a second one, change nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.ledger.job_index import has, own, take_back
from airflow_provider_geminiimg.core.ledger.layout import folder_of
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.decision import is_out_of_reach
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
from airflow_provider_geminiimg.core.purchase.waiting import JobCollector, VanishedError
from airflow_provider_geminiimg.core.reconcile.extra_jobs import adopted, is_known
from airflow_provider_geminiimg.core.reconcile.open_records import IndexMender, open_batches, read_index
from airflow_provider_geminiimg.core.reconcile.scan import RESOLVE, RecordEntry, Scope
from airflow_provider_geminiimg.exceptions import GeminiImageError, LedgerError, OutcomeUnknownError

What = Literal["landed", "running", "failed", "unknown", "skipped", "errors", "to_collect"]

RESULT_BYTES = 1800  # limit for the return value of a task, which Airflow stores in its database
_MEANINGS: Mapping[What, tuple[str, str]] = {
    # result: (log level, start of the log line)
    "errors": ("error", "Could not be checked"),
    "unknown": ("warning", "Outcome unknown"),
    "failed": ("warning", "No image"),
    "landed": ("info", "Landed"),
    "running": ("info", "Still running"),
    "skipped": ("info", "Skipped"),
    "to_collect": ("info", "Would be collected"),
}
_SKIPPED: Mapping[str, tuple[What, str]] = {
    "waiting": ("skipped", "An attempt may still be waiting for its answer."),
    "in-flight": ("skipped", "An attempt may be collecting it at this moment."),
}


@dataclass
class Report:
    """The results of a collect: lists of record keys. A record that needs nothing is in none of the lists."""

    keys: dict[What, list[str]] = field(default_factory=lambda: {what: [] for what in _MEANINGS})

    def counts(self) -> dict[str, int]:
        """The number of records per result."""
        return {what: len(keys) for what, keys in self.keys.items()}

    def result(self) -> dict[str, Any]:
        """The counts, and as many keys as fit into `RESULT_BYTES`; keys that need a person come first."""
        shown: dict[str, list[str]] = {}
        result = {**self.counts(), "keys": shown}
        for what, key in ((what, key) for what, keys in self.keys.items() for key in keys):
            shown.setdefault(what, []).append(key)
            if len(json.dumps(result)) > RESULT_BYTES:
                shown[what].pop()
                break
        return {**result, "keys": {what: keys for what, keys in shown.items() if keys}}

    def failure(self) -> LedgerError | None:
        """The error if records that may be paid for could not be checked; ``None`` if all were checked."""
        keys = self.keys["errors"]
        if not keys:
            return None
        named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        return LedgerError(
            f"{len(keys)} records could not be checked: {named}. All others were checked; "
            f"{len(self.keys['landed'])} landed.",
            retryable=True,
            hint="The log has the reason for each record. Nothing was bought. The next collect checks them again.",
        )


async def collect(purchase_context: PurchaseContext, scope: Scope, *, dry_run: bool = False) -> Report:
    """Check every open record of `scope` and store the images that are ready.

    :param dry_run: only report what would be collected: no call to a gateway, nothing written.
    :raises StorageError: the records can't be listed.
    """
    work, ledger = _Round(purchase_context, dry_run), purchase_context.ledger
    index = await read_index(ledger, scope)
    mender = IndexMender(ledger, scope, index, read_all=not index.counts, dry_run=dry_run)
    async for batch in open_batches(ledger, scope, index):
        await asyncio.to_thread(mender.see, batch)  # before the records change
        await asyncio.gather(*(work.look(entry) for entry in batch))
    await asyncio.to_thread(mender.finish)
    if mender.failure is not None:
        purchase_context.log.warning(
            "The index of open records was not mended (%s: %s). The next collect tries again. %s",
            mender.failure.kind, mender.failure.message, mender.failure.hint or "",
        )  # fmt: skip
    return work.report


class _Round:
    """One pass through the records."""

    def __init__(self, purchase_context: PurchaseContext, dry_run: bool) -> None:
        self.report = Report()
        self._context = purchase_context
        self._ledger = purchase_context.ledger
        self._dry_run = dry_run
        self._adopted: set[str] = set()

    async def look(self, entry: RecordEntry) -> None:
        """Check one record and collect its image and its extra jobs."""
        if entry.key in self._adopted:  # created and checked in this pass
            return
        if entry.found is None:
            self._report("errors", entry.key, str(entry.error))
            return
        found = entry.found
        await self._alone(entry.key, self._look(entry))
        if found.age >= found.record.answer_within:
            for job_id in found.record.extra_jobs:
                await self._alone(entry.key, self._adopt(found.record, job_id))

    async def _alone(self, key: str, work: Awaitable[None]) -> None:
        """Await `work`; report an error without stopping the other records."""
        failure = await closed(work)
        if failure is not None:
            self._report("errors", key, str(failure))

    async def _look(self, entry: RecordEntry) -> None:
        record, status = entry.readable().record, entry.status
        if status in _SKIPPED:
            what, said = _SKIPPED[status]
            self._report(what, record.key, said)
        elif status == "unknown" and (record.job_id is None or self._dry_run):
            await self._report_unknown(record)
        elif status in ("unknown", "to-collect"):
            await self._collect(record)

    async def _report_unknown(self, record: Record) -> None:
        """Report an unknown outcome, unless a later record shows that its user chose to resubmit."""
        folder = folder_of(record.key)
        try:
            bought_again = record.n < max(await asyncio.to_thread(self._ledger.numbers_in, folder), default=0)
        except GeminiImageError as error:
            self._report("errors", record.key, str(error))
            return
        if record.job_id is not None or not bought_again:  # a later record exists only after "resubmit"
            self._report("unknown", record.key, RESOLVE)

    async def _collect(self, record: Record) -> None:
        if self._dry_run:
            self._report("to_collect", record.key, _handle(record))
            return
        unknown = await self._own(record)
        if unknown is not None:
            self._report("unknown", record.key, f"{unknown.message} {RESOLVE}")
            return
        collector = JobCollector(ImageWriter(self._context))
        try:
            job = None if record.state == "answered" else await collector.poll(record)
        except GeminiImageError as error:
            self._report("errors", record.key, str(error))
            return
        try:
            ended = await (collector.fetch(record) if job is None else collector.conclude(record, job))
        except VanishedError as error:
            await collector.note(record, error)
            self._report("unknown", record.key, f"{error.message} {RESOLVE}")
        except GeminiImageError as error:
            self._report("failed" if is_out_of_reach(error) else "errors", record.key, str(error))
        else:
            self._report_end(record, ended)

    async def _own(self, record: Record) -> OutcomeUnknownError | None:
        """Note that the job belongs to the record, because the submitting task may have died before it did so.

        If the note can't be written, the image lands anyway.

        :returns: an error if the job belongs to another record.
        """
        if record.job_id is None or not has(record, record.job_id):
            return None
        other = await closed(asyncio.to_thread(own, self._ledger, record, record.job_id))
        if isinstance(other, GeminiImageError):
            self._context.log.warning(
                "Could not note that job %s belongs to record %s (%s: %s). The image lands anyway.",
                record.job_id, record.key, other.kind, other.message,
            )  # fmt: skip
            return None
        if other is None:
            return None
        return await asyncio.to_thread(take_back, self._ledger, record, other, self._context.log)

    def _report_end(self, record: Record, ended: Record | None) -> None:
        if ended is None:
            self._report("running", record.key, _handle(record))
        elif ended.state == "failed":
            self._report("failed", record.key, str(ended.error))
        else:
            self._report("landed", record.key, ", ".join(image["uri"] for image in (ended.manifest or {})["images"]))

    async def _adopt(self, record: Record, job_id: str) -> None:
        """Create a record for an extra job of `record`, once, and collect it."""
        wanted = adopted(record, job_id)
        try:
            known = await asyncio.to_thread(is_known, self._ledger, wanted)
            if not known and not self._dry_run:
                other = await asyncio.to_thread(lambda: own(self._ledger, wanted, job_id, instead_of=[record.key]))
                if other is not None:
                    self._report("skipped", record.key, f"Its extra job {job_id} belongs to record {other}.")
                    return
            found = None if known or self._dry_run else await asyncio.to_thread(self._ledger.create, wanted)
        except GeminiImageError as error:
            self._report("errors", record.key, f"Job {job_id} may also have been paid for. {error}")
            return
        if known:
            return
        self._adopted.add(wanted.key)
        self._context.log.warning(
            "Possible double charge: extra job %s of record %s gets its own record %s.", job_id, record.key, wanted.key
        )
        await self._collect(wanted if found is None else found.record)

    def _report(self, what: What, key: str, said: str) -> None:
        self.report.keys[what].append(key)
        level, begins = _MEANINGS[what]
        tell: Callable[..., Any] = getattr(self._context.log, level)
        tell("%s: %s. %s", begins, key, said)


def _handle(record: Record) -> str:
    return f"Job {record.job_id} at {record.gateway}." if record.job_id else f"Result links of {record.gateway}."
