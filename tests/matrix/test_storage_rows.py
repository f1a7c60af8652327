"""The failure matrix: bucket and disk, records that can't be read, and attempts that get into each other's way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from harness.moto import start_moto
from harness.rows import CROSSED, STRAIGHT, Case, Play, each, play
from harness.trouble import Bucket, Disk, Kind, Writes

from airflow_provider_geminiimg import lifecycle
from airflow_provider_geminiimg.exceptions import StorageError
from airflow_provider_geminiimg.storage import s3

MOMENTS: dict[str, Writes] = {
    "while the record is claimed": lambda path, body: b'"state":"intent"' in body,
    "while the answer is recorded": lambda path, body: b'"state":"submitted"' in body,
    "while the picture is written": lambda path, body: "/images/" in path and body[1:4] == b"PNG",
    "while the sidecar is written": lambda path, body: "/images/" in path and body[:1] == b"{",
    "while the landing is recorded": lambda path, body: b'"state":"landed"' in body,
}
CLAIM, ANSWER, PICTURE, SIDECAR, LANDING = MOMENTS


def from_the_answer_on(path: str, body: bytes) -> bool:
    """Writes of the ledger, once the gateway has the job."""
    return MOMENTS[ANSWER](path, body) or MOMENTS[LANDING](path, body)


def begin(kind: Kind, writes: Writes) -> Callable[[Play], None]:
    """Trouble with the bucket, from the first of these writes on."""
    return lambda stage: stage.trouble.begin(kind, writes)


def fill(writes: Writes) -> Callable[[Play], None]:
    """A disk that has no space for these writes."""
    return lambda stage: stage.trouble.begin(writes)


def mended(stage: Play) -> None:
    stage.trouble.end()


# What becomes of a picture whose write fails at each moment, until a person mends the storage.
BEFORE = {
    "then": "No money was spent, nothing was sent. Mend the storage, then clear: it is bought.",
    "error": StorageError, "mend": mended, "buys": 1,
}  # fmt: skip
ALL_THE_SAME = {"then": "The picture lands all the same, and its record with it."}
AFTER = {
    "then": "Each retry fails, and says that the picture was paid for. Mend the storage, then clear: it lands, at no "
    "cost.",
    "error": StorageError, "mend": mended,
}  # fmt: skip
UNRECORDED = {
    "then": "The picture lies in storage, the task succeeds, and the log names the record. A Clear records it, at no "
    "cost.",
    "mend": mended,
}  # fmt: skip
FAILING: dict[str, dict[str, Any]] = {
    CLAIM: BEFORE, ANSWER: ALL_THE_SAME, PICTURE: AFTER, SIDECAR: AFTER, LANDING: UNRECORDED,
}  # fmt: skip
FROM_THE_ANSWER_ON = "from the gateway's answer on"
SOON = ((lifecycle, "RECORDING_SECONDS", 0.2),)

BUCKET = [
    *(Case("The bucket refuses writes (403)", moment, **more, prepare=begin("denied", MOMENTS[moment]), patches=SOON,
           where=STRAIGHT) for moment, more in FAILING.items()),
    Case("The bucket refuses writes to the ledger (403)", FROM_THE_ANSWER_ON, **UNRECORDED,
         prepare=begin("denied", from_the_answer_on), patches=SOON, where=CROSSED),
    *(Case("The bucket is gone (NoSuchBucket)", moment, **{**FAILING[moment], **more},
           prepare=begin("missing", MOMENTS[moment]), patches=SOON, where=CROSSED)
      for moment, more in {CLAIM: {}, ANSWER: AFTER, PICTURE: {}, SIDECAR: {}, LANDING: {}}.items()),
    *(Case("The bucket's answer comes too late", moment, "The write is asked for again, and found done.",
           prepare=begin("slow", MOMENTS[moment]), where=STRAIGHT) for moment in MOMENTS),
]  # fmt: skip
DISK = [
    *(Case("The disk is full", moment, **more, prepare=fill(MOMENTS[moment]), patches=SOON, where=CROSSED)
      for moment, more in FAILING.items()),
    Case("The disk is full for the ledger", FROM_THE_ANSWER_ON, **UNRECORDED,
         prepare=fill(from_the_answer_on), patches=SOON, where=STRAIGHT),
]  # fmt: skip


@pytest.fixture(scope="module")
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture(scope="module")
def _moto(bucket: Bucket) -> Iterator[str]:
    with start_moto(bucket) as url:
        yield url


@pytest.fixture(scope="module")
def impatient(_moto: str) -> Any:
    """An S3 client that waits half a second for an answer, not a minute."""
    return boto3.session.Session("test", "test", region_name="us-east-1").client(
        "s3", endpoint_url=_moto, config=Config(read_timeout=0.5, retries={"mode": "standard"})
    )


@pytest.fixture
def bucket_stage(
    stage: Play, bucket: Bucket, s3_root: str, impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Play]:
    """As `stage`, with the root in a bucket that may be in trouble."""
    stage.root, stage.trouble = s3_root, bucket
    monkeypatch.setattr(s3, "_CLIENTS", {(os.getpid(), None): impatient})
    yield stage
    bucket.end()


@pytest.mark.parametrize(("case", "gateway", "mode"), each(BUCKET))
def test_paid_work_is_safe_from_bucket(case: Case, bucket_stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, bucket_stage, "storage", monkeypatch)


@pytest.mark.parametrize(("case", "gateway", "mode"), each(DISK))
def test_paid_work_is_safe_from_disk(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.trouble = disk = Disk()
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    play(case, stage, "storage", monkeypatch)
