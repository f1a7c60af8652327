"""Forty mapped images in a whole Airflow: one client and one look-up in the triggerer, each image paid for once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from airflow_provider_geminiimg.sandbox import Sandbox, read_submission
from tests.harness.live_airflow import LiveAirflow

COUNT = 40
SOURCE = f"""
    from datetime import timedelta

    from airflow.sdk import DAG

    from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

    with DAG("many", max_active_tasks=64):
        GeminiImageGenerateOperator.partial(
            task_id="made", resolution="512", deferrable=True, poll_interval=1.0, timeout=600,
            # A busy scheduler may take a task that comes back from its trigger for a lost one.
            retries=2, retry_delay=timedelta(seconds=1),
        ).expand(prompt=[f"image number {{number}}" for number in range({COUNT})])
"""
POOL = 10  # connections that one client keeps to a gateway at the most: max_concurrency and uploads


def test_forty_mapped_images_share_one_client_and_one_look_up_and_block_no_event_loop(
    live: Callable[..., LiveAirflow], tmp_path: Path
) -> None:
    with Sandbox(latency=40.0) as sandbox:
        airflow = live(
            {"many.py": SOURCE},
            {
                "AIRFLOW_CONN_GEMINIIMG_DEFAULT": sandbox.connection_json(
                    "apimaster", requests_per_minute=3000, max_concurrency=5
                ),
                "AIRFLOW__GEMINIIMG__ROOT": (tmp_path / "root").as_uri(),
                # Airflow's watchdog sleeps for 0.1 s and compares that sleep too: 0.2 allows 0.1 s of blocking.
                "AIRFLOW__TRIGGERER__BLOCKED_MAIN_THREAD_WARNING_THRESHOLD": "0.2",
            },
        )
        airflow.trigger("many", "run")
        assert airflow.wait("many", "run", timeout=400) == "success"

        # What a trigger logs goes to its task's log, the rest to the triggerer's own.
        log = "\n".join(path.read_text() for path in airflow.home.rglob("*") if path.is_file() and ".log" in path.name)
        assert log.count("Opened one client for connection geminiimg_default") == 1
        warnings = log.count("async thread was blocked")
        print(f"the triggerer's watchdog warned {warnings} times")
        assert warnings <= 3, "a client for each trigger would block the loop forty times"

        polls = [call for call in sandbox.calls("apimaster.status") if call["user_agent"]]
        by_port: dict[int, int] = {}
        for call in polls:
            by_port[call["client_port"]] = by_port.get(call["client_port"], 0) + 1
        # A worker's poll at the end is one call on a connection of its own; the rest is the triggerer's one pool.
        shared = [port for port, count in by_port.items() if count > 1]
        assert len(shared) <= POOL, by_port
        assert sum(by_port[port] for port in shared) > COUNT

        assert len(sandbox.ledger()) == COUNT
        numbers = set()
        for index in range(COUNT):
            manifest = airflow.xcom("many", "run", "made", map_index=index)
            data = Path(manifest["images"][0]["uri"].removeprefix("file://")).read_bytes()
            numbers.add(read_submission(data))
        assert numbers == set(range(1, COUNT + 1))
