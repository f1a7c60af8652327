"""A ledger of any number of records: one image is made, and its record is copied.

``python -m benchmarks.copies FOLDER COUNT`` fills a ledger, also with a million records. The names of the copies are
spread as those of a batch's images, and the copies are counted in the summary of their run.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gateway import gateway
from benchmarks.making import environment, make
from benchmarks.measure import fresh
from benchmarks.reuse import write

_TOGETHER = 50_000  # records that are counted at once


class Copies:
    """Writes copies of a record that has landed.

    :param root: of a ledger without records; this makes one image there.
    """

    def __init__(self, root: str) -> None:
        from airflow_provider_geminiimg.core.storage import open_store
        from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

        make(count=1, width=1, poll_interval=0.01, warm=0)
        self.store = open_store(root, AIRFLOW_OPENERS)
        (self._key,) = self.store.keys("ledger/")
        blob = self.store.read(self._key)
        assert blob is not None
        self._root, self._record = root, json.loads(blob.data)

    def add(self, number: int, **values: Any) -> str:
        """Write one copy with other `values`, and return its key."""
        key, data = self._copy(number, **values)
        write(f"{self._root}/{key}", data)
        return key

    def fill(self, numbers: Iterable[int]) -> None:
        """Write copies that have landed; they are not counted."""
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(self.add, numbers):
                pass

    def count(self, numbers: range) -> None:
        """Count copies that have landed in the summary of their run, without reading them."""
        from airflow_provider_geminiimg.core.ledger.open_index import mark_complete, root_of
        from airflow_provider_geminiimg.core.ledger.record import parse_record
        from airflow_provider_geminiimg.core.ledger.records import Ledger

        ledger = Ledger(self.store)
        record = parse_record(self._root, *self._copy(0))
        for start in range(numbers.start, numbers.stop, _TOGETHER):
            some = range(start, min(start + _TOGETHER, numbers.stop))
            ledger.summaries.count([replace(record, key=self._key_of(number)) for number in some])
        mark_complete(self.store, "default", root_of(self.store))

    def _key_of(self, number: int) -> str:
        *folders, _, n = self._key.split("/")
        return "/".join((*folders, hashlib.sha256(str(number).encode()).hexdigest()[:16], n))

    def _copy(self, number: int, **values: Any) -> tuple[str, bytes]:
        key = self._key_of(number)
        return key, json.dumps({**self._record, "key": key, "claim": f"{number:032x}", **values}).encode()


def filled(*, root: str, count: int) -> None:
    """Write a ledger with `count` records, all counted."""
    copies = Copies(root)
    copies.fill(range(1, count))
    copies.count(range(1, count))


def _main(folder: str, count: int) -> None:
    with gateway() as client:
        root = Path(folder).resolve().as_uri()
        fresh(filled, env=environment(client, root), root=root, count=count)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
