"""Removes records from the ledger: one record that a person names, or old records of finished task instances.

Invariants:

- A record that may stand for a paid image is removed only if a person asks for it, and is first marked as lost, so that
  it is never just missing.
- A record is removed only if it is as it was listed: it may have got a late answer, or was removed and bought again.
  What failed is read again before anything of its task instance is removed.
- Image files are never removed.
- What was paid for a removed record stays in the totals of its run: it is counted before it is removed.
- Removing a record by name leaves a tombstone. Only with a tombstone does an attempt that knows the record from
  Airflow's task state submit again. Removing old records leaves no tombstone, so nothing is bought again by mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pydantic import ValidationError

from airflow_provider_geminiimg.core.batch.plan import Plan
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.ledger.file_names import claims_of, release_names
from airflow_provider_geminiimg.core.ledger.fingerprint_index import parsed_entry, read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.job_index import disown, has
from airflow_provider_geminiimg.core.ledger.layout import (
    LEDGER,
    PLANS,
    RETURNED,
    SHOWN,
    SPOOL,
    folder_of,
    index_key,
    is_record_key,
    job_key,
    of_all_shards,
    open_key,
    plan_of,
    plans_below,
    run_of,
    spool_prefix,
    task_instance_of,
)
from airflow_provider_geminiimg.core.ledger.open_index import is_open
from airflow_provider_geminiimg.core.ledger.record import Record, with_error
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest
from airflow_provider_geminiimg.core.purchase.sharing import earlier_holders, may_have_earlier_holders
from airflow_provider_geminiimg.core.purchase.thumbnails import thumbnail_keys
from airflow_provider_geminiimg.core.reconcile.extra_jobs import has_unknown_jobs
from airflow_provider_geminiimg.core.reconcile.scan import RECORD_STATUSES, RecordEntry, Scope, entry_at, look
from airflow_provider_geminiimg.core.request import prompt_sha256
from airflow_provider_geminiimg.core.storage import Blob, Store
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
_TOGETHER = 500  # records that are removed together, at least; the records of a task instance stay together


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
    if not force and has_unknown_jobs(ledger, record):
        raise _refusal(record, "It has extra jobs that may have been paid for.", "`jobs collect` stores their images.")
    ledger.summaries.read(run_of(key))  # nothing is changed if it can't be read
    removed = ledger.change(key, _given_up)
    ledger.summaries.count([removed])  # what was paid for it stays in the totals
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
    async for window in _windows(ledger, scope):
        found = await asyncio.gather(*(closed(asyncio.to_thread(_objects_of, ledger, each, days)) for each in window))
        removable: list[_Objects] = []
        for together, objects in zip(window, found, strict=True):
            if isinstance(objects, GeminiImageError):
                _note(failures, together[0].key, objects)
            else:
                removable.append(objects)
        async for key in _removed(ledger, removable, failures, dry_run):
            yield key
    for key in await asyncio.to_thread(_purge_shown, ledger, scope, days, dry_run):
        yield key
    if failures:
        some = itertools.islice(failures.items(), _NAMED)
        named = " ".join(f"{name}: {error.message} {error.hint}".strip() for name, error in some)
        raise LedgerError(
            f"The records of {len(failures)} task instances could not be removed. {named}",
            billed=Billed.NO,
            hint="All others were checked. Run the purge again when these can be read and written.",
        )


async def _windows(ledger: Ledger, scope: Scope) -> AsyncIterator[list[list[RecordEntry]]]:
    """The records of `scope`, grouped by task instance; some task instances at once."""
    window: list[list[RecordEntry]] = []
    count = 0
    async for entry in _entries(ledger, scope):
        if window and _task_instance(window[-1][0].key) == _task_instance(entry.key):
            window[-1].append(entry)
        else:
            if count >= _TOGETHER:
                yield window
                window, count = [], 0
            window.append([entry])
        count += 1
    if window:
        yield window


async def _entries(ledger: Ledger, scope: Scope) -> AsyncIterator[RecordEntry]:
    """The records of `scope`."""
    keys = await asyncio.to_thread(lambda: filter(scope.holds, ledger.store.keys(scope.prefix)))
    while some := await asyncio.to_thread(lambda: list(itertools.islice(keys, _TOGETHER))):
        for entry in await asyncio.to_thread(ledger.store.map, partial(look, ledger), some):
            if entry is not None:
                yield entry


def _purge_shown(ledger: Ledger, scope: Scope, days: float, dry_run: bool) -> list[str]:
    """Remove the saved lists of reviews that are old enough."""
    store = ledger.store
    keys = filter(scope.covers, store.keys(SHOWN + scope.prefix.removeprefix(LEDGER)))
    old = [key for key in keys if (blob := store.read(key)) is not None and blob.age >= days * 86400.0]
    if not dry_run:
        store.delete_all(old)
    return old


@dataclass(frozen=True)
class _Objects:
    """All objects of one task instance that are removed.

    :param records: its records, those of one item in the order of their numbers.
    :param saved: saved requests and plans.
    :param others: what else belongs to the records.
    :param versions: of the records, by key, when they were listed.
    """

    records: Sequence[Record]
    saved: Sequence[str]
    others: Sequence[str]
    versions: Mapping[str, str]


def _objects_of(ledger: Ledger, together: Sequence[RecordEntry], days: float) -> _Objects:
    """The objects of a task instance; none unless all of its records are old and have ended.

    The records were listed a while ago. If one was created since, all remain.
    """
    records = [each.found.record for each in together if each.found is not None and _is_old(each, days)]
    keys = {record.key for record in records}
    if len(records) < len(together) or any(has_unknown_jobs(ledger, record, keys) for record in records):
        return _Objects((), (), (), {})
    stored = ledger.store.keys(f"{_task_instance(together[0].key)}/")
    if any(key not in keys and is_record_key(key) for key in stored):
        return _Objects((), (), (), {})
    records.sort(key=lambda record: (folder_of(record.key), record.n))
    others = [key for record in records for key in _own_objects(record)]
    claims = partial(claims_of, ledger)
    others += itertools.chain.from_iterable(ledger.store.map(claims, [r for r in records if r.state != "landed"]))
    others += (key for each in records if each.state == "landed" for key in claims(each))  # most need no read
    spools = tuple(map(spool_prefix, keys))
    spooled = ledger.store.keys(f"{SPOOL}/{task_instance_of(records[0].key)}/")
    others += (key for key in spooled if key.startswith(spools))
    listed = (each.found for each in together if each.found is not None)
    versions = {each.record.key: each.version for each in listed}
    return _Objects(records, _saved_for_retries(ledger, records, days), others, versions)


def _own_objects(record: Record) -> Iterator[str]:
    """The keys of objects that belong to a record whether they exist or not."""
    yield from record.spooled
    yield from thumbnail_keys(record)
    if is_open(record):
        yield open_key(record.key, record.claim)
    jobs = filter(None, (record.job_id, *record.extra_jobs))
    yield from (job_key(record.gateway, job_id) for job_id in jobs if has(record, job_id))


async def _removed(
    ledger: Ledger, found: Sequence[_Objects], failures: dict[str, GeminiImageError], dry_run: bool
) -> AsyncIterator[str]:
    """Remove the objects of some task instances, and iterate over the keys of their saved requests and records."""
    done = found if dry_run else await closed(asyncio.to_thread(_remove_all, ledger, found))
    if isinstance(done, GeminiImageError):  # alone, each gets an error of its own
        done = []
        for each in found:
            alone = await closed(asyncio.to_thread(_remove_all, ledger, [each]))
            if isinstance(alone, GeminiImageError):
                _note(failures, each.records[0].key, alone)
            else:
                done += alone
    for each in done:
        for key in (*each.saved, *(record.key for record in each.records)):
            yield key


def _remove_all(ledger: Ledger, found: Sequence[_Objects]) -> list[_Objects]:
    """Remove what belongs to the records, then the records; an interruption leaves a valid state at each point.

    :returns: what was removed: no record that has changed since it was listed.
    """
    ledger.summaries.count(record for each in found for record in each.records)  # for the totals
    found = _unchanged(ledger, found)
    records = [record for each in found for record in each.records]
    removed = {record.key for record in records}
    _remove_index_entries(ledger, removed, records)
    ledger.store.delete_all([key for each in found for key in (*each.saved, *each.others)])
    removed -= _remove_records(ledger, records, {key: at for each in found for key, at in each.versions.items()})
    _count_as_removed(ledger, [record for record in records if record.key in removed])
    return [replace(each, records=[record for record in each.records if record.key in removed]) for each in found]


def _remove_records(ledger: Ledger, records: Sequence[Record], versions: Mapping[str, str]) -> set[str]:
    """Remove records that have not changed, and return the keys of those that remain.

    The record that decides is removed last, if no other of its item remains: an older one would decide otherwise.
    """
    last = {folder_of(record.key): record.key for record in records}
    others = {record.key for record in records} - set(last.values())
    changed = ledger.store.delete_unchanged({key: versions[key] for key in others})
    remaining = {*changed, *(last[folder_of(key)] for key in changed)}
    deciding = {key: versions[key] for key in last.values() if key not in remaining}
    return remaining | ledger.store.delete_unchanged(deciding)


def _unchanged(ledger: Ledger, found: Sequence[_Objects]) -> list[_Objects]:
    """The task instances whose failed records are as they were listed: a late answer may have brought an image."""
    failed = [record.key for each in found for record in each.records if record.state != "landed"]
    versions = {key: version for each in found for key, version in each.versions.items()}
    now = zip(failed, ledger.store.map(ledger.read, failed), strict=True)
    changed = {key for key, stored in now if stored is not None and stored.version != versions[key]}
    return [each for each in found if changed.isdisjoint(each.versions)]


def _note(failures: dict[str, GeminiImageError], key: str, error: GeminiImageError) -> None:
    """Note the failure of a task instance.

    :raises GeminiImageError: the store is not available, so all others would fail too.
    """
    if isinstance(error, StorageError) and error.retryable:
        raise error
    failures[_task_instance(key)] = error


def _saved_for_retries(ledger: Ledger, records: Sequence[Record], days: float) -> list[str]:
    """Old saved requests and plans of one task instance whose images all have a record in `records`."""
    folder, is_made = (RETURNED, _is_returned) if _items(records) == {"0"} else (PLANS, _is_planned)
    place = task_instance_of(records[0].key)
    store = ledger.store
    keys = [*store.keys(f"{folder}/{place}/"), *(_of_shards(store, place) if folder == PLANS else ())]
    return [key for key in keys if _is_made(store.read(key), records, is_made, days)]


def _of_shards(store: Store, place: str) -> list[str]:
    """The plans of the shards of a wide batch.

    :param place: the task instance of its records.
    """
    plans = ((key, plan_of(key)) for key in store.keys(plans_below(PLANS, place)))
    return [key for key, plan in plans if plan and plan[0] != place and of_all_shards(plan[0], plan[1]) == place]


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


def _task_instance(key: str) -> str:
    return folder_of(folder_of(key))


def _is_old(entry: RecordEntry, days: float) -> bool:
    found = entry.found
    return found is not None and found.record.state in _FINISHED and found.age >= days * 86400.0


def _given_up(stored: Record) -> Record | None:
    """The record marked as lost before its removal, by a conditional write, so that a concurrent write is not lost."""
    if stored.state in _FINISHED:
        return None
    error = LinkExpiredError("Given up by hand.", billed=stored.billed)
    return replace(with_error(stored, error, "failed"), links=[])


def _remove(ledger: Ledger, record: Record) -> None:
    _remove_index_entries(ledger, {record.key}, [record])
    disown(ledger, record)
    others = (*record.spooled, *ledger.store.keys(spool_prefix(record.key)), *thumbnail_keys(record))
    ledger.store.delete_all(others)
    ledger.store.delete(record.key)
    _count_as_removed(ledger, [record])


def _count_as_removed(ledger: Ledger, records: Collection[Record]) -> None:
    """Count removed records as removed. If that fails, they stay counted as they were until a reindex."""
    with contextlib.suppress(GeminiImageError):
        ledger.summaries.remove(records)


def _remove_index_entries(ledger: Ledger, removed: Collection[str], records: Sequence[Record]) -> None:
    """Remove records from the index of fingerprints; earlier records with the same images take their places.

    An entry is removed as soon as it was read: a newer purchase may be about to change it.
    """
    alone = {record.key: record for record in records if not may_have_earlier_holders(record)}
    entries = dict.fromkeys(index_key(key, record.fingerprint) for key, record in alone.items())
    ledger.store.delete_where(entries, partial(_names_one_of, ledger.store, alone))
    ledger.store.map(partial(_hand_over, ledger, removed), [record for record in records if record.key not in alone])


def _names_one_of(store: Store, records: Mapping[str, Record], key: str, blob: Blob) -> bool:
    """Whether an entry of the index of fingerprints names one of some records, and not a later one with its key."""
    entry = parsed_entry(store, key, blob)
    return entry.record in records and entry.claim == records[entry.record].claim


def _hand_over(ledger: Ledger, removed: Collection[str], record: Record) -> None:
    """Let the entry of a record name an earlier one with the same image that stays; remove it if there is none."""
    index = index_key(record.key, record.fingerprint)
    noted = read_entry(ledger.store, index)
    if noted is None or (noted.record, noted.claim) != (record.key, record.claim):
        return
    earlier = _earlier(ledger, record, removed)
    if earlier is None:
        ledger.store.delete_where([index], partial(_names_one_of, ledger.store, {record.key: record}))
    else:  # if another process changes the entry in the meantime, its change stays
        write_entry(ledger.store, index, earlier, noted)


def _earlier(ledger: Ledger, record: Record, removed: Collection[str]) -> Record | None:
    """The record that had the image of `record` before, and stays."""
    with contextlib.suppress(LedgerError):  # an unreadable record must not get into the index
        return next((each for each in earlier_holders(ledger, record) if each.key not in removed), None)
    return None


def _refusal(record: Record, why: str, instead: str) -> BadRequestError:
    return BadRequestError(
        f"Record {record.key} is not removed. {why}", billed=record.billed, hint=f"Nothing was changed. {instead}"
    )
