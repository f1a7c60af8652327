"""The only reader of Airflow's version and of its private parts: what one Airflow has and another lacks or hides."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException, TaskDeferred, conf

from airflow_provider_geminiimg.core.validation.absent import IncompleteText

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
    "GIVEN",
    "HAS_TASK_STATE_STORE",
    "LiteralXComMixin",
    "StateStoreMarker",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "TaskState",
    "everybody_is_admin",
    "is_mapped",
    "resuming_with",
    "shown_request",
]

_IMAGE = "geminiimg"
_ITEM = "geminiimg/"
_PLAN = "geminiimg_plan"
_TOKEN = "geminiimg_token"


class TaskState:
    """What Airflow itself remembers of a task instance, in its task state store (3.3).

    :param store: the accessor in the task's context. It is synchronous.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._lock = threading.Lock()  # Airflow's way to its API serves one caller at once, in a test's process anyway
        self._token: str | None = None
        self._was_empty = False
        self._written: set[str] = set()

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> TaskState | None:
        """Of the running task; ``None`` where Airflow has no task state store."""
        store = context.get("task_state_store") if HAS_TASK_STATE_STORE else None
        return None if store is None else cls(store)

    def token(self) -> str:
        """A random word that the store keeps until its DAG run is deleted: a run made again has another one."""
        with self._lock:
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
        """What is remembered of the one image of a task."""
        return StateStoreMarker(self, _IMAGE)

    def item(self, item: str) -> StateStoreMarker:
        """What is remembered of one image of a batch.

        :param item: what the ledger calls it among the images of its task.
        """
        return StateStoreMarker(self, _ITEM + item)

    def plan(self) -> StateStoreMarker:
        """What is remembered of the request that was saved for retries."""
        return StateStoreMarker(self, _PLAN)

    def get(self, name: str) -> Mapping[str, Any] | None:
        with self._lock:
            self._known_token()
            if self._was_empty and name.startswith(_ITEM) and name not in self._written:
                return None  # saves a round trip for each image of a new batch; no version without tokens wrote these
            value = self._store.get(name)
        return value if isinstance(value, Mapping) else None

    def set(self, name: str, value: Mapping[str, Any]) -> None:
        with self._lock:
            self._written.add(name)
            self._store.set(name, dict(value), retention=NEVER_EXPIRE)


class StateStoreMarker:
    """A record's key and claim, or a plan's key, in Airflow's task state store.

    :param state: the task instance's.
    :param name: under which name.
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


def is_mapped(operator: Any) -> bool:
    """Whether the operator is being made out of ``.partial().expand()``, at run time. Airflow tells it nowhere else."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


