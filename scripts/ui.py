"""``make ui``: serves Airflow with sample images at http://localhost:8080. Needs no login, no key and no money.

Invariants: all files are in ``.ui``, until ``make clean``. Only one such Airflow runs at a time, because they share a
database. A second start shows the runs and images of the first. No process outlives the script.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from airflow_provider_geminiimg.sandbox import SandboxClient
from scripts.playground import (
    EXAMPLES,
    REPOSITORY,
    PlaygroundError,
    end_when_asked,
    expect_success,
    relative,
    sandbox,
    say,
)
from tests.harness.live_airflow import LiveAirflow

UI = REPOSITORY / ".ui"
CONNECTIONS = {"geminiimg_default": "1min", "onemin": "1min", "apimaster": "apimaster"}
RUN_ID = "sample"
SAMPLES = {"geminiimg_campaign": {"poll_interval": 1}, "geminiimg_edit_chain": {}, "geminiimg_apimaster": {}}
SAMPLE_SECONDS = 300
EXAMPLE_FOLDERS = ("file:///tmp/geminiimg", "s3://aws_default@my-bucket")  # where the examples put their images


def main(arguments: Sequence[str] | None = None, home: Path = UI) -> int:
    """Run Airflow until somebody ends it.

    :param home: the folder of all that is kept.
    :returns: the exit status: 0 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.ui")
    parser.add_argument("--port", type=int, default=8080, help="where Airflow listens (default: %(default)s)")
    port = parser.parse_args(arguments).port
    end_when_asked()
    try:
        with alone(home, port):
            check_port(port)
            return serve(home, port)
    except (PlaygroundError, RuntimeError, TimeoutError, httpx.HTTPError) as error:
        say(f"\nThis did not work: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped; no process is left. `make ui` shows the same runs again, `make clean` deletes them.")
        return 0


@contextlib.contextmanager
def alone(home: Path, port: int) -> Iterator[None]:
    """Hold the folder for this process.

    :raises PlaygroundError: another process holds it; with the address of its Airflow.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PlaygroundError(f"it already runs at {lock.read()}. Stop it first with Ctrl-C.") from None
        lock.truncate(0)
        lock.write(address(port))
        lock.flush()
        yield


def check_port(port: int) -> None:
    """Go on if Airflow can listen on `port`, and a browser that asks for ``localhost`` finds nobody else there.

    :raises PlaygroundError: it can't.
    """
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except (OSError, OverflowError) as error:
            number = getattr(error, "errno", None)
            if family == socket.AF_INET6 and number != errno.EADDRINUSE:
                continue  # a machine without IPv6
            why = "is taken by another program" if number == errno.EADDRINUSE else f"cannot be used ({error})"
            raise PlaygroundError(f"port {port} {why}. Choose another one: make ui PORT=8081") from None


def serve(home: Path, port: int) -> int:
    """Start everything, make the sample runs unless they are there, and wait for the end.

    :raises KeyboardInterrupt: when asked to end.
    :raises PlaygroundError: a sample run failed, or a process ended by itself.
    """
    began, done = time.monotonic(), home / "finished"
    if not done.exists():
        for name in ("airflow", "images"):  # of a first start that did not come to its end
            shutil.rmtree(home / name, ignore_errors=True)
    images = (home / "images").as_uri()
    copy_examples(home / "dags", images)
    env = {
        "AIRFLOW__API__BASE_URL": address(port),
        "AIRFLOW__GEMINIIMG__GALLERY_ROOTS": images,
        "AIRFLOW__GEMINIIMG__RECORD_PROMPTS": "True",
    }
    with sandbox() as box:
        say("Starting Airflow (15 to 40 s) ...")
        with LiveAirflow(home / "airflow", home / "dags", env, port=port) as airflow:
            connect(airflow, box)
            say(f"Airflow is at {address(port)} after {time.monotonic() - began:.0f} s.")
            if not done.exists():
                make_samples(airflow)
                done.touch()
            say(guide(port))
            raise PlaygroundError(first_to_end(airflow))


def copy_examples(folder: Path, images: str) -> None:
    """Put the example DAGs into `folder`, with `images` as the place of what they make."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.glob("*.py"):
        text = path.read_text()
        for theirs in EXAMPLE_FOLDERS:
            text = text.replace(theirs, images)
        path.write_text(text)


def connect(airflow: LiveAirflow, box: SandboxClient) -> None:
    """Make the connections of the example DAGs, or lead those that are there to this sandbox.

    They stand in Airflow's database and have a port, so that its pages show them and its test button works.
    """
    url = httpx.URL(box.url)
    where = {"host": url.host, "port": url.port}
    there = {each["connection_id"] for each in airflow.api("GET", "/connections", limit=100)["connections"]}
    for conn_id, gateway in CONNECTIONS.items():
        body = {"connection_id": conn_id, "conn_type": "geminiimg", **where}
        if conn_id in there:
            airflow.api("PATCH", f"/connections/{conn_id}", body, update_mask=["host", "port"])
        else:
            given = box.connection(gateway)
            more = {"password": given["password"], "extra": json.dumps(given["extra"])}
            airflow.api("POST", "/connections", {**body, **more, "description": "The sandbox: no key, no money"})


def make_samples(airflow: LiveAirflow) -> None:
    """Run the samples side by side.

    :raises PlaygroundError: one of them does not succeed.
    """
    say(f"Making {len(SAMPLES)} sample runs (about a minute) ...")
    for dag_id, conf in SAMPLES.items():
        airflow.trigger(dag_id, RUN_ID, conf)
    for dag_id in SAMPLES:
        expect_success(airflow, dag_id, RUN_ID, airflow.wait(dag_id, RUN_ID, timeout=SAMPLE_SECONDS))
        say(f"  {dag_id} is done.")


def first_to_end(airflow: LiveAirflow) -> str:
    """Wait until a process that was started here ends; what to say of it."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    for name, pid in airflow.pids.items():
        if ended and ended.si_pid == pid:
            return f"Airflow's {name} has stopped unexpectedly. Its log: {relative(airflow.log_file(name))}"
    return "the sandbox ended by itself."


def guide(port: int) -> str:
    """What to look at first."""
    url = address(port)
    runs = "\n".join(f"  {url}/dags/{dag_id}/runs/{RUN_ID}" for dag_id in SAMPLES)
    return f"""
Open, without a login:
  {url}/plugin/images   all images
{runs}
  {url}/connections   the connections, each with a button that tests it
Trigger any of the DAGs: the sandbox makes the images, at no cost.
Ctrl-C ends it."""


def address(port: int) -> str:
    """What a browser on this machine opens."""
    return f"http://localhost:{port}"


if __name__ == "__main__":
    sys.exit(main())
