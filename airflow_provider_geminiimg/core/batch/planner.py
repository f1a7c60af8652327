"""Making the plan of a batch: each row's input images are read, and each image gets its fingerprint and its file name.

What must stay true: two images that differ never get one file name; an input that can't be used is an error that names
its row, before anything is paid for.
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

_NAMED_TWINS = 5  # groups of rows that the log names


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What holds for all images of a plan.

    :param generation: ``ti.max_tries`` of the attempt that makes the plan.
    :param directory: where the images land.
    :param prefix: begins the file name of each image whose row names none; its fingerprint follows.
    """

    generation: int
    directory: str
    prefix: str


async def plan(
    specs: Sequence[ImageSpec], connection: GatewayConnection, purchase_context: PurchaseContext, header: PlanHeader
) -> Plan:
    """Read and check the input images, and give every image its name.

    :raises BadRequestError: inputs can't be used, or two images would have one name.
    :raises StorageError: an input could not be read now.
    """
    reading = asyncio.Semaphore(READS_AT_ONCE)

    async def digests(spec: ImageSpec) -> tuple[str, ...]:
        async with reading:
            try:
                return await input_digests(spec.request, purchase_context.files, purchase_context.room)
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
                f"file_name: {places_of((owner, item))} would both be called {item.stem!r}.",
                hint="Give file_name a column that differs, such as {row} or {variant}.",
            )


def log_twins(planned: Plan, log: Logs) -> None:
    """Log which rows ask for the same image, and which for two that differ by nothing that anybody sees."""
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
        log.info("Made once, as the rows ask for the same image: %s.", _groups(once))
    if twice:
        log.warning(
            "Bought for each row, though the prompts differ by nothing but white space or the way in which their "
            "letters are encoded: %s.",
            _groups(twice),
        )


def _groups(groups: Sequence[Sequence[PlannedImage]]) -> str:
    more = f"; and {len(groups) - _NAMED_TWINS} more groups" if len(groups) > _NAMED_TWINS else ""
    return "; ".join(places_of(items) for items in groups[:_NAMED_TWINS]) + more
