"""Makes the plan of a batch: reads the input images, and gives each image its fingerprint and file name.

Invariants: two different images never get the same file name. An input image that can't be used is an error that names
its row, before money is spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pydantic_core

from airflow_provider_geminiimg.core.batch.image_specs import ImageSpec
from airflow_provider_geminiimg.core.batch.plan import READS_AT_ONCE, Plan, PlannedImage, fingerprints_of, places_of
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.purchase.inputs import input_digests
from airflow_provider_geminiimg.core.validation.texts import normalized
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError

_NAMED_TWINS = 5  # groups of rows named in the log


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


async def plan(
    specs: Sequence[ImageSpec], connection: GatewayConnection, purchase_context: PurchaseContext, header: PlanHeader
) -> Plan:
    """Read and check the input images, and give each image its fingerprint and file name.

    :raises BadRequestError: an input image can't be used, or two different images would have the same file name.
    :raises StorageError: an input image could not be read; a retry can help.
    """
    reading = asyncio.Semaphore(READS_AT_ONCE)

    async def digests(spec: ImageSpec) -> tuple[str, ...]:
        async with reading:
            try:
                return await input_digests(spec.request, purchase_context.files, purchase_context.memory)
            except GeminiImageError as error:
                message = f"{spec.place[0].upper()}{spec.place[1:]}: {error.message}"
                raise error.evolve(message=message) from error.__cause__

    found = iter(await asyncio.gather(*(digests(spec) for spec in specs if spec.request.input_images)))
    items = []
    for spec in specs:
        sha256 = next(found) if spec.request.input_images else ()
        fingerprint = fingerprints_of(spec.request, sha256, connection)[0]
        items.append(_planned(spec, sha256, fingerprint, spec.stem or f"{header.prefix}-{fingerprint[:12]}"))
    _refuse_clashes(items)
    return Plan(generation=header.generation, directory=header.directory, items=tuple(items))


def _planned(spec: ImageSpec, sha256: tuple[str, ...], fingerprint: str, stem: str) -> PlannedImage:
    request = spec.request
    values = {**request.fields(), "prompt": request.prompt, "model": request.model}
    inputs = {"image": request.image, "reference_images": list(request.reference_images)}
    return PlannedImage(
        row=spec.row,
        operation="edit" if request.operation == "edit" else "generate",
        values={**values, **{name: value for name, value in inputs.items() if value}},
        labels=dict(spec.labels),
        fingerprint=fingerprint,
        input_sha256=sha256,
        stem=stem,
        line=spec.line,
    )


def _refuse_clashes(items: Sequence[PlannedImage]) -> None:
    owners: dict[str, PlannedImage] = {}
    for item in items:
        owner = owners.setdefault(item.stem.casefold(), item)
        if owner.fingerprint != item.fingerprint:
            raise BadRequestError(
                f"file_name: {places_of((owner, item))} would both get the name {item.stem!r}.",
                hint="Add a column that differs to file_name, such as {row} or {variant}.",
            )


def log_twins(planned: Plan, log: Logs) -> None:
    """Log which rows request the same image, and which request two images with only invisible differences."""
    same: dict[str, list[PlannedImage]] = {}
    alike: dict[bytes, list[PlannedImage]] = {}
    for item in planned.items:
        same.setdefault(item.fingerprint, []).append(item)
        if len(same[item.fingerprint]) == 1:
            prompt = " ".join(normalized("NFC", str(item.values["prompt"])).split())
            rest = {**item.values, "prompt": prompt, "image": None, "reference_images": None}
            alike.setdefault(pydantic_core.to_json([rest, item.input_sha256, item.operation]), []).append(item)
    once = [items for items in same.values() if len(items) > 1]
    twice = [items for items in alike.values() if len(items) > 1]
    if once:
        log.info("These rows request the same image, so it is made once: %s.", _groups(once))
    if twice:
        log.warning(
            "An image is bought for each of these rows, although their prompts differ only in white space or in the "
            "encoding of letters: %s.",
            _groups(twice),
        )


def _groups(groups: Sequence[Sequence[PlannedImage]]) -> str:
    more = f"; and {len(groups) - _NAMED_TWINS} more groups" if len(groups) > _NAMED_TWINS else ""
    return "; ".join(places_of(items) for items in groups[:_NAMED_TWINS]) + more
