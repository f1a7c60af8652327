"""The package's commands: ``python -m airflow_provider_geminiimg``, and in Airflow 3.2 and later ``airflow geminiimg``.

Every ``airflow`` command imports this module, so that nothing heavy may be imported here.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from airflow_provider_geminiimg.core.redaction.printable import printable
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.runtime import command_line, jobs_command, spend_command
from airflow_provider_geminiimg.runtime.doctor import command as doctor_command


def _sandbox_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8099, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds that a job takes (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a host name that callers may use; repeatable"
    )


def _sandbox(arguments: argparse.Namespace) -> int:
    from airflow_provider_geminiimg.sandbox.server import serve
    from airflow_provider_geminiimg.sandbox.state import Settings

    serve(
        host=arguments.host,
        port=arguments.port,
        allow_hosts=arguments.allow_host,
        settings=Settings(latency=arguments.latency),
    )
    return 0


_COMMANDS = {
    "jobs": ("list, collect and resolve what was paid for", jobs_command.add_arguments, command_line.run),
    "spend": (spend_command.SPEND.help, spend_command.add_arguments, command_line.run),
    "doctor": (doctor_command.DOCTOR.help, doctor_command.add_arguments, command_line.run),
    "sandbox": ("both gateways in a box, without keys or money", _sandbox_arguments, _sandbox),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with arguments that may be copied from anywhere."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = _Parser(prog="python -m airflow_provider_geminiimg")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (text, add_arguments, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        add_arguments(command)
        command.set_defaults(run=run)
    _prepare_streams()
    arguments = parser.parse_args(argv)
    return _status(arguments.run, arguments)


def airflow_commands() -> list[Any]:
    """``airflow geminiimg jobs``, ``spend`` and ``doctor``, for Airflow's own command line."""
    from airflow.cli.cli_config import GroupCommand

    text = _COMMANDS["jobs"][0]
    jobs = GroupCommand("jobs", text, jobs_command.for_airflow(_run_in_airflow))
    spend = spend_command.SPEND.for_airflow("spend", _run_in_airflow)
    doctor = doctor_command.DOCTOR.for_airflow("doctor", _run_in_airflow)
    return [GroupCommand("geminiimg", "Gemini images: what was paid for", [jobs, spend, doctor])]


def _run_in_airflow(arguments: argparse.Namespace) -> NoReturn:
    _prepare_streams()
    sys.exit(_status(command_line.run, arguments))


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter gets its escape
            stream.reconfigure(errors="backslashreplace")


def _status(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return run(arguments)
    except (ImportError, OSError, GeminiImageError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
