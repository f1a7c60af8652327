"""A running sensor: polls a job that another task submitted, waits for it, stores its image.

Invariant: nothing here sends a paid request or cancels a job.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeGuard

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow.sdk import Context

from airflow_provider_geminiimg.core.catalog.lookup import default_model, row_name
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.ledger.file_names import reserve_name
from airflow_provider_geminiimg.core.ledger.job_index import another_records_job, key_of_job, owner
from airflow_provider_geminiimg.core.ledger.layout import record_key
from airflow_provider_geminiimg.core.ledger.manifest import Cost
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import StoredRecord, new_claim, process_identity
from airflow_provider_geminiimg.core.purchase.context import ConnectionChangedError
from airflow_provider_geminiimg.core.purchase.copying import asked_last, copy_to, find_image, moved_to, reused_manifest
from airflow_provider_geminiimg.core.purchase.decision import Asked, Copy, Policy, Refetch, Refuse, decide
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
from airflow_provider_geminiimg.core.purchase.waiting import JobCollector, VanishedError
from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.core.redaction.ranges import UNIX_SECONDS
from airflow_provider_geminiimg.core.validation.arguments import require_one_job
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.task_run import MAX_DEFERRALS, Pending, TaskRun, finished

_CHECK_THE_JOB = "Check job_id, model and geminiimg_conn_id."
_CLEAR_THE_SUBMIT = (
    "Check in the gateway's console whether the image was made and charged, then resolve the record: `jobs resolve`, "
    "or `resolve` of GeminiImageCollectOperator. To buy the image again in any case, resolve it as `resubmit`, or "
    'clear the submit task with on_unknown="resubmit".'
)
_SHARE_THE_ROOT = "Set [geminiimg] root to storage that all workers share."


@dataclass(frozen=True, slots=True)
class SensorTask:
    """The description of one sensor.

    :param arguments: of `GeminiImageJobSensor`.
    :param timeout: seconds until the sensor gives up.
    :param poke_interval: seconds between two polls in the worker.
    :param is_soft: skip the task, instead of failing it, when the sensor gives up.
    :param log: the logger of the task.
    """

    arguments: TaskArguments
    timeout: float
    poke_interval: float
    is_soft: bool
    log: Logs


# Waiting


def is_deferrable(task: SensorTask) -> bool:
    """Whether the sensor waits in the triggerer.

    :raises AirflowFailException: `deferrable` is neither true nor false.
    """
    try:
        return bool(task.arguments.checked("deferrable"))
    except BadRequestError as error:
        raise_outcome(error)


def start(task: SensorTask, context: Context) -> dict[str, Any] | Pending:
    """Poll once; return the manifest, or the deferral if the job is running."""
    seen = look(task, context)
    if is_running(seen):
        return _pending(task, context, seen, _deadline(task, context))
    return finish(task, seen)


def resume(task: SensorTask, context: Context, deadline: float | None, *, again: bool) -> dict[str, Any] | Pending:
    """Continue after a trigger fired: poll, and wait in the worker until the deadline.

    :param deadline: in Unix seconds; ``None``: `timeout` after the start of this try.
    :param again: the trigger ended early; defer again if the job is still running.
    """
    deadline = _deadline(task, context) if deadline is None else deadline
    seen = look(task, context, resumed=True)
    if is_running(seen) and again:
        return _pending(task, context, seen, deadline)
    return finish(task, _wait_here(task, context, seen, deadline))


def resume_crashed(task: SensorTask, context: Context, deadline: float | None) -> dict[str, Any] | Pending:
    """Continue after a trigger crashed or never ran: defer again, at most `MAX_DEFERRALS` times."""
    deadline = _deadline(task, context) if deadline is None else deadline
    seen = look(task, context, resumed=True)
    if is_running(seen) and time.time() < deadline and seen.deferrals < MAX_DEFERRALS:
        TaskRun(context, task.log).count_deferral(seen)
        return _pending(task, context, seen, deadline)
    return finish(task, _wait_here(task, context, seen, deadline))


def _deadline(task: SensorTask, context: Context) -> float:
    """`timeout` after the start of this try; a deferral does not change the start."""
    started: float = context["ti"].start_date.timestamp()
    return min(started + task.timeout, UNIX_SECONDS.high)  # a later one is no date


def _pending(task: SensorTask, context: Context, record: Record, deadline: float) -> Pending:
    return TaskRun(context, task.log).pending(record, deadline, task.arguments.checked("poll_interval"))


def _wait_here(task: SensorTask, context: Context, seen: Record | GeminiImageError, deadline: float) -> Any:
    """Poll every `poke_interval` seconds until the job has ended.

    :raises AirflowSensorTimeout: the job was still running at the deadline.
    :raises AirflowSkipException: likewise, if `is_soft`.
    """
    while is_running(seen):
        left = deadline - time.time()
        if left <= 0:
            said = f"Job {printable(str(seen.job_id))} was still running after {task.timeout:.0f} s. It keeps running. "
            said += f"To store its image, clear the sensor with a longer timeout. Record {seen.key}."
            raise AirflowSkipException(said) if task.is_soft else AirflowSensorTimeout(said)
        time.sleep(min(task.poke_interval, left))
        seen = look(task, context, resumed=True)
    return seen


def finish(task: SensorTask, seen: Record | GeminiImageError) -> dict[str, Any]:
    """The manifest, which is the return value of the task.

    :raises GeminiImageError: why there is no image, raised by `raise_outcome`.
    :raises AirflowFailException: the job failed.
    """
    if isinstance(seen, GeminiImageError):
        raise_outcome(seen)
    if seen.state == "failed":
        raise AirflowFailException(str(seen.error)) from seen.error
    _warn_of_destination(task, seen)
    return finished(dict(seen.manifest or {}), task.arguments.checked("on_mismatch"))


def _warn_of_destination(task: SensorTask, record: Record) -> None:
    output_path, file_name = task.arguments["output_path"], task.arguments["file_name"]
    used = [record.destination, *(Destination(**copy["destination"]) for copy in record.copies)]
    other_path = output_path and output_path.rstrip("/") not in [place.directory for place in used]
    if other_path or (file_name and file_name not in [place.stem for place in used]):
        task.log.warning(
            "The image landed at the destination of its submit task. output_path and file_name of the sensor apply "
            "only to job_id."
        )


# Looking


def look(task: SensorTask, context: Context, *, resumed: bool = False) -> Record | GeminiImageError:
    """Poll once, and store the image if it is ready.

    :param resumed: a trigger waited for the job, so the image is stored even if the record is missing.
    :returns: the record, which is ``landed``, ``failed`` or, while the job is running, ``submitted``; or the error, if
        no retry can help.
    :raises GeminiImageError: an error that a retry can help.
    """
    seen: Record | GeminiImageError
    try:
        _check(task.arguments)
        attempt = TaskRun(context, task.log)
        seen = run(lambda: closed(_collect(task, attempt, context["ti"].try_number > 1, resumed)))
    except GeminiImageError as error:
        seen = error
    if isinstance(seen, GeminiImageError) and seen.retryable:
        raise_outcome(seen)
    return seen


def _check(arguments: TaskArguments) -> None:
    """:raises BadRequestError: an argument is wrong."""
    arguments.refuse_unrendered()
    for name in arguments.checks:
        arguments.checked(name)
    if arguments["job"] is not None:
        key_of_job(arguments["job"])
    require_one_job(arguments["job"], arguments["job_id"])
    arguments.refuse_missing()


async def _collect(task: SensorTask, attempt: TaskRun, again: bool, resumed: bool) -> Record:
    async with attempt.purchase_context() as purchase_context:
        found = await _find(task, attempt, resumed)
        record, own = found.record, found.record.key.startswith(f"{attempt.item.path}/")
        # Generations of two tasks are not comparable, so a record of the submit task keeps its own.
        policy = Policy(attempt.generation if own else record.generation)
        collector = JobCollector(ImageWriter(purchase_context, generation=policy.generation))
        if record.state == "landed":
            destination = _destination(task, attempt) if own else asked_last(record)
            asked = Asked(record.fingerprint, destination)
            return await _landed(collector, found, policy, asked, own=own, again=again)
        if record.state == "answered":
            return await collector.fetch(record)
        if record.state == "failed":
            return record
        try:
            return await collector.peek(record) or record
        except VanishedError as error:
            # After a Clear the submit task reads this note and applies its on_unknown.
            await collector.note(record, error)
            raise error.evolve(hint=_CHECK_THE_JOB if own else _CLEAR_THE_SUBMIT) from error.__cause__
        except ConnectionChangedError as error:
            if own:
                raise error.evolve(hint=f"{_CHECK_THE_JOB} {error.hint}") from error.__cause__
            raise


async def _find(task: SensorTask, attempt: TaskRun, resumed: bool) -> StoredRecord:
    arguments, job = task.arguments, task.arguments["job"]
    if job is None:
        wanted = str(arguments["job_id"]), arguments["geminiimg_conn_id"], arguments["model"]
        return await _own(task, attempt, *wanted)
    key, job_id = key_of_job(job), job.get("job_id")
    found = await asyncio.to_thread(attempt.ledger.read, key)
    if found is not None:
        record = _answered(found.record, job_id)
        if record is not found.record:
            other = await asyncio.to_thread(owner, attempt.ledger, record.gateway, str(job_id))
            if other not in (None, key):
                raise another_records_job(str(job_id), str(other), key)
        return replace(found, record=record)
    missing = f"Record {key} is not under {attempt.root}: workers do not share the ledger, or the record was removed."
    if not (resumed and job_id):
        raise LedgerError(missing, billed=Billed.UNKNOWN, hint=_SHARE_THE_ROOT)
    task.log.error("%s Storing the image of job %s under this task.", missing, printable(str(job_id)))
    return await _own(task, attempt, str(job_id), job.get("conn_id"), job.get("model"))


def _destination(task: SensorTask, attempt: TaskRun) -> Destination:
    return attempt.destination(task.arguments["output_path"], task.arguments["file_name"])


async def _own(task: SensorTask, attempt: TaskRun, job_id: str, conn_id: Any, model: str | None) -> StoredRecord:
    """The record, under this task's item, of a job that this package did not submit; created at the first poll."""
    connection = await asyncio.to_thread(attempt.connection, conn_id)
    wanted = model or default_model(connection.gateway, connection.model)

    def is_of_job(known: Record) -> bool:
        # The default model may have a new id; that does not make it another job.
        same_model = known.model == model if model else row_name(known.model) == row_name(wanted)
        return same_model and (known.job_id, known.conn_id) == (job_id, connection.conn_id)

    found = await asyncio.to_thread(attempt.ledger.latest, attempt.item)
    known = None if found is None else await asyncio.to_thread(_newest, attempt, found, is_of_job)
    if known is not None:
        return known
    n = 1 if found is None else found.record.n + 1
    destination = _destination(task, attempt)
    suffix = await asyncio.to_thread(reserve_name, attempt.ledger, attempt.files, attempt.item.path, destination, n)
    made = replace(_record_of(attempt, connection, job_id, wanted, destination, n), suffix=suffix)
    created = await asyncio.to_thread(attempt.ledger.create, made)
    return created or await _own(task, attempt, job_id, conn_id, model)


