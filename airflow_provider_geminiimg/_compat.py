"""Differences between Airflow versions, and all uses of Airflow's private parts. No other module has any."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import airflow
from airflow.providers.common.compat.sdk import AirflowNotFoundException, TaskDeferred, conf

from airflow_provider_geminiimg.core.validation.absent import IncompleteText
from airflow_provider_geminiimg.exceptions import Billed, LedgerError

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
    from airflow.sdk.exceptions import TaskAwaitingInput

    _PAUSES: tuple[type[BaseException], ...] = (TaskDeferred, TaskAwaitingInput)
except ImportError:  # Airflow before 3.3
    _PAUSES = (TaskDeferred,)

__all__ = [
    "CAN_SCOPE_TABS",
    "GIVEN",
    "HAS_TASK_STATE_STORE",
    "TESTED_AIRFLOWS",
    "LiteralXComMixin",
    "StateStoreMarker",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "TaskState",
    "everybody_is_admin",
    "has_supervisor",
    "is_mapped",
    "iteration_of",
    "iteration_of_link",
    "resuming_with",
    "shown_request",
    "warn_if_untested",
]

# Oldest first. `scripts/test_compat.py` tests them; docs/compatibility.md says what each one lacks.
TESTED_AIRFLOWS = ("3.1", "3.2", "3.3", "3.4")
log = logging.getLogger(__name__)


def _minor(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


CAN_SCOPE_TABS = _minor(airflow.__version__) >= [3, 4]  # a plugin's tab may name the tasks that have it


@functools.cache
def warn_if_untested() -> None:
    """Log once per process that this Airflow is newer than every tested one. Nothing is refused."""
    if _minor(airflow.__version__) > _minor(TESTED_AIRFLOWS[-1]):
        log.warning(
            "Airflow %s is newer than %s, the newest that this version of airflow-provider-geminiimg is tested with. "
            "Nothing is refused. Look for a newer version of the package, and test yours before you rely on it.",
            airflow.__version__,
            TESTED_AIRFLOWS[-1],
        )


_IMAGE = "geminiimg"
_ITEM = "geminiimg/"
_PLAN = "geminiimg_plan"
_TOKEN = "geminiimg_token"
API_CHANNEL = threading.Lock()  # Airflow's channel to its API serves one caller at a time


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


def has_supervisor() -> bool:
    """Whether Airflow runs this task; false where other code calls `execute` by itself."""
    from airflow.sdk.execution_time import task_runner

    return getattr(task_runner, "SUPERVISOR_COMMS", None) is not None


def iteration_of(context: Mapping[str, Any]) -> int | None:
    """The iteration, from 0, of the loop that the running task belongs to; ``None`` outside loops (Airflow 3.4).

    :raises LedgerError: the task runs in a loop, and Airflow does not say in which iteration.
    """
    loop = context.get("loop")
    if loop is not None:
        return int(loop.index)
    ti = context["ti"]
    position = getattr(ti, "region_index", None)  # of a task that is not mapped: the iteration, or -1 outside loops
    if ti.map_index < 0 and position is not None and position >= 0:
        raise LedgerError(
            "This task runs in a loop, but Airflow does not say in which iteration.",
            billed=Billed.UNKNOWN,
            hint="Nothing was sent by this attempt. Use an Airflow that docs/compatibility.md lists.",
        )
    return None


def iteration_of_link(ti_key: Any) -> int | None:
    """The iteration of the task instance that an extra link is made for; ``None`` outside loops.

    :param ti_key: what Airflow passes to `get_link`: a task's process passes the task instance itself.
    """
    context = getattr(ti_key, "get_template_context", None)
    return None if context is None else iteration_of(context())


def is_mapped(operator: Any) -> bool:
    """Whether the operator is created from ``.partial().expand()`` at run time. Airflow has no public flag for this."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


