"""The command line of the doctor: ``python -m airflow_provider_geminiimg doctor``, or ``airflow geminiimg doctor``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_geminiimg.core.redaction.printable import printable_json
from airflow_provider_geminiimg.runtime.command_line import WHERE, Command, print_line

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.ledger.root_identity import KnownRoot
    from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding

_TRIGGERER = (
    "A command can't ask the triggerer whether it sees the same root.",
    "Run a task of GeminiImageDoctorOperator.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.epilog = f"{WHERE} The exit status is 1 if there is an error, and 0 if there are only warnings."
    DOCTOR.add_arguments(parser)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--conn-id",
        action="append",
        metavar="ID",
        help="connection of type geminiimg; repeatable (default: geminiimg_default)",
    )
    parser.add_argument(
        "--output-path",
        action="append",
        default=[],
        metavar="URI",
        help="directory that images are written to; repeatable",
    )
    parser.add_argument("--pool", default="default_pool", metavar="NAME", help="pool of the image tasks")
    parser.add_argument(
        "--api-conn-id", metavar="ID", help="connection to the API server, to ask it whether it sees the same root"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")


def _doctor(arguments: argparse.Namespace) -> int:
    from airflow_provider_geminiimg.runtime.doctor.examination import Examination
    from airflow_provider_geminiimg.runtime.doctor.findings import Level, summary

    examination = Examination(
        known=_known,
        slots=partial(_slots, arguments.pool),
        conn_ids=tuple(arguments.conn_id or ["geminiimg_default"]),
        outputs=tuple(arguments.output_path),
        api_conn_id=arguments.api_conn_id,
    )
    findings = []
    for finding in examination.findings({"triggerer": _triggerer}):
        findings.append(finding)
        for line in [printable_json(finding.values())] if arguments.json else finding.lines():
            print_line(line)
    if not arguments.json:
        print_line(summary(findings))
    return int(any(finding.level is Level.ERROR for finding in findings))


def _known() -> KnownRoot:
    from airflow_provider_geminiimg.runtime.doctor.airflow_database import StoredRoot

    return StoredRoot()


def _slots(pool: str) -> int:
    from airflow_provider_geminiimg.runtime.doctor.airflow_database import pool_slots

    return pool_slots(pool)


def _triggerer(check: Check) -> Iterator[Finding]:
    yield check.skipped(*_TRIGGERER)


DOCTOR = Command("check this installation, and say what to do about each finding", _arguments, _doctor)
