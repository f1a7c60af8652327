"""Removes records from the ledger: one record that a person names, or old records of finished task instances.

Invariants:

- A record that may stand for a paid image is removed only if a person asks for it, and is first marked as lost, so that
  it is never just missing.
- Image files are never removed.
- Removing a record by name leaves a tombstone. Only with a tombstone does an attempt that knows the record from
  Airflow's task state submit again. Removing old records leaves no tombstone, so nothing is bought again by mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from pydantic import ValidationError

from airflow_provider_geminiimg.core.batch.plan import Plan
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.ledger.file_names import release_names
from airflow_provider_geminiimg.core.ledger.fingerprint_index import read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.job_index import disown
from airflow_provider_geminiimg.core.ledger.layout import (
    LEDGER,
    PLANS,
    RETURNED,
    SHOWN,
    folder_of,
    index_key,
    spool_prefix,
    task_instance_of,
)
from airflow_provider_geminiimg.core.ledger.records import Ledger, Record, with_error
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest
from airflow_provider_geminiimg.core.purchase.sharing import earlier_holders
from airflow_provider_geminiimg.core.purchase.thumbnails import thumbnail_keys
from airflow_provider_geminiimg.core.reconcile.collect import adopted
from airflow_provider_geminiimg.core.reconcile.scan import RECORD_STATUSES, RecordEntry, Scope, billed, entry_at, walk
from airflow_provider_geminiimg.core.request import prompt_sha256
from airflow_provider_geminiimg.core.storage import Blob
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LedgerError,
    LinkExpiredError,
    StorageError,
)

_FINISHED = ("landed", "failed")
_NAMED = 3  # task instances named in an error


def forget(ledger: Ledger, key: str, *, force: bool = False) -> Record:
    """Remove the record at `key`, so that its task submits again.

    :param force: remove the record even if a paid image may not be in storage. Default: ``False``.
    :returns: the removed record.
    :raises BadRequestError: there is no such record, its item has a later record, or `force` is needed.
    :raises GeminiImageError: the record can't be read or removed.
    """
    entry = entry_at(ledger, key)
    record = entry.readable().record
    folder, _, _ = key.rpartition("/")
    last = max(ledger.numbers_in(folder), default=record.n)
    if last > record.n:
        raise _refusal(record, f"Its item has a later record, {folder}/{last}.json.", "Remove the later record first.")
    if not force and record.state not in _FINISHED:
        raise _refusal(record, RECORD_STATUSES[entry.status], "To remove it in any case, add --force.")
    if not force and _left_behind(ledger, record):
        raise _refusal(record, "It has extra jobs that may have been paid for.", "`jobs collect` stores their images.")
    removed = ledger.change(key, _given_up)
    ledger.add_tombstone(removed)
    release_names(ledger, removed)
    _remove(ledger, removed)
    return removed


async def purge(ledger: Ledger, scope: Scope, *, days: float, dry_run: bool = False) -> AsyncIterator[str]:
    """Remove the records of task instances whose records all ended more than `days` days ago, with their saved requests
    and plans, and the saved lists of reviews.

    :param days: minimum age, by the clock of the store.
    :param dry_run: only list the keys. Default: ``False``.
    :returns: the keys of the removed objects.
    :raises StorageError: the store failed.
    :raises LedgerError: the objects of some task instances can't be read; raised after all others were removed.
    """
    failures: dict[str, GeminiImageError] = {}
    async for together in _task_instances(ledger, scope):
        removed = await closed(asyncio.to_thread(_purge, ledger, together, days, dry_run))
        if isinstance(removed, GeminiImageError):
            if (
                isinstance(removed, StorageError) and removed.retryable
            ):  # the store is not available, so the others would fail too
                raise removed
            failures[_task_instance(together[0])] = removed
            continue
        for key in removed:
            yield key
    for key in await asyncio.to_thread(_purge_shown, ledger, scope, days, dry_run):
        yield key
    if failures:
        named = " ".join(f"{name}: {error.message}" for name, error in list(failures.items())[:_NAMED])
        raise LedgerError(
            f"The records of {len(failures)} task instances could not be removed. {named}",
            billed=Billed.NO,
            hint="All others were checked. Run the purge again when these can be read and written.",
        )


async def _task_instances(ledger: Ledger, scope: Scope) -> AsyncIterator[list[RecordEntry]]:
    """The records of `scope`, grouped by task instance."""
    together: list[RecordEntry] = []
    async for entry in walk(ledger, scope):
        if together and _task_instance(together[0]) != _task_instance(entry):
            yield together
            together = []
        together.append(entry)
    if together:
        yield together


def _purge_shown(ledger: Ledger, scope: Scope, days: float, dry_run: bool) -> list[str]:
    """Remove the saved lists of reviews that are old enough."""
    store = ledger.store
    keys = filter(scope.covers, store.keys(SHOWN + scope.prefix.removeprefix(LEDGER)))
    old = [key for key in keys if (blob := store.read(key)) is not None and blob.age >= days * 86400.0]
    for key in [] if dry_run else old:
        store.delete(key)
    return old


def _purge(ledger: Ledger, together: Sequence[RecordEntry], days: float, dry_run: bool) -> list[str]:
    """Remove the records of one task instance if all of them are old, with its saved requests and plans."""
    records = [each.found.record for each in together if each.found is not None and _is_old(each, days)]
    keys = {record.key for record in records}
    if len(records) < len(together) or any(_left_behind(ledger, record, keys) for record in records):
        return []
    # The last record of an item is removed last, so that an interruption leaves a valid state.
    records.sort(key=lambda record: (folder_of(record.key), record.n))
    saved = _saved_for_retries(ledger, records, days)
    if not dry_run:
        for key in saved:  # first, because they are found by the records of their task instance
            ledger.store.delete(key)
        for record in records:
            release_names(ledger, record)
            _remove(ledger, record)
    return [*saved, *(record.key for record in records)]


def _saved_for_retries(ledger: Ledger, records: Sequence[Record], days: float) -> list[str]:
    """Old saved requests and plans of one task instance whose images all have a record in `records`."""
    if not records:
        return []
    folder, is_made = (RETURNED, _is_returned) if _items(records) == {"0"} else (PLANS, _is_planned)
    place = task_instance_of(records[0].key)
    store = ledger.store
    return [key for key in store.keys(f"{folder}/{place}/") if _is_made(store.read(key), records, is_made, days)]


def _is_made(
    blob: Blob | None, records: Sequence[Record], is_made: Callable[[bytes, Sequence[Record]], bool], days: float
) -> bool:
    if blob is None or blob.age < days * 86400.0:
        return False
    try:
        return is_made(blob.data, records)
    except (ValidationError, GeminiImageError):  # unreadable, so its images are not known
        return False


def _is_planned(data: bytes, records: Sequence[Record]) -> bool:
    return Plan.model_validate_json(data).keys() <= _items(records)


def _is_returned(data: bytes, records: Sequence[Record]) -> bool:
    request = SavedRequest.model_validate_json(data).request
    return request is None or prompt_sha256(request.prompt) in {record.prompt_sha256 for record in records}


def _items(records: Sequence[Record]) -> set[str]:
    return {record.key.split("/")[-2] for record in records}


def _task_instance(entry: RecordEntry) -> str:
    return entry.key.rsplit("/", 2)[0]


def _is_old(entry: RecordEntry, days: float) -> bool:
    found = entry.found
    return found is not None and found.record.state in _FINISHED and found.age >= days * 86400.0


def _left_behind(ledger: Ledger, record: Record, known: frozenset[str] | set[str] = frozenset()) -> bool:
    """Whether an extra job of `record` has no record of its own yet."""
    wanted = [adopted(record, job_id) for job_id in record.extra_jobs]
    return any(
        each.key not in known and ledger.read(each.key) is None and not ledger.has_tombstone(each.key, each.claim)
        for each in wanted
    )


def _given_up(stored: Record) -> Record | None:
    """The record marked as lost before its removal, by a conditional write, so that a concurrent write is not lost."""
    if stored.state in _FINISHED:
        return None
    error = LinkExpiredError("Given up by hand.", billed=billed(stored))
    return replace(with_error(stored, error, "failed"), links=[])


def _remove(ledger: Ledger, record: Record) -> None:
    index = index_key(record.key, record.fingerprint)
    noted = read_entry(ledger.store, index)
    if noted is not None and noted.record == record.key:
        earlier = _earlier(ledger, record)
        if earlier is None:
            ledger.store.delete(index)
        else:  # if another process changes the entry in the meantime, its change stays
            write_entry(ledger.store, index, earlier, noted)
    disown(ledger, record)
    for key in (*record.spooled, *ledger.store.keys(spool_prefix(record.key)), *thumbnail_keys(record), record.key):
        ledger.store.delete(key)


def _earlier(ledger: Ledger, record: Record) -> Record | None:
    """The record that had the image of `record` before."""
    with contextlib.suppress(LedgerError):  # an unreadable record must not get into the index
        return next(earlier_holders(ledger, record), None)
    return None


def _refusal(record: Record, why: str, instead: str) -> BadRequestError:
    return BadRequestError(
        f"Record {record.key} is not removed. {why}", billed=billed(record), hint=f"Nothing was changed. {instead}"
    )
