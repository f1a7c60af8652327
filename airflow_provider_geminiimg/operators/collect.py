"""The operator that stores images of earlier tasks that were paid for and never landed."""

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
    """Store images that were paid for and are not in storage: those of killed, failed or cleared tasks. Buys nothing.

    Reads the ledger of this Airflow (``[geminiimg] namespace``). Each image lands at its recorded destination, so the
    task that paid for it finds it on its next run. Records that another attempt may be working on are skipped. Jobs
    that are still running are left for the next collect.

    If ``[geminiimg] keep_records_days`` is set, records that ended longer ago are removed afterwards, as ``jobs purge``
    does, unless a record could not be checked.

    Returns the counts ``landed``, ``running``, ``failed``, ``unknown``, ``skipped``, ``errors``, ``to_collect`` and
    ``purged``, and under ``keys`` as many record keys as fit into the XCom.

    :param external_dag_id: collect only records of this DAG. Default: all DAGs.
    :param external_run_id: collect only records of this DAG run. Default: all runs.
    :param external_task_id: collect only records of this task. Default: all tasks.
    :param resolve: decisions of a person about unknown outcomes, applied before collecting: a mapping, or its JSON
        text, from a record key to ``"unpaid"`` (submit again), ``"lost"`` (paid, and the image is lost), ``"resubmit"``
        (buy again in any case) or ``{"job": id}`` (the request is this job). A record that is already resolved in the
        same way stays as it is.
    :param dry_run: only report what would be done: no call to a gateway, nothing written. Default: ``False``.
    :raises LedgerError: records that may be paid for could not be read or resolved. The others are done.
    """

    checks = _CHECKS
    native_fields = ("resolve",)
    template_fields: Sequence[str] = tuple(_CHECKS)
    ui_color = "#e8f0fe"
    dry_run: bool | str  # type: ignore[assignment] # replaces a method that Airflow 3 never calls

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
        if not is_mapped(self):  # a mapped operator is created at run time; then `execute` checks, without retries
            self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """Resolve the given records, then collect, then remove old records."""
        from airflow_provider_geminiimg.runtime import collect_task

        return collect_task.run_task(self._arguments(), self.log)
