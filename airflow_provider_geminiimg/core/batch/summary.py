"""What became of a batch's images, added up as they end, so that ten thousand of them need no more room than a few.

What must stay true: every row ends as one word, and the words add up to the rows; what is kept of an image is its line
of the manifest, packed, and nothing else.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from airflow_provider_geminiimg.core.batch.columns import place_of
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError

Status = Literal["landed", "reused", "refused", "failed", "unknown", "skipped"]
STATUSES: tuple[Status, ...] = ("landed", "reused", "refused", "failed", "unknown", "skipped")
GOOD: tuple[Status, ...] = ("landed", "reused")


class Asked(Protocol):
    """An image that a row asks for; several rows may ask for one."""

    @property
    def row(self) -> int: ...
    @property
    def line(self) -> int | None: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Result:
    """What became of one image of a plan.

    :param manifest: of what landed.
    :param error: why nothing did, or what is wrong with it.
    """

    status: Status
    manifest: Mapping[str, Any] | None = None
    error: GeminiImageError | None = None

    def line(self) -> dict[str, Any]:
        """What the manifest says of it, in every row that asks for it."""
        error = self.error
        said = {} if error is None else {"error": error.kind, "billed": error.billed.value, "message": str(error)}
        return {"status": self.status, **(self.manifest or {}), **said}


class BatchSummary:
    """The results of one attempt, by fingerprint."""

    def __init__(self) -> None:
        self.ended: Counter[Status] = Counter()
        self.cost: dict[str, float] = {}
        self.retryable = False
        self.all_landed = True
        self._billed: set[Billed] = set()
        self._lines: dict[str, tuple[Status, bytes]] = {}
        self._alike = b""  # the first line, which the others hardly differ from: packed by it they take a third

    def add(self, fingerprint: str, result: Result) -> None:
        """Count an image that has ended, once."""
        error = result.error
        line = json.dumps(result.line()).encode()
        cost = self._cost_with(result)
        # Nothing is counted of an image of which not all can be.
        self.ended[result.status] += 1
        self.cost = cost
        self.retryable = self.retryable or (error is not None and error.retryable)
        self.all_landed = self.all_landed and result.manifest is not None
        self._billed.add(Billed.YES if error is None else error.billed)
        self._alike = self._alike or line
        packer = zlib.compressobj(1, zdict=self._alike)
        self._lines[fingerprint] = (result.status, packer.compress(line) + packer.flush())

    def _cost_with(self, result: Result) -> dict[str, float]:
        cost = (result.manifest or {}).get("cost") or {}
        if result.status == "reused" or cost.get("amount") is None:
            return self.cost
        label = ", estimate" if cost.get("estimate") else ""
        name = f"{cost['currency']} ({cost.get('basis') or 'unknown'}{label})"
        return {**self.cost, name: round(self.cost.get(name, 0.0) + cost["amount"], 6)}

    @property
    def collected(self) -> bool:
        """Whether any of them is in storage now."""
        return any(self.ended[status] for status in GOOD)

    @property
    def billed(self) -> Billed:
        """Whether money was spent on any of them."""
        return next(billed for billed in (Billed.YES, Billed.UNKNOWN, Billed.NO) if billed in self._billed)

    def totals(self, items: Iterable[Asked]) -> dict[str, Any]:
        """How many rows ended how, and what was paid now, by currency and by where the price is from."""
        counts = Counter(self._lines[item.fingerprint][0] for item in items)
        return {"items": counts.total(), "counts": {status: counts[status] for status in STATUSES}, "cost": self.cost}

    def bad(self, items: Iterable[Asked], most: int) -> list[str]:
        """The first rows that have an error, a sentence each."""
        found: list[str] = []
        for item in items:
            line = self._line(item)
            if "message" in line:
                place = place_of(item.row, item.line, item.labels)
                found.append(f"{place[0].upper()}{place[1:]}, {line['status']}: {line['message']}")
            if len(found) == most:
                break
        return found

    def manifest(self, items: Iterable[Asked]) -> Iterator[bytes]:
        """``manifest.jsonl``: one line for each image that was asked for, in order."""
        return (json.dumps(self._line(item), sort_keys=True).encode() + b"\n" for item in items)

    def _line(self, item: Asked) -> dict[str, Any]:
        of_row = {"row": item.row, "labels": item.labels, "fingerprint": item.fingerprint}
        if item.line is not None:
            of_row["line"] = item.line
        packed = self._lines[item.fingerprint][1]
        return {**of_row, **json.loads(zlib.decompressobj(zdict=self._alike).decompress(packed))}
