"""The results of a batch: counts, cost, and one compressed manifest line per image.

Invariants: every row ends with one status, and the counts of the statuses add up to the number of rows. Only the
compressed manifest line of an image stays in memory.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from airflow_provider_geminiimg.core.batch.columns import place_of
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError

Status = Literal["landed", "reused", "refused", "failed", "unknown", "skipped"]
STATUSES: tuple[Status, ...] = ("landed", "reused", "refused", "failed", "unknown", "skipped")
GOOD: tuple[Status, ...] = ("landed", "reused")
_OF_ROW = ("row", "line", "labels", "fingerprint")


class RequestedImage(Protocol):
    """The image of a row; several rows may have the same image."""

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
    """The result of one image.

    :param status: one of `STATUSES`.
    :param manifest: of the image, if it landed.
    :param error: why it did not land, or why it does not match the request.
    """

    status: Status
    manifest: Mapping[str, Any] | None = None
    error: GeminiImageError | None = None

    def line(self) -> dict[str, Any]:
        """The fields of the manifest line, the same for every row with this image."""
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
        self._alike = b""  # the first line; as compression dictionary it shrinks the others to a third

    def add(self, fingerprint: str, result: Result) -> None:
        """Add the result of one image. Called once per image."""
        error = result.error
        line = json.dumps(result.line()).encode()
        cost = cost_with(self.cost, result.status, result.manifest)
        # First compute everything that can fail, then count.
        self.ended[result.status] += 1
        self.cost = cost
        self.retryable = self.retryable or (error is not None and error.retryable)
        self.all_landed = self.all_landed and result.manifest is not None
        self._billed.add(Billed.YES if error is None else error.billed)
        self._alike = self._alike or line
        packer = zlib.compressobj(1, zdict=self._alike)
        self._lines[fingerprint] = (result.status, packer.compress(line) + packer.flush())

    @property
    def collected(self) -> bool:
        """Whether any image is in storage."""
        return any(self.ended[status] for status in GOOD)

    @property
    def billed(self) -> Billed:
        """Whether money was spent on any image."""
        return billed_of(self._billed)

    def totals(self, items: Iterable[RequestedImage]) -> dict[str, Any]:
        """The number of rows, the counts by status, and the cost of this attempt by currency and basis of the price."""
        return totals(Counter(self._lines[item.fingerprint][0] for item in items), self.cost)

    def bad(self, items: Iterable[RequestedImage], most: int) -> list[str]:
        """One sentence for each of the first `most` rows with an error."""
        found: list[str] = []
        for item in items:
            line = self._line(item)
            if "message" in line:
                found.append(failure_of(item, line))
            if len(found) == most:
                break
        return found

    def manifest(self, items: Iterable[RequestedImage]) -> Iterator[bytes]:
        """The lines of ``manifest.jsonl``: one per row and image, in order."""
        return (manifest_line(item, self._line(item)) for item in items)

    def _line(self, item: RequestedImage) -> dict[str, Any]:
        packed = self._lines[item.fingerprint][1]
        line: dict[str, Any] = json.loads(zlib.decompressobj(zdict=self._alike).decompress(packed))
        return line


def cost_with(cost: Mapping[str, float], status: Status, manifest: Mapping[str, Any] | None) -> dict[str, float]:
    """The cost by currency and basis of the price, with the cost of one more image."""
    of_image = (manifest or {}).get("cost") or {}
    if status == "reused" or of_image.get("amount") is None:
        return dict(cost)
    label = ", estimate" if of_image.get("estimate") else ""
    name = f"{of_image['currency']} ({of_image.get('basis') or 'unknown'}{label})"
    return {**cost, name: round(cost.get(name, 0.0) + of_image["amount"], 6)}


def billed_of(all_billed: Collection[Billed]) -> Billed:
    """Whether money was spent on any image; there may be none."""
    return next((billed for billed in (Billed.YES, Billed.UNKNOWN) if billed in all_billed), Billed.NO)


def totals(counts: Mapping[Status, int], cost: Mapping[str, float]) -> dict[str, Any]:
    """The summary of a batch, without the manifest.

    :param counts: rows by status.
    """
    by_status = {status: counts.get(status, 0) for status in STATUSES}
    return {"items": sum(by_status.values()), "counts": by_status, "cost": dict(cost)}


def failure_of(item: RequestedImage, line: Mapping[str, Any]) -> str:
    """One sentence for a row with an error."""
    place = place_of(item.row, item.line, item.labels)
    return f"{place[0].upper()}{place[1:]}, {line['status']}: {line['message']}"


def manifest_line(item: RequestedImage, line: Mapping[str, Any]) -> bytes:
    """The line of ``manifest.jsonl`` for one row and image.

    :param line: from `Result.line`.
    """
    of_row = {"row": item.row, "labels": item.labels, "fingerprint": item.fingerprint}
    if item.line is not None:
        of_row["line"] = item.line
    return json.dumps({**of_row, **line}, sort_keys=True).encode() + b"\n"


def result_lines(manifest: bytes) -> dict[str, dict[str, Any]]:
    """Read what `manifest_line` wrote: the line of each image by its fingerprint, without the fields of its row."""
    found: dict[str, dict[str, Any]] = {}
    for text in manifest.splitlines():
        line = json.loads(text)
        found[line["fingerprint"]] = {name: value for name, value in line.items() if name not in _OF_ROW}
    return found
