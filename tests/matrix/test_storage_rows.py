"""The failure matrix: bucket and disk, records that can't be read, and attempts that get into each other's way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.core.catalog.lookup import ModelSpec as CatalogRow
from airflow_provider_geminiimg.core.gateways import apimaster
from airflow_provider_geminiimg.core.purchase import lifecycle, submission
from airflow_provider_geminiimg.exceptions import BadRequestError, LedgerError, OutcomeUnknownError, StorageError
from tests.harness.matrix import Row
from tests.harness.moto import age_object
from tests.harness.rows import (
    BUY_AGAIN,
    CROSSED,
    IN_BATCHES,
    LANDED,
    STRAIGHT,
    UNKNOWN_UNPAID,
    Case,
    Play,
    each,
    play,
    race,
)
from tests.harness.s3_proxy import S3Proxy
from tests.harness.storage_faults import DiskFaults, Kind, Writes

MOMENTS: dict[str, Writes] = {
    "while the record is claimed": lambda path, body: b'"state":"intent"' in body,
    "while the answer is recorded": lambda path, body: b'"state":"submitted"' in body,
    "while the image is written": lambda path, body: "/images/" in path and body[1:4] == b"PNG",
    "while the sidecar is written": lambda path, body: "/images/" in path and body[:1] == b"{",
    "while the landing is recorded": lambda path, body: b'"state":"landed"' in body,
}
CLAIM, ANSWER, IMAGE, SIDECAR, LANDING = MOMENTS


def from_the_answer_on(path: str, body: bytes) -> bool:
    """Writes of the ledger, once the gateway has the job."""
    return MOMENTS[ANSWER](path, body) or MOMENTS[LANDING](path, body)


def begin(kind: Kind, writes: Writes) -> Callable[[Play], None]:
    """Trouble with the bucket, from the first of these writes on."""
    return lambda stage: stage.trouble.begin(kind, writes)


def fill(writes: Writes) -> Callable[[Play], None]:
    """A disk that has no space for these writes."""
    return lambda stage: stage.trouble.begin(writes)


def refuse_images(stage: Play) -> None:
    """Refuse images, but not the files that a check writes."""
    stage.trouble.begin("denied", lambda path, body: "/images/" in path and body[1:4] == b"PNG")


def refuse_all_elsewhere(stage: Play) -> None:
    """Refuse every file in the folder that the image shall land in."""
    stage.arguments.update(output_path=f"{stage.root}-elsewhere")
    stage.trouble.begin("denied", lambda path, body: "-elsewhere/" in path)


def clear_to_another_path(stage: Play) -> None:
    stage.clear(output_path=f"{stage.root}-elsewhere")


def lies_elsewhere(stage: Play) -> None:
    assert all(uri.startswith(f"{stage.root}-elsewhere/") for uri in stage.returned())


def mended(stage: Play) -> None:
    stage.trouble.end()


# What becomes of an image whose write fails at each moment, until a person mends the storage.
BEFORE = {
    "then": "No money was spent, nothing was sent. Mend the storage, then clear: it is bought.",
    "attempts": 2, "error": StorageError, "mend": mended, "buys": 1,
}  # fmt: skip
ALL_THE_SAME = {"then": "The image lands all the same, and its record with it."}
AFTER = {
    "then": "Each retry fails, and says that the image was paid for. Mend the storage, then clear: it lands, at no "
    "cost.",
    "attempts": 2, "error": StorageError, "mend": mended,
}  # fmt: skip
UNRECORDED = {
    "then": "The image lies in storage, the task succeeds, and the log names the record. A Clear records it, at no "
    "cost.",
    "mend": mended,
}  # fmt: skip
FAILING: dict[str, dict[str, Any]] = {
    CLAIM: BEFORE, ANSWER: ALL_THE_SAME, IMAGE: AFTER, SIDECAR: AFTER, LANDING: UNRECORDED,
}  # fmt: skip
FROM_THE_ANSWER_ON = "from the gateway's answer on"
SOON = (
    (submission, "RECORDING_SECONDS", 0.2),
    (lifecycle, "ANSWER_MARGIN", 0.0),
    (CatalogRow, "read_timeout", lambda row, resolution: 5.0),
    (apimaster, "ASYNC_READ_TIMEOUT", 5.0),
)

BUCKET = [
    *(Case("The bucket refuses writes (403)", moment, **more, prepare=begin("denied", MOMENTS[moment]), patches=SOON,
           where=STRAIGHT) for moment, more in FAILING.items()),
    Case("The bucket refuses writes to the ledger (403)", FROM_THE_ANSWER_ON, **UNRECORDED,
         prepare=begin("denied", from_the_answer_on), patches=SOON, where=CROSSED),
    *(Case("The bucket is gone (NoSuchBucket)", moment, **{**FAILING[moment], **more},
           prepare=begin("missing", MOMENTS[moment]), patches=SOON, where=CROSSED)
      for moment, more in {CLAIM: {}, ANSWER: AFTER, IMAGE: {}, SIDECAR: {}, LANDING: {}}.items()),
    Case("The bucket refuses checksum headers (400)", "from the check before payment on",
         "Images and sidecars are written without, and compared after the write; the log says so.",
         prepare=begin("plain", lambda path, body: "/images/" in path), images=2, where=(*CROSSED, *IN_BATCHES)),
    Case("The bucket refuses every file at an `output_path`", "before the submit",
         "No money was spent, nothing was sent. Grant access, then clear: it is bought.",
         prepare=refuse_all_elsewhere, error=BadRequestError, mend=mended, buys=1, images=2,
         where=(*STRAIGHT, *IN_BATCHES)),
    Case("The bucket refuses every image at an `output_path`", "after the check before payment",
         "Each retry says that it was paid for. A Clear with another `output_path` lands it there, at no cost.",
         prepare=refuse_images, attempts=2, error=StorageError, mend=clear_to_another_path, holds=lies_elsewhere,
         where=STRAIGHT),
    Case("The bucket refuses every image at an `output_path`", "after the check before payment",
         "No retry can help, so that there is none. A Clear with another `output_path` lands it there, at no cost.",
         prepare=refuse_images, error=StorageError, mend=clear_to_another_path, holds=lies_elsewhere,
         where=IN_BATCHES),
    *(Case("The bucket's answer comes too late", moment, "The write is asked for again, and found done.",
           prepare=begin("slow", MOMENTS[moment]), where=STRAIGHT) for moment in MOMENTS),
]  # fmt: skip
DISK = [
    *(Case("The disk is full", moment, **more, prepare=fill(MOMENTS[moment]), patches=SOON, where=CROSSED)
      for moment, more in FAILING.items()),
    Case("The disk is full for the ledger", FROM_THE_ANSWER_ON, **UNRECORDED,
         prepare=fill(from_the_answer_on), patches=SOON, images=2, where=(*STRAIGHT, *IN_BATCHES)),
]  # fmt: skip


def later(stage: Play) -> None:
    """Bring the bucket back, when the answer's deadline has passed."""
    stage.trouble.end()
    bucket, _, root = stage.root.removeprefix("s3://").partition("/")
    age_object(bucket, f"{root}/{stage.record.key}", 600.0)


