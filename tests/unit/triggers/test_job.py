"""Waiting in the triggerer's event loop, against the sandbox."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.triggers import job as job_module
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

MODEL = "gemini-3.1-flash-image-preview"
ABSENT = {"onemin": "00000000-1111-2222-3333-444444444444", "apimaster": "task_that_never_was"}


@pytest.fixture(autouse=True)
def _quick_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "LOOK_UP_AGAIN", 0.05)


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the connections that were looked up."""
    seen: list[str] = []
    original = GeminiImageHook.aconnection

    async def counted(self: GeminiImageHook) -> Any:
        seen.append(self.geminiimg_conn_id)
        return await original(self)

    monkeypatch.setattr(GeminiImageHook, "aconnection", counted)
    return seen


def trigger(conn_id: str, job_id: str, **values: Any) -> GeminiImageJobTrigger:
    now = time.time()
    defaults: dict[str, Any] = {
        "geminiimg_conn_id": conn_id,
        "job_id": job_id,
        "model": MODEL,
        "submitted_at": now,
        "deadline": now + 60,
        "expected_seconds": 0.1,
        "poll_interval": 0.05,
    }
    return GeminiImageJobTrigger(**{**defaults, **values})


async def submit(conn_id: str) -> str:
    job = await GeminiImageHook(conn_id).asubmit(
        prompt="a canary prompt about lighthouses", resolution="512", model=MODEL
    )
    assert job.job_id is not None
    return job.job_id


async def events(waiting: GeminiImageJobTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in waiting.run()]


async def test_a_finished_job_fires_once_with_its_id_and_nothing_else(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    job_id = await submit(geminiimg_conn_id)
    assert await events(trigger(geminiimg_conn_id, job_id)) == [{"status": "done", "job_id": job_id, "code": None}]


async def test_a_failed_job_fires_with_the_gateways_code_and_without_its_words(
    sandbox: Sandbox, apimaster: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.faults(route="apimaster.submit", outcome="refused_echo")
    job_id = await submit(apimaster)
    (event,) = await events(trigger(apimaster, job_id))
    assert event["status"] == "failed"
    assert set(event) == {"status", "job_id", "code"}
    assert event["code"] is None or " " not in event["code"]
    assert "lighthouses" not in json.dumps(event) + caplog.text


async def test_a_job_that_is_done_at_once_fires_when_the_worker_that_deferred_is_surely_gone(
    sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "MIN_SECONDS", 1.0)
    job_id = await submit(onemin)
    await asyncio.to_thread(GeminiImageHook(onemin).wait, job_id, poll_interval=0.05)
    began = time.monotonic()
    assert (await events(trigger(onemin, job_id)))[0]["status"] == "done"
    assert time.monotonic() - began >= 1.0


async def test_the_arguments_survive_airflows_storage(sandbox: Sandbox, onemin: str) -> None:
    job_id = await submit(onemin)
    path, values = trigger(onemin, job_id).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(sys.modules[module], name)(**json.loads(json.dumps(values)))
    assert again.serialize() == (path, values)
    assert (await events(again))[0]["status"] == "done"


def test_the_arguments_that_version_0_1_stored_make_a_trigger() -> None:
    stored: dict[str, Any] = {
        "geminiimg_conn_id": "a", "job_id": "b", "model": MODEL,
        "submitted_at": 1.0, "deadline": 61.0, "expected_seconds": 12.0, "poll_interval": None,
    }  # fmt: skip
    path, values = GeminiImageJobTrigger(**stored).serialize()
    assert path == "airflow_provider_geminiimg.triggers.job.GeminiImageJobTrigger"
    assert values.items() >= stored.items()


async def test_forty_triggers_share_one_look_up_one_client_and_a_few_connections(
    sandbox: Sandbox, geminiimg_conn_id: str, look_ups: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=job_module.__name__)
    sandbox.settings(latency=0.5)
    jobs = [await submit(geminiimg_conn_id) for _ in range(40)]
    look_ups.clear()
    done = await asyncio.gather(*(events(trigger(geminiimg_conn_id, job_id)) for job_id in jobs))
    assert [event["job_id"] for (event,) in done] == jobs
    assert {event["status"] for (event,) in done} == {"done"}
    assert look_ups == [geminiimg_conn_id]
    assert caplog.text.count("Opened one client for connection") == 1
    polls = sandbox.calls(f"{geminiimg_conn_id}.status")
    assert len(polls) >= 40
    assert len({call["client_port"] for call in polls}) <= 8
    assert len(sandbox.ledger()) == 40


async def test_triggers_that_come_one_after_the_other_find_the_client_still_open(
    sandbox: Sandbox, onemin: str, look_ups: list[str]
) -> None:
    for _ in range(3):
        await events(trigger(onemin, await submit(onemin)))
    assert look_ups.count(onemin) == 3 + 1  # three submits through the hook, one client for all triggers


async def test_the_client_is_closed_a_while_after_the_last_trigger_left(
    sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "LINGER", 0.05)
    await events(trigger(onemin, await submit(onemin)))
    poller = job_module._POLLERS[asyncio.get_running_loop()][onemin]
    await asyncio.wait_for(poller._keeper, 5)
    assert job_module._POLLERS[asyncio.get_running_loop()] == {}
    assert [transport._closed for transport in poller._transports] == [True]


async def test_a_trigger_that_comes_while_the_client_lingers_keeps_it_open(
    sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "LINGER", 0.2)
    first, second = await submit(onemin), await submit(onemin)
    await events(trigger(onemin, first))
    poller = job_module._POLLERS[asyncio.get_running_loop()][onemin]
    assert (await events(trigger(onemin, second, expected_seconds=0.6, poll_interval=None)))[0]["status"] == "done"
    assert job_module._POLLERS[asyncio.get_running_loop()][onemin] is poller
    await asyncio.wait_for(poller._keeper, 5)


async def test_a_cancelled_trigger_leaves_the_others_and_the_job_alone(sandbox: Sandbox, onemin: str) -> None:
    sandbox.faults(route="onemin.status", hold=True)
    job_id = await submit(onemin)
    cancelled = asyncio.create_task(events(trigger(onemin, job_id)))
    await asyncio.to_thread(sandbox.held)
    other = asyncio.create_task(events(trigger(onemin, job_id)))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (await other)[0]["status"] == "done"
    sandbox.release()
    assert len(sandbox.ledger()) == 1


def test_a_loop_that_ends_closes_what_the_triggers_opened(sandbox: Sandbox, onemin: str) -> None:
    """As in `dag.test()`, which runs each trigger in a loop of its own."""
    script = (
        "import asyncio, sys\n"
        "from airflow_provider_geminiimg.triggers import job\n"
        "job.MIN_SECONDS = 0\n"
        "async def main():\n"
        "    import time\n"
        "    now = time.time()\n"
        "    waiting = job.GeminiImageJobTrigger('onemin', sys.argv[1], 'm', now, now + 9, 0, 0.05)\n"
        "    async for event in waiting.run():\n"
        "        print(event.payload['status'])\n"
        "asyncio.run(main(), debug=True)\n"
    )
    job_id = str(GeminiImageHook(onemin).submit(prompt="a lighthouse").job_id)
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "always::ResourceWarning", "-c", script, job_id],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ.copy(),
    )
    assert ran.stdout.splitlines()[-1] == "done"
    assert "unclosed transport" not in ran.stderr
    assert "never retrieved" not in ran.stderr
    assert "was destroyed" not in ran.stderr


