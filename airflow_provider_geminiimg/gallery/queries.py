"""Queries for the gallery: the records of a DAG's runs, in the gallery's format and order.

Invariants: an address identifies a record, and only that record gives the locations of its images. No result contains a
paid link, or a prompt unless prompts are recorded. A record that cannot be read is shown as such.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import LEDGER, folder_of, index_of, task_instance_of
from airflow_provider_geminiimg.core.ledger.manifest import iso
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.summary_parts import group_of
from airflow_provider_geminiimg.core.purchase.copying import asked_last, image_places
from airflow_provider_geminiimg.core.reconcile.scan import CONCURRENCY, RECORD_STATUSES, RecordEntry, look
from airflow_provider_geminiimg.core.reconcile.spend import Spend
from airflow_provider_geminiimg.core.storage import Files, decode_segment, encode_segment
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError
from airflow_provider_geminiimg.gallery.addresses import Address, address_of, version_of
from airflow_provider_geminiimg.gallery.run_records import RecordFilter, RunRecords, is_shown, place_of
from airflow_provider_geminiimg.gallery.run_totals import (
    complete_totals,
    counted,
    counted_summary,
    records_by_task,
    shown_costs,
)

MAX_LOOKED_AT = 5_000  # records that a summary reads if they are not counted
MAX_READ = 1_000  # records that a page reads; with a selective filter, the next page continues
MAX_PAGE_BYTES = 16 << 20  # bytes of records that a page reads
MAX_SUMMARY_BYTES = 32 << 20  # bytes of records that a summary reads
MAX_IMAGES = 100  # images of one record that are shown; an answer of a gateway has at most 16
MAX_PLACES = 8  # copies of one image that are tried
MAX_SIDECAR_BYTES = 1 << 20


class GalleryQueries:
    """The records and images that the gallery may show.

    :param ledger: the root's ledger.
    :param namespace: from ``[geminiimg] namespace``.
    :param files: reads images, restricted to the permitted locations.
    """

    def __init__(self, ledger: Ledger, namespace: str, files: Files) -> None:
        self.ledger, self.namespace, self.files = ledger, namespace, files
        self._folder = f"{LEDGER}/{encode_segment(namespace)}"

    def dags(self, position: int, limit: int) -> tuple[list[str], int | None]:
        """Return some DAGs that have records, and the position of the next ones; ``None`` at the end.

        DAGs whose id was too long for the ledger are left out. A position names no DAG, which the user may not read.

        :param position: how many DAGs to pass over.
        """
        names = map(decode_segment, self.ledger.store.folders(self._folder))
        known = sorted(name for name in names if name is not None)
        end = position + limit
        return known[position:end], end if end < len(known) else None

    def page(
        self, wanted: RecordFilter, after: str | None, limit: int, position: int = 0
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return some records, and the cursor for the next page; ``None`` at the end.

        Each page reads a limited part of the run. With a filter it may return few records or none, together with a
        cursor.

        :param after: the cursor from an earlier page.
        :param limit: maximum number of records.
        :param position: without a cursor, how many records to pass over, if the run's records are counted. In a batch
            it is approximate, because its records are in the order of hashes.
        """
        keys = self._candidates(wanted, after or None, position)
        found: list[RecordEntry] = []
        last = after or None
        begun = False
        for entry, size in self._read(itertools.islice(keys, MAX_READ)):
            fits = wanted.fits(entry)
            if begun and (size > MAX_PAGE_BYTES or (fits and len(found) == limit)):
                return list(map(self.item, found)), last
            found += [entry] if fits else []
            last, begun = entry.key, True
        return list(map(self.item, found)), None if next(keys, None) is None else last

    def _candidates(self, wanted: RecordFilter, after: str | None, position: int) -> Iterator[str]:
        """The keys of the records behind a cursor or a position that may pass the filter, in order."""
        records = RunRecords(self.ledger.store, self.namespace, wanted)
        is_narrow = wanted.status is not None or wanted.model is not None
        is_jump = position > 0 and after is None
        totals = complete_totals(self.ledger, self.namespace, records.run) if is_narrow or is_jump else None
        groups = None if totals is None or totals.more else counted(totals, wanted)
        if totals is None or groups is None:
            return records.keys(after)
        if wanted.status in (None, "landed"):
            tasks = records_by_task(groups)
            return records.keys(records.cursor_at(position, tasks) if is_jump else after, tasks if is_narrow else None)
        keys = {key for key, status in totals.open.items() if status == wanted.status}
        keys.update(totals.summary.keys(wanted.fits_group))
        start = place_of(after) if after and is_shown(after) else None
        places = sorted((place_of(key), key) for key in keys if wanted.fits_key(key))
        found = (key for place, key in places if start is None or place > start)
        return itertools.islice(found, position if is_jump else 0, None)

    def summary(self, wanted: RecordFilter) -> dict[str, Any]:
        """Return totals for the records of a run or of a part of it.

        They are those that are counted. Where records are not counted, at most `MAX_LOOKED_AT` records and
        `MAX_SUMMARY_BYTES` are read.
        """
        records = RunRecords(self.ledger.store, self.namespace, wanted)
        totals = complete_totals(self.ledger, self.namespace, records.run)
        groups = None if totals is None else counted(totals, wanted)
        if totals is None or groups is None:
            return {**self._read_summary(records), "complete": totals is not None}
        return counted_summary(totals, groups, wanted)

    def _read_summary(self, run: RunRecords) -> dict[str, Any]:
        keys = list(itertools.islice(run.keys(), MAX_LOOKED_AT + 1))
        read = itertools.takewhile(lambda each: each[1] <= MAX_SUMMARY_BYTES, self._read(keys[:MAX_LOOKED_AT]))
        entries = [entry for entry, _ in read]
        records = [entry.found.record for entry in entries if entry.found is not None]
        paid = Spend()
        for record in records:
            paid.add(group_of(record, record.state), 1)
        not_started, unreadable = _not_started(run, keys)
        statuses = Counter(entry.status for entry in entries)
        statuses.update({"unreadable": unreadable} if unreadable else {})
        return {
            "statuses": dict(statuses),
            "not_started": not_started,
            "wanted": len({folder_of(key) for key in keys}) + not_started,
            "images": sum(len(_images(record)) for record in records),
            "costs": shown_costs(paid),
            "without_price": paid.without_price,
            "tasks": sorted({address_of(key).task_id for key in keys}),
            "models": sorted({record.model for record in records}),
            "iterations": sorted({at.iteration for key in keys if (at := index_of(key)) and at.iteration is not None}),
            "looked_at": len(entries),
            "more": run.has_more_plans or len(keys) > len(entries),
        }

    def record(self, address: Address) -> Record:
        """Return the record at an address.

        :raises BadRequestError: there is none.
        :raises GeminiImageError: it cannot be read.
        """
        key = address.key(self.namespace)
        entry = look(self.ledger, key) if is_shown(key) else None
        if entry is None:
            raise BadRequestError("There is no such image.")
        return entry.readable().record

    def image(self, record: Record, index: int) -> Mapping[str, Any]:
        """Return one of the stored images of a record.

        :raises BadRequestError: the record has no such image.
        """
        return self.places(record, index)[0]

    def places(self, record: Record, index: int) -> list[Mapping[str, Any]]:
        """Return all copies of one stored image of a record; the last requested one comes first.

        :raises BadRequestError: the record has no such image.
        """
        found = [images[index] for images in _places(record) if index < len(images)]
        if not found:
            raise BadRequestError("There is no such image.")
        return found

    def made(self, source: Mapping[str, str]) -> tuple[Record, int] | None:
        """Return the record and image number of an input image, if this package made it.

        The sidecar of the file names the record, and the image's hash must be in that record.

        :param source: an entry of `Record.inputs`.
        """
        try:
            sidecar = f"{source['uri'].rpartition('.')[0]}.json"
            key = json.loads(self.files.read(sidecar, max_bytes=MAX_SIDECAR_BYTES))["record"]
            entry = look(self.ledger, key) if is_shown(key) and key.startswith(f"{self._folder}/") else None
            images = _images(entry.readable().record) if entry else []
        except (GeminiImageError, ValueError, KeyError, TypeError, RecursionError):
            return None
        places = (i for i, image in enumerate(images) if image["sha256"] == source["sha256"])
        index = next(places, None)
        return None if entry is None or index is None else (entry.readable().record, index)

    def item(self, entry: RecordEntry) -> dict[str, Any]:
        """Return one record in the page's format."""
        address = address_of(entry.key)
        names = {"task_id": address.task_id, **vars(address.index), "item": address.item, "n": address.n}
        names["record"] = entry.key
        about = {**names, "status": entry.status, "next": RECORD_STATUSES[entry.status]}
        if entry.found is None:
            return {**about, "error": _said(entry.error), "images": []}
        record = entry.found.record
        manifest = record.manifest or {}
        began = record.submitted_at or record.claimed_at
        return {
            **about,
            "error": _said(record.error),
            "billed": record.billed.value,
            "gateway": record.gateway,
            "model": record.model,
            "operation": record.operation,
            "requested": record.request_fields,
            "cost": {"amount": None, **(manifest.get("cost") or record.cost)},
            "seconds": round(record.landed_at - began, 1) if record.landed_at else None,
            "submitted_at": iso(began),
            "landed_at": iso(record.landed_at) if record.landed_at else None,
            "prompt": record.prompt,
            "job_id": record.job_id,
            "reused_from": record.reused_from,
            "mismatch": manifest.get("mismatch"),
            "inputs": [source["sha256"] for source in record.inputs[:MAX_IMAGES]],
            "images": self._images(record),
        }

    def _images(self, record: Record) -> list[dict[str, Any]]:
        places = _places(record)  # computed once: a record may have many images and copies
        shown = range(min(MAX_IMAGES, len(_images(record)), max(map(len, places))))
        return [self._shown(record, n, next(images[n] for images in places if n < len(images))) for n in shown]

    def shown(self, record: Record, index: int) -> dict[str, Any]:
        """Return one image in the page's format, with its gallery addresses."""
        return self._shown(record, index, self.image(record, index))

    def _shown(self, record: Record, index: int, image: Mapping[str, Any]) -> dict[str, Any]:
        address = address_of(record.key)
        known = ("uri", "media_type", "width", "height", "size", "sha256")
        why = self._hidden(image["uri"])
        return {
            **{name: image.get(name) for name in known},
            "name": image["uri"].rpartition("/")[2],
            "href": None if why else address.image(index),
            "thumb": address.thumbnail(index, version_of(image)),
            "why": why,
        }

    def _hidden(self, uri: str) -> str | None:
        """Return the reason why the gallery may not read a location; ``None`` if it may."""
        try:
            self.files.check(uri, "uri")
        except BadRequestError:
            return "It is outside the folders that the gallery may read: add its folder to [geminiimg] gallery_roots."
        return None

    def _read(self, keys: Iterable[str]) -> Iterator[tuple[RecordEntry, int]]:
        """Iterate over the records, each with the total size of all records read so far."""
        size = 0
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            rest = iter(keys)
            while some := list(itertools.islice(rest, CONCURRENCY)):
                for entry in filter(None, pool.map(lambda key: look(self.ledger, key), some)):
                    size += 0 if entry.found is None else entry.found.size
                    yield entry, size


def _not_started(run: RunRecords, keys: Iterable[str]) -> tuple[int, int]:
    """Return the number of planned batch images without a record, and the number of unreadable plans."""
    begun: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        begun[task_instance_of(key)].add(key.split("/")[-2])
    missing: dict[str, set[str]] = defaultdict(set)
    unreadable = 0
    for of_task, of_all, planned in run.plans():
        unreadable += planned is None
        missing[of_all] |= (planned or set()) - begun[of_task] - begun[of_all]
    return sum(map(len, missing.values())), unreadable


def _places(record: Record) -> list[Sequence[Mapping[str, Any]]]:
    """Return the images of a record for each set of copies, the last requested one first."""
    places = image_places(record, asked_last(record))[:MAX_PLACES]
    return [place.manifest.get("images") or () for place in places]


def _images(record: Record) -> list[Mapping[str, Any]]:
    return list((record.manifest or {}).get("images") or [])


def _said(error: GeminiImageError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.kind, "message": str(error), "billed": error.billed.value, "hint": error.hint}
