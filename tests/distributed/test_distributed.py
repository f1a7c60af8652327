"""The distributed proof: many workers and triggerers share one account, two of them are killed, and the sums come out.

With ``SHORT=1`` there are fewer images, and an answer of a killed process is made overdue instead of waited for.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.measure import percentile
from tests.harness.distributed import BUCKET, MB, ROOT, WORKERS, Stack
from tests.harness.limit_worker import most_at_once, most_in
from tests.harness.matrix import Balance, read_records, weigh

RUN = "run"
DAGS = Path(__file__).parent / "dags"
SUBMIT = "onemin.submit"
STATUS = "onemin.status"
LIMITED = (SUBMIT, STATUS, "onemin.upload")
SINGLE = ("mapped", "room", "views", "evening")  # tasks with one image
ROWS_URI = f"s3://{BUCKET}/rows.csv"
VIEWS = 2  # as many as an edit takes as references
CHAIN = 2 + VIEWS
HELD = 6  # submits that are on their way when a worker is killed


@dataclass(frozen=True)
class Size:
    """How much the story has of everything.

    :param mapped: mapped images.
    :param rows: of the batch of four shards.
    :param spare: images that the budget pays for besides; what killed workers have leased is among them.
    :param limit: requests per minute of the account.
    :param at_once: its concurrent requests.
    :param latency: seconds that an image takes.
    :param patience: seconds for the whole run.
    """

    mapped: int
    rows: int
    spare: int
    limit: int
    at_once: int
    latency: float
    patience: float

    @property
    def images(self) -> int:
        return self.mapped + self.rows + CHAIN

    @property
    def budget(self) -> int:
        return self.images + self.spare


SHORT = os.environ.get("SHORT") == "1"
SIZE = (
    Size(mapped=20, rows=160, spare=60, limit=300, at_once=8, latency=3, patience=240)
    if SHORT
    else Size(mapped=200, rows=5000, spare=300, limit=2400, at_once=16, latency=15, patience=2400)
)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """The servers, an Airflow, two workers and two triggerers."""
    story = {"mapped": SIZE.mapped, "rows": ROWS_URI, "views": VIEWS, "late": SIZE.spare}
    account = {
        "requests_per_minute": SIZE.limit,
        "max_concurrency": SIZE.at_once,
        "daily_budget": SIZE.budget,
        "prices": {"gemini-3.1-flash-image-preview": {"512": 1}},
    }
    with Stack(tmp_path, DAGS, latency=SIZE.latency, connection=account, env={"STORY": json.dumps(story)}) as started:
        for number in range(1, WORKERS + 1):
            started.start_worker(f"worker {number}")
            started.start_triggerer(f"triggerer {number}")
        yield started


def test_kills_in_a_distributed_airflow_pay_for_nothing_twice_and_lose_nothing(stack: Stack) -> None:
    began = time.monotonic()
    stack.s3.put_object(Bucket=BUCKET, Key=ROWS_URI.rpartition("/")[2], Body=rows_file())
    stack.airflow.trigger("story", RUN)
    until(lambda count: stack.sandbox.calls(SUBMIT, count=count), SIZE.images // 2)
    at_half = time.monotonic()
    strike(stack)
    stack.airflow.wait("story", RUN, timeout=SIZE.patience)
    at_end, requests = time.monotonic(), stack.store.requests()
    stack.airflow.trigger("late", RUN)
    stack.airflow.wait("late", RUN, timeout=SIZE.patience)
    judged = judge(stack)
    figures = {
        "seconds until half of the images were submitted": at_half - began,
        "seconds until all had landed": at_end - began,
        **judged,
        **{f"{kind} to the store per image": count / SIZE.images for kind, count in requests.most_common()},
        "requests to the store per image": requests.total() / SIZE.images,
        **{f"{name}: event-loop gap p99, ms": gap(stack, name) for name in ("triggerer 1", "triggerer 2")},
        **{f"{name}{place}: RSS, MB": size / MB for (name, place), size in sorted(stack.memory.peaks.items())},
    }
    print("\n".join(f"{name:60} {value:10,.1f}" for name, value in figures.items()))


# What happens


def rows_file() -> bytes:
    """The rows of the batch, as CSV."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("sku", "product"))
    rows.writerows((f"RT-{number}", f"product number {number}") for number in range(SIZE.rows))
    return text.getvalue().encode()


def until(seen: Callable[[int], Sequence[object]], count: int) -> None:
    """Wait until the gateway has seen so many calls; `seen` waits for a while."""
    give_up = time.monotonic() + SIZE.patience
    while len(seen(count)) < count:
        assert time.monotonic() < give_up, "the images do not come"


