"""What is written, anywhere, holds no key, no prompt and no link: whole runs, searched byte by byte for canaries.

Every test ends in `Watch.clean`, which searches all logs at DEBUG (before Airflow masks them), the output of the
process, the metadata database, the ledger, sidecars and whatever else lies in storage, and the exceptions of the tasks.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import random
import sqlite3
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, quote_plus

import pytest
import structlog
from airflow.sdk import DAG, task
from PIL import Image

from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    ContentRefusedError,
    GeminiImageError,
    LinkExpiredError,
)
from airflow_provider_geminiimg.hooks import geminiimg as hook_module
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import canaries as search
from tests.harness import forbidden as web
from tests.harness.canaries import Canaries, Leak, Logs, Text

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

HOME = Path(os.environ["AIRFLOW_HOME"])
internet, tls_host = web.internet, web.tls_host
GATEWAYS = {"onemin": "1min", "apimaster": "apimaster"}
FAST = {"poll_interval": 0.02}


def frames(file_name: str) -> Literal["search", "copy", "skip"]:
    """What to do about the variables of a stack frame: Airflow's and the test's own hold the operator and the prompt,
    and so does the hook's, to which the caller gave it.
    """
    import airflow

    if any(file_name.startswith(str(Path(place).parent)) for place in (airflow.__file__, __file__, pytest.__file__)):
        return "skip"
    return "copy" if file_name == hook_module.__file__ else "search"


class Watch:
    """One test's canaries, and all the places that they must not be in."""

    def __init__(
        self, airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str], folder: Path, output: Any
    ) -> None:
        self.canaries = Canaries()
        self.logs = Logs()
        self.sandbox = sandbox
        self.folder = folder
        self.errors: list[BaseException] = []
        self.texts: list[Text] = []
        self._airflow = airflow
        self._connect = connect
        self._output = output

    def connection(self, name: str = "onemin", **fields: Any) -> str:
        usual = self.sandbox.connection(GATEWAYS[name], key=self.canaries.key, requests_per_minute=100_000)
        return self._connect(name, **{**usual, **fields})

    def run(self, dag: DAG, **more: Any) -> Run:
        return self.note(self._airflow.run_dag(dag, **more))

    def note(self, run: Run) -> Run:
        """Search what this run left outside of the database: exceptions, and triggers that are gone by now."""
        for each in run.tasks():
            self.errors += [each.error] if each.error is not None else []
            self.texts.append(Text(f"triggers of {each.task_id}", f"{each.triggers} {each.events}".encode()))
        return run

    def noise(self, *, argument: bool = False) -> Path:
        """An input image none of whose bytes may turn up anywhere.

        :param argument: a task takes the bytes themselves as an argument.
        """
        path = self.folder / "inputs" / "noise.png"
        path.parent.mkdir(exist_ok=True)
        data = random.Random(1).randbytes(48 * 48 * 3)
        Image.frombytes("RGB", (48, 48), data).save(path)
        stored = path.read_bytes()
        for at in (64, len(stored) // 2):
            self.canaries.add("picture", stored[at : at + 24], argument=argument)
        return path

    def leaks(self) -> list[Leak]:
        self.canaries.add_links(self.sandbox.links())
        return self.canaries.leaks(self._everything())

    def clean(self) -> None:
        leaks = self.leaks()
        assert not leaks, "\n".join(f"{leak.canary} in {leak.where}: …{leak.around!r}…" for leak in leaks[:20])

    def _everything(self) -> Iterator[Text]:
        yield from self.logs.texts
        yield from self.texts
        out, err = self._output.readouterr()
        yield from search.output("stdout", out)
        yield from search.output("stderr", err)
        yield from search.database(HOME / "airflow.db")
        for folder in (self.folder, HOME / "logs"):
            yield from search.files(folder)
        yield from self._bucket()
        for error in self.errors:
            yield from search.exception(error, frames)

    def _bucket(self) -> Iterator[Text]:
        root = os.environ.get("AIRFLOW__GEMINIIMG__ROOT", "")
        if root.startswith("s3://"):
            import boto3

            yield from search.bucket(boto3.client("s3"), root.split("/")[2])


@pytest.fixture
def watch(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    connect: Callable[..., str],
    local_root: str,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Iterator[Watch]:
    found = Watch(airflow, sandbox, connect, tmp_path, capfdbinary)
    with found.logs.recording():
        yield found


@pytest.fixture(params=["onemin", "apimaster"])
def gateway(request: pytest.FixtureRequest, watch: Watch) -> str:
    """The test runs once for each gateway; a connection of this name leads there, with the canary key."""
    return watch.connection(request.param)


@pytest.fixture(params=[False, True], ids=["waiting", "deferred"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"deferrable": request.param, **FAST}


def one_task(watch: Watch, conn_id: str, mode: dict[str, Any] | None = None, **more: Any) -> DAG:
    with DAG("private", schedule=None) as dag:
        GeminiImageGenerateOperator(
            **{"task_id": "made", "prompt": watch.canaries.prompt, "geminiimg_conn_id": conn_id, **FAST}
            | (mode or {})
            | more
        )
    return dag


def submit_and_wait(watch: Watch, conn_id: str, **how: Any) -> DAG:
    with DAG("private", schedule=None) as dag:
        ordered = GeminiImageSubmitOperator(
            task_id="ordered", prompt=watch.canaries.prompt, geminiimg_conn_id=conn_id, **FAST
        )
        GeminiImageJobSensor(task_id="made", job=ordered.output, poke_interval=0.02, timeout=20, **FAST, **how)
    return dag


def outcome(run: Run, task_id: str = "made") -> GeminiImageError:
    """Why the task failed."""
    made = run.task(task_id)
    assert made.state == "failed", made.log
    error = made.error.__cause__ if made.error is not None and made.error.__cause__ is not None else made.error
    assert isinstance(error, GeminiImageError), made.log
    return error


# Runs that end well


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_images_made_and_edited_leave_no_canary(
    request: pytest.FixtureRequest, watch: Watch, gateway: str, mode: dict[str, Any], place: str
) -> None:
    if place == "s3":
        request.getfixturevalue("s3_root")
    shared = {"prompt": watch.canaries.prompt, "geminiimg_conn_id": gateway, **mode}
    with DAG("private", schedule=None) as dag:
        made = GeminiImageGenerateOperator(task_id="made", resolution="512", **shared)
        noise = str(watch.noise())
        GeminiImageEditOperator(task_id="edited", image=made.output, reference_images=[noise], **shared)
    run = watch.run(dag)
    assert run.state == "success", run.log
    assert [entry["prompt"] for entry in watch.sandbox.ledger()] == [watch.canaries.prompt] * 2
    assert watch.sandbox.links()
    assert {"httpx", "httpcore.http11", "asyncio", "task"} <= watch.logs.loggers
    assert "uvicorn.access" not in watch.logs.loggers
    assert place == "disk" or {"botocore.parsers", "urllib3.connectionpool"} <= watch.logs.loggers
    watch.clean()


def test_what_a_function_asks_for_is_kept_until_it_has_landed_and_leaves_no_canary(
    watch: Watch, mode: dict[str, Any]
) -> None:
    conn_id = watch.connection("apimaster")
    watch.sandbox.faults({"route": "apimaster.submit", "status": 503}, {"route": "apimaster.submit", "status": 503})
    with DAG("private", schedule=None) as dag:

        @task.gemini_image(geminiimg_conn_id=conn_id, **mode)
        def made() -> str:
            return watch.canaries.prompt

        @task.gemini_image_batch(geminiimg_conn_id=conn_id, max_concurrency=1, **FAST)
        def many() -> list[str]:
            return [watch.canaries.prompt, f"{watch.canaries.prompt} twice"]

        @task.gemini_image(geminiimg_conn_id=conn_id)
        def wrong() -> list[str]:
            return [watch.canaries.prompt]

        made(), many(), wrong()
    run = watch.run(dag)
    assert {each.state for each in run.tasks()} == {"failed"}
    kept = ("returned", "batches")
    places = {next((name for name in kept if name in leak.where), leak.where) for leak in watch.leaks()}
    assert places == set(kept), "nothing of it has landed yet, or not all"
    watch.note(run.retry("made", "many"))
    assert [each.state for each in run.tasks()] == ["success", "success", "failed"], run.log
    watch.clean()


def test_the_query_of_an_input_images_address_goes_to_its_host_and_to_the_gateway_alone(
    watch: Watch,
    gateway: str,
    tls_host: tuple[web.Host, list[str | None]],
    internet: web.Internet,
) -> None:
    host, _ = tls_host
    host.routes["/a.png"] = web.answer(body=watch.noise().read_bytes())
    internet.names["pictures.test"], internet.hosts[web.PUBLIC] = [[web.PUBLIC]], host.port
    address = f"https://pictures.test:{host.port}/a.png?{watch.canaries.query}"
    with DAG("private", schedule=None) as dag:
        for task_id in ("made", "refused"):
            GeminiImageEditOperator(
                task_id=task_id, prompt=watch.canaries.prompt, image=address, geminiimg_conn_id=gateway, **FAST
            )
    refusal = {"message": f"can't read {address}", "error": {"message": json.dumps({"url": address})}}
    watch.sandbox.faults({"route": f"{gateway}.submit"}, {"route": f"{gateway}.submit", "status": 400, "body": refusal})
    run = watch.run(dag)
    assert sorted(each.state or "" for each in run.tasks()) == ["failed", "success"], run.log
    assert {path for path, _ in host.requests} == {f"/a.png?{watch.canaries.query}"}
    watch.clean()


@pytest.mark.parametrize("how", [{"deferrable": False}, {"deferrable": True}, {"mode": "reschedule"}], ids=str)
def test_a_job_that_a_sensor_waits_for_leaves_no_canary(watch: Watch, gateway: str, how: dict[str, Any]) -> None:
    run = watch.run(submit_and_wait(watch, gateway, **how))
    assert run.state == "success", run.log
    watch.clean()


def test_retries_clears_and_other_prompts_leave_no_canary(watch: Watch, gateway: str) -> None:
    watch.sandbox.faults(route="download", status=500, times=3)
    run = watch.run(one_task(watch, gateway))
    other = Canaries().prompt
    watch.canaries.add("another prompt", other, argument=True)
    watch.note(run.retry(dag=one_task(watch, gateway, prompt=other)))
    assert run.state == "success", run.log
    watch.note(run.clear("made"))
    watch.note(run.clear("made", dag=one_task(watch, gateway, file_name="copy")))
    assert len(watch.sandbox.ledger()) == 2
    watch.clean()


@pytest.mark.parametrize("fate", ["crash", "timeout"])
def test_a_trigger_that_is_lost_leaves_no_canary(watch: Watch, gateway: str, fate: Literal["crash", "timeout"]) -> None:
    run = watch.run(one_task(watch, gateway, {"deferrable": True}), triggers=[fate] * 3)
    assert run.state == "success", run.log
    watch.clean()


# Refusals and failures, each with an answer that says too much


def test_a_refusal_at_the_submit_that_echoes_the_prompt_leaves_no_canary(
    watch: Watch, gateway: str, mode: dict[str, Any]
) -> None:
    watch.sandbox.settings(honour_async=False, latency=0)
    watch.sandbox.faults(route=f"{gateway}.submit", outcome="refused_echo")
    error = outcome(watch.run(one_task(watch, gateway, mode)))
    assert isinstance(error, ContentRefusedError)
    assert "[prompt]" in str(error)
    watch.clean()


def test_a_refusal_at_a_poll_that_echoes_the_prompt_leaves_no_canary(
    watch: Watch, gateway: str, mode: dict[str, Any]
) -> None:
    watch.sandbox.faults(route=f"{gateway}.submit", outcome="refused_echo")
    error = outcome(watch.run(one_task(watch, gateway, mode)))
    assert isinstance(error, ContentRefusedError)
    assert "[prompt]" in str(error)
    watch.clean()


@pytest.mark.parametrize("deferrable", [False, True], ids=["poking", "deferred"])
def test_a_refusal_that_a_sensor_sees_leaves_no_canary(watch: Watch, gateway: str, deferrable: bool) -> None:
    watch.sandbox.faults(route=f"{gateway}.submit", outcome="refused_echo")
    error = outcome(watch.run(submit_and_wait(watch, gateway, deferrable=deferrable)))
    assert isinstance(error, ContentRefusedError)
    watch.clean()


@pytest.mark.parametrize("kind", ["failed", "bare_failed", "no_image", "wrong_size"])
def test_other_ends_of_a_job_leave_no_canary(watch: Watch, gateway: str, kind: str) -> None:
    watch.sandbox.faults(route=f"{gateway}.submit", outcome=kind)
    run = watch.run(one_task(watch, gateway, on_mismatch="fail"))
    assert run.state == "failed", run.log
    watch.clean()


def chatter(watch: Watch) -> str:
    """A sentence with every secret in it, as a debug page of a gateway might say it."""
    canaries = watch.canaries
    link = f"https://storage.example.com/out/picture.png?{canaries.query}"
    return f"key {canaries.key} said {canaries.prompt} about {link} with {json.dumps(canaries.prompt)}"


def test_no_answer_to_a_submit_that_says_too_much_leaves_a_canary(watch: Watch, gateway: str) -> None:
    said = chatter(watch)
    shapes = [
        {
            "errorCode": "X",
            "message": said,
            "details": json.dumps({"m": said}),
            "error": {"message": said, "code": said},
        },
        said,
        f"<html><body>{said}</body></html>",
    ]
    statuses = (200, 400, 401, 403, 404, 408, 429, 500, 522)
    for status in statuses:
        for body in shapes:
            watch.sandbox.faults(route=f"{gateway}.submit", status=status, body=body)
            with pytest.raises(GeminiImageError) as caught:
                GeminiImageHook(gateway).submit(prompt=watch.canaries.prompt)
            watch.errors.append(caught.value)
    assert len(watch.sandbox.calls(f"{gateway}.submit")) == len(statuses) * len(shapes)
    watch.clean()


@pytest.mark.parametrize("status", [200, 404, 502])
def test_no_answer_to_a_poll_that_says_too_much_leaves_a_canary(
    watch: Watch, gateway: str, mode: dict[str, Any], status: int
) -> None:
    said = chatter(watch)
    body = {"message": said, "error": {"message": said, "code": said}}
    watch.sandbox.faults(route=f"{gateway}.status", status=status, body=body, times=4)
    assert watch.run(one_task(watch, gateway, mode)).state == "success"
    watch.clean()


@pytest.mark.parametrize("waiting", ["worker", "trigger", "sensor"])
def test_no_end_of_a_job_that_says_too_much_leaves_a_canary(watch: Watch, gateway: str, waiting: str) -> None:
    said = chatter(watch)
    reason = {"code": said, "message": said, "type": said}
    watch.sandbox.faults(
        route=f"{gateway}.status",
        body={
            "aiRecord": {"status": "FAILURE", "aiRecordDetail": {"resultObject": reason}},
            "data": {"status": "failed", "error": reason},
        },
        times=9,
    )
    mode = {"deferrable": waiting == "trigger"}
    run = watch.run(submit_and_wait(watch, gateway) if waiting == "sensor" else one_task(watch, gateway, mode))
    assert outcome(run).gateway_message
    watch.clean()


@pytest.mark.parametrize("route", ["submit", "status", "upload", "check"])
def test_a_401_that_echoes_the_key_leaves_no_canary(watch: Watch, gateway: str, route: str) -> None:
    said = f"Incorrect API key provided: {watch.canaries.key}. Authorization: Bearer {watch.canaries.key}"
    if gateway == "apimaster" and route == "upload":
        route = "submit"  # nothing is uploaded there
    body = {"message": said, "error": {"message": said}}
    watch.sandbox.faults(route=f"{gateway}.{route}", status=401, body=body, times=5)
    if route == "check":
        works, why = GeminiImageHook(gateway).test_connection()
        watch.errors.append(RuntimeError(why))
        assert not works
    else:
        noise = str(watch.noise())
        with DAG("private", schedule=None) as dag:
            GeminiImageEditOperator(
                task_id="made", prompt=watch.canaries.prompt, image=noise, geminiimg_conn_id=gateway, **FAST
            )
        assert isinstance(outcome(watch.run(dag)), AuthenticationError)
    watch.clean()


@pytest.mark.parametrize("route", ["submit", "status", "download"])
def test_a_dropped_connection_leaves_no_canary(watch: Watch, gateway: str, mode: dict[str, Any], route: str) -> None:
    watch.sandbox.faults(route=route if route == "download" else f"{gateway}.{route}", drop=True, times=5)
    run = watch.run(one_task(watch, gateway, mode))
    assert run.state == ("success" if route == "status" and mode["deferrable"] else "failed"), run.log
    watch.clean()


def test_an_expired_link_leaves_no_canary(watch: Watch, gateway: str, mode: dict[str, Any]) -> None:
    watch.sandbox.settings(link_seconds=0)
    assert isinstance(outcome(watch.run(one_task(watch, gateway, mode))), LinkExpiredError)
    watch.clean()


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 500}, {"body": "<html>"}, {"status": 302}], ids=str)
def test_a_download_that_fails_leaves_no_canary(watch: Watch, gateway: str, fault: dict[str, Any]) -> None:
    elsewhere = {"Location": f"https://127.0.0.1:9/{watch.canaries.key[:20]}.png?{watch.canaries.query}"}
    watch.sandbox.faults(route="download", times=9, headers=elsewhere, **fault)
    assert watch.run(one_task(watch, gateway)).state == "failed"
    watch.clean()


