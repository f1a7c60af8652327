"""The tasks of a batch that several workers make: one plans, mapped tasks make a shard each, one merges the results.

Invariants: the plan is saved before the first paid request; its first shard is saved last, so that a plan counts only
when it is complete. All records belong to one task instance, that of the shards
without map index, so that neither another number of shards nor a row in another shard buys an image again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow.sdk import Context

from airflow_provider_geminiimg.core.batch.forecast import prices_of, to_buy
from airflow_provider_geminiimg.core.batch.merge import MergedResults
from airflow_provider_geminiimg.core.batch.plan import READS_AT_ONCE, PlannedImage
from airflow_provider_geminiimg.core.batch.shards import CLEARS, Shard, Shards, ShardSize
from airflow_provider_geminiimg.core.batch.summary import result_lines
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.ledger.caps import caps_set
from airflow_provider_geminiimg.core.ledger.layout import PLANS, TaskIndex, plan_of, plans_below
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.purchase.order import Marker
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequestStore
from airflow_provider_geminiimg.core.storage import join_uri
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.runtime import batch_task
from airflow_provider_geminiimg.runtime.batch_task import BatchTask
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.task_run import TaskRun
from airflow_provider_geminiimg.runtime.task_state import SharedMarker

_IN_MEMORY = 8 << 20  # bytes of the manifest that are merged in memory; a longer one is written to a temporary file
PREFETCHED = 100  # shards in a batch; with more, a shard lists only the records of its own images
_SAVED_AT_ONCE = 4_000  # images in plans that are being saved
MAX_RESULTS = 1 << 30  # bytes of the results of one shard


class WideRun(TaskRun):
    """One try of a task of a wide batch.

    :param shards: id of the task whose instances make the shards; ``None``: the running task.
    :param planned: generation of the plan; ``None``: this try makes the plan.
    """

    def __init__(
        self, context: Mapping[str, Any], log: Logs, shards: str | None = None, planned: int | None = None
    ) -> None:
        super().__init__(context, log)
        self.number = self.item.map_index
        self.item = replace(self.item, task_id=shards or self.item.task_id, map_index=-1)
        self.planned = self.generation * CLEARS if planned is None else planned
        self.generation = self.planned + (0 if planned is None else self.generation)
        self.shard: Shard | None = None

    def plans(self, number: int, marker: Marker | None = None) -> SavedRequestStore[Shard]:
        """Where the plan of a shard is saved."""
        return SavedRequestStore(Shard, self.ledger.store, PLANS, replace(self.item, map_index=number), marker)

    def read(self, number: int) -> Shard:
        """The plan of a shard.

        :raises LedgerError: it is missing, or can't be read.
        """
        found = self.plans(number).read(self.planned)
        if found is None:
            raise LedgerError(
                f"The plan of shard {number} is not under {self.ledger.store.uri}: workers do not share the ledger, or "
                "the plan was removed.",
                billed=Billed.UNKNOWN,
                hint="Nothing was sent by this attempt. Set [geminiimg] root to storage that all workers share; then "
                "clear the plan task and the tasks after it.",
            )
        return found

    def results(self, number: int) -> str:
        """URI of the results of a shard."""
        images = replace(self.item, map_index=number).images
        return join_uri(self.root, f"{images}/manifest-{self.planned}.jsonl")

    def prefetch(self, items: Iterable[str]) -> None:
        if self.shard is None or self.shard.requested <= PREFETCHED * len(self.shard.items):
            super().prefetch(items)

    @property
    def manifest(self) -> str:
        return super().manifest if self.shard is None else self.results(self.number)

    @property
    def is_first_attempt(self) -> bool:
        return super().is_first_attempt and (self.shard is None or self.shard.first_attempt)

    @property
    def token(self) -> str | None:
        """The token of the plan's task state; ``None`` before Airflow 3.3."""
        if self.shard is not None:
            return self.shard.told
        return None if self.plan_marker is None else self.plan_marker.token()

    def item_marker(self, item: str) -> Marker | None:
        token = self.token
        if token is None:
            return None
        return SharedMarker(token, None if self.shard is None else super().item_marker(item))


# The plan


def run_plan(task: BatchTask, size: ShardSize, shards: str, context: Context) -> list[dict[str, int]]:
    """Read and check the rows, and save a plan for each shard.

    :param shards: id of the task whose instances make the shards.
    :returns: for each shard: its number, the number of its images, and the generation of the plan.
    :raises GeminiImageError: nothing was sent: rows are wrong, or `max_cost` is lower than the estimate.
    """
    try:
        task.arguments.refuse_missing()
        attempt = WideRun(context, task.log, shards)
        attempt.plans(0, attempt.plan_marker).read(attempt.planned)  # refuses if the plan of an earlier try is missing
        requests = task.rows(context)
        sizes = run(lambda: closed(_divided(task, size, attempt, requests)), task.guard)
        if isinstance(sizes, GeminiImageError):
            raise sizes
    except GeminiImageError as error:
        raise_outcome(error)
    task.log.info("%s images in %s shards.", sum(sizes), len(sizes))
    return [{"shard": number, "images": images, "generation": attempt.planned} for number, images in enumerate(sizes)]


