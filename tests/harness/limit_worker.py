"""A process that sends as many calls as the limits of its account let it, without Airflow: a test may start and kill
several of them."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import httpx

from airflow_provider_geminiimg.core.gateways.base import Call
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, parse_connection
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.account_limits import AccountLimits
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS


@dataclass(frozen=True)
class Calls:
    """What a process sends.

    :param connection: what `parse_connection` takes.
    :param root: URI of the root.
    :param seconds: for how long it begins calls.
    :param polls: number of polls at once.
    :param submits: number of billable calls at once.
    :param minute: of the rate limit, in seconds.
    """

    connection: dict[str, Any]
    root: str
    seconds: float
    polls: int = 8
    submits: int = 0
    minute: float = 60.0

    @property
    def parsed(self) -> GatewayConnection:
        return parse_connection(**self.connection)

    def account(self) -> AccountLimits:
        return AccountLimits(open_store(self.root, AIRFLOW_OPENERS), "default", self.parsed, minute=self.minute)


def work(calls: Calls) -> None:
    """Send calls until the time is over."""
    logging.disable(logging.ERROR)
    asyncio.run(_work(calls))


async def _work(calls: Calls) -> None:
    give_up = time.monotonic() + calls.seconds
    connection = calls.parsed
    async with Transport(connection, account=calls.account()) as transport:

        async def send(*, billable: bool) -> None:
            while time.monotonic() < give_up:
                url = f"{connection.base_url}/{'models' if billable else 'tasks/none'}"
                request = httpx.Request("GET", url) if billable else url
                with contextlib.suppress(GeminiImageError):
                    await transport.send(Call(request, lambda reply: None, billable=billable), prompt="")

        numbers = range(calls.submits + calls.polls)
        sending = [asyncio.create_task(send(billable=number < calls.submits)) for number in numbers]
        await asyncio.wait(sending, timeout=calls.seconds)
        for each in sending:
            each.cancel()
        await asyncio.wait(sending)


@contextlib.contextmanager
def workers(each: Sequence[Calls]) -> Iterator[list[BaseProcess]]:
    """Processes that send these calls; they end with the context."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [context.Process(target=work, args=(calls,), daemon=True) for calls in each]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def most_at_once(calls: Sequence[dict[str, Any]]) -> int:
    """The largest number of the sandbox's `calls` that were under way at one moment."""
    ends = [(call["time"] + call["seconds"], -1) for call in calls if call["seconds"] is not None]
    count = most = 0
    for _, step in sorted([*((call["time"], 1) for call in calls), *ends]):
        count += step
        most = max(most, count)
    return most


def most_in(times: Sequence[float], seconds: float) -> int:
    """The largest number of `times`, which are sorted, in any period of so many seconds."""
    return max((bisect.bisect_left(times, at + seconds) - begin for begin, at in enumerate(times)), default=0)
