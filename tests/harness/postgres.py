"""A PostgreSQL server for one test: Debian's, on a free port of 127.0.0.1, with its data in a temporary folder.

With SQLite, a dozen simultaneous tasks fail with "database is locked".

    with Postgres() as postgres:
        LiveAirflow(home, dags, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url})
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.harness.live_airflow import free_port

_SPEED = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")  # what it holds is worth nothing tomorrow


class Postgres:
    """A running server; a context manager.

    :raises RuntimeError: PostgreSQL is not installed, or does not start.
    """

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
        self._bin = found[-1]
        # It refuses to run as root.
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="geminiimg-postgres-"))
        self._port = free_port()
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", "data", "-U", "airflow", "--auth=trust", "--no-sync")
        options = [f"-c {each}" for each in (*_SPEED, "max_connections=300", "unix_socket_directories=''")]
        started = f"-h 127.0.0.1 -p {self._port} {' '.join(options)}"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", started, "start")
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._run("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self._folder,
            user=None if self._user is None else self._user.pw_uid,
            group=None if self._user is None else self._user.pw_gid,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout or (self._folder / 'log').read_text()}")
