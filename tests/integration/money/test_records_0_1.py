"""Records, plans and entries that version 0.1 wrote: this version does with them what that one did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.__main__ import main
from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    GeminiImageError,
    IncompleteError,
    LinkExpiredError,
    NoImageError,
    OutcomeUnknownError,
)
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.matrix import read_records, weigh
from tests.harness.old_records import IMAGES, ROOT, kept_by_airflow, put_back, take_away, take_up

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

FAST = {"resolution": "512", "poll_interval": 0.02, "deferrable": False}
ANIMALS = ("fox", "wolf", "bear", "owl")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_geminiimg.core.purchase import lifecycle

    monkeypatch.setattr(lifecycle, "LOOK_AGAIN", 0.02)


@pytest.fixture(autouse=True)
def old_root(
    sandbox: Sandbox, onemin: str, apimaster: str, connect: Callable[..., str], s3: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    connect("capped", **sandbox.connection("apimaster", price_base=0.05, price_currency="USD", daily_budget=5))
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", ROOT)
    put_back(sandbox)
    yield
    take_away()


# The DAGs, as they were


def single(name: str, conn: str = "onemin", **arguments: Any) -> DAG:
    with DAG(name, schedule=None) as dag:
        given = {"task_id": "made", "prompt": f"a fox, {name}", "geminiimg_conn_id": conn, **FAST, **arguments}
        GeminiImageGenerateOperator(**given)
    return dag


def edited(name: str, conn: str) -> DAG:
    with DAG(name, schedule=None) as dag:
        given = {"prompt": "make it winter", "image": f"{IMAGES}/landed.png", "geminiimg_conn_id": conn, **FAST}
        GeminiImageEditOperator(task_id="made", **given)
    return dag


def mapped(name: str, conn: str) -> DAG:
    with DAG(name, schedule=None) as dag:
        partial = GeminiImageGenerateOperator.partial(task_id="made", geminiimg_conn_id=conn, **FAST)
        partial.expand(prompt=["a mapped fox", "a mapped wolf"])
    return dag


def reused(name: str, conn: str) -> DAG:
    with DAG(name, schedule=None) as dag:
        given = {"prompt": "a fox, reused", "geminiimg_conn_id": conn, "reuse": "dag", **FAST}
        first = GeminiImageGenerateOperator(task_id="made", **given)
        first >> GeminiImageGenerateOperator(task_id="copied", **given)
    return dag


def returned(name: str, conn: str) -> DAG:
    with DAG(name, schedule=None) as dag:

        @task.gemini_image(geminiimg_conn_id=conn, **FAST)
        def made() -> Any:
            return {"prompt": "something else by now"}

        made()
    return dag


def batch(name: str, conn: str, requests: Any, **arguments: Any) -> DAG:
    with DAG(name, schedule=None) as dag:
        given = {"resolution": "512", "poll_interval": 0.02, "geminiimg_conn_id": conn, **arguments}
        GeminiImageBatchOperator(task_id="made", requests=requests, **given)
    return dag


def named_rows() -> list[dict[str, Any]]:
    rows = [{"prompt": "a fox in a batch", "sku": "A-1"}, {"prompt": "a wolf in a batch", "sku": "B-2"}]
    return [*rows, *rows[:1]]


@dataclass(frozen=True)
class Left:
    """What was left of a DAG, and what that version did next.

    :param states: of the records, an hour later, as ``jobs list`` names them.
    :param make: the DAG, given its name and connection.
    :param arguments: of `make`.
    :param after_retry: the error of a retry; ``None``: it succeeds.
    :param after_clear: likewise.
    :param buys: how many submits a retry sends, and a Clear: what is known to be unpaid.
    """

    states: str
    conn: str = "onemin"
    make: Callable[..., DAG] = single
    arguments: dict[str, Any] = field(default_factory=dict)
    after_retry: type[GeminiImageError] | None = None
    after_clear: type[GeminiImageError] | None = None
    buys: tuple[int, int] = (0, 0)


def never(states: str, error: type[GeminiImageError], **more: Any) -> Left:
    return Left(states, after_retry=error, after_clear=error, **more)


LEFT = {
    "landed": Left("landed", arguments={"output_path": IMAGES, "file_name": "landed"}),
    "landed_by_apimaster": Left("landed", "apimaster"),
    "mismatched": Left("landed"),
    "with_prompt": Left("landed"),
    "copied": Left("landed", arguments={"output_path": f"{IMAGES}/again", "file_name": "copied-again"}),
    "renamed": Left(
        "landed landed",
        arguments={"output_path": IMAGES, "file_name": "renamed", "prompt": "a wolf, renamed"},
    ),
    "reused": Left("landed landed", make=reused),
    "edited": Left("landed", "apimaster", edited),
    "mapped": Left("landed landed", make=mapped),
    "submitted_to_onemin": Left("to-collect"),
    "submitted_to_apimaster": Left("to-collect", "apimaster"),
    "answered": Left("to-collect", "apimaster"),
    "spooled": Left("to-collect", "apimaster"),
    "returned": Left("to-collect", make=returned, buys=(0, 1)),
    "returned_and_landed": Left("landed", make=returned, buys=(0, 1)),
    "refused_for_free": Left("failed", after_retry=AuthenticationError, buys=(0, 1)),
    "busy": Left("failed", "apimaster", buys=(1, 1)),
    "paid_for_nothing": never("failed", NoImageError),
    "intent": never("unknown", OutcomeUnknownError),
    "unknown": never("unknown", OutcomeUnknownError),
    "bought_again": Left("unknown landed"),
    "vanished": Left("unknown"),
    "settled_as_unpaid": Left("failed", buys=(1, 1)),
    "settled_as_lost": never("failed", LinkExpiredError),
    "forgotten": Left("", buys=(1, 1)),
    "paid_twice": Left("landed", "apimaster"),
    "capped": Left("landed", "capped"),
    "batch_landed": Left(
        "landed landed",
        make=batch,
        arguments={"requests": named_rows(), "file_name": "{sku}", "output_path": IMAGES},
    ),
    "batch_twice": Left("landed landed", "apimaster", batch, {"requests": [{"prompt": "a fox, twice", "n": 2}]}),
    "batch_broken": never(
        "failed landed to-collect unknown",
        IncompleteError,
        conn="apimaster",
        make=batch,
        arguments={"requests": [f"a batch's {animal}" for animal in ANIMALS], "max_concurrency": 1},
        buys=(0, 1),
    ),
}


def dag_of(name: str, **changes: Any) -> DAG:
    left = LEFT[name]
    return left.make(name, left.conn, **{**left.arguments, **changes})


def submits(sandbox: Sandbox) -> int:
    return sum(call["route"].endswith(".submit") for call in sandbox.calls())


def errors(run: Run) -> list[type[BaseException | None]]:
    found = [made.error for made in run.tasks() if made.error is not None]
    return [type(error.__cause__ if isinstance(error, AirflowFailException) else error) for error in found]


def goes_on(name: str, sandbox: Sandbox, expected: type[GeminiImageError] | None, buys: int, **how: Any) -> Run:
    before, landed_before = submits(sandbox), set(landed_records(name))
    run = take_up(dag_of(name), **how)
    assert errors(run) == ([] if expected is None else [expected]), run.log
    assert submits(sandbox) - before == buys
    assert landed_before <= set(landed_records(name))
    assert weigh(sandbox, ROOT, dag_id=name).unknown == (expected is OutcomeUnknownError or name == "batch_broken")
    return run


def landed_records(name: str) -> list[str]:
    """The keys of the records of a DAG that have landed."""
    return [found.record.key for found in read_records(ROOT, name) if found.record.state == "landed"]


@pytest.mark.parametrize("name", LEFT)
def test_a_retry_goes_on_where_the_old_version_stopped(airflow: AirflowHarness, sandbox: Sandbox, name: str) -> None:
    left = LEFT[name]
    goes_on(name, sandbox, left.after_retry, left.buys[0])


@pytest.mark.parametrize("name", LEFT)
def test_a_clear_goes_on_where_the_old_version_stopped(airflow: AirflowHarness, sandbox: Sandbox, name: str) -> None:
    left = LEFT[name]
    goes_on(name, sandbox, left.after_clear, left.buys[1], cleared=True)


def test_an_image_that_is_asked_for_elsewhere_is_copied(airflow: AirflowHarness, sandbox: Sandbox) -> None:
    before = submits(sandbox)
    dag = dag_of("landed", output_path=f"{IMAGES}/elsewhere", file_name="copy")
    value = take_up(dag, cleared=True).task("made").value
    assert value["images"][0]["uri"] == f"{IMAGES}/elsewhere/copy.png"
    assert submits(sandbox) == before


def test_another_prompt_after_a_clear_is_bought_and_takes_no_name_of_an_older_image(
    airflow: AirflowHarness, sandbox: Sandbox
) -> None:
    before = submits(sandbox)
    value = take_up(dag_of("landed", prompt="a bear, landed"), cleared=True).task("made").value
    assert value["images"][0]["uri"] == f"{IMAGES}/landed-2.png"
    assert submits(sandbox) == before + 1


def test_a_name_that_an_old_task_has_claimed_stays_its_own(airflow: AirflowHarness, sandbox: Sandbox) -> None:
    before = submits(sandbox)
    taken = dag_of("landed_by_apimaster", output_path=IMAGES, file_name="landed", prompt="another image")
    run = take_up(taken, cleared=True)
    assert "is taken" in run.log
    assert (errors(run) != [], submits(sandbox)) == (True, before)


def test_another_task_of_the_dag_finds_an_old_image_in_the_index(airflow: AirflowHarness, sandbox: Sandbox) -> None:
    before = submits(sandbox)
    dag = single("reused", task_id="third", prompt="a fox, reused", reuse="dag")
    value = airflow.run_dag(dag, run_id="another").task("third").value
    assert value["images"][0]["uri"].startswith(f"{ROOT}/images/reused/another/third/")
    assert submits(sandbox) == before


def test_an_old_budget_is_spent_further(airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str]) -> None:
    connect("capped", **sandbox.connection("apimaster", price_base=0.05, price_currency="USD", daily_budget=0.08))
    before = submits(sandbox)
    run = airflow.run_dag(single("capped", "capped", prompt="one too many"), run_id="another")
    assert "0.05" in str(run.task("made").error)
    assert submits(sandbox) == before


def test_collect_lands_all_that_was_left_behind_and_buys_nothing(airflow: AirflowHarness, sandbox: Sandbox) -> None:
    before = submits(sandbox)
    with DAG("collect", schedule=None) as dag:
        GeminiImageCollectOperator(task_id="made")
    report = airflow.run_dag(dag, run_id="another").task("made").value
    left = Counter(state for each in LEFT.values() for state in each.states.split())
    # What vanished is known again, and so is the job that was perhaps paid for, too.
    assert report["landed"] == left["to-collect"] + 2, report
    assert report["errors"] == 0
    assert submits(sandbox) == before
    balance = weigh(sandbox, ROOT)
    assert balance.lost == 0, balance


def test_jobs_list_and_jobs_show_read_each_record(capsys: pytest.CaptureFixture[str], sandbox: Sandbox) -> None:
    assert main(["jobs", "list", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states: dict[str, list[str]] = {}
    for line in listed:
        states.setdefault(line["key"].split("/")[2], []).append(line["state"])
    expected = {name: sorted(left.states.split()) for name, left in LEFT.items() if left.states}
    assert {name: sorted(found) for name, found in states.items()} == expected
    for line in listed:
        assert main(["jobs", "show", line["key"]]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["state"], shown["record"]["key"]) == (line["state"], line["key"])


def test_jobs_resolve_and_purge_take_old_records(capsys: pytest.CaptureFixture[str], sandbox: Sandbox) -> None:
    key = "ledger/default/unknown/run/made/-1/0/1.json"
    assert main(["jobs", "resolve", key, "--lost"]) == 0
    assert main(["jobs", "forget", key]) == 0
    assert main(["jobs", "purge", "--older-than", "0.01"]) == 0
    removed = capsys.readouterr().out
    for name in ("landed", "renamed", "batch_landed", "returned_and_landed"):
        assert f"ledger/default/{name}/run/made/-1/" in removed
    for name in ("submitted_to_onemin", "answered", "intent", "vanished", "batch_broken", "paid_twice"):
        assert f"ledger/default/{name}/" not in removed


@pytest.mark.usefixtures("_airflow_home")
def test_the_gallery_shows_each_old_record_and_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.api_fastapi.app import create_app, get_auth_manager, purge_cached_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    monkeypatch.setenv("AIRFLOW__GEMINIIMG__GALLERY_ROOTS", IMAGES)
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "s" * 32)
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "j" * 64)
    purge_cached_app()
    client = TestClient(create_app("core"), base_url="http://testserver/geminiimg/")
    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="admin", role="ADMIN"))
    client.headers["Authorization"] = f"Bearer {token}"
    for name, left in LEFT.items():
        if not left.states:
            continue
        page = client.get(f"api/dags/{name}/runs/run/images").json()["items"]
        assert sorted(item["status"] for item in page) == sorted(left.states.split()), name
        counted = client.get(f"api/dags/{name}/runs/run/summary").json()
        assert counted["statuses"] == dict(Counter(left.states.split()))
        for image in (image for item in page for image in item["images"]):
            assert client.get(image["href"]).status_code == 200
            assert client.get(image["thumb"]).headers["content-type"] == "image/webp"
    purge_cached_app()


def test_every_kind_of_file_under_the_root_is_among_them() -> None:
    from tests.harness.old_records import FOLDER

    kinds = {path.name for path in (FOLDER / "objects" / "geminiimg").iterdir()}
    assert kinds == {
        "batches", "budgets", "forgotten", "images", "index", "ledger", "names", "returned", "spool", "thumbs",
    }  # fmt: skip
    assert {each["dag_id"] for name in LEFT for each in kept_by_airflow(name)} == set(LEFT)
