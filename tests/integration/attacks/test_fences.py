"""Fences: `[geminiimg] allowed_roots` against symbolic links, other connections, and addresses that look alike.

Each attack goes through an operator. What must stay true of each: nothing outside is read, written or connected to, and
an image that was paid for is still there for the next attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from airflow_provider_geminiimg.exceptions import Billed
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import FromTask, Target, every_write, image_bytes, outcome
from tests.harness.forbidden import Forbidden, answer

target, internet, forbidden = attacks.target, web.internet, web.forbidden
ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)


@pytest.fixture
def inside(target: Target, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that is allowed. Beside it lies a secret image."""
    folder = target.folder / "inside"
    folder.mkdir()
    (target.folder / "outside").mkdir()
    (target.folder / "outside" / "secret.png").write_bytes(image_bytes())
    roots = f"{folder}, s3://bucket/allowed, s3://ours@bucket/allowed, https://pictures.test/allowed"
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ALLOWED_ROOTS", roots)
    return folder


LINKS = {
    "to a file": ("leak.png", "outside/secret.png", "leak.png"),
    "to a folder": ("way-out", "outside", "way-out/secret.png"),
    "to the root of the disk": ("slash", "/", "slash/{folder}/outside/secret.png"),
    "upwards": ("up", "..", "up/outside/secret.png"),
}
OUTSIDE = "is outside [geminiimg] allowed_roots"


@pytest.mark.parametrize("name", LINKS)
def test_a_symbolic_link_inside_an_allowed_root_lets_no_input_in_from_outside(
    target: Target, inside: Path, name: str
) -> None:
    link, leads_to, uri = LINKS[name]
    (inside / link).symlink_to(leads_to if leads_to == ".." else target.folder / leads_to)
    target.refused_unsent(target.edit(f"{inside}/{uri.format(folder=target.folder)}"), OUTSIDE)


@pytest.mark.parametrize("name", LINKS)
@ONE_GATEWAY
def test_a_symbolic_link_inside_an_allowed_root_lets_no_output_out(target: Target, inside: Path, name: str) -> None:
    link, leads_to, uri = LINKS[name]
    (inside / link).symlink_to(leads_to if leads_to == ".." else target.folder / leads_to)
    folder, _, stem = uri.format(folder=target.folder).removesuffix(".png").rpartition("/")
    with every_write() as seen:
        run = target.generate(output_path=f"{inside}/{folder}", file_name=stem)
    target.refused_unsent(run, OUTSIDE)
    assert [path for path in seen if "outside" in path] == []


@ONE_GATEWAY
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "not fenced"])
def test_a_symbolic_link_that_appears_while_the_job_runs_is_not_written_through(
    target: Target, inside: Path, monkeypatch: pytest.MonkeyPatch, fenced: bool
) -> None:
    if not fenced:
        monkeypatch.delenv("AIRFLOW__GEMINIIMG__ALLOWED_ROOTS")

    def plant(handler: BaseHTTPRequestHandler) -> None:
        for end in ("png", "json"):
            (inside / f"fox.{end}").symlink_to(target.folder / "outside" / f"planted.{end}")
        answer(body=image_bytes())(handler)

    target.images.routes["/p.png"] = plant
    target.polls_answer(target.link())
    run = target.generate(output_path=str(inside), file_name="fox")
    assert {path.name for path in (target.folder / "outside").iterdir()} == {"secret.png"}
    if fenced:
        error = outcome(run)
        assert OUTSIDE in str(error)
        assert error.billed is Billed.YES
        for end in ("png", "json"):
            (inside / f"fox.{end}").unlink()
        target.lands(run.retry())
    else:
        assert run.state == "success", run.log


@ONE_GATEWAY
def test_a_folder_that_becomes_a_symbolic_link_while_the_job_runs_is_not_written_through(
    target: Target, inside: Path
) -> None:
    def swap(handler: BaseHTTPRequestHandler) -> None:
        (inside / "out").rename(inside / "moved")
        (inside / "out").symlink_to(target.folder / "outside")
        answer(body=image_bytes())(handler)

    target.images.routes["/p.png"] = swap
    target.polls_answer(target.link())
    run = target.generate(output_path=str(inside / "out"), file_name="fox")
    error = outcome(run)
    assert OUTSIDE in str(error)
    assert error.billed is Billed.YES
    assert {path.name for path in (target.folder / "outside").iterdir()} == {"secret.png"}
    (inside / "out").unlink()
    (inside / "moved").rename(inside / "out")
    target.lands(run.retry())


