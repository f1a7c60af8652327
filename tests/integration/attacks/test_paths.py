"""Names that could lead a write, a read or a request elsewhere: a gateway's, a user's, Airflow's, a disk's.

Each attack goes through an operator. What must stay true of each: whatever is written lies under the root or under the
destination, whatever is asked of the API is its own address of that job, and a log holds no line that is not ours.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core.catalog.lookup import DEFAULT_MODELS
from airflow_provider_geminiimg.exceptions import OutcomeUnknownError
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import FromTask, Target, answers, every_write, image_bytes, outcome, returned
from tests.harness.forbidden import Host, answer, as_json
from tests.harness.inprocess import Run

target, api, internet, forbidden, host = attacks.target, attacks.api, web.internet, web.forbidden, web.host
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)

POLLS = {"onemin": "/api/results/", "apimaster": "/v1/tasks/"}
SUBMITS = {"onemin": "/api/features", "apimaster": "/v1/images/generations/async"}

# Names that a gateway may send. Each is one odd name, and nothing else.
SENT = {
    "upwards": "../../../../etc/passwd",
    "another endpoint": "../models",
    "the paid endpoint": "../../v1/images/generations/async",
    "upwards, encoded": "%2e%2e%2f%2e%2e%2fmodels",
    "upwards, encoded twice": "%252e%252e%252fmodels",
    "absolute": "/etc/cron.d/evil",
    "backslashes": "..\\..\\models",
    "an address": "https://127.0.0.1/x",
    "a query": "job?model=other&x=1",
    "a fragment": "job#x",
    "a second slash": "//models",
    "matrix parameters": "..;/models",
    "a template": "{{ conn.onemin.password }}",
    "a format": "%s%n%(message)s{0.__class__}",
    "a command": "$(touch evil);`touch evil`",
    "markup": "<script>alert(1)</script>",
    "other letters": "狐.／..／x",
    "long": "a" * 512,
}
# Names that can't be a job's id.
NO_IDS = {
    "dots": "..",
    "a dot": ".",
    "a line break": "job-1\n2026-01-01T00:00:00Z [info] Landed s3://somewhere/else.png",
    "a carriage return": "job-1\rforged",
    "a null byte": "job-1\0.png",
    "a terminal's escape": "job-1\x1b[2Jforged",
    "a change of direction": "job-1\u202egnp",
    "a line separator": "job-1\u2028forged",
    "too long": "a" * 513,
    "very long": "../" * 100_000,
}


def stays_inside(target: Target, seen: list[str], *folders: Path) -> None:
    """Check that everything that was written lies in the root or in these folders."""
    inside = tuple(f"{os.path.realpath(folder)}{end}" for folder in (target.root, *folders) for end in ("/", ""))
    assert [path for path in seen if not (path.startswith(inside[::2]) or path in inside)] == []
    assert seen


# What a gateway sends


@pytest.mark.parametrize("name", SENT)
def test_a_job_id_leads_to_no_other_address_of_the_api_and_to_no_other_file(
    target: Target, api: Host, name: str
) -> None:
    answers(api, job_id=SENT[name])
    with every_write() as seen:
        run = target.generate()
    assert returned(run)["job_id"] == SENT[name]
    stays_inside(target, seen)
    polls = POLLS[target.conn_id] + quote(SENT[name], safe="")
    assert {path.partition("?")[0] for path, _ in api.requests} == {SUBMITS[target.conn_id], polls, "/p.png"}


@pytest.mark.parametrize("name", NO_IDS)
def test_what_can_not_be_a_job_id_is_neither_asked_about_nor_logged(target: Target, api: Host, name: str) -> None:
    answers(api, job_id=NO_IDS[name])
    with every_write() as seen:
        run = target.generate()
    assert isinstance(outcome(run), OutcomeUnknownError)
    assert [path for path, _ in api.requests] == [SUBMITS[target.conn_id]]
    stays_inside(target, seen)
    assert "forged" not in run.log
    assert "s3://somewhere" not in run.log


@pytest.mark.parametrize("name", [*SENT, *NO_IDS])
@ONE_GATEWAY
def test_a_storage_key_is_no_path_of_ours(target: Target, api: Host, name: str) -> None:
    answers(api, keys=[{**SENT, **NO_IDS}[name]])
    with every_write() as seen:
        run = target.generate()
    assert returned(run)["images"][0]["uri"] == (target.root / "images/attacked/run-1/made/-1/made.png").as_uri()
    stays_inside(target, seen)


def test_names_in_headers_and_fields_that_nobody_asked_for_are_no_paths_of_ours(target: Target, api: Host) -> None:
    evil = "../../../../etc/cron.d/evil"
    named = {"model": evil, "filename": evil, "directory": evil, "type": evil, "createdAt": evil}
    record = {"uuid": "job-1", "status": "SUCCESS", "temporaryUrl": f"{api.url}/p.png", **named}
    detail = {"aiRecordDetail": {"resultObject": [evil], "responseObject": named}}
    task = {"status": "succeeded", "result": {"images": [{"url": f"{api.url}/p.png", **named}]}, **named}
    poll = {"aiRecord": {**record, **detail}, "data": task, **named}
    headers = {"X_Request_Id": evil, "X_Oneapi_Request_Id": evil, "Content_Location": evil}
    answers(api, poll=as_json(poll, **headers))
    disposition = f'attachment; filename="{evil}.sh"'
    api.routes["/p.png"] = answer(body=image_bytes(), Content_Disposition=disposition, Content_Location=evil)
    with every_write() as seen:
        run = target.generate()
    assert returned(run)["model"] in DEFAULT_MODELS.values()
    stays_inside(target, seen)


def test_the_request_id_of_a_failure_is_no_path_of_ours(target: Target, api: Host) -> None:
    evil = "../../../../etc/cron.d/evil"
    refusal = {"error": {"message": f"no (request id: {evil})", "code": evil}, "message": evil, "errorCode": evil}
    answers(api, submit=as_json(refusal, 400, X_Request_Id=evil, X_Oneapi_Request_Id=evil))
    with every_write() as seen:
        run = target.generate()
    assert evil in str(outcome(run))
    stays_inside(target, seen)


def test_the_models_that_a_gateway_names_are_no_paths_of_ours(target: Target, api: Host) -> None:
    models = {"data": [{"id": name} for name in {**SENT, **NO_IDS}.values()], "aiRecord": None}
    answers(api, poll=as_json(models))
    with every_write() as seen:
        works, said = GeminiImageHook(target.conn_id).test_connection()
    assert works
    assert said.isprintable()
    assert seen == []


FORGED = "\n2026-01-01T00:00:00Z [info] Landed s3://forged/p.png\r\x1b[2K\x1b[1Aforged\u2028forged"


@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500, 503])
def test_no_answer_to_a_submit_forges_a_line_in_the_log(target: Target, api: Host, status: int) -> None:
    said = f"no{FORGED}"
    refusal = {"error": {"message": said, "code": said, "param": said}, "errorCode": said, "details": said}
    # With a Retry-After that the attempt does not wait for.
    answers(api, submit=as_json({"message": said, **refusal}, status, Retry_After="100000"))
    no_line_is_forged(target, target.generate())


def test_no_end_of_a_job_forges_a_line_in_the_log(target: Target, api: Host) -> None:
    said = f"no{FORGED}"
    reason = {"code": said, "message": said, "type": said}
    record = {"status": "FAILURE", "aiRecordDetail": {"resultObject": reason}}
    answers(api, poll=as_json({"aiRecord": record, "data": {"status": "failed", "error": reason}}))
    no_line_is_forged(target, target.generate())


def test_no_text_instead_of_an_image_forges_a_line_in_the_log(target: Target, api: Host) -> None:
    said = f"p.png{FORGED}"
    record = {"status": "SUCCESS", "aiRecordDetail": {"resultObject": [said]}}
    answers(api, poll=as_json({"aiRecord": record, "data": {"status": "succeeded", "result": {"images": [said]}}}))
    no_line_is_forged(target, target.generate())


def no_line_is_forged(target: Target, run: Run) -> None:
    error = outcome(run)
    assert "forged" in str(error)
    assert str(error).isprintable()
    assert not re.search(r"^(2026-01-01|.*\x1b\[1A|forged)", run.log, re.MULTILINE)
    [record] = target.records()
    assert record.error is not None
    assert str(record.error).isprintable()


# What a user, or a user's user, gives


ODD_FILE_NAMES = (
    "../escape",
    "..",
    ".",
    "/tmp/escape",
    "a/../../escape",
    "..\\escape",
    ".hidden",
    "a\0b",
    "a\nb",
    "\u202ea",
)


@ONE_GATEWAY
def test_a_file_name_that_could_be_a_path_is_refused_before_anything_is_sent(target: Target) -> None:
    out = target.folder / "out"
    with every_write() as seen:
        for name in ODD_FILE_NAMES:
            run = target.generate(file_name="{{ params.given }}", output_path=str(out), given=name)
            target.refused_unsent(run, "file_name=")
    assert seen == []


LITERAL_NAMES = (
    *(
        "%2e%2e%2fescape",
        "%2Fetc%2Fpasswd",
        "a%00b",
        "~root",
        "$HOME",
        "$(touch evil)",
        "{{ 7 }}",
        "a=c#d",
        "a;b",
    ),
    *("-rf", "a b", "狐", "／etc／passwd", "console", "x" * 120, "%s"),
)


@ONE_GATEWAY
def test_a_percent_encoded_file_name_is_taken_literally(target: Target) -> None:
    out = target.folder / "out"
    with every_write() as seen:
        for name in LITERAL_NAMES:
            run = target.generate(file_name="{{ params.given }}", output_path=str(out), given=name)
            assert returned(run)["images"][0]["uri"] == f"{out}/{name}.png"
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{end}" for name in LITERAL_NAMES for end in ("png", "json")
    }
    stays_inside(target, seen, out)


ODD_FOLDERS = {
    "upwards": "{folder}/out/../../escape",
    "upwards in a URI": "file://{folder}/out/../../escape",
    "upwards at the end": "{folder}/out/..",
    "upwards in a bucket": "s3://bucket/out/../../escape",
    "relative": "out",
    "relative and upwards": "../escape",
    "another machine": "file://evil.test/escape",
    "another machine by slashes": "//evil.test/escape",
    "a null byte": "{folder}/out\0/escape",
    "a web address": "https://pictures.test/out",
    "a chain of file systems": "simplecache::file://{folder}/escape",
    "no scheme": "file:{folder}/escape",
}


@ONE_GATEWAY
@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_an_output_path_that_leads_elsewhere_is_refused_before_anything_is_sent(target: Target, name: str) -> None:
    given = ODD_FOLDERS[name].format(folder=target.folder)
    with every_write() as seen:
        run = target.generate(output_path="{{ params.given }}", given=given)
    target.refused_unsent(run, "output_path")
    stays_inside(target, seen) if seen else None
    assert target.images.connections == 0


@ONE_GATEWAY
def test_a_percent_encoded_output_path_is_taken_literally(target: Target) -> None:
    out = target.folder / "out"
    with every_write() as seen:
        for folder in ("%2e%2e/%2e%2e", "..%2f..%2fescape", "%2Fetc", "~root", "$HOME", "a/./b", "c//d"):
            run = target.generate(output_path="{{ params.given }}", file_name="fox", given=f"{out}/{folder}")
            assert (Path(f"{out}/{folder}") / "fox.png").read_bytes()
            assert run.state == "success"
    assert {path.name for path in out.iterdir()} == {"%2e%2e", "..%2f..%2fescape", "%2Fetc", "~root", "$HOME", "a", "c"}
    stays_inside(target, seen, out)


@ONE_GATEWAY
def test_an_output_path_in_a_bucket_is_taken_literally(target: Target, s3: str) -> None:
    target.generate(output_path=f"{s3}/a/%2e%2e/b", file_name="%2e%2e%2ffox")
    listed = boto3.client("s3").list_objects_v2(Bucket=s3.removeprefix("s3://"))["Contents"]
    assert {entry["Key"] for entry in listed} == {f"a/%2e%2e/b/%2e%2e%2ffox.{end}" for end in ("png", "json")}


NO_XCOM = {"do_xcom_push": False}  # Airflow's own client takes these ids for paths


@ONE_GATEWAY
@pytest.mark.parametrize("name", ["..", ".", "...", "a..b", "x" * 200])
def test_ids_of_airflow_that_look_like_paths_stay_under_the_root(target: Target, name: str) -> None:
    with every_write() as seen:
        for run_id in (".", "x::y", "manual__2026-01-01T00:00:00+00:00", "x" * 240):
            with DAG(name, schedule=None) as dag:
                GeminiImageGenerateOperator(**target.arguments({"task_id": name, **NO_XCOM}))
            run = target.airflow.run_dag(dag, run_id=run_id)
            assert run.state == "success", run.log
    stays_inside(target, seen)
    files = [path.relative_to(target.root).parts for path in target.root.rglob("*") if path.is_file()]
    names = {"ledger", "images", "index", "jobs", "names", "open", "summaries", "thumbs", "root.json", ".#lock"}
    assert {parts[0] for parts in files} == names
    assert [len(parts) for parts in files if parts[0] == "ledger"] == [8] * 4
    assert [len(parts) for parts in files if parts[0] == "images"] == [6] * 8
    assert [len(parts) for parts in files if parts[0] == "thumbs"] == [9] * 4
    assert all(part not in ("..", ".") for parts in files for part in parts)


@ONE_GATEWAY
def test_run_ids_with_slashes_stay_under_the_root_where_airflow_lets_them_through(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN", "(?s).*")
    given = ("/etc/escape", "%2e%2e%2fescape", "a/b", "a%2Fb", "a\\b", "a\nb", "a#b", " ")
    with every_write() as seen:
        for run_id in given:
            run = target.airflow.run_dag(target.dag(**NO_XCOM), run_id=run_id)
            assert run.state == "success", run.log
    stays_inside(target, seen)
    assert len(list(target.root.glob("ledger/default/attacked/*/made/-1/0/1.json"))) == len(given)


@ONE_GATEWAY
def test_a_namespace_and_a_variant_that_look_like_paths_stay_under_the_root(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__NAMESPACE", "../../escape")
    with every_write() as seen:
        run = target.generate(variant="/../../escape")
    stays_inside(target, seen)
    name = "made-v%2F..%2F..%2Fescape.png"
    assert returned(run)["images"][0]["uri"] == f"{target.root.as_uri()}/images/attacked/run-1/made/-1/{name}"


ODD_KEYS = ("ledger/../../bait/1.json", "../bait/1.json", "{folder}/bait/1.json", f"ledger/a{'/..' * 7}/bait/1.json")
USES_OF_KEYS = {
    "a sensor": (GeminiImageJobSensor, "job", lambda key: {"record": key, "job_id": "job-1"}),
    "a resolution": (GeminiImageCollectOperator, "resolve", lambda key: {key: "unpaid"}),
    "a job that was found": (GeminiImageCollectOperator, "resolve", lambda key: {key: {"job": "../models"}}),
}


@ONE_GATEWAY
@pytest.mark.parametrize("use", USES_OF_KEYS)
def test_keys_of_records_that_look_like_paths_lead_nowhere_else(target: Target, use: str) -> None:
    operator, name, value = USES_OF_KEYS[use]
    bait = target.folder / "bait" / "1.json"
    bait.parent.mkdir()
    bait.write_text("{}")
    with every_write() as seen:
        for key in ODD_KEYS:
            given = value(key.format(folder=target.folder))
            assert target.run_as_is(operator, **{name: FromTask(given)}).state == "failed"
    assert bait.read_text() == "{}"
    assert target.sandbox.calls() == []
    stays_inside(target, [*seen, str(target.root)])
