"""The entries of a task instance in Airflow's task state store (since Airflow 3.3)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from airflow_provider_geminiimg._compat import API_CHANNEL, HAS_TASK_STATE_STORE, NEVER_EXPIRE
from airflow_provider_geminiimg.core.purchase.order import Marker

_IMAGE = "geminiimg"
_ITEM = "geminiimg/"
_PLAN = "geminiimg_plan"
_TOKEN = "geminiimg_token"


class TaskState:
    """The entries of a task instance in Airflow's task state store (Airflow 3.3).

    :param store: the synchronous accessor in the context of the task.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._token: str | None = None
        self._was_empty = False
        self._written: set[str] = set()

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> TaskState | None:
        """The state of the running task; ``None`` before Airflow 3.3."""
        store = context.get("task_state_store") if HAS_TASK_STATE_STORE else None
        return None if store is None else cls(store)

    def token(self) -> str:
        """A random token, stored until the DAG run is deleted. A DAG run that is created again gets another token."""
        with API_CHANNEL:
            return self._known_token()

    def _known_token(self) -> str:
        if self._token is None:
            known = self._store.get(_TOKEN)
            self._was_empty = not isinstance(known, str)
            self._token = secrets.token_hex(8) if self._was_empty else str(known)
            if self._was_empty:
                self._store.set(_TOKEN, self._token, retention=NEVER_EXPIRE)
        return self._token

    def image(self) -> StateStoreMarker:
        """The marker of a task with one image."""
        return StateStoreMarker(self, _IMAGE)

    def item(self, item: str) -> StateStoreMarker:
        """The marker of one image of a batch.

        :param item: its item name in the ledger.
        """
        return StateStoreMarker(self, _ITEM + item)

    def plan(self) -> StateStoreMarker:
        """The marker of the request or plan that is saved for retries."""
        return StateStoreMarker(self, _PLAN)

    def get(self, name: str) -> Mapping[str, Any] | None:
        with API_CHANNEL:
            self._known_token()
            if self._was_empty and name.startswith(_ITEM) and name not in self._written:
                return None  # saves one round trip per image of a new batch
            value = self._store.get(name)
        return value if isinstance(value, Mapping) else None

    def set(self, name: str, value: Mapping[str, Any]) -> None:
        with API_CHANNEL:
            self._written.add(name)
            self._store.set(name, dict(value), retention=NEVER_EXPIRE)


class SharedMarker:
    """The marker of an image whose records several task instances write, with the token of one of them.

    An entry under another token counts as missing, as in a store that was emptied.

    :param token: of the task instance that all of them have in common.
    :param marker: in the state of the running task; ``None``: there are no entries.
    """

    def __init__(self, token: str, marker: Marker | None = None) -> None:
        self._token = token
        self._marker = marker

    def token(self) -> str:
        return self._token

    def get(self) -> Mapping[str, Any] | None:
        known = None if self._marker is None else self._marker.get()
        return known if known is not None and known.get("token") == self._token else None

    def set(self, value: Mapping[str, Any]) -> None:
        if self._marker is not None:
            self._marker.token()  # a store without a token of its own counts as empty
            self._marker.set({**value, "token": self._token})


class StateStoreMarker:
    """A record's key and claim, or a plan's key, in Airflow's task state store.

    :param state: the state of the task instance.
    :param name: the name of the entry.
    """

    def __init__(self, state: TaskState, name: str) -> None:
        self._state = state
        self._name = name

    def token(self) -> str:
        return self._state.token()

    def get(self) -> Mapping[str, Any] | None:
        return self._state.get(self._name)

    def set(self, value: Mapping[str, Any]) -> None:
        self._state.set(self._name, value)