def test_the_link_of_an_answer_without_a_job_id_lies_in_its_record_until_the_image_has_landed(watch: Watch) -> None:
    conn_id = watch.connection("apimaster")
    watch.sandbox.settings(honour_async=False, latency=0)
    watch.sandbox.faults(route="download", status=503, times=3)
    run = watch.run(one_task(watch, conn_id))
    [record] = (watch.folder / "root/ledger").rglob("1.json")
    [link] = watch.sandbox.links()
    written = json.loads(record.read_text())
    assert (written["state"], written["links"]) == ("answered", [link])
    assert {leak.where for leak in watch.leaks()} == {str(record)}

    watch.note(run.retry())
    assert run.state == "success", run.log
    assert json.loads(record.read_text())["state"] == "landed"
    watch.clean()


# Bad input, with the canaries in it


def wrong_arguments(watch: Watch) -> list[dict[str, Any]]:
    query, prompt = watch.canaries.query, watch.canaries.prompt
    image = watch.noise(argument=True).read_bytes()
    inline = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    addresses = [
        f"https://127.0.0.1:9/a.png?{query}",
        f"https://no-such-host.invalid/a.png?{query}",
        f"http://example.com/a.png?{query}",
        f"https://user:{query}@127.0.0.1:9/a.png",
        f"cdn.example.com/a.png?{query}",
        f"//cdn.example.com/a.png?{query}",
        f"?{query}",
        f"https://example.com/../a.png?{query}",
        f"HTTPS://127.0.0.1:9/a.png?{query}",
        f"https://127.0.0.1:9/a b.png?{query}",
        f"https://127.0.0.1:9/a.png#{query}",
        f"https://[half/a.png?{query}",
        f"gs://bucket/a.png?{query}",
        f"strange://bucket/a.png?{query}",
        f"['https://example.com/a.png?{query}']",
        inline,
    ]
    uris = [{"uri": f"https://example.com/{number}.png?{query}"} for number in (1, 2)]
    images = [*addresses, {"images": uris}, {"images": [], "note": query}, {"uri": [query]}, addresses[:1], {query}]
    prompts = ["", [prompt], {"text": prompt}, prompt.encode(), prompt + "\ud800", object()]
    return [
        *({"image": value} for value in images),
        *({"reference_images": [value]} for value in addresses),
        *({"prompt": value} for value in prompts),
        {"image": str(watch.folder / "absent.png")},
        {"image": str(Path(__file__))},
    ]


