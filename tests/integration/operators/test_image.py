"""Operators in a real Airflow, against the sandbox over HTTP: one task, one image, one payment."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core.images.inspection import inspect_image
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

FILES = Files(AIRFLOW_OPENERS)
MANIFEST = {
    "images",
    "gateway",
    "model",
    "operation",
    "job_id",
    "fingerprint",
    "record",
    "reused",
    "cost",
    "requested",
    "mismatch",
    "submitted_at",
    "landed_at",
}


def bytes_of(manifest: dict[str, Any]) -> bytes:
    return FILES.read(manifest["images"][0]["uri"], max_bytes=64_000_000)


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_the_same_dag_gives_the_same_manifest_on_each_gateway_and_storage_and_pays_once_an_image(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, root: str, deferrable: bool
) -> None:
    shared = {"geminiimg_conn_id": geminiimg_conn_id, "deferrable": deferrable, "poll_interval": 0.05}
    with DAG("same", schedule=None) as dag:
        made = GeminiImageGenerateOperator(
            task_id="made", prompt="a lighthouse at dusk", resolution="512", aspect_ratio="16:9", **shared
        )
        GeminiImageEditOperator(task_id="edited", prompt="make it winter", resolution="1K", image=made.output, **shared)
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    for task_id, operation in (("made", "generate"), ("edited", "edit")):
        manifest = run.task(task_id).value
        assert set(manifest) == MANIFEST
        assert manifest["operation"] == operation
        assert manifest["mismatch"] is None
        image, data = manifest["images"][0], bytes_of(manifest)
        info = inspect_image(data)
        assert (image["width"], image["height"], image["media_type"]) == (info.width, info.height, info.media_type)
        assert image["sha256"] == hashlib.sha256(data).hexdigest()
        assert image["uri"].startswith(f"{root}/images/")
    assert len(sandbox.ledger()) == 2
