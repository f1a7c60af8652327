"""The failure matrix: what is between the attempts of one task, and between the requests of one attempt."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.sandbox import Sandbox
from tests.harness.rows import EVERYWHERE, LANDED, Case, Play, each, play


class OneRequestLine:
    """A gateway's front that closes a kept connection just when its second request arrives.

    :param target: the gateway's address.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._loop = asyncio.new_event_loop()
        self.url = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            server.close()
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            up_reader, up_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
            up_writer.write(await _message(reader))
            writer.write(await _message(up_reader))
            await writer.drain()
            up_writer.close()
            await reader.read(1)
        writer.transport.abort()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


def job_takes_a_while(stage: Play) -> None:
    stage.sandbox.settings(latency=0.6)


def download_fails(stage: Play) -> None:
    stage.fault("download", status=500, times=3)


def edit_the_task(stage: Play) -> None:
    stage.arguments["prompt"] = "a blue fox"
    stage.run.retry("made", dag=stage.dag())


CASES = [
    Case("The templates render to another prompt", "on a retry",
         "The recorded request counts: its job is polled, and the log says what differs. Only a Clear compares.",
         prepare=download_fails, between=edit_the_task, attempts=2),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each(CASES))
def test_paid_work_is_safe_from(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "gateway", monkeypatch)


@pytest.mark.parametrize(("gateway", "mode"), [pair for pair in EVERYWHERE if pair[1] == "deferred"])
def test_a_job_is_waited_for_in_the_triggerer_until_it_has_ended(stage: Play, gateway: str) -> None:
    job_takes_a_while(stage)
    stage.start()
    assert stage.balance() == LANDED
    assert [event["status"] for event in stage.task.events] == ["done"]
    assert stage.task.executions == 2
    case = Case("The job runs on", "while deferred", "The trigger fires once, when the job has ended.")
    stage.save("gateway", case, stage.balance())


@pytest.mark.parametrize(("gateway", "mode"), [("1min", "waiting"), ("1min", "deferred")])
def test_a_paid_request_is_not_sent_over_a_connection_that_the_gateway_is_closing(
    stage: Play, sandbox: Sandbox, tmp_path: Path, mode: str
) -> None:
    stage.start()
    source = stage.task.value["images"][0]["uri"]
    line = OneRequestLine(sandbox.url)
    with line.open():
        stage.connect(host=line.url)
        with DAG("edits", schedule=None) as dag:
            GeminiImageEditOperator(task_id="made", prompt="a fox at night", image=source, **stage.usual())
        run = stage.airflow.run_dag(dag)
    assert run.task("made").state == "success", run.task("made").log
    balance = stage.balance()
    assert (balance.paid, balance.landed, balance.unknown) == (2, 2, 0)
    stage.save(
        "gateway",
        Case(
            "The gateway closes its kept connections",
            "between the upload and the paid request",
            "Paid requests go over fresh connections.",
        ),
        balance,
    )