# Below the allowed s3://bucket/allowed and s3://ours@bucket/allowed.
OTHER_PLACES = {
    "another connection": "s3://theirs@bucket/allowed/p.png",
    "another connection that begins alike": "s3://ours2@bucket/allowed/p.png",
    "a connection in another case": "s3://OURS@bucket/allowed/p.png",
    "two connections": "s3://ours@theirs@bucket/allowed/p.png",
    "a prefix that begins alike": "s3://bucket/allowed-evil/p.png",
    "a bucket that begins alike": "s3://bucket-evil/allowed/p.png",
    "a bucket in another case": "s3://BUCKET/allowed/p.png",
    "upwards": "s3://bucket/allowed/../p.png",
    "a prefix in another case": "s3://bucket/ALLOWED/p.png",
    "an encoded slash": "s3://bucket/allowed%2Fp.png",
    "a doubled slash": "s3://bucket//allowed/p.png",
    "the bucket alone": "s3://bucket/p.png",
    "another scheme": "gs://bucket/allowed/p.png",
    "another name of the scheme": "s3n://theirs@bucket/allowed/p.png",
    "another path of an allowed host": "https://pictures.test/allowed-evil/p.png",
    "upwards at an allowed host": "https://pictures.test/allowed/%2e%2e/p.png",
    "a user who looks like an allowed host": "https://pictures.test@other.test/allowed/p.png",
    "a query that looks like an allowed host": "https://other.test?@pictures.test/allowed/p.png",
    "a backslash": "https://other.test\\@pictures.test/allowed/p.png",
    "another host": "https://other.test/allowed/p.png",
    **{
        f"upwards for a server, by {parts}": f"https://pictures.test/allowed/{parts}/p.png"
        for parts in (
            *("..;", "..;a=b", "%2e%2e;", "..%3b", "x/..;/..;", "%252e%252e", "%25252e%25252e", "..%252f", "..%255c"),
            *(".%00.", "..%00", "%00", "..%20", ".%09.", ".%0d%0a.", "..%3f", "..%23", "．．", "‥", "%ef%bc%8e%2e"),
            *(
                "%c0%ae%c0%ae",
                "%e0%80%ae.",
                "%uff0e%uff0e",
                "%u002e%u002e",
                "..%c0%af",
                ".%e2%80%8b.",
                "%" + "25" * 9 + "2e.",
            ),
        )
    },
}


@pytest.fixture
def aws_inside(connect: Callable[..., str], forbidden: Forbidden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to S3 leads to the forbidden server: boto3's own, and that of each connection."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", forbidden.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    for conn_id in ("theirs", "ours2"):
        connect(conn_id, conn_type="aws", login="a", password="b", extra={"endpoint_url": forbidden.url})


@ONE_GATEWAY
@pytest.mark.usefixtures("aws_inside", "inside")
@pytest.mark.parametrize("name", OTHER_PLACES)
def test_no_other_connection_bucket_or_prefix_passes_for_an_allowed_root(target: Target, name: str) -> None:
    uri = OTHER_PLACES[name]
    target.refused_unsent(target.edit(uri), "image")
    target.refused_unsent(target.edit(FromTask({"images": [{"uri": uri}]})), "image")
    target.refused_unsent(target.generate(output_path=uri.rpartition("/")[0], file_name="p"), "output_path")
    assert target.images.connections == 0


@ONE_GATEWAY
@pytest.mark.usefixtures("inside")
def test_escapes_and_parameters_that_lead_nowhere_else_are_fetched_as_they_are(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__GEMINIIMG__ALLOWED_ROOTS")
    target.images.otherwise = answer(body=image_bytes())
    paths = ("/allowed/100%25/p.png", "/allowed/a;b=..c/p.png", "/allowed/%252f/..p/...%20x/p.png", "/a%2520b/p..png")
    for path in paths:
        run = target.edit(target.link(f"{path}?sig=..%2f..%2f%00"))
        assert run.state == "success", run.log
    assert [path.partition("?")[0] for path, _ in target.images.requests] == list(paths)


@ONE_GATEWAY
def test_a_record_that_was_changed_by_hand_reads_nothing_outside_the_allowed_roots(
    target: Target, inside: Path, forbidden: Forbidden
) -> None:
    run = target.generate(output_path=str(inside), file_name="fox")
    [record] = target.root.glob("ledger/**/1.json")
    record.write_text(record.read_text().replace(f"{inside}/fox.png", f"{target.folder}/outside/secret.png"))
    error = outcome(run.clear("made", dag=target.dag(output_path=str(inside), file_name="copy")))
    assert "Can't tell whether the image" in str(error)
    assert error.billed is Billed.YES
    assert OUTSIDE in run.log
    assert not (inside / "copy.png").exists()
