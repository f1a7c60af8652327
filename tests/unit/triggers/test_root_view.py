"""The trigger by which the doctor sees the root from a triggerer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from airflow_provider_geminiimg import __version__
from airflow_provider_geminiimg.core.ledger.root_token import leave_token
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.triggers.root_view import GeminiImageRootTrigger


def event(token: str) -> Any:
    async def fired() -> Any:
        return [event.payload async for event in GeminiImageRootTrigger(token).run()]

    [payload] = asyncio.run(fired())
    assert json.loads(json.dumps(payload)) == payload
    return payload


def test_the_event_says_whether_the_token_is_in_the_root(root: str) -> None:
    token = leave_token(open_store(root, AIRFLOW_OPENERS), "default")
    view = {"found": True, "same_namespace": True, "version": __version__, "problem": None}
    assert event(token) == view
    assert event("0" * 32) == {**view, "found": False, "same_namespace": False}


@pytest.mark.parametrize(
    ("uri", "problem"), [("ftp://host/root", "bad_request"), ("s3://no_such_connection@bucket", "bad_request")]
)
def test_the_event_says_that_the_root_cannot_be_opened(uri: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", uri)
    found = event("0" * 32)
    assert (found["found"], found["problem"]) == (False, problem)


def test_the_arguments_are_the_name_of_the_token() -> None:
    trigger = GeminiImageRootTrigger("a" * 32)
    path, kwargs = trigger.serialize()
    assert kwargs == {"token": "a" * 32}
    assert path.rpartition(".")[2] == GeminiImageRootTrigger.__name__
