"""Waits for a job that was submitted elsewhere, and lands its picture.

What must stay true: the sensor buys nothing and cancels nothing. A job that failed for good fails the sensor, whatever
``soft_fail``, ``never_fail`` and ``silent_fail`` say: they are about waiting. So that outcome is looked at outside of
Airflow's poking, which only hears that the waiting is over.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_geminiimg._compat import TakesTexts, TaskDeferralError, TaskDeferralTimeout, is_mapped
from airflow_provider_geminiimg.attempt import (
    BACKSTOP,
    MAX_DEFERRALS,
    Attempt,
    OnMismatch,
    choice,
    finished,
    raise_outcome,
    seconds,
    stem,
    text,
)
from airflow_provider_geminiimg.catalog import DEFAULT_MODEL
from airflow_provider_geminiimg.collecting import Collector, VanishedError
from airflow_provider_geminiimg.copies import copy_to, picture_state
from airflow_provider_geminiimg.decision import Asked, Copy, Policy, Refetch, Refuse, decide
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, LedgerError
from airflow_provider_geminiimg.landing import Lander, in_thread
from airflow_provider_geminiimg.ledger import (
    Destination,
    Found,
    Record,
    is_record_key,
    new_claim,
    process_identity,
    record_key,
)
from airflow_provider_geminiimg.links import ImagesLink
from airflow_provider_geminiimg.manifest import Cost
from airflow_provider_geminiimg.names import reserve_name
from airflow_provider_geminiimg.request import given, is_literal
from airflow_provider_geminiimg.runner import run

if TYPE_CHECKING:
    from airflow.sdk import Context

_CHECK_THE_JOB = "Check job_id, model and geminiimg_conn_id."
_CLEAR_THE_SUBMIT = (
    "Look at the gateway's console whether the picture was made and charged, then settle it: `jobs resolve`, or "
    "`resolve` of GeminiImageCollectOperator. To buy it again all the same, clear the submit task with "
    'on_unknown="resubmit".'
)
_SHARE_THE_ROOT = "Set [geminiimg] root to storage that all workers share."
_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "job_id": text,
    "model": text,
    "geminiimg_conn_id": text,
    "output_path": text,
    "file_name": stem,
    "on_mismatch": partial(choice, allowed=OnMismatch),
    "poll_interval": seconds,
}


class GeminiImageJobSensor(TakesTexts, BaseSensorOperator):
    """Wait for a job and land its picture. Returns the picture's manifest.

    A poll that fails says nothing about the job, and the sensor goes on. When it gives up, the job is left alone: clear
    the sensor with a longer `timeout`, and it lands.

    :param job: what `GeminiImageSubmitOperator` returned. The picture lands where that operator said.
    :param job_id: instead of `job`: a job that was submitted outside of this package. It lands under this task.
    :param model: the model of `job_id`; default: the connection's, else ``gemini-3.1-flash-image-preview``.
    :param geminiimg_conn_id: the connection of `job_id`; a `job` knows its own.
    :param output_path: directory URI for the picture of `job_id`; default: under ``[geminiimg] root``.
    :param file_name: its name without extension; default: as for the operators.
    :param on_mismatch: as for the operators. What was asked for is not known of a `job_id`, so nothing mismatches.
    :param poll_interval: seconds between the trigger's polls, and before the first one; default: the catalogue's.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``. Otherwise `mode` decides.
    :param poke_interval: seconds between pokes in the modes ``poke`` and ``reschedule``. Default: 10.
    :param timeout: seconds after which the sensor gives up, without retries, from the start of its try (``reschedule``:
        from the first poke). Default: ``[sensors] default_timeout``, 7 days.
    :raises GeminiImageError: why there will be no picture; as ``AirflowFailException`` where the job failed for good.
    """

    template_fields: Sequence[str] = ("job", *_CHECKS)
    ui_color = "#e8f0fe"
    operator_extra_links = (ImagesLink(),)

    def __init__(
        self,
        *,
        job: Any = None,
        job_id: str | None = None,
        model: str | None = None,
        geminiimg_conn_id: str = "geminiimg_default",
        output_path: str | None = None,
        file_name: str | None = None,
        on_mismatch: str = "accept",
        poll_interval: float | str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: float | timedelta = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.job = job
        self.job_id = job_id
        self.model = model
        self.geminiimg_conn_id = geminiimg_conn_id
        self.output_path = output_path
        self.file_name = file_name
        self.on_mismatch = on_mismatch
        self.poll_interval = poll_interval
        self.deferrable = deferrable
        if not is_mapped(self):  # made when it runs: `execute` refuses then, in the way that no retry touches
            self._check(is_literal)

    def execute(self, context: Context) -> Any:
        """Poke once, then wait in the triggerer, or in the way that `mode` says."""
        if not self.deferrable:
            return self._finish(super().execute(context))
        seen = self._look(context)
        if _running(seen):
            self._defer(context, seen, self._deadline(context))
        return self._finish(seen)

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once; land the picture if it is ready."""
        seen = self._look(context)
        return PokeReturnValue(is_done=not _running(seen), xcom_value=seen)

    def execute_complete(self, context: Context, event: dict[str, Any], deadline: float | None = None) -> Any:
        """Land what the trigger waited for.

        :param event: the trigger's: ``status``, ``job_id``, ``code``.
        :param deadline: when the sensor gives up, in Unix seconds. Default, because ``dag.test()`` hands on nothing
            but the event: `timeout` after the task started.
        """
        deadline = self._deadline(context) if deadline is None else deadline
        self.log.info("The trigger's word on job %s: %s.", event.get("job_id"), event.get("status"))
        seen = self._look(context, resumed=True)
        if _running(seen) and event.get("status") == "lost":
            self._defer(context, seen, deadline)
        return self._finish(self._wait_here(context, seen, deadline))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's, but a trigger that crashed or was never run does not lose the job.

        At most two further deferrals, then the wait goes on in the worker.
        """
        try:
            # Not the sensor's own: that one turns a job's failure into a skip where soft_fail is set.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.warning("No trigger reported before the deadline; asking the gateway from the worker.")
            deadline = time.time()
        except TaskDeferralError as error:
            self.log.error("The trigger failed (%s); the job is left alone and waited for again.", error)
            deadline = self._deadline(context)
        seen = self._look(context, resumed=True)
        if _running(seen) and time.time() < deadline and seen.deferrals < MAX_DEFERRALS:
            Attempt(context, self.log).count_deferral(seen)
            self._defer(context, seen, deadline)
        return self._finish(self._wait_here(context, seen, deadline))

    # Waiting

    def _deadline(self, context: Context) -> float:
        """Counted from the start of this try, which a deferral does not move."""
        started: float = context["ti"].start_date.timestamp()
        return started + self.timeout

    def _defer(self, context: Context, record: Record, deadline: float) -> NoReturn:
        self.defer(
            trigger=Attempt(context, self.log).trigger(record, deadline, seconds("poll_interval", self.poll_interval)),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=timedelta(seconds=max(0.0, deadline - time.time()) + BACKSTOP),
        )

    def _wait_here(self, context: Context, seen: Record | GeminiImageError, deadline: float) -> Any:
        """What has become of the job, once it has ended; asks every `poke_interval` seconds.

        :raises AirflowSensorTimeout: it was still running at the deadline.
        """
        while _running(seen):
            left = deadline - time.time()
            if left <= 0:
                said = f"Job {seen.job_id} was still running after {self.timeout:.0f} s. It is left alone: clear the "
                said += f"sensor with a longer timeout, and it lands. Record {seen.key}."
                raise AirflowSkipException(said) if self.soft_fail or self.never_fail else AirflowSensorTimeout(said)
            time.sleep(min(self.poke_interval, left))
            seen = self._look(context, resumed=True)
        return seen

    def _finish(self, seen: Record | GeminiImageError) -> dict[str, Any]:
        if isinstance(seen, GeminiImageError):
            raise_outcome(seen)
        if seen.state == "failed":
            raise AirflowFailException(str(seen.error)) from seen.error
        self._tell_destination(seen)
        return finished(dict(seen.manifest or {}), choice("on_mismatch", self.on_mismatch, OnMismatch))

    def _tell_destination(self, record: Record) -> None:
        used = [record.destination, *(Destination(**copy["destination"]) for copy in record.copies)]
        other_path = self.output_path and self.output_path.rstrip("/") not in [place.directory for place in used]
        if other_path or (self.file_name and self.file_name not in [place.stem for place in used]):
            self.log.warning("It landed where its submit task said: output_path and file_name here are for a job_id.")

    # Looking

    def _check(self, known: Callable[[Any], bool]) -> None:
        """Refuse arguments that are wrong, of those whose value is known."""
        for name, check in _CHECKS.items():
            if known(getattr(self, name)):
                check(name, getattr(self, name))
        if known(self.job) and self.job is not None:
            _key(self.job)
        if known(self.job) and known(self.job_id) and (self.job is None) == (self.job_id in (None, "")):
            found = "neither (did the submit task run?)" if self.job is None else "both"
            raise BadRequestError(f"job, job_id: exactly one of them is needed, given: {found}.")

    def _look(self, context: Context, *, resumed: bool = False) -> Record | GeminiImageError:
        """Ask once, and land the picture if it is ready.

        :param resumed: a trigger waited for the job, so it is landed even without its record.
        :returns: the record: ``landed``, ``failed``, or ``submitted`` while the job runs; or why there is nothing to
            wait for. What the next try of the sensor may find better is raised.
        """
        try:
            self._check(lambda value: True)
            attempt = Attempt(context, self.log)
            return run(lambda: self._collect(attempt, context["ti"].try_number > 1, resumed))
        except GeminiImageError as error:
            if error.retryable:
                raise_outcome(error)
            return error

    async def _collect(self, attempt: Attempt, again: bool, resumed: bool) -> Record:
        async with attempt.workshop() as workshop:
            found = await self._find(attempt, resumed)
            record, own = found.record, found.record.key.startswith(f"{attempt.item.path}/")
            # Two tasks' generations don't compare: the submit task's record keeps its own.
            policy = Policy(attempt.generation if own else record.generation)
            collector = Collector(Lander(workshop, generation=policy.generation))
            if record.state == "landed":
                destination = attempt.destination(self.output_path, self.file_name) if own else record.destination
                asked = Asked(record.fingerprint, destination)
                return await _landed(collector, found, policy, asked, own=own, again=again)
            if record.state == "answered":
                return await collector.fetch(record)
            if record.state == "failed":
                return record
            try:
                return await collector.peek(record) or record
            except VanishedError as error:
                # The submit task, once cleared, finds the note and does as its on_unknown says.
                await collector.note(record, error)
                error.hint = _CHECK_THE_JOB if own else _CLEAR_THE_SUBMIT
                raise

    async def _find(self, attempt: Attempt, resumed: bool) -> Found:
        if self.job is None:
            return await self._own(attempt, str(self.job_id), self.geminiimg_conn_id, self.model)
        key, job_id = _key(self.job), self.job.get("job_id")
        found = await in_thread(attempt.ledger.read, key)
        if found is not None:
            return replace(found, record=_answered(found.record, job_id))
        missing = f"Record {key} is not under {attempt.root}: the ledger is not shared between workers, or was removed."
        if not (resumed and job_id):
            raise LedgerError(missing, billed=Billed.UNKNOWN, hint=_SHARE_THE_ROOT)
        self.log.error("%s Landing job %s all the same, under this task.", missing, job_id)
        return await self._own(attempt, str(job_id), self.job.get("conn_id"), self.job.get("model"))

    async def _own(self, attempt: Attempt, job_id: str, conn_id: Any, model: str | None) -> Found:
        """The record of a job of which this package has none: made at the first look, under this task's own key."""
        connection = await in_thread(attempt.connection, conn_id)
        model = model or connection.model or DEFAULT_MODEL
        found = await in_thread(attempt.ledger.latest, attempt.item)
        if found is not None:
            known = found.record
            if (known.job_id, known.conn_id, known.model) == (job_id, connection.conn_id, model):
                return found
        n = 1 if found is None else found.record.n + 1
        destination = attempt.destination(self.output_path, self.file_name)
        suffix = await in_thread(reserve_name, attempt.ledger, attempt.files, attempt.item.path, destination, n)
        made = Record(
            key=record_key(attempt.item, n),
            n=n,
            state="submitted",
            claim=new_claim(),
            generation=attempt.generation,
            **process_identity(),
            answer_within=0.0,
            conn_id=connection.conn_id,
            gateway=connection.gateway,
            model=model,
            wire_model=model,
            operation="unknown",
            # What was sent is not known here, so the job stands for it.
            fingerprint=hashlib.sha256(f"job\n{connection.gateway}\n{conn_id}\n{job_id}".encode()).hexdigest(),
            request_fields={},
            prompt_sha256="",
            inputs=[],
            destination=destination,
            suffix=suffix,
            cost=asdict(Cost(None, "USD", "unknown")),
            expected_seconds=0.0,
            job_id=job_id,
            submitted_at=time.time(),
        )
        created = await in_thread(attempt.ledger.create, made)
        return created or await self._own(attempt, job_id, conn_id, model)


