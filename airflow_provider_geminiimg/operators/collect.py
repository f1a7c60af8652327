"""Collects what was paid for and left behind, as a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_geminiimg._compat import is_mapped
from airflow_provider_geminiimg.operators.arguments import parsers
from airflow_provider_geminiimg.operators.base import CheckedArgumentsMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

_CHECKS = parsers("external_dag_id", "external_run_id", "external_task_id", "resolve", "dry_run")


class GeminiImageCollectOperator(CheckedArgumentsMixin, BaseOperator):
    """Land what was paid for and is not in storage: what killed, failed or cleared tasks left behind. Buys nothing.

    Walks the ledger of this Airflow (``[geminiimg] namespace``). Each image lands where it was meant to, and the task
    that it belongs to finds it, should it run again. What an attempt may be working on is left alone, and so is a job
    that still runs: the next collect comes by.

    Returns how many records were ``landed``, ``running``, ``failed``, ``unknown``, ``skipped``, ``errors`` and
    ``to_collect``, and under ``keys`` as many of their keys as fit.

    :param external_dag_id: look only at what this DAG left behind. Default: at everything.
    :param external_run_id: likewise, this DAG run.
    :param external_task_id: likewise, this task.
    :param resolve: what a person found out about unknown outcomes: a mapping from a record's key to ``"unpaid"``
        (submit again), ``"lost"`` (paid, and the image can't be had), ``"resubmit"`` (buy again, whatever became of
        it) or ``{"job": id}`` (it is this job); also as JSON text. Done before collecting. What is settled in this way
        already stays so.
    :param dry_run: only say what would be done: no call to a gateway, nothing written.
    :raises LedgerError: something that may be paid for could not be looked at, or settled; after all else was done.
    """

    checks = _CHECKS
    native_fields = ("resolve",)
    template_fields: Sequence[str] = tuple(_CHECKS)
    ui_color = "#e8f0fe"
    dry_run: bool | str  # type: ignore[assignment] # instead of a method that nothing in Airflow 3 calls

    def __init__(
        self,
        *,
        external_dag_id: str | None = None,
        external_run_id: str | None = None,
        external_task_id: str | None = None,
        resolve: Any = None,
        dry_run: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.external_dag_id = external_dag_id
        self.external_run_id = external_run_id
        self.external_task_id = external_task_id
        self.resolve = resolve
        self.dry_run = dry_run
        if not is_mapped(self):  # made when it runs: `execute` refuses then, in the way that no retry touches
            self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """Settle, then collect."""
        from airflow_provider_geminiimg.runtime import collect_task

        return collect_task.run_task(self._arguments(), self.log)
