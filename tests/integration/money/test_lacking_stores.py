"""Outputs in stores that lack something: written without it where that is safe, else refused before money is spent."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.sdk import DAG
from botocore.config import Config

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.storage import Files, Openers, open_store
from airflow_provider_geminiimg.exceptions import BadRequestError, StorageError
from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS, default_s3_client
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from tests.harness.lacking import LackingStore, Matches, has_header, is_method, is_put
from tests.harness.moto import start_moto

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

ANIMALS = ["a red fox", "a grey wolf", "a brown bear"]
CHECKSUM = has_header("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_SDK_CHECKSUM", "HTTP_X_AMZ_TRAILER")
CONDITION = has_header("HTTP_IF_NONE_MATCH")


@dataclass(frozen=True)
class Lack:
    """What a store does not do, and how it says so."""

    matches: Matches
    status: int
    code: str


SAFE = {
    **{
        f"checksum headers, {status} {code}": Lack(CHECKSUM, status, code)
        for status, code in ((400, "InvalidArgument"), (403, "AccessDenied"), (501, "NotImplemented"))
    },
    "conditions, 501": Lack(CONDITION, 501, "NotImplemented"),
    "conditions, 400": Lack(CONDITION, 400, "InvalidRequest"),
    "content types": Lack(is_put(content_type="image/"), 415, "UnsupportedMediaType"),
    "checksums and conditions": Lack(lambda *a: CHECKSUM(*a) or CONDITION(*a), 501, "NotImplemented"),
    "reading back": Lack(is_method("GET", "HEAD"), 403, "AccessDenied"),
    "removing": Lack(is_method("DELETE"), 403, "AccessDenied"),
}
UNSAFE = {
    "PutObject, though multipart uploads": Lack(is_put(), 403, "AccessDenied"),
    "PutObject without encryption by KMS": Lack(is_put(), 400, "KMS.DisabledException"),
    "large objects (proxy)": Lack(is_put(larger=300_000), 413, "EntityTooLarge"),
    "large objects (quota)": Lack(is_put(larger=300_000), 400, "EntityTooLarge"),
    "names of sidecars": Lack(is_put(ends=".json"), 403, "AccessDenied"),
    "names of JPEGs": Lack(is_put(ends=".jpg"), 403, "AccessDenied"),
    "conditions, and a look": Lack(
        lambda request, size: CONDITION(request, size) or request["REQUEST_METHOD"] == "HEAD", 403, "AccessDenied"
    ),
}


@pytest.fixture(scope="module")
def lacking() -> LackingStore:
    return LackingStore()


@pytest.fixture(scope="module")
def _moto(lacking: LackingStore) -> Iterator[str]:
    with start_moto(lacking) as url:
        yield url


@pytest.fixture
def out(lacking: LackingStore, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory URI in a bucket of which a test may take something away."""

    monkeypatch.setattr(object_stores, "_CLIENTS", {})  # another test's client leads to another server
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    yield f"{s3}/out"
    lacking.mend()


@pytest.fixture
def take_away(lacking: LackingStore, out: str) -> Callable[[Lack], None]:
    def take(lack: Lack) -> None:
        lacking.refuse(lack.matches, lack.status, lack.code, under=out.removeprefix("s3:/"))

    return take


