"""An image ordered by one task and landed by another, in a real Airflow, against the sandbox over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout

from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    ContentRefusedError,
    LedgerError,
    LinkExpiredError,
    MismatchError,
    NoImageError,
    OutcomeUnknownError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator
from airflow_provider_geminiimg.sandbox import read_submission
from airflow_provider_geminiimg.sandbox.client import SAMPLE_KEY
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run, Task

pytestmark = pytest.mark.usefixtures("local_root")

MODELS = {"onemin": "gemini-3.1-flash-image-preview", "apimaster": "gemini-3.1-flash-image"}  # each one's default
DEFERRABLE = {"deferrable": True, "poll_interval": 0.02, "poke_interval": 0.02, "timeout": 30}
MODES: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "poke_interval": 0.02, "timeout": 30},
    "reschedule": {"mode": "reschedule", "poke_interval": 0.02, "timeout": 30},
    "deferrable": DEFERRABLE,
}


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODES[request.param]


@pytest.fixture
def conn_id(request: pytest.FixtureRequest, mode: dict[str, Any]) -> str:
    """A connection to one of the gateways for each mode: for what no gateway decides."""
    return str(request.getfixturevalue("apimaster" if mode.get("mode") == "reschedule" else "onemin"))


@pytest.fixture
def root(local_root: str) -> Path:
    return Path(local_root.removeprefix("file://"))


def pair(conn_id: str, mode: dict[str, Any], order: dict[str, Any] | None = None, **image: Any) -> DAG:
    """`order` submits, `image` waits."""
    with DAG("pair", schedule=None) as dag:
        submit = GeminiImageSubmitOperator(
            **{"task_id": "order", "prompt": "a red fox", "geminiimg_conn_id": conn_id, **(order or {})}
        )
        GeminiImageJobSensor(**{"task_id": "picture", "job": submit.output, **mode, **image})
    return dag


def bare(conn_id: str, mode: dict[str, Any], job_id: str, **more: Any) -> DAG:
    with DAG("bare", schedule=None) as dag:
        GeminiImageJobSensor(task_id="picture", job_id=job_id, geminiimg_conn_id=conn_id, **{**mode, **more})
    return dag


def path_of(manifest: dict[str, Any]) -> Path:
    return Path(manifest["images"][0]["uri"].removeprefix("file://"))


def landed(run: Run, sandbox: Sandbox, submissions: int = 1) -> dict[str, Any]:
    """The sensor's manifest, with its image in storage and so many submissions paid for."""
    image = run.task("picture")
    assert image.state == "success", run.log
    assert len(sandbox.ledger()) == submissions
    manifest: dict[str, Any] = image.value
    assert read_submission(path_of(manifest).read_bytes()) == sandbox.ledger()[-1]["number"]
    return manifest


def failed_with(run: Run, kind: type[BaseException], task_id: str = "picture") -> Task:
    found = run.task(task_id)
    assert found.state == "failed", found.log
    cause = found.error.__cause__ if isinstance(found.error, AirflowFailException) else found.error
    assert isinstance(cause, kind), found.log
    return found


def post_job(sandbox: Sandbox, conn_id: str) -> str:
    """Submit a job as somebody without this package would."""
    if conn_id == "onemin":
        wanted = {"prompt": "a lone wolf", "imageSize": "1K"}
        body = {"type": "IMAGE_GENERATOR", "model": MODELS[conn_id], "promptObject": wanted, "async": True}
        answer = httpx.post(f"{sandbox.onemin_url}/api/features", json=body, headers={"API-KEY": SAMPLE_KEY})
        return str(answer.json()["aiRecord"]["uuid"])
    answer = httpx.post(
        f"{sandbox.apimaster_url}/images/generations/async",
        json={"model": MODELS[conn_id], "prompt": "a lone wolf"},
        headers={"Authorization": f"Bearer {SAMPLE_KEY}"},
    )
    return str(answer.json()["data"][0]["task_id"])


def polls_fail(sandbox: Sandbox, conn_id: str, times: int = 1) -> None:
    """So that nobody finds the job done before that many polls, however slow the machine is."""
    sandbox.faults(route=f"{conn_id}.status", status=503, times=times)


def record_files(root: Path) -> list[Path]:
    return sorted((root / "ledger").rglob("[0-9]*.json"))


