"""What the package's commands share: output, filters, and how a command runs.

Invariants: no line of the output holds a control character of a record. Airflow is imported only when a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from airflow_provider_geminiimg.core.redaction.printable import printable

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.reconcile import Scope
    from airflow_provider_geminiimg.runtime.environment import Environment

WHERE = (
    "The command uses the ledger at [geminiimg] root and namespace of this machine's Airflow configuration, like the "
    "workers. Connections come from Airflow too: environment, secrets backends, metadata database."
)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print one line, with control characters and line breaks of the text escaped."""
    print(printable(text), file=file, flush=True)


class _Printed:
    """A log that prints to the terminal."""

    def debug(self, message: Any, /, *args: Any) -> None:
        """Print nothing."""

    def info(self, message: Any, /, *args: Any) -> None:
        print_line(_said(message, args))

    def warning(self, message: Any, /, *args: Any) -> None:
        print_line(f"warning: {_said(message, args)}")

    def error(self, message: Any, /, *args: Any) -> None:
        print_line(f"error: {_said(message, args)}", sys.stderr)


def _said(message: Any, args: tuple[Any, ...]) -> str:
    return str(message) % args if args else str(message)


class Command(NamedTuple):
    """One command.

    :param help: what it does, in lower case.
    :param own_arguments: adds its arguments to a parser.
    :param call: does it, and returns the exit status.
    """

    help: str
    own_arguments: Callable[[argparse.ArgumentParser], None]
    call: Callable[[argparse.Namespace], int]

    @property
    def description(self) -> str:
        return f"{self.help[0].upper()}{self.help[1:]}."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments to a parser."""
        self.own_arguments(parser)
        parser.set_defaults(call=self.call, output=None)  # for a command with an `output` Airflow logs to stderr

    def for_airflow(self, name: str, run: Callable[[argparse.Namespace], None]) -> Any:
        """The command for Airflow's own command line.

        :param run: runs a command and ends the process with its exit status.
        """
        from airflow.cli.cli_config import ActionCommand

        # Airflow expects one object per argument. Here one object adds all arguments of a command.
        arguments = SimpleNamespace(flags=(name,), add_to_parser=self.add_arguments)
        where = WHERE.replace("[", r"\[")  # Airflow's console treats brackets as style tags
        return ActionCommand(name, self.help, run, [cast("Any", arguments)], self.description, where)


def on_ledger(call: Callable[[argparse.Namespace, Environment], int]) -> Callable[[argparse.Namespace], int]:
    """Give a command the ledger and the connections of this machine's Airflow configuration."""

    def opened(arguments: argparse.Namespace) -> int:
        from airflow_provider_geminiimg.runtime.environment import Environment

        return call(arguments, Environment(_Printed()))

    return opened


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `scope_of` reads."""
    parser.add_argument("--dag", metavar="ID", help="only records of this DAG")
    parser.add_argument("--run", dest="dag_run", metavar="ID", help="only records of this DAG run")
    parser.add_argument("--task", metavar="ID", help="only records of this task")


def scope_of(arguments: argparse.Namespace, environment: Environment) -> Scope:
    """The records that the filters select."""
    from airflow_provider_geminiimg.core.reconcile import Scope

    return Scope(environment.namespace, arguments.dag, arguments.dag_run, arguments.task)


def run(arguments: argparse.Namespace) -> int:
    """Run a command and return its exit status.

    :raises GeminiImageError: the command failed. Other exceptions are converted, because their text may hold a prompt
        or a signed link.
    """
    # Like Airflow's own commands, so that connections may come from the metadata database.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    from airflow_provider_geminiimg.core.execution.boundary import as_outcome

    call: Callable[[argparse.Namespace], int] = arguments.call
    try:
        return call(arguments)
    except (ImportError, OSError):  # an error of the installation, the terminal or this machine has a clear message
        raise
    except Exception as error:
        raise as_outcome(error) from None
