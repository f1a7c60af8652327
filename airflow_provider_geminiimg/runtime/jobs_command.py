"""The command line for the ledger: ``python -m airflow_provider_geminiimg jobs``, or ``airflow geminiimg jobs``.

Invariant: no line shows a link or a prompt; only `show` prints the prompt, if prompts are recorded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_geminiimg.core.ledger.layout import folder_of
from airflow_provider_geminiimg.core.redaction.printable import printable_json
from airflow_provider_geminiimg.runtime.command_line import WHERE, Command, add_filters, on_ledger, print_line, scope_of

if TYPE_CHECKING:
    from airflow_provider_geminiimg.runtime.environment import Environment

_AGES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_WIDEST, _JOBS_SHOWN = 512, 20
_OPEN_STATES = ("waiting", "in-flight", "to-collect", "unknown")
_STATES = (*_OPEN_STATES, "landed", "failed", "unreadable")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of ``jobs`` to a parser."""
    parser.epilog = WHERE
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, job in _JOBS.items():
        job.add_arguments(commands.add_parser(name, help=job.help, description=job.description, epilog=WHERE))


def for_airflow(run: Callable[[argparse.Namespace], None]) -> list[Any]:
    """The commands for Airflow's own command line.

    :param run: see `Command.for_airflow`.
    """
    return [job.for_airflow(name, run) for name, job in _JOBS.items()]


# Arguments


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    add_filters(parser)
    parser.add_argument("--state", choices=_STATES, help="only records with this status")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def _key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="key of the record, as in `jobs list` and log lines: ledger/...")


def _collect_arguments(parser: argparse.ArgumentParser) -> None:
    add_filters(parser)
    _dry_run(parser)


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")


def _resolve_arguments(parser: argparse.ArgumentParser) -> None:
    _key(parser)
    resolution = parser.add_mutually_exclusive_group(required=True)
    resolution.add_argument(
        "--unpaid", action="store_true", help="nothing was charged: a retry or a Clear submits again"
    )
    resolution.add_argument("--lost", action="store_true", help="it was charged, and the image is lost")
    resolution.add_argument(
        "--resubmit", action="store_true", help="buy again in any case, with the next retry or Clear, once"
    )
    resolution.add_argument(
        "--job", metavar="ID", dest="job_id", help="it is this job: collect or a Clear stores its image"
    )


def _forget_arguments(parser: argparse.ArgumentParser) -> None:
    _key(parser)
    parser.add_argument("--force", action="store_true", help="also if a paid image is not in storage yet")


def _purge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--older-than", type=_days, required=True, metavar="DAYS", help="ended more than DAYS days ago")
    _dry_run(parser)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError("takes a number of days, 0 or more")
    return days


# Commands


