"""The plan of a batch: from what it is asked for to the pictures that it will make, each known by its fingerprint."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pydantic_core

from airflow_provider_geminiimg._logs import Logs
from airflow_provider_geminiimg.attempt import Attempt
from airflow_provider_geminiimg.batch import Plan, Planned, fingerprints_of, host_of, places_of, plan
from airflow_provider_geminiimg.catalog import other_ids
from airflow_provider_geminiimg.connection import GatewayConnection
from airflow_provider_geminiimg.index import index_key
from airflow_provider_geminiimg.landing import Workshop, in_thread
from airflow_provider_geminiimg.operators.batch import SHARED, GeminiImageBatchOperator
from airflow_provider_geminiimg.rows import Wish, read_rows, wishes

_NAMED_TWINS = 5  # groups of rows that the log names


async def make_plan(
    operator: GeminiImageBatchOperator,
    attempt: Attempt,
    connection: GatewayConnection,
    workshop: Workshop,
    requests: Any,
    earlier: Plan | None,
) -> Plan:
    """Read the rows and plan a picture for each.

    :param earlier: what was planned before the task was cleared.
    :raises BadRequestError: rows are wrong.
    :raises GeminiImageError: the store failed, or a record can't be read.
    """
    checked = operator._checked
    encoding, delimiter = checked("encoding"), checked("delimiter")
    rows = await in_thread(lambda: read_rows(requests, workshop.files, encoding=encoding, delimiter=delimiter))
    wanted = wishes(
        rows,
        {name: getattr(operator, name) for name in SHARED},
        checked("n") or 1,
        gateway=connection.gateway,
        default_model=connection.model,
        file_name=checked("file_name"),
    )
    planned = await plan(
        wanted,
        connection,
        workshop.files,
        generation=attempt.generation,
        directory=checked("output_path") or attempt.folder,
        stems=[wish.stem for wish in wanted],
        prefix=attempt.destination(checked("output_path"), None).stem,
    )
    hosts = () if earlier is None else earlier.hosts
    other_hosts = [host for host in hosts if host != host_of(connection)]
    renumbered = bool(other_hosts) or any(wish.earlier_variant for wish in wanted)
    if renumbered or any(other_ids(wish.request.row) for wish in wanted):
        known = await in_thread(_known_pictures, attempt, renumbered and checked("reuse") == "dag")
        planned = await in_thread(_as_known_before, planned, wanted, connection, other_hosts, known)
    _tell_of_twins(planned, attempt.log)
    return planned.model_copy(update={"hosts": (*other_hosts, host_of(connection))})


def _known_pictures(attempt: Attempt, of_dag: bool) -> Callable[[str], bool]:
    """What tells of a fingerprint whether there is a record of it: this task instance's, or its DAG's as well."""
    store = attempt.ledger.store
    folder = attempt.item.path.rpartition("/")[0]
    own = {key.removeprefix(f"{folder}/").partition("/")[0] for key in store.keys(f"{folder}/")}
    index = index_key(folder, "").rpartition("/")[0]
    of_others = set(store.keys(f"{index}/")) if of_dag else set()
    return lambda fingerprint: fingerprint[:16] in own or index_key(folder, fingerprint) in of_others


def _as_known_before(
    planned: Plan,
    wanted: Sequence[Wish],
    connection: GatewayConnection,
    other_hosts: Sequence[str],
    known: Callable[[str], bool],
) -> Plan:
    """The plan with the pictures that have a record under another fingerprint than theirs under that one, so that what
    was paid for then is found, and not bought again: it holds a host to which the connection led before; or, for the
    first of a row's several pictures, the variant ``1``, which versions before gave it; or another id of the model,
    which versions before told apart.
    """
    taken = {item.fingerprint for item in planned.items}
    items = list(planned.items)
    for number, (wish, item) in enumerate(zip(wanted, items, strict=True)):
        if known(item.fingerprint):
            continue
        for variant, host, fingerprint in _earlier_fingerprints(wish, item, connection, other_hosts):
            if fingerprint not in taken and known(fingerprint):
                values = {**item.values, **({} if variant is None else {"variant": variant})}
                stem = item.stem.replace(item.fingerprint[:12], fingerprint[:12]) if wish.stem is None else item.stem
                items[number] = replace(item, values=values, fingerprint=fingerprint, stem=stem, host=host)
                break
    return planned.model_copy(update={"items": tuple(items)})


def _earlier_fingerprints(
    wish: Wish, item: Planned, connection: GatewayConnection, other_hosts: Sequence[str]
) -> Iterator[tuple[str | None, str | None, str]]:
    """By what one picture may have been known before, each with its variant and host."""
    variants = dict.fromkeys([wish.request.variant, wish.earlier_variant or wish.request.variant])
    for variant, host in itertools.product(variants, [None, *other_hosts]):
        request = replace(wish.request, variant=variant)
        for fingerprint in fingerprints_of(request, item.input_sha256, connection, host):
            yield variant, host, fingerprint


def _tell_of_twins(planned: Plan, log: Logs) -> None:
    """Log which rows ask for one picture, and which for two that differ by nothing that anybody sees."""
    same: dict[str, list[Planned]] = {}
    alike: dict[bytes, list[Planned]] = {}
    for item in planned.items:
        same.setdefault(item.fingerprint, []).append(item)
        if len(same[item.fingerprint]) == 1:
            prompt = " ".join(unicodedata.normalize("NFC", str(item.values["prompt"])).split())
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


def _groups(groups: Sequence[Sequence[Planned]]) -> str:
    more = f"; and {len(groups) - _NAMED_TWINS} more groups" if len(groups) > _NAMED_TWINS else ""
    return "; ".join(places_of(items) for items in groups[:_NAMED_TWINS]) + more
