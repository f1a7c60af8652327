"""Objects and images on disk, on S3 (over HTTP) and elsewhere: exclusive, conditional, literal, and honest."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from airflow_provider_geminiimg.core.storage import (
    Blob,
    Files,
    Openers,
    Store,
    decode_segment,
    encode_segment,
    join_uri,
    open_store,
)
from airflow_provider_geminiimg.core.storage import local as disk_module
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, StorageError
from airflow_provider_geminiimg.hooks import object_stores
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS, default_s3_client
from tests.harness.moto import WsgiApp, start_moto
from tests.harness.stores import STORES

CLAIMANTS = 8
RACES = 100


@pytest.fixture
def files() -> Files:
    return Files(AIRFLOW_OPENERS)


@pytest.fixture(params=STORES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A directory URI on disk, and in a bucket of each kind."""
    return (tmp_path / "out").as_uri() if request.param == "disk" else f"{request.getfixturevalue(request.param)}/out"


@pytest.fixture
def store(folder: str) -> Store:
    return open_store(folder, AIRFLOW_OPENERS)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store((tmp_path / "root").as_uri(), AIRFLOW_OPENERS)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(files: Files, uri: str, data: bytes) -> bool:
    return files.write(uri, data, media_type="image/png", sha256=sha256(data))


class Answers:
    """A WSGI middleware in front of S3 that answers as it is told to."""

    def __init__(self) -> None:
        self.before: list[tuple[str, int, str]] = []  # (method, status, code): instead of asking S3
        self.after: list[tuple[str, int, str]] = []  # likewise, after S3 has done it: a lost answer
        self.methods: list[str] = []

    def __call__(self, app: WsgiApp) -> WsgiApp:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            method = environ["REQUEST_METHOD"]
            self.methods.append(method)
            for script, is_after in ((self.before, False), (self.after, True)):
                if script and script[0][0] == method:
                    _, status, code = script.pop(0)
                    if is_after:
                        list(app(environ, lambda *_: None))
                    body = f"<Error><Code>{code}</Code><Message>-</Message></Error>".encode() if code else b""
                    start_response(f"{status} -", [("Content-Type", "application/xml")])
                    return [body]
            return app(environ, start_response)

        return answer


@pytest.fixture
def answers(s3: str) -> Iterator[tuple[Answers, Callable[[str | None], Any], str]]:
    """The middleware, clients that go through it, and a bucket behind it."""
    script = Answers()
    with start_moto(script) as url:
        client = boto3.client("s3", endpoint_url=url)
        yield script, lambda _: client, s3


# --- the ledger's objects ---------------------------------------------------------------------------------------------


def test_many_objects_are_removed_at_once_and_none_has_to_exist(store: Store) -> None:
    keys = [f"dag/run{number}/0.json" for number in range(5)]
    for key in [*keys[:-1], "dag/other.json"]:
        store.create(key, b"{}")
    store.delete_all(keys)
    store.delete_all([])
    assert list(store.keys("")) == ["dag/other.json"]


def test_objects_are_removed_only_if_their_content_is_as_wanted(store: Store) -> None:
    for number in range(5):
        store.create(f"dag/{number}.json", str(number).encode())
    seen = {}

    def is_wanted(key: str, blob: Blob) -> bool:
        seen[key] = blob.data
        return int(blob.data) > 1

    store.delete_where(["dag/absent.json", *(f"dag/{number}.json" for number in range(4))], is_wanted)
    assert seen == {f"dag/{number}.json": str(number).encode() for number in range(4)}
    assert list(store.keys("")) == ["dag/0.json", "dag/1.json", "dag/4.json"]


def test_objects_are_removed_only_if_they_have_not_changed(store: Store) -> None:
    versions = {f"dag/{number}.json": str(store.create(f"dag/{number}.json", b"old")) for number in range(4)}
    assert store.replace("dag/1.json", b"new", versions["dag/1.json"])
    store.delete("dag/2.json")
    store.create("dag/2.json", b"another")
    assert store.delete_unchanged({**versions, "dag/absent.json": "1"}) == {"dag/1.json", "dag/2.json"}
    assert sorted(store.keys("")) == ["dag/1.json", "dag/2.json"]
    assert store.delete_unchanged({}) == set()


def test_more_objects_than_one_request_takes_are_removed(
    answers: tuple[Answers, Callable[[str | None], Any], str],
) -> None:
    script, clients, bucket = answers
    store = open_store(f"{bucket}/many", Openers(s3_client=clients))
    keys = [f"{number}.json" for number in range(1001)]
    for key in (keys[0], keys[-1]):
        store.create(key, b"{}")
    script.methods.clear()
    store.delete_all(keys)
    assert script.methods == ["POST", "POST"]
    assert list(store.keys("")) == []


