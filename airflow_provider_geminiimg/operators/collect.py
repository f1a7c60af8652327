"""Collects what was paid for and left behind, as a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_geminiimg._compat import is_mapped
from airflow_provider_geminiimg.attempt import raise_outcome, text
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError
from airflow_provider_geminiimg.jobs import Report, Scope, collect, resolve, verdicts
from airflow_provider_geminiimg.landing import in_thread
from airflow_provider_geminiimg.operators._shared import ChecksArguments
from airflow_provider_geminiimg.request import given
from airflow_provider_geminiimg.runner import run
from airflow_provider_geminiimg.surroundings import Surroundings

if TYPE_CHECKING:
    from airflow.sdk import Context

_FLAGS = {"true": True, "false": False, "": False}


def _flag(name: str, value: Any) -> bool:
    flag = value if isinstance(value, bool) else _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise BadRequestError(f"{name}{given(value)}: takes true or false.")
    return flag


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "only_dag_id": text,
    "only_run_id": text,
    "only_task_id": text,
    "resolve": lambda _, value: verdicts(value),
    "look_only": _flag,
}


class GeminiImageCollectOperator(ChecksArguments, BaseOperator):
    """Land what was paid for and is not in storage: what killed, failed or cleared tasks left behind. Buys nothing.

    Walks the ledger of this Airflow (``[geminiimg] namespace``). Each picture lands where it was meant to, and the task
    that it belongs to finds it, should it run again. What an attempt may be working on is left alone, and so is a job
    that still runs: the next collect comes by.

    Returns how many records were ``landed``, ``running``, ``failed``, ``unknown``, ``skipped``, ``errors`` and
    ``to_collect``, and under ``keys`` as many of their keys as fit.

    :param only_dag_id: look only at what this DAG left behind.
    :param only_run_id: likewise, this DAG run.
    :param only_task_id: likewise, this task.
    :param resolve: what a person found out about unknown outcomes: a mapping from a record's key to ``"unpaid"``
        (submit again), ``"lost"`` (paid, and the picture can't be had) or ``{"job": id}`` (it is this job); also as
        JSON text. Done before collecting. What is settled in this way already stays so.
    :param look_only: only say what would be done: no call to a gateway, nothing written.
    :raises LedgerError: something that may be paid for could not be looked at, or settled; after all else was done.
    """

    checks = _CHECKS
    template_fields: Sequence[str] = tuple(_CHECKS)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        only_dag_id: str | None = None,
        only_run_id: str | None = None,
        only_task_id: str | None = None,
        resolve: Any = None,
        look_only: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.only_dag_id = only_dag_id
        self.only_run_id = only_run_id
        self.only_task_id = only_task_id
        self.resolve = resolve
        self.look_only = look_only
        if not is_mapped(self):  # made when it runs: `execute` refuses then, in the way that no retry touches
            self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """Settle, then collect."""
        try:
            surroundings = Surroundings(self.log)
            report = run(lambda: self._collect(surroundings))
            failure = report.failure()
        except GeminiImageError as error:
            raise_outcome(error)
        if failure is not None:
            raise failure
        return report.result()

    async def _collect(self, surroundings: Surroundings) -> Report:
        scope = Scope(surroundings.namespace, *(self._checked(f"only_{name}_id") for name in ("dag", "run", "task")))
        look_only = self._checked("look_only")
        refused = []
        for key, verdict in self._checked("resolve").items():
            try:
                done = await in_thread(lambda k=key, v=verdict: resolve(surroundings.ledger, k, v, dry_run=look_only))
            except GeminiImageError as error:
                self.log.error("Not settled: %s. %s", key, error)
                refused.append(key)
            else:
                said = "Would be settled" if look_only else "Settled, by this task's `resolve`"
                self.log.warning("%s: %s: %s.", said if done else "Was settled before", key, verdict)
        async with surroundings.workshop() as workshop:
            report = await collect(workshop, scope, dry_run=look_only)
        report.keys["errors"] += refused
        return report