def test_bad_arguments_are_refused_without_a_canary(watch: Watch) -> None:
    conn_id = watch.connection("onemin")
    wrong = wrong_arguments(watch)
    good = {"prompt": watch.canaries.prompt, "image": str(watch.folder / "inputs/noise.png")}
    for values in wrong:
        try:
            GeminiImageEditOperator(task_id="parsed", geminiimg_conn_id=conn_id, **{**good, **values})
        except GeminiImageError as error:  # its frames are those of the DAG's source
            watch.errors.append(RuntimeError("".join(traceback.format_exception(error))))
        with pytest.raises(GeminiImageError) as caught:
            GeminiImageHook(conn_id).submit(operation="edit", **{**good, **values})
        watch.errors.append(caught.value)
    with DAG("private", schedule=None) as dag:
        for number, values in enumerate(wrong[::8]):
            made = GeminiImageEditOperator(task_id=f"made{number}", geminiimg_conn_id=conn_id, **good)
            for name, value in values.items():
                setattr(made, name, value)  # as if a template had rendered to it
    run = watch.run(dag)
    assert {each.state for each in run.tasks()} == {"failed"}
    assert watch.sandbox.ledger() == []
    watch.clean()


def wrong_connections(watch: Watch) -> list[dict[str, Any]]:
    key = watch.canaries.key
    return [
        {"password": f"{key}\u00e9"},
        {"password": f"{key}\n{key}"},
        {"host": f"https://user:{key}@api.example.com"},
        {"host": f"https://api.example.com/?key={key}"},
        {"host": "http://api.example.com"},
        {"extra": {"gateway": "nobody", "api_key": key}},
        {"extra": {"gateway": "1min", "requests_per_minute": "many"}},
        {"extra": {}},
        {"conn_type": "http"},
    ]