def _record_of(
    attempt: TaskRun, connection: GatewayConnection, job_id: str, model: str, destination: Destination, n: int
) -> Record:
    return Record(
        key=record_key(attempt.item, n),
        n=n,
        state="submitted",
        claim=new_claim(),
        generation=attempt.generation,
        **process_identity(),
        answer_within=0.0,
        conn_id=connection.conn_id,
        api_host=connection.api_host,
        key_digest=connection.key_digest,
        gateway=connection.gateway,
        model=model,
        wire_model=model,
        operation="unknown",
        # The request is not known here, so the fingerprint is made from the job.
        fingerprint=hashlib.sha256(f"job\n{connection.gateway}\n{connection.conn_id}\n{job_id}".encode()).hexdigest(),
        request_fields={},
        prompt_sha256="",
        inputs=[],
        destination=destination,
        cost=asdict(Cost(None, "USD", "unknown")),
        expected_seconds=0.0,
        job_id=job_id,
        submitted_at=time.time(),
    )


def _newest(attempt: TaskRun, latest: StoredRecord, wanted: Callable[[Record], bool]) -> StoredRecord | None:
    """The newest record of this task that `wanted` accepts: after a Clear the sensor may wait for an earlier job."""
    if wanted(latest.record):
        return latest
    earlier = (n for n in reversed(attempt.ledger.numbers(attempt.item)) if n < latest.record.n)
    records = (attempt.ledger.read(record_key(attempt.item, n)) for n in earlier)
    return next((found for found in records if found is not None and wanted(found.record)), None)


