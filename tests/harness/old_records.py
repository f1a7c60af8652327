"""What version 0.1 left behind, put back: its objects into a bucket, its tasks into Airflow, its jobs into the sandbox.

``fixtures/write_records_0_1.py`` tells how it was made. What must stay true: a record is put back as that version wrote
it; only the address of the gateway and the day of the budget are those of today.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from airflow_provider_geminiimg.core.request import prompt_sha256
from tests.harness import TESTS
from tests.harness.moto import age_object

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import Run

FOLDER = TESTS / "fixtures" / "records_0_1"
BUCKET = "records-0-1"
ROOT = f"s3://{BUCKET}/geminiimg"
IMAGES = f"s3://{BUCKET}/pictures"
GATEWAY = "http://gateway.invalid"
WORKER = "worker"

HOUR = 3600.0  # seconds; longer than any answer is waited for
_MODEL = "gemini-3.1-flash-image-preview"


def put_back(sandbox: Sandbox) -> None:
    """Put the objects into their bucket, written an hour ago, and the jobs into the sandbox."""
    s3 = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # past HTTP: there are hundreds
    s3.create_bucket(BUCKET, "us-east-1")
    today = dt.datetime.now(dt.timezone.utc).date().isoformat()
    objects = FOLDER / "objects"
    for path in sorted(each for each in objects.rglob("*") if each.is_file()):
        key = path.relative_to(objects).as_posix()
        if "/budgets/" in key:
            key = f"{key.rpartition('/')[0]}/{today}.json"
        s3.put_object(BUCKET, key, path.read_bytes().replace(GATEWAY.encode(), sandbox.url.encode()))
        age_object(BUCKET, key, HOUR)
    _put_jobs_back(sandbox)


def take_away() -> None:
    """Remove the bucket with all that is in it, and Airflow's copy of the root's identity."""
    from airflow.models.variable import Variable

    from airflow_provider_geminiimg.runtime.root_variable import RootVariable

    Variable.delete(RootVariable(ROOT).name)
    s3 = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for key in list(s3.buckets[BUCKET].keys):
        s3.delete_object(BUCKET, key)
    s3.delete_bucket(BUCKET)


def _put_jobs_back(sandbox: Sandbox) -> None:
    sandbox.settings(latency=0, honour_async=True)
    box = sandbox._server.box
    for entry in json.loads((FOLDER / "gateway.json").read_text()):
        route = "onemin" if entry["gateway"] == "1min" else "apimaster"
        outcome = entry["outcome"].replace("picture", "image")  # as the sandbox says today
        if outcome != "image":
            sandbox.faults(route=f"{route}.submit", outcome=outcome)
        _submit(sandbox, route, entry["prompt"])
        _, job = box.jobs.popitem()
        job.job_id = entry["job_id"]
        box.jobs[job.job_id] = job
    by_prompt = {prompt_sha256(job.order.prompt): job for job in box.jobs.values()}
    for path in (FOLDER / "objects" / "geminiimg" / "ledger").rglob("*.json"):
        record = json.loads(path.read_text())
        for link in record["links"]:
            box._by_key[urlsplit(link).path.lstrip("/")] = by_prompt[record["prompt_sha256"]]


def _submit(sandbox: Sandbox, route: str, prompt: str) -> None:
    """Have a job made that is known to nobody else."""
    if route == "onemin":
        wanted = {"prompt": prompt, "imageSize": "512"}
        body = {"type": "IMAGE_GENERATOR", "model": _MODEL, "promptObject": wanted, "async": True}
        answer = httpx.post(f"{sandbox.onemin_url}/api/features", json=body, headers={"API-KEY": "sandbox-key"})
    else:
        head = {"Authorization": "Bearer sandbox-key"}
        order = {"model": _MODEL, "prompt": prompt, "resolution": "0.5K"}
        answer = httpx.post(f"{sandbox.apimaster_url}/images/generations/async", json=order, headers=head)
    answer.raise_for_status()


def kept_by_airflow(dag_id: str) -> list[dict[str, Any]]:
    """What Airflow kept of the task instances of a DAG."""
    return [each for each in json.loads((FOLDER / "airflow.json").read_text()) if each["dag_id"] == dag_id]


def take_up(dag: DAG, *, cleared: bool = False, remembered: bool = True) -> Run:
    """Go on with the run of a DAG where it was left, in this Airflow.

    :param cleared: as the Clear button does; otherwise as a retry.
    :param remembered: whether Airflow has a task state store, which kept what was in it.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    from tests.harness.inprocess import Run

    run = Run(dag, "run")
    run.create(dt.datetime.now(dt.timezone.utc), None)
    with create_session() as session:
        for kept in kept_by_airflow(dag.dag_id):
            place = {name: kept[name] for name in ("dag_id", "run_id", "task_id", "map_index")}
            ti = session.query(TaskInstance).filter_by(**place).one()
            ti.try_number = kept["try_number"]
            ti.max_tries = kept["try_number"] if cleared else kept["max_tries"]
            if remembered:
                _remember(session, ti, kept["state_store"])
    return run.go_on()


def _remember(session: Any, ti: Any, values: Mapping[str, str]) -> None:
    from airflow.models.task_state_store import TaskStateStoreModel

    place = {name: getattr(ti, name) for name in ("dag_id", "run_id", "task_id")}
    index = "region_index" if hasattr(TaskStateStoreModel, "region_index") else "map_index"  # from Airflow 3.4 on
    place[index] = ti.map_index
    for key, value in values.items():
        session.add(TaskStateStoreModel(dag_run_id=ti.dag_run.id, key=key, value=value, **place))
