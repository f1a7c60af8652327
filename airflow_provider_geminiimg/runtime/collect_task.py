"""A running collect task: resolves the given records, then collects, then removes old records."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.reconcile import Report, Scope, collect, purge, resolve
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.runtime.environment import Environment
from airflow_provider_geminiimg.runtime.errors import raise_outcome


def run_task(arguments: TaskArguments, log: Logs) -> dict[str, Any]:
    """Resolve the given records, then collect, then remove old records."""
    try:
        arguments.refuse_missing()
        environment = Environment(log)
    except GeminiImageError as error:
        raise_outcome(error)
    result = run(lambda: closed(_collected(arguments, environment)))
    if isinstance(result, GeminiImageError):
        raise_outcome(result)
    return result


async def _collected(arguments: TaskArguments, environment: Environment) -> dict[str, Any]:
    days = settings.keep_records_days()
    scope = Scope(environment.namespace, *(arguments.checked(f"external_{name}_id") for name in ("dag", "run", "task")))
    dry_run = arguments.checked("dry_run")
    report = await _collect(arguments, environment, scope, dry_run=dry_run)
    failure = report.failure()
    if failure is not None:  # nothing is removed beside records that could not be checked
        raise failure
    removed = 0 if days is None else await _purge(environment, scope, days, dry_run=dry_run)
    return {**report.result(), "purged": removed}


async def _purge(environment: Environment, scope: Scope, days: int, *, dry_run: bool) -> int:
    """Remove what ended more than `days` days ago, and return the number of removed objects."""
    removed = 0
    try:
        async for _ in purge(environment.ledger, scope, days=days, dry_run=dry_run):
            removed += 1
    finally:
        did = "Would be removed" if dry_run else "Removed"
        environment.log.info("%s: %s records that ended more than %s days ago.", did, removed, days)
    return removed


async def _collect(arguments: TaskArguments, environment: Environment, scope: Scope, *, dry_run: bool) -> Report:
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
