"""Ledger records made by hand (what an attempt that died would have left behind), and a store behind a bad line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_geminiimg.core.batch.plan import Plan, PlannedImage
from airflow_provider_geminiimg.core.ledger.layout import PLANS, Item, record_key
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import new_claim, process_identity
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequestStore
from airflow_provider_geminiimg.core.storage import Blob, Store
from airflow_provider_geminiimg.exceptions import StorageError

ITEM = Item("default", "campaign", "manual__2026-01-01T00:00:00+00:00", "hero", -1)
ELSEWHERE = Destination("file:///elsewhere", "hero")


def make_record(item: Item = ITEM, n: int = 1, **values: Any) -> Record:
    """A plain ``intent`` record of `item`, with `values` instead of the usual ones."""
    usual: dict[str, Any] = {
        "key": record_key(item, n),
        "n": n,
        "state": "intent",
        "claim": new_claim(),
        "generation": 0,
        **process_identity(),
        "answer_within": 240.0,
        "conn_id": "onemin",
        "gateway": "1min",
        "model": "gemini-3.1-flash-image-preview",
        "wire_model": "gemini-3.1-flash-image-preview",
        "operation": "generate",
        "fingerprint": "f" * 64,
        "request_fields": {"resolution": "1K"},
        "prompt_sha256": "0" * 64,
        "inputs": [],
        "destination": Destination("file:///pictures", "hero"),
        "cost": {"amount": None, "currency": "credits", "basis": "unknown"},
        "expected_seconds": 0.0,
    }
    return Record(**{**usual, **values})


def submitted(item: Item = ITEM, n: int = 1, **values: Any) -> Record:
    """A ``submitted`` record."""
    return make_record(item, n, **{"state": "submitted", "job_id": "job-1", "submitted_at": time.time(), **values})


def landed(item: Item = ITEM, n: int = 1, **values: Any) -> Record:
    """A ``landed`` record."""
    image = {
        "uri": "file:///pictures/hero.png", "media_type": "image/png", "width": 1, "height": 1, "size": 1,
        "sha256": "0" * 64,
    }  # fmt: skip
    return submitted(item, n, **{"state": "landed", "manifest": {"images": [image]}, **values})


def plan_of(store: Store, item: Item, fingerprints: Sequence[str], generation: int = 0) -> str:
    """Write down what a batch has planned for a task instance; the key of it."""
    items = [
        PlannedImage(row, "generate", {"prompt": "a fox"}, {"row": str(row)}, fingerprint, (), f"fox-{row}")
        for row, fingerprint in enumerate(fingerprints)
    ]
    plans = SavedRequestStore(Plan, store, PLANS, item, None)
    plans.write(generation, Plan(generation=generation, directory="file:///pictures", items=tuple(items)))
    return f"{plans.folder}/{generation}.json"


class Wire(Store):
    """A store behind a bad line. By operation, what becomes of a call:

    ``before``: an error, and the real store heard nothing; ``after``: an error, although the real store did it;
    ``nothing``: ``None``, which is what a client gets that asked twice because the first answer was lost.

    :param real: the store behind it.
    :param prefix: keys that the line is bad for.
    """

    def __init__(self, real: Store, prefix: str = "") -> None:
        super().__init__(real.uri)
        self.real = real
        self.prefix = prefix
        self.once: dict[str, str] = {}
        self.always: dict[str, str] = {}

    def _call(self, operation: str, key: str, *args: Any) -> Any:
        bad = key.startswith(self.prefix)
        fault = (self.once.pop(operation, None) or self.always.get(operation)) if bad else None
        if fault == "before":
            raise StorageError(f"{operation}: the line is down.")
        answer = getattr(self.real, operation)(key, *args)
        if fault == "after":
            raise StorageError(f"{operation}: the answer got lost.")
        return None if fault == "nothing" else answer

    def create(self, key: str, data: bytes) -> str | None:
        return self._call("create", key, data)  # type: ignore[no-any-return]

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        return self._call("read", key, limit)  # type: ignore[no-any-return]

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        return self._call("replace", key, data, version)  # type: ignore[no-any-return]

    def delete(self, key: str) -> None:
        self._call("delete", key)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        return iter(self._call("keys", prefix, after))

    def folders(self, folder: str) -> list[str]:
        return self._call("folders", folder)  # type: ignore[no-any-return]

    def now(self) -> float:
        return self.real.now()


class Traced(Wire):
    """A store behind a line that can be bad, with a list of what was asked of it: operations and keys."""

    def __init__(self, real: Store, prefix: str = "") -> None:
        super().__init__(real, prefix)
        self.calls: list[tuple[str, str]] = []

    def _call(self, operation: str, key: str, *args: Any) -> Any:
        self.calls.append((operation, key))
        return super()._call(operation, key, *args)

    def asked(self, prefix: str) -> list[tuple[str, str]]:
        """What was asked about keys that begin so."""
        return [(operation, key) for operation, key in self.calls if key.startswith(prefix)]


def age_key(store: Store, key: str, seconds: float) -> None:
    """Make an object older: its store says that it was written so many seconds earlier."""
    place = f"{store.uri}/{key}"
    if place.startswith("file://"):
        path = Path(place.removeprefix("file://"))
        written = path.stat().st_mtime - seconds
        os.utime(path, (written, written))
    else:
        from tests.harness.moto import age_object  # not installed beside each Airflow that is tested

        bucket, _, name = place.removeprefix("s3://").partition("/")
        age_object(bucket, name, seconds)
