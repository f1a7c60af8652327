"""Rights on single DAGs, which Airflow has with its FAB auth manager: who may read one DAG sees nothing of another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest

from airflow_provider_geminiimg.gallery.addresses import address_of
from tests.harness.live_airflow import LiveAirflow
from tests.harness.orphaned_records import OrphanedRecords
from tests.harness.records import ITEM, landed

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

ADMIN = "ada"
READERS = {"anna": ["DAG:a"], "bert": ["DAG:b"], "cleo": ["DAG:a", "DAG:b"], "nils": []}
GENERAL = ["DAG Runs", "Task Instances", "XComs", "Website"]

# The passwords are the names.
MAKE_USERS = """
import json, sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
admin, readers, general = json.loads(sys.argv[1])
with get_application_builder() as builder:
    manager = builder.sm
    def add(name, role):
        assert manager.add_user(name, name, name, f"{name}@localhost", role, name)
    add(admin, manager.find_role("Admin"))
    for name, dags in readers.items():
        role = manager.add_role(f"reader-{name}")
        for resource in [*general, *dags] if dags else ["Website"]:
            manager.add_permission_to_role(role, manager.create_permission("can_read", resource))
        add(name, role)
"""


@pytest.fixture
def airflow(root: str, tmp_path: Path) -> Iterator[LiveAirflow]:
    """An API server with FAB's users, on disk and on S3; the scheduler has nothing to do here."""
    (tmp_path / "dags").mkdir()
    shared = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    images = f"{root.rpartition('/')[0]}/images"
    airflow = LiveAirflow(
        tmp_path / "airflow",
        tmp_path / "dags",
        {
            **shared,
            "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
            "AIRFLOW__GEMINIIMG__ROOT": root,
            "AIRFLOW__GEMINIIMG__GALLERY_ROOTS": images,
        },
        users={ADMIN: "ADMIN"},
    )
    done = airflow.command("db", "migrate", timeout=120)
    assert done.returncode == 0, done.stderr
    users = json.dumps([ADMIN, READERS, GENERAL])
    made = subprocess.run(
        [sys.executable, "-c", MAKE_USERS, users], env=airflow.env, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    airflow.start(["api-server"])
    yield airflow
    airflow.stop()


class Visitors:
    """The users, each with a token, which they show as a browser's cookie or in a header."""

    def __init__(self, airflow: LiveAirflow) -> None:
        self.airflow = airflow
        self.tokens: dict[str, str] = {}
        for name in (ADMIN, *READERS):
            said = httpx.post(f"{airflow.url}/auth/token", json={"username": name, "password": name}, timeout=30)
            self.tokens[name] = said.raise_for_status().json()["access_token"]

    def ask(self, path: str, user: str | None) -> httpx.Response:
        """An address of the gallery, asked in both ways: they must not differ."""
        token = self.tokens[user] if user else "none"
        by_cookie = httpx.get(
            f"{self.airflow.url}/geminiimg/{path}", cookies={"_token": token} if user else {}, timeout=30
        )
        headers = {"Authorization": f"Bearer {token}"} if user else {}
        by_token = httpx.get(f"{self.airflow.url}/geminiimg/{path}", headers=headers, timeout=30)
        assert by_cookie.status_code == by_token.status_code, path
        assert by_cookie.content == by_token.content, path
        return by_token

    def statuses(self, path: str) -> dict[str | None, int]:
        """What everybody gets."""
        return {user: self.ask(path, user).status_code for user in (None, *READERS, ADMIN)}


def listing(dag_id: str) -> str:
    return f"api/dags/{dag_id}/runs/{quote(ITEM.run_id)}/images"


async def test_who_may_read_one_dag_sees_nothing_of_another(
    airflow: LiveAirflow, sandbox: Sandbox, onemin: str
) -> None:
    left = OrphanedRecords(sandbox, onemin)
    first, second = [await left.attempt(dag_id, item=replace(ITEM, dag_id=dag_id)) for dag_id in ("a", "b")]
    source = (second.manifest or {})["images"][0]
    edit = landed(
        replace(ITEM, dag_id="a", task_id="edit"),
        operation="edit",
        inputs=[{"uri": source["uri"], "sha256": source["sha256"]}],
    )
    assert left.ledger.create(edit)
    visitors = Visitors(airflow)

    of_a, of_b = (
        {None: 401, "anna": a, "bert": b, "cleo": 200, "nils": 403, ADMIN: 200} for a, b in [(200, 403), (403, 200)]
    )
    path_a, path_b = (address_of(record.key).image(0).removeprefix("f/") for record in (first, second))
    sources = f"api/dags/a/runs/{quote(ITEM.run_id)}/sources?task_id=edit&map_index=-1&item=0&n=1"
    for path in (f"f/{path_a}", f"thumbs/{path_a}", listing("a"), listing("a").replace("images", "summary"), sources):
        assert visitors.statuses(path) == of_a, path
    for path in (f"f/{path_b}", f"thumbs/{path_b}", listing("b"), listing("b").replace("images", "summary")):
        assert visitors.statuses(path) == of_b, path
        assert visitors.statuses(f"{path}?dag_id=a") == of_b, path
        assert visitors.statuses(f"{path}?dag_id=~") == of_b, path

    digest = hashlib.sha256(visitors.ask(f"f/{path_a}", "anna").content).hexdigest()
    assert digest == (first.manifest or {})["images"][0]["sha256"]
    for path in (
        path_b.replace("b/", "~/", 1),
        path_b.removeprefix("b"),
        path_b.removeprefix("b/"),
        f"%2e%2e/{path_b}",
    ):
        for query in ("", "?dag_id=a", "?dag_id=b"):
            said = visitors.statuses(f"f/{path}{query}")
            assert 200 not in said.values(), (path, query, said)
    for query in ("", "?dag_id=b"):
        expected: dict[str | None, int] = {None: 401, **dict.fromkeys((*READERS, ADMIN), 404), "nils": 403}
        assert visitors.statuses(f"{listing('~')}{query}") == expected

    seen = {user: visitors.ask("api/dags", user).json()["dags"] for user in (*READERS, ADMIN)}
    assert seen == {"anna": ["a"], "bert": ["b"], "cleo": ["a", "b"], "nils": [], ADMIN: ["a", "b"]}

    [hidden] = visitors.ask(sources, "anna").json()["sources"]
    assert (hidden["image"], hidden["why"]) == (None, "It belongs to a DAG that you may not read.")
    assert path_b not in json.dumps(hidden)
    [shown] = visitors.ask(sources, "cleo").json()["sources"]
    assert shown["image"]["href"] == f"f/{path_b}"