def download_fails(stage: Play) -> None:
    """Let the first attempt end with a job on record."""
    stage.fault("download", status=500, times=3)


def spoil(change: Callable[[bytes], bytes]) -> Callable[[Play], None]:
    """Write something else into the record."""

    def spoiled(stage: Play) -> None:
        path = stage.folder / stage.record.key
        stage.trouble = (path, path.read_bytes())
        path.write_bytes(change(path.read_bytes()))

    return spoiled


def restored(stage: Play) -> None:
    path, content = stage.trouble
    path.write_bytes(content)


def hide(stage: Play) -> None:
    """Let the next attempt run on a machine with another disk."""
    stage.folder.rename(stage.folder.with_name("of-another-worker"))


def shared(stage: Play) -> None:
    shutil.rmtree(stage.folder, ignore_errors=True)
    stage.folder.with_name("of-another-worker").rename(stage.folder)


def delete_the_image(stage: Play) -> None:
    Path(stage.task.value["images"][0]["uri"].removeprefix("file://")).unlink()


UNREADABLE = {
    "prepare": download_fails, "attempts": 2, "error": LedgerError, "still": ("retry", "clear"), "mend": restored,
    "then": "Nothing is sent, the error names the record. Restore it, then clear: the job is collected at no cost.",
}  # fmt: skip
BETWEEN = "between two attempts"
SILENT = [
    Case("The bucket falls silent", "once the record is claimed",
         "Nothing was sent, which no later attempt can know. From the answer's deadline on the outcome counts as "
         'unknown; a Clear with `on_unknown="resubmit"` buys.',
         UNKNOWN_UNPAID, prepare=begin("silent", MOMENTS[CLAIM]), between=later, attempts=2, error=OutcomeUnknownError,
         still=("retry", "clear"), again=BUY_AGAIN, where=CROSSED),
]  # fmt: skip
RECORDS = [
    Case("The record is cut off", BETWEEN, between=spoil(lambda data: data[: len(data) // 2]), **UNREADABLE,
         says="is not JSON", where=STRAIGHT),
    Case("The record is empty", BETWEEN, between=spoil(lambda data: b""), **UNREADABLE,
         says="is not JSON", where=CROSSED),
    Case("The record is not JSON", BETWEEN, between=spoil(lambda data: b"PNG" + data), **UNREADABLE,
         says="is not JSON", where=STRAIGHT),
    Case("The record is of a newer version of this package", BETWEEN,
         between=spoil(lambda data: data.replace(b'"schema":1', b'"schema":2')), **UNREADABLE,
         says="has schema 2", where=CROSSED),
    Case("The root is not shared between workers", "on a retry elsewhere",
         "Nothing is sent, the error says so. Share the root, then clear: the job is collected at no cost.",
         prepare=download_fails, between=hide, attempts=2, error=LedgerError, still=("retry", "clear"), mend=shared,
         where=STRAIGHT),
    Case("Somebody deletes the image", "after it landed",
         "A Clear asks the gateway for a fresh link, and lands it again at no cost.", mend=delete_the_image,
         where=CROSSED),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each([*BUCKET, *SILENT]))
def test_paid_work_is_safe_from_bucket(case: Case, impatient_stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, impatient_stage, "storage", monkeypatch)


@pytest.mark.parametrize(("case", "gateway", "mode"), each(DISK))
def test_paid_work_is_safe_from_disk(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.trouble = disk = DiskFaults()
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    play(case, stage, "storage", monkeypatch)


@pytest.mark.parametrize(("case", "gateway", "mode"), each(RECORDS))
def test_paid_work_is_safe_where(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "storage", monkeypatch)


@pytest.mark.parametrize(("gateway", "mode"), STRAIGHT)
def test_two_attempts_that_claim_one_record_at_once_pay_once(bucket_stage: Play, s3_proxy: S3Proxy) -> None:
    stage = bucket_stage
    claims = [s3_proxy.hold("PUT", "/ledger/", '"state":"intent"') for _ in range(2)]
    assert race(stage, stage.rival(), claims) is None
    case = Case("Two attempts claim one record at once", "before the submit",
                "One of them submits. Both end with its image.")  # fmt: skip
    assert stage.submits() == 1
    assert (stage.task.state, stage.balance()) == ("success", LANDED)
    stage.save("storage", case, stage.balance())


@pytest.mark.parametrize(("gateway", "mode"), CROSSED)
def test_two_tasks_that_claim_one_file_name_at_once_pay_once(bucket_stage: Play, s3_proxy: S3Proxy) -> None:
    stage = bucket_stage
    stage.arguments.update(output_path=f"{stage.root}-pictures", file_name="fox")
    claims = [s3_proxy.hold("PUT", "/names/") for _ in range(2)]
    lost = race(stage, stage.rival(task_id="other", prompt="a blue fox"), claims)
    errors = [error for error in (lost, stage.task.error) if error is not None]
    assert [type(error.__cause__) for error in errors] == [BadRequestError]
    assert "is taken" in str(errors[0])
    assert stage.submits() == 1
    balance = stage.balance()
    assert balance == LANDED
    event, moment = "Two tasks claim one file name at once", "before the submit"
    then = "One of them submits. The other fails before anything is sent: give it another name."
    Row("storage", event, moment, stage.gateway, stage.mode, balance, "one success, one failed", then).save()