@pytest.mark.filterwarnings("default:Connection")
def test_a_wrong_connection_is_refused_without_a_canary(watch: Watch) -> None:
    for fields in wrong_connections(watch):
        conn_id = watch.connection("onemin", **fields)
        with pytest.raises(GeminiImageError) as caught:
            GeminiImageHook(conn_id).check()
        watch.errors.append(caught.value)
        works, why = GeminiImageHook(conn_id).test_connection()
        assert not works
        watch.errors.append(RuntimeError(why))
    watch.note(watch.run(one_task(watch, conn_id)))
    watch.clean()


# The hook


def test_the_hook_alone_leaves_no_canary(watch: Watch, gateway: str) -> None:
    prompt, noise = watch.canaries.prompt, str(watch.noise())
    with DAG("private", schedule=None) as dag:

        @task
        def made() -> int:
            hook = GeminiImageHook(gateway)
            hook.check()
            job = hook.submit(prompt=prompt, image=noise, reference_images=[noise])
            done = hook.wait(str(job.job_id), poll_interval=0.02)
            print(job, done, hook, hook.connection())
            return len(hook.download(done.images[0]))

        made()
    run = watch.run(dag)
    assert run.state == "success", run.log
    assert run.task("made").value > 1000
    watch.clean()


# What the switch for prompts opens, and what it does not


