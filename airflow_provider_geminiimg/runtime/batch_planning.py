"""The plan of a batch: from what it is asked for to the pictures that it will make, each known by its fingerprint."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit

import pydantic_core

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.batch.executor import (
    READERS,
    Plan,
    PlannedImage,
    fingerprints_of,
    host_of,
    places_of,
    plan,
)
from airflow_provider_geminiimg.core.batch.rows import ImageSpec, image_specs, read_rows
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import index_key, is_record_key
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.request import SHARED
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.core.validation.texts import normalized
from airflow_provider_geminiimg.runtime.task_run import TaskRun

_NAMED_TWINS = 5  # groups of rows that the log names


async def make_plan(
    arguments: TaskArguments,
    attempt: TaskRun,
    connection: GatewayConnection,
    purchase_context: PurchaseContext,
    requests: Any,
) -> Plan:
    """Read the rows and plan a picture for each.

    :raises BadRequestError: rows are wrong.
    :raises GeminiImageError: the store failed, or a record can't be read.
    """
    checked = arguments.checked
    encoding, delimiter = checked("encoding"), checked("delimiter")
    most = settings.max_batch_images()
    rows = await asyncio.to_thread(
        lambda: read_rows(requests, purchase_context.files, most=most, encoding=encoding, delimiter=delimiter)
    )
    wanted = image_specs(
        rows,
        {name: arguments[name] for name in SHARED},
        checked("n") or 1,
        gateway=connection.gateway,
        default_model=connection.model,
        most=most,
        file_name=checked("file_name"),
    )
    planned = await plan(
        wanted,
        connection,
        purchase_context,
        generation=attempt.generation,
        directory=checked("output_path") or attempt.folder,
        stems=[wish.stem for wish in wanted],
        prefix=attempt.destination(checked("output_path"), None).stem,
    )
    planned = await _as_known_before(planned, wanted, connection, _Records(attempt, checked("reuse") == "dag"))
    _tell_of_twins(planned, attempt.log)
    return planned


class _Records:
    """The records of a task instance: which images they are of, and to which hosts their requests were sent.

    :param of_dag: the images of its DAG's other tasks count as well.
    """

    def __init__(self, attempt: TaskRun, of_dag: bool) -> None:
        self._ledger = attempt.ledger
        self._path = attempt.item.path
        self._of_dag = of_dag
        self._unread: Iterator[str] = iter(())
        self._own: set[str] = set()

    def load(self) -> None:
        """List them. The first record of an image is the one that was sent to the host in its fingerprint."""
        folder = f"{self._path.rpartition('/')[0]}/"
        keys = [key for key in self._ledger.store.keys(folder) if is_record_key(key)]
        self._own = {_item_of(key) for key in keys}
        self._unread = iter(sorted(keys, key=lambda key: int(key.rpartition("/")[2].removesuffix(".json"))))

    def has(self, fingerprint: str, *, of_dag: bool = False) -> bool:
        """Whether there is a record of a fingerprint: this task instance's; or its DAG's, where that counts."""
        return fingerprint[:16] in self._own or (of_dag and index_key(self._path, fingerprint) in self._index)

    def none(self, *, of_dag: bool) -> bool:
        """Whether there are none at all."""
        return not self._own and not (of_dag and self._index)

    @cached_property
    def _index(self) -> set[str]:
        folder = index_key(self._path, "").rpartition("/")[0]
        return set(self._ledger.store.keys(f"{folder}/")) if self._of_dag else set()

    async def further_hosts(self, known: Collection[str], planned: Plan) -> list[str]:
        """The next hosts besides those that are known, of the records of images that are not planned; empty: no more.

        :raises LedgerError: a record can't be read.
        """
        items = planned.keys()
        unread = (key for key in self._unread if _item_of(key) not in items)
        while some := list(itertools.islice(unread, READERS)):
            records = await asyncio.gather(*(asyncio.to_thread(self._ledger.read, key) for key in some))
            paid = [found.record.api_host for found in records if found is not None]
            hosts = dict.fromkeys(urlsplit(f"//{host}").hostname or "" for host in paid if host)
            if further := [host for host in hosts if host not in known]:
                return further
        return []


def _item_of(key: str) -> str:
    """What the ledger calls the image of a record."""
    return key.split("/")[-2]


async def _as_known_before(
    planned: Plan, wanted: Sequence[ImageSpec], connection: GatewayConnection, records: _Records
) -> Plan:
    """The plan with the pictures that have a record under another fingerprint than theirs under that one, so that what
    was paid for then is found, and not bought again: it holds a host to which the connection led before; or, for the
    first of a row's several pictures, the variant ``1``, which versions before gave it; or another spelling of a whole
    number as the variant, or another id of the model, which versions before told apart.

    To which hosts the connection led is read from the records, until each picture is known or no record is left.
    """
    await asyncio.to_thread(records.load)
    renumbered = any(wish.earlier_variant or wish.earlier_spellings for wish in wanted)
    if await asyncio.to_thread(lambda: records.none(of_dag=renumbered)):
        return planned
    hosts: list[str] = []
    while True:
        known = partial(records.has, of_dag=renumbered or bool(hosts))
        found = await asyncio.to_thread(_known_under, planned, wanted, connection, hosts, known)
        if all(known(item.fingerprint) for item in found.items):
            return found
        further = await records.further_hosts([host_of(connection), *hosts], found)
        if not further:
            return found
        hosts += further


def _known_under(
    planned: Plan,
    wanted: Sequence[ImageSpec],
    connection: GatewayConnection,
    other_hosts: Sequence[str],
    known: Callable[[str], bool],
) -> Plan:
    """The plan with what is known under earlier fingerprints, for some hosts; no two pictures get one record."""
    owners = {item.fingerprint: item.fingerprint for item in planned.items}
    for wish, item in zip(wanted, planned.items, strict=True):
        for _, _, fingerprint in _earlier_fingerprints(
            replace(wish, earlier_variant=None, earlier_spellings=()), item, connection, other_hosts
        ):
            owners.setdefault(fingerprint, item.fingerprint)
    items = list(planned.items)
    for number, (wish, item) in enumerate(zip(wanted, items, strict=True)):
        if known(item.fingerprint):
            continue
        for variant, host, fingerprint in _earlier_fingerprints(wish, item, connection, other_hosts):
            if known(fingerprint) and owners.setdefault(fingerprint, item.fingerprint) == item.fingerprint:
                values = {**item.values, **({} if variant is None else {"variant": variant})}
                stem = item.stem.replace(item.fingerprint[:12], fingerprint[:12]) if wish.stem is None else item.stem
                items[number] = replace(item, values=values, fingerprint=fingerprint, stem=stem, host=host)
                break
    return planned.model_copy(update={"items": tuple(items)})


def _earlier_fingerprints(
    wish: ImageSpec, item: PlannedImage, connection: GatewayConnection, other_hosts: Sequence[str]
) -> Iterator[tuple[str | None, str | None, str]]:
    """By what one picture may have been known before, each with its variant and host."""
    earlier = wish.earlier_variant or wish.request.variant
    variants = dict.fromkeys([wish.request.variant, earlier, *wish.earlier_spellings])
    for variant, host in itertools.product(variants, [None, *other_hosts]):
        request = replace(wish.request, variant=variant)
        for fingerprint in fingerprints_of(request, item.input_sha256, connection, host):
            yield variant, host, fingerprint


def _tell_of_twins(planned: Plan, log: Logs) -> None:
    """Log which rows ask for one picture, and which for two that differ by nothing that anybody sees."""
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
        log.info("Made once, as the rows ask for the same picture: %s.", _groups(once))
    if twice:
        log.warning(
            "Bought for each row, though the prompts differ by nothing but white space or the way in which their "
            "letters are encoded: %s.",
            _groups(twice),
        )


def _groups(groups: Sequence[Sequence[PlannedImage]]) -> str:
    more = f"; and {len(groups) - _NAMED_TWINS} more groups" if len(groups) > _NAMED_TWINS else ""
    return "; ".join(places_of(items) for items in groups[:_NAMED_TWINS]) + more
