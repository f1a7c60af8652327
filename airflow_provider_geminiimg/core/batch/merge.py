"""The results of the shards of a wide batch, merged into one manifest and one summary.

Invariants: the lines are in the order of the rows. Every row has one line, also if its shard was killed: then the
ledger says what is known of its image. One shard is in memory at a time; the lines of images that several rows request
stay, compressed.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from airflow_provider_geminiimg.core.batch.executor import NotStartedError, status_of
from airflow_provider_geminiimg.core.batch.plan import PlannedImage
from airflow_provider_geminiimg.core.batch.shards import Shard
from airflow_provider_geminiimg.core.batch.summary import (
    Result,
    Status,
    billed_of,
    cost_with,
    failure_of,
    manifest_line,
    totals,
)
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.exceptions import Billed, OutcomeUnknownError


class MergedResults:
    """The results of all shards. `lines` must be used up for each shard, in their order.

    :param most: failed images to name.
    :param latest: returns the last record of an image without a result; ``None`` if it has none.
    """

    def __init__(self, most: int, latest: Callable[[PlannedImage], Record | None]) -> None:
        self.failures: list[str] = []
        """One sentence for each of the first failed images."""

        self._most = most
        self._latest = latest
        self._counts: Counter[Status] = Counter()
        self._cost: dict[str, float] = {}
        self._billed: set[Billed] = set()
        self._lines: dict[str, bytes] = {}

    def lines(self, shard: Shard, results: Mapping[str, Mapping[str, Any]]) -> Iterator[bytes]:
        """The lines of the manifest for the rows of one shard.

        :param results: see `result_lines`; empty if the shard has none.
        """
        for item in shard.items:
            packed = self._lines.get(item.fingerprint)
            if packed is None:
                line = results.get(item.fingerprint) or self._from_ledger(item)
                self._count(line)
                if shard.repeated is None or item.fingerprint in shard.repeated:
                    self._lines[item.fingerprint] = zlib.compress(json.dumps(line).encode(), 1)
            else:
                line = json.loads(zlib.decompress(packed))
            self._counts[line["status"]] += 1
            if "message" in line and len(self.failures) < self._most:
                self.failures.append(failure_of(item, line))
            yield manifest_line(item, line)

    @property
    def totals(self) -> dict[str, Any]:
        """See `summary.totals`."""
        return totals(self._counts, self._cost)

    @property
    def billed(self) -> Billed:
        """Whether money was spent on any image."""
        return billed_of(self._billed)

    def _count(self, line: Mapping[str, Any]) -> None:
        """Count an image."""
        self._cost = cost_with(self._cost, line["status"], line)
        self._billed.add(Billed(line.get("billed", Billed.YES)))

    def _from_ledger(self, item: PlannedImage) -> dict[str, Any]:
        record = self._latest(item)
        if record is None:
            missing = NotStartedError("Not started: the task of its shard has no result.", hint="Clear that task.")
            return Result("skipped", error=missing).line()
        if record.state == "landed" and record.manifest is not None:
            return Result("reused", record.manifest).line()
        error = record.error or OutcomeUnknownError(
            f"The task of its shard ended before record {record.key} was completed.", hint="Clear that task."
        )
        return Result(status_of(error), error=error).line()
