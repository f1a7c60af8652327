"""The entries of task instances in Airflow's task state store."""

from __future__ import annotations

from typing import Any

from airflow_provider_geminiimg.runtime.task_state import SharedMarker, TaskState


class Store:
    """What Airflow keeps for one task instance."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.values[key] = value


def test_a_shared_marker_ignores_what_was_written_under_another_token() -> None:
    store = Store()
    first = SharedMarker("first", TaskState(store).item("x"))
    first.set({"record": "ledger/a/1.json", "claim": "c"})
    again = TaskState(store)
    assert again.token() not in ("first", "second")
    assert SharedMarker("first", again.item("x")).get() == {"record": "ledger/a/1.json", "claim": "c", "token": "first"}
    assert SharedMarker("second", again.item("x")).get() is None
    assert SharedMarker("second", again.item("x")).token() == "second"


def test_a_shared_marker_without_entries_has_only_its_token() -> None:
    marker = SharedMarker("first")
    marker.set({"record": "ledger/a/1.json"})
    assert (marker.token(), marker.get()) == ("first", None)
