"""Differences between Airflow versions, and all uses of Airflow's private parts. No other module has any."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
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
    NEVER_EXPIRE = None  # type: ignore[assignment]
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
    "API_CHANNEL",
    "CAN_SCOPE_TABS",
    "GIVEN",
    "HAS_TASK_STATE_STORE",
    "LACKS",
    "NEVER_EXPIRE",
    "TESTED_AIRFLOWS",
    "LiteralXComMixin",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "everybody_is_admin",
    "has_supervisor",
    "is_mapped",
    "iteration_of",
    "iteration_of_link",
    "resuming_with",
    "shown_request",
    "stored_variable",
    "warn_if_untested",
]

# Oldest first. `scripts/test_compat.py` tests them; docs/compatibility.md says what each one lacks.
TESTED_AIRFLOWS = ("3.1", "3.2", "3.3", "3.4")
LACKS = {
    "3.1": "command `airflow geminiimg`, connection form of the provider, downloads in the gallery, loops and retry "
    "policies",
    "3.2": "downloads in the gallery, loops and retry policies",
    "3.3": "loops",
}
"""What an older Airflow does not offer to this package; docs/compatibility.md."""
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


API_CHANNEL = threading.Lock()  # Airflow's channel to its API serves one caller at a time


def has_supervisor() -> bool:
    """Whether Airflow runs this task; false where other code calls `execute` by itself."""
    from airflow.sdk.execution_time import task_runner

    return getattr(task_runner, "SUPERVISOR_COMMS", None) is not None


def stored_variable(key: str) -> str | None:
    """The value of a Variable in Airflow's database; ``None`` only if Airflow says that there is none.

    `Variable.get` also returns its default if Airflow does not answer.

    :raises AirflowRuntimeError: Airflow does not answer, or denies access.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable

    answer: Any = task_runner.SUPERVISOR_COMMS.send(GetVariable(key=key))
    if not isinstance(answer, ErrorResponse):
        return None if answer.value is None else str(answer.value)
    if answer.error is ErrorType.VARIABLE_NOT_FOUND:
        return None
    raise AirflowRuntimeError(answer)


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
            hint="Nothing was sent by this attempt. If the task has left its loop since, start a new DAG run. If not, "
            "use an Airflow that docs/compatibility.md lists.",
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
            self._is_undefined = any(each.is_undefined for each in self._missing)
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
