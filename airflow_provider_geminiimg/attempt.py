"""One try of one task instance: where the domain meets Airflow's context, for operators and the sensor alike."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, NoReturn, get_args

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg._compat import marker
from airflow_provider_geminiimg.connection import GatewayConnection
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, MismatchError, OutcomeUnknownError
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.landing import Logs, Workshop, mismatch_error
from airflow_provider_geminiimg.ledger import Destination, Item, Ledger, Record
from airflow_provider_geminiimg.runner import Guard
from airflow_provider_geminiimg.storage import Files, default_s3_client, encode_segment, join_uri, open_store
from airflow_provider_geminiimg.transport import Transport
from airflow_provider_geminiimg.triggers.job import GeminiImageJobTrigger

OnMismatch = Literal["accept", "fail"]

MAX_DEFERRALS = 2  # further ones, after a trigger crashed; then the wait goes on in the worker
BACKSTOP = 120.0  # seconds after the trigger's own deadline, for a trigger that nobody runs
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".json")


class Attempt:
    """The surroundings of one try.

    :param context: Airflow's context of the running task.
    :param log: the task's logger.
    """

    def __init__(self, context: Mapping[str, Any], log: Logs) -> None:
        ti = context["ti"]
        self.log = log
        self.guard = Guard()
        self.marker = marker(context)
        self.generation = int(ti.max_tries or 0)
        self.item = Item(settings.namespace(), ti.dag_id, ti.run_id, ti.task_id, int(ti.map_index))
        self.root = settings.root()
        self.images = join_uri(self.root, "images")
        allowed = settings.allowed_roots()
        self.ledger = Ledger(open_store(self.root, default_s3_client))
        self.files = Files(s3_client=default_s3_client, allowed_roots=[*allowed, self.images] if allowed else [])

    def connection(self, conn_id: str) -> GatewayConnection:
        """The checked connection.

        :raises BadRequestError: it is missing or wrong.
        :raises AuthenticationError: it has no API key.
        """
        return GeminiImageHook(conn_id).connection()

    @asynccontextmanager
    async def workshop(self) -> AsyncIterator[Workshop]:
        """What a picture's life needs, open until the context ends."""
        async with AsyncExitStack() as stack:
            transports: dict[str, Transport] = {}

            async def connect(conn_id: str) -> Transport:
                if conn_id not in transports:
                    connection = await asyncio.to_thread(self.connection, conn_id)
                    transports[conn_id] = await stack.enter_async_context(Transport(connection))
                return transports[conn_id]

            yield Workshop(self.ledger, self.files, connect, self.log)

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
        stem = encode_segment(f"{item.task_id}{run}{mapped}{f'-v{variant}' if variant else ''}")
        folder = "/".join(
            encode_segment(part) for part in (item.dag_id, item.run_id, item.task_id, str(item.map_index))
        )
        directory = text("output_path", output_path) or join_uri(self.images, folder)
        return Destination(directory.rstrip("/"), _file_name(file_name) if file_name is not None else stem)

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
    """Raise the outcome as Airflow needs it.

    :raises AirflowFailException: from the outcome, where no retry may touch it.
    :raises GeminiImageError: the outcome itself, otherwise.
    """
    if isinstance(error, BadRequestError | OutcomeUnknownError | MismatchError):
        raise AirflowFailException(str(error)) from error
    raise error


def text(name: str, value: Any) -> str | None:
    """A rendered text field; empty means unset.

    :raises BadRequestError: for anything but text.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRequestError(f"{name} is {type(value).__name__}; allowed: text.")
    return value


def choice(name: str, value: Any, allowed: Any) -> Any:
    """A rendered field with a closed list of values, a ``Literal``.

    :raises BadRequestError: for any other value.
    """
    if value not in get_args(allowed):
        raise BadRequestError(f"{name} is {value!r}; allowed: {', '.join(map(repr, get_args(allowed)))}.")
    return value


def seconds(name: str, value: Any) -> float | None:
    """A rendered number of seconds above 0; ``None`` and empty mean unset.

    :raises BadRequestError: for anything else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise BadRequestError(f"{name} is {value!r}; allowed: a number of seconds above 0.")
    return number


def finished(manifest: dict[str, Any], on_mismatch: OnMismatch) -> dict[str, Any]:
    """What a task returns.

    :raises AirflowFailException: the picture has landed, is not what was asked for, and `on_mismatch` is ``"fail"``.
    """
    error = mismatch_error(manifest)
    if error is not None and on_mismatch == "fail":
        raise_outcome(error)
    return manifest


def _file_name(value: Any) -> str:
    name = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    wrong = (
        "empty or no text" if not name
        else "a path" if any(char in name for char in "/\\\0") or name in (".", "..")
        else "hidden" if name.startswith(".")
        else "longer than 120 bytes" if len(name.encode()) > 120
        else "with control characters" if not name.isprintable()
        else "with an extension, which comes from the picture's bytes" if name.lower().endswith(_IMAGE_SUFFIXES)
        else None
    )  # fmt: skip
    if wrong:
        raise BadRequestError(f"file_name is {value!r}: {wrong}. Allowed: a plain name without extension.")
    return name
