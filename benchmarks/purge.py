"""A purge of 10,000 old records on disk and in S3, compared with deleting all objects without looking at them.

One image is made; its record, and what belongs to it, is copied to ten runs. The age of the records counts from the
time of writing, so all are old enough.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bucket import bucket
from benchmarks.gateway import gateway
from benchmarks.making import environment, make
from benchmarks.measure import fresh
from benchmarks.results import Row
from benchmarks.reuse import write

ON_DISK = (1_000, 10_000)
IN_S3 = (1_000,)
QUICK = (100,)
RUNS = 10
PEER = "deleting without reading"
TARGET = 1.0  # ms of CPU for a record: 1,000 records a second


def filled(*, root: str, count: int) -> None:
    """Write `count` records that have landed, each with its name, job, thumbnail and entry of the index."""
    from airflow_provider_geminiimg.core.ledger.layout import index_key, job_key, name_key, thumbnail_key
    from airflow_provider_geminiimg.core.storage import open_store, same_place
    from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

    make(count=1, width=1, poll_interval=0.01, warm=0)
    store = open_store(root, AIRFLOW_OPENERS)
    (key,) = store.keys("ledger/")
    blob = store.read(key)
    assert blob is not None
    record: dict[str, Any] = json.loads(blob.data)
    first = json.loads(store.read(next(iter(store.keys("names/")))).data)  # type: ignore[union-attr]

    def add(number: int) -> None:
        item = f"{number:016x}"
        *above, run, task, index, _, n = key.split("/")
        new = "/".join((*above, f"{run}-{number % RUNS}", task, index, item, n))
        stem = f"{record['destination']['directory']}/{item}"
        image = {**record["manifest"]["images"][0], "uri": f"{stem}.png"}
        values = {
            "key": new,
            "claim": f"{number:032x}",
            "fingerprint": f"{item}{'0' * 48}",
            "job_id": f"job-{number}",
            "destination": {**record["destination"], "stem": item},
            "manifest": {**record["manifest"], "images": [image]},
        }
        entry = json.dumps({"record": new, "claim": values["claim"]}).encode()
        objects = {
            new: json.dumps({**record, **values}).encode(),
            name_key(same_place(stem)): json.dumps({**first, "item": new.rpartition("/")[0], "stem": stem}).encode(),
            job_key(record["gateway"], str(values["job_id"])): entry,
            index_key(new, str(values["fingerprint"])): entry,
            thumbnail_key(new, 0): b"thumbnail" * 500,
        }
        for name, data in objects.items():
            write(f"{root}/{name}", data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(1, count)))


def purged() -> dict[str, float]:
    """Purge; return the records, the seconds, the CPU seconds and the requests to S3."""
    from airflow_provider_geminiimg.core.reconcile import Scope, purge
    from airflow_provider_geminiimg.runtime.environment import Environment

    ledger, requests = Environment(None).ledger, _requests()  # type: ignore[arg-type]

    async def purging() -> int:
        return len([key async for key in purge(ledger, Scope("default"), days=0.0) if key.startswith("ledger/")])

    since, used = time.monotonic(), time.process_time()
    count = asyncio.run(purging())
    seconds, cpu = time.monotonic() - since, time.process_time() - used
    return {"records": count, "seconds": seconds, "cpu": cpu, "requests": requests["sent"]}


def deleted(*, root: str) -> dict[str, float]:
    """Delete all objects."""
    requests = _requests()
    since = time.monotonic()
    if root.startswith("s3://"):
        from airflow_provider_geminiimg.hooks.object_stores import default_s3_client

        client, name = default_s3_client(None), root.removeprefix("s3://").partition("/")[0]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            client.delete_objects(Bucket=name, Delete={"Objects": [{"Key": each["Key"]} for each in page["Contents"]]})
    else:
        shutil.rmtree(root.removeprefix("file://"))
    return {"seconds": time.monotonic() - since, "requests": requests["sent"]}


def _requests() -> dict[str, int]:
    """Count the requests that the default client sends to S3 from now on."""
    found = {"sent": 0}
    if "AWS_ENDPOINT_URL" in os.environ:
        from airflow_provider_geminiimg.hooks.object_stores import default_s3_client

        def count(**_: Any) -> None:
            found["sent"] += 1

        default_s3_client(None).meta.events.register("before-send.s3", count)
    return found


def run(quick: bool) -> list[Row]:
    rows = []
    for count in QUICK if quick else ON_DISK:
        with tempfile.TemporaryDirectory() as folder, gateway() as client:
            root, copy = Path(folder, "root"), Path(folder, "copy")
            env = environment(client, root.as_uri())
            fresh(filled, env=env, root=root.as_uri(), count=count)
            shutil.copytree(root, copy)
            theirs = fresh(deleted, root=copy.as_uri())
            ours = fresh(purged, env=env)
        assert ours["records"] == count, ours
        figure = f"{count:,} records on disk"
        rows += [
            Row("purge", f"{figure}, CPU of a record", "ms", ours["cpu"] / count * 1000, target=TARGET),
            Row("purge", f"{figure}, time", "s", ours["seconds"], PEER, theirs["seconds"]),
        ]
    for count in QUICK if quick else IN_S3:
        found: dict[str, Any] = {}
        for name in ("ours", "theirs"):
            with bucket() as (uri, more), gateway() as client:
                env = {**more, **environment(client, f"{uri}/root")}
                fresh(filled, env=env, root=f"{uri}/root", count=count)
                arguments = {} if name == "ours" else {"root": f"{uri}/root"}
                found[name] = fresh(purged if name == "ours" else deleted, env=env, **arguments)
        assert found["ours"]["records"] == count, found
        ours, theirs = (found[name]["requests"] / count for name in ("ours", "theirs"))
        rows.append(Row("purge", f"{count:,} records in S3, requests a record", "", ours, PEER, theirs))
    return rows