def _running(seen: Record | GeminiImageError) -> TypeGuard[Record]:
    return isinstance(seen, Record) and seen.state == "submitted"


def _key(job: Any) -> str:
    """The key of the record that a submit operator wrote."""
    key = job.get("record") if isinstance(job, Mapping) else None
    if not isinstance(key, str) or not is_record_key(key):
        raise BadRequestError(
            f"job{given(job)}: takes what GeminiImageSubmitOperator returned (its .output).",
            hint="The id of a job that was submitted elsewhere goes into job_id." if isinstance(job, str) else None,
        )
    return key


def _answered(record: Record, job_id: Any) -> Record:
    """`record`; an intent, because its answer could not be written down, goes on by what the submit task returned."""
    if record.state != "intent":
        return record
    if not job_id:
        raise LedgerError(
            f"Record {record.key} holds no answer yet, and job no job_id.",
            billed=Billed.UNKNOWN,
            hint="Clear the submit task: it finds out what became of its request.",
        )
    return replace(record, state="submitted", job_id=str(job_id), submitted_at=record.claimed_at)


async def _landed(
    collector: Collector, found: Found, policy: Policy, asked: Asked, *, own: bool, again: bool
) -> Record:
    """What has landed before, fetched once more if it is gone from storage.

    :param own: the record is the sensor's own, not a submit task's.
    :param again: the sensor has been run before.
    """
    record = found.record
    step = decide(found, policy, asked, picture=await picture_state(collector.workshop.files, record.manifest or {}))
    if isinstance(step, Refuse):
        raise step.error
    if isinstance(step, Refetch):
        return await collector.refetch(record)
    manifest = record.manifest or {}
    if isinstance(step, Copy):
        manifest = await copy_to(collector.lander, record, asked.destination)
    elif record.copies and not own:
        manifest = record.copies[-1]["manifest"]  # made by the submit task, cleared with another destination
    return replace(record, manifest={**manifest, "reused": own or again or record.reused_from is not None})
