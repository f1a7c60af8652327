"""A thousand images in one complete Airflow: our batch compared with code that a user might write instead.

All contestants use the same gateway, whose images take 2 s, and the same bucket. A mapped task needs a scheduler
decision and a process for every image. The mapped contestants make fewer images, and are compared by the seconds per
image; with fewer images, the start and the end of a run have more weight.
"""

from __future__ import annotations

import json
import os
import tempfile
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_provider_geminiimg.sandbox.client import SandboxClient
from benchmarks.bucket import real_bucket
from benchmarks.gateway import gateway
from benchmarks.measure import ROOT
from benchmarks.results import Row
from tests.harness.live_airflow import LiveAirflow

LATENCY, TARGET = 2.0, 10.0
COUNT, MAPPED = 1000, 30  # images of our batch, and of each mapped contestant
WIDTH = 200
QUICK = 4
PEERS = {
    "python_operator": "mapped PythonOperator",
    "http_operator": "mapped HttpOperator, sensor, upload",
    "ours_mapped": "our own mapped operator",
}

DAGS = """
import json
import sys
import time

sys.modules["PIL"] = None  # no thumbnails: nobody else makes any

import boto3
import requests
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, task

from airflow_provider_geminiimg import GeminiImageBatchOperator, GeminiImageGenerateOperator

COUNT, MAPPED = {count}, {mapped}
BUCKET, URL, MODEL = "{bucket}", "{url}", "gemini-3.1-flash-image-preview"
HEADERS = {{"Authorization": "Bearer sandbox-key", "Content-Type": "application/json"}}
PROMPTS = [f"image number {{number}}" for number in range(MAPPED)]
LIMITS = {{"max_active_tasks": 64, "schedule": None}}


def link(answer):
    url = answer["data"]["result"]["images"][0]["url"]
    return url[0] if isinstance(url, list) else url


def store(name, url):
    body = requests.get(url, timeout=60).content
    boto3.client("s3").put_object(Bucket=BUCKET, Key=name, Body=body, ContentType="image/png")
    return name


def submission(prompt):
    return {{"model": MODEL, "prompt": prompt, "resolution": "0.5K"}}


def ended(answer):
    return answer.json()["data"]["status"] in ("succeeded", "completed")


def made(prompt):
    answer = requests.post(f"{{URL}}/images/generations/async", json=submission(prompt), headers=HEADERS, timeout=60)
    job = answer.json()["data"][0]["task_id"]
    while True:
        time.sleep(1)
        answer = requests.get(f"{{URL}}/tasks/{{job}}", params={{"model": MODEL}}, headers=HEADERS, timeout=60)
        if ended(answer):
            return store(f"python/{{job}}.png", link(answer.json()))


with DAG("ours", **LIMITS):
    GeminiImageBatchOperator(
        task_id="images", requests=[f"image number {{number}}" for number in range(COUNT)], resolution="512",
        output_path=f"s3://{{BUCKET}}/ours", poll_interval=1.0, max_concurrency={width},
    )

with DAG("ours_mapped", **LIMITS):
    GeminiImageGenerateOperator.partial(
        task_id="image", resolution="512", output_path=f"s3://{{BUCKET}}/mapped", poll_interval=1.0
    ).expand(prompt=PROMPTS)

with DAG("python_operator", **LIMITS):
    PythonOperator.partial(task_id="image", python_callable=made).expand(op_args=[[prompt] for prompt in PROMPTS])

with DAG("http_operator", **LIMITS):
    submitted = HttpOperator.partial(
        task_id="submit", http_conn_id="gateway", endpoint="images/generations/async", method="POST", headers=HEADERS,
        response_filter=lambda answer: answer.json()["data"][0]["task_id"],
    ).expand(data=[json.dumps(submission(prompt)) for prompt in PROMPTS])

    polled = HttpSensor.partial(
        task_id="wait", http_conn_id="gateway", method="GET", headers=HEADERS, poke_interval=1.0, response_check=ended
    ).expand(endpoint=submitted.output.map(lambda job: f"tasks/{{job}}?model={{MODEL}}"))

    @task
    def upload(job):
        answer = requests.get(f"{{URL}}/tasks/{{job}}", params={{"model": MODEL}}, headers=HEADERS, timeout=60)
        return store(f"http/{{job}}.png", link(answer.json()))

    polled >> upload.expand(job=submitted.output)
"""


def run(quick: bool) -> list[Row]:
    """One run of each: a run is the sum of hundreds of scheduler rounds, which is a mean already."""
    count, mapped = (QUICK, QUICK) if quick else (COUNT, MAPPED)
    with tempfile.TemporaryDirectory() as home, real_bucket() as (uri, keys), gateway([LATENCY]) as client:
        folder = Path(home, "dags")
        folder.mkdir()
        values: dict[str, Any] = {"count": count, "mapped": mapped, "width": WIDTH}
        values |= {"bucket": uri.removeprefix("s3://"), "url": client.apimaster_url}
        (folder / "contestants.py").write_text(textwrap.dedent(DAGS.format(**values)))
        with LiveAirflow(Path(home, "airflow"), folder, _environment(client, home, keys)) as airflow:
            ours = _seconds(airflow, "ours") / count
            theirs = {name: _seconds(airflow, name) / mapped for name in PEERS}
        made = len(client.ledger())
    assert made == count + len(PEERS) * mapped, f"{made} images were paid for"
    figure = f"seconds an image, of {count} in one Airflow (the mapped ones: of {mapped})"
    speed = "times as fast as the peer"
    return [
        *(Row("end_to_end", figure, "s", ours, PEERS[name], took) for name, took in theirs.items()),
        *(
            Row("end_to_end", f"{speed}: {PEERS[name]}", "×", took / ours, target=TARGET, at_least=True)
            for name, took in theirs.items()
        ),
    ]


def _environment(client: SandboxClient, home: str, keys: dict[str, str]) -> dict[str, str]:
    return {
        **keys,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_CONN_GEMINIIMG_DEFAULT": client.connection_json("apimaster", requests_per_minute=1_000_000),
        "AIRFLOW_CONN_GATEWAY": json.dumps({"conn_type": "http", "host": client.apimaster_url}),
        "AIRFLOW__GEMINIIMG__ROOT": f"{Path(home).as_uri()}/root",
        "AIRFLOW__CORE__PARALLELISM": str(4 * (os.cpu_count() or 1)),
    }


def _seconds(airflow: LiveAirflow, dag_id: str) -> float:
    """From the start of the run to its end, by Airflow's own clock."""
    airflow.trigger(dag_id, "run", timeout=120)
    state = airflow.wait(dag_id, "run", timeout=600)
    assert state == "success", f"{dag_id}: {state}"
    run: dict[str, Any] = airflow.run(dag_id, "run") or {}
    return (datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["start_date"])).total_seconds()
