"""The only reader of Airflow's version and of its private parts: what one Airflow has and another lacks or hides."""

from __future__ import annotations

from collections.abc import Mapping, Sized
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

__all__ = [
    "HAS_TASK_STATE_STORE",
    "TakesTexts",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "is_mapped",
    "marker",
    "shown_request",
]


class StateStoreMarker:
    """A record's key and claim, or a plan's key, in Airflow's task state store (3.3).

    :param store: the accessor in the task's context. It is synchronous.
    :param name: under which name.
    """

    def __init__(self, store: Any, name: str) -> None:
        self._store = store
        self._name = name

    def get(self) -> Mapping[str, Any] | None:
        value = self._store.get(self._name)
        return value if isinstance(value, Mapping) else None

    def set(self, value: Mapping[str, Any]) -> None:
        self._store.set(self._name, dict(value), retention=NEVER_EXPIRE)


def is_mapped(operator: Any) -> bool:
    """Whether the operator is being made out of ``.partial().expand()``, at run time. Airflow tells it nowhere else."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


class TakesTexts:
    """An operator that takes what another task returned as it is, braces included.

    Airflow does so too, but for ``.expand_kwargs()``: what that takes from another task it renders as if the DAG's
    author had written it, and a prompt that asks for ``{{ conn.x.password }}`` gets it.
    """

    def _do_render_template_fields(
        self, parent: Any, template_fields: Any, context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        seen = seen_oids | _returned_by_a_task(self, context)
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen)  # type: ignore[misc]


def _returned_by_a_task(operator: Any, context: Mapping[str, Any]) -> set[int]:
    """The ids of the arguments that ``.expand_kwargs()`` took from another task."""
    if not is_mapped(operator):
        return set()
    mapped = operator.dag.get_task(operator.task_id)
    of_function = getattr(mapped, "op_kwargs_expand_input", None)  # the arguments that are mapped are its, not ours
    rows = getattr(of_function or mapped.expand_input, "value", None)
    if isinstance(rows, Mapping):  # `.expand()`: Airflow's own ids are right
        return set()
    row = rows[context["ti"].map_index] if isinstance(rows, Sized) else rows  # type: ignore[index]
    if isinstance(row, Mapping):  # written in the DAG
        return set()
    if of_function is not None:
        given, written = operator.op_kwargs, mapped.partial_kwargs["op_kwargs"]
    else:
        given = {name: getattr(operator, name) for name in operator.template_fields}
        written = mapped.partial_kwargs
    return {id(value) for name, value in given.items() if value is not written.get(name)}


def marker(context: Mapping[str, Any], name: str) -> StateStoreMarker | None:
    """A marker of the running task; ``None`` where Airflow has no task state store."""
    store = context.get("task_state_store") if HAS_TASK_STATE_STORE else None
    return None if store is None else StateStoreMarker(store, name)


def shown_request(**request: Any) -> Any:
    """Have Airflow show a request to a person, and say what it shows: an earlier try's, where there was one.

    `HITLOperator` does the same and does not look.

    :param request: the fields of Airflow's ``CreateHITLDetailPayload``.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload

    return task_runner.SUPERVISOR_COMMS.send(msg=CreateHITLDetailPayload(**request))
