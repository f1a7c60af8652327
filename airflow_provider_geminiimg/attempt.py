"""One try of one task instance: where the domain meets Airflow's context, for operators and the sensor alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, NoReturn, get_args

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_geminiimg._compat import marker
from airflow_provider_geminiimg._logs import Logs
from airflow_provider_geminiimg.connection import GatewayConnection, to_decimal
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    GeminiImageError,
    IncompleteError,
    MismatchError,
    OutcomeUnknownError,
    bare,
)
from airflow_provider_geminiimg.landing import mismatch_error
from airflow_provider_geminiimg.ledger import Destination, Item, Record
from airflow_provider_geminiimg.request import given
from airflow_provider_geminiimg.runner import Guard
from airflow_provider_geminiimg.storage import encode_segment, join_uri
from airflow_provider_geminiimg.surroundings import Surroundings
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

OnMismatch = Literal["accept", "fail"]

MAX_DEFERRALS = 2  # further ones, after a trigger crashed; then the wait goes on in the worker
MAX_SECONDS = 30 * 86400.0  # for waits; far longer ones are no date any more, which would show only after paying
BACKSTOP = 120.0  # seconds after the trigger's own deadline, for a trigger that nobody runs
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".json")


class Attempt(Surroundings):
    """The surroundings of one try.

    :param context: Airflow's context of the running task.
    :param log: the task's logger.
    """

    def __init__(self, context: Mapping[str, Any], log: Logs) -> None:
        super().__init__(log)
        ti = context["ti"]
        self.guard = Guard()
        self.context = context
        self.marker = marker(context, "geminiimg")
        self.plan_marker = marker(context, "geminiimg_plan")
        self.generation = int(ti.max_tries or 0)
        self.item = Item(self.namespace, ti.dag_id, ti.run_id, ti.task_id, int(ti.map_index))

    def connection(self, conn_id: Any) -> GatewayConnection:
        """As `Surroundings.connection`, for a rendered argument."""
        name = text("geminiimg_conn_id", conn_id)
        if name is None:
            raise BadRequestError(f"geminiimg_conn_id{given(conn_id)}: takes the id of an Airflow connection.")
        return super().connection(name)

    @property
    def folder(self) -> str:
        """This task instance's own folder for pictures, under the root."""
        parts = (self.item.dag_id, self.item.run_id, self.item.task_id, str(self.item.map_index))
        return join_uri(self.images, "/".join(map(encode_segment, parts)))

    def destination(self, output_path: str | None, file_name: str | None, variant: str | None = None) -> Destination:
        """Where the picture shall land.

        :param output_path: directory URI; default: a folder of this task instance under the root.
        :param file_name: name without extension; default: tells variants, mapped tasks and, in a folder of the
            author's, runs apart.
        :raises BadRequestError: for a file name that is a path, hidden, too long, or has a picture's extension.
        """
        item = self.item
        mapped = "" if item.map_index < 0 else f"-{item.map_index}"
        run = "" if not output_path else "-" + hashlib.sha256(f"{item.dag_id}\n{item.run_id}".encode()).hexdigest()[:8]
        usual = encode_segment(f"{item.task_id}{run}{mapped}{f'-v{variant}' if variant else ''}")
        directory = text("output_path", output_path) or self.folder
        return Destination(directory.rstrip("/"), stem("file_name", file_name) or usual)

    def count_deferral(self, record: Record) -> Record:
        """Note on the record that its trigger had to be started again."""
        return self.ledger.change(record.key, lambda stored: replace(stored, deferrals=stored.deferrals + 1))

    def trigger(self, record: Record, deadline: float, poll_interval: float | None) -> GeminiImageJobTrigger:
        """What waits for the record's job."""
        return GeminiImageJobTrigger(
            geminiimg_conn_id=record.conn_id,
            job_id=str(record.job_id),
            model=record.wire_model,
            submitted_at=record.submitted_at or record.claimed_at,
            deadline=deadline,
            expected_seconds=record.expected_seconds,
            poll_interval=poll_interval,
        )


def raise_outcome(error: GeminiImageError) -> NoReturn:
    """Raise the outcome as Airflow needs it, and bare: its message says what happened.

    :raises AirflowFailException: from the outcome, where no retry may touch it.
    :raises GeminiImageError: the outcome itself, otherwise.
    """
    error = bare(error)
    settled = isinstance(error, IncompleteError) and not error.retryable
    if settled or isinstance(error, BadRequestError | OutcomeUnknownError | MismatchError):
        raise AirflowFailException(str(error)) from error
    raise error


def text(name: str, value: Any) -> str | None:
    """A rendered text field; empty means unset.

    :raises BadRequestError: for anything but text.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRequestError(f"{name}{given(value)}: takes one text, not {type(value).__name__}.")
    return value


def choice(name: str, value: Any, allowed: Any) -> Any:
    """A rendered field with a closed list of values, a ``Literal``.

    :raises BadRequestError: for any other value.
    """
    if value not in get_args(allowed):
        words = " or ".join(map(repr, get_args(allowed)))
        raise BadRequestError(f"{name}{given(value)}: is not one of its words. Allowed: {words}.")
    return value


def seconds(name: str, value: Any) -> float | None:
    """A rendered number of seconds, above 0 and up to `MAX_SECONDS`; ``None`` and empty mean unset.

    :raises BadRequestError: for anything else.
    """
    if value is None or value == "":
        return None
    number = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        number = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= MAX_SECONDS:
        allowed = f"Allowed: above 0, up to {MAX_SECONDS:.0f} (30 days)"
        raise BadRequestError(f"{name}{given(value)}: takes a number of seconds. {allowed}.")
    return number


def money(name: str, value: Any) -> Decimal | None:
    """A rendered amount of money above 0; ``None`` and empty mean unset.

    :raises BadRequestError: for anything else.
    """
    if value is None or value == "":
        return None
    amount = to_decimal(value)
    if amount is None or amount <= 0:
        raise BadRequestError(f"{name}{given(value)}: takes a number above 0, in the connection's price currency.")
    return amount


def finished(manifest: dict[str, Any], on_mismatch: OnMismatch) -> dict[str, Any]:
    """What a task returns.

    :raises AirflowFailException: the picture has landed, is not what was asked for, and `on_mismatch` is ``"fail"``.
    """
    error = mismatch_error(manifest)
    if error is not None and on_mismatch == "fail":
        raise_outcome(error)
    return manifest


def stem(name: str, value: Any) -> str | None:
    """A rendered file name without extension; ``None`` means unset.

    :raises BadRequestError: for a name that is a path, hidden, too long, or has a picture's extension.
    """
    if value is None:
        return None
    plain = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    wrong = (
        "empty or no text" if not plain
        else "a path" if any(char in plain for char in "/\\\0") or plain in (".", "..")
        else "hidden" if plain.startswith(".")
        else "with control characters" if not plain.isprintable()
        else "longer than 120 bytes" if len(plain.encode()) > 120
        else "with an extension, which comes from the picture's bytes" if plain.lower().endswith(_IMAGE_SUFFIXES)
        else None
    )  # fmt: skip
    if wrong:
        allowed = "Allowed: a plain name without folder and extension, up to 120 bytes"
        raise BadRequestError(f"{name}{given(value)}: is {wrong}. {allowed}.")
    return plain
