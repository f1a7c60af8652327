"""What the first attempt wanted is kept. Where that fails, the error says whether it has landed by then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.purchase.saved_requests import Saved, SavedRequestStore
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import LedgerError, StorageError
from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.moto import start_moto
from tests.harness.s3_proxy import S3Proxy
from tests.harness.storage_faults import DiskFaults

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

ITEM = Item("default", "many", "run", "pictures", -1)
LANDED = "The image was paid for. Every image has landed. A retry returns them, at no cost."


class Wanted(Saved):
    prompt: str


@pytest.fixture(scope="module")
def s3_proxy() -> S3Proxy:
    return S3Proxy()


@pytest.fixture(scope="module")
def _moto(s3_proxy: S3Proxy) -> Iterator[str]:
    with start_moto(s3_proxy) as url:
        yield url


@pytest.fixture
def saved(s3_proxy: S3Proxy, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SavedRequestStore[Wanted]]:

    monkeypatch.setattr(object_stores, "_CLIENTS", {})  # another test's client leads to another server
    yield SavedRequestStore(Wanted, open_store(s3_root, AIRFLOW_OPENERS), "returned", ITEM, None)
    s3_proxy.open()


@pytest.mark.parametrize(
    ("step", "said"),
    [("write", "No money was spent. Nothing was sent. A retry continues."), ("finish", LANDED)],
)
def test_who_writes_at_the_same_moment_as_another_attempt_says_what_that_costs(
    saved: SavedRequestStore[Wanted], s3_proxy: S3Proxy, step: str, said: str
) -> None:
    saved.write(0, Wanted(prompt="a red fox"))
    read = s3_proxy.hold("GET", "/returned/", when="after")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(getattr(saved, step), 0, Wanted(prompt=""))
        read.reached()
        saved.write(0, Wanted(prompt="a grey wolf"))
        read.let_go()
        with pytest.raises(LedgerError, match=r"is writing returned/default/many/run/pictures/-1/0\.json") as caught:
            writing.result()
    assert str(caught.value).endswith(said)
    assert saved.read(0) == Wanted(prompt="a grey wolf")
    getattr(saved, step)(0, Wanted(prompt=""))
    assert saved.read(0) == Wanted(prompt="")


def test_a_batch_whose_prompts_can_not_be_taken_out_says_that_it_has_landed_and_a_retry_returns_it(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator

    disk = DiskFaults()
    disk.begin(lambda path, body: "/batches/" in path and b'"values":{}' in body)
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    with DAG("many", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="pictures",
            requests=["a red fox"],
            resolution="512",
            poll_interval=0.02,
            geminiimg_conn_id=apimaster,
        )
    run = airflow.run_dag(dag)
    error = run.task("pictures").error
    assert isinstance(error, StorageError)
    assert str(error).endswith(LANDED)
    disk.end()
    run.retry("pictures")
    assert run.task("pictures").value["counts"]["reused"] == 1
    assert len(sandbox.ledger()) == 1
