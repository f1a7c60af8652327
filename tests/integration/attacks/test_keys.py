"""The API key, hunted for in everything that a task leaves behind; and texts that ask Airflow's templates for it.

Each attack goes through an operator. What must stay true: whoever holds what a task wrote, raised, returned or handed
on does not hold the key; a text that comes from outside is a text, whatever it says in braces.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger
from tests.harness import AIRFLOW, attacks
from tests.harness import canaries as search
from tests.harness import forbidden as web
from tests.harness.attacks import FromTask, Target, outcome, returned
from tests.harness.canaries import Canaries, Leak, Logs, Text
from tests.harness.matrix import read_records

if TYPE_CHECKING:
    from tests.harness.inprocess import Run

target, internet, forbidden = attacks.target, web.internet, web.forbidden
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)
DATABASE = Path(os.environ["AIRFLOW_HOME"]) / "airflow.db"


@dataclass
class Loot:
    """What a thief finds after tasks that ended well and badly, each in every way.

    :param operators: as they stood after their run.
    """

    target: Target
    canaries: Canaries
    runs: list[Run]
    operators: list[Any]
    logs: Logs

    @property
    def errors(self) -> list[BaseException]:
        return [made.error for run in self.runs for made in run.tasks() if made.error is not None]

    def has_no_key(self, *texts: Text) -> None:
        assert texts
        found = [leak for leak in self.canaries.leaks(texts) if leak.canary == "key"]
        assert not found, _told(found)


def _told(leaks: list[Leak]) -> str:
    return "\n".join(f"{leak.where}: …{leak.around!r}…" for leak in leaks[:5])


HELD: list[Any] = []


class Held(GeminiImageGenerateOperator):
    """Keeps itself, so that the test can look at it after its run."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        HELD.append(self)
        return super()._run(*args, **kwargs)


@pytest.fixture
def loot(target: Target, connect: Callable[..., str]) -> Loot:
    canaries = Canaries()
    gateway = {"onemin": "1min", "apimaster": "apimaster"}[target.conn_id]
    usual = target.sandbox.connection(gateway, key=canaries.key, requests_per_minute=100_000)
    connect(target.conn_id, **usual)
    HELD.clear()
    logs = Logs()
    with logs.recording():
        runs = [target.run_as(Held), target.run_as(Held, deferrable=True)]
        for fault in faults(target.conn_id, canaries.key):
            target.sandbox.faults(**fault)
            runs.append(target.run_as(Held))
    assert [run.state for run in runs] == ["success"] * 2 + ["failed"] * 6
    return Loot(target, canaries, runs, list(HELD), logs)


def faults(conn_id: str, key: str) -> list[dict[str, Any]]:
    """Failures of every kind, each with an answer that says the key."""
    said = {"message": f"Bearer {key}", "error": {"message": f"API-KEY: {key}", "code": key}, "errorCode": key}
    submit = f"{conn_id}.submit"
    return [
        {"route": submit, "status": 401, "body": said},
        {"route": submit, "status": 400, "body": said},
        {"route": submit, "status": 302, "headers": {"Location": f"https://127.0.0.1/{key}?key={key}"}},
        {"route": submit, "drop": True},
        {"route": f"{conn_id}.status", "status": 502, "body": said, "times": 5},
        {"route": "download", "status": 302, "headers": {"Location": f"https://127.0.0.1/{key}?key={key}"}},
    ]


def test_the_key_is_in_no_line_of_any_log(loot: Loot) -> None:
    assert {"httpx", "httpcore.http11"} <= loot.logs.loggers
    loot.has_no_key(*loot.logs.texts)


def test_the_key_is_in_no_exception_and_in_nothing_that_stands_behind_one(loot: Loot) -> None:
    errors = loot.errors
    assert len(errors) == 6
    texts = [text for error in errors for text in search.exception(error, lambda name: "skip")]
    loot.has_no_key(*texts)


def test_the_key_is_in_no_local_variable_of_any_frame_of_a_traceback(loot: Loot) -> None:
    for error in loot.errors:
        whole = traceback.TracebackException.from_exception(error, capture_locals=True)
        text = "".join(whole.format())
        assert "self = <Task(Held): made>" in text  # variables are in it
        loot.has_no_key(Text("a traceback with local variables", text.encode()))


