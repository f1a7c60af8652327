"""``make demo``: runs the campaign of ``example_dags`` in a real Airflow with a sandbox. Needs no key and no money.

Invariants: a second demo clears the run of the first and pays for nothing; otherwise the script ends with an error. It
checks this with the sandbox's own ledger. The sandbox of the second demo is a new process without any job, so the
images come from our ledger and storage. All files are in ``.demo``, until ``make clean``.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from airflow_provider_geminiimg.sandbox import SandboxClient
from scripts.playground import (
    EXAMPLES,
    REPOSITORY,
    PlaygroundError,
    end_when_asked,
    expect_success,
    label,
    log_lines,
    relative,
    sandbox,
    say,
)
from tests.harness.live_airflow import LiveAirflow

DEMO = REPOSITORY / ".demo"
FINISHED = DEMO / "finished"  # there exactly when the last demo came to its end
IMAGES = DEMO / "images"
DAG_ID, RUN_ID = "geminiimg_campaign", "demo"
IMAGE_TASKS = ("variants", "final")
STATES = {None: "waits", "deferred": "waits for the gateway, in the triggerer", "success": "done"}
COLUMNS = ("file", "pixels", "model", "seconds", "cost", "reused")


def main() -> int:
    """Run the demo.

    :returns: the exit status: 0 only if everything came out as promised.
    """
    end_when_asked()
    began = time.monotonic()
    again = FINISHED.exists()
    if DEMO.exists() and not again:
        say("The last demo did not finish, and its sandbox has ended: starting from the beginning.")
        shutil.rmtree(DEMO)
    DEMO.mkdir(exist_ok=True)
    FINISHED.unlink(missing_ok=True)
    try:
        with sandbox() as box, campaign_airflow(box) as airflow:
            say(f"Airflow is up after {time.monotonic() - began:.0f} s.")
            run_campaign(airflow, again=again)
            rows = [row(airflow, ti) for ti in airflow.task_instances(DAG_ID, RUN_ID) if ti["task_id"] in IMAGE_TASKS]
            bill = box.ledger()
            reason = why(airflow) if again else ""
    except (PlaygroundError, RuntimeError, TimeoutError, httpx.HTTPError) as error:
        say(f"\nThe demo failed: {error}\nLogs: {relative(DEMO / 'airflow' / 'logs')}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped; nothing is left running.")
        return 130
    return report(rows, bill, reason, again=again, seconds=time.monotonic() - began)


@contextlib.contextmanager
def campaign_airflow(box: SandboxClient) -> Iterator[LiveAirflow]:
    """Airflow with the example DAGs and one connection: to the sandbox."""
    env = {"AIRFLOW_CONN_GEMINIIMG_DEFAULT": box.connection_json("1min")}
    say("Starting Airflow: api-server, scheduler, DAG processor, triggerer (20 to 30 s) ...")
    with LiveAirflow(DEMO / "airflow", EXAMPLES, env) as airflow:
        yield airflow


def run_campaign(airflow: LiveAirflow, *, again: bool) -> None:
    """Run the campaign, or clear its run, and show what happens.

    :raises PlaygroundError: when it does not succeed.
    """
    if again:
        say(f"The run {RUN_ID!r} of the first demo exists. Clearing all of its tasks ...")
        airflow.clear(DAG_ID, RUN_ID)
    else:
        say(f"Running {DAG_ID}: three variants, then a final image that is edited from them ...")
        airflow.trigger(DAG_ID, RUN_ID, {"folder": IMAGES.as_uri(), "poll_interval": 1})
    state = airflow.wait(DAG_ID, RUN_ID, timeout=180, watch=Progress())
    expect_success(airflow, DAG_ID, RUN_ID, state)


class Progress:
    """Prints a line whenever an image's task changes its state."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seen: dict[str, str | None] = {}

    def __call__(self, task_instances: Sequence[Mapping[str, Any]]) -> None:
        for ti in task_instances:
            name, state = label(ti), ti["state"]
            if ti["task_id"] in IMAGE_TASKS and state is not None and self.seen.get(name) != state:
                self.seen[name] = state
                say(f"  {time.monotonic() - self.began:4.0f} s  {name:<12} {STATES.get(state, state)}")


def row(airflow: LiveAirflow, ti: Mapping[str, Any]) -> dict[str, str]:
    """One line of the table."""
    manifest = airflow.xcom(DAG_ID, RUN_ID, ti["task_id"], map_index=ti["map_index"])
    (image,) = manifest["images"]
    path = Path(unquote(urlsplit(image["uri"]).path))
    if path.stat().st_size != image["size"]:
        raise PlaygroundError(f"{relative(path)} differs from the task's result")
    cost = manifest["cost"]
    return {
        "file": relative(path),
        "pixels": f"{image['width']} x {image['height']}",
        "model": manifest["model"],
        "seconds": f"{ti['duration']:.1f}",
        "cost": "0" if manifest["reused"] else f"{cost['amount']} {cost['currency']} ({cost['basis']})",
        "reused": "yes" if manifest["reused"] else "no",
    }


def why(airflow: LiveAirflow) -> str:
    """What the task itself said about the money.

    :raises PlaygroundError: when it said nothing.
    """
    (ti,) = [ti for ti in airflow.task_instances(DAG_ID, RUN_ID) if ti["task_id"] == "final"]
    for line in log_lines(airflow, ti):
        if "at no cost" in str(line.get("event")):
            return str(line["event"])
    raise PlaygroundError("no task says why it cost nothing")


def report(
    rows: Sequence[Mapping[str, str]], bill: Sequence[Mapping[str, Any]], reason: str, *, again: bool, seconds: float
) -> int:
    """Print the table, the bill and what to open; the exit status."""
    say("")
    table(rows)
    say("")
    say(f"Paid submissions that the sandbox counted in this run: {len(bill)}.")
    if again:
        say("Reason: after a Clear, the ledger still has the paid images of the run. From the task's log:")
        say(f"  {reason}")
    wanted = 0 if again else len(rows)
    # The first one may have a reused image, too: where Airflow failed a task that had paid, and its retry did not.
    if len(rows) != 4 or len(bill) != wanted or (again and any(each["reused"] != "yes" for each in rows)):
        say(f"That is wrong: it should be {wanted} for {len(rows)} of 4 images" + (", all reused." if again else "."))
        return 1
    FINISHED.touch()
    say("\nOpen:")
    say(f"  {next(each['file'] for each in rows if '/final' in each['file'])}   the final image")
    say(f"  {relative(IMAGES)}   all images, each with its sidecar file (.json)")
    say(f"  {relative(DEMO / 'airflow' / 'geminiimg' / 'ledger')}   the ledger")
    say(f"  {relative(DEMO / 'airflow' / 'logs')}   the logs of Airflow")
    say(
        f"\n{seconds:.0f} s in all. "
        + ("`make clean` forgets it." if again else "Now run `make demo` again: it costs nothing.")
    )
    return 0


def table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows under their headings."""
    widths = [max(len(name), *(len(each[name]) for each in rows)) for name in COLUMNS]
    for cells in (
        COLUMNS,
        tuple("-" * width for width in widths),
        *([each[name] for name in COLUMNS] for each in rows),
    ):
        say("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