def test_a_bucket_that_does_not_remove_many_at_once_removes_one_by_one(
    answers: tuple[Answers, Callable[[str | None], Any], str],
) -> None:
    script, clients, bucket = answers
    store = open_store(f"{bucket}/one", Openers(s3_client=clients))
    for key in ("a.json", "b.json"):
        store.create(key, b"{}")
    script.before = [("POST", 501, "NotImplemented")]
    script.methods.clear()
    store.delete_all(["a.json", "b.json"])
    assert script.methods == ["POST", "DELETE", "DELETE"]
    assert list(store.keys("")) == []


def test_a_removal_that_is_denied_is_an_error(answers: tuple[Answers, Callable[[str | None], Any], str]) -> None:
    script, clients, bucket = answers
    store = open_store(f"{bucket}/denied", Openers(s3_client=clients))
    store.create("a.json", b"{}")
    script.before = [("POST", 403, "AccessDenied"), ("DELETE", 403, "AccessDenied")]
    with pytest.raises(StorageError, match="delete_object on"):
        store.delete_all(["a.json"])
    assert list(store.keys("")) == ["a.json"]


def test_the_first_creator_of_a_key_wins_and_the_object_stays_his(store: Store) -> None:
    assert store.create("dag/run/0.json", b"first")
    assert store.create("dag/run/0.json", b"second") is None
    found = store.read("dag/run/0.json")
    assert found is not None
    assert found.data == b"first"


def test_the_version_that_create_gives_is_the_one_that_read_gives(store: Store) -> None:
    version = store.create("a", b"1")
    found = store.read("a")
    assert found is not None
    assert found.version == version


def test_replacing_needs_the_version_that_is_stored(store: Store) -> None:
    first = store.create("a", b"1")
    assert first
    second = store.replace("a", b"2", first)
    assert second
    assert store.replace("a", b"3", first) is None
    assert store.replace("a", b"3", second)
    found = store.read("a")
    assert found is not None
    assert found.data == b"3"


def test_what_is_gone_is_not_replaced(store: Store) -> None:
    version = store.create("a/b", b"1")
    assert version
    store.delete("a/b")
    assert store.replace("a/b", b"2", version) is None
    assert store.replace("never/there", b"2", version) is None
    assert store.read("a/b") is None


def test_deleting_twice_is_fine(store: Store) -> None:
    store.create("a", b"1")
    store.delete("a")
    store.delete("a")
    assert store.read("a") is None


def test_keys_come_sorted_below_a_prefix_and_without_temporary_files(store: Store) -> None:
    for key in ("b/2", "b/10", "a/x", "b-c/1", "b/.hidden"):
        store.create(key, b"-")
    version = store.create("b/3", b"-")
    assert version
    store.replace("b/3", b"+", version)
    assert list(store.keys("b/")) == ["b/.hidden", "b/10", "b/2", "b/3"]
    found = ["b-c/1", "b/.hidden", "b/10", "b/2", "b/3"]
    assert list(store.keys("b")) == sorted(found, key=place_of(store))
    assert list(store.keys("")) == ["a/x", *sorted(found, key=place_of(store))]
    assert list(store.keys("nothing/here/")) == []


@pytest.mark.parametrize("after", ["", "a/x", "b", "b-", "b/", "b/.hidden", "b/1", "b/3/4", "b/3/x", "b/4", "c"])
def test_a_listing_goes_on_behind_any_key(store: Store, after: str) -> None:
    keys = ["a/x", "b-c/1", "b/.hidden", "b/10", "b/2", "b/3/x", "b/3/y/z", "b/30"]
    for key in reversed(keys):
        store.create(key, b"-")
    place, found = place_of(store), list(store.keys("", after))
    behind = sorted((key for key in keys if place(key) > place(after)), key=place)
    if place is by_folder and after in ("b", "b-"):  # between a file and a folder; nothing is asked for behind these
        whole = list(store.keys(""))
        assert found == whole[len(whole) - len(found) :]
    else:
        assert found == behind
        assert list(store.keys("b/", after)) == [key for key in behind if key.startswith("b/")]


def by_folder(key: str) -> list[str]:
    return key.split("/")


def place_of(store: Store) -> Callable[[str], Any]:
    """What a store orders keys by: SeaweedFS lists folder by folder, the others list by all bytes."""
    return by_folder if store.uri.startswith("s3://images/") else os.fsencode


