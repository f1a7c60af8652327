"""One row of the failure matrix: what was paid for, what became of it, and the sum that must come out.

The truth is read where it can't be made up: what was paid from the gateway's own ledger, what has landed from the
images themselves (each has the number of its submission drawn on it), what is unknown from the records.

What must stay true: for every row, each submission that was paid for has landed, is reported as unknown, or ended
without an image by the gateway's own word; no item is paid for twice without its user's word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.storage import Files, encode_segment, open_store
from airflow_provider_geminiimg.exceptions import Billed, LinkExpiredError, OutcomeUnknownError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.sandbox import read_submission
from airflow_provider_geminiimg.sandbox.client import SandboxClient
from tests.harness import REPOSITORY

RESULTS = REPOSITORY / "build" / "matrix"


@dataclass(frozen=True)
class Balance:
    """What became of the money.

    :param submitted: submissions that the gateway accepted.
    :param paid: those of them that it charges for.
    :param landed: those of them whose image lies in storage, recorded.
    :param unknown: items that are reported as "outcome unknown".
    :param lost: submissions that were paid for and are none of landed, unknown and without an image.
    :param paid_twice: submissions that were paid for beyond the first of an item, and that no user asked for.
    :param no_image: submissions that were paid for and of which the gateway itself gave no image (a job that it
        let fail, a link that it took away); the error says so.
    """

    submitted: int
    paid: int
    landed: int
    unknown: int
    lost: int
    paid_twice: int
    no_image: int = 0


@dataclass(frozen=True)
class Row:
    """One row, as it was seen to happen.

    :param group: ``processes``, ``airflow``, ``gateway``, ``storage`` or ``time``.
    :param event: what happens, such as "The task process is killed".
    :param moment: when, such as "between the intent and the gateway's answer"; may be empty.
    :param gateway: ``1min`` or ``apimaster``.
    :param mode: ``waiting`` (in the worker), ``deferred``, ``batch``, ``collect``, ``sensor``, or ``loop`` (waiting, in
        the second iteration of a loop; needs Airflow 3.4).
    :param balance: what became of the money in the end.
    :param state: the task's state in the end.
    :param then: what the next attempt, or a person, does about it; for the docs.
    """

    group: str
    event: str
    moment: str
    gateway: str
    mode: str
    balance: Balance
    state: str
    then: str

    @property
    def name(self) -> str:
        """Tells rows apart; also the name of the result's file."""
        words = "-".join((self.group, self.event, self.moment, self.gateway, self.mode)).lower()
        return re.sub(r"[^a-z0-9]+", "-", words).strip("-")

    def save(self) -> Row:
        """Keep the row for the table in the docs; a row that is run again replaces itself."""
        path = RESULTS / self.group / f"{hashlib.sha256(self.name.encode()).hexdigest()[:20]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))
        return self


def weigh(
    sandbox: SandboxClient, root: str, *, dag_id: str | None = None, asked_again: Mapping[str, int] | None = None
) -> Balance:
    """Compare the gateway's ledger with what lies under `root`, and in the places that its records name.

    :param sandbox: the gateway; its submissions are told apart by their prompts, so each item needs its own.
    :param root: URI of ``[geminiimg] root``.
    :param dag_id: only this DAG's records.
    :param asked_again: prompts that a user asked to buy again, and how often.
    """
    entries = sandbox.ledger()
    paid = [entry for entry in entries if entry["charged"]]
    records = read_records(root, dag_id)
    landed = Counter(number for found in records for number in _numbers(found))
    missing = Counter(_digest(entry["prompt"]) for entry in paid if entry["number"] not in landed)
    unknown = Counter(found.record.prompt_sha256 for found in records if is_unknown(found))
    without = Counter(found.record.prompt_sha256 for found in records if has_no_image(found)) & missing
    times = Counter(entry["prompt"] for entry in paid)
    allowed = asked_again or {}
    return Balance(
        submitted=len(entries),
        paid=len(paid),
        landed=sum(entry["number"] in landed for entry in paid),
        unknown=sum(is_unknown(found) for found in latest(records)),
        lost=(missing - unknown - without).total(),
        paid_twice=sum(max(0, count - 1 - allowed.get(prompt, 0)) for prompt, count in times.items()),
        no_image=without.total(),
    )


def read_records(root: str, dag_id: str | None = None) -> list[StoredRecord]:
    """Every record under `root`, or every one of a DAG."""
    ledger = Ledger(open_store(root, AIRFLOW_OPENERS))
    prefix = "ledger/" if dag_id is None else f"ledger/default/{encode_segment(dag_id)}/"
    found = (ledger.read(key) for key in ledger.store.keys(prefix))
    return [each for each in found if each is not None]


def latest(records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """The records that decide: of each item the one with the highest number."""
    items: dict[str, StoredRecord] = {}
    for found in records:
        item = found.record.key.rsplit("/", 1)[0]
        if item not in items or items[item].record.n < found.record.n:
            items[item] = found
    return list(items.values())


def is_unknown(found: StoredRecord) -> bool:
    """Whether nobody knows what became of a request that went out."""
    record = found.record
    if record.state == "intent":
        return record.outcome is not None or found.age >= record.answer_within
    return record.state == "submitted" and isinstance(record.error, OutcomeUnknownError)


def has_no_image(found: StoredRecord) -> bool:
    """Whether the gateway itself gives no image for what was, or may have been, paid for, and the record says so."""
    record = found.record
    failed = record.state == "failed" and record.error is not None and record.error.billed is not Billed.NO
    return failed or (record.state != "landed" and isinstance(record.error, LinkExpiredError))


def _numbers(found: StoredRecord) -> list[int]:
    """The submissions whose images a record has landed, read from the images."""
    record = found.record
    if record.state != "landed":
        return []
    manifests: list[dict[str, Any]] = [dict(record.manifest or {}), *(copy["manifest"] for copy in record.copies)]
    files = Files(AIRFLOW_OPENERS)
    images = [image for manifest in manifests for image in manifest["images"]]
    there = [image for image in images if files.state(image["uri"]) != "gone"]
    assert there, f"no image of {record.key} is left: {[image['uri'] for image in images]}"
    numbers = []
    for image in there:
        data = files.read(image["uri"], max_bytes=64 * 1024 * 1024)
        assert hashlib.sha256(data).hexdigest() == image["sha256"], image["uri"]
        numbers.append(read_submission(data))
    return numbers


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