def pickled(value: Any) -> bytes:
    """A pickle that goes on where a plain one gives up: locks are left out."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: Any) -> str | None:
            return "a lock" if type(each).__name__ in ("lock", "RLock") else None

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def test_the_key_is_in_no_pickle(loot: Loot) -> None:
    hook = GeminiImageHook(loot.target.conn_id)
    trigger = GeminiImageJobTrigger(loot.target.conn_id, "job-1", "model", 0.0, 0.0, 0.0)
    assert hook.check() is not None  # it has held the key by now, and let it go
    assert len(loot.operators) == len(loot.runs) + 1  # one was resumed
    for each in (hook, *loot.operators, *loot.errors, trigger.serialize(), trigger.__dict__):
        loot.has_no_key(Text(f"a pickle of {each!r}", pickled(each)))


async def test_what_holds_the_key_can_be_neither_pickled_nor_copied_nor_read(target: Target) -> None:
    hook = GeminiImageHook(target.conn_id)
    connection = await hook.aconnection()
    async with Transport(connection) as transport:
        for each in (connection, transport, transport._auth):
            assert connection.api_key not in f"{each} {each!r}"
            for way in (pickle.dumps, copy.deepcopy):
                with pytest.raises(TypeError):
                    way(each)


def test_the_key_is_in_no_repr(loot: Loot) -> None:
    hook = GeminiImageHook(loot.target.conn_id)
    records = read_records(loot.target.root.as_uri())
    assert len(records) == len(loot.runs)
    for each in (hook, hook.connection(), *loot.operators, *loot.errors, *records):
        loot.has_no_key(Text("a repr", f"{each!r} {each}".encode()))
    for each in (hook, *loot.operators, *loot.errors, *records):
        loot.has_no_key(Text("the attributes", repr(vars(each)).encode()))


@pytest.mark.parametrize(
    ("table", "holds"),
    [
        (search.RENDERED_FIELDS, b"a red fox"),
        ("xcom_v2" if AIRFLOW >= (3, 4) else "xcom", b"made.png"),
        ("serialized_dag", b"a red fox"),
        ("task_state_store", b"ledger/"),
        ("log", b"made"),
    ],
)
@ONE_GATEWAY
def test_the_key_is_in_no_table_of_airflow(loot: Loot, table: str, holds: bytes) -> None:
    tables = {text.where: text for text in search.database(DATABASE)}
    loot.has_no_key(*tables.values())
    assert holds in tables[f"table {table}"].data


def test_the_key_is_in_no_argument_of_a_trigger_and_in_no_event(loot: Loot) -> None:
    [deferred] = [made for run in loot.runs for made in run.tasks() if made.triggers]
    assert deferred.events
    loot.has_no_key(Text("a trigger", json.dumps([deferred.triggers, deferred.events]).encode()))


def test_the_key_is_in_no_file(loot: Loot) -> None:
    loot.has_no_key(*search.files(loot.target.folder))


# Braces


ASKING = (
    "{{ conn.onemin.password }}{{ conn.apimaster.password }} {{ var.value.get('x') }} {% raw %}{{ 1 + 1 }}{% endraw %} "
    "{# a note #} {{ ''.__class__.__mro__[1].__subclasses__() }} {% include '/etc/passwd' %} {{"
)


def sent(target: Target, count: int = 1) -> None:
    """Check that the gateway got the text as it stood, and neither the key nor anything else instead."""
    prompts = [entry["prompt"] for entry in target.sandbox.ledger()]
    assert prompts == [ASKING] * count


def unchanged(row: Any) -> Any:
    return row


def mapped(target: Target, **more: Any) -> Any:
    """A task that is to be mapped over its prompts."""
    usual = target.arguments(more)
    return GeminiImageGenerateOperator.partial(**{name: usual[name] for name in usual if name != "prompt"})


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_braces_in_a_prompt_that_a_task_returned_are_not_rendered(target: Target, deferrable: bool) -> None:
    run = target.generate(prompt=FromTask(ASKING), deferrable=deferrable)
    assert run.state == "success", run.log
    sent(target)
    run.clear("made")
    assert returned(run)["reused"] is True
    sent(target)


@ONE_GATEWAY
def test_braces_in_prompts_that_a_task_is_mapped_over_are_not_rendered(target: Target) -> None:
    with DAG("attacked", schedule=None) as dag:

        @task
        def upstream() -> list[str]:
            return [ASKING, ASKING]

        mapped(target).expand(prompt=upstream())
    run = target.airflow.run_dag(dag)
    assert run.state == "success", run.log
    sent(target, 2)


@pytest.mark.parametrize("how", ["all", "changed on the way", "one of them"])
@ONE_GATEWAY
def test_braces_in_keyword_arguments_that_a_task_is_mapped_over_are_not_rendered(target: Target, how: str) -> None:
    with DAG("attacked", schedule=None, params={"author": "author"}) as dag:

        @task
        def upstream() -> Any:
            row = {"prompt": ASKING, "variant": "{{ 1 + 1 }}", "file_name": "{{ conn.onemin.password }}"}
            return row if how == "one of them" else [row]

        found = upstream()
        rows = {"all": found, "changed on the way": found.map(unchanged), "one of them": [found]}[how]
        mapped(target, output_path=f"{target.folder}/{{{{ params.author }}}}").expand_kwargs(rows)
    run = target.airflow.run_dag(dag)
    assert run.state == "success", run.log
    sent(target)
    manifest = returned(run, 0)
    assert manifest["images"][0]["uri"] == f"{target.folder}/author/{{{{ conn.onemin.password }}}}.png"
    assert manifest["requested"]["variant"] == "{{ 1 + 1 }}"


@ONE_GATEWAY
def test_braces_in_keyword_arguments_that_the_author_wrote_are_rendered(target: Target) -> None:
    rows = [{"prompt": "a {{ params.animal }}", "file_name": "{{ params.animal }}-{{ ti.map_index }}"}] * 2
    with DAG("attacked", schedule=None, params={"animal": "fox"}) as dag:
        mapped(target).expand_kwargs(rows)
    run = target.airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert [entry["prompt"] for entry in target.sandbox.ledger()] == ["a fox"] * 2


@ONE_GATEWAY
def test_braces_in_keyword_arguments_that_a_sensor_is_mapped_over_are_not_rendered(target: Target) -> None:
    with DAG("attacked", schedule=None) as dag:

        @task
        def upstream() -> list[dict[str, str]]:
            return [{"job_id": "{{ conn.onemin.password }}"}]

        wait = {"geminiimg_conn_id": target.conn_id, "poke_interval": 0.02, "timeout": 0.1}
        GeminiImageJobSensor.partial(task_id="made", **wait).expand_kwargs(upstream())
    assert target.airflow.run_dag(dag).state == "failed"
    [call] = target.sandbox.calls("onemin.status")[:1]
    assert call["path"] == "/api/results/{{ conn.onemin.password }}"


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
@ONE_GATEWAY
def test_braces_in_what_a_template_renders_to_are_not_rendered_again(target: Target, native: bool) -> None:
    options = {"params": {"given": ASKING}, "render_template_as_native_obj": native}
    with DAG("attacked", schedule=None, **options) as dag:

        @task
        def upstream() -> str:
            return ASKING

        pulled = "{{ ti.xcom_pull('upstream') }}"
        made = [
            GeminiImageGenerateOperator(**target.arguments({"task_id": f"made{number}", "prompt": template}))
            for number, template in enumerate(("{{ params.given }}", "{{ dag_run.conf['given'] }}", pulled))
        ]
        upstream() >> made
    run = target.airflow.run_dag(dag, conf={"given": ASKING})
    assert run.state == "success", run.log
    sent(target, 3)


@ONE_GATEWAY
@pytest.mark.filterwarnings("default:The model")
@pytest.mark.parametrize("name", ["image", "reference_images", "output_path", "model", "variant", "geminiimg_conn_id"])
def test_braces_in_other_arguments_that_a_task_returned_are_not_rendered(target: Target, name: str) -> None:
    secret = GeminiImageHook(target.conn_id).connection().api_key
    text = "s3://{{ conn.onemin.password }}/{{ conn.onemin.password }}.png"
    value = {"images": [{"uri": text}]} if name in ("image", "reference_images") else text
    operator = GeminiImageEditOperator if name in ("image", "reference_images") else GeminiImageGenerateOperator
    beside = {"image": str(target.folder / "absent.png")} if name == "reference_images" else {}
    run = target.run_as(operator, **beside, **{name: FromTask(value)})
    assert secret not in run.log
    made = run.task("made")
    if made.state == "failed":
        assert secret not in str(outcome(run))
        assert target.sandbox.ledger() == []


@ONE_GATEWAY
def test_a_template_that_the_author_wrote_is_rendered_by_airflow_and_by_airflow_alone(target: Target) -> None:
    run = target.generate(prompt="a {{ params.given }} fox", given="{{ 1 + 1 }}")
    assert run.state == "success", run.log
    assert [entry["prompt"] for entry in target.sandbox.ledger()] == ["a {{ 1 + 1 }} fox"]