class LiteralXComMixin:
    """An operator whose arguments are the values of their templates: text stays text, whatever it looks like.

    Airflow's native rendering takes text for a Python literal: ``1e3`` becomes a number and quotes go, also where there
    is no template. Here the value of an expression is kept as it is, and text is never evaluated. Only a template that
    stands for one of `native_fields` is rendered as Airflow does it.

    What another task returned is taken as it is, braces included. Airflow does so too, but for ``.expand_kwargs()``:
    what that takes from another task it renders as if the DAG's author had written it, and a prompt that asks for
    ``{{ conn.x.password }}`` gets it.
    """

    native_fields: ClassVar[Collection[str]] = ("image", "reference_images", "requests")
    _telling_env: Any = None
    _evaluates = True
    _missing: list[IncompleteText]
    _incomplete: dict[int, tuple[str, IncompleteText]]

    def _do_render_template_fields(
        self, parent: Any, template_fields: Any, context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        render = super()._do_render_template_fields  # type: ignore[misc]
        if parent is not self:
            render(parent, template_fields, context, jinja_env, seen_oids)
            return
        from airflow_provider_geminiimg.core.validation.incomplete import telling

        seen = seen_oids | _returned_by_a_task(self, context)
        given = _given_by_a_task(self, context)
        self._missing = []
        self._telling_env = telling(jinja_env, self._missing)
        for name in template_fields:
            written = getattr(self, name)
            self._evaluates = not _is_native(jinja_env) or (name in self.native_fields and isinstance(written, str))
            self._incomplete = {}
            try:
                render(parent, (name,), context, self._telling_env, seen)
                rendered = _defined(getattr(self, name))
            except Exception as error:
                if not _is_missing(error):
                    raise
                self._rendered(name, written, None, why=str(error))
            else:
                incomplete = {place: found for place, (_, found) in self._incomplete.items()}
                self._rendered(name, GIVEN if name in given else written, rendered, incomplete)
        self._telling_env = None

    def _rendered(
        self,
        name: str,
        written: Any,
        rendered: Any,
        incomplete: Mapping[int, IncompleteText] = MappingProxyType({}),
        why: str = "",
    ) -> None:
        """Told of each argument what became of it.

        :param written: as it stands in the DAG; `GIVEN` where another task gives it.
        :param incomplete: texts in it, by their identity, in which a missing value is printed as a word.
        :param why: why it could not be rendered.
        """

    def _render(self, template: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        render = super()._render  # type: ignore[misc]
        if self._telling_env is None or template.environment is not self._telling_env:
            return render(template, context, *args, **kwargs)
        self._missing.clear()
        if self._evaluates:
            rendered = render(template, context, *args, **kwargs)
        else:
            rendered = render(_unevaluated(template), context, *args, **kwargs).value
        if isinstance(rendered, str):
            rendered = str(rendered)  # Airflow can't send a subclass, such as Jinja's Markup, to its API
        text = str(rendered)
        if not self._missing or text.strip() == self._missing[0].word.strip():
            return rendered  # what the whole text came to is seen by its value
        self._incomplete[id(text)] = text, self._missing[0]
        return text


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


GIVEN = object()  # stands for what an argument was before another task gave it


def _unevaluated(template: Any) -> Any:
    """The template, yielding one value that Jinja does not take for the text of a Python object."""

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
    """The value; of one that is not defined the text, which is Jinja's error where the DAG does not allow that."""
    from jinja2 import Undefined

    return str(value) if isinstance(value, Undefined) else value


def _is_missing(error: Exception) -> bool:
    """Whether something that a template names is not there: Jinja's own error, or Airflow's of a Variable or XCom."""
    kind = str(getattr(getattr(error, "error", None), "error", ""))  # of AirflowRuntimeError
    from jinja2 import UndefinedError

    return isinstance(error, UndefinedError | KeyError | AirflowNotFoundException) or "NOT_FOUND" in kind.upper()


def _is_native(jinja_env: Any) -> bool:
    from jinja2.nativetypes import NativeEnvironment  # while a template is rendered Jinja is there

    return isinstance(jinja_env, NativeEnvironment)


def _given_by_a_task(operator: Any, context: Mapping[str, Any]) -> set[str]:
    """The names of the arguments that ``.expand()`` or ``.expand_kwargs()`` took from another task."""
    mapped = operator.dag.get_task(operator.task_id) if is_mapped(operator) else None
    if mapped is None or hasattr(mapped, "op_kwargs_expand_input"):  # a function may take what it likes
        return set()
    rows: Any = mapped.expand_input.value
    if isinstance(rows, Mapping):  # `.expand()`
        return {name for name, values in rows.items() if not isinstance(values, Sized)}
    row = rows[context["ti"].map_index] if isinstance(rows, Sized) else rows  # type: ignore[index]
    if isinstance(row, Mapping):  # written in the DAG
        return set()
    return set(operator._BaseOperator__init_kwargs) - set(mapped.partial_kwargs)


def shown_request(**request: Any) -> Any:
    """Have Airflow show a request to a person, and say what it shows: an earlier try's, where there was one.

    `HITLOperator` does the same and does not look.

    :param request: the fields of Airflow's ``CreateHITLDetailPayload``.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload

    return task_runner.SUPERVISOR_COMMS.send(msg=CreateHITLDetailPayload(**request))


@contextlib.contextmanager
def resuming_with(make_kwargs: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Hand arguments to the method that goes on after a pause that begins inside.

    Airflow keeps them with the task instance, where nobody can edit them by its API; ``dag.test()`` may lose them.
    """
    try:
        yield
    except _PAUSES as pause:
        pause.kwargs = {**(pause.kwargs or {}), **make_kwargs()}  # type: ignore[attr-defined]
        raise


def everybody_is_admin() -> bool:
    """Whether Airflow lets everybody answer, whoever is assigned: its simple auth manager can be told to."""
    return bool(conf.getboolean("core", "simple_auth_manager_all_admins", fallback=False))