async def test_a_job_that_still_runs_at_the_deadline_is_a_timeout(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    sandbox.settings(latency=60)
    job_id = await submit(geminiimg_conn_id)
    (event,) = await events(trigger(geminiimg_conn_id, job_id, deadline=time.time() + 0.4))
    assert event == {"status": "timeout", "job_id": job_id, "code": None}


async def test_a_deadline_that_passed_while_no_triggerer_ran_still_gets_one_poll(sandbox: Sandbox, onemin: str) -> None:
    job_id = await submit(onemin)
    await asyncio.to_thread(GeminiImageHook(onemin).wait, job_id, poll_interval=0.05)
    late = trigger(onemin, job_id, submitted_at=time.time() - 4000, deadline=time.time() - 2000)
    assert (await events(late))[0]["status"] == "done"


async def test_a_poll_that_hangs_does_not_outlive_the_deadline(
    sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "LAST_POLL", 0.2)
    job_id = await submit(onemin)
    sandbox.faults(route="onemin.status", hold=True)
    (event,) = await events(trigger(onemin, job_id, deadline=time.time() + 0.2))
    assert event["status"] == "timeout"


async def test_failing_polls_do_not_end_the_wait_and_five_in_a_row_do(sandbox: Sandbox, geminiimg_conn_id: str) -> None:
    route = f"{geminiimg_conn_id}.status"
    job_id = await submit(geminiimg_conn_id)
    sandbox.faults({"route": route, "drop": True, "times": 2}, {"route": route, "status": 503, "times": 2})
    assert (await events(trigger(geminiimg_conn_id, job_id, poll_interval=0.02)))[0]["status"] == "done"
    sandbox.faults(route=route, status=502, times=5)
    (event,) = await events(trigger(geminiimg_conn_id, job_id, poll_interval=0.02))
    assert event["status"] == "lost"
    assert len(sandbox.calls(route)) >= 10


@pytest.mark.parametrize(
    ("age", "deadline", "status"), [(700, 60, "vanished"), (0, 0.3, "timeout")], ids=["after 10 minutes", "before"]
)
async def test_a_job_that_the_gateway_does_not_know_has_vanished_only_after_ten_minutes(
    sandbox: Sandbox, geminiimg_conn_id: str, age: float, deadline: float, status: str
) -> None:
    now = time.time()
    waiting = trigger(geminiimg_conn_id, ABSENT[geminiimg_conn_id], submitted_at=now - age, deadline=now + deadline)
    assert (await events(waiting))[0]["status"] == status


async def test_a_deleted_connection_is_looked_up_again_and_then_lost(look_ups: list[str]) -> None:
    (event,) = await events(trigger("deleted", "some-job", poll_interval=0.06))
    assert event == {"status": "lost", "job_id": "some-job", "code": None}
    assert len(look_ups) > 2


async def test_a_connection_that_comes_back_is_found(
    sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(onemin)
    failed, original = asyncio.Event(), GeminiImageHook.aconnection

    async def watched(self: GeminiImageHook) -> Any:
        try:
            return await original(self)
        except BadRequestError:
            failed.set()
            raise

    monkeypatch.setattr(GeminiImageHook, "aconnection", watched)
    value = os.environ["AIRFLOW_CONN_ONEMIN"]
    monkeypatch.delenv("AIRFLOW_CONN_ONEMIN")
    waiting = asyncio.create_task(events(trigger(onemin, job_id, poll_interval=0.2)))
    await failed.wait()
    monkeypatch.setenv("AIRFLOW_CONN_ONEMIN", value)
    assert (await waiting)[0]["status"] == "done"


async def test_a_key_that_was_changed_is_looked_up_again(
    sandbox: Sandbox, connect: Callable[..., str], onemin: str, look_ups: list[str]
) -> None:
    job_id = await submit(onemin)
    extra = {"gateway": "1min", "requests_per_minute": 6000}
    connect("rotated", host=sandbox.onemin_url, password="bad-key", extra=extra)
    waiting = asyncio.create_task(events(trigger("rotated", job_id, poll_interval=0.1)))
    await asyncio.to_thread(lambda: sandbox.calls("onemin.status", count=1))
    connect("rotated", host=sandbox.onemin_url, password="sandbox-key", extra=extra)  # the account of the job
    assert (await waiting)[0]["status"] == "done"
    assert look_ups.count("rotated") >= 2


async def test_killing_a_trigger_asks_the_gateway_for_nothing(sandbox: Sandbox, onemin: str) -> None:
    job_id = await submit(onemin)
    before = len(sandbox.calls())
    await trigger(onemin, job_id).on_kill()
    assert len(sandbox.calls()) == before


async def test_the_event_loop_is_not_blocked_by_each_trigger(
    sandbox: Sandbox, onemin: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    jobs = [await submit(onemin) for _ in range(10)]
    loop.slow_callback_duration = 0.1
    loop.set_debug(True)
    caplog.set_level(logging.WARNING, logger="asyncio")
    try:
        await asyncio.gather(*(events(trigger(onemin, job_id)) for job_id in jobs))
    finally:
        loop.set_debug(False)
    # Other processes of a busy machine may hold one or two callbacks up; a client for each trigger would be ten.
    assert caplog.text.count("Executing") <= 3


async def test_polls_of_the_triggerer_count_for_the_limit_of_all_processes(
    sandbox: Sandbox, connect: Callable[..., str], root: str
) -> None:
    conn_id = connect("limited", **sandbox.connection("1min"))
    job_id = await submit(conn_id)
    store = open_store(root, AIRFLOW_OPENERS)
    assert list(store.keys("limits/")) == []
    assert (await events(trigger(conn_id, job_id)))[0]["status"] == "done"
    assert list(store.keys("limits/")) == ["limits/default/limited/rate.json"]


@pytest.mark.parametrize("unreadable", ["gs://elsewhere/root", "/dev/null/root"])
async def test_a_triggerer_that_cannot_read_the_root_polls_all_the_same_and_says_so_once(
    sandbox: Sandbox,
    connect: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unreadable: str,
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", unreadable)
    conn_id = connect("limited", **sandbox.connection("1min"))
    waiting = [trigger(conn_id, await submit(conn_id)) for _ in range(3)]
    fired = await asyncio.gather(*(events(each) for each in waiting))
    assert [event["status"] for [event] in fired] == ["done"] * 3
    assert sum("limits" in line for line in caplog.messages) == 1


def test_the_trigger_needs_no_operator() -> None:
    code = (
        "import sys, airflow_provider_geminiimg.triggers.job\n"
        "print([name for name in sys.modules if name.startswith('airflow_provider_geminiimg.operators')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.splitlines()[-1] == "[]"
