"""A whole Airflow at DEBUG, searched byte by byte: every log file and output, every table, ledger and sidecars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness import canaries as search
from tests.harness.canaries import Canaries, Text
from tests.harness.live_airflow import LiveAirflow

SOURCE = """
    from datetime import timedelta

    from airflow.sdk import DAG

    from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
    from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
    from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
    from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor

    PROMPT = {prompt!r}
    FAST = {{"prompt": PROMPT, "resolution": "512", "poll_interval": 0.5}}

    # A scheduler that is short of time takes a task that came back from its trigger at once for a lost one.
    for dag_id, retries in (("good", 2), ("refused", 0)):
        retry = {{"retries": retries, "retry_delay": timedelta(seconds=1)}}
        with DAG(dag_id, max_active_tasks=16, default_args=retry):
            for conn_id in ("onemin", "apimaster"):
                for deferrable in (False, True):
                    GeminiImageGenerateOperator(
                        task_id=f"made_{{conn_id}}_{{deferrable}}",
                        geminiimg_conn_id=conn_id,
                        deferrable=deferrable,
                        **FAST,
                    )
            made = GeminiImageGenerateOperator(task_id="first", geminiimg_conn_id="onemin", **FAST)
            GeminiImageEditOperator(
                task_id="edited", geminiimg_conn_id="onemin", image=made.output, deferrable=True, **FAST
            )
            job = GeminiImageSubmitOperator(task_id="ordered", geminiimg_conn_id="apimaster", **FAST)
            GeminiImageJobSensor(task_id="waited", job=job.output, deferrable=True, poll_interval=0.5)

    with DAG("bad_key"):
        GeminiImageGenerateOperator(task_id="made", geminiimg_conn_id="onemin", **FAST)
"""


def everything(airflow: LiveAirflow, root: Path) -> Iterator[Text]:
    """All that this Airflow has written, but for the DAG's source and the raw file that the tables are read from."""
    yield from search.files(root)
    for path in sorted((airflow.home / "logs").rglob("*")):
        if path.is_file():
            yield from search.output(str(path), path.read_bytes())
    yield from search.database(airflow.home / "airflow.db")


@pytest.mark.core
def test_nothing_that_a_whole_airflow_writes_holds_a_key_a_prompt_or_a_link(
    live: Callable[..., LiveAirflow], tmp_path: Path
) -> None:
    canaries, root, deferred = Canaries(), tmp_path / "root", list[Text]()
    with Sandbox(latency=4.0) as sandbox:
        airflow = live(
            {"private.py": SOURCE.format(prompt=canaries.prompt)},
            {
                "AIRFLOW_CONN_ONEMIN": sandbox.connection_json("1min", key=canaries.key),
                "AIRFLOW_CONN_APIMASTER": sandbox.connection_json("apimaster", key=canaries.key),
                "AIRFLOW__GEMINIIMG__ROOT": root.as_uri(),
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
            },
        )

        def watch(tasks: list[dict[str, Any]]) -> None:
            if any(task["state"] == "deferred" for task in tasks):
                deferred.extend(search.database(airflow.home / "airflow.db"))

        airflow.trigger("good", "run")
        assert airflow.wait("good", "run", watch=watch) == "success"
        echo = {"times": 3, "outcome": "refused_echo"}
        sandbox.faults({"route": "onemin.submit", **echo}, {"route": "apimaster.submit", **echo})
        airflow.trigger("refused", "run")
        assert airflow.wait("refused", "run", watch=watch) == "failed"
        said = f"Incorrect API key: {canaries.key}"
        sandbox.faults(route="onemin.submit", status=401, body={"message": said})
        airflow.trigger("bad_key", "run")
        assert airflow.wait("bad_key", "run") == "failed"

        tests = [airflow.command("connections", "test", conn_id) for conn_id in ("onemin", "apimaster")]
        airflow.stop()
        printed = [Text("output of a command", f"{each.stdout}{each.stderr}".encode()) for each in tests]
        written = [*everything(airflow, root), *deferred, *printed]
        canaries.add_links(sandbox.links())

    triggers = [text.data for text in deferred if text.where == "table trigger"]
    assert any(b"GeminiImageJobTrigger" in data for data in triggers)
    assert any(b"httpcore" in text.data or b"debug" in text.data for text in written if text.where.endswith(".log"))
    copies = [Text(text.where, text.data) for text in written if text.copy]
    assert {leak.canary for leak in canaries.leaks(copies)} == {"prompt"}
    leaks = canaries.leaks(written)
    assert not leaks, "\n".join(f"{leak.canary} in {leak.where}: …{leak.around!r}…" for leak in leaks[:20])
