"""Settling and collecting, as a running task does it."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.reconcile import Report, Scope, collect, resolve
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.runtime.environment import Environment
from airflow_provider_geminiimg.runtime.errors import raise_outcome


def run_task(arguments: TaskArguments, log: Logs) -> dict[str, Any]:
    """Settle, then collect."""
    try:
        arguments.refuse_nothing()
        environment = Environment(log)
    except GeminiImageError as error:
        raise_outcome(error)
    report = run(lambda: closed(_collect(arguments, environment)))
    if isinstance(report, GeminiImageError):
        raise_outcome(report)
    failure = report.failure()
    if failure is not None:
        raise failure
    return report.result()


async def _collect(arguments: TaskArguments, environment: Environment) -> Report:
    scope = Scope(environment.namespace, *(arguments.checked(f"external_{name}_id") for name in ("dag", "run", "task")))
    dry_run = arguments.checked("dry_run")
    log, refused = environment.log, []
    for key, verdict in arguments.checked("resolve").items():
        done = await closed(asyncio.to_thread(resolve, environment.ledger, key, verdict, dry_run=dry_run))
        if isinstance(done, GeminiImageError):
            log.error("Not settled: %s. %s", key, done)
            refused.append(key)
        else:
            said = "Would be settled" if dry_run else "Settled, by this task's `resolve`"
            log.warning("%s: %s: %s.", said if done else "Was settled before", key, verdict)
    async with environment.purchase_context() as purchase_context:
        report = await collect(purchase_context, scope, dry_run=dry_run)
    report.keys["errors"] += refused
    return report