def strike(stack: Stack) -> None:
    """Kill a worker that waits for answers to paid requests, and a triggerer; start another worker."""
    stack.sandbox.faults(route=SUBMIT, hold=True, charge="after", times=HELD)
    until(stack.sandbox.held, HELD)
    victim = busiest_payer(stack)
    killed = {process.pid for process in processes(stack, victim)}
    stack.airflow.kill(victim)
    stack.airflow.kill("triggerer 1")
    stack.sandbox.release()
    stack.start_worker("worker 3")
    if SHORT:
        make_overdue(stack, killed)


def busiest_payer(stack: Stack) -> str:
    """The worker most of whose connections are those of held requests."""
    ports = {call["client_port"] for call in stack.sandbox.calls(SUBMIT) if call["seconds"] is None}
    held: Counter[str] = Counter()
    for name in ("worker 1", "worker 2"):
        for process in processes(stack, name):
            with contextlib.suppress(psutil.NoSuchProcess):
                held[name] += sum(each.laddr.port in ports for each in process.net_connections())
    assert held.total() == HELD
    return held.most_common(1)[0][0]


def processes(stack: Stack, worker: str) -> list[psutil.Process]:
    """What runs below a worker."""
    return list(psutil.Process(stack.airflow.pids[worker]).children(recursive=True))


def make_overdue(stack: Stack, killed: Set[int]) -> None:
    """Let the deadline of every answer to a killed process pass, by what its record says."""
    for found in read_records(ROOT):
        if found.record.state == "intent" and found.record.pid in killed:
            key = f"{ROOT.partition(f'{BUCKET}/')[2]}/{found.record.key}"
            record = json.loads(stack.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
            body = json.dumps({**record, "answer_within": 0.0}).encode()
            stack.s3.put_object(Bucket=BUCKET, Key=key, Body=body)


# What came of it


def judge(stack: Stack) -> dict[str, float]:
    """The sums, which must come out; for the table."""
    balance = weigh(stack.sandbox, ROOT)
    assert (balance.lost, balance.paid_twice, balance.no_image) == (0, 0, 0), balance
    assert balance.unknown > 0, "a worker was killed while it paid"
    late = [stack.airflow.xcom("late", RUN, "late", map_index=batch)["counts"] for batch in (0, 1)]
    counts = single_tasks(stack) + manifest(stack)
    assert counts["landed"] + sum(each["landed"] for each in late) == balance.landed, (counts, late, balance)
    assert counts["unknown"] == balance.unknown, (counts, balance)
    assert not {*counts} - {"landed", "unknown"}, counts
    return {
        "images that were paid for": balance.paid,
        "images that landed": balance.landed,
        "images with an unknown outcome": balance.unknown,
        "images that were paid for twice": balance.paid_twice,
        **limits(stack),
        **budget(balance, late),
    }


def single_tasks(stack: Stack) -> Counter[str]:
    """What the tasks with one image say of it: those that failed have an unknown outcome."""
    said = {"success": "landed", "failed": "unknown"}
    tasks = [ti for ti in stack.airflow.task_instances("story", RUN) if ti["task_id"] in SINGLE]
    return Counter(said.get(ti["state"], ti["state"]) for ti in tasks)


def manifest(stack: Stack) -> Counter[str]:
    """What the one manifest of the batch says of its images: it is complete, and each has a file of its own."""
    summary = stack.airflow.xcom("story", RUN, "catalogue.merge")
    assert summary["items"] == SIZE.rows
    key = summary["manifest"].removeprefix(f"s3://{BUCKET}/")
    lines = stack.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode().splitlines()
    images = [json.loads(line) for line in lines]
    assert [image["labels"]["sku"] for image in images] == [f"RT-{number}" for number in range(SIZE.rows)]
    files = [image["images"][0]["uri"] for image in images if image["status"] in ("landed", "reused")]
    assert len(files) == len({*files})
    return Counter("landed" if image["status"] == "reused" else image["status"] for image in images)


def limits(stack: Stack) -> dict[str, float]:
    """What the gateway saw of the account's limits, over all processes."""
    calls = {route: stack.sandbox.calls(route) for route in LIMITED}
    in_a_minute = most_in(sorted(call["time"] for each in calls.values() for call in each), 60)
    at_once = {route: most_at_once(calls[route]) for route in (SUBMIT, STATUS)}
    assert in_a_minute <= SIZE.limit
    assert max(at_once.values()) <= SIZE.at_once, at_once
    return {
        f"calls in the fullest minute, of {SIZE.limit}": in_a_minute,
        f"paid calls at once, of {SIZE.at_once}": at_once[SUBMIT],
        f"polls at once, of {SIZE.at_once}": at_once[STATUS],
    }


def budget(balance: Balance, late: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """What was spent: the late batches wanted more than was left."""
    assert balance.paid <= SIZE.budget
    assert sum(counts["skipped"] for counts in late) > 0, "the budget has not stopped anybody"
    return {f"spent, of a budget of {SIZE.budget}": balance.paid}


def gap(stack: Stack, triggerer: str) -> float:
    return percentile(stack.delays(triggerer), 0.99)