def is_running(seen: Record | GeminiImageError) -> TypeGuard[Record]:
    """Whether the job is still running."""
    return isinstance(seen, Record) and seen.state == "submitted"


def _answered(record: Record, job_id: Any) -> Record:
    """`record`; an intent, whose answer was not recorded, gets the job id that the submit task returned."""
    if record.state != "intent":
        return record
    if not job_id:
        raise LedgerError(
            f"Record {record.key} has no answer yet, and `job` has no job_id.",
            billed=Billed.UNKNOWN,
            hint="Clear the submit task: it determines the outcome of its request.",
        )
    return replace(record, state="submitted", job_id=str(job_id), submitted_at=record.claimed_at)


async def _landed(
    collector: JobCollector, found: StoredRecord, policy: Policy, asked: Asked, *, own: bool, again: bool
) -> Record:
    """The record of an image that landed before; downloads it again if it is gone from storage.

    :param own: the record belongs to the sensor, not to a submit task.
    :param again: this is not the first try of the sensor.
    """
    record, writer = found.record, collector.writer
    image, _ = await find_image(writer.purchase_context.files, record, asked.destination)
    step = decide(found, policy, asked, image=image)
    if isinstance(step, Refuse):
        raise step.error
    if isinstance(step, Refetch):
        moves = not own and asked.destination != record.destination
        destination = asked.destination if moves else step.destination
        return await collector.refetch(await moved_to(writer, record, destination) if destination else record)
    made = copy_to if isinstance(step, Copy) else reused_manifest
    manifest = await made(writer, record, asked.destination)
    return replace(record, manifest={**manifest, "reused": own or again or record.reused_from is not None})
