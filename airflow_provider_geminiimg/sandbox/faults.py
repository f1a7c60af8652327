"""Faults that a test queues for the next calls of a route, and calls that are held.

Invariants: without a queued fault, a call is unchanged. `charge` alone decides whether the gateway processes (and
charges) the call before the fault, so a test knows what was paid for.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["image", "refused", "refused_echo", "failed", "bare_failed", "no_image", "wrong_size"]
Frame = Literal["length", "reset", "open", "chunked", "gzip"]
Route = Literal[
    "onemin.submit",
    "onemin.status",
    "onemin.upload",
    "onemin.check",
    "onemin.models",
    "apimaster.submit",
    "apimaster.submit_sync",
    "apimaster.status",
    "apimaster.check",
    "apimaster.chat",
    "download",
]


def outcome_of(state: Any) -> Outcome:
    """Return the outcome of the job that a request creates; `state` is the request's."""
    found: Outcome | None = getattr(state, "outcome", None)
    return found or "image"


class Fault(BaseModel):
    """A fault for the next `times` calls of `route`. Without further fields, these calls are processed normally.

    :param route: the route.
    :param times: number of calls.
    :param charge: ``before`` (default): the fault happens before the gateway does anything, so nothing is charged.
        ``after``: the gateway processes the call first; a submit is accepted and charged.
    :param hold: hold the call until ``POST /_sandbox/release``, then continue with the rest of the fault.
    :param delay: seconds to wait, then continue with the rest of the fault.
    :param drop: close the connection without an answer.
    :param status: answer with this status (200 if only `body` is given).
    :param body: the answer's body, text or JSON. Default: the gateway's documented body for the status.
    :param headers: additional headers of the answer.
    :param cut_after: send this number of bytes of the answer's body, then close the connection.
    :param frame: send the complete body in a broken frame: ``length`` (the announced length is too large, then the
        connection is closed), ``reset`` (as before, but reset), ``open`` (as before, but left open), ``chunked``
        (without the last chunk) or ``gzip`` (with a wrong checksum).
    :param outcome: outcome of the job that this submit creates.
    :param prompt_contains: apply only to submits whose prompt contains this text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Route
    times: int = Field(default=1, ge=1)
    charge: Literal["before", "after"] = "before"
    hold: bool = False
    delay: float = Field(default=0.0, ge=0)
    drop: bool = False
    status: int | None = Field(default=None, ge=200, le=599)
    body: Any = None
    headers: dict[str, str] = Field(default_factory=dict)
    cut_after: int | None = Field(default=None, ge=0)
    frame: Frame | None = None
    outcome: Outcome | None = None
    prompt_contains: str | None = Field(default=None, min_length=1)

    @pydantic.model_validator(mode="after")
    def _only_a_submit_has_a_prompt(self) -> Fault:
        if self.prompt_contains is not None and "submit" not in self.route:
            raise ValueError(f"prompt_contains: a call of {self.route} has no prompt")
        return self

    @property
    def answers(self) -> bool:
        """Whether the fault's own answer replaces the gateway's."""
        return self.status is not None or self.body is not None


def _prompt_of(body: bytes) -> str:
    """Return the prompt of a submit to either gateway; empty if the body is not understood."""
    try:
        request = json.loads(body)
        prompt = request["promptObject"]["prompt"] if "promptObject" in request else request["prompt"]
    except (ValueError, TypeError, KeyError):
        return ""
    return prompt if isinstance(prompt, str) else ""


class Faults:
    """The queue of faults, and the calls that are held.

    :param touched: called when a call is held or released.
    """

    def __init__(self, touched: Callable[[], None]) -> None:
        self._touched = touched
        self._queue: deque[list[Any]] = deque()
        self._held: list[tuple[str, asyncio.Future[bool]]] = []

    def add(self, fault: Fault) -> None:
        self._queue.append([fault, fault.times])

    def take(self, route: str, body: bytes = b"") -> Fault | None:
        """Remove and return the fault for the next call of `route`.

        :param body: the body of the call, which contains the prompt of a submit.
        """
        for item in self._queue:
            wanted = item[0].prompt_contains
            if item[0].route == route and (wanted is None or wanted in _prompt_of(body)):
                item[1] -= 1
                if not item[1]:
                    self._queue.remove(item)
                fault: Fault = item[0]
                return fault
        return None

    def waiting(self) -> list[dict[str, Any]]:
        """Return the queued faults."""
        return [{**fault.model_dump(exclude_defaults=True), "times": times} for fault, times in self._queue]

    def held(self) -> list[str]:
        """Return the routes of the held calls."""
        return [route for route, _ in self._held]

    async def hold(self, route: str) -> bool:
        """Wait for the release; return ``False`` if the call must be dropped."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        item = (route, future)
        self._held.append(item)
        self._touched()
        try:
            return await future
        finally:
            if item in self._held:
                self._held.remove(item)
            self._touched()

    def release(self, *, go_on: bool = True) -> int:
        """Continue (or drop) every held call, and return their number."""
        count = 0
        for _, future in list(self._held):
            if not future.done():
                future.set_result(go_on)
                count += 1
        return count

    def reset(self) -> None:
        self._queue.clear()
        self.release(go_on=False)
