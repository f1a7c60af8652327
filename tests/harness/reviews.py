"""Manifests, with the images and the records that they are of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import Item, record_key
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.gallery.addresses import address_of
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.records import landed

FOLDER = Path(os.environ["AIRFLOW_HOME"]) / "pictures"


def key_of(dag_id: str = "look", run_id: str = "run", task_id: str = "drafts", map_index: int = -1, n: int = 1) -> str:
    """Where a record lies."""
    return record_key(Item("default", dag_id, run_id, task_id, map_index), n)


def manifest(name: str = "a.png", record: Any = None, image: Any = None, **values: Any) -> dict[str, Any]:
    """What a task returned of one image, with `values` instead of the usual ones."""
    own = {"uri": f"file://{FOLDER}/{name}", "media_type": "image/png", "width": 1024, "height": 768}
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    usual = {
        "images": [{**own, "sha256": digest, **(image or {})}],
        "gateway": "1min",
        "model": "gemini-3.1-flash-image-preview",
        "record": key_of() if record is None else record,
        "reused": False,
        "cost": {"amount": 0.04, "currency": "USD", "basis": "gateway"},
        "mismatch": None,
    }
    return {**usual, **values}


def named(*names: str) -> list[dict[str, Any]]:
    """Manifests of images with these names, each of a record of its own."""
    return [manifest(name, key_of(map_index=index)) for index, name in enumerate(names)]


def land(root: str, manifests: Sequence[Mapping[str, Any]]) -> None:
    """Write the images and the records of manifests."""
    ledger = Ledger(open_store(root, AIRFLOW_OPENERS))
    for each in manifests:
        for image in each["images"]:
            write(image["uri"])
        at = address_of(each["record"])
        item = Item("default", at.dag_id, at.run_id, at.task_id, at.index.map_index, at.item, at.index.iteration)
        assert ledger.create(landed(item, at.n, manifest=dict(each), destination=Destination(f"file://{FOLDER}", "a")))


def write(uri: str, data: bytes | None = None) -> None:
    """Write an image over what is there; by default the bytes that its manifest names."""
    path = Path(uri.removeprefix("file://"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.relative_to(FOLDER).as_posix().encode("utf-8", "surrogatepass") if data is None else data)