def test_a_listing_on_disk_reads_no_folder_without_a_wanted_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = disk_module.LocalStore(str(tmp_path))
    for number in range(100):
        store.create(f"run/{number:03}/1.json", b"-")
    read: list[str] = []
    scandir = os.scandir

    def noted(path: str) -> Any:
        read.append(path.rpartition("/")[2])
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    found = store.keys("run/", "run/089/1.json")
    assert [next(found), next(found)] == ["run/090/1.json", "run/091/1.json"]
    assert read == ["run", "089", "090", "091"]
    assert [*store.keys("run/099")] == ["run/099/1.json"]
    assert read[4:] == ["run", "099"]


def test_folders_are_the_next_parts_of_keys_and_nothing_else(store: Store) -> None:
    for key in ("b/2/x", "b/10/y", "b/10/z", "b/file", "bc/1/x"):
        store.create(key, b"-")
    assert store.folders("b") == ["10", "2"]
    assert store.folders("nothing/here") == []


def test_more_keys_than_a_page_holds_are_all_listed(s3: str) -> None:
    def short_pages(app: WsgiApp) -> WsgiApp:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if "list-type=2" in environ["QUERY_STRING"]:
                environ["QUERY_STRING"] += "&max-keys=2"
            return app(environ, start_response)

        return answer

    with start_moto(short_pages) as url:
        client = boto3.client("s3", endpoint_url=url)
        store = open_store(f"{s3}/root", Openers(s3_client=lambda _: client))
        for key in "abcde":
            store.create(key, b"")
        assert list(store.keys("")) == list("abcde")


def test_a_new_object_is_young_and_never_younger_than_now(store: Store) -> None:
    store.create("a", b"1")
    found = store.read("a")
    assert found is not None
    assert 0 <= found.age < 60


def test_age_is_counted_by_the_disks_clock_and_never_below_zero(local: Store, tmp_path: Path) -> None:
    local.create("a", b"1")
    written = (tmp_path / "root" / "a").stat().st_mtime
    for seconds, expected in ((-3_600, 3_600), (3_600, 0)):
        os.utime(tmp_path / "root" / "a", (written + seconds, written + seconds))
        found = local.read("a")
        assert found is not None
        assert found.age == pytest.approx(expected, abs=5)


def test_age_on_s3_is_counted_by_the_date_of_the_answer(answers: Any) -> None:
    script, factory, bucket = answers
    store = open_store(f"{bucket}/root", Openers(s3_client=factory))
    store.create("a", b"1")
    client = factory(None)
    client.meta.events.register_last(
        "after-call.s3.GetObject",
        lambda parsed, **_: parsed["ResponseMetadata"]["HTTPHeaders"].update(date="Fri, 01 Jan 2100 00:00:00 GMT"),
    )
    found = store.read("a")
    assert found is not None
    assert found.age > 50 * 365 * 86_400
    assert script.methods[-1] == "GET"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", "a/../b", "a#b", "a\0"])
def test_a_key_that_could_leave_the_root_is_refused(store: Store, key: str) -> None:
    with pytest.raises(StorageError, match="not a valid key"):
        store.create(key, b"")


def test_percent_signs_in_keys_are_literal(store: Store) -> None:
    store.create("a%2Fb/%2E%2E", b"1")
    assert store.read("a/b/%2E%2E") is None
    assert list(store.keys("")) == ["a%2Fb/%2E%2E"]


def test_folders_of_the_root_are_private_and_so_are_its_files(local: Store, tmp_path: Path) -> None:
    local.create("a/b", b"1")
    version = local.create("c", b"1")
    assert version
    local.replace("c", b"2", version)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "root", *(tmp_path / "root").rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_root_that_keeps_its_promises_passes_the_probe_and_is_left_empty(store: Store) -> None:
    store.probe()
    assert list(store.keys("")) == []


def test_a_root_that_creates_the_same_key_twice_is_refused(s3: str) -> None:
    def deaf(app: WsgiApp) -> WsgiApp:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return app(environ, start_response)

        return answer

    with start_moto(deaf) as url:
        client = boto3.client("s3", endpoint_url=url)
        store = open_store(f"{s3}/deaf", Openers(s3_client=lambda _: client))
        for _ in range(2):
            with pytest.raises(StorageError, match="creates the same object twice") as caught:
                store.probe()
            assert not caught.value.retryable