def objects(uri: str) -> list[str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
    return [entry["Key"] for entry in found.get("Contents", ())]


def single(conn_id: str, output_path: str, **more: Any) -> DAG:
    with DAG("one", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made",
            prompt="a red fox",
            resolution="512",
            poll_interval=0.02,
            geminiimg_conn_id=conn_id,
            output_path=output_path,
            **more,
        )
    return dag


def batch(conn_id: str, output_path: str, prompts: list[str] = ANIMALS, **more: Any) -> DAG:
    with DAG("many", schedule=None) as dag:
        GeminiImageBatchOperator(
            task_id="made",
            requests=prompts,
            resolution="512",
            poll_interval=0.02,
            geminiimg_conn_id=conn_id,
            output_path=output_path,
            **more,
        )
    return dag


def cause(run: Run) -> BaseException:
    error = run.task("made").error
    assert error is not None, run.log
    return error.__cause__ or error


# --- what can be written without --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lack", SAFE.values(), ids=SAFE)
def test_what_a_store_lacks_and_safety_does_not_need_is_left_out_with_one_warning(
    lack: Lack, take_away: Callable[[Lack], None], out: str, caplog: pytest.LogCaptureFixture
) -> None:
    take_away(lack)
    files = Files(AIRFLOW_OPENERS)
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            files.check_writable(out, 400_000)
            data = bytes([number]) * 400_000
            assert files.write(f"{out}/{number}.png", data, media_type="image/png", sha256=_digest(data))
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1, caplog.text
    left = [key for key in objects(out) if ".geminiimg-" in key]
    assert len({key.rpartition(".")[0] for key in left}) == (lack is SAFE["removing"])
    assert all(key in caplog.text for key in left)


def test_a_name_that_is_taken_is_not_written_over_where_conditions_are_refused_or_not_heeded(
    lacking: LackingStore, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    lacking.ignore("HTTP_IF_NONE_MATCH", under=out.removeprefix("s3:/"))
    for checked in (False, True):  # also where another process has made the check
        files = Files(AIRFLOW_OPENERS)
        if checked:
            files.check_writable(out)
            assert "does not support conditional writes" in caplog.text
        uri = f"{out}/{checked}.png"
        assert files.write(uri, b"one", media_type="image/png", sha256=_digest(b"one"))
        assert not files.write(uri, b"two", media_type="image/png", sha256=_digest(b"two"))
        assert files.read(uri, max_bytes=9) == b"one"


def test_what_a_store_takes_without_a_checksum_is_compared_also_where_it_encrypts(
    lacking: LackingStore, out: str, take_away: Callable[[Lack], None]
) -> None:
    take_away(SAFE["checksum headers, 501 NotImplemented"])
    lacking.encrypts = True
    files = Files(AIRFLOW_OPENERS)
    assert files.write(f"{out}/a.png", b"one", media_type="image/png", sha256=_digest(b"one"))
    lacking.corrupts = True
    with pytest.raises(StorageError, match="differs from the written bytes"):
        files.write(f"{out}/b.png", b"two", media_type="image/png", sha256=_digest(b"two"))
    lacking.corrupts = False
    assert objects(out) == ["out/a.png"]
    take_away(SAFE["reading back"])
    with pytest.raises(BadRequestError, match="cannot be compared with the written bytes"):
        files.check_writable(out)


@pytest.mark.parametrize("heeded", [True, False], ids=["heeded", "not heeded"])
def test_what_somebody_else_wrote_over_a_file_is_left_there(
    lacking: LackingStore, out: str, take_away: Callable[[Lack], None], heeded: bool
) -> None:
    take_away(SAFE["checksum headers, 501 NotImplemented"])
    if not heeded:
        lacking.ignore("HTTP_IF_MATCH", under=out.removeprefix("s3:/"))
    lacking.encrypts = True
    bucket, _, folder = out.removeprefix("s3://").partition("/")
    plain = boto3.client("s3", config=Config(request_checksum_calculation="when_required"))
    client = default_s3_client(None)

    def write_over(**_: Any) -> None:
        client.meta.events.unregister("after-call.s3.PutObject", unique_id="over")
        plain.put_object(Bucket=bucket, Key=f"{folder}/a.png", Body=b"somebody else's")

    def after_our_put(http_response: Any, **_: Any) -> None:
        if http_response.status_code == 200:
            write_over()

    client.meta.events.register("after-call.s3.PutObject", after_our_put, unique_id="over")
    files, uri = Files(Openers(s3_client=lambda _: client)), f"{out}/a.png"
    with pytest.raises(StorageError, match="was not removed"):
        files.write(uri, b"ours", media_type="image/png", sha256=_digest(b"ours"))
    assert files.read(uri, max_bytes=99) == b"somebody else's"


def test_a_store_that_does_not_heed_conditions_and_may_not_be_looked_at_is_refused(
    lacking: LackingStore, out: str
) -> None:
    under = out.removeprefix("s3:/")
    lacking.ignore("HTTP_IF_NONE_MATCH", under=under)
    lacking.refuse(is_method("HEAD", "GET"), 403, "AccessDenied", under=under)
    with pytest.raises(BadRequestError, match="cannot be written to"):
        Files(AIRFLOW_OPENERS).check_writable(out)
    assert objects(out) == []


@pytest.mark.parametrize("make", [single, batch], ids=["single", "batch"])
@pytest.mark.parametrize("lack", [SAFE["checksum headers, 400 InvalidArgument"], SAFE["checksums and conditions"]])
@pytest.mark.usefixtures("local_root")
def test_images_land_in_a_store_that_refuses_headers(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    apimaster: str,
    out: str,
    take_away: Callable[[Lack], None],
    lack: Lack,
    make: Callable[..., DAG],
) -> None:
    take_away(lack)
    run = airflow.run_dag(make(apimaster, out))
    assert run.state == "success", run.log
    paid = 1 if make is single else 3
    assert len(sandbox.ledger()) == paid
    assert len([key for key in objects(out) if key.endswith((".png", ".jpg", ".webp"))]) == paid
    assert not [key for key in objects(out) if ".geminiimg-" in key]
    run.retry("made")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == paid


# --- what is refused before money is spent ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [single, batch], ids=["single", "batch"])
@pytest.mark.parametrize("lack", UNSAFE.values(), ids=UNSAFE)
@pytest.mark.usefixtures("local_root")
def test_what_an_image_or_its_sidecar_needs_and_a_store_refuses_is_found_out_before_money_is_spent(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    apimaster: str,
    out: str,
    take_away: Callable[[Lack], None],
    lack: Lack,
    make: Callable[..., DAG],
) -> None:
    take_away(lack)
    run = airflow.run_dag(make(apimaster, out))
    error = cause(run)
    assert "output_path" in str(error)
    assert "cannot be written to" in str(error)
    assert sandbox.ledger() == []
    assert objects(out) == []


@pytest.mark.parametrize("stem", ["n" * 120, "n" * 60])
@pytest.mark.usefixtures("local_root")
def test_a_directory_in_which_the_name_of_the_image_gets_too_long_is_found_out_before_money_is_spent(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    apimaster: str,
    out: str,
    take_away: Callable[[Lack], None],
    stem: str,
) -> None:
    longest = len(f"{out.removeprefix('s3:/')}/{stem}.png") - 1
    take_away(Lack(lambda request, _: len(request["PATH_INFO"]) > longest, 400, "KeyTooLongError"))
    run = airflow.run_dag(single(apimaster, out, file_name=stem))
    assert "cannot be written to" in str(cause(run))
    assert sandbox.ledger() == []


def test_a_name_that_a_disk_takes_is_not_refused_and_a_longer_one_is_tried(tmp_path: Path) -> None:
    files, tried = Files(AIRFLOW_OPENERS), []
    disk = os.link

    def link(source: Any, target: Any) -> None:
        tried.append(len(Path(target).name))
        if tried[-1] > 143:  # as on an encrypting file system
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        disk(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", link)
        files.check_writable(str(tmp_path), stem="n" * 60)
        with pytest.raises((StorageError, BadRequestError), match="File name too long"):
            files.check_writable(str(tmp_path), stem="n" * 120)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_for_an_image_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.harness.storage_faults import DiskFaults

    disk = DiskFaults()
    disk.begin(lambda path, body: len(body) > 300_000)
    monkeypatch.setattr(os, "open", disk.open)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    with pytest.raises(StorageError, match=r"output_path: .* cannot be written to.*No space left"):
        Files(AIRFLOW_OPENERS).check_writable(str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_outputs_are_written_to_a_disk_without_hard_links_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    files, uri = Files(AIRFLOW_OPENERS), str(tmp_path / "out" / "a.png")
    files.check_writable(str(tmp_path / "out"))
    assert files.write(uri, b"one", media_type="image/png", sha256=_digest(b"one"))
    assert not files.write(uri, b"two", media_type="image/png", sha256=_digest(b"two"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert Path(uri).read_bytes() == b"one"
    assert caplog.text.count("without hard links") == 1


@pytest.mark.parametrize(
    "lack",
    [
        Lack(CHECKSUM, 400, "InvalidArgument"),
        Lack(CONDITION, 501, "NotImplemented"),
        Lack(has_header("HTTP_IF_MATCH"), 501, "NotImplemented"),
        Lack(is_method("DELETE"), 403, "AccessDenied"),
        Lack(lambda request, size: "list-type" in request["QUERY_STRING"], 403, "AccessDenied"),
        Lack(is_method("PUT"), 405, "MethodNotAllowed"),
    ],
    ids=["checksums", "creating", "replacing", "removing", "listing", "PUT"],
)
def test_the_root_needs_everything_and_says_what_it_lacks(
    lacking: LackingStore, out: str, sandbox: Sandbox, lack: Lack
) -> None:
    lacking.refuse(lack.matches, lack.status, lack.code, under=out.removeprefix("s3:/").rpartition("/")[0])
    with pytest.raises(StorageError, match="cannot hold the ledger") as caught:
        open_store(out, AIRFLOW_OPENERS).probe()
    assert not caught.value.retryable
    assert f"{lack.code} (HTTP {lack.status})" in caught.value.message
    assert "Set [geminiimg] root" in caught.value.hint
    assert "Check the bucket and the worker's network" not in caught.value.hint


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (400, "RequestTimeout")])
def test_what_may_pass_is_retryable(lacking: LackingStore, out: str, status: int, code: str) -> None:
    lacking.refuse(is_put(), status, code, under=out.removeprefix("s3:/"))
    with pytest.raises(StorageError, match=code) as caught:
        open_store(out, AIRFLOW_OPENERS).probe()
    assert caught.value.retryable


# --- what is refused after all ----------------------------------------------------------------------------------------


class _Png:
    """Uploads of images, told by their bytes; samples of the check are none."""

    def __call__(self, request: dict[str, Any], size: int) -> bool:
        body = request["wsgi.input"].getvalue()
        return bool(request["REQUEST_METHOD"] == "PUT" and body[1:4] == b"PNG")


@pytest.mark.usefixtures("local_root")
def test_a_batch_stops_buying_when_what_it_pays_for_can_not_be_stored_and_a_clear_lands_it_elsewhere(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, out: str, take_away: Callable[[Lack], None], s3: str
) -> None:
    prompts = [f"animal {number}" for number in range(12)]
    take_away(Lack(_Png(), 403, "AccessDenied"))
    run = airflow.run_dag(batch(apimaster, out, prompts, max_concurrency=2))
    assert run.state == "failed"
    paid = len(sandbox.ledger())
    assert paid <= 3
    elsewhere = batch(apimaster, f"{s3}/elsewhere", prompts, max_concurrency=2)
    run.clear("made", dag=elsewhere)
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 12
    assert len([key for key in objects(f"{s3}/elsewhere") if key.endswith(".png")]) == 12
    assert objects(out) == []


@pytest.mark.parametrize("conn", ["onemin", "apimaster"])
@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferrable"])
@pytest.mark.usefixtures("local_root")
def test_a_clear_with_another_output_path_lands_there_what_was_paid_for(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    request: pytest.FixtureRequest,
    out: str,
    s3: str,
    take_away: Callable[[Lack], None],
    conn: str,
    deferrable: bool,
) -> None:
    conn_id = request.getfixturevalue(conn)
    take_away(Lack(_Png(), 403, "AccessDenied"))
    run = airflow.run_dag(single(conn_id, out, file_name="hero", deferrable=deferrable))
    error = run.task("made").error
    assert isinstance(error, StorageError)
    assert "clear the task with another output_path" in str(error)
    run.retry("made")
    assert run.state == "failed"
    run.clear("made", dag=single(conn_id, f"{s3}/elsewhere", file_name="hero", deferrable=deferrable))
    assert run.state == "success", run.log
    assert [image["uri"] for image in run.task("made").value["images"]] == [f"{s3}/elsewhere/hero.png"]
    assert len(sandbox.ledger()) == 1
    run.clear("made", dag=single(conn_id, f"{s3}/elsewhere", file_name="hero", deferrable=deferrable))
    assert run.task("made").value["reused"]
    assert len(sandbox.ledger()) == 1


@pytest.mark.usefixtures("local_root")
def test_a_clear_to_another_place_that_can_not_be_written_either_says_that_the_image_was_paid_for(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, out: str, take_away: Callable[[Lack], None]
) -> None:
    take_away(Lack(_Png(), 403, "AccessDenied"))
    run = airflow.run_dag(single(apimaster, out))
    run.clear("made", dag=single(apimaster, "s3://no-such-bucket-here/x"))
    assert "The image was paid for." in str(cause(run))
    assert len(sandbox.ledger()) == 1


def test_a_store_that_accepts_and_never_answers_is_a_failure_that_may_pass(s3: str) -> None:
    import socket

    from botocore.config import Config

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = Config(read_timeout=0.1, retries={"max_attempts": 0})
        client = boto3.client("s3", endpoint_url=address, config=config)
        files = Files(Openers(s3_client=lambda _: client))
        for call in (
            lambda: files.check_writable(f"{s3}/out"),
            lambda: files.write(f"{s3}/out/a.png", b"one", media_type="image/png", sha256=_digest(b"one")),
            lambda: files.put(f"{s3}/out/a.json", b"{}", media_type="application/json"),
            lambda: files.read(f"{s3}/out/a.png", max_bytes=9),
            lambda: files.sha256(f"{s3}/out/a.png"),
        ):
            with pytest.raises(StorageError, match="ReadTimeoutError") as caught:
                call()
            assert caught.value.retryable


def test_who_asks_while_a_directory_is_checked_shares_the_outcome(lacking: LackingStore, out: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = Files(AIRFLOW_OPENERS)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: files.check_writable(out, 64), range(16)))
    assert len([path for path in lacking.puts if path.endswith(".json")]) == 1


@pytest.mark.parametrize("root", ["/", "//", "///", " / ", "file:///", "file://localhost/", "/.", "/./"])
def test_the_whole_disk_is_no_root_and_not_the_default_one(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", root)
    with pytest.raises(BadRequestError, match="root: "):
        open_store(settings.root(), AIRFLOW_OPENERS)


def test_nothing_is_bought_where_the_root_is_a_slash(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", "/")
    run = airflow.run_dag(single(apimaster, str(tmp_path / "out")))
    assert isinstance(cause(run), BadRequestError)
    assert "Set [geminiimg] root to a folder" in str(cause(run))
    assert sandbox.ledger() == []


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
