"""Images of a plan that have a record under another fingerprint, from an earlier version or another API host.

Invariants: an image that was paid for under an earlier fingerprint is found and not bought again. Two images of a plan
never share a record.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.batch.drafts import Alias, Draft, Drafts
from airflow_provider_geminiimg.core.batch.plan import READS_AT_ONCE, fingerprints_of, host_of, key_of
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

    async def further_hosts(self, known: Collection[str], items: Container[str]) -> list[str]:
        """Further API hosts in records of images that are not in the plan; empty if no record is left.

        :param known: hosts that are not returned.
        :param items: item names of the images in the plan.
        :raises LedgerError: a record can't be read.
        """
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


async def known_images(drafts: Drafts, connection: GatewayConnection, records: TaskRecords) -> dict[int, Alias]:
    """The earlier fingerprints of images that have a record under one, by index.

    An earlier fingerprint differs in one of these: an earlier API host of the connection; the variant ``1``, which
    earlier versions gave to the first of several images of a row; another spelling of a whole number as variant;
    another id of the same model.

    Earlier hosts are read from the records, until each image is found or no record is left.

    :raises LedgerError: a record can't be read.
    """
    await asyncio.to_thread(records.load)
    renumbered = drafts.has_earlier_variants
    if await asyncio.to_thread(lambda: records.none(of_dag=renumbered)):
        return {}
    hosts: list[str] = []
    while True:
        known = partial(records.has, of_dag=renumbered or bool(hosts))
        unknown = {index for index, draft in enumerate(drafts) if not known(draft.item.fingerprint)}
        aliases = _Aliases(connection, tuple(hosts))
        found = await asyncio.to_thread(_known_under, drafts, unknown, aliases, known) if unknown else {}
        if len(found) == len(unknown):
            return found
        keys = {
            draft.item.key if index not in found else key_of(found[index].fingerprint)
            for index, draft in enumerate(drafts)
        }
        further = await records.further_hosts([host_of(connection), *hosts], keys)
        if not further:
            return found
        hosts += further


@dataclass(frozen=True, slots=True)
class _Aliases:
    """The earlier fingerprints of images.

    :param other_hosts: earlier API hosts of the connection.
    """

    connection: GatewayConnection
    other_hosts: tuple[str, ...]

    def of(self, draft: Draft) -> Iterator[Alias]:
        """All earlier fingerprints of an image."""
        variant = draft.item.values.get("variant")
        return self._of(draft, [variant, draft.earlier_variant or variant, *draft.earlier_spellings])

    def of_today(self, draft: Draft) -> Iterator[Alias]:
        """The earlier fingerprints with today's variant of the image."""
        return self._of(draft, [draft.item.values.get("variant")])

    def _of(self, draft: Draft, variants: Sequence[str | None]) -> Iterator[Alias]:
        checked = draft.item.checked(self.connection)
        for variant, host in itertools.product(dict.fromkeys(variants), [None, *self.other_hosts]):
            request = replace(checked, variant=variant)
            for fingerprint in fingerprints_of(request, draft.item.input_sha256, self.connection, host):
                yield Alias(variant, host, fingerprint)


def _known_under(
    drafts: Drafts, unknown: Container[int], aliases: _Aliases, known: Callable[[str], bool]
) -> dict[int, Alias]:
    """The earlier fingerprints, for the given hosts. Two images never get the same record.

    :param unknown: indices of the images without a record.
    """
    owners = {item.key: item.key for item in drafts.items()}
    for draft in drafts:
        for alias in aliases.of_today(draft):
            owners.setdefault(key_of(alias.fingerprint), draft.item.key)
    found: dict[int, Alias] = {}
    for index, draft in enumerate(drafts):
        for alias in aliases.of(draft) if index in unknown else ():
            owner = owners.setdefault(key_of(alias.fingerprint), draft.item.key) if known(alias.fingerprint) else ""
            if owner == draft.item.key:
                found[index] = alias
                break
    return found
