"""Faults that a test queues for the next calls of a route, and the calls that are held.

What must stay true: without a queued fault a call is untouched; `charge` alone decides whether the gateway's own work
(and its charge) happens before the fault strikes, so that a test knows what was paid for.
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
    """How the job is to end that this request makes; `state` is the request's."""
    found: Outcome | None = getattr(state, "outcome", None)
    return found or "image"


class Fault(BaseModel):
    """What happens to the next `times` calls of `route`. One with nothing else in it lets that many calls pass.

    :param route: the route.
    :param times: how many calls.
    :param charge: ``before`` (default): the fault strikes before the gateway does anything, so nothing is charged.
        ``after``: the gateway has done its work, a submit is accepted and charged, and then the fault strikes.
    :param hold: keep the call until ``POST /_sandbox/release``, then go on with the rest of the fault.
    :param delay: seconds to wait, likewise.
    :param drop: cut the connection without an answer.
    :param status: answer with this status (200 where only `body` is given).
    :param body: the answer's body: text, or JSON; without it the gateway's documented body of that status.
    :param headers: headers to add to the answer.
    :param cut_after: send this many bytes of the answer's body, then cut the connection.
    :param frame: send the answer's body whole, in a broken frame: ``length`` (the announced length is larger, then the
        connection is closed), ``reset`` (the same, reset), ``open`` (the same, left open), ``chunked`` (no last chunk)
        or ``gzip`` (its checksum is wrong).
    :param outcome: how the job ends that this submit makes.
    :param prompt_contains: only for submits whose prompt contains this text; other calls pass it by.
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
        """Whether the fault's own answer takes the place of the gateway's."""
        return self.status is not None or self.body is not None


def _prompt_of(body: bytes) -> str:
    """The prompt of a submit to either gateway; empty where the body is not understood."""
    try:
        request = json.loads(body)
        prompt = request["promptObject"]["prompt"] if "promptObject" in request else request["prompt"]
    except (ValueError, TypeError, KeyError):
        return ""
    return prompt if isinstance(prompt, str) else ""


class Faults:
    """The queue, and the calls that wait for a release.

    :param touched: called when a call is held or let go.
    """

    def __init__(self, touched: Callable[[], None]) -> None:
        self._touched = touched
        self._queue: deque[list[Any]] = deque()
        self._held: list[tuple[str, asyncio.Future[bool]]] = []

    def add(self, fault: Fault) -> None:
        self._queue.append([fault, fault.times])

    def take(self, route: str, body: bytes = b"") -> Fault | None:
        """The fault for the next call of `route`, used up.

        :param body: the call's, in which a submit has its prompt.
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
        """The faults that are still queued."""
        return [{**fault.model_dump(exclude_defaults=True), "times": times} for fault, times in self._queue]

    def held(self) -> list[str]:
        """The routes of the calls that are held now."""
        return [route for route, _ in self._held]

    async def hold(self, route: str) -> bool:
        """Wait for the release; ``False`` when the call is to be dropped instead."""
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
        """Let every held call go on (or drop it); how many there were."""
        count = 0
        for _, future in list(self._held):
            if not future.done():
                future.set_result(go_on)
                count += 1
        return count

    def reset(self) -> None:
        self._queue.clear()
        self.release(go_on=False)