def test_recorded_prompts_are_in_ledger_and_sidecar_and_nowhere_else(
    watch: Watch, gateway: str, mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__RECORD_PROMPTS", "True")
    run = watch.run(one_task(watch, gateway, mode, output_path=str(watch.folder / "out"), file_name="fox"))
    assert run.state == "success", run.log
    [record] = (watch.folder / "root/ledger").rglob("1.json")
    sidecar = watch.folder / "out/fox.json"
    for path in (record, sidecar):
        assert json.loads(path.read_text())["prompt"] == watch.canaries.prompt
    leaks = watch.leaks()
    assert {leak.canary for leak in leaks} == {"prompt"}
    assert {leak.where for leak in leaks} == {str(record), str(sidecar)}


# The search itself


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper case": str.upper,
    "16 characters": lambda text: text[5:21],
    "the last 16": lambda text: text[-16:],
    "percent-encoded": lambda text: quote(text, safe=""),
    "form-encoded": quote_plus,
    "JSON": lambda text: json.dumps({"a": text}),
    "JSON in JSON": lambda text: json.dumps({"a": json.dumps({"b": text})}),
    "HTML": html.escape,
    "repr": repr,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 after 1": lambda text: base64.b64encode(b"1" + text.encode() + b"and more").decode(),
    "base64 after 2": lambda text: base64.urlsafe_b64encode(b"12" + text.encode() + b"and").decode(),
}