def _list(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile
    from airflow_provider_geminiimg.core.execution.runner import run as run_async

    async def listed() -> int:
        unreadable = 0
        walk = reconcile.walk_open if arguments.state in _OPEN_STATES else reconcile.walk
        async for entry in walk(environment.ledger, scope_of(arguments, environment)):
            unreadable += entry.found is None
            if arguments.state in (None, entry.status):
                line = reconcile.summary(entry)
                print_line(printable_json(line) if arguments.json else _line(line))
        return unreadable

    unreadable = run_async(listed)
    if unreadable:
        environment.log.error("%s records can't be read; `jobs show` has the reasons.", unreadable)
    return int(unreadable > 0)


def _line(entry: Mapping[str, Any]) -> str:
    if "age_seconds" not in entry:
        return f"{entry['state']:<10} {'':>5} {'':>13}  {'':<9}  {entry['key']}"
    cost = entry["cost"]
    price = "?" if cost.get("amount") is None else f"{cost['amount']:.6g} {cost['currency']}"
    jobs = ", ".join(map(_cut, filter(None, [entry["job_id"], *entry["extra_jobs"][:_JOBS_SHOWN]])))
    said = f"  job {jobs}" if jobs else ""
    age, gateway = _age(entry["age_seconds"]), _cut(entry["gateway"])
    return f"{entry['state']:<10} {age:>5} {_cut(price):>13}  {gateway:<9}  {entry['key']}{said}"


def _cut(text: str) -> str:
    """A text of a record, cut for a line of the list."""
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…"


def _age(seconds: float) -> str:
    return next((f"{seconds // size:.0f}{unit}" for size, unit in _AGES if seconds >= size), "0s")


def _show(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile

    print(printable_json(reconcile.detail(reconcile.entry_at(environment.ledger, arguments.key)), indent=2))
    return 0


def _collect(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile
    from airflow_provider_geminiimg.core.execution.runner import run as run_async

    async def collected() -> reconcile.Report:
        async with environment.purchase_context() as purchase_context:
            return await reconcile.collect(
                purchase_context, scope_of(arguments, environment), dry_run=arguments.dry_run
            )

    report = run_async(collected)
    print_line(", ".join(f"{what.replace('_', ' ')}: {count}" for what, count in report.counts().items()))
    failure = report.failure()
    if failure is not None:
        raise failure
    return 0


def _resolve(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile
    from airflow_provider_geminiimg.core.validation.resolution import read_resolutions

    said = [word for word in ("unpaid", "lost", "resubmit") if getattr(arguments, word)]
    word = said[0] if said else {"job": arguments.job_id}
    [(key, resolution)] = read_resolutions({arguments.key: word}).items()
    if reconcile.resolve(environment.ledger, key, resolution):
        print_line(f"{key} is resolved: {resolution}.")
    else:
        print_line(f"{key} was already resolved: {resolution}. Nothing was changed.")
    return 0


def _forget(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile

    removed = reconcile.forget(environment.ledger, arguments.key, force=arguments.force)
    print_line(f"{removed.key} is removed (job {removed.job_id}).")
    earlier = environment.ledger.numbers_in(folder_of(removed.key))
    if earlier:
        print_line(f"The next attempt of its task uses record {earlier[-1]} of the same item.")
    else:
        print_line("The next attempt of its task sends a new paid request.")
    return 0


def _purge(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile
    from airflow_provider_geminiimg.core.execution.runner import run as run_async

    removed: list[str] = []

    async def purged() -> None:
        scope = reconcile.Scope(environment.namespace)
        days, dry_run = arguments.older_than, arguments.dry_run
        async for key in reconcile.purge(environment.ledger, scope, days=days, dry_run=dry_run):
            print_line(key)
            removed.append(key)

    try:
        run_async(purged)
    finally:
        print_line(f"{len(removed)} records {'would be' if arguments.dry_run else 'are'} removed.")
    return 0


def _reindex(arguments: argparse.Namespace, environment: Environment) -> int:
    from airflow_provider_geminiimg.core import reconcile
    from airflow_provider_geminiimg.core.execution.runner import run as run_async

    async def reindexed() -> reconcile.IndexMender:
        scope = reconcile.Scope(environment.namespace)
        return await reconcile.reindex(environment.ledger, scope, dry_run=arguments.dry_run)

    done = run_async(reindexed)
    if done.failure is not None:
        raise done.failure
    verb = "would be" if arguments.dry_run else "were"
    print_line(
        f"{done.read} records were read, {done.open} are open. {done.written} entries {verb} written, {done.removed} "
        f"{verb} removed."
    )
    return 0


_JOBS = {
    "list": Command("list the records of the ledger, one per line", _list_arguments, on_ledger(_list)),
    "show": Command("show one record, and what to do about it", _key, on_ledger(_show)),
    "collect": Command(
        "store images that were paid for and have not landed; never submits", _collect_arguments, on_ledger(_collect)
    ),
    "resolve": Command(
        "record what you found out about a request with an unknown outcome", _resolve_arguments, on_ledger(_resolve)
    ),
    "forget": Command("remove a record, so that its task submits again", _forget_arguments, on_ledger(_forget)),
    "purge": Command("remove old records of finished task instances; images stay", _purge_arguments, on_ledger(_purge)),
    "reindex": Command("read all records and rebuild the index of open records", _dry_run, on_ledger(_reindex)),
}
