"""Requests to the bucket for each image of a batch: they are paid for, and `docs/scale.md` lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from tests.harness.moto import WsgiApp, start_moto

if TYPE_CHECKING:
    from tests.harness.inprocess import AirflowHarness

PER_IMAGE = {
    ("PUT", "ledger"): 3,
    ("PUT", "out"): 2,
    ("PUT", "names"): 1,
    ("PUT", "jobs"): 1,
    ("PUT", "index"): 1,
    ("LIST", "out"): 1,
}
"""By kind, and by the folder below the root; ``out`` is the folder of the images."""

FEW, MANY = 4, 24
assert sum(PER_IMAGE.values()) <= 9


class Requests:
    """Counts the requests to the server; give it to `start_moto`."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            query = parse_qs(environ.get("QUERY_STRING", ""))
            kind = "LIST" if "list-type" in query else environ["REQUEST_METHOD"]
            path = query.get("prefix", [unquote(environ["PATH_INFO"]).partition("/")[2].partition("/")[2]])[0]
            self.counts[kind, path.removeprefix("root/").partition("/")[0]] += 1
            return app(environ, start_response)

        return counted


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests()


@pytest.fixture(scope="module")
def _moto(requests: Requests) -> Iterator[str]:
    with start_moto(requests) as url:
        yield url


@pytest.mark.usefixtures("s3_root")
@pytest.mark.parametrize("capped", [False, True], ids=["", "with a cap"])
def test_an_image_of_a_batch_takes_nine_requests(
    airflow: AirflowHarness,
    s3: str,
    requests: Requests,
    geminiimg_conn_id: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    capped: bool,
) -> None:
    monkeypatch.setattr(object_stores, "_CLIENTS", {})  # another test's client leads to another server

    def made(count: int) -> Counter[tuple[str, str]]:
        with DAG(f"batch_of_{count}", schedule=None) as dag:
            GeminiImageBatchOperator(
                task_id="images",
                requests=[f"number {number} of {count}" for number in range(count)],
                geminiimg_conn_id=geminiimg_conn_id,
                output_path=f"{s3}/out/{count}",
                poll_interval=0.05,
                resolution="512",
                max_cost=1_000_000 if capped else None,
            )
        before = requests.counts.copy()
        run = airflow.run_dag(dag)
        assert run.state == "success", run.log
        return requests.counts - before

    few, many = made(FEW), made(MANY)
    more = {kind: many[kind] - few[kind] for kind in many.keys() | few.keys()}
    per_image = {kind: more.pop(kind) / (MANY - FEW) for kind in PER_IMAGE}
    assert per_image == PER_IMAGE
    assert more.pop(("PUT", "thumbs")) == MANY - FEW  # only if Pillow is installed
    assert max(more.values()) <= 3, more  # the entry and the summary of up to 64 images
