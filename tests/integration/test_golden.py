"""Everything that the package writes, byte by byte as the files in ``golden/`` say, and those files read as its own.

Each story runs tasks against the sandbox. Its file shows what they left under the root and returned: a line with a key
(``=== ledger/...``), then what lies there; of images only their kind. Of a second moment (``=== * ...``) it shows what
is new, changed or gone. Values that are random, times, or the gateway's are replaced, see `tests.harness.golden`.

To write the files again, where what is written is meant to change:
``GOLDEN=write pytest tests/integration/test_golden.py``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_geminiimg.core.batch.plan import Plan
from airflow_provider_geminiimg.core.ledger.budget import BudgetDocument
from airflow_provider_geminiimg.core.ledger.file_names import NameClaim, is_sidecar_of, read_claim
from airflow_provider_geminiimg.core.ledger.fingerprint_index import read_entry, write_entry
from airflow_provider_geminiimg.core.ledger.layout import PLANS, RETURNED, Item
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.approval import Approval
from airflow_provider_geminiimg.core.purchase.saved_requests import SavedRequest, SavedRequestStore
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Files, Store, open_store
from airflow_provider_geminiimg.exceptions import KINDS, BadRequestError, Billed, from_dict
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.golden import FOLDER, INPUT, ROOT, Stable, joined, make_bucket, parted, remove_bucket
from tests.harness.golden_stories import FILES, STORIES, Story, capped, capped_for_a_run, landed
from tests.harness.records import make_record

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness


def compare(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("GOLDEN") == "write":
        path.write_bytes(text.encode())
    assert path.read_bytes().decode() == text, f"{name} is written otherwise than before"


@pytest.fixture
def root(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", ROOT)
    make_bucket()
    yield
    remove_bucket()


@pytest.mark.parametrize(("tell", "conn"), STORIES, ids=FILES)
def test_what_a_story_leaves_behind_is_what_it_was(
    tell: Callable[[Story], None], conn: str, airflow: AirflowHarness, sandbox: Sandbox, root: None,
    connect: Callable[..., str],
) -> None:  # fmt: skip
    cap = {capped: "daily_budget", capped_for_a_run: "run_budget"}.get(tell)
    budget = {} if cap is None else {"price_base": 0.1, "price_currency": "USD", cap: 0.08}
    connect(conn, **sandbox.connection("1min" if conn == "onemin" else conn, requests_per_minute=100_000, **budget))
    story = Story(airflow, sandbox, conn)
    tell(story)
    compare(f"{tell.__name__}.{conn}.txt", joined(story.sections))


def test_a_root_on_disk_holds_the_same_as_a_bucket(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, tmp_path: Path
) -> None:
    def stored() -> dict[str, bytes]:
        store = open_store(local_root, AIRFLOW_OPENERS)
        paths = {path.relative_to(tmp_path / "root").as_posix(): path for path in (tmp_path / "root").rglob("*")}
        found = {key: path.read_bytes() for key, path in paths.items() if path.is_file() and "#" not in path.name}
        assert set(store.keys("")) == set(found)
        return {_elsewhere(key, data, local_root): data for key, data in found.items()}

    def _elsewhere(key: str, data: bytes, root: str) -> str:
        """A name is kept by its address."""
        return NameClaim(**json.loads(data.replace(root.encode(), ROOT.encode()))).key if "names/" in key else key

    story = Story(airflow, sandbox, onemin, stored)
    story.stable = Stable(sandbox, local_root)
    landed(story)
    compare("landed.onemin.txt", joined(story.sections))


# --- what is no story -------------------------------------------------------------------------------------------------

MORE = {
    "hint": "Do this.", "code": "code_1", "gateway_message": "The gateway's words.", "details": "More of them.",
    "request_id": "request-1", "status_code": 418, "retry_after": 1.5,
}  # fmt: skip


def test_an_error_of_each_kind_is_written_as_it_was() -> None:
    sections = []
    for kind, made in {**KINDS, "of_another_version": KINDS["outcome_unknown"]}.items():
        errors = [made("It failed."), made("It failed.", billed=Billed.YES, retryable=not made("").retryable, **MORE)]
        found = [({**error.to_dict(), "kind": kind}, str(error)) for error in errors]
        sections.append((kind, "\n".join(map(json.dumps, found))))
    compare("errors.txt", joined(sections))


@pytest.mark.parametrize("kind", [*KINDS, "of_another_version"])
def test_an_error_that_was_written_is_read_as_it_was(kind: str) -> None:
    text = dict(parted((FOLDER / "errors.txt").read_text(encoding="utf-8")))[kind]
    for line in text.splitlines():
        values, said = json.loads(line)
        error = from_dict(values)
        assert type(error) is KINDS.get(kind, KINDS["outcome_unknown"])
        assert str(error) == said
        if kind in KINDS:
            assert json.dumps([error.to_dict(), said]) == line


MODELS = (None, "gemini-2.5-flash-image", "gemini-3-pro-image", "gemini-3-pro-image-preview", "gemini-3.1-flash-image")
REQUESTS: tuple[dict[str, Any], ...] = (
    {}, {"resolution": "4K"}, {"resolution": "512"}, {"aspect_ratio": "16:9"}, {"aspect_ratio": "8:1"}, {"variant": 2},
    {"variant": "b"}, {"temperature": 0.5}, {"top_p": 1}, {"google_search": True}, {"google_image_search": True},
    {"prompt": "ein größerer Fuchs 🦊"}, {"operation": "edit", "image": INPUT},
    {"operation": "edit", "image": INPUT, "reference_images": [INPUT, INPUT], "aspect_ratio": "1:1"},
)  # fmt: skip


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_a_fingerprint_is_what_it_was(gateway: str) -> None:
    """And so is the word with which a gateway's model refuses what it can't do."""

    def known_as(values: dict[str, Any]) -> list[str]:
        try:
            with warnings.catch_warnings(action="ignore"):
                request = ImageRequest.build(**{"prompt": "a fox", "operation": "generate", **values}).check(gateway)
        except BadRequestError as error:
            return [str(error)]
        digests = ["0" * 64] * len(request.input_images)
        return [*request.fingerprints(input_sha256=digests, base_url_host="api.invalid", conn_id="shop")]

    requests = [{"model": model, **each} for model in MODELS for each in REQUESTS]
    compare(f"fingerprints.{gateway}.txt", joined((json.dumps(each), "\n".join(known_as(each))) for each in requests))


# --- and back ---------------------------------------------------------------------------------------------------------


def record(here: Store, there: Store, key: str) -> None:
    found = Ledger(here).read(key)
    assert found is not None
    assert Ledger(there).create(found.record)


def item_of(parts: Sequence[str]) -> Item:
    namespace, dag_id, run_id, task_id, map_index = parts
    return Item(namespace, dag_id, run_id, task_id, int(map_index))


def kept(here: Store, there: Store, key: str) -> None:
    folder, *parts, name = key.split("/")
    item, generation = item_of(parts), int(name.removesuffix(".json"))
    model: Any = {PLANS: Plan, RETURNED: SavedRequest}[folder]
    wanted = SavedRequestStore(model, here, folder, item, None).read(generation)
    assert wanted is not None
    SavedRequestStore(model, there, folder, item, None).write(generation, wanted)


def budget(here: Store, there: Store, key: str) -> None:
    there.create(key, BudgetDocument.model_validate_json(bytes_at(here, key)).model_dump_json().encode())


def entry(here: Store, there: Store, key: str) -> None:
    found = read_entry(here, key)
    assert found is not None
    assert write_entry(there, key, make_record(key=found.record, claim=found.claim), None)


def name(here: Store, there: Store, key: str) -> None:
    claim = read_claim(here, key)
    assert claim is not None
    there.create(claim.key, claim.to_json())


def tombstone(here: Store, there: Store, key: str) -> None:
    said = json.loads(bytes_at(here, key))
    assert Ledger(here).has_tombstone(said["record"], said["claim"])
    assert not Ledger(here).has_tombstone(said["record"], "0" * 32)


def shown(here: Store, there: Store, key: str) -> None:
    _, *parts, last = key.removesuffix(".json").split("/")
    try_id, _, digest = last.rpartition("-")
    one, other = (Approval(Ledger(store), Files(AIRFLOW_OPENERS), item_of(parts), try_id) for store in (here, there))
    assert other.keep(one.recall(digest)) == digest


def sidecar(here: Store, there: Store, key: str) -> None:
    said = json.loads(bytes_at(here, key))
    uri = f"{here.uri}/{key}"
    assert is_sidecar_of(Files(AIRFLOW_OPENERS), uri, said["record"], None)
    assert not is_sidecar_of(Files(AIRFLOW_OPENERS), uri, "ledger/a/b/c/d/-1/0/1.json", None)


def bytes_at(store: Store, key: str) -> bytes:
    blob = store.read(key)
    assert blob is not None
    return blob.data


READERS = {
    "ledger": record, "batches": kept, "returned": kept, "budgets": budget, "index": entry, "jobs": entry,
    "names": name, "forgotten": tombstone, "shown": shown, "images": sidecar, "pictures": sidecar,
}  # fmt: skip
UNREAD = {"forgotten", "images", "pictures"}  # what is only looked at
BYTES = {"thumbs", "spool"}


@pytest.mark.parametrize("file", FILES)
def test_what_was_written_is_read_without_loss(file: str, tmp_path: Path) -> None:
    sections = parted((FOLDER / file).read_text(encoding="utf-8"))
    for number, (key, text) in enumerate(sections):
        kind = key.partition("/")[0]
        if key.startswith("* ") or kind in BYTES or text.startswith("(") or key.endswith(".jsonl"):
            continue
        here, there = (open_store((tmp_path / f"{number}-{place}").as_uri(), AIRFLOW_OPENERS) for place in "ab")
        assert here.create(key, text.encode())
        READERS[kind](here, there, key)
        if kind not in UNREAD:
            assert bytes_at(there, key).decode() == text


def test_every_kind_of_file_and_every_state_of_a_record_is_among_them() -> None:
    sections = [section for file in FILES for section in parted((FOLDER / file).read_text(encoding="utf-8"))]
    assert {key.partition("/")[0] for key, _ in sections if not key.startswith("* ")} == {*READERS, *BYTES}
    records = [json.loads(text) for key, text in sections if key.startswith("ledger/")]
    assert {each["state"] for each in records} == {"intent", "submitted", "answered", "landed", "failed"}
    told = {name for each in records for name, value in each.items() if value not in (None, False, [], "", 0)}
    assert told == set(records[0]), "no field is empty in all of them"
    assert {path.name for path in FOLDER.iterdir()} == {
        *FILES, "errors.txt", "fingerprints.1min.txt", "fingerprints.apimaster.txt"
    }  # fmt: skip
