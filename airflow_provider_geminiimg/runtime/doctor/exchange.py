"""One HTTP exchange of the doctor, which ends after a deadline and reads a small answer only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from airflow_provider_geminiimg.core.execution.runner import run
from airflow_provider_geminiimg.core.http.log_filter import quiet_http

SECONDS = 30.0  # for the whole exchange
MAX_BYTES = 10_000
_PLAIN = {"Accept-Encoding": "identity"}  # a small compressed answer can become a large one


@dataclass(frozen=True)
class Answer:
    """An answer.

    :param body: its first `MAX_BYTES` at most.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; ``None`` if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def exchange(
    method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
) -> Answer:
    """Send a request; follow no redirect.

    :param body: sent as JSON.
    :raises httpx.HTTPError: there is no answer.
    :raises httpx.InvalidURL: the address is none.
    :raises TimeoutError: it took longer than `SECONDS`.
    """

    async def sent() -> Answer:
        with quiet_http(), anyio.fail_after(SECONDS):
            async with (
                httpx.AsyncClient(timeout=SECONDS) as client,
                client.stream(method, url, headers={**(headers or {}), **_PLAIN}, json=body) as answer,
            ):
                received = b""
                async for piece in answer.aiter_raw():
                    received += piece
                    if len(received) > MAX_BYTES:
                        break
                return Answer(answer.status_code, answer.headers, received[:MAX_BYTES])

    return run(sent)
