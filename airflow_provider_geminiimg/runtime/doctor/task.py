"""A running doctor task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.execution.task_log import Logs, SteadyLogs
from airflow_provider_geminiimg.core.ledger.root_token import leave_token, remove_token
from airflow_provider_geminiimg.core.validation.task_arguments import TaskArguments
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError
from airflow_provider_geminiimg.runtime.doctor import views
from airflow_provider_geminiimg.runtime.doctor.examination import Examination, Make
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, Level, UnavailableError, summary
from airflow_provider_geminiimg.runtime.doctor.storage import open_root
from airflow_provider_geminiimg.runtime.errors import raise_outcome
from airflow_provider_geminiimg.runtime.root_variable import RootVariable


@dataclass(frozen=True)
class View:
    """What is known of the triggerer's view.

    :param event: of the trigger; ``None``: none has come in time.
    """

    event: Mapping[str, Any] | None


def start(arguments: TaskArguments) -> str | None:
    """Leave a token for the triggerer, and return its name; ``None`` if the root can't be written.

    :raises AirflowFailException: an argument is wrong.
    """
    try:
        arguments.refuse_missing()
    except GeminiImageError as error:
        raise_outcome(error)
    with contextlib.suppress(Exception):  # the check of the root says why
        return leave_token(open_root(), settings.namespace())
    return None


def finish(arguments: TaskArguments, log: Logs, token: str | None, view: View | None) -> list[dict[str, Any]]:
    """Make all checks, log their findings, and return them.

    :param token: which to remove; ``None``: its name is not known, and a later doctor removes it.
    :param view: ``None``: the triggerer was not asked.
    :raises AirflowFailException: there is an error.
    """
    if token is not None:
        with contextlib.suppress(Exception):
            remove_token(open_root(), token)
    more: Make = _not_asked if view is None else partial(views.triggerer, event=view.event)
    examination = Examination(
        known=lambda: RootVariable(settings.root()),
        slots=_no_slots,
        conn_ids=arguments.checked("conn_ids"),
        outputs=arguments.checked("output_paths"),
        api_conn_id=arguments.checked("api_conn_id"),
    )
    steady, findings = SteadyLogs(log), []
    for finding in examination.findings({"triggerer": more}):
        findings.append(finding)
        say = {Level.ERROR: steady.error, Level.WARNING: steady.warning}.get(finding.level, steady.info)
        for line in finding.lines():
            say(line)
    steady.info(summary(findings))
    errors = [finding for finding in findings if finding.level is Level.ERROR]
    if errors:
        raise_outcome(_errors(errors))
    return [finding.values() for finding in findings]


def _errors(errors: list[Finding]) -> BadRequestError:
    first = errors[0]
    return BadRequestError(
        f"The doctor found {len(errors)} errors. The first: {first.check}: {first.message}",
        hint=f"{first.remedy} The task's log has all findings.",
    )


def _not_asked(check: Check) -> Iterator[Finding]:
    yield check.skipped("The triggerer was not asked, because the root can't be written from here.")


def _no_slots() -> int:
    raise UnavailableError("A task can't read the slots of a pool.", "Run the command `doctor` as well.")
