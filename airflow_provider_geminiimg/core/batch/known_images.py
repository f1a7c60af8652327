"""Images of a plan that have a record under another fingerprint, from an earlier version or another API host.

Invariants: an image that was paid for under an earlier fingerprint is found and not bought again. Two images of a plan
never share a record.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.batch.image_specs import ImageSpec
from airflow_provider_geminiimg.core.batch.plan import READS_AT_ONCE, Plan, PlannedImage, fingerprints_of, host_of
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.layout import index_key, is_record_key
from airflow_provider_geminiimg.core.ledger.records import Ledger


class TaskRecords:
    """The records of a task instance: their fingerprints and the API hosts of their requests.

    :param ledger: the ledger.
    :param path: ledger path of one item of the task instance.
    :param of_dag: include the images of the other tasks of the DAG.
    """

    def __init__(self, ledger: Ledger, path: str, *, of_dag: bool) -> None:
        self._ledger = ledger
        self._path = path
        self._of_dag = of_dag
        self._unread: Iterator[str] = iter(())
        self._own: set[str] = set()

    def load(self) -> None:
        """List the records. The first record of an image has the API host of its fingerprint, so it is read first."""
        folder = f"{self._path.rpartition('/')[0]}/"
        keys = [key for key in self._ledger.store.keys(folder) if is_record_key(key)]
        self._own = {_item_of(key) for key in keys}
        self._unread = iter(sorted(keys, key=lambda key: int(key.rpartition("/")[2].removesuffix(".json"))))

    def has(self, fingerprint: str, *, of_dag: bool = False) -> bool:
        """Whether a record of this task instance has the fingerprint; with `of_dag`, also of other tasks of the DAG."""
        return fingerprint[:16] in self._own or (of_dag and index_key(self._path, fingerprint) in self._index)

    def none(self, *, of_dag: bool) -> bool:
        """Whether there are no records at all."""
        return not self._own and not (of_dag and self._index)

    @cached_property
    def _index(self) -> set[str]:
        folder = index_key(self._path, "").rpartition("/")[0]
        return set(self._ledger.store.keys(f"{folder}/")) if self._of_dag else set()

    async def further_hosts(self, known: Collection[str], planned: Plan) -> list[str]:
        """Further API hosts in records of images that are not in the plan; empty if no record is left.

        :param known: hosts that are not returned.
        :raises LedgerError: a record can't be read.
        """
        items = planned.keys()
        unread = (key for key in self._unread if _item_of(key) not in items)
        while some := list(itertools.islice(unread, READS_AT_ONCE)):
            records = await asyncio.gather(*(asyncio.to_thread(self._ledger.read, key) for key in some))
            paid = [found.record.api_host for found in records if found is not None]
            hosts = dict.fromkeys(urlsplit(f"//{host}").hostname or "" for host in paid if host)
            if further := [host for host in hosts if host not in known]:
                return further
        return []


def _item_of(key: str) -> str:
    """The item name in a record key."""
    return key.split("/")[-2]


async def with_known_images(
    planned: Plan, specs: Sequence[ImageSpec], connection: GatewayConnection, records: TaskRecords
) -> Plan:
    """The plan, in which each image with a record under an earlier fingerprint has that fingerprint.

    An earlier fingerprint differs in one of these: an earlier API host of the connection; the variant ``1``, which
    earlier versions gave to the first of several images of a row; another spelling of a whole number as variant;
    another id of the same model.

    Earlier hosts are read from the records, until each image is found or no record is left.

    :param specs: the specs of the plan, in its order.
    :raises LedgerError: a record can't be read.
    """
    await asyncio.to_thread(records.load)
    renumbered = any(spec.earlier_variant or spec.earlier_spellings for spec in specs)
    if await asyncio.to_thread(lambda: records.none(of_dag=renumbered)):
        return planned
    hosts: list[str] = []
    while True:
        known = partial(records.has, of_dag=renumbered or bool(hosts))
        aliases = _Aliases(connection, tuple(hosts))
        found = await asyncio.to_thread(_known_under, planned, specs, aliases, known)
        if all(known(item.fingerprint) for item in found.items):
            return found
        further = await records.further_hosts([host_of(connection), *hosts], found)
        if not further:
            return found
        hosts += further


@dataclass(frozen=True, slots=True)
class _Alias:
    """An earlier fingerprint of an image, with its variant and API host."""

    variant: str | None
    host: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Aliases:
    """The earlier fingerprints of images.

    :param other_hosts: earlier API hosts of the connection.
    """

    connection: GatewayConnection
    other_hosts: tuple[str, ...]

    def of(self, spec: ImageSpec, item: PlannedImage) -> Iterator[_Alias]:
        """All earlier fingerprints of an image."""
        earlier = spec.earlier_variant or spec.request.variant
        return self._of(spec, item, [spec.request.variant, earlier, *spec.earlier_spellings])

    def of_today(self, spec: ImageSpec, item: PlannedImage) -> Iterator[_Alias]:
        """The earlier fingerprints with today's variant of the image."""
        return self._of(spec, item, [spec.request.variant])

    def _of(self, spec: ImageSpec, item: PlannedImage, variants: Sequence[str | None]) -> Iterator[_Alias]:
        for variant, host in itertools.product(dict.fromkeys(variants), [None, *self.other_hosts]):
            request = replace(spec.request, variant=variant)
            for fingerprint in fingerprints_of(request, item.input_sha256, self.connection, host):
                yield _Alias(variant, host, fingerprint)


def _known_under(planned: Plan, specs: Sequence[ImageSpec], aliases: _Aliases, known: Callable[[str], bool]) -> Plan:
    """The plan with earlier fingerprints, for the given hosts. Two images never get the same record."""
    owners = {item.fingerprint: item.fingerprint for item in planned.items}
    pairs = list(zip(specs, planned.items, strict=True))
    for spec, item in pairs:
        for alias in aliases.of_today(spec, item):
            owners.setdefault(alias.fingerprint, item.fingerprint)
    items = list(planned.items)
    for number, (spec, item) in enumerate(pairs):
        if known(item.fingerprint):
            continue
        for alias in aliases.of(spec, item):
            if known(alias.fingerprint) and owners.setdefault(alias.fingerprint, item.fingerprint) == item.fingerprint:
                items[number] = _renamed(spec, item, alias)
                break
    return planned.model_copy(update={"items": tuple(items)})


def _renamed(spec: ImageSpec, item: PlannedImage, alias: _Alias) -> PlannedImage:
    values = {**item.values, **({} if alias.variant is None else {"variant": alias.variant})}
    usual = item.stem.replace(item.fingerprint[:12], alias.fingerprint[:12])
    stem = usual if spec.stem is None else item.stem
    return replace(item, values=values, fingerprint=alias.fingerprint, stem=stem, host=alias.host)