@pytest.mark.parametrize("name", ["key", "prompt", "query"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_search_knows_every_canary_in_every_encoding(name: str, encoding: str) -> None:
    canaries = Canaries()
    said = f"before {ENCODINGS[encoding](getattr(canaries, name))} after".encode()
    assert [leak.canary for leak in canaries.leaks([Text("here", said)])] == [name]
    assert not Canaries().leaks([Text("here", said)])


def plant_in_exception(watch: Watch, secret: str) -> None:
    def variable() -> None:
        hidden = secret  # noqa: F841
        raise RuntimeError

    namespace: dict[str, Any] = {}
    exec(compile("def call(function, held):\n    function()", "planted.py", "exec"), namespace)
    for raising in (lambda: namespace["call"](variable, secret), lambda: int(secret)):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            raising()
        watch.errors.append(caught.value)


def plant_in_database(watch: Watch, secret: str) -> None:
    with sqlite3.connect(HOME / "airflow.db") as connection:
        for table in ("planted", "dag_code_of_mine"):
            connection.execute(f"CREATE TABLE {table} (a TEXT, b BLOB)")
        connection.execute("INSERT INTO planted VALUES ('x', ?)", (zlib.compress(secret.encode()),))
        connection.execute("INSERT INTO dag_code_of_mine VALUES (?, NULL)", (json.dumps(secret),))


def plant_in_bucket(watch: Watch, secret: str) -> None:
    import boto3

    name = os.environ["AIRFLOW__GEMINIIMG__ROOT"].split("/")[2]
    boto3.client("s3").put_object(Bucket=name, Key="root/a", Body=secret.encode())
    boto3.client("s3").put_object(Bucket=name, Key="root/b", Metadata={"a": base64.b64encode(secret.encode()).decode()})


def plant_in_logs(watch: Watch, secret: str) -> None:
    logging.getLogger("botocore.parsers").debug("body: %s", secret)
    logging.getLogger("new.logger").warning("by extra", extra={"held": secret})
    structlog.get_logger("task").debug("event", held=secret)
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        logging.getLogger("airflow.task").exception("by exception")
        structlog.get_logger("task").exception("by exception")


def plant_in_output(watch: Watch, secret: str) -> None:
    print(secret)
    os.write(2, secret.encode())


def plant_in_files(watch: Watch, secret: str) -> None:
    (watch.folder / "root").mkdir(exist_ok=True)
    (watch.folder / "root/record.json").write_text(json.dumps({"deep": {"a": [secret]}}))
    (watch.folder / "root" / quote(secret, safe="")[:100]).touch()


PLANTS: dict[str, tuple[Callable[[Watch, str], None], set[str]]] = {
    "logs": (plant_in_logs, {"log of botocore.parsers", "log of new.logger", "log of task", "log of airflow.task"}),
    "output": (plant_in_output, {"stdout", "stderr"}),
    "database": (plant_in_database, {"table planted", "table dag_code_of_mine"}),
    "files": (plant_in_files, {"record.json", "name of"}),
    "bucket": (plant_in_bucket, {"s3://", "head of s3://"}),
    "exceptions": (plant_in_exception, {"text", "traceback", "pickle", "planted.py:call"}),
}


@pytest.mark.parametrize("place", PLANTS)
@pytest.mark.parametrize("name", ["key", "prompt"])
def test_a_canary_that_is_planted_is_found(request: pytest.FixtureRequest, watch: Watch, place: str, name: str) -> None:
    if place == "bucket":
        request.getfixturevalue("s3_root")
    plant, places = PLANTS[place]
    plant(watch, getattr(watch.canaries, name))
    try:
        found = {leak.where for leak in watch.leaks() if leak.canary == name}
    finally:
        with sqlite3.connect(HOME / "airflow.db") as connection:
            for table in ("planted", "dag_code_of_mine"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")
    assert not [place for place in places if not any(place in where for where in found)], found


def test_airflows_own_copies_excuse_arguments_and_nothing_else(watch: Watch) -> None:
    watch.connection("onemin")
    watch.run(one_task(watch, "onemin", file_name=watch.canaries.key[:32].replace("/", "-")))
    copies = [text for text in search.database(HOME / "airflow.db") if text.copy]
    assert {text.where for text in copies} == {f"table {name}" for name in search.AIRFLOWS_COPIES}
    everything = [Text(text.where, text.data) for text in copies]
    assert "prompt" in {leak.canary for leak in watch.canaries.leaks(everything)}
    assert {leak.canary for leak in watch.canaries.leaks(copies)} == {"key"}
