"""Many images at once, written as the package itself writes them: by its ledger, its files and its thumbnails."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.core.ledger.layout import Item, record_key, thumbnail_key
from airflow_provider_geminiimg.core.ledger.manifest import StoredImage, build
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger, new_claim, process_identity
from airflow_provider_geminiimg.core.purchase.thumbnails import render
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.sandbox.images import Sketch, draw, shape

MODEL = "gemini-3.1-flash-image-preview"
RATIOS = ("16:9", "1:1", "3:2", "9:16")


def seed(root: str, dag_id: str, run_id: str, task_id: str, count: int) -> None:
    """Put `count` landed images of a mapped task under a root.

    :param root: its URI.
    """
    ledger = Ledger(open_store(root, AIRFLOW_OPENERS))
    files = Files(AIRFLOW_OPENERS)
    drawn = [draw(Sketch(i + 1, MODEL, f"tile {i}", shape("512", RATIOS[i % 4], "webp"))) for i in range(8)]
    thumbnails = [render(data) for data in drawn]
    records = []
    for i in range(count):
        data = drawn[i % len(drawn)]
        record = _record(Item("default", dag_id, run_id, task_id, i), f"{root}/pictures/{run_id}", f"tile-{i}", i)
        info = inspect_image(data)
        image = StoredImage(
            f"{record.destination.directory}/tile-{i}.webp", info.media_type, info.width, info.height, len(data),
            hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        assert files.write(image.uri, data, media_type=image.media_type, sha256=image.sha256)
        manifest = build(record, [image], mismatch=None, cost=record.cost)
        landed = Record(**{**vars(record), "state": "landed", "landed_at": time.time(), "manifest": manifest})
        assert ledger.create(landed) is not None
        assert ledger.store.create(thumbnail_key(record.key, 0), thumbnails[i % len(drawn)]) is not None
        records.append(landed)
    ledger.summaries.count(records)


def seed_loop(root: str, dag_id: str, run_id: str, task_id: str, changes: Sequence[Mapping[str, Any]]) -> None:
    """Put one landed record for each iteration of a task in a loop under a root; each edits the image before.

    :param root: its URI.
    :param changes: what the record of each iteration has instead.
    """
    ledger = Ledger(open_store(root, AIRFLOW_OPENERS))
    inputs: list[dict[str, str]] = []
    for iteration, given in enumerate(changes):
        record = _record(
            Item("default", dag_id, run_id, task_id, -1, iteration=iteration), f"{root}/loop", f"step-{iteration}", 1
        )
        record = replace(
            record, operation="edit" if inputs else "generate", inputs=inputs, landed_at=time.time(), **given
        )
        uri, digest = f"{root}/loop/step-{iteration}.webp", hashlib.sha256(str(iteration).encode()).hexdigest()
        manifest = build(
            record, [StoredImage(uri, "image/webp", 512, 512, 1000, digest)], mismatch=None, cost=record.cost
        )
        landed = replace(record, state="landed", manifest=manifest)
        assert ledger.create(landed) is not None
        ledger.summaries.count([landed])
        inputs = [{"uri": uri, "sha256": digest}]


def _record(item: Item, directory: str, stem: str, i: int) -> Record:
    return Record(
        key=record_key(item, 1),
        n=1,
        state="submitted",
        claim=new_claim(),
        generation=0,
        **process_identity(),
        answer_within=240.0,
        conn_id="onemin",
        gateway="1min",
        model=MODEL,
        wire_model=MODEL,
        operation="generate",
        fingerprint=hashlib.sha256(stem.encode()).hexdigest(),
        request_fields={"resolution": "512", "aspect_ratio": RATIOS[i % 4]},
        prompt=f"Tile {i} of a very large campaign",
        prompt_sha256="0" * 64,
        inputs=[],
        destination=Destination(directory, stem),
        cost={"amount": 0.02, "currency": "USD", "basis": "gateway"},
        expected_seconds=10.0,
        job_id=f"job-{i}",
        submitted_at=time.time() - 9,
    )
