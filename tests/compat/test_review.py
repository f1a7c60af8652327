"""A person's answer, on every supported Airflow: 3.3 waits for it without a trigger, those before in a trigger."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from airflow.utils.state import TaskInstanceState

from airflow_provider_geminiimg import GeminiImageReviewOperator
from airflow_provider_geminiimg.core.ledger.layout import Item, record_key
from airflow_provider_geminiimg.core.ledger.record import Destination, Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

if TYPE_CHECKING:
    from tests.compat.conftest import Outcome

WAITING = getattr(TaskInstanceState, "AWAITING_INPUT", None)  # since Airflow 3.3; before, a trigger asks again


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Manifests of three images that have landed."""
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", str(tmp_path / "root"))
    ledger = Ledger(open_store(str(tmp_path / "root"), AIRFLOW_OPENERS))
    return [_landed(ledger, index, tmp_path / f"{name}.png") for index, name in enumerate("abc")]


def _landed(ledger: Ledger, index: int, path: Path) -> dict[str, Any]:
    path.write_bytes(path.name.encode())
    key = record_key(Item("default", "look", "run", "drafts", index), 1)
    image = {"uri": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest = {"images": [image], "record": key, "reused": False}
    record = Record(
        key=key, n=1, state="landed", claim="c", generation=0, host="h", pid=1, claimed_at=0.0, answer_within=0.0,
        conn_id="onemin", gateway="1min", model="m", wire_model="m", operation="generate", fingerprint="f" * 64,
        request_fields={}, prompt_sha256="", inputs=[], destination=Destination(path.parent.as_uri(), path.stem),
        cost={}, expected_seconds=0.0, manifest=manifest,
    )  # fmt: skip
    assert ledger.create(record)
    return manifest


@pytest.fixture
def person(_database: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., threading.Thread]:
    """``person("1: a.png", comment="...")`` answers the first request that comes."""
    from airflow.api_fastapi.app import create_app, get_auth_manager, purge_cached_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    # dag.test() runs a trigger without the triggerer's channel, which would ask the execution API for this.
    monkeypatch.setattr("airflow.providers.standard.triggers.hitl.get_hitl_detail_content_detail", _response)
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "False")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ursula:USER")
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "s" * 32)
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "j" * 64)
    purge_cached_app()
    browser = TestClient(create_app("core"))
    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="ursula", role="USER"))
    browser.headers["Authorization"] = f"Bearer {token}"

    def answer(chosen: tuple[str, ...], params: dict[str, Any]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            asked = browser.get("/api/v2/dags/look/dagRuns/~/hitlDetails").json()["hitl_details"]
            # SQLite locks no rows: an answer that comes while Airflow writes that the task waits is not seen.
            waiting = [
                each["task_instance"] for each in asked if each["task_instance"]["state"] == WAITING or not WAITING
            ]
            if waiting:
                [at] = waiting
                where = f"/api/v2/dags/look/dagRuns/{at['dag_run_id']}/taskInstances/review/-1/hitlDetails"
                said = browser.patch(where, json={"chosen_options": list(chosen), "params_input": params})
                assert said.status_code == 200, said.text
                return
            time.sleep(0.1)

    def start(*chosen: str, **params: Any) -> threading.Thread:
        thread = threading.Thread(target=answer, args=(chosen, params))
        thread.start()
        return thread

    return start


def _response(ti_id: Any) -> Any:  # of the one request that there is
    from airflow.api_fastapi.execution_api.datamodels.hitl import HITLDetailResponse
    from airflow.models.hitl import HITLDetail
    from airflow.utils.session import create_session

    with create_session() as session:
        return HITLDetailResponse.from_hitl_detail_orm(session.query(HITLDetail).one())


def test_what_a_person_picks_goes_on_with_the_comment(
    run_dag: Callable[[DAG], dict[str, Outcome]],
    person: Callable[..., threading.Thread],
    images: list[dict[str, Any]],
) -> None:
    with DAG("look", schedule=None) as dag:
        review = GeminiImageReviewOperator(task_id="review", subject="Which?", images=images, choose="several")

        @task
        def after(chosen: list[dict[str, Any]], comment: str) -> list[Any]:
            return [chosen, comment]

        after(review.output, review.output["comment"])
    answering = person("3: c.png", "1: a.png", comment="bluer")
    tasks = run_dag(dag)
    answering.join()
    assert tasks["after"].value == [[images[0], images[2]], "bluer"]
