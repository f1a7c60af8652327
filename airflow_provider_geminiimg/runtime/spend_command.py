"""The command line for what was paid: ``python -m airflow_provider_geminiimg spend``, or ``airflow geminiimg spend``.

Invariants: each amount is printed with its basis. What may have been paid, and what has no known price, are counted
beside the amounts. Warnings go to standard error, so that the output can be parsed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from airflow_provider_geminiimg.core.redaction.printable import printable_json
from airflow_provider_geminiimg.runtime.command_line import WHERE, Command, add_filters, on_ledger, print_line, scope_of

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.reconcile.spend import SpendReport
    from airflow_provider_geminiimg.runtime.environment import Environment

_BY = ("dag", "task", "model", "connection", "month", "day")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.epilog = WHERE
    SPEND.add_arguments(parser)


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_filters(parser)
    parser.add_argument(
        "--by", choices=_BY, action="append", default=[], help="split by this; repeatable. Days and months are UTC"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def _spend(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core.reconcile.spend import spend

    by = list(dict.fromkeys(arguments.by))
    report = spend(environment.ledger, scope_of(arguments, environment), by)
    rows: list[dict[str, Any]] = [
        {**dict(zip(by, values, strict=True)), **paid.values(), "complete": _is_whole(report)}
        for values, paid in report.rows.items()
    ]
    for row in rows:
        print_line(printable_json(row) if arguments.json else _line([row[name] for name in by], row))
    if not rows and not arguments.json:
        print_line("Nothing was paid.")
    for warning in _warnings(report):
        print_line(f"warning: {warning}", sys.stderr)
    return 0


def _line(values: list[str], row: dict[str, Any]) -> str:
    """One row: its values, the number of requests, and each amount with its basis."""
    counts = [f"{row['paid']} paid", f"{row['images']} images", *map(_amount, row["costs"])]
    beside = {"without_price": "paid without a known price", "unknown": "perhaps paid"}
    counts += [f"{row[name]} {text}" for name, text in beside.items() if row[name]]
    return "  ".join([*values, ", ".join(counts)])


def _amount(cost: dict[str, Any]) -> str:
    basis = f"{cost['basis']}, estimate" if cost["estimate"] else cost["basis"]
    return f"{cost['amount']:.15g} {cost['currency']} ({basis})"


def _is_whole(report: SpendReport) -> bool:
    return report.complete and not report.unreadable and not report.more


def _warnings(report: SpendReport) -> list[str]:
    found = []
    if not report.complete:
        found.append(
            "An earlier version wrote a part of this ledger, and its records are not counted. "
            "`jobs collect` or `jobs reindex` counts them once."
        )
    if report.unreadable:
        found.append(f"{report.unreadable} records can't be read, and are not counted. `jobs list` shows them.")
    if report.more:
        found.append("A run has more open records than are read at once, and not all are counted. Try again later.")
    return found


SPEND = Command("add up what was paid, each amount with its basis", _arguments, on_ledger(_spend))
