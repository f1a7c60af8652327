"""What every attack goes through: a task of this package in a real Airflow, one gateway, and a world around them.

What must stay true: an attack is made from outside (by what a gateway, a host, a name server or a disk answers), and
judged from outside: by who was connected to, by every file that was written, by the gateway's ledger and the records.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image

from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import read_submission
from tests.harness.forbidden import PUBLIC, Forbidden, Host, Internet, Route, answer, as_json, done, trusted
from tests.harness.matrix import read_records

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

PROMPT = "a red fox"
IMAGES = "pictures.test"  # the host of hostile images, with a public address and a certificate
OTHER = "other.test"  # another name that the same certificate is good for


@dataclass(frozen=True)
class FromTask:
    """An argument that is what another task returned."""

    value: Any

    def output(self) -> Any:
        """The output of that task, within a DAG."""

        @task
        def upstream() -> Any:
            return self.value

        return upstream()


@dataclass
class Target:
    """What is attacked.

    :param conn_id: ``onemin`` or ``apimaster``: a connection to the sandbox.
    :param folder: the test's own; the root lies in it.
    """

    airflow: AirflowHarness
    sandbox: Sandbox
    internet: Internet
    forbidden: Forbidden
    images: Host
    conn_id: str
    folder: Path
    runs: int = 0

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def link(self, path: str = "/p.png", name: str = IMAGES) -> str:
        """A link at the hostile host. At its port on this machine's own addresses stands the forbidden server."""
        return f"https://{name}:{self.forbidden.port}{path}"

    def polls_answer(self, link: str, times: int = 1) -> None:
        """Let the next polls say that the job is done, and that its image is behind `link`."""
        self.sandbox.faults(route=f"{self.conn_id}.status", body=done(link), times=times)

    def generate(self, **more: Any) -> Run:
        """The run of a DAG with one task, ``made``, that generates an image. Arguments: see `dag`."""
        return self._run(self.dag(**more))

    def edit(self, image: Any, **more: Any) -> Run:
        """The same, of a task that edits `image`."""
        return self._run(self.dag(GeminiImageEditOperator, image=image, **more))

    def run_as(self, operator: Callable[..., Any], **more: Any) -> Run:
        """The same, of another operator that takes the usual arguments."""
        return self._run(self.dag(operator, **more))

    def run_as_is(self, operator: Callable[..., Any], **arguments: Any) -> Run:
        """The same, of another operator, with these arguments alone."""
        with DAG("attacked", schedule=None) as dag:
            operator(task_id="made", **_resolved(arguments))
        return self._run(dag)

    def dag(self, operator: Callable[..., Any] = GeminiImageGenerateOperator, *, given: Any = None, **more: Any) -> DAG:
        """The DAG of `generate`, to clear a task with.

        :param given: what templates find as ``params.given``.
        :param more: arguments of the task; a `FromTask` is what another task returned.
        """
        with DAG("attacked", schedule=None, params={"given": given}) as dag:
            operator(**_resolved(self.arguments(more)))
        return dag

    def _run(self, dag: DAG) -> Run:
        self.runs += 1
        return self.airflow.run_dag(dag, run_id=f"run-{self.runs}")

    def arguments(self, more: dict[str, Any]) -> dict[str, Any]:
        """Those of a task, with `more` instead of the usual ones."""
        usual = {"task_id": "made", "prompt": PROMPT, "geminiimg_conn_id": self.conn_id}
        return {**usual, "poll_interval": 0.02, "deferrable": False, **more}

    def records(self) -> list[Record]:
        return [found.record for found in read_records(self.root.as_uri())]

    def kept(self, run: Run, said: str, *, noted: bool = True) -> GeminiImageError:
        """Check that an image was paid for and did not land, and that nothing about it is lost.

        :param said: in the error.
        :param noted: whether the record says why, so that a Clear with ``regenerate`` may buy again.
        """
        error = outcome(run)
        assert said in str(error), error
        assert error.billed is Billed.YES
        assert "The image was paid for." in str(error)
        assert error.hint
        assert len(self.sandbox.ledger()) == 1
        [record] = self.records()
        assert (record.state, record.job_id) == ("submitted", self.sandbox.ledger()[0]["job_id"])
        assert (record.error is not None and record.error.message == error.message) is noted
        assert not list(self.root.glob("images/**/*.*"))
        return error

    def lands(self, run: Run, submissions: int = 1) -> dict[str, Any]:
        """Check that a run ended with the gateway's own image in storage, and so many paid for."""
        manifest = returned(run)
        assert len(self.sandbox.ledger()) == submissions
        path = Path(manifest["images"][0]["uri"].removeprefix("file://"))
        assert read_submission(path.read_bytes()) == self.sandbox.ledger()[-1]["number"]
        return manifest

    def refused_unsent(self, run: Run, said: str) -> GeminiImageError:
        """Check that a task was refused before anything was sent, recorded or paid for."""
        error = outcome(run)
        assert said in str(error), error
        assert error.billed is Billed.NO
        assert self.sandbox.calls() == []
        assert not list(self.root.glob("ledger/**/*.json"))
        return error


