"""The images of a plan that is being made, in a temporary file.

Invariants: some hundred images are in memory at a time. The file has no name, so it is gone when the process ends.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_geminiimg.core.batch.image_specs import ImageSpec
from airflow_provider_geminiimg.core.batch.plan import PlannedImage

CHUNK = 256
"""Images that are written or read together."""
_IN_MEMORY = 4 << 20  # bytes; a longer file is on disk


@dataclass(frozen=True, slots=True)
class Alias:
    """An earlier fingerprint of an image, with its variant and API host."""

    variant: str | None
    host: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Draft:
    """One image of a plan that is being made.

    :param item: with an empty fingerprint until its input images have been read.
    :param is_named: whether the rows determine the file name; otherwise it contains the fingerprint.
    :param earlier_variant: see `ImageSpec`.
    :param earlier_spellings: see `ImageSpec`.
    """

    item: PlannedImage
    is_named: bool
    earlier_variant: str | None
    earlier_spellings: tuple[str, ...]

    @classmethod
    def of(cls, spec: ImageSpec) -> Draft:
        """The draft of an image whose input images have not been read."""
        request = spec.request
        values = {**request.fields(), "prompt": request.prompt, "model": request.model}
        inputs = {"image": request.image, "reference_images": list(request.reference_images)}
        item = PlannedImage(
            row=spec.row,
            operation="edit" if request.operation == "edit" else "generate",
            values={**values, **{name: value for name, value in inputs.items() if value}},
            labels=dict(spec.labels),
            fingerprint="",
            input_sha256=(),
            stem=spec.stem or "",
            line=spec.line,
        )
        return cls(item, spec.stem is not None, spec.earlier_variant, spec.earlier_spellings)

    def with_fingerprint(self, fingerprint: str, input_sha256: tuple[str, ...], prefix: str) -> Draft:
        """The draft after its input images have been read.

        :param prefix: start of a default file name.
        """
        stem = self.item.stem if self.is_named else f"{prefix}-{fingerprint[:12]}"
        return replace(self, item=replace(self.item, fingerprint=fingerprint, input_sha256=input_sha256, stem=stem))

    def renamed(self, alias: Alias) -> Draft:
        """The draft with an earlier fingerprint."""
        item = self.item
        values = {**item.values, **({} if alias.variant is None else {"variant": alias.variant})}
        usual = item.stem.replace(item.fingerprint[:12], alias.fingerprint[:12])
        stem = item.stem if self.is_named else usual
        return replace(
            self, item=replace(item, values=values, fingerprint=alias.fingerprint, stem=stem, host=alias.host)
        )


class Drafts:
    """The drafts of all images of a plan, in the order of the rows. A context manager, which deletes the file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by `__exit__`
        self._ends = [0]
        self._count = 0
        self._aliases: Mapping[int, Alias] = {}
        self.names: dict[str, str] = {}
        """The file names, from `str.casefold`, each with the item name of its image."""
        self.clash: PlannedImage | None = None
        """The first image with the file name of another image."""
        self.has_earlier_variants = False

    def __enter__(self) -> Drafts:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Draft]:
        return self.part(0, self._count)

    def add(self, some: Sequence[Draft]) -> None:
        """Add `CHUNK` drafts, or fewer for the last time."""
        for draft in some:
            item = draft.item
            if self.names.setdefault(item.stem.casefold(), item.key) != item.key and self.clash is None:
                self.clash = item
            self.has_earlier_variants |= bool(draft.earlier_variant or draft.earlier_spellings)
        self._count += len(some)
        self._file.write(zlib.compress(json.dumps([_values(each) for each in some]).encode(), 1))
        self._ends.append(self._file.tell())

    def rename(self, aliases: Mapping[int, Alias]) -> None:
        """Give images earlier fingerprints.

        :param aliases: by index.
        """
        self._aliases = aliases

    def part(self, start: int, end: int) -> Iterator[Draft]:
        """The drafts from one index to before another."""
        for first in range(start - start % CHUNK, end, CHUNK):
            at, until = self._ends[first // CHUNK : first // CHUNK + 2]
            self._file.seek(at)
            some = json.loads(zlib.decompress(self._file.read(until - at)))
            for index in range(max(start, first), min(end, first + len(some))):
                draft, alias = _draft(some[index - first]), self._aliases.get(index)
                yield draft if alias is None else draft.renamed(alias)

    def items(self) -> Iterator[PlannedImage]:
        """The images."""
        return (draft.item for draft in self)


def _values(draft: Draft) -> list[Any]:
    item = draft.item
    places = (item.stem, item.line, item.host)
    return [
        (item.row, item.operation, item.values, item.labels, item.fingerprint, item.input_sha256, *places),
        draft.is_named,
        draft.earlier_variant,
        draft.earlier_spellings,
    ]


def _draft(values: list[Any]) -> Draft:
    item, is_named, earlier_variant, earlier_spellings = values
    row, operation, fields, labels, fingerprint, input_sha256, *places = item
    planned = PlannedImage(row, operation, fields, labels, fingerprint, tuple(input_sha256), *places)
    return Draft(planned, is_named, earlier_variant, tuple(earlier_spellings))
