"""Makes the plan of a batch: reads the input images, and gives each image its fingerprint and file name.

Invariants: two different images never get the same file name. An input image that can't be used is an error that names
its row, before money is spent. Of the text of the rows, some hundred rows are in memory at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic_core

from airflow_provider_geminiimg.core.batch.columns import place_of
from airflow_provider_geminiimg.core.batch.drafts import CHUNK, Draft, Drafts
from airflow_provider_geminiimg.core.batch.image_specs import ImageSpec
from airflow_provider_geminiimg.core.batch.plan import (
    READS_AT_ONCE,
    Place,
    Plan,
    PlannedImage,
    fingerprints_of,
    places_of,
)
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.inputs import input_digests
from airflow_provider_geminiimg.core.validation.texts import normalized
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError

_NAMED_TWINS = 5  # groups of rows named in the log
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """Values for all images of a plan.

    :param generation: ``ti.max_tries`` of the attempt that makes the plan.
    :param directory: directory URI for the images.
    :param prefix: start of the default file names; the start of the fingerprint follows.
    """

    generation: int
    directory: str
    prefix: str


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """A plan that is being made.

    :param keys: item names of the images in the ledger.
    :param repeated: fingerprints of images that several rows request.
    """

    header: PlanHeader
    drafts: Drafts
    keys: Set[str]
    repeated: frozenset[str]

    def plan(self) -> Plan:
        """The plan, with all images in memory."""
        return self.empty().model_copy(update={"items": tuple(self.drafts.items())})

    def empty(self) -> Plan:
        """The plan without images."""
        return Plan(generation=self.header.generation, directory=self.header.directory, items=())


@contextlib.asynccontextmanager
async def drafted(
    specs: Iterable[ImageSpec], connection: GatewayConnection, purchase_context: PurchaseContext, header: PlanHeader
) -> AsyncIterator[Drafts]:
    """Read and check the input images, and give each image its fingerprint and file name.

    :param specs: see `image_specs`.
    :raises BadRequestError: rows are wrong, an input image can't be used, or two different images would have the same
        file name.
    :raises StorageError: an input image could not be read; a retry can help.
    """
    with Drafts() as checked, Drafts() as read:
        has_inputs = False

        def draft(spec: ImageSpec) -> Draft:
            nonlocal has_inputs
            if spec.request.input_images:
                has_inputs = True
                return Draft.of(spec)
            return Draft.of(spec).with_fingerprint(fingerprints_of(spec.request, (), connection)[0], (), header.prefix)

        for some in _chunks(map(draft, specs), CHUNK):
            checked.add(some)
        if has_inputs:
            reading = asyncio.Semaphore(READS_AT_ONCE)
            for some in _chunks(checked, CHUNK):
                read.add(
                    await asyncio.gather(*(_read(each, connection, purchase_context, header, reading) for each in some))
                )
        found = read if has_inputs else checked
        _refuse_clash(found)
        yield found


async def _read(
    draft: Draft,
    connection: GatewayConnection,
    purchase_context: PurchaseContext,
    header: PlanHeader,
    reading: asyncio.Semaphore,
) -> Draft:
    """The draft after its input images have been read."""
    item = draft.item
    if item.fingerprint:
        return draft
    request = item.checked(connection)
    async with reading:
        try:
            sha256 = await input_digests(request, purchase_context.files, purchase_context.memory)
        except GeminiImageError as error:
            place = place_of(item.row, item.line, item.labels)
            message = f"{place[0].upper()}{place[1:]}: {error.message}"
            raise error.evolve(message=message) from error.__cause__
    return draft.with_fingerprint(fingerprints_of(request, sha256, connection)[0], sha256, header.prefix)


def _refuse_clash(drafts: Drafts) -> None:
    if (item := drafts.clash) is not None:
        owner = next(each for each in drafts.items() if each.stem.casefold() == item.stem.casefold())
        raise BadRequestError(
            f"file_name: {places_of((owner, item))} would both get the name {item.stem!r}.",
            hint="Add a column that differs to file_name, such as {row} or {variant}.",
        )


def plan_of(header: PlanHeader, drafts: Drafts, log: Logs) -> DraftPlan:
    """The plan of drafts. Log which rows request the same image, and which request two images with only invisible
    differences.
    """
    keys: set[str] = set()
    visible: set[bytes] = set()
    repeated: set[str] = set()
    alike: set[bytes] = set()
    for item in drafts.items():
        if item.key in keys:
            repeated.add(item.fingerprint)
            continue
        keys.add(item.key)
        hashed = _visible(item)
        (alike if hashed in visible else visible).add(hashed)
    _log_twins(drafts, repeated, alike, log)
    return DraftPlan(header, drafts, keys, frozenset(repeated))


def _log_twins(drafts: Drafts, repeated: Set[str], alike: Set[bytes], log: Logs) -> None:
    once: dict[str, list[Place]] = {}
    twice: dict[bytes, list[Place]] = {}
    for item in drafts.items() if repeated or alike else ():
        place = Place(item.row, item.line)
        if alike and item.fingerprint not in once and (hashed := _visible(item)) in alike:
            twice.setdefault(hashed, []).append(place)
        if item.fingerprint in repeated:
            once.setdefault(item.fingerprint, []).append(place)
    if once:
        log.info("These rows request the same image, so it is made once: %s.", _named(once))
    if twice:
        log.warning(
            "An image is bought for each of these rows, although their prompts differ only in white space or in the "
            "encoding of letters: %s.",
            _named(twice),
        )


def _visible(item: PlannedImage) -> bytes:
    """A hash that is equal for requests with only invisible differences."""
    prompt = " ".join(normalized("NFC", str(item.values["prompt"])).split())
    rest = {**item.values, "prompt": prompt, "image": None, "reference_images": None}
    return hashlib.blake2b(pydantic_core.to_json([rest, item.input_sha256, item.operation]), digest_size=16).digest()


def _named(groups: Mapping[Any, Sequence[Place]]) -> str:
    more = f"; and {len(groups) - _NAMED_TWINS} more groups" if len(groups) > _NAMED_TWINS else ""
    return "; ".join(map(places_of, itertools.islice(groups.values(), _NAMED_TWINS))) + more


def _chunks(each: Iterable[_T], size: int) -> Iterator[Sequence[_T]]:
    source = iter(each)
    while some := list(itertools.islice(source, size)):
        yield some