def _resolved(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.output() if isinstance(value, FromTask) else value
        for name, value in arguments.items()
    }  # fmt: skip


def returned(run: Run, map_index: int = -1) -> dict[str, Any]:
    """What a task returned that ended well."""
    made = run.task("made", map_index)
    assert made.state == "success", made.log
    manifest: dict[str, Any] = made.value
    return manifest


def outcome(run: Run, task_id: str = "made") -> GeminiImageError:
    """Why the task failed."""
    made = run.task(task_id)
    assert made.state == "failed", made.log
    error = made.error.__cause__ if isinstance(made.error, AirflowFailException) else made.error
    assert isinstance(error, GeminiImageError), made.log
    return error


@pytest.fixture
def target(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    internet: Internet,
    forbidden: Forbidden,
    local_root: str,
    tmp_path: Path,
    geminiimg_conn_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Target]:
    """The test runs once for each gateway; afterwards nobody has been connected to who should not have been."""
    with trusted(tmp_path, monkeypatch, IMAGES, OTHER) as context:
        images = Host(context)
        internet.names = {IMAGES: [[PUBLIC]], OTHER: [[PUBLIC]], "localhost.": [["127.0.0.1"]]}
        internet.hosts[PUBLIC] = images.port
        yield Target(airflow, sandbox, internet, forbidden, images, geminiimg_conn_id, tmp_path)
        images.close()
    assert set(internet.reached) <= {"127.0.0.1", PUBLIC}
    assert forbidden.hits == 0


@pytest.fixture
def api(target: Target, host: Host, connect: Callable[..., str]) -> Host:
    """A server in the gateway's place: the task's connection leads there. See `answers`."""
    gateway, path = {"onemin": ("1min", ""), "apimaster": ("apimaster", "/v1")}[target.conn_id]
    extra = {"gateway": gateway, "requests_per_minute": 100_000}
    connect(target.conn_id, host=host.url + path, password="key", extra=extra)
    host.routes["/p.png"] = answer(body=image_bytes())
    return host


def answers(
    api: Host,
    *,
    submit: Route | None = None,
    poll: Route | None = None,
    job_id: str = "job-1",
    keys: Sequence[str] = (),
) -> None:
    """Let the server in the gateway's place behave well, but for these answers.

    :param job_id: of every submit.
    :param keys: the storage keys of the image, where the gateway names them.
    """
    submitted = {
        "aiRecord": {"uuid": job_id, "status": "PROCESSING"},
        "data": [{"status": "submitted", "task_id": job_id}],
    }
    ended = done(f"{api.url}/p.png", *keys)

    def route(handler: BaseHTTPRequestHandler) -> None:
        special, usual = (submit, submitted) if handler.command == "POST" else (poll, ended)
        (special or as_json(usual))(handler)

    api.otherwise = route


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_MOVES = {"os.rename": 1, "os.link": 1, "os.symlink": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0}
_watching: list[list[str]] = []


def _audit(event: str, args: Sequence[Any]) -> None:
    if not _watching:
        return
    path = None
    if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
        path = args[0]
    elif event in _MOVES:
        path = args[_MOVES[event]]
    if isinstance(path, (str, bytes, os.PathLike)):
        for seen in _watching:
            seen.append(os.path.realpath(os.fsdecode(path)))


@functools.cache
def _listen() -> None:
    sys.addaudithook(_audit)  # which can't be taken back


@contextlib.contextmanager
def every_write() -> Iterator[list[str]]:
    """The real paths of all that this process writes, makes, moves or removes on any disk within this block.

    Airflow's own home is left out, as are devices and Python's caches.
    """
    _listen()
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
        home = os.path.realpath(os.environ["AIRFLOW_HOME"])
        seen[:] = [path for path in seen if not path.startswith((home, "/dev/")) and "__pycache__" not in path]


def image_bytes(size: tuple[int, int] = (1024, 1024), kind: str = "PNG") -> bytes:
    """An image that the sandbox did not make."""
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()
