"""A running collect task: resolves the given records, then collects."""

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
    """Resolve the given records, then collect."""
    try:
        arguments.refuse_missing()
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
    for key, resolution in arguments.checked("resolve").items():
        done = await closed(asyncio.to_thread(resolve, environment.ledger, key, resolution, dry_run=dry_run))
        if isinstance(done, GeminiImageError):
            log.error("Not resolved: %s. %s", key, done)
            refused.append(key)
        else:
            did = "Would be resolved" if dry_run else "Resolved by the `resolve` of this task"
            log.warning("%s: %s: %s.", did if done else "Already resolved", key, resolution)
    async with environment.purchase_context() as purchase_context:
        report = await collect(purchase_context, scope, dry_run=dry_run)
    report.keys["errors"] += refused
    return report
