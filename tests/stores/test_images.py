"""Images, batches and the gallery with root and outputs in each kind of bucket: paid for once, and all there."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.core.storage.bucket_store import BucketStore
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from tests.harness import REPOSITORY
from tests.harness.api_server import USERS, api_server
from tests.harness.batch_worker import Work, work
from tests.harness.inprocess import AirflowHarness
from tests.harness.stores import BUCKETS
from tests.harness.totals import totals_agree

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from airflow_provider_geminiimg.sandbox import Sandbox

MAX_BYTES = 1 << 24
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture(params=BUCKETS)
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of each kind, which holds the root; as a URI."""
    uri = str(request.getfixturevalue(request.param))
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", f"{uri}/root")
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__GALLERY_ROOTS", uri)
    return uri


@pytest.fixture
def default_connection(sandbox: Sandbox, connect: Callable[..., str]) -> str:
    return connect("geminiimg_default", **sandbox.connection("apimaster", requests_per_minute=100_000))


@pytest.fixture(scope="module")
def server(_airflow_home: Path) -> Iterator[TestClient]:
    with api_server() as client:
        yield client


def stored(manifest: dict[str, Any]) -> list[str]:
    """The URIs of a manifest's images, after their bytes were compared with it."""
    files = Files(AIRFLOW_OPENERS)
    for image in manifest["images"]:
        data = files.read(image["uri"], max_bytes=MAX_BYTES)
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        sidecar = json.loads(files.read(f"{image['uri'].rpartition('.')[0]}.json", max_bytes=MAX_BYTES))
        assert image["uri"] in json.dumps(sidecar)
    return [image["uri"] for image in manifest["images"]]


def paid(sandbox: Sandbox) -> int:
    return sum(job["charged"] for job in sandbox.ledger())


def test_the_campaign_pays_for_four_images_that_are_there_also_after_a_clear(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, bucket: str
) -> None:
    from airflow.dag_processing.dagbag import BundleDagBag

    examples = REPOSITORY / "example_dags"
    bag = BundleDagBag(dag_folder=str(examples / "campaign.py"), bundle_path=examples, bundle_name="dags-folder")
    (dag,) = bag.dags.values()
    run = airflow.run_dag(dag, conf={"folder": f"{bucket}/out", "poll_interval": 0.05})
    assert run.state == "success", run.log
    manifests = [*(run.task("variants", number).value for number in range(3)), run.task("final").value]
    uris = [uri for manifest in manifests for uri in stored(manifest)]
    assert len(set(uris)) == paid(sandbox) == 4
    assert all(uri.startswith(f"{bucket}/out/") for uri in uris)
    run.clear()
    assert run.state == "success", run.log
    assert paid(sandbox) == 4
    totals_agree(f"{bucket}/root")


def test_a_batch_and_the_gallery(
    airflow: AirflowHarness, sandbox: Sandbox, default_connection: str, bucket: str, server: TestClient
) -> None:
    with DAG("pictures", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="batch",
            requests=[{"prompt": f"fox {number}"} for number in range(20)],
            output_path=f"{bucket}/out",
            poll_interval=0.05,
        )
    run = airflow.run_dag(dag)
    task = run.task("batch")
    assert task.state == "success", task.log
    manifest = Files(AIRFLOW_OPENERS).read(task.value["manifest"], max_bytes=MAX_BYTES)
    uris = [uri for line in manifest.splitlines() for uri in stored(json.loads(line))]
    assert len(set(uris)) == paid(sandbox) == 20

    def get(path: str) -> Any:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="admin", role=USERS["admin"]))
        return server.get(path, headers={"Authorization": f"Bearer {token}"})

    place = f"api/dags/pictures/runs/{quote(run.run_id, safe='')}"
    summary = get(f"{place}/summary")
    assert summary.status_code == 200, summary.text
    listing = get(f"{place}/images")
    assert listing.status_code == 200, listing.text
    totals_agree(f"{bucket}/root")


def test_a_worker_killed_between_image_and_record_costs_nothing_more(sandbox: Sandbox, bucket: str) -> None:
    fields = sandbox.connection("apimaster", requests_per_minute=100_000)
    connection = {"conn_id": "apimaster", **{name: fields[name] for name in ("host", "password", "extra")}}
    job = Work(connection, f"{bucket}/root", "batch", tuple(f"fox {number}" for number in range(6)))
    first = PROCESSES.Process(target=_dies_before_a_landed_record, args=(job,))
    first.start()
    first.join(120)
    assert first.exitcode == -signal.SIGKILL
    ledger = Ledger(open_store(job.root, AIRFLOW_OPENERS))
    assert "landed" not in _states(ledger)
    second = PROCESSES.Process(target=work, args=(job,))
    second.start()
    second.join(120)
    assert second.exitcode == 0
    assert _states(ledger) == ["landed"] * 6
    assert paid(sandbox) == 6
    totals_agree(job.root)


def _states(ledger: Ledger) -> list[str]:
    found = (ledger.read(key) for key in ledger.store.keys("ledger/"))
    return [stored.record.state for stored in found if stored is not None]


def _dies_before_a_landed_record(job: Work) -> None:
    write = BucketStore.replace

    def replace(self: BucketStore, key: str, data: bytes, version: str) -> str | None:
        if key.startswith("ledger/") and b'"state":"landed"' in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, key, data, version)

    BucketStore.replace = replace  # type: ignore[method-assign]
    work(job)
