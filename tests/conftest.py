"""Fixtures. The environment is set here, before anything imports Airflow: it reads its settings at import."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

NO_LIMIT = {"requests_per_minute": 100_000}  # all tests share one process, and so one limiter a connection

HOME = Path(tempfile.mkdtemp(prefix="geminiimg-tests-"))
(HOME / "dags").mkdir()
os.environ.update(
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__FERNET_KEY="",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{HOME / 'airflow.db'}",
    AIRFLOW__LOGGING__BASE_LOG_FOLDER=str(HOME / "logs"),
    AIRFLOW__LOGGING__COLORED_CONSOLE_LOG="False",
)
os.environ.pop("AIRFLOW_CONFIG", None)

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.api_users import ApiUsers
    from tests.harness.inprocess import AirflowHarness
    from tests.harness.servers import Server


STARTED = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.time()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The failure matrix, as far as this session has run it."""
    from scripts.failure_matrix import read_results, table

    if rows := read_results(since=config.stash[STARTED]):
        terminalreporter.section("failure matrix")
        terminalreporter.write(table(rows))


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _fires_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker process ends late where the trigger runs in this one."""
    from airflow_provider_geminiimg.triggers import job

    monkeypatch.setattr(job, "MIN_SECONDS", 0.0)


@pytest.fixture(scope="session")
def _airflow_home() -> Path:
    from tests.harness.inprocess import start_airflow

    start_airflow()
    return HOME


@pytest.fixture
def airflow(_airflow_home: Path) -> Iterator[AirflowHarness]:
    """A real Airflow in this process: ``airflow.run_dag(dag)``. See `tests.harness.inprocess`."""
    from tests.harness.inprocess import AirflowHarness

    harness = AirflowHarness()
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def api_users(_airflow_home: Path) -> Iterator[ApiUsers]:
    """Airflow's REST API with a login, and who uses it: ``api_users.answer(run, "review", "Approve")``."""
    from tests.harness.api_users import serve_api_users

    with serve_api_users() as them:
        yield them


@pytest.fixture(scope="session")
def _sandbox() -> Iterator[Sandbox]:
    from airflow_provider_geminiimg.sandbox import Sandbox

    with Sandbox(latency=0.05) as box:
        yield box


@pytest.fixture
def sandbox(_sandbox: Sandbox) -> Sandbox:
    """Both gateways in a box, empty, with a latency of 0.05 s, and nobody slowed down by what an earlier test met."""
    from airflow_provider_geminiimg.core.http import rate_limit

    _sandbox.reset()
    rate_limit._limiters.clear()
    return _sandbox


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a connection: ``connect("my_conn", host=..., password=..., extra={...})`` gives back its id.

    Every field may be left out or be ``None``; the connection type is ``geminiimg`` unless given.
    """

    def make(conn_id: str, *, conn_type: str = "geminiimg", **fields: Any) -> str:
        given = {name: value for name, value in fields.items() if value is not None}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": conn_type, **given}))
        return conn_id

    return make


@pytest.fixture
def onemin(sandbox: Sandbox, connect: Callable[..., str]) -> str:
    """The id of a connection to the sandbox's 1min.ai."""
    return connect("onemin", **sandbox.connection("1min", **NO_LIMIT))


@pytest.fixture
def apimaster(sandbox: Sandbox, connect: Callable[..., str]) -> str:
    """The id of a connection to the sandbox's APIMaster.ai."""
    return connect("apimaster", **sandbox.connection("apimaster", **NO_LIMIT))


@pytest.fixture(params=["onemin", "apimaster"])
def geminiimg_conn_id(request: pytest.FixtureRequest) -> str:
    """The test runs once for each gateway, with the id of a connection to it."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    from tests.harness.moto import start_moto

    with start_moto() as url:
        yield url


@pytest.fixture
def s3(_moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty bucket at a local S3 server, as ``s3://bucket``; boto3's own chain finds server and keys."""
    import uuid

    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": _moto,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    bucket = f"test-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def _cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """The server of a name in `tests.harness.servers`, which is started once."""
    from tests.harness import servers

    with contextlib.ExitStack() as running:
        yield functools.cache(lambda name: running.enter_context(getattr(servers, name)(tmp_path_factory.mktemp(name))))


@pytest.fixture
def gs(_cloud: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty bucket at a local Google Cloud Storage, as ``gs://bucket``."""
    from tests.harness.stores import new_google_bucket

    return new_google_bucket(_cloud("google_storage"), monkeypatch)


@pytest.fixture
def abfs(_cloud: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty container at a local Azure Blob Storage, as ``abfs://conn_id@container``."""
    from tests.harness.stores import new_azure_container

    return new_azure_container(_cloud("azure_storage"), monkeypatch)


@pytest.fixture
def seaweed(_cloud: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty prefix of a bucket at a local SeaweedFS, as ``s3://bucket/prefix``."""
    from tests.harness.stores import new_seaweed

    return new_seaweed(_cloud("seaweedfs"), monkeypatch)


@pytest.fixture
def local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`[geminiimg] root` on disk, new for this test; as a URI."""
    uri = (tmp_path / "root").as_uri()
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", uri)
    return uri


@pytest.fixture
def s3_root(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`[geminiimg] root` in a new bucket; as a URI."""
    uri = f"{s3}/root"
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", uri)
    return uri


@pytest.fixture(params=["local_root", "s3_root"], ids=["disk", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    """The test runs twice: with `[geminiimg] root` on disk, and on S3."""
    return str(request.getfixturevalue(request.param))
