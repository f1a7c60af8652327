"""A token in the root, by which two processes find out whether they use the same one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from airflow_provider_geminiimg.core.ledger.layout import token_key
from airflow_provider_geminiimg.core.ledger.root_token import RootView, leave_token, remove_token, view_of
from airflow_provider_geminiimg.core.storage import LocalStore
from airflow_provider_geminiimg.exceptions import BadRequestError


def test_a_token_is_found_in_the_same_root_and_in_no_other(tmp_path: Path) -> None:
    here, other = LocalStore(str(tmp_path / "here")), LocalStore(str(tmp_path / "other"))
    token = leave_token(here, "production")
    assert view_of(lambda: here, "production", "1.2", token) == RootView(True, True, "1.2")
    assert view_of(lambda: here, "test", "1.2", token) == RootView(True, False, "1.2")
    assert view_of(lambda: other, "production", "1.2", token) == RootView(False, False, "1.2")
    remove_token(here, token)
    assert view_of(lambda: here, "production", "1.2", token) == RootView(False, False, "1.2")


def test_a_root_that_cannot_be_read_is_a_problem_and_not_an_absent_token(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    token = leave_token(store, "production")
    (tmp_path / token_key(token)).unlink()
    (tmp_path / token_key(token)).mkdir()
    assert view_of(partial(LocalStore, str(tmp_path)), "production", "1.2", token) == RootView(
        False, False, "1.2", "storage"
    )

    def refuse() -> LocalStore:
        raise BadRequestError("there is no such connection")

    assert view_of(refuse, "production", "1.2", token) == RootView(False, False, "1.2", "bad_request")


def test_a_token_that_is_not_json_is_found_with_another_namespace(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for data in (b"{", b"[1]", b"\xff"):
        token = leave_token(store, "production")
        (tmp_path / token_key(token)).write_bytes(data)
        assert view_of(lambda: store, "production", "1.2", token) == RootView(True, False, "1.2")


def test_a_token_that_was_left_an_hour_ago_is_removed_by_the_next_one(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    old, new = leave_token(store, "production"), leave_token(store, "production")
    hours_ago = store.now() - 7200
    os.utime(tmp_path / token_key(old), (hours_ago, hours_ago))
    last = leave_token(store, "production")
    assert sorted(store.keys("")) == sorted([token_key(new), token_key(last)])