def test_a_root_that_replaces_whatever_is_there_is_refused(s3: str) -> None:
    def deaf(app: WsgiApp) -> WsgiApp:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ.pop("HTTP_IF_MATCH", None)
            return app(environ, start_response)

        return answer

    with start_moto(deaf) as url:
        client = boto3.client("s3", endpoint_url=url)
        with pytest.raises(StorageError, match="ignores conditions"):
            open_store(f"{s3}/deaf", Openers(s3_client=lambda _: client)).probe()


def test_a_root_is_probed_once_per_process(answers: Any) -> None:
    script, factory, bucket = answers
    store = open_store(f"{bucket}/once", Openers(s3_client=factory))
    store.probe()
    asked = len(script.methods)
    open_store(f"{bucket}/once/", Openers(s3_client=factory)).probe()
    assert len(script.methods) == asked


@pytest.mark.parametrize("uri", ["hdfs://name/root", "https://example.com/root", "memory://x/y"])
def test_a_root_without_exclusive_creation_is_refused(uri: str) -> None:
    with pytest.raises(BadRequestError, match="root"):
        open_store(uri, AIRFLOW_OPENERS)


# --- races ------------------------------------------------------------------------------------------------------------


def winners(races: int, attempt: Callable[[int, int], object]) -> list[int]:
    """How many of eight threads succeed in each race, all of them let go at once."""
    start = threading.Barrier(CLAIMANTS)

    def claimant(number: int) -> list[bool]:
        won = []
        for race in range(races):
            start.wait(30)
            won.append(attempt(race, number) is not None)
        return won

    with ThreadPoolExecutor(CLAIMANTS) as pool:
        results = list(pool.map(claimant, range(CLAIMANTS)))
    return [sum(race) for race in zip(*results, strict=True)]


def test_eight_claimants_have_one_winner_in_each_of_100_races(store: Store) -> None:
    claims = winners(RACES, lambda race, number: store.create(f"race/{race}", f"{race}/{number}".encode()))
    assert claims == [1] * RACES
    assert len(list(store.keys("race/"))) == RACES


def test_eight_writers_of_one_version_have_one_winner(store: Store) -> None:
    versions = {race: str(store.create(f"r/{race}", b"old")) for race in range(20)}
    replaced = winners(20, lambda race, number: store.replace(f"r/{race}", f"{number}".encode(), versions[race]))
    assert replaced == [1] * 20


def _claim(root: str, start: Any, results: Any, number: int) -> None:
    store = open_store(root, AIRFLOW_OPENERS)
    version = str(store.create("counter", b"0") or "")
    start.wait(60)
    won = [race for race in range(RACES) if store.create(f"race/{race}", f"{number}".encode())]
    counted = 0
    while counted < 25:
        found = store.read("counter")
        assert found is not None
        version = found.version
        counted += store.replace("counter", str(int(found.data) + 1).encode(), version) is not None
    results.put(won)


