"""The operations of a store, on each kind of store: seconds, and the CPU that the client needs.

The servers are emulators on the same machine (SeaweedFS is a real S3 server), so the seconds say little about the
clouds; the CPU of the clients is what a worker pays anywhere.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bucket import bucket, real_bucket
from benchmarks.measure import fresh
from benchmarks.results import Row

KINDS = (
    "disk",
    "S3 (moto)",
    "S3 (SeaweedFS)",
    "Google Cloud Storage (fake-gcs-server)",
    "Azure Blob Storage (Azurite)",
)
CLAIMANTS = 8
OPERATIONS = {
    "create 1 KB": 200,
    "read 1 KB": 200,
    "replace 1 KB": 200,
    "list 200 keys": 10,
    "write an image of 8 MB": 10,
}


@contextlib.contextmanager
def _place(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A new place in a store, and the environment in which its client finds it."""
    from tests.harness import servers

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if kind == "disk":
            yield Path(folder).as_uri(), {}
        elif "S3" in kind:
            yield stack.enter_context(bucket() if "moto" in kind else real_bucket())
        elif "Google" in kind:
            server = stack.enter_context(servers.google_storage(Path(folder)))
            yield f"gs://bench-{uuid.uuid4().hex}", {"STORAGE_EMULATOR_HOST": server.url}
        else:
            server = stack.enter_context(servers.azure_storage(Path(folder)))
            yield f"abfs://bench-{uuid.uuid4().hex}", {"AZURITE": server.url}


def measure(*, uri: str, races: int, share: float) -> dict[str, Any]:
    """Use one store.

    :param share: of the repetitions.
    """
    from airflow_provider_geminiimg.core.storage import Files, open_store

    openers = _openers(uri)
    store, files = open_store(f"{uri}/root", openers), Files(openers)
    store.probe()
    image, versions = b"\x89PNG" * (2 << 20), dict[str, str]()

    def create(number: int) -> None:
        versions[f"a/{number}.json"] = str(store.create(f"a/{number}.json", b"x" * 1024))

    def replace(number: int) -> None:
        assert store.replace(f"a/{number}.json", b"y" * 1024, versions[f"a/{number}.json"])

    work: tuple[Callable[[int], object], ...] = (
        create,
        lambda number: store.read(f"a/{number}.json"),
        replace,
        lambda number: list(store.keys("a/")),
        lambda number: files.put(f"{uri}/out/{number}.png", image, media_type="image/png"),
    )
    found = {}
    for (name, count), step in zip(OPERATIONS.items(), work, strict=True):
        repeats = max(1, int(count * share))
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(repeats):
            step(number)
        took = time.perf_counter() - began, time.process_time() - cpu
        found[name] = [seconds / repeats * 1000 for seconds in took]
    with ThreadPoolExecutor(CLAIMANTS) as pool:
        won = [
            [*pool.map(lambda who: store.create(f"race/{race}", str(who).encode()), range(CLAIMANTS))]  # noqa: B023
            for race in range(races)
        ]
    found["races"] = sum(sum(version is not None for version in each) == 1 for each in won)
    return found


def _openers(uri: str) -> Any:
    """What opens the stores; Azure's without its provider, which the benchmarks do not need."""
    import dataclasses
    import os

    from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS, default_google_client

    container = uri.partition("://")[2]
    if uri.startswith("gs://"):
        default_google_client(None).create_bucket(container)
    if not uri.startswith("abfs://"):
        return AIRFLOW_OPENERS
    from azure.storage.blob import BlobServiceClient

    from tests.harness.servers import AZURE_ACCOUNT, AZURE_KEY

    credential = {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
    client = BlobServiceClient(os.environ["AZURITE"], credential=credential)
    client.create_container(container)
    return dataclasses.replace(AIRFLOW_OPENERS, azure_client=lambda conn_id: client)


def run(quick: bool) -> list[Row]:
    rows = []
    races, share = (5, 0.02) if quick else (100, 1.0)
    for kind in KINDS:
        with _place(kind) as (uri, env):
            found = fresh(measure, env=env, uri=uri, races=races, share=share)
        for name in OPERATIONS:
            seconds, cpu = found[name]
            rows.append(Row("stores", f"{kind}: {name}", "ms", seconds))
            rows.append(Row("stores", f"{kind}: {name}, CPU of the client", "ms", cpu))
        figure = f"{kind}: races of {CLAIMANTS} writers with one winner, of {races}"
        rows.append(Row("stores", figure, "", found["races"], target=races, at_least=True))
    return rows
