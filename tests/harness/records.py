"""Ledger records for tests, made by hand: what an attempt that died would have left behind."""

from __future__ import annotations

import time
from typing import Any

from airflow_provider_geminiimg.ledger import Destination, Item, Record, new_claim, process_identity, record_key

ITEM = Item("default", "campaign", "manual__2026-01-01T00:00:00+00:00", "hero", -1)
ELSEWHERE = Destination("file:///elsewhere", "hero")


def make_record(item: Item = ITEM, n: int = 1, **values: Any) -> Record:
    """A plain ``intent`` record of `item`, with `values` instead of the usual ones."""
    usual: dict[str, Any] = {
        "key": record_key(item, n),
        "n": n,
        "state": "intent",
        "claim": new_claim(),
        "generation": 0,
        **process_identity(),
        "answer_within": 240.0,
        "conn_id": "onemin",
        "gateway": "1min",
        "model": "gemini-3.1-flash-image-preview",
        "wire_model": "gemini-3.1-flash-image-preview",
        "operation": "generate",
        "fingerprint": "f" * 64,
        "request_fields": {"resolution": "1K"},
        "prompt_sha256": "0" * 64,
        "inputs": [],
        "destination": Destination("file:///pictures", "hero"),
        "cost": {"amount": None, "currency": "credits", "basis": "unknown"},
        "expected_seconds": 0.0,
    }
    return Record(**{**usual, **values})


def submitted(item: Item = ITEM, n: int = 1, **values: Any) -> Record:
    """A ``submitted`` record."""
    return make_record(item, n, **{"state": "submitted", "job_id": "job-1", "submitted_at": time.time(), **values})


def landed(item: Item = ITEM, n: int = 1, **values: Any) -> Record:
    """A ``landed`` record."""
    image = {
        "uri": "file:///pictures/hero.png", "media_type": "image/png", "width": 1, "height": 1, "size": 1,
        "sha256": "0" * 64,
    }  # fmt: skip
    return submitted(item, n, **{"state": "landed", "manifest": {"images": [image]}, **values})