async def _divided(task: BatchTask, size: ShardSize, attempt: WideRun, requests: Any) -> list[int]:
    """Save a plan for each shard; return the numbers of their images."""
    connection = batch_task.connection_of(task.arguments, attempt)
    max_cost = task.arguments.checked("max_cost")
    async with attempt.purchase_context() as purchase_context:
        await asyncio.to_thread(attempt.ledger.store.probe)
        async with batch_task.drafts_of(task.arguments, attempt, connection, purchase_context, requests) as drafts:
            count = size.shards_for(len(drafts.drafts))
            prices: Mapping[str, int] = {}
            if caps_set(connection, max_cost):
                await asyncio.to_thread(attempt.prefetch, drafts.keys)
                batch = batch_task.batch_context(task, attempt, purchase_context, connection, drafts.empty())
                wanted = {item.key async for item in to_buy(batch, drafts.drafts.items())}
                prices = prices_of((item for item in drafts.drafts.items() if item.key in wanted), connection, max_cost)
            told = await asyncio.to_thread(lambda: attempt.token)
            shards = Shards(drafts, count, prices, max_cost, first_attempt=attempt.is_first_attempt, told=told)
            await asyncio.to_thread(batch_task.note_planned, task, attempt, drafts.keys)
            await _save(attempt, shards)
    return [shards.size(number) for number in range(count)]


async def _save(attempt: WideRun, shards: Shards) -> None:
    """Save the plans of all shards, the first one last, and delete those of shards that are no more."""
    turn = asyncio.Semaphore(max(1, min(READS_AT_ONCE, _SAVED_AT_ONCE // shards.size(0))))

    async def save(number: int, marker: Marker | None = None) -> None:
        async with turn:
            await asyncio.to_thread(attempt.plans(number, marker).write, attempt.planned, shards.shard(number))

    await asyncio.gather(*map(save, range(1, len(shards))))
    await save(0, attempt.plan_marker)
    await asyncio.to_thread(_delete_others, attempt, len(shards))


def _delete_others(attempt: WideRun, count: int) -> None:
    store = attempt.ledger.store
    for key in store.keys(plans_below(PLANS, attempt.item.task_instance)):
        known = plan_of(key)
        index = TaskIndex(-1) if known is None else known[1]
        if index.iteration == attempt.item.iteration and index.map_index >= count:
            store.delete(key)


# A shard


def run_shard(task: BatchTask, shard: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Make the images of one shard; see `batch_task.run_task`.

    :param shard: from `run_plan`.
    """
    return batch_task.returned(task, context, lambda: _made(task, shard, context))


def _made(task: BatchTask, described: Mapping[str, Any], context: Context) -> tuple[dict[str, Any], Exception | None]:
    task.arguments.refuse_missing()
    attempt = WideRun(context, task.log, planned=int(described["generation"]))
    attempt.number = int(described["shard"])
    shard = attempt.shard = attempt.read(attempt.number)
    batch_task.write_manifest(attempt.files, attempt.manifest, [], Billed.UNKNOWN)  # earlier results count no more
    arguments = task.arguments
    wanted = arguments.checked("min_success")
    values = {
        "max_cost": shard.max_cost,
        "min_success": wanted if isinstance(wanted, float) else shard.part_of(wanted),
    }
    checks = {**arguments.checks, **dict.fromkeys(values, _as_it_is)}
    task = replace(task, arguments=replace(arguments, values={**arguments.values, **values}, checks=checks))
    return batch_task.make(task, attempt, attempt.plans(attempt.number), shard, None)


def _as_it_is(name: str, value: Any) -> Any:
    return value


# The merge


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """See `batch_task.Outcomes`. A retry of the merge makes no image."""

    billed: Billed
    retryable: bool = False


def run_merge(task: BatchTask, planned: Sequence[Mapping[str, Any]], shards: str, context: Context) -> dict[str, Any]:
    """Write the manifest of all shards; return the summary.

    :param planned: what `run_plan` returned.
    :param shards: id of the task whose instances made the shards.
    :raises GeminiImageError: fewer than `min_success` images landed, or the store failed.
    """
    return batch_task.returned(task, context, lambda: _merged(task, planned, shards, context))


def _merged(
    task: BatchTask, planned: Sequence[Mapping[str, Any]], shards: str, context: Context
) -> tuple[dict[str, Any], Exception | None]:
    task.arguments.refuse_missing()
    if not planned:
        raise BadRequestError("plan: is empty.", hint="Clear the plan task and the tasks after it.")
    attempt = WideRun(context, task.log, shards, int(planned[0]["generation"]))
    merged = MergedResults(batch_task.NAMED_FAILURES, lambda item: _latest(attempt, item))
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as lines:
        for number in range(len(planned)):
            shard = attempt.read(number)
            lines.writelines(merged.lines(shard, _results(attempt, number)))
        failure: GeminiImageError | None = None
        lines.seek(0)
        try:
            batch_task.write_manifest(attempt.files, attempt.manifest, _pieces(lines), merged.billed)
        except GeminiImageError as error:
            failure = error
    summary = {**merged.totals, "manifest": None if failure else attempt.manifest}
    task.log.info("%s", summary)
    wanted = task.arguments.checked("min_success")
    outcomes = _Outcomes(merged.billed)
    return summary, failure or batch_task.incomplete(wanted, summary, outcomes, merged.failures)


def _results(attempt: WideRun, number: int) -> dict[str, dict[str, Any]]:
    """The results of a shard by fingerprint; empty if its last attempt did not end, or never began."""
    uri = attempt.results(number)
    if attempt.files.state(uri) == "gone":
        return {}
    return result_lines(attempt.files.read(uri, max_bytes=MAX_RESULTS))


def _latest(attempt: WideRun, item: PlannedImage) -> Record | None:
    found = attempt.ledger.latest(replace(attempt.item, item=item.key))
    return None if found is None else found.record


def _pieces(lines: Any) -> Iterator[bytes]:
    while piece := lines.read(1 << 20):
        yield piece
