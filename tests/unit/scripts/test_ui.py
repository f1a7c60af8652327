"""``make ui``, as far as it shows without a running Airflow: its folder, its port, its DAGs, its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from scripts.playground import EXAMPLES, PlaygroundError
from scripts.ui import CONNECTIONS, SAMPLES, alone, check_port, copy_examples, guide
from tests.harness import REPOSITORY


def listener(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    sock.listen()
    return sock


def script(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_port_where_a_browser_would_find_somebody_else_is_refused(host: str) -> None:
    with listener(host) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PlaygroundError, match=rf"port {port} is taken .* make ui PORT="):
            check_port(port)
    check_port(port)


def test_a_number_that_is_no_port_is_refused() -> None:
    with pytest.raises(PlaygroundError, match="port 70000 cannot be used"):
        check_port(70_000)


def test_where_the_port_is_taken_it_says_so_and_starts_nothing(tmp_path: Path) -> None:
    with listener("127.0.0.1") as taken:
        port = taken.getsockname()[1]
        home = tmp_path / "home"
        code = f"import pathlib, scripts.ui as ui; exit(ui.main(['--port', '{port}'], pathlib.Path({str(home)!r})))"
        with script(code) as process:
            said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {port} is taken" in said
    assert [path.name for path in home.iterdir()] == ["lock"]


def test_a_second_one_on_the_same_folder_is_refused_and_told_where_the_first_is(tmp_path: Path) -> None:
    with (
        alone(tmp_path, 8123),
        pytest.raises(PlaygroundError, match=r"already runs at http://localhost:8123\."),
        alone(tmp_path, 8124),
    ):
        pass
    with alone(tmp_path, 8124):
        pass


def test_the_examples_put_their_images_into_its_own_folder_and_each_can_be_parsed(tmp_path: Path) -> None:
    from airflow.dag_processing.dagbag import BundleDagBag

    images = (tmp_path / "pictures").as_uri()
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "gone.py").touch()
    copy_examples(tmp_path / "dags", images)
    copies = sorted((tmp_path / "dags").glob("*.py"))
    assert [path.name for path in copies] == sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert not [path.name for path in copies if re.search(r"/tmp/geminiimg|s3://\w", path.read_text())]
    bag = BundleDagBag(dag_folder=str(tmp_path / "dags"), bundle_path=tmp_path / "dags", bundle_name="dags-folder")
    assert not bag.import_errors
    assert bag.dags["geminiimg_campaign"].params["folder"] == f"{images}/campaign"
    assert set(SAMPLES) <= set(bag.dags)
    tasks = [task for dag in bag.dags.values() for task in dag.tasks]
    used = {
        task.partial_kwargs.get("geminiimg_conn_id") if task.is_mapped else getattr(task, "geminiimg_conn_id", None)
        for task in tasks
    }
    assert used - {None} == set(CONNECTIONS)


def test_the_guide_names_every_sample_run() -> None:
    said = guide(8123)
    for dag_id in SAMPLES:
        assert f"http://localhost:8123/dags/{dag_id}/runs/sample" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_however_it_is_asked_to_end_the_sandbox_ends_too_and_a_second_time_changes_nothing(
    number: signal.Signals,
) -> None:
    code = """
import os, signal
from scripts.playground import end_when_asked, sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by children too
end_when_asked()
try:
    with sandbox() as box:
        try:
            print("waits", flush=True)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            print("in peace")
except KeyboardInterrupt:
    print("unwound")
"""
    with script(code) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].rstrip(".")
        assert process.stdout.readline() == "waits\n"
        assert httpx.get(f"{url}/_sandbox/ledger").is_success
        process.send_signal(number)
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "in peace\nunwound\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/_sandbox/ledger")
