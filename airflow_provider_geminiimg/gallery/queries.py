"""Queries for the gallery: the records of a DAG's runs, in the gallery's format and order.

Invariants: an address identifies a record, and only that record gives the locations of its images. No result contains a
paid link, or a prompt unless prompts are recorded. A record that cannot be read is shown as such.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from airflow_provider_geminiimg.core.batch.plan import Plan
from airflow_provider_geminiimg.core.ledger.layout import (
    LEDGER,
    PLANS,
    TaskIndex,
    encode_once,
    folder_of,
    index_of,
    is_record_key,
    of_all_shards,
    plan_of,
    saved_key,
    task_instance_of,
)
from airflow_provider_geminiimg.core.ledger.manifest import iso
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.copying import asked_last, image_places
from airflow_provider_geminiimg.core.reconcile.scan import CONCURRENCY, RECORD_STATUSES, RecordEntry, look
from airflow_provider_geminiimg.core.storage import Files, decode_segment, encode_segment
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError
from airflow_provider_geminiimg.gallery.addresses import Address, address_of

MAX_LOOKED_AT = 5_000  # records that a summary reads
MAX_READ = 1_000  # records that a page reads; with a selective filter, the next page continues
MAX_PAGE_BYTES = 16 << 20  # bytes of records that a page reads
MAX_SUMMARY_BYTES = 32 << 20  # bytes of records that a summary reads
MAX_PLANS = 200  # batch plans that a summary reads
MAX_IMAGES = 100  # images of one record that are shown; an answer of a gateway has at most 16
MAX_PLACES = 8  # copies of one image that are tried
MAX_PLAN_BYTES = 64 << 20
MAX_SIDECAR_BYTES = 1 << 20
_NUMBER = re.compile(r"-?[0-9]{1,18}")  # longer numbers are not written by this package, and may exceed Python's limit


@dataclass(frozen=True)
class RecordFilter:
    """Filter for the records of a run; ``None`` means no restriction.

    :param status: see `core.reconcile.RECORD_STATUSES`.
    """

    dag_id: str
    run_id: str
    task_id: str | None = None
    map_index: int | None = None
    iteration: int | None = None
    model: str | None = None
    status: str | None = None

    def fits(self, entry: RecordEntry) -> bool:
        """Return whether a record passes the filter."""
        model = None if entry.found is None else entry.found.record.model
        return self.model in (None, model) and self.status in (None, entry.status)

    def fits_index(self, index: TaskIndex) -> bool:
        """Return whether a task instance passes the filter."""
        return self.map_index in (None, index.map_index) and self.iteration in (None, index.iteration)


class GalleryQueries:
    """The records and images that the gallery may show.

    :param ledger: the root's ledger.
    :param namespace: from ``[geminiimg] namespace``.
    :param files: reads images, restricted to the permitted locations.
    """

    def __init__(self, ledger: Ledger, namespace: str, files: Files) -> None:
        self.ledger, self.namespace, self.files = ledger, namespace, files
        self._folder = f"{LEDGER}/{encode_segment(namespace)}"

    def dags(self) -> list[str]:
        """Return the DAGs that have records, except those whose id was too long for the ledger."""
        names = map(decode_segment, self.ledger.store.folders(self._folder))
        return [name for name in names if name is not None]

    def page(self, wanted: RecordFilter, after: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return some records, and the cursor for the next page; ``None`` at the end.

        Each page reads a limited part of the run. With a filter it may return few records or none, together with a
        cursor.

        :param after: the cursor from an earlier page.
        :param limit: maximum number of records.
        """
        keys = self._keys(wanted)
        if after:
            first = _order(after)
            keys = [key for key in keys if _order(key) > first]
        found: list[RecordEntry] = []
        last = None
        for entry, size in self._read(keys[:MAX_READ]):
            fits = wanted.fits(entry)
            if last is not None and (size > MAX_PAGE_BYTES or (fits and len(found) == limit)):
                return list(map(self.item, found)), last
            found += [entry] if fits else []
            last = entry.key
        return list(map(self.item, found)), keys[MAX_READ - 1] if len(keys) > MAX_READ else None

    def summary(self, wanted: RecordFilter) -> dict[str, Any]:
        """Return totals for the records of a run or of a part of it.

        Reads at most `MAX_LOOKED_AT` records and `MAX_SUMMARY_BYTES`.
        """
        keys = self._keys(wanted)
        read = itertools.takewhile(lambda each: each[1] <= MAX_SUMMARY_BYTES, self._read(keys[:MAX_LOOKED_AT]))
        entries = [entry for entry, _ in read]
        records = [entry.found.record for entry in entries if entry.found is not None]
        costs, without_price = _total(records)
        not_started, unreadable, more = self._not_started(wanted, keys)
        statuses = Counter(entry.status for entry in entries)
        statuses.update({"unreadable": unreadable} if unreadable else {})
        return {
            "statuses": dict(statuses),
            "not_started": not_started,
            "wanted": len({folder_of(key) for key in keys}) + not_started,
            "images": sum(len(_images(record)) for record in records),
            "costs": costs,
            "without_price": without_price,
            "tasks": sorted({address_of(key).task_id for key in keys}),
            "models": sorted({record.model for record in records}),
            "iterations": sorted({at.iteration for key in keys if (at := index_of(key)) and at.iteration is not None}),
            "looked_at": len(entries),
            "more": more or len(keys) > len(entries),
        }

    def record(self, address: Address) -> Record:
        """Return the record at an address.

        :raises BadRequestError: there is none.
        :raises GeminiImageError: it cannot be read.
        """
        key = address.key(self.namespace)
        entry = look(self.ledger, key) if _is_shown(key) else None
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
            entry = look(self.ledger, key) if _is_shown(key) and key.startswith(f"{self._folder}/") else None
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
            "thumb": address.thumbnail(index),
            "why": why,
        }

    def _hidden(self, uri: str) -> str | None:
        """Return the reason why the gallery may not read a location; ``None`` if it may."""
        try:
            self.files.check(uri, "uri")
        except BadRequestError:
            return "It is outside the folders that the gallery may read: add its folder to [geminiimg] gallery_roots."
        return None

    def _not_started(self, wanted: RecordFilter, keys: Sequence[str]) -> tuple[int, int, bool]:
        """Return the number of planned batch images without a record, the number of unreadable plans, and whether more
        plans exist than were read.
        """
        begun: dict[str, set[str]] = defaultdict(set)
        for key in keys:
            begun[task_instance_of(key)].add(key.split("/")[-2])
        latest = self._latest_plans(wanted)
        missing: dict[str, set[str]] = defaultdict(set)
        unreadable = 0
        for (of_task, index), n in itertools.islice(latest.items(), MAX_PLANS):
            planned = self._plan(saved_key(PLANS, of_task, n))
            unreadable += planned is None
            of_all = of_all_shards(of_task, index)
            missing[of_all] |= (planned or set()) - begun[of_task] - begun[of_all]
        return sum(map(len, missing.values())), unreadable, len(latest) > MAX_PLANS

    def _latest_plans(self, wanted: RecordFilter) -> dict[tuple[str, TaskIndex], int]:
        """Return the latest generation of the plan of each task instance."""
        latest: dict[tuple[str, TaskIndex], int] = {}
        for key in self.ledger.store.keys(self._below(f"{PLANS}/{encode_segment(self.namespace)}", wanted)):
            if (plan := plan_of(key)) is not None and wanted.fits_index(plan[1]):
                latest[plan[:2]] = max(plan[2], latest.get(plan[:2], 0))
        return latest

    def _plan(self, key: str) -> set[str] | None:
        """Return the item names of a plan's images; ``None`` if the plan cannot be read."""
        blob = self.ledger.store.read(key, MAX_PLAN_BYTES)
        if blob is None:  # the plan was removed, because all its images have just been stored
            return set()
        try:
            return Plan.model_validate_json(blob.data).keys()
        except (ValidationError, GeminiImageError):
            return None

    def _below(self, folder: str, wanted: RecordFilter) -> str:
        names = [encode_segment(wanted.dag_id), encode_once(wanted.run_id)]
        names += [] if wanted.task_id is None else [encode_once(wanted.task_id)]
        return "/".join((folder, *names, ""))

    def _keys(self, wanted: RecordFilter) -> list[str]:
        keys = list(filter(is_record_key, self.ledger.store.keys(self._below(self._folder, wanted))))
        found = [key for key in keys if (at := index_of(key)) and wanted.fits_index(at)]
        if not found and wanted.task_id is not None and wanted.map_index is not None:
            found = self._of_shard(wanted, keys)
        return sorted(found, key=_order)

    def _of_shard(self, wanted: RecordFilter, keys: Sequence[str]) -> list[str]:
        """Return the records of one shard of a wide batch; they belong to the index -1 of its task."""
        items: dict[str, set[str]] = defaultdict(set)
        for (of_task, index), n in itertools.islice(self._latest_plans(wanted).items(), MAX_PLANS):
            items[of_all_shards(of_task, index)] |= self._plan(saved_key(PLANS, of_task, n)) or set()
        return [key for key in keys if key.split("/")[-2] in items[task_instance_of(key)]]

    def _read(self, keys: Sequence[str]) -> Iterator[tuple[RecordEntry, int]]:
        """Iterate over the records, each with the total size of all records read so far."""
        size = 0
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            rest = iter(keys)
            while some := list(itertools.islice(rest, CONCURRENCY)):
                for entry in filter(None, pool.map(lambda key: look(self.ledger, key), some)):
                    size += 0 if entry.found is None else entry.found.size
                    yield entry, size


def _is_shown(key: str) -> bool:
    return is_record_key(key) and index_of(key) is not None


def _order(key: str) -> tuple[Any, ...]:
    """Sort key for record keys: numbers in numeric order, and before names."""
    return tuple((0, int(part), "") if _NUMBER.fullmatch(part) else (1, 0, part) for part in re.split(r"[/.]", key))


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


def _total(records: Iterable[Record]) -> tuple[list[dict[str, Any]], int]:
    """Return the paid amounts by currency and basis, and the number of paid images without a known price."""
    sums: dict[tuple[str, str], float] = {}
    without = 0
    for record in records:
        if record.billed.value != "yes":
            continue
        cost = (record.manifest or {}).get("cost") or record.cost
        if cost.get("amount") is None:
            without += 1
            continue
        which = (str(cost.get("currency")), str(cost.get("basis")))
        sums[which] = sums.get(which, 0.0) + float(cost["amount"])
    # An infinite sum comes from implausible amounts; it is shown as unknown.
    known = {which: round(amount, 6) if math.isfinite(amount) else None for which, amount in sorted(sums.items())}
    return [{"amount": amount, "currency": c, "basis": b} for (c, b), amount in known.items()], without
