"""Two hundred images of 8 MB from the gateway to a bucket, 16 at a time: poll, download, write.

Each contestant does what it would do in a task. The package checks the bytes, computes the checksum, writes a sidecar
and updates the record; the peers copy the bytes. Submits run before the measurement. The ledger is on disk, the images
go to S3. Pillow is disabled, because the peers make no thumbnails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bucket import bucket
from benchmarks.gateway import gateway
from benchmarks.making import CONNECTION, Memory, environment, prompts
from benchmarks.measure import fresh
from benchmarks.results import Row

COUNT, WIDTH, SIZE = 200, 16, 8_000_000
WARM = 2  # images that land first, so that no import is measured
MODEL = "gemini-3.1-flash-image-preview"
OVERLAY = Path(__file__).parents[1] / ".venvs" / "s3fs"
THROUGHPUT, MEMORY = 1.0, 0.3


def ours(*, url: str, directory: str, count: int) -> dict[str, float]:
    """Land what this very process has submitted, by the steps of the operators."""
    sys.modules["PIL"] = None  # type: ignore[assignment]
    from airflow_provider_geminiimg.core.execution.runner import run

    return run(lambda: _land(directory, count))


async def _land(directory: str, count: int) -> dict[str, float]:
    from airflow_provider_geminiimg.core.execution.runner import SubmitGuard
    from airflow_provider_geminiimg.core.ledger.layout import Item
    from airflow_provider_geminiimg.core.ledger.record import Destination, Record
    from airflow_provider_geminiimg.core.purchase.decision import Policy
    from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
    from airflow_provider_geminiimg.core.purchase.lifecycle import Purchase
    from airflow_provider_geminiimg.core.purchase.order import Order
    from airflow_provider_geminiimg.core.purchase.waiting import JobCollector
    from airflow_provider_geminiimg.core.request import ImageRequest
    from airflow_provider_geminiimg.runtime.environment import Environment

    around = Environment(logging.getLogger("benchmark"))
    connection = around.connection(CONNECTION)
    async with around.purchase_context() as purchase_context:
        turn = asyncio.Semaphore(WIDTH)

        async def submit(number: int, prompt: str) -> Record:
            order = Order(
                item=Item(around.namespace, "bench", "run", "landing", -1, str(number)),
                request=ImageRequest.build(operation="generate", prompt=prompt, resolution="512").check(
                    connection.gateway, connection.model
                ),
                connection=connection,
                destination=Destination(directory, f"image-{number}"),
                policy=Policy(generation=0),
            )
            async with turn:
                submitted = await Purchase(order, purchase_context, SubmitGuard(), None).start()
            return submitted.record

        async def land(record: Record) -> None:
            async with turn:
                await JobCollector(ImageWriter(purchase_context)).wait(
                    record, timeout=600, poll_interval=1.0, poll_immediately=True
                )

        wanted = enumerate(prompts(WARM + count))
        records = await asyncio.gather(*(submit(number, prompt) for number, prompt in wanted))
        await asyncio.gather(*map(land, records[:WARM]))
        memory, began = Memory(), time.monotonic()
        await asyncio.gather(*map(land, records[WARM:]))
        return {"seconds": time.monotonic() - began, "bytes": memory.peak() - memory.idle}


def with_requests(*, url: str, directory: str, count: int) -> dict[str, float]:
    """What a PythonOperator's function would do, in a pool of threads."""
    import boto3
    import requests
    from botocore.config import Config

    s3 = boto3.client("s3", config=Config(max_pool_connections=WIDTH))
    name, _, prefix = directory.removeprefix("s3://").partition("/")

    def land(task: str) -> None:
        body = requests.get(_link(url, task), timeout=60).content
        s3.put_object(Bucket=name, Key=f"{prefix}/{task}.png", Body=body, ContentType="image/png")

    return _in_threads(land, _submitted(url, count))


def with_storage_path(*, url: str, directory: str, count: int) -> dict[str, float]:
    """Airflow's own copy between two places, here the web and a bucket."""
    import fsspec
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.io import attach

    web = fsspec.filesystem("http", block_size=0)  # this gateway knows no ranges: one stream
    attach("http", fs=web)

    def land(task: str) -> None:
        ObjectStoragePath(_link(url, task)).copy(ObjectStoragePath(f"{directory}/{task}.png"))

    return _in_threads(land, _submitted(url, count))


def _submitted(url: str, count: int) -> list[str]:
    import requests

    body = {"model": MODEL, "resolution": "0.5K"}
    return [
        requests.post(f"{url}/images/generations/async", json={**body, "prompt": prompt}, headers=_key(), timeout=60)
        .json()["data"][0]["task_id"]
        for prompt in prompts(WARM + count)
    ]  # fmt: skip


def _link(url: str, task: str) -> str:
    import requests

    answer = requests.get(f"{url}/tasks/{task}", params={"model": MODEL}, headers=_key(), timeout=60)
    link = answer.json()["data"]["result"]["images"][0]["url"]
    return str(link[0] if isinstance(link, list) else link)


def _key() -> dict[str, str]:
    return {"Authorization": "Bearer sandbox-key"}


def _in_threads(land: Callable[[str], None], tasks: list[str]) -> dict[str, float]:
    for task in tasks[:WARM]:
        land(task)
    memory, began = Memory(), time.monotonic()
    with ThreadPoolExecutor(WIDTH) as pool:
        list(pool.map(land, tasks[WARM:]))
    return {"seconds": time.monotonic() - began, "bytes": memory.peak() - memory.idle}


def run(quick: bool) -> list[Row]:
    """Contestants take turns; each starts with an empty bucket and a gateway that has made nothing."""
    count, repeats = (20, 1) if quick else (COUNT, 2)
    contestants: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
        "ours": (ours, {}),
        "requests + put_object": (with_requests, {}),
        "ObjectStoragePath.copy": (with_storage_path, {"PYTHONPATH": os.pathsep.join([str(OVERLAY)])}),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, (function, env) in contestants.items():
            found[name].append(_once(function, env, count))
    rate = {
        name: SIZE / 1e6 * count / statistics.median(run["seconds"] for run in runs) for name, runs in found.items()
    }
    peak = {name: statistics.median(run["bytes"] for run in runs) / 1e6 for name, runs in found.items()}
    figure = f"{count} images of {SIZE / 1e6:.0f} MB into S3, {WIDTH} wide"
    first, *peers = contestants
    return [
        *(Row("landing", figure, "MB/s", rate[first], peer, rate[peer], THROUGHPUT, at_least=True) for peer in peers),
        *(
            Row("landing", "peak memory above idle", "MB", peak[first], peer, peak[peer], MEMORY if n == 0 else None)
            for n, peer in enumerate(peers)
        ),
    ]


def _once(function: Callable[..., Any], env: dict[str, str], count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root, bucket() as (uri, keys), gateway(image_bytes=SIZE) as client:
        given = {**keys, **environment(client, Path(root).as_uri()), **env}
        return dict(fresh(function, env=given, url=client.apimaster_url, directory=f"{uri}/images", count=count))
