"""What a gateway's answer is worth, and what it is not: whole answers in broken frames, answers about another job,
answers that were written in front of the gateway, words by which a job ends.

Money cases go through both paths, one image and a batch, and are counted at the sandbox.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core.gateways import get_gateway, polling
from airflow_provider_geminiimg.core.gateways.base import JobState, JobStatus, Reply
from airflow_provider_geminiimg.core.http.response_body import ResponseBody
from airflow_provider_geminiimg.core.purchase import lifecycle, waiting
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    LostContactError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox.client import SAMPLE_KEY
from airflow_provider_geminiimg.sandbox.faults import Frame
from tests.harness.attacks import image_bytes
from tests.harness.matrix import read_records

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

Make = Callable[..., DAG]
FRAMES = get_args(Frame)


def one(conn_id: str, **arguments: Any) -> DAG:
    with DAG("answers", schedule=None) as dag:
        GeminiImageGenerateOperator(
            **{"task_id": "made", "prompt": "a red fox", "geminiimg_conn_id": conn_id, "resolution": "512",
               "deferrable": False, "poll_interval": 0.02, **arguments}
        )  # fmt: skip
    return dag


def batch(conn_id: str, **arguments: Any) -> DAG:
    with DAG("answers", schedule=None) as dag:
        GeminiImageBatchOperator(
            **{"task_id": "made", "requests": ["a red fox"], "geminiimg_conn_id": conn_id, "resolution": "512",
               "poll_interval": 0.02, **arguments}
        )  # fmt: skip
    return dag


# Each path and each gateway once, where the gateways share the code.
ONCE_EACH = pytest.mark.parametrize(
    ("geminiimg_conn_id", "make"),
    [("onemin", one), ("apimaster", batch)],
    ids=["one image at 1min", "batch at APIMaster"],
    indirect=["geminiimg_conn_id"],
)
BOTH_PATHS = pytest.mark.parametrize("make", [one, batch], ids=["one image", "batch"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.01)


@pytest.fixture(autouse=True)
def root(local_root: str) -> str:
    return local_root


def submits(sandbox: Sandbox) -> int:
    return sum(call["route"].endswith(".submit") for call in sandbox.calls())


def recorded(root: str) -> list[GeminiImageError | None]:
    """The outcome on each record, in their order."""
    return [found.record.error for found in read_records(root)]


def failed(run: Run) -> GeminiImageError:
    error = run.task("made").error
    assert run.task("made").state == "failed", run.log
    found = error.__cause__ if isinstance(error, AirflowFailException) else error
    assert isinstance(found, GeminiImageError), run.log
    return found


# A whole answer in a broken frame


@BOTH_PATHS
@pytest.mark.parametrize("frame", FRAMES)
def test_a_submit_that_was_answered_whole_in_a_broken_frame_lands_and_is_paid_once(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, frame: str
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", charge="after", frame=frame)
    run = airflow.run_dag(make(geminiimg_conn_id))
    assert run.state == "success", run.log
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 1)


@pytest.mark.parametrize("frame", FRAMES)
def test_an_image_that_came_whole_in_a_broken_frame_lands_and_is_paid_once(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, frame: str
) -> None:
    sandbox.settings(honour_async=False)
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", charge="after", frame=frame)
    run = airflow.run_dag(one(geminiimg_conn_id))
    assert run.state == "success", run.log
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 1)


@pytest.mark.parametrize("frame", [frame for frame in FRAMES if frame != "open"])
def test_polls_that_are_always_answered_in_a_broken_frame_are_answers(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, frame: str
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.status", charge="after", frame=frame, times=50)
    run = airflow.run_dag(one(geminiimg_conn_id))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


@BOTH_PATHS
def test_a_submit_of_whose_answer_a_part_came_stays_unknown(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, root: str
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", charge="after", cut_after=40)
    run = airflow.run_dag(make(geminiimg_conn_id))
    run.retry("made")
    assert failed(run)
    assert [type(error) for error in recorded(root)] == [OutcomeUnknownError]
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 1)


@BOTH_PATHS
def test_an_error_after_a_paid_call_that_names_the_job_is_polled(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, make: Make
) -> None:
    sandbox.faults({"route": "apimaster.submit", "charge": "after", "status": 504, "body": "later"})
    run = airflow.run_dag(make(apimaster, on_unknown="fail"))
    assert isinstance(failed(run), GeminiImageError)
    job_id = sandbox.ledger()[0]["job_id"]
    sandbox.faults(route="apimaster.submit", status=504, body={"error": {"code": "x"}, "task_id": job_id})
    run = airflow.run_dag(make(apimaster), run_id="second")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


def parsed(conn_id: str, status: int, body: bytes) -> JobStatus:
    gateway = get_gateway({"onemin": "1min"}.get(conn_id, conn_id))
    request = ImageRequest.build(operation="generate", prompt="a red fox").check(gateway.name)
    return gateway.submit(request, ()).parse(Reply(status, httpx.Headers(), body))


WHOLE = {
    "aiRecord": {"uuid": "job-1", "status": "PROCESSING", "x": "Käse"},
    "data": [{"task_id": "job-1", "x": "Käse"}],
}
TEXT = json.dumps(WHOLE, ensure_ascii=False)


@pytest.mark.parametrize("conn_id", ["onemin", "apimaster"])
@pytest.mark.parametrize(
    "body",
    [
        TEXT.encode("latin-1"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("Käse", "a\tb\nc").encode(),
        f"\n \n{TEXT}\n\n".encode(),
        f"{TEXT}<script>var x</script>".encode(),
        f"{TEXT}{TEXT}".encode(),
    ],
    ids=["another encoding", "UTF-16", "a byte order mark", "raw line breaks", "blanks", "a script after it", "twice"],
)
def test_a_job_id_in_an_answer_that_is_not_clean_json_is_taken(conn_id: str, body: bytes) -> None:
    assert parsed(conn_id, 200, body) == JobStatus(JobState.RUNNING, job_id="job-1")


@pytest.mark.parametrize("conn_id", ["onemin", "apimaster"])
@pytest.mark.parametrize("cut", [1, 20, len(TEXT) // 2])
def test_json_that_is_cut_stays_unknown(conn_id: str, cut: int) -> None:
    with pytest.raises(OutcomeUnknownError):
        parsed(conn_id, 200, TEXT.encode()[:-cut])


# An answer about another job


def test_of_several_tasks_in_an_answer_only_the_own_one_counts() -> None:
    call = get_gateway("apimaster").status("job-1", model="m")
    rows = [
        {"task_id": "job-2", "status": "SUCCESS", "url": "https://cdn.example/2.png"},
        {"id": 7, "task_id": "JOB-1", "status": "SUCCESS", "url": "https://cdn.example/1.png"},
    ]
    status = call.parse(Reply(200, httpx.Headers(), json.dumps({"data": rows}).encode()))
    assert [image.url for image in status.images] == ["https://cdn.example/1.png"]


def answer_of(sandbox: Sandbox, conn_id: str, job_id: str) -> Any:
    """What the gateway says of a job."""
    model = sandbox.ledger()[0]["model"]
    url = {
        "onemin": f"{sandbox.onemin_url}/api/results/{job_id}",
        "apimaster": f"{sandbox.apimaster_url}/tasks/{job_id}?model={model}",
    }[conn_id]
    return httpx.get(url, headers={"API-KEY": SAMPLE_KEY, "Authorization": f"Bearer {SAMPLE_KEY}"}).json()


@BOTH_PATHS
@pytest.mark.parametrize("shape", ["completed", "new_api"])
def test_a_poll_that_is_answered_about_another_job_says_nothing_about_this_one(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, shape: str
) -> None:
    sandbox.settings(poll_shape=shape)
    other = airflow.run_dag(one(geminiimg_conn_id, prompt="a grey wolf"), run_id="other")
    assert other.state == "success", other.log
    body = answer_of(sandbox, geminiimg_conn_id, sandbox.ledger()[0]["job_id"])
    sandbox.faults(route=f"{geminiimg_conn_id}.status", body=body, times=3)
    run = airflow.run_dag(make(geminiimg_conn_id))
    assert run.state == "success", run.log
    landed = next(iter(Path(image) for image in _landed(run) if image))
    wolf = Path(other.task("made").value["images"][0]["uri"].removeprefix("file://"))
    assert landed.read_bytes() != wolf.read_bytes()
    assert len(sandbox.ledger()) == 2


def _landed(run: Run) -> list[str]:
    value = run.task("made").value
    if "images" in value:
        return [image["uri"].removeprefix("file://") for image in value["images"]]
    lines = Path(value["manifest"].removeprefix("file://")).read_text().splitlines()
    return [json.loads(line)["images"][0]["uri"].removeprefix("file://") for line in lines]


@BOTH_PATHS
@pytest.mark.parametrize("word", ["failed", "running"])
def test_another_jobs_end_is_not_this_ones(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, word: str
) -> None:
    body = {
        "aiRecord": {"uuid": "another-job", "status": "FAILURE" if word == "failed" else "PROCESSING"},
        "data": {"task_id": "another-job", "status": word},
    }
    sandbox.faults(route=f"{geminiimg_conn_id}.status", body=body, times=2)
    run = airflow.run_dag(make(geminiimg_conn_id))
    assert run.state == "success", run.log
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 1)


def test_a_gateway_that_only_speaks_of_another_job_is_lost_contact_and_buys_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    body = {"data": {"task_id": "another-job", "status": "failed"}}
    sandbox.faults(route="apimaster.status", body=body, times=5)
    run = airflow.run_dag(one(apimaster))
    assert isinstance(failed(run), LostContactError)
    run.retry("made")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


@BOTH_PATHS
@pytest.mark.parametrize(
    "body",
    [
        "404 page not found",
        {"error": {"message": "Invalid URL (GET /v2/tasks/1)", "code": "not_found"}},
        {"error": {"message": "Task not found", "code": "task_not_found"}},
        {},
    ],
    ids=["a server's", "a route's", "a task's", "nothing"],
)
def test_a_404_other_than_task_not_exist_buys_no_second_image(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, make: Make, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (polling, waiting):
        monkeypatch.setattr(module, "VANISHED_GRACE", 0.0)
    sandbox.faults(route="apimaster.status", status=404, body=body, times=3)
    run = airflow.run_dag(make(apimaster, on_unknown="resubmit"))
    assert run.state == "success", run.log
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 1)


# Turned away in front of the gateway

NGINX = (
    "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center><hr><center>nginx</center></body></html>"
)
CLOUDFLARE = (
    "<!DOCTYPE html><title>Access denied</title><h1><span>Error</span> <span>{code}</span></h1>"
    "<p>Performance & security by <a>Cloudflare</a></p>"
)
WAITED_FOR: dict[str, dict[str, Any]] = {
    "1015 as text": {"status": 429, "body": "error code: 1015"},
    "1015 as a page": {"status": 429, "body": CLOUDFLARE.format(code=1015)},
    "1015 as JSON": {
        "status": 429,
        "body": {
            "title": "Error 1015",
            "status": 429,
            "error_code": 1015,
            "cloudflare_error": True,
            "retry_after": 0.01,
        },
    },
    "a web server's limit": {"status": 429, "body": NGINX.format("429 Too Many Requests")},
}
ELSEWHERE = {"Location": "https://www.example.com/"}
TURNED_AWAY: dict[str, tuple[type[GeminiImageError], dict[str, Any]]] = {
    **{
        name: (UpstreamFailedError, fault)
        for name, fault in {
            "a challenge": {"status": 403, "body": "<html>x</html>", "headers": {"cf-mitigated": "challenge"}},
            "a challenge with 200": {"status": 200, "body": "<p>", "headers": {"cf-mitigated": "challenge"}},
            "a challenge by its page": {"status": 503, "body": "<html><script>window._cf_chl_opt={}</script></html>"},
            "AWS's challenge": {"status": 202, "body": "", "headers": {"x-amzn-waf-action": "challenge"}},
            "530": {"status": 530, "body": "error code: 1033"},
            "530 as a page": {"status": 530, "body": CLOUDFLARE.format(code=1016)},
            "a firewall's code": {"status": 403, "body": "error code: 1020"},
            "a firewall's page": {"status": 403, "body": "<html><h1>403 Forbidden</h1></html>"},
            "a country": {"status": 451, "body": "<html>Unavailable</html>"},
        }.items()
    },
    **{
        name: (BadRequestError, fault)
        for name, fault in {
            "too large": {"status": 413, "body": NGINX.format("413 Request Entity Too Large")},
            "too long": {"status": 414, "body": NGINX.format("414 Request-URI Too Large")},
            "headers": {"status": 431, "body": "<html>431</html>"},
            "a method": {"status": 405, "body": "<html>405 Not Allowed</html>"},
            "a web server's 404": {"status": 404, "body": NGINX.format("404 Not Found")},
            "a web server's 400": {"status": 400, "body": NGINX.format("400 Bad Request")},
        }.items()
    },
    **{
        f"a redirect {code}": (BadRequestError, {"status": code, "body": "", "headers": ELSEWHERE})
        for code in (301, 302, 307, 308)
    },
}
UNCERTAIN: dict[str, dict[str, Any]] = {
    "see other": {"status": 303, "body": "", "headers": ELSEWHERE},
    "408": {"status": 408, "body": NGINX.format("408 Request Time-out")},
    "429 of nobody": {"status": 429, "body": "<html>slow down</html>"},
    "a Worker's code": {"status": 500, "body": "error code: 1101"},
    "a page with a script of the CDN's": {
        "status": 503,
        "body": "<html><script src='/cdn-cgi/challenge-platform/scripts/jsd/main.js'></script></html>",
    },
    **{str(status): {"status": status, "body": f"error code: {status}"} for status in (500, 502, 503, 504)},
    **{str(status): {"status": status, "body": CLOUDFLARE.format(code=status)} for status in (520, 521, 522, 523, 524)},
}


@ONCE_EACH
@pytest.mark.parametrize("fault", WAITED_FOR.values(), ids=WAITED_FOR)
def test_a_rate_limit_in_front_of_the_gateway_is_waited_for_and_the_image_paid_once(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, fault: dict[str, Any]
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", times=2, **fault)
    run = airflow.run_dag(make(geminiimg_conn_id))
    assert run.state == "success", run.log
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 3)


def test_a_rate_limit_in_front_of_the_gateway_that_stays_is_unpaid(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RESEND_SECONDS", 0.0)
    sandbox.faults(route="onemin.submit", **WAITED_FOR["1015 as text"])
    run = airflow.run_dag(one(onemin))
    error = failed(run)
    assert isinstance(error, RateLimitedError)
    assert "was not reached" in str(error)
    assert "No money was spent." in str(error)
    run.retry("made")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


@ONCE_EACH
@pytest.mark.parametrize(("kind", "fault"), TURNED_AWAY.values(), ids=TURNED_AWAY)
def test_a_request_that_was_turned_away_in_front_of_the_gateway_is_unpaid_and_made_by_a_clear(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    make: Make,
    kind: type[GeminiImageError],
    fault: dict[str, Any],
    root: str,
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", **fault)
    run = airflow.run_dag(make(geminiimg_conn_id))
    failed(run)
    [error] = recorded(root)
    assert type(error) is kind
    assert error.billed is Billed.NO
    assert "was not reached" in error.message
    assert error.hint
    assert (len(sandbox.ledger()), submits(sandbox)) == (0, 1)
    run.clear("made")
    assert run.state == "success", run.log
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 2)


@ONCE_EACH
@pytest.mark.parametrize("fault", UNCERTAIN.values(), ids=UNCERTAIN)
def test_an_answer_that_does_not_show_that_nothing_was_passed_on_stays_unknown(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, fault: dict[str, Any], root: str
) -> None:
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", charge="after", **fault)
    run = airflow.run_dag(make(geminiimg_conn_id))
    failed(run)
    run.clear("made")
    assert [type(error) for error in recorded(root)] == [OutcomeUnknownError]
    assert (len(sandbox.ledger()), submits(sandbox)) == (1, 1)


# The words by which a job ends


@BOTH_PATHS
@pytest.mark.parametrize("shape", ["new_api", "new_api_old"])
def test_a_task_row_of_new_api_lands(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, make: Make, shape: str
) -> None:
    sandbox.settings(poll_shape=shape)
    run = airflow.run_dag(make(apimaster))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


def test_a_task_row_of_new_api_that_failed_says_why(airflow: AirflowHarness, sandbox: Sandbox, apimaster: str) -> None:
    sandbox.settings(poll_shape="new_api")
    sandbox.faults(route="apimaster.submit", outcome="failed")
    error = failed(airflow.run_dag(one(apimaster)))
    assert (error.code, error.gateway_message) == ("image_generation_failed", "upstream task failed")
    assert error.billed is Billed.NO


@ONCE_EACH
@pytest.mark.parametrize("word", ["canceled", "CANCELLED", "expired", "FAILURE", "Timed Out", "TASK_STATUS_FAILED"])
def test_a_final_word_ends_the_wait_with_the_gateways_reason(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, make: Make, word: str, root: str
) -> None:
    body = {
        "aiRecord": {"status": word, "aiRecordDetail": {"errorMessage": "No capacity."}},
        "data": {"status": word, "fail_reason": "No capacity."},
    }
    sandbox.faults(route=f"{geminiimg_conn_id}.status", body=body)
    run = airflow.run_dag(make(geminiimg_conn_id))
    failed(run)
    [error] = recorded(root)
    assert isinstance(error, UpstreamFailedError)
    assert error.gateway_message == "No capacity."
    assert len(sandbox.calls(f"{geminiimg_conn_id}.status")) == 1
    assert len(sandbox.ledger()) == 1


async def test_an_empty_object_that_keeps_the_line_open_is_not_the_whole_answer() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}\n"
        yield b'{"data": [{"task_id": "t1", "status": "queued"}]}'

    body = await ResponseBody({}, 1000).read(pieces(), until_whole=True)
    gateway = get_gateway("apimaster")
    request = ImageRequest.build(operation="generate", prompt="a red fox").check("apimaster")
    assert gateway.submit(request, ()).parse(Reply(200, httpx.Headers(), body)).job_id == "t1"


def edit(conn_id: str, **arguments: Any) -> DAG:
    with DAG("answers", schedule=None) as dag:
        GeminiImageEditOperator(
            task_id="made", prompt="a red fox", geminiimg_conn_id=conn_id, resolution="512", deferrable=False,
            poll_interval=0.02, **arguments,
        )  # fmt: skip
    return dag


def as_data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)
@pytest.mark.parametrize(("make", "first"), [(edit, True), (edit, False), (batch, True)])
def test_an_input_that_comes_back_beside_the_result_is_not_landed(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    geminiimg_conn_id: str,
    root: str,
    make: Make,
    first: bool,
    tmp_path: Path,
) -> None:
    given, result = image_bytes((64, 64)), image_bytes((512, 512))
    (tmp_path / "in.png").write_bytes(given)
    images = [as_data_uri(given), as_data_uri(result)][:: 1 if first else -1]
    sandbox.faults(route="apimaster.status", body={"data": {"status": "SUCCESS", "output": images}})
    run = airflow.run_dag(make(geminiimg_conn_id, image=str(tmp_path / "in.png")))
    assert run.state == "success", run.log
    [image] = [image for found in read_records(root) for image in (found.record.manifest or {})["images"]]
    assert image["sha256"] == hashlib.sha256(result).hexdigest()
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize("geminiimg_conn_id", ["apimaster"], indirect=True)
def test_an_input_that_comes_back_alone_is_landed_and_is_not_what_was_asked_for(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, tmp_path: Path
) -> None:
    given = image_bytes((512, 512))
    (tmp_path / "in.png").write_bytes(given)
    sandbox.faults(route="apimaster.status", body={"data": {"status": "SUCCESS", "output": [as_data_uri(given)]}})
    run = airflow.run_dag(edit(geminiimg_conn_id, on_mismatch="fail", image=str(tmp_path / "in.png")))
    assert "The result is an unchanged input image" in str(failed(run))
    assert run.clear("made").state == "failed"
    assert len(sandbox.ledger()) == 1
