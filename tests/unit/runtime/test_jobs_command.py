"""The package's command line, and what Airflow's own knows of the provider."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow import __version__ as airflow_version
from airflow.sdk import DAG

from airflow_provider_geminiimg.__main__ import main
from airflow_provider_geminiimg.core.ledger.layout import index_key, record_key
from airflow_provider_geminiimg.core.reconcile import RECORD_STATUSES
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import LedgerError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS, default_s3_client
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.runtime import jobs_command
from tests.harness.canaries import Canaries, Text
from tests.harness.odd_records import ODD, put_all, put_odd
from tests.harness.orphaned_records import OrphanedRecords
from tests.harness.records import ITEM, landed, make_record, submitted

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness


def connections_test(conn_id: str, connection: dict[str, object], home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(connection),
        "COLUMNS": "300",
    }
    command = [sys.executable, "-m", "airflow", "connections", "test", conn_id]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(airflow_version.startswith("3.1."), reason="Airflow 3.1 asks no provider for commands")
def test_airflow_has_the_jobs_commands_too(shell: Shell) -> None:
    record = asyncio.run(shell.left.submitted())
    assert "[geminiimg] root" in " ".join(airflow_jobs("list", "--help").stdout.split())
    listed = airflow_jobs("list", "--dag", ITEM.dag_id, "--json").stdout
    [line] = _without_logs(listed).splitlines()  # of Airflow 3.2, which has them there
    assert json.loads(line)["key"] == record.key
    refused = airflow_jobs("forget", record.key)
    assert refused.returncode == 1
    assert "add --force" in refused.stderr
    airflow_jobs("forget", record.key, "--force")
    assert shell.left.records() == []


def airflow_jobs(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "airflow", "geminiimg", "jobs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_airflow_connections_test_says_whether_the_key_works_and_spends_nothing(
    sandbox: Sandbox, gateway: str, tmp_path: Path
) -> None:
    good = connections_test("good", sandbox.connection(gateway), tmp_path)
    assert "Connection success!" in good.stdout, good.stdout + good.stderr
    bad = connections_test("bad", sandbox.connection(gateway, key="bad-canary-key"), tmp_path)
    assert "Connection failed!" in bad.stdout
    assert "does not accept the API key" in bad.stdout
    assert "bad-canary-key" not in bad.stdout + bad.stderr
    assert sandbox.ledger() == []


# jobs


class Shell:
    """The commands, run in this process.

    :param left: what there is to see.
    """

    def __init__(self, left: OrphanedRecords, output: pytest.CaptureFixture[str]) -> None:
        self.left = left
        self._output = output

    def __call__(self, *words: str) -> str:
        """What a command prints that ends well."""
        status, out, err = self.run(*words)
        assert (status, err) == (0, ""), out + err
        return out

    def refused(self, *words: str) -> str:
        """What a command says that does not."""
        status, _, err = self.run(*words)
        assert status == 1
        return err

    def run(self, *words: str) -> tuple[int, str, str]:
        self._output.readouterr()
        status = main(["jobs", *words])
        out, err = self._output.readouterr()
        return status, _without_logs(out), err


def _without_logs(out: str) -> str:
    """Airflow's logging writes to standard output in tests; a person's shell shows none of it."""
    return "".join(line for line in out.splitlines(keepends=True) if "] loc=" not in line)


@pytest.fixture
def shell(
    root: str,
    sandbox: Sandbox,
    onemin: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # the command sets it, and it must not stay
    return Shell(OrphanedRecords(sandbox, onemin), capsys)


def test_the_states_to_choose_from_are_all_there_are() -> None:
    assert tuple(RECORD_STATUSES) == jobs_command._STATES


def test_list_has_a_line_for_each_record_and_leaves_out_what_the_filters_leave_out(shell: Shell) -> None:
    other = replace(ITEM, dag_id="other")
    records = [submitted(), landed(other), make_record(replace(other, task_id="t"), outcome=None)]
    for record in records:
        shell.left.ledger.create(replace(record, answer_within=0.0, cost={"amount": 0.0672, "currency": "USD"}))
    lines = shell("list").splitlines()
    assert [line.split()[0] for line in lines] == ["to-collect", "landed", "unknown"]
    assert all(record.key in line for record, line in zip(records, lines, strict=True))
    assert "0.0672 USD" in lines[0]
    assert "job job-1" in lines[0]
    [line] = shell("list", "--state", "to-collect").splitlines()
    assert line.split()[2:] == lines[0].split()[2:]  # between them is the record's age
    assert len(shell("list", "--dag", "other").splitlines()) == 2
    assert len(shell("list", "--dag", "other", "--run", ITEM.run_id, "--task", "t").splitlines()) == 1
    [line] = shell("list", "--json", "--state", "landed").splitlines()
    assert json.loads(line)["key"] == records[1].key


def test_list_shows_what_can_not_be_read_as_such_goes_on_and_ends_with_an_error(shell: Shell) -> None:
    shell.left.store.create(record_key(ITEM, 1), b"{")
    shell.left.ledger.create(landed(n=2))
    status, out, err = shell.run("list")
    assert (status, [line.split()[0] for line in out.splitlines()]) == (1, ["unreadable", "landed"])
    assert err == "error: 1 records can't be read; `jobs show` has the reasons.\n"
    assert "not JSON" in shell.refused("show", record_key(ITEM, 1))


def test_show_has_the_record_and_says_what_to_do_next(shell: Shell) -> None:
    record = asyncio.run(shell.left.unknown())
    shown = json.loads(shell("show", record.key))
    assert (shown["state"], shown["record"]["claim"]) == ("unknown", record.claim)
    assert "--unpaid, --lost or --job" in shown["next"]
    assert "There is no record" in shell.refused("show", "ledger/nothing")


def test_collect_lands_says_so_line_by_line_and_ends_with_the_counts(shell: Shell) -> None:
    record = asyncio.run(shell.left.submitted())
    would = shell("collect", "--dry-run")
    assert f"Would be collected: {record.key}" in would
    assert would.endswith("skipped: 0, to collect: 1\n")
    assert shell("collect", "--dag", "another").endswith("landed: 0, running: 0, skipped: 0, to collect: 0\n")
    out = shell("collect")
    assert f"Landed: {record.key}. {shell.left.folder}/hero.png" in out
    assert out.endswith("errors: 0, unknown: 0, failed: 0, landed: 1, running: 0, skipped: 0, to collect: 0\n")
    assert shell.left.calls("submit") == 1


def test_collect_ends_with_an_error_where_something_could_not_be_looked_at(shell: Shell) -> None:
    record = asyncio.run(shell.left.submitted())
    shell.left.store.create(f"{record.key.rpartition('/')[0]}/2.json", b"{")
    status, out, err = shell.run("collect")
    assert (status, "landed: 1" in out) == (1, True)
    assert err.count("error: ") == 2
    assert "1 records could not be checked" in err


def test_resolve_works_in_each_way_and_refuses_what_is_not_unknown(shell: Shell) -> None:
    left = shell.left
    keys = [asyncio.run(left.unknown(task_id)).key for task_id in "abcd"]
    job_id = left.sandbox.ledger()[2]["job_id"]
    for key, words in zip(keys, (["--unpaid"], ["--lost"], ["--job", job_id], ["--resubmit"]), strict=True):
        assert f"{key} is resolved" in shell("resolve", key, *words)
        assert "Nothing was changed" in shell("resolve", key, *words)
    assert "landed: 1" in shell("collect")
    assert "has landed" in shell.refused("resolve", keys[2], "--lost")
    assert f"belongs to record {keys[2]}" in shell.refused(
        "resolve", asyncio.run(left.unknown("e")).key, "--job", job_id
    )
    assert left.calls("submit") == 5
    assert asyncio.run(left.attempt("d", generation=1)).n == 2


def test_forget_asks_for_a_word_where_something_may_have_been_paid_for(shell: Shell) -> None:
    record = asyncio.run(shell.left.submitted())
    assert "--force" in shell.refused("forget", record.key)
    assert f"job {record.job_id}" in shell("forget", record.key, "--force")
    assert shell.left.records() == []
    for n in (1, 2):
        shell.left.ledger.create(landed(n=n))
    assert "The next attempt of its task uses record 1 of the same item." in shell("forget", record_key(ITEM, 2))


def test_purge_names_what_it_removes(shell: Shell) -> None:
    record = landed()
    shell.left.ledger.create(record)
    assert shell("purge", "--older-than", "1") == "0 records are removed.\n"
    assert shell("purge", "--older-than", "0", "--dry-run") == f"{record.key}\n1 records would be removed.\n"
    assert shell("purge", "--older-than", "0") == f"{record.key}\n1 records are removed.\n"
    assert shell.left.records() == []


def test_reindex_counts_what_it_reads_writes_and_removes(shell: Shell) -> None:
    store = shell.left.store
    for record in (landed(), make_record(n=2)):
        shell.left.ledger.create(record)
    for key in list(store.keys("open/")):
        store.delete(key)
    would = "2 records were read, 1 are open. 1 entries would be written, 0 would be removed.\n"
    assert shell("reindex", "--dry-run") == would
    assert list(store.keys("open/")) == []
    assert shell("reindex") == would.replace("would be", "were")
    assert shell("reindex") == "2 records were read, 1 are open. 0 entries were written, 0 were removed.\n"


def test_a_list_of_open_records_reads_no_others(shell: Shell) -> None:
    store = shell.left.store
    shell.left.ledger.create(landed())
    shell.left.ledger.create(make_record(n=2))
    shell("reindex")
    for key in shell.left.records():
        if key.endswith("/1.json"):
            store.delete(key)
            store.create(key, b"{")
    assert shell("list", "--state", "waiting").split()[-1] == record_key(ITEM, 2)
    assert shell.run("list", "--state", "landed")[0] == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["list", "--state", "good"],
        ["resolve", "KEY"],
        ["resolve", "KEY", "--lost", "--unpaid"],
        ["resolve", "KEY", "--resubmit", "--unpaid"],
        ["purge"],
        ["purge", "--older-than", "-1"],
        ["purge", "--older-than", "nan"],
        ["purge", "--older-than", "soon"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_not_understood_does_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["jobs", *words])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_root_that_can_not_be_used_is_an_error_in_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", "hdfs://name/root")
    [line] = shell.refused("list").splitlines()
    assert line.startswith("error: root: hdfs://name/root")


def test_no_command_shows_a_link_or_a_prompt(shell: Shell) -> None:
    canaries, left = Canaries(), shell.left
    asyncio.run(left.submitted("landed", prompt=canaries.prompt))
    unknown = asyncio.run(left.unknown("unknown", prompt=canaries.prompt))
    said = [shell("list"), shell("list", "--json"), shell("collect", "--dry-run"), shell("collect"), shell("list")]
    said += [shell("show", key) for key in left.records()]
    said += [shell("resolve", unknown.key, "--lost"), shell("forget", unknown.key)]
    canaries.add_links(left.sandbox.links())
    assert left.sandbox.links()
    assert not canaries.leaks(Text("output", text.encode()) for text in said)


def test_one_odd_record_stops_no_command(shell: Shell) -> None:
    odd = put_all(shell.left.store)
    record = shell.left.old(asyncio.run(shell.left.submitted()))
    status, out, err = shell.run("list")
    lines = {line.split()[-1] if "job" not in line else record.key: line.split()[0] for line in out.splitlines()}
    assert (status, lines) == (1, {**dict.fromkeys(odd.values(), "unreadable"), record.key: "to-collect"})
    assert f"{len(odd)} records can't be read" in err
    found = [json.loads(line) for line in shell.run("list", "--json")[1].splitlines()]
    assert {each["key"] for each in found if each["state"] == "unreadable"} == {*odd.values()}
    for key in odd.values():
        assert all(
            key in shell.refused(*words) for words in (["show", key], ["forget", key], ["resolve", key, "--lost"])
        )
    status, out, err = shell.run("collect")
    assert (status, f"errors: {len(odd)}, unknown: 0, failed: 0, landed: 1" in out) == (1, True), out
    assert all(f"Could not be checked: {key}" in err for key in odd.values())
    status, out, _ = shell.run("purge", "--older-than", "0")
    assert out.splitlines()[:2] == [record.key, "1 records are removed."]
    assert sorted(shell.left.records()) == sorted(odd.values())


@pytest.mark.parametrize("what", ODD)
def test_where_money_would_be_spent_a_record_that_can_not_be_read_is_an_error(
    local_root: str, sandbox: Sandbox, onemin: str, what: str
) -> None:
    left = OrphanedRecords(sandbox, onemin)
    key = put_odd(left.store, what, ITEM)
    for policy in ({}, {"generation": 1, "on_clear": "regenerate", "on_unknown": "resubmit"}):
        with pytest.raises(LedgerError, match=re.escape(key)):
            asyncio.run(left.attempt(**policy))
    assert left.paid() == 0
    assert left.calls("submit") == 0


@pytest.mark.parametrize("many", [False, True], ids=["one image", "a batch"])
def test_a_clear_that_finds_an_odd_record_fails_and_buys_nothing(
    airflow: AirflowHarness, local_root: str, sandbox: Sandbox, onemin: str, tmp_path: Path, many: bool
) -> None:
    with DAG("odd", schedule=None) as dag:
        if many:
            GeminiImageBatchOperator(
                task_id="made", requests=["a fox"], output_path=str(tmp_path), geminiimg_conn_id=onemin
            )
        else:
            GeminiImageGenerateOperator(
                task_id="made", prompt="a fox", output_path=str(tmp_path), geminiimg_conn_id=onemin
            )
    run = airflow.run_dag(dag)
    store = open_store(local_root, AIRFLOW_OPENERS)
    [key] = store.keys("ledger/")
    blob = store.read(key)
    assert blob is not None
    record = json.loads(blob.data)
    for name, value in (
        ("cost", {"amount": "x"}),
        ("landed_at", 1e300),
        ("model", "\ud800"),
        ("manifest", {"images": 7}),
    ):
        store.delete(key)
        assert store.create(key, json.dumps({**record, name: value}).encode())
        made = run.clear().task("made")
        assert made.state == "failed"
        assert key in f"{made.error} {run.log}"
        assert len(sandbox.ledger()) == 1


def test_one_index_entry_that_can_not_be_read_keeps_no_other_task_from_being_purged(shell: Shell) -> None:
    for task_id in ("a", "b", "c"):
        item = replace(ITEM, task_id=task_id)
        record = landed(item, fingerprint=task_id * 64)
        shell.left.ledger.create(record)
        if task_id == "b":
            assert shell.left.store.create(index_key(record.key, record.fingerprint), b"[")
    status, out, err = shell.run("purge", "--older-than", "0")
    assert status == 1
    assert "2 records are removed." in out
    assert "1 task instances could not be removed" in err
    assert [key.split("/")[4] for key in shell.left.records()] == ["b"]


# Whatever a text holds: a terminal's escapes, C1, DEL, line breaks, what turns the direction of writing or is not seen.
NASTY = "\x1b[2J\x1b]0;own\x07\x9b1A\x7f\r\nlanded\u2028\u2029\x85\u202e\u2066\u200f\u200b\ufeff\x00\u061c\U000e0041"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_no_command_prints_what_moves_a_cursor_or_begins_a_line(shell: Shell) -> None:
    left = shell.left
    record = submitted(
        job_id=f"job{NASTY}",
        extra_jobs=[f"more{NASTY}"],
        gateway=f"1min{NASTY}",
        model=NASTY,
        prompt=f"{NASTY} 狐",
        conn_id=NASTY,
        host=NASTY,
        cost={"amount": 1.0, "currency": NASTY, "basis": NASTY},
        request_fields={NASTY: NASTY},
        outcome={"kind": "storage", "billed": "yes", "message": NASTY, "hint": NASTY, "request_id": NASTY},
        answer_within=0.0,
    )
    left.ledger.create(record)
    image = {"uri": f"file:///{NASTY}.png", "sha256": "0" * 64, "media_type": NASTY}
    left.ledger.create(landed(replace(ITEM, task_id="landed"), manifest={"images": [image], "mismatch": NASTY}))
    commands = (
        ["list"],
        ["list", "--json"],
        ["list", "--dag", NASTY],
        ["show", record.key],
        ["show", NASTY],
        ["collect", "--dry-run"],
        ["collect"],
        ["resolve", record.key, "--unpaid"],
        ["resolve", record.key, "--job", NASTY],
        ["resolve", NASTY, "--lost"],
        ["purge", "--older-than", "0", "--dry-run"],
        ["forget", record.key],
        ["forget", record.key, "--force"],
    )
    for words in commands:
        _, out, err = shell.run(*words)
        assert (words, is_harmless(out), is_harmless(err)) == (words, True, True), (out, err)
        if words[0] == "list" and len(words) == 1:
            assert len(out.splitlines()) == 2
        if words == ["show", record.key]:
            assert json.loads(out)["record"]["prompt"] == f"{NASTY} 狐"
            assert "狐" in out


def test_arguments_that_are_wrong_are_repeated_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["jobs", "list", NASTY],
        ["jobs", "list", "--state", NASTY],
        [NASTY],
        ["jobs", "purge", "--x" + NASTY],
    ):
        with pytest.raises(SystemExit):
            main(words)
        out, err = capsys.readouterr()
        assert is_harmless(out + err), err


def test_a_terminal_that_lacks_a_letter_is_shown_its_escape(local_root: str, sandbox: Sandbox, onemin: str) -> None:
    left = OrphanedRecords(sandbox, onemin)
    left.ledger.create(submitted(job_id="狐", answer_within=0.0))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "airflow_provider_geminiimg", "jobs", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "job \\u72d0" in done.stdout


@pytest.fixture
def stored_connection(_airflow_home: Path, sandbox: Sandbox) -> Any:
    """A connection that only Airflow's metadata database has."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    given = sandbox.connection("1min")
    connection = Connection(
        conn_id="stored", conn_type="geminiimg", host=given["host"], password=given["password"], extra=given["extra"]
    )
    with create_session() as session:
        session.add(connection)
    yield "stored"
    with create_session() as session:
        session.query(Connection).filter_by(conn_id="stored").delete()