def test_four_processes_on_one_disk_have_one_winner_and_lose_no_update(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    root = (tmp_path / "root").as_uri()
    processes = [context.Process(target=_claim, args=(root, start, results, n)) for n in range(4)]
    for process in processes:
        process.start()
    won = [race for _ in processes for race in results.get(timeout=120)]
    for process in processes:
        process.join(60)
    assert sorted(won) == list(range(RACES))
    counter = open_store(root, AIRFLOW_OPENERS).read("counter")
    assert counter is not None
    assert counter.data == b"100"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_creation_whose_answer_was_lost_comes_back_as_taken_with_our_own_claim(answers: Any) -> None:
    script, factory, bucket = answers
    store = open_store(f"{bucket}/root", Openers(s3_client=factory))
    script.after = [("PUT", 500, "InternalError")]
    assert store.create("a", b"our claim") is None
    found = store.read("a")
    assert found is not None
    assert found.data == b"our claim"


def test_a_link_whose_answer_was_lost_counts_as_ours(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link_and_lose(source: Any, target: Any) -> None:
        real(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link_and_lose)
    assert local.create("a", b"1")


def test_a_conflict_with_another_write_is_asked_again(answers: Any) -> None:
    script, factory, bucket = answers
    store = open_store(f"{bucket}/root", Openers(s3_client=factory))
    script.before = [("PUT", 409, "ConditionalRequestConflict")] * 2
    assert store.create("a", b"1")


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchBucket"), (501, "NotImplemented")])
def test_a_refusal_on_reading_is_never_nothing(answers: Any, status: int, code: str) -> None:
    script, factory, bucket = answers
    store = open_store(f"{bucket}/root", Openers(s3_client=factory))
    script.before = [("GET", status, code)] * 2  # also without checksum headers
    with pytest.raises(StorageError, match=code) as caught:
        store.read("a")
    assert caught.value.billed is Billed.NO


def test_a_missing_bucket_is_named(s3: str) -> None:
    store = open_store("s3://no-such-bucket-here/root", AIRFLOW_OPENERS)
    for call in (lambda: store.read("a"), lambda: store.create("a", b""), lambda: list(store.keys(""))):
        with pytest.raises(StorageError, match="no-such-bucket-here"):
            call()


def test_an_unreachable_store_is_a_storage_error() -> None:
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(retries={"total_max_attempts": 1}),
    )
    with pytest.raises(StorageError, match="EndpointConnectionError"):
        open_store("s3://bucket/root", Openers(s3_client=lambda _: client)).read("a")


def test_an_unreadable_object_on_disk_is_never_nothing(local: Store, tmp_path: Path) -> None:
    local.create("a/b", b"1")
    (tmp_path / "root" / "a" / "c").mkdir()
    with pytest.raises(StorageError, match="not a regular file"):
        local.read("a/c")
    (tmp_path / "root" / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="loop"):
        local.read("loop")
    with pytest.raises(StorageError):
        local.read("x" * 300)


def test_below_a_file_there_is_nothing(local: Store) -> None:
    local.create("a", b"1")
    assert local.read("a/b") is None
    with pytest.raises(StorageError):
        local.create("a/b", b"1")


def test_a_disk_without_hard_links_is_refused(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StorageError, match="without hard links"):
        local.probe()


def test_a_lock_that_nobody_gives_back_is_an_error_in_the_end(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    version = local.create("a", b"1")
    assert version
    local.read("a")
    monkeypatch.setattr(disk_module, "LOCK_SECONDS", 0.05)
    with (tmp_path / "root" / ".#lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="locked"):
            local.replace("a", b"2", version)
    assert local.replace("a", b"2", version)


def test_a_failed_write_leaves_no_temporary_file(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            local.create("a", b"1")
    assert [path.name for path in (tmp_path / "root").rglob("*") if path.is_file()] == []


def test_bodies_do_not_reach_botocores_log(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        open_store(f"{s3}/root", AIRFLOW_OPENERS).create("a", b"CANARY-BODY")
    assert "PutObject" in caplog.text
    assert "CANARY-BODY" not in caplog.text


# --- images ---------------------------------------------------------------------------------------------------------


def test_an_image_is_written_once_and_the_same_bytes_are_fine(files: Files, folder: str) -> None:
    uri = join_uri(folder, "a/picture.png")
    assert write(files, uri, b"one")
    assert write(files, uri, b"one")
    assert not write(files, uri, b"two")
    assert files.read(uri, max_bytes=3) == b"one"


def test_a_sidecar_may_be_replaced(files: Files, folder: str) -> None:
    uri = join_uri(folder, "a/picture.json")
    for text in (b"{}", b"[]"):
        files.put(uri, text, media_type="application/json")
    assert files.read(uri, max_bytes=10) == b"[]"


def test_content_type_and_checksum_are_kept_on_s3(files: Files, s3: str) -> None:
    data = b"bytes"
    files.write(f"{s3}/p.webp", data, media_type="image/webp", sha256=sha256(data))
    head = default_s3_client(None).head_object(Bucket=s3.removeprefix("s3://"), Key="p.webp", ChecksumMode="ENABLED")
    assert head["ContentType"] == "image/webp"
    assert head["ChecksumSHA256"]


def test_an_object_without_a_checksum_is_compared_by_its_bytes(files: Files, s3: str) -> None:
    default_s3_client(None).put_object(Bucket=s3.removeprefix("s3://"), Key="p.png", Body=b"one")
    assert write(files, f"{s3}/p.png", b"one")
    assert not write(files, f"{s3}/p.png", b"two")


def test_a_write_whose_answer_was_lost_counts_as_written(answers: Any) -> None:
    script, factory, bucket = answers
    script.after = [("PUT", 500, "InternalError")]
    assert write(Files(Openers(s3_client=factory)), f"{bucket}/p.png", b"one")


def test_a_file_on_disk_gets_the_mode_of_the_users_umask(files: Files, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(files, str(tmp_path / "new" / "p.png"), b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "p.png").stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]


def test_an_absent_or_oversized_input_is_a_bad_request(files: Files, folder: str) -> None:
    uri = join_uri(folder, "p.png")
    with pytest.raises(BadRequestError, match="does not exist"):
        files.read(uri, max_bytes=10)
    write(files, uri, b"12345")
    with pytest.raises(BadRequestError, match="larger than the 4 bytes"):
        files.read(uri, max_bytes=4)


def test_a_named_pipe_is_no_input(files: Files, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        files.read(str(tmp_path / "pipe"), max_bytes=10)


def test_state_tells_there_from_gone(files: Files, folder: str) -> None:
    uri = join_uri(folder, "p.png")
    assert files.state(uri) == "gone"
    write(files, uri, b"")
    assert files.state(uri) == "there"


@pytest.mark.parametrize("before", [[("HEAD", 403, "")], [("HEAD", 404, ""), ("GET", 404, "NoSuchBucket")]])
def test_state_is_unknown_where_s3_would_not_say(answers: Any, before: list[tuple[str, int, str]]) -> None:
    script, factory, bucket = answers
    script.before = before
    assert Files(Openers(s3_client=factory)).state(f"{bucket}/p.png") == "unknown"


def test_which_of_some_files_are_there(files: Files, folder: str) -> None:
    wanted = [join_uri(folder, f"p.{extension}") for extension in ("png", "jpg", "json")]
    assert files.there(wanted) == []
    for uri in (*wanted[1:], join_uri(folder, "p.png.bak")):
        write(files, uri, b"x")
    assert files.there(wanted) == wanted[1:]


@pytest.mark.parametrize("before", [[], [("GET", 403, "AccessDenied")]], ids=["may list", "may not list"])
def test_a_bucket_says_which_files_are_there_also_to_who_may_not_list_it(
    answers: Any, before: list[tuple[str, int, str]]
) -> None:
    script, factory, bucket = answers
    files = Files(Openers(s3_client=factory))
    write(files, f"{bucket}/p.json", b"x")
    script.before = before
    assert files.there([f"{bucket}/p.png", f"{bucket}/p.json"]) == [f"{bucket}/p.json"]


def test_a_folder_that_took_files_is_believed_to_for_a_while_and_then_asked_again(
    files: Files, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.check_writable(s3)
    boto3.client("s3").delete_bucket(Bucket=s3.removeprefix("s3://"))
    files.check_writable(s3)
    monkeypatch.setattr("airflow_provider_geminiimg.core.storage.write_checks.VALID_SECONDS", 0.0)
    monkeypatch.setattr("airflow_provider_geminiimg.core.storage.write_checks._EFFORT", 0.0)
    again = Files(AIRFLOW_OPENERS)
    for _ in range(2):
        with pytest.raises(BadRequestError, match="output_path"):
            again.check_writable(s3)


def test_a_writable_folder_passes_and_stays_empty(files: Files, folder: str) -> None:
    files.check_writable(folder)
    assert list(open_store(folder, AIRFLOW_OPENERS).keys("")) == []


@pytest.mark.parametrize(
    "bucket", ["my bucket", "a+b", "b:80", "é", "arn:aws:s3:us-east-1:123456789012:accesspoint/name"]
)
def test_a_name_that_no_bucket_can_have_is_refused_with_how_to_write_it(files: Files, s3: str, bucket: str) -> None:
    with pytest.raises(BadRequestError, match="Correct the name, region and endpoint of the bucket") as error:
        files.check_writable(f"s3://{bucket}/pictures")
    assert "s3://arn:aws:s3:region:account:accesspoint:name/key" in error.value.hint
    with pytest.raises(StorageError) as refused:
        open_store(f"s3://{bucket}/root", AIRFLOW_OPENERS).probe()
    assert not refused.value.retryable


def test_an_unwritable_bucket_is_refused_before_anything_is_sent(files: Files, s3: str) -> None:
    with pytest.raises(BadRequestError, match="output_path: s3://no-such-bucket-here/x"):
        files.check_writable("s3://no-such-bucket-here/x")


def test_an_unwritable_folder_is_refused_before_anything_is_sent(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadRequestError, match="output_path"):
        files.check_writable(str(tmp_path / "file" / "below"))
    with pytest.raises(BadRequestError, match="output_path"):
        files.check_writable("/proc/nowhere")


def test_a_web_address_is_no_place_for_files(files: Files) -> None:
    files.check("https://example.com/a.png?sig=SECRET", "image")
    for call in (
        lambda: files.read("https://example.com/a.png?sig=SECRET", max_bytes=1),
        lambda: files.check_writable("https://example.com/a"),
    ):
        with pytest.raises(BadRequestError) as caught:
            call()
        assert "SECRET" not in str(caught.value)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "picture.png",
        "./picture.png",
        "~/picture.png",
        "",
        "s3:///key",
        "s3://conn@/key",
        "s3://bucket/a/../b",
        "/a/../b",
        "file:///a/..",
        "file://host/a",
        "https://example.com/a/%2e%2e/b",
        "https://example.com/a\\..\\b",
        "/a\0b",
        "simplecache::s3://bucket/key",
        "gs://bucket?sig=SECRET/key",
        "s3://bucket#x/key",
    ],
)
def test_a_uri_that_is_no_plain_absolute_address_is_refused(files: Files, uri: str) -> None:
    with pytest.raises(BadRequestError, match="reference_images"):
        files.check(uri, "reference_images")


def test_a_data_uri_is_refused_without_its_bytes(files: Files) -> None:
    with pytest.raises(BadRequestError, match="image") as caught:
        files.check("data:image/png;base64,CANARY", "image")
    assert "CANARY" not in str(caught.value)


def test_the_connection_of_a_uri_reaches_the_client_factory(s3: str) -> None:
    asked = []

    def factory(conn_id: str | None) -> Any:
        asked.append(conn_id)
        return default_s3_client(None)

    bucket = s3.removeprefix("s3://")
    files = Files(Openers(s3_client=factory))
    files.state(f"s3://my_aws@{bucket}/a")
    files.state(f"{s3}/a")
    open_store(f"s3://team@{bucket}/root", Openers(s3_client=factory)).read("a")
    assert set(asked) == {"my_aws", None, "team"}


def test_keys_on_s3_are_literal(files: Files, s3: str) -> None:
    for name in ("a%20b?c#d.png", "a b", "ü+~=&"):
        write(files, f"{s3}/{name}", b"1")
    listed = default_s3_client(None).list_objects_v2(Bucket=s3.removeprefix("s3://"))["Contents"]
    assert {entry["Key"] for entry in listed} == {"a%20b?c#d.png", "a b", "ü+~=&"}


def test_a_name_joins_a_directory_with_or_without_a_slash() -> None:
    assert join_uri("s3://b/d", "n.png") == join_uri("s3://b/d/", "n.png") == "s3://b/d/n.png"


# --- allowed roots ----------------------------------------------------------------------------------------------------


def allowed(*roots: str) -> Files:
    return Files(AIRFLOW_OPENERS, allowed_roots=roots)


@pytest.mark.parametrize(
    ("root", "inside", "outside"),
    [
        ("s3://b/team", "s3://b/team/x.png", "s3://b/teams/x.png"),
        ("s3://b/team/", "s3://b/team", "s3://b/tea"),
        ("s3://b", "s3://b/any/thing", "s3://bb/any"),
        ("s3://b/", "s3a://b/any/thing", "gs://b/any"),
        ("s3://b/a%2Fb", "s3://b/a%2Fb/c", "s3://b/a/b/c"),
        ("s3://conn@b/team", "s3://conn@b/team/x", "s3://b/team/x"),
        ("s3://b/team", "s3://b/team/x", "s3://other@b/team/x"),
        ("https://cdn.example.com/img", "HTTPS://CDN.example.com/img/a?x=1", "https://cdn.example.com/imgs/a"),
        ("https://cdn.example.com", "https://cdn.example.com/a", "https://cdn.example.com.evil.com/a"),
        ("https://cdn.example.com", "https://cdn.example.com/a", "https://cdn.example.com@evil.com/a"),
        ("gs://b/x", "gs://b/x/y", "gs://b/y"),
    ],
)
def test_allowed_roots_are_prefixes_of_whole_segments_with_their_connection(
    root: str, inside: str, outside: str
) -> None:
    files = allowed("s3://unrelated/", root)
    files.check(inside, "image")
    with pytest.raises(BadRequestError, match=r"image: .* outside") as caught:
        files.check(outside, "image")
    assert "s3://unrelated/" in str(caught.value)


def test_symbolic_links_are_resolved_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "way-out").symlink_to(tmp_path / "secret")
    (tmp_path / "real" / "leak.png").symlink_to(tmp_path / "secret" / "p.png")
    files = allowed((tmp_path / "alias").as_uri())
    files.check(str(tmp_path / "real" / "p.png"), "image")
    files.check(f"local://{tmp_path}/alias/new/p.png", "image")
    for outside in ("real/way-out/p.png", "real/leak.png", "secret/p.png", "realistic/p.png"):
        with pytest.raises(BadRequestError, match="outside"):
            files.check(str(tmp_path / outside), "image")


def test_every_call_refuses_what_is_outside(tmp_path: Path) -> None:
    files = allowed(str(tmp_path / "in"))
    uri = str(tmp_path / "out" / "p.png")
    for call in (
        lambda: files.read(uri, max_bytes=1),
        lambda: write(files, uri, b"1"),
        lambda: files.put(uri, b"1", media_type="image/png"),
        lambda: files.check_writable(str(tmp_path / "out")),
    ):
        with pytest.raises(BadRequestError, match="outside"):
            call()
    assert files.state(uri) == "unknown"  # what landed when it was allowed is no error
    assert not (tmp_path / "out").exists()


# --- connections and other storage ------------------------------------------------------------------------------------


def test_an_airflow_connection_opens_s3(s3: str, connect: Callable[..., str]) -> None:
    connect(
        "my_aws",
        conn_type="aws",
        login="key",
        password="secret",
        extra={"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"},
    )
    uri = s3.replace("s3://", "s3://my_aws@") + "/p.png"
    assert write(Files(AIRFLOW_OPENERS), uri, b"1")
    assert default_s3_client("my_aws") is default_s3_client("my_aws")
    assert default_s3_client("my_aws") is not default_s3_client(None)


def test_a_connection_that_does_not_exist_is_refused_and_no_other_identity_is_used(s3: str) -> None:
    uri = s3.replace("s3://", "s3://no_such_conn@") + "/p.png"
    with pytest.raises(BadRequestError, match="no_such_conn"):
        write(Files(AIRFLOW_OPENERS), uri, b"1")


def test_one_client_serves_all_threads_of_a_process(s3: str) -> None:
    with ThreadPoolExecutor(CLAIMANTS) as pool:
        clients = set(pool.map(lambda _: id(default_s3_client(None)), range(CLAIMANTS)))
    assert len(clients) == 1


@pytest.fixture
def other() -> str:
    """A directory URI on a file system that only fsspec knows."""
    from airflow.sdk.io import attach
    from airflow.sdk.io.store import _STORE_CACHE
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    _STORE_CACHE.pop("memory", None)  # whoever asked for it before there was one left an empty store behind
    attach("memory", fs=MemoryFileSystem())
    return "memory://bucket/out"


def test_other_storage_goes_through_airflow(files: Files, other: str) -> None:
    uri = join_uri(other, "a/p.png")
    files.check_writable(other)
    assert files.state(uri) == "gone"
    with pytest.raises(BadRequestError, match="does not exist"):
        files.read(uri, max_bytes=5)
    assert write(files, uri, b"one")
    assert write(files, uri, b"one")
    assert not write(files, uri, b"two")
    assert files.state(uri) == "there"
    files.put(uri, b"three", media_type="image/png")
    assert files.read(uri, max_bytes=5) == b"three"


def test_a_scheme_that_no_provider_serves_is_refused_by_name(files: Files) -> None:
    with pytest.raises(BadRequestError, match="no installed Airflow provider supports nowhere://"):
        files.check_writable("nowhere://bucket/out")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        ("manual__2026-01-01T00:00:00+00:00", "manual__2026-01-01T00:00:00+00:00"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("...", "..."),
        ("", "="),
        ("=", "%3D"),
        ("x::y", "x%3A%3Ay"),
        ("x:y:z", "x:y:z"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("ü #", "%C3%BC%20%23"),
        ("a" * 120, "a" * 120),
    ],
)
def test_a_segment_is_readable_and_harmless(text: str, segment: str) -> None:
    assert encode_segment(text) == segment
    assert decode_segment(segment) == (text or None)


def test_a_name_that_was_cut_is_not_taken_for_another_one() -> None:
    assert decode_segment(encode_segment("x" * 121)) is None
    assert decode_segment("a%2Fb") == "a/b"
    assert decode_segment("a%2fb") is None
    assert decode_segment("%FF") is None


def test_different_texts_never_share_a_segment() -> None:
    texts = ["", ".", "..", "=", "%", "%2E", "a/b", "a%2Fb", "a:b", "a::b", "a%3A%3Ab", "a b", "a+b", "x" * 120]
    texts += ["x" * 121, "x" * 122, "ü" * 40, "ü" * 41, encode_segment("x" * 121)]
    segments = [encode_segment(text) for text in texts]
    assert len(set(segments)) == len(texts)
    assert max(len(segment) for segment in segments) == 120
    assert all("/" not in segment and "#" not in segment for segment in segments)


def test_credentials_that_come_later_are_found(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "_CLIENTS", {})
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    files = Files(AIRFLOW_OPENERS)
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(StorageError, match="NoCredentialsError"):
            files.put(f"{s3}/a", b"x", media_type="text/plain")
    files.put(f"{s3}/a", b"x", media_type="text/plain")
    assert files.read(f"{s3}/a", max_bytes=10) == b"x"
