"""The only reader of Airflow's version: what 3.3 has and 3.1 and 3.2 lack, or keep elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

try:
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    HAS_TASK_STATE_STORE = True
except ImportError:  # Airflow before 3.3
    HAS_TASK_STATE_STORE = False

try:
    from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import TaskDeferralError, TaskDeferralTimeout  # type: ignore[no-redef]

try:
    from airflow.sdk import RetryDecision, RetryPolicy

    HAS_RETRY_POLICY = True
except ImportError:  # Airflow before 3.3
    HAS_RETRY_POLICY = False

__all__ = [
    "HAS_RETRY_POLICY",
    "HAS_TASK_STATE_STORE",
    "RetryDecision",
    "RetryPolicy",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "is_mapped",
    "marker",
]

MARK = "geminiimg"


class StateStoreMarker:
    """The record's key and claim in Airflow's task state store (3.3).

    :param store: the accessor in the task's context. It is synchronous.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self) -> Mapping[str, Any] | None:
        value = self._store.get(MARK)
        return value if isinstance(value, Mapping) else None

    def set(self, value: Mapping[str, Any]) -> None:
        self._store.set(MARK, dict(value), retention=NEVER_EXPIRE)


def is_mapped(operator: Any) -> bool:
    """Whether the operator is being made out of ``.partial().expand()``, at run time. Airflow tells it nowhere else."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


def marker(context: Mapping[str, Any]) -> StateStoreMarker | None:
    """The marker of the running task; ``None`` where Airflow has no task state store."""
    store = context.get("task_state_store") if HAS_TASK_STATE_STORE else None
    return None if store is None else StateStoreMarker(store)