def change_record(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# The straight way


def test_a_sensor_lands_what_a_submit_ordered_where_the_submit_said(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    polls_fail(sandbox, geminiimg_conn_id)
    where = {"output_path": str(tmp_path / "out"), "file_name": "fox", "aspect_ratio": "16:9"}
    run = airflow.run_dag(pair(geminiimg_conn_id, mode, where))
    manifest = landed(run, sandbox)
    assert run.task("order").value == {
        "record": manifest["record"],
        "gateway": manifest["gateway"],
        "model": MODELS[geminiimg_conn_id],
        "job_id": sandbox.ledger()[0]["job_id"],
        "conn_id": geminiimg_conn_id,
    }
    assert path_of(manifest) == tmp_path / "out" / "fox.png"
    assert (manifest["job_id"], manifest["operation"]) == (sandbox.ledger()[0]["job_id"], "generate")
    assert (manifest["reused"], manifest["mismatch"]) == (False, None)
    assert manifest["requested"] == {"resolution": "1K", "aspect_ratio": "16:9"}
    assert run.task("picture").executions >= (1 if mode.get("mode") == "poke" else 2)


def test_an_edit_is_submitted_and_waited_for_alike(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    with DAG("pair", schedule=None) as dag:
        made = GeminiImageGenerateOperator(
            task_id="made", prompt="a red fox", geminiimg_conn_id=geminiimg_conn_id, poll_interval=0.02
        )
        order = GeminiImageSubmitOperator(
            task_id="order", prompt="in snow", image=made.output, geminiimg_conn_id=geminiimg_conn_id
        )
        GeminiImageJobSensor(task_id="picture", job=order.output, **mode)
    polls_fail(sandbox, geminiimg_conn_id, 2)
    manifest = landed(airflow.run_dag(dag), sandbox, 2)
    assert manifest["operation"] == "edit"
    assert len(sandbox.ledger()[1]["inputs"]) == 1


def test_an_image_that_comes_at_once_is_landed_by_the_submit_and_found_by_the_sensor(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    sandbox.settings(honour_async=False)
    run = airflow.run_dag(pair(geminiimg_conn_id, mode))
    manifest = landed(run, sandbox)
    assert manifest["reused"] is False
    assert set(run.task("order").value) == {"record", "gateway", "model", "job_id", "conn_id"}
    if geminiimg_conn_id == "apimaster":
        assert run.task("order").value["job_id"] is None
    assert len(sandbox.calls("download")) == 1
    assert run.task("picture").triggers == []
    again = landed(run.clear("picture"), sandbox)
    assert again == {**manifest, "reused": True}


def test_a_mapped_sensor_waits_for_mapped_submits(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    with DAG("mapped", schedule=None) as dag:

        @task
        def prompts() -> list[str]:
            return ["one fox", "two foxes", "three foxes"]

        orders = GeminiImageSubmitOperator.partial(task_id="order", geminiimg_conn_id=conn_id).expand(prompt=prompts())
        GeminiImageJobSensor.partial(task_id="picture", **mode).expand(job=orders.output)
    polls_fail(sandbox, conn_id, 3)
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    manifests = [image.value for image in run.tasks("picture")]
    numbers = {read_submission(path_of(manifest).read_bytes()) for manifest in manifests}
    assert numbers == {1, 2, 3}
    assert len(sandbox.ledger()) == 3
    assert [m["record"] for m in manifests] == [order.value["record"] for order in run.tasks("order")]


# Retries and clears


def test_clearing_either_task_or_both_pays_nothing_and_the_sensor_says_reused(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(pair(conn_id, mode))
    first, order, calls = landed(run, sandbox), run.task("order").value, len(sandbox.calls())
    for tasks in (["order"], ["picture"], ["order", "picture"]):
        run.clear(*tasks)
        assert run.task("order").value == order
    assert landed(run, sandbox) == {**first, "reused": True}
    assert len(sandbox.calls()) == calls


def test_a_submit_that_is_cleared_before_the_sensor_ran_pays_nothing_and_the_sensor_lands(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    polls_fail(sandbox, geminiimg_conn_id, 12)
    run = airflow.run_dag(pair(geminiimg_conn_id, MODES["poke"], timeout=0.01))
    failed_with(run, AirflowSensorTimeout)
    run.clear("order", "picture", dag=pair(geminiimg_conn_id, MODES["poke"]))
    assert landed(run, sandbox)["reused"] is False


def test_a_download_that_fails_fails_the_sensor_and_its_retry_lands(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    polls_fail(sandbox, geminiimg_conn_id)
    sandbox.faults(route="download", status=500, times=3)
    run = airflow.run_dag(pair(geminiimg_conn_id, mode))
    failed_with(run, UpstreamFailedError)
    landed(run.retry("picture"), sandbox)


def test_a_clear_of_both_with_another_prompt_or_with_regenerate_buys_and_lands_another_image(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    # The sensor's own retries must not hide the submit task's Clear.
    run = airflow.run_dag(pair(conn_id, mode, retries=5))
    first = landed(run, sandbox)
    run.clear("order", "picture", dag=pair(conn_id, mode, {"prompt": "a blue fox"}, retries=5))
    second = landed(run, sandbox, 2)
    assert second["images"][0]["uri"] != first["images"][0]["uri"]
    changed = {"prompt": "a blue fox", "on_clear": "regenerate"}
    run.clear("order", "picture", dag=pair(conn_id, mode, changed, retries=5))
    assert landed(run, sandbox, 3)["reused"] is False


def test_a_clear_of_both_with_another_file_name_gives_the_copy_at_no_cost(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(pair(conn_id, mode))
    first = landed(run, sandbox)
    second = landed(run.clear("order", "picture", dag=pair(conn_id, mode, {"file_name": "fox"})), sandbox)
    assert path_of(second).stem == "fox"
    assert second["images"][0]["sha256"] == first["images"][0]["sha256"]


def test_the_sensor_gives_the_place_that_its_submit_was_asked_for_last_and_any_other_if_that_is_gone(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    def at(place: str, *tasks: str) -> str:
        dag = pair(conn_id, mode, {"output_path": str(tmp_path / place), "file_name": "fox"})
        return path_of(landed(run.clear(*tasks, dag=dag), sandbox)).parent.name

    run = airflow.run_dag(pair(conn_id, mode, {"output_path": str(tmp_path / "a"), "file_name": "fox"}))
    first = landed(run, sandbox)
    assert [at(place, "order", "picture") for place in "bcbacb"] == list("bcbacb")
    assert at("b", "picture") == "b"
    calls = len(sandbox.calls())
    (tmp_path / "a" / "fox.png").unlink()
    assert at("b", "picture") == "b"
    (tmp_path / "b" / "fox.png").unlink()
    assert at("b", "picture") == "c"
    assert at("b", "order", "picture") == "b"
    assert at("a", "order", "picture") == "a"
    assert len(sandbox.calls()) == calls
    for place in "abc":
        (tmp_path / place / "fox.png").unlink()
    assert at("a", "picture") == "a"
    assert landed(run, sandbox)["images"] == first["images"]


def test_a_record_that_does_not_say_where_it_was_asked_for_last_gives_its_last_copy(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, root: Path, tmp_path: Path
) -> None:
    run = airflow.run_dag(pair(onemin, DEFERRABLE, {"output_path": str(tmp_path / "a")}))
    for place in "bca":
        run.clear("order", "picture", dag=pair(onemin, DEFERRABLE, {"output_path": str(tmp_path / place)}))
    [path] = record_files(root)
    written = json.loads(path.read_text())
    assert written.pop("asked")["directory"] == str(tmp_path / "a")
    path.write_text(json.dumps(written))
    assert path_of(landed(run.clear("picture"), sandbox)).parent.name == "c"


def test_a_sensor_of_a_job_of_others_lands_in_and_gives_the_place_that_it_is_asked_for(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    job_id = post_job(sandbox, conn_id)

    def at(place: str) -> DAG:
        return bare(conn_id, mode, job_id, output_path=str(tmp_path / place), file_name="wolf")

    run = airflow.run_dag(at("a"))
    for place in "bab":
        assert path_of(landed(run.clear("picture", dag=at(place)), sandbox)).parent.name == place
    for place in "ab":
        (tmp_path / place / "wolf.png").unlink()
    assert path_of(landed(run.clear("picture", dag=at("c")), sandbox)).parent.name == "c"
    assert not (tmp_path / "a" / "wolf.png").exists()


def test_an_image_that_was_deleted_is_fetched_again_by_a_clear_of_the_sensor(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(pair(conn_id, mode))
    first = landed(run, sandbox)
    path_of(first).unlink()
    assert landed(run.clear("picture"), sandbox)["images"] == first["images"]


def test_an_image_that_is_gone_everywhere_is_an_error_and_nothing_is_bought(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(pair(conn_id, mode))
    path_of(landed(run, sandbox)).unlink()
    sandbox.reset()
    failed_with(run.clear("picture"), LinkExpiredError)
    assert sandbox.ledger() == []


# Jobs of others


def test_a_job_that_is_not_ours_lands_under_the_sensors_own_key(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    mode: dict[str, Any],
    root: Path,
    tmp_path: Path,
) -> None:
    polls_fail(sandbox, geminiimg_conn_id)
    job_id = post_job(sandbox, geminiimg_conn_id)
    where = {"output_path": str(tmp_path / "out"), "file_name": "wolf"}
    run = airflow.run_dag(bare(geminiimg_conn_id, mode, job_id, **where))
    manifest = landed(run, sandbox)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["wolf.json", "wolf.png"]
    assert manifest["record"] == "ledger/default/bare/run/picture/-1/0/1.json"
    assert (manifest["job_id"], manifest["model"], manifest["operation"]) == (
        job_id,
        MODELS[geminiimg_conn_id],
        "unknown",
    )
    assert (manifest["reused"], manifest["requested"], manifest["mismatch"]) == (False, {}, None)
    calls = len(sandbox.calls())
    assert landed(run.clear("picture"), sandbox) == {**manifest, "reused": True}
    assert len(sandbox.calls()) == calls
    moved = landed(run.clear("picture", dag=bare(geminiimg_conn_id, mode, job_id)), sandbox)
    assert path_of(moved).parent == root / "images" / "bare" / "run" / "picture" / "-1"
    assert len(sandbox.calls()) == calls


def test_another_job_id_after_a_clear_lands_beside_the_first(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    run = airflow.run_dag(bare(conn_id, mode, post_job(sandbox, conn_id)))
    first = landed(run, sandbox)
    run.clear("picture", dag=bare(conn_id, mode, post_job(sandbox, conn_id)))
    second = landed(run, sandbox, 2)
    assert second["record"].endswith("/2.json")
    assert path_of(first).exists()


def test_an_earlier_job_id_after_a_clear_gives_its_image_again_also_where_the_gateway_forgot_it(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    jobs = [post_job(sandbox, conn_id)]
    run = airflow.run_dag(bare(conn_id, mode, jobs[0]))
    manifests = [landed(run, sandbox)]
    for number in (2, 3):
        jobs.append(post_job(sandbox, conn_id))
        manifests.append(landed(run.clear("picture", dag=bare(conn_id, mode, jobs[-1])), sandbox, number))
    sandbox.reset()
    for job_id, first in zip(jobs, manifests, strict=True):
        run.clear("picture", dag=bare(conn_id, mode, job_id))
        assert run.state == "success", run.log
        again = run.task("picture").value
        assert (again["record"], again["images"], again["reused"]) == (first["record"], first["images"], True)


def test_a_wrong_model_of_a_job_is_corrected_by_a_clear(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, root: Path
) -> None:
    job_id = post_job(sandbox, apimaster)
    mode = {**MODES["poke"], "timeout": 0.05}
    run = airflow.run_dag(bare(apimaster, mode, job_id, model="gemini-3-pro-image-preview"))
    failed_with(run, AirflowSensorTimeout)
    landed(run.clear("picture", dag=bare(apimaster, MODES["poke"], job_id)), sandbox)


def test_a_file_name_that_is_taken_is_an_error_and_a_free_one_lands_after_a_clear(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "wolf.png").write_bytes(b"somebody else's")
    job_id = post_job(sandbox, conn_id)
    run = airflow.run_dag(bare(conn_id, mode, job_id, output_path=str(tmp_path), file_name="wolf"))
    assert "is taken" in str(failed_with(run, BadRequestError).error)
    assert (tmp_path / "wolf.png").read_bytes() == b"somebody else's"
    run.clear("picture", dag=bare(conn_id, mode, job_id, output_path=str(tmp_path), file_name="wolf2"))
    assert path_of(landed(run, sandbox)) == tmp_path / "wolf2.png"


# Jobs that fail


SOFT = [{}, {"soft_fail": True}, {"never_fail": True}, {"silent_fail": True}]


@pytest.mark.parametrize(
    ("outcome", "kind", "settings"),
    [
        ("refused", ContentRefusedError, SOFT),
        ("failed", UpstreamFailedError, SOFT[1:2]),
        ("bare_failed", UpstreamFailedError, SOFT[2:3]),
        ("no_image", NoImageError, SOFT[3:]),
    ],
    ids=["refused", "failed", "bare_failed", "no_image"],
)
def test_a_job_that_failed_for_good_fails_the_sensor_whatever_the_soft_settings_say(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    mode: dict[str, Any],
    outcome: str,
    kind: type[BaseException],
    settings: list[dict[str, Any]],
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", outcome=outcome, times=len(settings))
    polls_fail(sandbox, geminiimg_conn_id, len(settings))
    with DAG("soft", schedule=None) as dag:
        for index, setting in enumerate(settings):
            order = GeminiImageSubmitOperator(
                task_id=f"order{index}", prompt="a red fox", geminiimg_conn_id=geminiimg_conn_id
            )
            GeminiImageJobSensor(task_id=f"picture{index}", job=order.output, retries=2, **mode, **setting)
    run = airflow.run_dag(dag)
    for index in range(len(settings)):
        failed = failed_with(run, kind, f"picture{index}")
        assert failed.try_number == 1, "no retry of the sensor can help"
    calls = len(sandbox.calls())
    failed_with(run.clear("picture0"), kind, "picture0")
    assert len(sandbox.calls()) == calls


def test_a_wrong_key_fails_the_sensor_instead_of_being_polled_with_on_and_on(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, connect: Callable[..., str], mode: dict[str, Any]
) -> None:
    job_id = post_job(sandbox, onemin)
    connect("other", **sandbox.connection("1min", key="bad-key"))
    run = airflow.run_dag(bare("other", mode, job_id, soft_fail=True))
    failed_with(run, AuthenticationError)
    connect("other", **sandbox.connection("1min"))
    landed(run.clear("picture"), sandbox)


def test_a_connection_that_is_missing_is_one_clear_error(
    airflow: AirflowHarness, sandbox: Sandbox, mode: dict[str, Any]
) -> None:
    error = failed_with(airflow.run_dag(bare("nowhere", mode, "some-job")), BadRequestError).error
    assert "no Airflow connection 'nowhere'" in str(error)
    assert sandbox.calls() == []


# Waiting


def test_polls_that_fail_say_nothing_and_the_sensor_goes_on(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, mode: dict[str, Any]
) -> None:
    route = f"{geminiimg_conn_id}.status"
    sandbox.faults({"route": route, "status": 502, "times": 2}, {"route": route, "drop": True, "times": 5})
    run = airflow.run_dag(pair(geminiimg_conn_id, mode))
    landed(run, sandbox)
    if mode is DEFERRABLE:
        assert run.task("picture").events[0]["status"] == "lost"


def test_a_timeout_fails_the_sensor_and_a_clear_with_a_longer_one_lands_the_same_job(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    polls_fail(sandbox, conn_id, 12)
    run = airflow.run_dag(pair(conn_id, mode, timeout=0.05))
    failed_with(run, AirflowSensorTimeout)
    landed(run.clear("picture", dag=pair(conn_id, mode)), sandbox)


def test_a_timeout_skips_the_sensor_with_soft_fail_and_the_job_is_left_alone(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any]
) -> None:
    polls_fail(sandbox, conn_id, 12)
    run = airflow.run_dag(pair(conn_id, mode, timeout=0.05, soft_fail=True))
    assert run.task("picture").state == "skipped", run.log
    landed(run.clear("picture", dag=pair(conn_id, mode, soft_fail=True)), sandbox)


def test_a_crashed_trigger_is_deferred_again_twice_and_then_the_job_is_poked_for(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    polls_fail(sandbox, geminiimg_conn_id, 5)  # at the start, after each crash, and once in the worker
    run = airflow.run_dag(pair(geminiimg_conn_id, DEFERRABLE), triggers=["crash", "crash", "crash"])
    landed(run, sandbox)
    assert len(run.task("picture").triggers) == 3


def test_crashed_triggers_do_not_make_the_wait_longer_than_the_timeout(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    sandbox.settings(latency=20)
    mode = {**DEFERRABLE, "timeout": 1}
    failed_with(airflow.run_dag(pair(onemin, mode), triggers=["crash", "crash", "crash"]), AirflowSensorTimeout)


def test_a_trigger_that_nobody_runs_is_made_up_for_by_the_worker(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    polls_fail(sandbox, geminiimg_conn_id)
    run = airflow.run_dag(pair(geminiimg_conn_id, DEFERRABLE), triggers=["timeout"])
    landed(run, sandbox)


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
def test_a_trigger_that_nobody_runs_ends_in_a_timeout_where_the_job_runs_on(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, soft_fail: bool, state: str
) -> None:
    sandbox.settings(latency=20)
    run = airflow.run_dag(pair(onemin, DEFERRABLE, soft_fail=soft_fail), triggers=["timeout"])
    assert run.task("picture").state == state, run.log
    assert "keeps running" in str(run.task("picture").error or run.log)


def test_a_resumed_sensor_lands_its_job_even_without_its_record_and_says_why(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

    real = GeminiImageJobTrigger.run

    async def run_then_lose_the_ledger(self: GeminiImageJobTrigger) -> Any:
        async for event in real(self):
            (root / "ledger").rename(root / "lost")
            yield event

    monkeypatch.setattr(GeminiImageJobTrigger, "run", run_then_lose_the_ledger)
    polls_fail(sandbox, geminiimg_conn_id)
    run = airflow.run_dag(pair(geminiimg_conn_id, DEFERRABLE))
    assert landed(run, sandbox)["record"] == "ledger/default/pair/run/picture/-1/0/1.json"
    assert "workers do not share the ledger, or the record was removed" in run.log


# Jobs that the gateway does not know


@pytest.mark.parametrize(("conn_id", "job_id"), [("onemin", "no-such-job"), ("apimaster", "task_none")])
def test_a_job_that_the_gateway_does_not_know_is_waited_for_ten_minutes_and_then_an_error(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    request: pytest.FixtureRequest,
    root: Path,
    mode: dict[str, Any],
    conn_id: str,
    job_id: str,
) -> None:
    request.getfixturevalue(conn_id)
    run = airflow.run_dag(bare(conn_id, {**mode, "timeout": 0.2}, job_id))
    failed_with(run, AirflowSensorTimeout)
    [record] = record_files(root)
    change_record(record, submitted_at=json.loads(record.read_text())["submitted_at"] - 601)
    run.clear("picture", dag=bare(conn_id, mode, job_id, soft_fail=True))
    assert "Check job_id" in str(failed_with(run, OutcomeUnknownError).error)


def test_a_submitted_job_that_the_gateway_forgot_is_bought_again_only_as_on_unknown_says(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], root: Path
) -> None:
    sandbox.settings(latency=20)
    run = airflow.run_dag(pair(conn_id, {**mode, "timeout": 0.05}))
    failed_with(run, AirflowSensorTimeout)
    sandbox.reset()
    [record] = record_files(root)
    change_record(record, submitted_at=json.loads(record.read_text())["submitted_at"] - 601)
    run.clear("picture", dag=pair(conn_id, mode))
    assert 'clear the submit task with on_unknown="resubmit"' in str(failed_with(run, OutcomeUnknownError).error)
    failed_with(run.clear("order", "picture"), OutcomeUnknownError, "order")
    assert sandbox.ledger() == []
    again = pair(conn_id, mode, {"on_unknown": "resubmit"})
    landed(run.clear("order", "picture", dag=again), sandbox)


# Bad input

ELSEWHERE = "ledger/default/pair/../../../../../etc/1.json"


BAD_JOBS: list[Any] = [
    "some-job-id",
    {"uri": "file:///fox.png"},
    {"record": "fox.json"},
    {"record": "ledger/default/pair/../../../../../etc/1.json"},
    {"record": "ledger/default/../pair/run/order/-1/0/1.json"},
    {"record": 7},
    [1, 2],
    7,
]


@pytest.mark.parametrize("job", BAD_JOBS)
def test_a_job_that_no_submit_returned_is_refused_when_the_dag_is_parsed(job: Any) -> None:
    with pytest.raises(BadRequestError, match=r"^job.*GeminiImageSubmitOperator"):
        GeminiImageJobSensor(task_id="picture", job=job)


def test_a_job_that_no_submit_returned_is_one_clear_error_without_a_call_and_a_retry(
    airflow: AirflowHarness, sandbox: Sandbox, mode: dict[str, Any]
) -> None:
    with DAG("bad", schedule=None) as dag:

        @task
        def orders() -> list[Any]:
            return BAD_JOBS

        GeminiImageJobSensor.partial(task_id="picture", retries=2, soft_fail=True, **mode).expand(job=orders())
    run = airflow.run_dag(dag)
    for failed in run.tasks("picture"):
        assert (failed.state, failed.try_number) == ("failed", 1), failed.log
        assert isinstance(failed.error, AirflowFailException)
        assert "takes what GeminiImageSubmitOperator returned" in str(failed.error)
    assert sandbox.calls() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "neither"),
        ({"job_id": "a", "job": {"record": "ledger/default/pair/run/order/-1/0/1.json"}}, "both"),
        ({"job_id": "a", "on_mismatch": "ignore"}, "on_mismatch"),
        ({"job_id": "a", "poll_interval": -1}, "poll_interval"),
        ({"job_id": "a", "deferrable": "maybe"}, "deferrable"),
        ({"job_id": "a", "file_name": "a/b"}, "file_name"),
        ({"job_id": 7}, "job_id"),
        ({"job_id": "a", "deferrable": "no"}, "deferrable"),
    ],
)
def test_arguments_that_can_not_be_right_are_refused_when_the_dag_is_parsed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        GeminiImageJobSensor(task_id="picture", **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"job_id": "{{ '' }}"}, "neither"),
        ({"job_id": "a", "on_mismatch": "{{ 'ignore' }}"}, "on_mismatch"),
        ({"job_id": "a", "poll_interval": "{{ -1 }}"}, "poll_interval"),
        ({"job_id": "a", "file_name": "{{ 'a/b' }}"}, "file_name"),
        ({"job_id": "a", "deferrable": "{{ 'no' }}"}, "deferrable"),
    ],
)
def test_arguments_that_render_to_what_can_not_be_right_are_one_clear_error_without_a_call(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    with DAG("bad", schedule=None) as dag:
        GeminiImageJobSensor(task_id="picture", geminiimg_conn_id=conn_id, retries=2, **{**mode, **given})
    failed = failed_with(airflow.run_dag(dag), BadRequestError)
    assert failed.try_number == 1
    assert said in str(failed.error)
    assert sandbox.calls() == []


def test_a_sensor_that_is_mapped_over_deferrable_waits_as_each_value_says(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    job_id = post_job(sandbox, "onemin")
    wait = {"job_id": job_id, "geminiimg_conn_id": onemin, "poke_interval": 0.02, "poll_interval": 0.02}
    with DAG("mapped", schedule=None) as dag:
        GeminiImageJobSensor.partial(task_id="picture", **wait).expand(deferrable=["true", "False"])
    polls_fail(sandbox, "onemin", 2)  # the first poll of each
    images = airflow.run_dag(dag).tasks("picture")
    assert [image.state for image in images] == ["success"] * 2
    assert [len(image.triggers) for image in images] == [1, 0]


def test_a_deferrable_that_is_no_flag_is_one_clear_error_without_a_call(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    with DAG("bad", schedule=None) as dag:
        wait = {"job_id": "a", "geminiimg_conn_id": onemin, "retries": 2, "soft_fail": True}
        GeminiImageJobSensor.partial(task_id="picture", **wait).expand(deferrable=["no", 7, [False]])
    for failed in airflow.run_dag(dag).tasks("picture"):
        assert (failed.state, failed.try_number) == ("failed", 1), failed.log
        assert isinstance(failed.error.__cause__, BadRequestError)
        assert "deferrable" in str(failed.error)
    assert sandbox.calls() == []


def test_a_record_that_is_not_under_the_root_is_an_error_that_says_why(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], root: Path
) -> None:
    run = airflow.run_dag(pair(conn_id, mode))
    (root / "ledger").rename(root / "lost")
    run.clear("picture")
    assert "workers do not share the ledger" in str(failed_with(run, LedgerError).error)
    assert len(sandbox.ledger()) == 1


def test_a_submit_has_nothing_to_defer_for() -> None:
    with pytest.raises(TypeError, match="deferrable"):
        GeminiImageSubmitOperator(task_id="order", prompt="a red fox", deferrable=True)


def test_default_arguments_for_all_tasks_reach_submit_and_sensor(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path
) -> None:
    polls_fail(sandbox, onemin)
    defaults = {"geminiimg_conn_id": onemin, "output_path": str(tmp_path), "deferrable": True, "poll_interval": 0.02}
    with DAG("pair", schedule=None, default_args=defaults) as dag:
        order = GeminiImageSubmitOperator(task_id="order", prompt="a red fox")
        GeminiImageJobSensor(task_id="picture", job=order.output)
    run = airflow.run_dag(dag)
    assert path_of(landed(run, sandbox)).parent == tmp_path
    assert len(run.task("picture").triggers) == 1


# Images that are not what was asked for


def mismatched(run: Run, sandbox: Sandbox, root: Path, task_id: str) -> dict[str, Any]:
    """The recorded manifest of a task that failed for a mismatch, once, with its image stored."""
    failed = failed_with(run, MismatchError, task_id)
    assert failed.try_number == 1
    [record] = record_files(root)
    manifest: dict[str, Any] = json.loads(record.read_text())["manifest"]
    assert manifest["mismatch"]
    assert read_submission(path_of(manifest).read_bytes()) == 1
    assert len(sandbox.ledger()) == 1
    return manifest


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("edit", [False, True])
def test_a_mismatch_fails_the_operator_without_a_retry_once_the_image_is_stored(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    root: Path,
    tmp_path: Path,
    deferrable: bool,
    edit: bool,
) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(a_png())

    def dag(on_mismatch: str) -> DAG:
        shared: dict[str, Any] = {
            "task_id": "picture", "prompt": "a red fox", "resolution": "2K", "geminiimg_conn_id": geminiimg_conn_id,
            "deferrable": deferrable, "poll_interval": 0.02, "retries": 2, "on_mismatch": on_mismatch,
        }  # fmt: skip
        with DAG("one", schedule=None) as made:
            if edit:
                GeminiImageEditOperator(image=str(source), **shared)
            else:
                GeminiImageGenerateOperator(**shared)
        return made

    sandbox.faults(route=f"{geminiimg_conn_id}.submit", outcome="wrong_size")
    run = airflow.run_dag(dag("fail"))
    manifest = mismatched(run, sandbox, root, "picture")
    assert landed(run.clear("picture", dag=dag("accept")), sandbox) == {**manifest, "reused": True}


def test_a_mismatch_is_accepted_with_a_warning_unless_told_otherwise(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", outcome="wrong_size")
    with DAG("one", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="picture", prompt="a red fox", geminiimg_conn_id=geminiimg_conn_id, poll_interval=0.02
        )
    run = airflow.run_dag(dag)
    manifest = landed(run, sandbox)
    assert manifest["mismatch"]
    assert any("warning" in line.lower() and manifest["mismatch"] in line for line in run.log.splitlines())


def test_a_mismatch_fails_the_sensor_without_a_retry_once_the_image_is_stored(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], root: Path
) -> None:
    polls_fail(sandbox, conn_id)
    sandbox.faults(route=f"{conn_id}.submit", outcome="wrong_size")
    settings = {"on_mismatch": "fail", "retries": 2, "soft_fail": True}
    run = airflow.run_dag(pair(conn_id, mode, **settings))
    manifest = mismatched(run, sandbox, root, "picture")
    accepted = landed(run.clear("picture", dag=pair(conn_id, mode)), sandbox)
    assert accepted == {**manifest, "reused": True}


def test_a_mismatch_of_an_image_that_came_at_once_fails_the_submit_that_was_told_so(
    airflow: AirflowHarness, sandbox: Sandbox, conn_id: str, mode: dict[str, Any], root: Path
) -> None:
    sandbox.settings(honour_async=False)
    sandbox.faults(route=f"{conn_id}.submit", outcome="wrong_size")
    run = airflow.run_dag(pair(conn_id, mode, {"on_mismatch": "fail", "retries": 2}))
    mismatched(run, sandbox, root, "order")
    landed(run.clear("order", "picture", dag=pair(conn_id, mode)), sandbox)


# Cleared while deferred


def test_an_operator_that_is_cleared_while_deferred_picks_its_job_up_again(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    with DAG("one", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="picture", prompt="a red fox", geminiimg_conn_id=geminiimg_conn_id, deferrable=True,
            poll_interval=0.02,
        )  # fmt: skip
    run = airflow.run_dag(dag, triggers=["clear"])
    assert run.task("picture").try_number == 2
    landed(run, sandbox)


def test_an_operator_with_regenerate_that_is_cleared_while_deferred_still_buys_once(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    with DAG("one", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="picture", prompt="a red fox", geminiimg_conn_id=geminiimg_conn_id, deferrable=True,
            poll_interval=0.02, on_clear="regenerate",
        )  # fmt: skip
    landed(airflow.run_dag(dag, triggers=["clear", "crash", "clear"]), sandbox)


def test_a_sensor_that_is_cleared_while_deferred_waits_again(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str
) -> None:
    polls_fail(sandbox, geminiimg_conn_id, 7)  # the first look, the first trigger until it gives up, the second look
    run = airflow.run_dag(pair(geminiimg_conn_id, DEFERRABLE), triggers=["clear", "crash"])
    assert (run.task("picture").try_number, len(run.task("picture").triggers)) == (2, 2)
    landed(run, sandbox)


def a_png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (640, 360), "navy").save(buffer, "PNG")
    return buffer.getvalue()