class LiteralXComMixin:
    """An operator whose text arguments stay text after rendering, and whose XCom arguments are never rendered.

    Airflow's native rendering evaluates text as a Python literal: ``1e3`` becomes a number, quotes disappear, even in a
    text without a template. This class keeps the value of an expression as it is and never evaluates text. Only the
    templates of `native_fields` are rendered natively.

    A value that another task returned is used as it is, including braces. Airflow does the same except for
    ``.expand_kwargs()``: it renders those values like text of the DAG, so that a prompt with ``{{ conn.x.password }}``
    would read the password.
    """

    native_fields: ClassVar[Collection[str]] = ("image", "reference_images", "requests")
    _recording_env: Any = None
    _evaluates = True
    _is_undefined = False  # whether the argument that was rendered last is a name that does not exist
    _missing: list[IncompleteText]
    _incomplete: dict[int, tuple[str, IncompleteText]]

    def _do_render_template_fields(
        self, parent: Any, template_fields: Any, context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        render = super()._do_render_template_fields  # type: ignore[misc]
        if parent is not self:
            render(parent, template_fields, context, jinja_env, seen_oids)
            return
        from airflow_provider_geminiimg.core.validation.incomplete import recording_missing

        seen = seen_oids | _returned_by_a_task(self, context)
        given = _given_by_a_task(self, context)
        self._missing = []
        self._recording_env = recording_missing(jinja_env, self._missing)
        for name in template_fields:
            written = getattr(self, name)
            self._evaluates = not _is_native(jinja_env) or (name in self.native_fields and isinstance(written, str))
            self._incomplete, self._is_undefined = {}, False
            try:
                render(parent, (name,), context, self._recording_env, seen)
                rendered = _defined(getattr(self, name))
            except Exception as error:
                if not _is_missing(error):
                    raise
                self._rendered(name, written, None, why=str(error))
            else:
                incomplete = {place: found for place, (_, found) in self._incomplete.items()}
                self._rendered(name, GIVEN if name in given else written, rendered, incomplete)
        self._recording_env = None

    def _rendered(
        self,
        name: str,
        written: Any,
        rendered: Any,
        incomplete: Mapping[int, IncompleteText] = MappingProxyType({}),
        why: str = "",
    ) -> None:
        """Called after each argument was rendered.

        :param written: the value in the DAG; `GIVEN` if it comes from another task.
        :param rendered: the rendered value.
        :param incomplete: by ``id()``, texts in which a missing value was printed as a word such as ``None``.
        :param why: why the argument could not be rendered; empty if it was.
        """

    def _render(self, template: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        render = super()._render  # type: ignore[misc]
        if self._recording_env is None or template.environment is not self._recording_env:
            return render(template, context, *args, **kwargs)
        self._missing.clear()
        if self._evaluates:
            rendered = render(template, context, *args, **kwargs)
        else:
            rendered = render(_unevaluated(template), context, *args, **kwargs).value
        if isinstance(rendered, str):
            rendered = str(rendered)  # Airflow can't serialize a subclass of str, such as Jinja's Markup
        text = str(rendered)
        if not self._missing or text.strip() == self._missing[0].word.strip():
            self._is_undefined = bool(self._missing) and self._missing[0].is_undefined
            return rendered  # nothing is missing, or the whole text is the missing value
        self._incomplete[id(text)] = text, self._missing[0]
        return text


def _returned_by_a_task(operator: Any, context: Mapping[str, Any]) -> set[int]:
    """The ids of the arguments that ``.expand_kwargs()`` took from another task."""
    if not is_mapped(operator):
        return set()
    mapped = operator.dag.get_task(operator.task_id)
    of_function = getattr(mapped, "op_kwargs_expand_input", None)  # of a decorated task: its function is mapped
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


GIVEN = object()  # an argument that another task gives; the DAG has no value for it


def _unevaluated(template: Any) -> Any:
    """The template, rendered to one value that Jinja does not evaluate as a Python literal."""

    def nodes(context: Any) -> Iterator[SimpleNamespace]:
        parts = list(template.root_render_func(context))
        yield SimpleNamespace(value=_defined(parts[0]) if len(parts) == 1 else "".join(map(str, parts)))

    return SimpleNamespace(
        environment=template.environment,
        globals=template.globals,
        name=template.name,
        blocks=template.blocks,
        root_render_func=nodes,
    )


def _defined(value: Any) -> Any:
    """The value; an undefined one as text, which raises Jinja's error if the DAG uses strict undefined."""
    from jinja2 import Undefined

    return str(value) if isinstance(value, Undefined) else value


def _is_missing(error: Exception) -> bool:
    """Whether a name in a template is missing, according to an error of Jinja or of Airflow's Variables and XCom."""
    kind = str(getattr(getattr(error, "error", None), "error", ""))  # of AirflowRuntimeError
    from jinja2 import UndefinedError

    return isinstance(error, UndefinedError | KeyError | AirflowNotFoundException) or "NOT_FOUND" in kind.upper()


def _is_native(jinja_env: Any) -> bool:
    from jinja2.nativetypes import NativeEnvironment  # imported here, because Jinja is heavy

    return isinstance(jinja_env, NativeEnvironment)


def _given_by_a_task(operator: Any, context: Mapping[str, Any]) -> set[str]:
    """The names of the arguments that ``.expand()`` or ``.expand_kwargs()`` took from another task."""
    mapped = operator.dag.get_task(operator.task_id) if is_mapped(operator) else None
    if mapped is None or hasattr(
        mapped, "op_kwargs_expand_input"
    ):  # a decorated function: its own arguments are mapped
        return set()
    rows: Any = mapped.expand_input.value
    if isinstance(rows, Mapping):  # `.expand()`
        return {name for name, values in rows.items() if not isinstance(values, Sized)}
    row = rows[context["ti"].map_index] if isinstance(rows, Sized) else rows  # type: ignore[index]
    if isinstance(row, Mapping):  # written in the DAG
        return set()
    return set(operator._BaseOperator__init_kwargs) - set(mapped.partial_kwargs)


def shown_request(**request: Any) -> Any:
    """Create the request to a person, and return the request that Airflow shows: that of an earlier try, if any.

    `HITLOperator` creates the same request and ignores the result.

    :param request: the fields of Airflow's ``CreateHITLDetailPayload``.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload

    return task_runner.SUPERVISOR_COMMS.send(msg=CreateHITLDetailPayload(**request))


@contextlib.contextmanager
def resuming_with(make_kwargs: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Context manager: pass keyword arguments to the method that resumes the task after a deferral in the block.

    Airflow stores them with the task instance; no API can edit them. ``dag.test()`` may lose them.
    """
    try:
        yield
    except _PAUSES as pause:
        pause.kwargs = {**(pause.kwargs or {}), **make_kwargs()}  # type: ignore[attr-defined]
        raise


def everybody_is_admin() -> bool:
    """Whether the simple auth manager makes every user an admin, who may answer for assigned users."""
    return bool(conf.getboolean("core", "simple_auth_manager_all_admins", fallback=False))
