"""A token that one process leaves in a root, and another one looks for: whether both use the same root.

Invariants: the name of a token can't be guessed, so looking for one tells nothing about a root. A view holds no text of
a store's error, because everybody who is logged in may ask the API server for its view.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_geminiimg.core.ledger.layout import TESTS, token_key
from airflow_provider_geminiimg.core.storage import Store, create_or_read
from airflow_provider_geminiimg.exceptions import GeminiImageError

TOKEN = re.compile("[0-9a-f]{32}")
MAX_TOKEN_BYTES = 10_000
LEFT_SECONDS = 3600.0  # no process needs a test object for so long
MAX_REMOVED = 100  # at once


@dataclass(frozen=True)
class RootView:
    """What a process finds under its root.

    :param found: whether the token is there.
    :param same_namespace: whether the process has the namespace of the process that left the token.
    :param version: of this package in the process.
    :param problem: kind of the error if the root can't be read; ``None`` otherwise.
    """

    found: bool
    same_namespace: bool
    version: str
    problem: str | None = None


def leave_token(store: Store, namespace: str) -> str:
    """Write a token into a root, and return its name. Removes what killed processes have left.

    :param namespace: of this process.
    :raises StorageError: it could not be written.
    """
    for key in itertools.islice(store.keys(TESTS), MAX_REMOVED):
        left = store.read(key, MAX_TOKEN_BYTES)
        if left is not None and left.age > LEFT_SECONDS:
            store.delete(key)
    token = secrets.token_hex(16)
    create_or_read(store, token_key(token), json.dumps({"namespace": namespace}).encode())
    return token


def remove_token(store: Store, token: str) -> None:
    """Remove a token.

    :raises StorageError: it could not be removed.
    """
    store.delete(token_key(token))


def view_of(root: Callable[[], Store], namespace: str, version: str, token: str) -> RootView:
    """Look for a token in a root; one request to the store.

    :param root: opens the root.
    :param namespace: of this process.
    :param version: of this package.
    """
    try:
        blob = root().read(token_key(token), MAX_TOKEN_BYTES)
    except GeminiImageError as error:
        return RootView(False, False, version, error.kind)
    if blob is None:
        return RootView(False, False, version)
    try:
        values = json.loads(blob.data)
    except ValueError:
        values = None
    return RootView(True, values == {"namespace": namespace}, version)
