"""A complete Airflow on this machine: API server, scheduler, DAG processor and triggerer, each in its own process.

For the demo, the benchmarks, and tests that need real workers and a real triggerer. It uses SQLite and the
LocalExecutor, on free ports of 127.0.0.1, in its own home folder.

Invariant: no process remains after `LiveAirflow.stop`, not even a task whose supervisor was killed. Every component
starts its own session, and orphaned processes stay in their session.

    with LiveAirflow(home, dags_folder, {"AIRFLOW_CONN_X": "..."}) as airflow:
        airflow.trigger("my_dag", "run")
        assert airflow.wait("my_dag", "run") == "success"
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import psutil

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
# Logs lie on this very disk; a server for them would listen on every address of the machine.
_ARGUMENTS = dict.fromkeys(("scheduler", "triggerer", "celery worker"), ("--skip-serve-logs",))
GRACE = 30  # seconds that a component which is asked to end has for it
FINISHED = ("success", "failed")

# Short waits: with one small DAG every default interval is a pause that somebody sits through.
_SETTINGS = {
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__PARALLELISM": "4",
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__TEST_CONNECTION": "Enabled",
    "API__HOST": "127.0.0.1",
    "API__WORKERS": "1",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}


def iteration_of(ti: Mapping[str, Any]) -> int | None:
    """The iteration of a task instance, as the API shows it; ``None`` outside loops, which Airflow has from 3.4 on."""
    found = ti.get("loop_iteration")
    return None if found is None else int(found["iteration"])


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LiveAirflow:
    """One Airflow. Its database and logs are in `home` and remain after `stop`, so that a later one can continue.

    :param home: AIRFLOW_HOME; created if it does not exist.
    :param dags_folder: folder of the DAG files.
    :param env: additional environment for every component, which overrides the defaults of this class.
    :param users: the role of each user, ``{"ada": "ADMIN", "vera": "VIEWER"}``. Passwords equal the names; `api` uses
        the first user. Default: no login, everybody is an administrator.
    :param port: port of the API server on 127.0.0.1. Default: a free port.
    """

    def __init__(
        self,
        home: Path,
        dags_folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        users: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.home = home.resolve()
        self.dags_folder = dags_folder.resolve()
        self.users = dict(users or {})
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**self._environment(), **(env or {})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()
        self._client: httpx.Client | None = None

    def __enter__(self) -> LiveAirflow:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of every component that was started, by its name."""
        return {name: process.pid for name, process in self._processes.items()}

    def start(self, components: Sequence[str] = COMPONENTS, *, timeout: float = 300) -> None:
        """Make or bring up to date the database, start the components, and wait until each has given a sign of life.

        :param components: which; the API is needed by everything else.
        :param timeout: seconds for all of it.
        :raises RuntimeError: when a component ends instead; with the end of its log.
        :raises TimeoutError: when it takes longer. In both cases nothing is left running.
        """
        deadline = time.monotonic() + timeout
        try:
            self._migrate(timeout)
            since = datetime.now(timezone.utc)
            for component in components:
                self.spawn(component)
            self._until(self._log_in, deadline, "the api-server does not answer")
            self._until(
                lambda: self._heartbeats(components, since), deadline, "not every component gave a sign of life"
            )
        except BaseException:
            self.stop()
            raise

    def spawn(
        self,
        component: str,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> int:
        """Start one more component, say a second triggerer or a ``celery worker``, without waiting for it.

        :param name: what `pids` and `log_file` call it; default: the component's own name.
        :param env: more environment for this one.
        :param arguments: more arguments of its command.
        :returns: its process id.
        """
        name = name or component
        with self.log_file(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *component.split(), *_ARGUMENTS.get(component, ()), *arguments],
                env={**self.env, **(env or {})},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        self._sessions.add(process.pid)
        return process.pid

    def stop(self) -> None:
        """End every process of it: asked first, killed after two seconds. Does nothing the second time."""
        if self._client is not None:
            self._client.close()  # an open connection would keep the api-server from ending
            self._client = None
        processes = list(self.processes())
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)  # one that a test has stopped can't end
                process.terminate()
        psutil.wait_procs(processes, timeout=2)
        left = {*processes, *self.processes()}
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=2)  # a killed one is there until the kernel has taken it apart
        for child in self._processes.values():
            child.wait()
        self._processes.clear()
        self._sessions.clear()

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to a component and to every child of it (a triggerer's loop runs in a child).

        One that is only asked to end tells its children itself, and is killed with them after `GRACE` seconds, as
        service managers do. One that ends of it is forgotten: `spawn` brings up another.
        """
        process = self._processes[name]
        if signal_number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE)
                del self._processes[name]
                return
            signal_number = signal.SIGKILL
        for each in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal_number)
        if signal_number == signal.SIGKILL:
            process.wait(timeout=30)
            del self._processes[name]

    def processes(self) -> Iterator[psutil.Process]:
        """Every living process of it: components, their workers, and tasks, also those that lost their parent."""
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) in self._sessions:
                    yield process

    def log_file(self, name: str) -> Path:
        """What a component has written to its output."""
        folder = self.home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def task_log(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        *,
        map_index: int = -1,
        iteration: int | None = None,
        attempt: int = 1,
    ) -> str:
        """A task's log as its worker wrote it, empty where there is none (yet); the triggerer's part follows it.

        In a loop it lies in a folder ``pass=1``, or ``pass=1.2`` if Airflow has created the iteration again.
        """
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        name = f"attempt={attempt}.log*"
        paths = sorted(folder.glob(name) if iteration is None else folder.glob(f"pass={iteration}*/**/{name}"))
        folders = (None, f"pass={iteration}")
        return "".join(path.read_text() for path in paths if _pass_of(folder, path) in folders)

    def api(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One call of Airflow's REST API.

        :param path: below ``/api/v2``.
        :returns: the answer's JSON.
        :raises httpx.HTTPStatusError: when it is an error.
        """
        if self._client is None:
            raise RuntimeError("Airflow is not running")
        answer = self._client.request(method, f"/api/v2{path}", json=body, params=query)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def trigger(
        self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None, *, timeout: float = 180
    ) -> dict[str, Any]:
        """Start a run, as soon as the DAG processor has read the DAG.

        :param timeout: seconds to wait for the DAG.
        """
        try:
            self._until(lambda: self._knows(dag_id), time.monotonic() + timeout, f"there is no DAG {dag_id!r}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; import errors: {self._import_errors()}") from None
        body = {"dag_run_id": run_id, "conf": dict(conf or {}), "logical_date": _now()}
        return dict(self.api("POST", f"/dags/{_quoted(dag_id)}/dagRuns", body))

    def run(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """What Airflow says of a run, ``None`` where it has none such."""
        try:
            return dict(self.api("GET", _path(dag_id, run_id)))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 404:
                raise
            return None

    def wait(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout: float = 120,
        watch: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> str:
        """Wait for the end of a run.

        :param timeout: seconds.
        :param watch: is called with all task instances at every look, twice a second.
        :returns: ``"success"`` or ``"failed"``.
        """
        state = ""

        def over() -> bool:
            nonlocal state
            if watch is not None:
                watch(self.task_instances(dag_id, run_id))
            state = str(self.api("GET", _path(dag_id, run_id))["state"])
            return state in FINISHED

        self._until(over, time.monotonic() + timeout, f"run {run_id!r} of {dag_id!r} has not ended", pause=0.5)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Every task instance of a run, by task id, iteration of a loop, and map index."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", f"{_path(dag_id, run_id)}/taskInstances", limit=100, offset=len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return sorted(found, key=lambda ti: (ti["task_id"], iteration_of(ti) or 0, ti["map_index"]))

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """The value of an XCom of a task outside loops.

        :raises httpx.HTTPStatusError: 404 where there is none.
        """
        return self._xcom(dag_id, run_id, task_id, key, map_index=map_index)

    def xcom_of(self, ti: Mapping[str, Any], *, key: str = "return_value") -> Any:
        """The value of an XCom of a task instance, as the API shows it: in a loop a task id alone does not name one.

        :raises httpx.HTTPStatusError: 404 where there is none.
        """
        where = {name: ti[name] for name in ("map_index", "region_id", "region_index") if name in ti}
        return self._xcom(ti["dag_id"], ti["dag_run_id"], ti["task_id"], key, **where)

    def clear(self, dag_id: str, run_id: str, *task_ids: str, **options: Any) -> None:
        """Clear tasks of a run, all of them where none is named; the run goes on at once.

        :param options: more fields of the request. In a loop (Airflow 3.4) ``task_instance_ids`` name the tasks.
        """
        body: dict[str, Any] = {"dry_run": False, "only_failed": False, "reset_dag_runs": True, "dag_run_id": run_id}
        if task_ids:
            body["task_ids"] = list(task_ids)
        self.api("POST", f"/dags/{_quoted(dag_id)}/clearTaskInstances", {**body, **options})

    def set_state(self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1) -> None:
        """Mark a task instance ``"failed"`` or ``"success"``, as the button does."""
        path = f"{_path(dag_id, run_id)}/taskInstances/{_quoted(task_id)}"
        self.api("PATCH", f"{path}/{map_index}" if map_index >= 0 else path, {"new_state": state})

    def command(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run ``airflow <arguments>`` in this Airflow's environment."""
        return subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _xcom(self, dag_id: str, run_id: str, task_id: str, key: str, **where: Any) -> Any:
        path = f"{_path(dag_id, run_id)}/taskInstances/{_quoted(task_id)}/xcomEntries/{_quoted(key)}"
        return self.api("GET", path, stringify=False, **where)["value"]

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        settings = {
            **_SETTINGS,
            **self._keys(),
            **self._users(),
            "CORE__DAGS_FOLDER": str(self.dags_folder),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "API__PORT": str(self.port),
            "API__BASE_URL": self.url,
            # One process writes at a time, and by default another gives up after 5 s: too soon on a busy machine.
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}?timeout=60",
            "LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
        }
        return {
            **inherited,
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            "AIRFLOW_HOME": str(self.home),
            "PYTHONUNBUFFERED": "1",
        }

    def _users(self) -> dict[str, str]:
        if not self.users:
            return {"CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True"}
        self.home.mkdir(parents=True, exist_ok=True)
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({name: name for name in self.users}))
        return {
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(map(":".join, self.users.items())),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        }

    def _keys(self) -> dict[str, str]:
        """Keys that all components share, the same every time: what one Airflow encrypted the next must read."""
        self.home.mkdir(parents=True, exist_ok=True)
        path = self.home / "keys.json"
        if not path.exists():
            sizes = {"CORE__FERNET_KEY": 32, "API__SECRET_KEY": 32, "API_AUTH__JWT_SECRET": 64}
            keys = {name: urlsafe_b64encode(secrets.token_bytes(size)).decode() for name, size in sizes.items()}
            path.touch(mode=0o600)
            path.write_text(json.dumps(keys))
        return dict(json.loads(path.read_text()))

    def _migrate(self, timeout: float) -> None:
        from airflow import __version__

        stamp = self.home / "migrated"
        if stamp.exists() and stamp.read_text() == __version__:
            return
        done = self.command("db", "migrate", timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"airflow db migrate failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        stamp.write_text(__version__)

    def _log_in(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = self._ask_for_token()
            if answer.is_success:
                headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
                self._client = httpx.Client(base_url=self.url, headers=headers, timeout=60)
                return True
        return False

    def _ask_for_token(self) -> httpx.Response:
        if not self.users:
            return httpx.get(f"{self.url}/auth/token", timeout=10)
        name = next(iter(self.users))
        return httpx.post(f"{self.url}/auth/token", json={"username": name, "password": name}, timeout=10)

    def _heartbeats(self, components: Sequence[str], since: datetime) -> bool:
        health = self.api("GET", "/monitor/health")
        beats = (
            health[name.replace("-", "_")][f"latest_{name.replace('-', '_')}_heartbeat"]
            for name in components
            if name != "api-server"
        )
        return all(beat and datetime.fromisoformat(beat.replace("Z", "+00:00")) >= since for beat in beats)

    def _knows(self, dag_id: str) -> bool:
        with contextlib.suppress(httpx.HTTPStatusError):
            return bool(self.api("GET", f"/dags/{_quoted(dag_id)}"))
        return False

    def _import_errors(self) -> str:
        errors = self.api("GET", "/importErrors")["import_errors"]
        return "; ".join(error["stack_trace"] for error in errors) or "none"

    def _until(self, met: Callable[[], bool], deadline: float, complaint: str, *, pause: float = 0.2) -> None:
        while not met():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    tail = self.log_file(name).read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{tail}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{complaint}; logs: {self.home / 'logs'}")
            time.sleep(pause)


def _pass_of(folder: Path, log: Path) -> str | None:
    """The folder of a loop's iteration in which a log lies, without the number of its fork."""
    first = log.relative_to(folder).parts[0]
    return first.partition(".")[0] if first.startswith("pass=") else None


def _quoted(segment: str) -> str:
    return quote(segment, safe="")


def _path(dag_id: str, run_id: str) -> str:
    return f"/dags/{_quoted(dag_id)}/dagRuns/{_quoted(run_id)}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
