"""A batch whose images are all stored already: a retry, or a second DAG run. It reads and checks, and pays nothing.

One image is made; its record and file are copied for the other rows, because making ten thousand images would take
longer than the measurement.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bucket import bucket
from benchmarks.gateway import gateway
from benchmarks.making import CONNECTION, SHARED, environment, make, prompts
from benchmarks.measure import fresh
from benchmarks.results import Row

WIDTH = 50
# Where the root is -> items, and the milliseconds that each may take
PLACES = {"disk": (10_000, 2.0), "S3": (1_000, 10.0)}
QUICK = 100


@contextmanager
def _root(place: str) -> Iterator[tuple[str, dict[str, str]]]:
    if place == "disk":
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder).as_uri(), {}
    else:
        with bucket() as (uri, env):
            yield f"{uri}/root", env


def copied(*, root: str, count: int) -> None:
    """Make the first image of a batch, and write down that the others have landed likewise."""
    from airflow_provider_geminiimg.core.storage import Files, open_store

    make(count=1, width=1, poll_interval=0.01, warm=0)
    from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

    store = open_store(root, AIRFLOW_OPENERS)
    for plan in list(store.keys("batches/")):  # a later attempt would keep to it
        store.delete(plan)
    (key,) = store.keys("ledger/")
    blob = store.read(key)
    assert blob is not None
    record = blob.data.decode()
    uri = json.loads(record)["manifest"]["images"][0]["uri"]
    image = Files(AIRFLOW_OPENERS).read(uri, max_bytes=1_000_000)
    first, *others = _names(count)

    def copy(names: tuple[str, ...]) -> None:
        write(f"{root}/{_renamed(key, first, names)}", _renamed(record, first, names).encode())
        write(_renamed(uri, first, names), image)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, others))


def _names(count: int) -> list[tuple[str, ...]]:
    """What an image is known by in its record, from the longest to the shortest."""
    from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
    from airflow_provider_geminiimg.core.batch.plan import fingerprints_of
    from airflow_provider_geminiimg.core.request import prompt_sha256
    from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook

    connection = GeminiImageHook(CONNECTION).connection()
    rows = [{"prompt": prompt} for prompt in prompts(count)]
    found = image_specs(rows, RowDefaults(SHARED, connection.gateway, connection.model))
    prints = [fingerprints_of(spec.request, (), connection)[0] for spec in found]
    return [
        (print_, prompt_sha256(spec.request.prompt), print_[:16], print_[:12])
        for print_, spec in zip(prints, found, strict=True)
    ]


def _renamed(text: str, before: tuple[str, ...], after: tuple[str, ...]) -> str:
    for old, new in zip(before, after, strict=True):
        text = text.replace(old, new)
    return text


def write(uri: str, data: bytes) -> None:
    """Write an object as it would lie there, without the care that a paid image takes."""

    if uri.startswith("s3://"):
        name, _, key = uri.removeprefix("s3://").partition("/")
        from airflow_provider_geminiimg.hooks.object_stores import default_s3_client

        default_s3_client(None).put_object(Bucket=name, Key=key, Body=data)
    else:
        path = Path(uri.removeprefix("file://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def run(quick: bool) -> list[Row]:
    rows = []
    for place, (items, target) in PLACES.items():
        count, repeats = (QUICK, 1) if quick else (items, 2)
        with _root(place) as (root, env), gateway() as client:
            env = {**env, **environment(client, root)}
            fresh(copied, env=env, root=root, count=count)
            paid = len(client.calls())
            arguments = {"count": count, "width": WIDTH, "poll_interval": 1.0, "warm": 0}
            runs = [fresh(make, env=env, **arguments) for _ in range(repeats)]
            assert all(found["counts"]["reused"] == count for found in runs), runs
            assert len(client.calls()) == paid, "the gateway was asked"
        took = statistics.median(found["seconds"] for found in runs) / count * 1000
        rows.append(Row("reuse", f"an item that has landed, root on {place}, of {count:,}", "ms", took, target=target))
    return rows