def test_the_command_line_collects_in_a_shell_of_its_own_with_the_configuration_and_connections_of_airflow(
    local_root: str, sandbox: Sandbox, onemin: str, stored_connection: str
) -> None:
    left = OrphanedRecords(sandbox, onemin)
    record = left.change(asyncio.run(left.submitted()), conn_id=stored_connection)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")}
    environment.pop("_AIRFLOW_PROCESS_CONTEXT", None)

    def jobs(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow_provider_geminiimg", "jobs", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    found = jobs("list", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert [json.loads(line)["state"] for line in found.stdout.splitlines()] == ["to-collect"]
    done = jobs("collect")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [
        f"Landed: {record.key}. {left.folder}/hero.png",
        "errors: 0, unknown: 0, failed: 0, landed: 1, running: 0, skipped: 0, to collect: 0",
    ]
    assert left.image(record)[1] == 1
    assert left.calls("submit") == 1
    assert "[geminiimg] root" in jobs("collect", "--help").stdout


def test_whatever_a_command_meets_is_one_error_in_words(
    s3_root: str, sandbox: Sandbox, onemin: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    shell = Shell(OrphanedRecords(sandbox, onemin), capsys)
    kept = landed()
    shell.left.ledger.create(kept)
    lost = asyncio.run(shell.left.unknown("lost"))

    def fail(**_: Any) -> None:
        raise RuntimeError("https://bucket.example/key?X-Amz-Signature=0123456789abcdef")

    events = default_s3_client(None).meta.events
    for operation in ("PutObject", "GetObject"):
        events.register(f"before-call.s3.{operation}", fail, unique_id="fail")
        try:
            for words in (["forget", kept.key], ["resolve", lost.key, "--unpaid"], ["show", kept.key]):
                if (operation, words[0]) == ("PutObject", "show"):
                    continue
                said = shell.refused(*words)
                assert re.fullmatch(r"error: [^\n]* failed: the client reports RuntimeError\.[^\n]*\n", said), said
                assert "Signature" not in said
        finally:
            events.unregister(f"before-call.s3.{operation}", unique_id="fail")
    assert shell.left.at(lost).state == "intent"
